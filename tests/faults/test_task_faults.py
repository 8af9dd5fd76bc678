"""Tasks that run too long, use up their memory or end their process: what becomes of each, and of the others.

fault                              acks_late       otherwise               retried by autoretry_for
soft limit, MemoryError            fails           fails                   yes
sys.exit                           fails           fails                   no: it is no Exception
hard limit                         fails; with acks_on_timeout=False and   no: nobody is left to ask for it
                                   acks_late it comes again, and is a
                                   dead letter after max_deliveries
os._exit, segfault,                comes again, and is a dead letter       no
abort, stack overflow, OOM kill    after max_deliveries; else is lost
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, at_once, check_traces, eventually, kill_worker, send_many, tree, wait_for
from umbel.interfaces import Place

pytestmark = pytest.mark.faults

TASKS = """
import itertools
import resource
import sys

# A process that dies here is expected to; nobody wants its memory on the disk.
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
app.conf.max_deliveries = 3


def overrun():
    time.sleep(60)


def no_memory():
    bytearray(1 << 60)


def overflow():
    # Through C, where Python does not count.
    sys.setrecursionlimit(1 << 30)
    again = ctypes.CFUNCTYPE(None)(lambda: again())
    again()


FATES = {
    "soft": overrun,
    "hard": overrun,
    "memory": no_memory,
    "sys.exit": lambda: sys.exit(0),
    "exit 3": lambda: os._exit(3),
    "exit 0": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "overflow": overflow,
}


def fateful(fate, acks_late, acks_on_timeout, retry):
    options = {"acks_late": acks_late, "acks_on_timeout": acks_on_timeout}
    if retry:
        options |= {"autoretry_for": (Exception,), "retry_kwargs": {"max_retries": 1, "countdown": 0}}
    if fate in ("soft", "hard"):
        options[{"soft": "soft_time_limit", "hard": "time_limit"}[fate]] = 0.3

    def body(self):
        note("start", self)
        FATES[fate]()
        note("end", self)

    app.task(body, bind=True, name=f"{fate} {acks_late} {acks_on_timeout} {retry}", **options)


for case in itertools.product(FATES, (True, False), (True, False), (True, False)):
    fateful(*case)


@app.task(bind=True, name="allocate")
def allocate(self, number, mebibytes):
    note("start", self)
    # Touched, or the kernel gives no page.
    held = bytearray(os.urandom(1 << 20)) * mebibytes
    time.sleep(0.02)
    note("end", self)
    return number * 2 if held else None
