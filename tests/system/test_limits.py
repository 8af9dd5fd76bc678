"""Real workers whose tasks run too long, hold the interpreter, are revoked, or make their process stand still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from umbel.interfaces import Place
from umbel.testing.servers import RedisServer

TASKS = """
import asyncio
import ctypes
import os
import time

from umbel import Umbel, signals
from umbel.exceptions import SoftTimeLimitExceeded

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(lease_ttl=6.0, lease_heartbeat=1.0, lease_sweep=1.0, redelivery_backoff=(0,))
app.conf.update(eval(os.environ.get("CONF", "{}")))
MARKS = os.path.join(os.path.dirname(__file__), "marks")


def mark(text):
    with open(MARKS, "a") as file:
        file.write(f"{text} {os.getpid()}\\n")


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="pid")
def pid():
    return os.getpid()


@app.task(name="nap")
def nap(seconds, text="nap"):
    mark(text)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return "rested"


@app.task(name="cleans", soft_time_limit=0.3)
def cleans(seconds):
    try:
        nap.run(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned"


@app.task(name="acleans", soft_time_limit=0.3)
async def acleans(seconds):
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned"


@app.task(name="hog")
def hog(seconds, text="hog"):
    mark(text)
    if seconds:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return "hogged"


@app.task(name="count")
def count():
    # In C, with the interpreter held, and no signal ends it.
    return sum(range(10**11))


@app.task(name="unacked", acks_on_failure_or_timeout=False)
def unacked(seconds):
    mark("unacked")
    if len(open(MARKS).readlines()) == 1:
        time.sleep(seconds)
    return "second time"


@app.task(name="errback")
def errback(id):
    mark("errback-" + id)


@app.task(name="tidy")
def tidy(seconds):
    mark("tidy")
    try:
        time.sleep(seconds)
    finally:
        mark("tidied")


@signals.task_revoked.connect
def on_revoked(request, terminated, signum, expired, **kwargs):
    mark(f"revoked-{request.id}-{terminated}-{signum}")
"""


class Site:
    """A folder with the tasks, the URL of its store, and a client of it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.env = environment(URL=url)
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(name, args=args, **options)

    @contextmanager
    def worker(self, *options: str, status: int | None = 0, **env: str) -> Iterator[WorkerProcess]:
        with worker("jobs", "-l", "info", *options, cwd=self.folder, env=self.env | env, status=status) as running:
            yield running
        assert running.process.stdout is not None
        running.process.stdout.close()

    def marks(self) -> list[tuple[str, int]]:
        """What the tasks wrote, with the process that did."""
        path = self.folder / "marks"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.rpartition(" ")[0], int(line.rpartition(" ")[2])) for line in lines]

    def marked(self, text: str, count: int = 1) -> None:
        eventually(lambda: sum(mark == text for mark, _ in self.marks()) >= count)

    def left(self) -> list[int]:
        return [self.app.broker.size("celery", place) for place in (Place.READY, Place.HELD, Place.DEAD)]


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, request.getfixturevalue("redis_url" if request.param == "redis" else "sqlite_url"))
    yield made
    made.app.close()


