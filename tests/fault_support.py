"""Planned failures of real workers: a site with tasks that keep a ledger, and what must hold at the end."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from support import WorkerProcess, environment, eventually
from umbel import Umbel
from umbel.interfaces import Place
from umbel.result import AsyncResult

TTL = 1.5
SETTLE_WINDOW = 0.002

#: The monotonic nanoseconds at which somebody was killed, and the worker processes that died of it.
Kill = tuple[int, Collection[int]]

TASKS = """
import ctypes
import os
import time

from umbel.testing.faults import FaultyUmbel

app = FaultyUmbel("jobs", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.update(
    lease_ttl=float(os.environ.get("LEASE_TTL", "1.5")),
    lease_heartbeat=float(os.environ.get("LEASE_TTL", "1.5")) / 3,
    lease_sweep=float(os.environ.get("LEASE_SWEEP", "0.3")),
    redelivery_backoff=(0.1,),
    worker_shutdown_timeout=5.0,
    worker_enable_remote_control="QUIET" not in os.environ,
)
LEDGER = os.environ["LEDGER"]


def note(what, task):
    # One write of less than a page, so that the lines of several processes do not mix.
    it = task.request
    line = f"{it.id} {it.retries} {what} {os.getpid()} {time.monotonic_ns()} {it.hostname}\\n"
    descriptor = os.open(f"{LEDGER}/{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@app.task(bind=True, name="plain")
def plain(self, number, seconds=0.0):
    note("start", self)
    if seconds:
        time.sleep(seconds)
    note("end", self)
    return number * 2


@app.task(bind=True, name="waiting")
def waiting(self, number, file):
    note("start", self)
    while not os.path.exists(file):
        time.sleep(0.2)
    note("end", self)
    return number * 2


@app.task(bind=True, name="retried", max_retries=3)
def retried(self, number):
    note("start", self)
    note("end", self)
    if self.request.retries == 0:
        raise self.retry(countdown=0.1)
    return number * 3


@app.task(bind=True, name="once", acks_late=False)
def once(self, number):
    note("start", self)
    note("end", self)
    return number * 5


@app.task(bind=True, name="poison")
def poison(self):
    note("start", self)
    os.kill(os.getpid(), 9)


@app.task(bind=True, name="hold_gil")
def hold_gil(self, seconds):
    note("start", self)
    # Unlike CDLL, PyDLL keeps the interpreter's lock during the call.
    ctypes.PyDLL(None).sleep(seconds)
    note("end", self)
    return "done"
"""


class Attempt(NamedTuple):
    """One start of a task's body, as the ledger has it."""

    task_id: str
    retries: int
    pid: int
    node: str
    started_at: int
    ended: bool
    ended_at: int = 0


class FaultSite:
    """A folder with the tasks, a store, a ledger and a place for the marks of faults that happened."""

    def __init__(self, folder: Path, url: str, results: str = "", *, tasks: str = "", **env: str) -> None:
        """``tasks`` is source that follows that of the common tasks."""
        self.folder = folder
        self.ledger = folder / "ledger"
        self.marks = folder / "marks"
        for made in (self.ledger, self.marks):
            made.mkdir()
        (folder / "jobs.py").write_text(TASKS + tasks)
        self.env = environment(
            URL=url, RESULTS=results or url, LEDGER=str(self.ledger), UMBEL_FAULT_MARKS=str(self.marks), **env
        )
        self.app = Umbel("client", broker=url, backend=results or url, set_as_current=False)
        self.workers: list[WorkerProcess] = []

    @contextmanager
    def closing(self) -> Iterator[FaultSite]:
        """Whatever happens, no process of this test is left."""
        try:
            yield self
        finally:
            for running in self.workers:
                kill(running)
                # Seen where the test failed.
                print(running.output)
            self.app.close()

    def start(self, *options: str, fault: str = "", **env: str) -> WorkerProcess:
        """Start a worker and do not wait for it."""
        name = f"w{len(self.workers)}@test"
        command = [sys.executable, "-m", "umbel", "-A", "jobs", "worker", "-l", "info", "-n", name, *options]
        running = WorkerProcess(command, self.folder, self.env | env | {"UMBEL_FAULT": fault})
        self.workers.append(running)
        return running

    def send(self, name: str, number: int, *args: Any, **options: Any) -> AsyncResult[Any]:
        return self.app.send_task(name, args=(number, *args), **options)

    def happened(self, fault: str) -> int:
        """Return the id of the process that met the fault, or 0."""
        mark = self.marks / fault
        return int(mark.read_text() or 0) if mark.exists() else 0

    def attempts(self) -> list[Attempt]:
        """Return every start of a body, the earliest first."""
        starts: dict[tuple[str, int, int, str], list[int]] = defaultdict(list)
        ends: dict[tuple[str, int, int, str], list[int]] = defaultdict(list)
        for file in self.ledger.iterdir():
            # A process that is killed may leave half a line.
            *lines, _ = file.read_text().split("\n")
            for line in lines:
                task_id, retries, what, pid, at, node = line.split()
                key = (task_id, int(retries), int(pid), node)
                if what == "start":
                    starts[key].append(int(at))
                else:
                    ends[key].append(int(at))
        found = [
            Attempt(*key, at, number < len(ends[key]), ends[key][number] if number < len(ends[key]) else 0)
            for key, times in starts.items()
            for number, at in enumerate(times)
        ]
        return sorted(found, key=lambda attempt: attempt.started_at)

    def repeats(self) -> dict[tuple[str, int], list[Attempt]]:
        """Return the attempts of what was started more than once (a retry is a start of its own)."""
        by_start: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
        for attempt in self.attempts():
            by_start[attempt.task_id, attempt.retries].append(attempt)
        return {key: attempts for key, attempts in by_start.items() if len(attempts) > 1}

    def duplicates(self) -> int:
        """Return how many starts there were beyond the first of each."""
        return sum(len(attempts) - 1 for attempts in self.repeats().values())

    def died(self, attempt: Attempt, killed: Collection[int] = ()) -> bool:
        """Say whether the process of this attempt was killed, alone or with its whole worker."""
        name, _, _ = attempt.node.partition("@")
        return attempt.pid in killed or self.workers[int(name[1:])].process.poll() == -signal.SIGKILL

    def recovery(self, kills: Iterable[Kill]) -> float:
        """Return the longest time in seconds from a kill until all that it had cut short had started again."""
        killed = {pid: at for at, pids in kills for pid in pids}
        again = (pair for attempts in self.repeats().values() for pair in itertools.pairwise(attempts))
        waits = (then.started_at - killed[cut.pid] for cut, then in again if cut.pid in killed)
        return max(waits, default=0) / 1e9

    def left(self) -> Mapping[str, int]:
        """Return what is anywhere in the queue."""
        return {place.value: count for place in Place if (count := self.app.broker.size("celery", place))}

    def pids(self, running: WorkerProcess) -> set[int]:
        """Return the processes of this worker that have started something."""
        name = f"w{self.workers.index(running)}@"
        return {attempt.pid for attempt in self.attempts() if attempt.node.startswith(name)}

    def stop_all(self) -> None:
        """Stop what runs in order and expect that nothing is in flight after it."""
        for running in self.workers:
            if running.process.poll() is None:
                status = running.stop(timeout=20)
                # One that was told before it listens for signals has taken nothing yet.
                early = status == -signal.SIGTERM and "ready." not in running.output
                assert status == 0 or early, running.output
        assert self.left() == {}


def kill(running: WorkerProcess) -> None:
    """End a worker at once; its processes go with it."""
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGCONT)
    running.stop(signal.SIGKILL)


def alive(pid: int) -> bool:
    """Say whether the process is there, and not as a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int, *, deep: bool = True) -> list[int]:
    """Return the worker processes under a supervisor: the children of its zygote. Not ``deep``: the zygote."""
    if not deep:
        return _children(pid)
    return [grandchild for child in _children(pid) for grandchild in _children(child)]


def tree(pid: int) -> list[int]:
    """Return the process and all below it, parents first."""
    return [pid, *(below for child in _children(pid) for below in tree(child))]


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return [int(child) for task in tasks for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_for(results: Mapping[str, AsyncResult[Any]] | list[AsyncResult[Any]], timeout: float) -> float:
    """Wait until all are there and return the seconds that took."""
    started = time.monotonic()
    pending = list(results.values()) if isinstance(results, Mapping) else list(results)
    for result in pending:
        result.get(timeout=max(0.1, timeout - (time.monotonic() - started)), propagate=False)
    return time.monotonic() - started


def kill_worker(running: WorkerProcess) -> Kill:
    """Kill a worker and see that its processes go with it."""
    below = children(running.process.pid)
    at = time.monotonic_ns()
    running.process.kill()
    running.process.wait(10)
    eventually(lambda: not any(map(alive, below)), timeout=5)
    return at, below


def send_many(site: FaultSite, count: int, seconds: float) -> list[AsyncResult[Any]]:
    return [site.send("plain", number, seconds) for number in range(count)]


def at_once(site: FaultSite, calls: Iterable[tuple[Any, ...]]) -> list[AsyncResult[Any]]:
    """Send them in one step, so that a process finds all of them together."""
    return site.app.send_many([(name, args) for name, *args in calls])


def left_unsettled(seconds: float) -> int:
    """Return how many outcomes a killed process leaves at most if each of its tasks takes so long.

    The one that runs, and those that ended within the window in which outcomes are settled together.
    """
    return 2 + int(SETTLE_WINDOW / seconds)


def check_repeats(site: FaultSite, killed: Collection[int], *, threads: bool = False) -> None:
    """Fail if a body ran again that a living process had begun, or whose outcome must have been settled.

    Outcomes are settled in the order in which bodies end, except among ``threads``.
    """
    again = [attempt for attempts in site.repeats().values() for attempt in attempts[:-1]]
    for attempt in again:
        assert attempt.pid in killed, f"{attempt} ran again although its process lived"
    if threads:
        return
    settled = dict.fromkeys((attempt.pid for attempt in again), 0)
    for attempt in set(site.attempts()) - set(again):
        if attempt.pid in settled:
            settled[attempt.pid] = max(settled[attempt.pid], attempt.ended_at)
    for attempt in again:
        late = attempt.ended and attempt.ended_at < settled[attempt.pid]
        assert not late, f"{attempt} ran again although it was settled"


def finish(
    site: FaultSite, row: Any, results: list[AsyncResult[Any]], kills: Collection[Kill], *, threads: bool = False
) -> None:
    """Fill the row once everything is done, check the promise, and look for traces in the logs and the file."""
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats = site.duplicates()
    row.recovered = site.recovery(kills)
    check_repeats(site, {pid for _, pids in kills for pid in pids}, threads=threads)
    row.check()
    site.stop_all()
    check_traces(site)


def check_traces(site: FaultSite) -> None:
    """Fail if a log tells of something that must not happen, or if the file is damaged. For stopped workers."""
    file = site.folder / "umbel.db"
    if file.exists():
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for running in site.workers:
        assert "database is locked" not in running.output
        # What a supervisor's processes say while they are taken along with it is not an error of theirs.
        assert running.process.returncode == -signal.SIGKILL or "Traceback" not in running.output, running.output


__all__ = [
    "TTL",
    "Attempt",
    "FaultSite",
    "Kill",
    "alive",
    "at_once",
    "check_repeats",
    "check_traces",
    "children",
    "eventually",
    "finish",
    "kill",
    "kill_worker",
    "left_unsettled",
    "send_many",
    "tree",
    "wait_for",
]