"""
#: The signal or status with which each of these ends its process.
CRASHES = {"exit 3": "exit", "exit 0": "exit", "segfault": "SIGSEGV", "abort": "SIGABRT", "overflow": "SIGSEGV"}
RAISES = {"soft": "SoftTimeLimitExceeded", "memory": "MemoryError", "sys.exit": "SystemExit"}
DELIVERIES = 3


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    url = request.getfixturevalue(f"{request.param}_url")
    with FaultSite(tmp_path, url, tasks=TASKS).closing() as made:
        yield made


def expected(fate: str, acks_late: bool, acks_on_timeout: bool, retry: bool) -> tuple[int, str, str]:
    """Return how often the body starts, the error that is stored, and the reason of the dead letter if there is one."""
    if fate in RAISES:
        # autoretry_for names Exception, which SystemExit is not.
        return 2 if retry and fate != "sys.exit" else 1, RAISES[fate], ""
    if fate == "hard" and (acks_on_timeout or not acks_late):
        return 1, "TimeLimitExceeded", ""
    if not acks_late:
        return 1, "WorkerLostError", ""
    return DELIVERIES, "MaxDeliveriesExceeded", "max_deliveries"


def test_what_a_task_does_to_itself(site: FaultSite, row: Any) -> None:
    """F05. Each ends as its options say, nobody else notices, and the pool serves on."""
    run_cases(site, row, [fate for fate in (*RAISES, "hard", *CRASHES) if fate != "exit 0"])


def test_a_task_ends_its_process_as_if_in_order(site: FaultSite, row: Any) -> None:
    """F05. The status 0 is no better than any other while a task runs."""
    run_cases(site, row, ["exit 0"], patience=15)


def run_cases(site: FaultSite, row: Any, fates: Sequence[str], patience: float = 50) -> None:
    """Send each with all options among tasks that do nothing wrong, and look at the endings of all."""
    cases = list(itertools.product(fates, (True, False), (True, False), (True, False)))
    results = {case: site.app.send_task(" ".join(map(str, case))) for case in cases}
    mates = send_many(site, 100, 0.002)
    worker = site.start("-c", "2")
    row.recovered = wait_for([*results.values(), *mates], patience)
    after = send_many(site, 100, 0.002)
    wait_for(after, 20)
    starts = Counter(attempt.task_id for attempt in site.attempts())
    letters = {letter.task_id: letter for letter in site.app.dead.list(limit=1000)}
    for case, result in results.items():
        letter = letters.get(result.id)
        error = result.result
        named = getattr(error, "exc_type", type(error).__name__)
        found = (starts[result.id], named, letter.reason if letter is not None else "")
        assert (case, found) == (case, expected(*case))
        if letter is not None and case[0] in CRASHES:
            assert [CRASHES[case[0]] in crash.cause for crash in letter.crashes] == [True] * DELIVERIES, letter.crashes
    deaths = worker.output.count(" exited with ")
    row.load, row.faults = f"200 + {len(cases)} that fail, 2 processes", f"{deaths} processes ended by their tasks"
    row.lost = sum(result.result != number * 2 for part in (mates, after) for number, result in enumerate(part))
    row.repeats = sum(starts[result.id] - 1 for result in (*mates, *after))
    row.bound = 0
    row.check()
    site.app.broker.purge("celery", Place.DEAD)
    site.stop_all()


# -- memory --------------------------------------------------------------------------------------------------------

CGROUP = Path("/sys/fs/cgroup/memory")
LIMIT = 256 << 20


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group whose processes are killed by the kernel when they use more than 256 MiB together."""
    group = CGROUP / f"umbel-faults-{os.getpid()}"
    if not (CGROUP / "memory.limit_in_bytes").exists():
        pytest.skip("needs control groups of version 1 with memory at /sys/fs/cgroup/memory")
    if not os.access(CGROUP, os.W_OK) or os.geteuid():
        pytest.skip("needs root, and control groups that it may write to")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        eventually(lambda: not (group / "cgroup.procs").read_text().split(), timeout=10)
        group.rmdir()


def start_limited(site: FaultSite, group: Path) -> Any:
    """Start a worker of two processes in the group."""
    worker = site.start("-c", "2")
    (group / "cgroup.procs").write_text(str(worker.process.pid))
    worker.expect("ready.")
    assert {int(pid) for pid in (group / "cgroup.procs").read_text().split()} >= set(tree(worker.process.pid))
    return worker


def test_the_kernel_kills_for_want_of_memory(site: FaultSite, memory_group: Path, row: Any) -> None:
    """F35. Who allocates too much is killed each time and given up; who does not runs, and the worker lives."""
    worker = start_limited(site, memory_group)
    good = at_once(site, [("allocate", number, 40) for number in range(60)])
    greedy = [site.send("allocate", number, 400) for number in range(2)]
    good += at_once(site, [("allocate", number, 40) for number in range(60, 100)])
    row.recovered = wait_for([*good, *greedy], 50)
    # A whole worker, once: what the kernel would do if it had chosen the supervisor.
    more = [site.send("plain", number, 0.3) for number in range(20)]
    eventually(lambda: any(each.task_id == more[0].id for each in site.attempts()))
    at = kill_worker(worker)
    start_limited(site, memory_group)
    wait_for(more, 30)
    starts = Counter(attempt.task_id for attempt in site.attempts())
    assert [type(each.result).__name__ for each in greedy] == ["MaxDeliveriesExceeded"] * len(greedy)
    assert [starts[each.id] for each in greedy] == [DELIVERIES] * len(greedy)
    assert all("SIGKILL" in crash.cause for letter in site.app.dead.list() for crash in letter.crashes)
    killed = worker.output.count("exited with 'signal 9 (SIGKILL)'")
    row.load, row.faults = "100 of 40 MiB, 20 short, 2 of 400 MiB", f"{killed} killed by the kernel, 1 worker by us"
    row.lost = sum(result.result != number * 2 for part in (good, more) for number, result in enumerate(part))
    row.repeats = sum(starts[each.id] - 1 for each in (*good, *more))
    # The kernel may choose the other process of the two, and a killed worker loses what its two processes ran.
    row.bound = killed - DELIVERIES * len(greedy) + 2 * len(at[1])
    row.check()
    site.app.broker.purge("celery", Place.DEAD)
    site.stop_all()
    check_traces(site)