@pytest.fixture
def local(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    made = Site(tmp_path, sqlite_url)
    yield made
    made.app.close()


# -- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_limits_hold_and_the_slot_is_usable_again(site: Site, pool: str) -> None:
    with site.worker("-P", pool, "-c", "1") as running:
        assert site.send("cleans", 30).get(timeout=20) == "cleaned"
        assert site.send("acleans", 30).get(timeout=20) == "cleaned"
        with pytest.raises(SoftTimeLimitExceeded):
            site.send("nap", 30, soft_time_limit=0.3).get(timeout=20)
        slow = site.send("nap", 30, time_limit=0.5, link_error=site.app.signature("errback"))
        after = site.send("add", 1, 2)
        with pytest.raises(TimeLimitExceeded):
            slow.get(timeout=20)
        assert after.get(timeout=20) == 3
        site.marked(f"errback-{slow.id}")
        held = site.send("hog", 10, time_limit=0.5)
        after = site.send("add", 2, 3)
        with pytest.raises(TimeLimitExceeded):
            held.get(timeout=9)
        assert after.get(timeout=9) == 5
        running.expect("Soft time limit (0.3s) exceeded for nap[")
        running.expect(f"Hard time limit (0.5s) exceeded for nap[{slow.id}]")
        running.expect(f"Hard time limit (0.5s) exceeded for hog[{held.id}]")
    assert site.left() == [0, 0, 0]
    assert Counter(text for text, _ in site.marks())["hog"] == 1


def test_the_workers_own_limits(local: Site) -> None:
    with local.worker("-c", "1", "--time-limit", "1.5", "--soft-time-limit", "0.4"):
        with pytest.raises(SoftTimeLimitExceeded):
            local.send("nap", 30).get(timeout=20)
        with pytest.raises(TimeLimitExceeded):
            local.send("hog", 10).get(timeout=9)


def test_what_shares_the_process_comes_again_and_is_not_counted(site: Site) -> None:
    with site.worker("-P", "threads", "-c", "3", CONF="{'max_deliveries': 1}"):
        mates = [site.send("nap", 2, f"mate{n}") for n in range(2)]
        for n in range(2):
            site.marked(f"mate{n}")
        slow = site.send("hog", 30, time_limit=0.5)
        with pytest.raises(TimeLimitExceeded):
            slow.get(timeout=20)
        # One crash would be one too many with max_deliveries=1.
        assert [mate.get(timeout=20) for mate in mates] == ["rested", "rested"]
    assert Counter(text for text, _ in site.marks()) == {"hog": 1, "mate0": 2, "mate1": 2}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_timeout_that_does_not_acknowledge_goes_back(local: Site, pool: str) -> None:
    with local.worker("-P", pool, "-c", "1"):
        assert local.send("unacked", 30, time_limit=0.5).get(timeout=20) == "second time"
    assert local.left() == [0, 0, 0]


def test_a_limit_that_cannot_be_kept_is_refused_with_78(local: Site) -> None:
    command = [sys.executable, "-m", "umbel", "-A", "jobs", "worker", "-P", "solo", "--time-limit", "5"]
    done = subprocess.run(
        command, cwd=local.folder, env=local.env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 78 and "task_time_limit" in done.stderr and done.stderr.count("\n") == 1


def test_solo_keeps_soft_limits(local: Site) -> None:
    with local.worker("-P", "solo"):
        assert local.send("cleans", 30).get(timeout=20) == "cleaned"
        with pytest.raises(SoftTimeLimitExceeded):
            local.send("nap", 30, soft_time_limit=0.3).get(timeout=20)


# -- revoking ----------------------------------------------------------------------------------------------------


def test_a_revoke_survives_that_no_worker_runs(site: Site) -> None:
    first, second = site.send("add", 1, 1), site.send("add", 2, 2)
    first.revoke()
    with site.worker("-c", "1") as running:
        assert second.get(timeout=20) == 4
        with pytest.raises(TaskRevokedError):
            first.get(timeout=20)
        running.expect(f"Discarding revoked task: add[{first.id}]")
    assert first.state == "REVOKED"
    site.marked(f"revoked-{first.id}-False-None")
    assert site.left() == [0, 0, 0]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_a_running_worker_hears_of_it(local: Site, pool: str) -> None:
    with local.worker("-P", pool, "-c", "1") as running:
        before = local.send("nap", 3)
        local.marked("nap")
        wanted, unwanted = local.send("add", 1, 1), [local.send("nap", 0, "never") for _ in range(3)]
        local.app.control.revoke([result.id for result in unwanted])
        assert before.get(timeout=20) == "rested"
        for result in unwanted:
            with pytest.raises(TaskRevokedError):
                result.get(timeout=20)
        assert wanted.get(timeout=20) == 2
        running.expect("Discarding revoked task: nap[")
    assert "never" not in [text for text, _ in local.marks()]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_terminate_stops_one_task_and_no_other(site: Site, pool: str) -> None:
    with site.worker("-P", pool, "-c", "2") as running:
        mate, victim = site.send("nap", 4, "mate"), site.send("nap", 60, "victim")
        site.marked("mate")
        site.marked("victim")
        victim.revoke(terminate=True)
        with pytest.raises(TaskRevokedError, match="terminated"):
            victim.get(timeout=20)
        assert mate.get(timeout=20) == "rested"
        running.expect(f"Terminating {victim.id} (SIGTERM)")
        site.marked(f"revoked-{victim.id}-True-15")
    assert Counter(text for text, _ in site.marks())["mate"] == 1
    assert site.left() == [0, 0, 0]


def test_terminate_lets_the_task_tidy_up(local: Site) -> None:
    with local.worker("-c", "1"):
        result = local.send("tidy", 60)
        local.marked("tidy")
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
        local.marked("tidied")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_terminate_kills_what_does_not_listen(site: Site, how: str) -> None:
    with site.worker("-c", "2"):
        mate, victim = site.send("nap", 4, "mate"), site.send("hog", 20, "victim")
        site.marked("mate")
        site.marked("victim")
        victim.revoke(terminate=True, signal=how)
        with pytest.raises(TaskRevokedError):
            victim.get(timeout=15)
        assert mate.get(timeout=20) == "rested"
        site.marked(f"revoked-{victim.id}-True-{signal.Signals[how].value}")
    assert Counter(text for text, _ in site.marks())["mate"] == 1
    assert site.left() == [0, 0, 0]


# -- taking back, standing still, replacing ----------------------------------------------------------------------


def test_what_waits_behind_c_code_runs_elsewhere_and_once(site: Site) -> None:
    with site.worker("-c", "2"):
        for result in [site.send("hog", 0, "warm") for _ in range(300)]:
            result.get(timeout=20)
        calls: list[Any] = [("hog", (0, f"n{n}")) for n in range(400)]
        calls[50] = ("hog", (6, "n50"))
        started = time.monotonic()
        results = site.app.send_many(calls)
        eventually(lambda: len(site.marks()) == 700)
        # Long before the one that holds the interpreter ends.
        assert time.monotonic() - started < 5
        assert {result.get(timeout=20) for result in results} == {"hogged"}
    assert set(Counter(text for text, _ in site.marks() if text != "warm").values()) == {1}
    assert site.left() == [0, 0, 0]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_process_that_stands_still_is_dumped_and_killed(local: Site, pool: str) -> None:
    with local.worker("-P", pool, "-c", "1", CONF="{'stuck_after': 1.0}") as running:
        stuck = local.send("count")
        with pytest.raises(TimeLimitExceeded, match="no progress"):
            stuck.get(timeout=20)
        running.expect(f"makes no progress since 1 s with count[{stuck.id}]")
        running.expect("in count")
        assert local.send("add", 1, 2).get(timeout=20) == 3
    assert local.left() == [0, 0, 0]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
@pytest.mark.parametrize("option", [("--max-tasks-per-child", "1"), ("--max-memory-per-child", "1000")])
def test_processes_are_replaced_between_tasks(local: Site, pool: str, option: tuple[str, str]) -> None:
    with local.worker("-P", pool, "-c", "2", *option):
        mate = local.send("nap", 1.5, "mate")
        local.marked("mate")
        pids = {local.send("pid").get(timeout=20) for _ in range(3)}
        assert len(pids) == 3
        assert mate.get(timeout=20) == "rested"
    assert Counter(text for text, _ in local.marks()) == {"mate": 1}
    assert local.left() == [0, 0, 0]


def test_processes_are_replaced_by_their_age(local: Site) -> None:
    with local.worker("-c", "1", "--max-age-per-child", "1"):
        first = local.send("pid").get(timeout=20)
        eventually(lambda: local.send("pid").get(timeout=20) != first)


def test_in_a_crash_every_task_that_had_started_counts(local: Site) -> None:
    with local.worker("-P", "threads", "-c", "2", CONF="{'max_deliveries': 1}"):
        results = [local.send("nap", 30, f"t{n}") for n in range(2)]
        for n in range(2):
            local.marked(f"t{n}")
        os.kill(local.marks()[0][1], signal.SIGKILL)
        for result in results:
            with pytest.raises(Exception, match="1"):
                result.get(timeout=20)
    assert local.left() == [0, 0, 2]


# -- stopping ----------------------------------------------------------------------------------------------------


def test_sighup_starts_anew_in_the_same_process(local: Site) -> None:
    with local.worker("-c", "1") as running:
        first = local.send("pid").get(timeout=20)
        task = local.send("nap", 1)
        local.marked("nap")
        running.process.send_signal(signal.SIGHUP)
        assert task.get(timeout=20) == "rested"
        assert local.send("pid").get(timeout=20) != first
        assert running.process.poll() is None
        assert sum(" ready." in line for line in running.lines) == 2
    assert "Restarting worker" in running.output
    assert local.left() == [0, 0, 0]


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGQUIT]])
def test_a_worker_stops_while_its_broker_is_away(tmp_path: Path, pool: str, numbers: list[int]) -> None:
    """F17. It cannot give back what it held, and ends in time all the same."""
    with RedisServer() as server:
        away = Site(tmp_path, server.url)
        conf = "{'worker_shutdown_timeout': 1.0}"
        with away.worker("-P", pool, "-c", "1", status=None, CONF=conf) as running:
            away.send("nap", 60)
            away.marked("nap")
            away.app.close()
            server.stop()
            for number in numbers:
                running.process.send_signal(number)
                time.sleep(0.2)
            assert running.process.wait(20) != 0
        (_, pid), *others = away.marks()
        assert not others and not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_a_worker_that_waits_for_its_broker_can_be_stopped(tmp_path: Path, pool: str) -> None:
    """F17. It has never reached its broker."""
    waiting = Site(tmp_path, "redis://127.0.0.1:1/0")
    running = WorkerProcess(
        [sys.executable, "-m", "umbel", "-A", "jobs", "worker", "-P", pool], waiting.folder, waiting.env
    )
    running.expect("Cannot connect to")
    assert running.stop() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_no_process_outlives_a_killed_supervisor_even_in_c_code(local: Site, pool: str) -> None:
    local.send("hog", 60)
    with local.worker("-P", pool, "-c", "1", status=None) as running:
        local.marked("hog")
        running.process.kill()
        (_, pid), *_ = local.marks()
        eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout=5)
