"""Workers that seem dead and are not: one that cannot run Python for a while, one that was stopped and wakes up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import (
    TTL,
    FaultSite,
    at_once,
    check_traces,
    children,
    eventually,
    send_many,
    tree,
    wait_for,
)
from support import WorkerProcess
from umbel.interfaces import Place
from umbel.result import AsyncResult
from umbel.signatures import signature


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def site(url: str, tmp_path: Path) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, url).closing() as made:
        yield made


AT_THE_DEFAULTS = [pytest.mark.faults, pytest.mark.timeout(240), pytest.mark.slow]


@pytest.mark.parametrize(
    "seconds", [TTL, pytest.param(3.0, marks=pytest.mark.faults), pytest.param(30.0, marks=AT_THE_DEFAULTS)]
)
def test_a_task_holds_the_interpreter_for_four_leases(url: str, tmp_path: Path, seconds: float, row: Any) -> None:
    """F03, F09. It runs once, for its supervisor renews; what was reserved behind it is taken back, and runs."""
    if seconds > 3.0 and not os.environ.get("UMBEL_FAULT_FULL"):
        pytest.skip("two minutes of holding still; UMBEL_FAULT_FULL=1 runs it")
    lease = {"LEASE_TTL": str(seconds), "LEASE_SWEEP": str(seconds / 3)}
    with FaultSite(tmp_path, url, **lease).closing() as site:
        workers = [site.start("-c", "1") for _ in range(2)]
        for worker in workers:
            worker.expect("ready.")
        # Both learn that these are quick, so that they will read ahead.
        wait_for(at_once(site, [("plain", number) for number in range(400)]), 30)
        eventually(lambda: site.left() == {})
        long, *behind = at_once(site, [("hold_gil", int(4 * seconds)), *(("plain", number) for number in range(30))])
        wait_for(behind, 30)
        assert not long.ready(), "what was reserved behind it had to wait"
        wait_for([long], 4 * seconds + 30)
        attempts = site.attempts()
        (held,) = [attempt for attempt in attempts if attempt.task_id == long.id]
        assert (held.ended_at - held.started_at) / 1e9 >= 4 * seconds - 0.1
        ids = {result.id for result in behind}
        last = max(attempt.started_at for attempt in attempts if attempt.task_id in ids)
        row.recovered = (last - held.started_at) / 1e9
        row.load, row.faults = f"400 + 30 behind one of {4 * seconds:g} s", f"GIL held, lease {seconds:g} s"
        row.lost = int(long.result != "done") + sum(each.result != at * 2 for at, each in enumerate(behind))
        row.repeats, row.bound = site.duplicates(), 0
        row.check()
        # A second is promised; the rest is for a machine that is busy.
        assert row.recovered < 1 + 3
        assert any("Taking back" in worker.output for worker in workers), "nothing was reserved behind it"
        assert not any("lost" in worker.output for worker in workers)
        site.stop_all()
        check_traces(site)


@contextlib.contextmanager
def stopped(site: FaultSite, running: WorkerProcess) -> Iterator[None]:
    """Stop a worker with all its processes for the time of the block."""
    frozen = tree(running.process.pid)

    def tell(number: int) -> None:
        for pid in frozen:
            os.kill(pid, number)

    tell(signal.SIGSTOP)
    try:
        # Whoever is stopped in the middle of a transaction on a file keeps all others out; that is not what is meant.
        while writing(site.folder / "umbel.db"):
            tell(signal.SIGCONT)
            time.sleep(0.01)
            tell(signal.SIGSTOP)
        yield
    finally:
        tell(signal.SIGCONT)


def writing(file: Path) -> bool:
    """Say whether anyone is writing to the file, or next in turn."""
    if not file.exists():
        return False
    with open(f"{file}.lock", "r+b") as lock, open(f"{file}.workers", "r+b") as workers:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(workers, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            return True
    return False


def states(site: FaultSite, results: list[AsyncResult[Any]]) -> list[Any]:
    """Return what is stored now."""
    fresh = [site.app.AsyncResult(result.id) for result in results]
    return [(result.state, result.result, result.date_done) for result in fresh]


def test_a_stopped_worker_wakes_up(site: FaultSite, row: Any) -> None:
    """F06. What it held ran elsewhere: its own outcomes are refused and their callbacks are not published again."""
    zombie = site.start("-c", "2")
    zombie.expect("ready.")
    before = set(children(zombie.process.pid))
    results, links = [], []
    for number in range(6):
        links.append(site.app.AsyncResult(f"after-{number}"))
        link = signature("plain", app=site.app, task_id=f"after-{number}")
        results.append(site.send("plain", number, 1.0, link=link))
    eventually(lambda: len(site.attempts()) == 2)
    ran = [attempt.task_id for attempt in site.attempts()]
    with stopped(site, zombie):
        at = time.monotonic_ns()
        other = site.start("-c", "2")
        wait_for([*results, *links], 30)
        stored = states(site, [*results, *links])
        again = [
            attempt.started_at for attempt in site.attempts() if attempt.task_id in ran and attempt.started_at > at
        ]
        row.recovered = (max(again) - at) / 1e9
    # Both bodies go on to their ends, and nothing comes of that.
    eventually(lambda: sum(attempt.ended for attempt in site.attempts()) == 6 + 6 + 2)
    eventually(lambda: zombie.output.count("This process lost its lease") == 2)
    assert other.stop(timeout=20) == 0
    # It has registered anew and goes on working.
    more = send_many(site, 20, 0.0)
    wait_for(more, 20)
    assert {attempt.node for attempt in site.attempts() if attempt.task_id in {each.id for each in more}} == {"w0@test"}
    assert not before & set(children(zombie.process.pid))
    row.load, row.faults = "6 tasks of 1 s with a callback each", "1 of 2 workers stopped"
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.lost += sum(link.result != number * 4 for number, link in enumerate(links))
    row.repeats, row.bound = site.duplicates(), 2
    row.check()
    assert states(site, [*results, *links]) == stored, "a zombie changed a result"
    starts = Counter(attempt.task_id for attempt in site.attempts())
    assert [starts[link.id] for link in links] == [1] * 6, "a callback was published twice"
    assert {id for id, count in starts.items() if count == 2} == set(ran)
    site.stop_all()
    check_traces(site)


@pytest.mark.faults
def test_a_stopped_worker_wakes_up_with_unstarted_messages(site: FaultSite, row: Any) -> None:
    """F06. It has read ahead when it is stopped, and then starts nothing of that: it all has been taken over."""
    zombie = site.start("-c", "1")
    zombie.expect("ready.")
    wait_for(at_once(site, [("plain", number) for number in range(400)]), 30)
    eventually(lambda: site.left() == {})
    # Known to be quick, so it is not given back before the first of them has turned out to be slow.
    results = at_once(site, [("plain", number, 0.5 if number == 0 else 0.0) for number in range(40)])
    eventually(lambda: site.app.broker.size("celery", Place.HELD) > 1)
    with stopped(site, zombie):
        at = time.monotonic_ns()
        held = site.app.broker.size("celery", Place.HELD)
        other = site.start("-c", "2")
        wait_for(results, 30)
        stored = states(site, results)
    zombie.expect("lost its lease", timeout=20)
    assert other.stop(timeout=20) == 0
    wait_for(send_many(site, 5, 0.0), 20)
    elsewhere = [attempt for attempt in site.attempts() if attempt.node == "w1@test"]
    assert len(elsewhere) == 40
    row.recovered = (elsewhere[0].started_at - at) / 1e9
    row.load, row.faults = f"40 tasks, {held} of them held", "1 of 2 workers stopped"
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), 1
    row.check()
    assert states(site, results) == stored
    site.stop_all()
    check_traces(site)
