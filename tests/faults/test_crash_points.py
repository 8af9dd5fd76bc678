"""A process dies before or after every round trip to its store, once each, and nothing is lost or doubled for it.

The bound on repeats: only a body that the dead process had started and whose outcome it had not settled may run again.
After a settle was applied that is what it had not finished; a message that had not started never runs twice.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, eventually, wait_for
from umbel.interfaces import Place
from umbel.signatures import signature

WORKER_POINTS = [
    f"{method}:{when}:{call}:kill"
    for method, calls in {
        "reserve": (1, 2),
        "begin": (1,),
        "settle": (1, 2, 3),
        "register": (1, 2),
        "renew": (1, 2),
        "suspects": (1, 2),
    }.items()
    for call in calls
    for when in ("before", "after")
]
# First a child dies, then the supervisor while it gives back; or a whole worker, then the one that takes over.
CHAINS = [f"settle:before:1:kill,release:{when}:1:kill" for when in ("before", "after")]
REAPS = [f"reap:{when}:1:kill" for when in ("before", "after")]
QUICK = {"settle:before:1:kill", "settle:after:1:kill", "begin:after:1:kill"}


def points(names: list[str], quick: Collection[str] = ()) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.faults) for name in names]


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "sqlite_url")
    with FaultSite(tmp_path, url).closing() as made:
        yield made


@pytest.fixture
def split(redis_url: str, sqlite_url: str, tmp_path: Path) -> Iterator[FaultSite]:
    """Messages in Redis and results in a file: two steps where there is one elsewhere."""
    with FaultSite(tmp_path, redis_url, sqlite_url).closing() as made:
        yield made


def send_everything(site: FaultSite) -> dict[str, tuple[Any, Any]]:
    """Send one of each kind; return the results by name, each with its right value."""
    follow = signature("plain", app=site.app, task_id="follow-up")
    return {
        "plain": (site.send("plain", 1), 2),
        "linked": (site.send("plain", 2, link=follow), 4),
        "retried": (site.send("retried", 3), 9),
        "once": (site.send("once", 4), 20),
        "late": (site.send("plain", 5, countdown=0.3), 10),
        "follow-up": (site.app.AsyncResult("follow-up"), 8),
    }


def check(site: FaultSite, sent: dict[str, tuple[Any, Any]], killed: int, *, settled: bool = False) -> None:
    """All have run, with one right result each, nothing is anywhere, and what ran twice had to."""
    for name, (result, value) in sent.items():
        if name == "once" and result.failed():
            assert type(result.result).__name__ == "WorkerLostError"
        else:
            assert (name, result.state, result.result) == (name, "SUCCESS", value)
    started = {attempt.task_id for attempt in site.attempts()}
    assert {result.id for name, (result, _) in sent.items() if name != "once"} <= started
    for (task_id, _), attempts in site.repeats().items():
        assert task_id != sent["once"][0].id, "what may run once ran twice"
        *cut_short, last = attempts
        assert all(site.died(attempt, {killed}) for attempt in cut_short), "it ran again although its process lived"
        assert last.ended
        assert not (settled and any(each.ended for each in cut_short)), "it ran again although it was settled"
    site.stop_all()


def recover(site: FaultSite, fault: str, *options: str) -> None:
    """Run a worker into the fault, and another if it took the worker with it."""
    worker = site.start("-c", "2", *options, fault=fault)
    last = fault.rpartition(",")[2]
    eventually(lambda: bool(site.happened(last)) or worker.process.poll() is not None)
    killed = site.happened(last)
    assert killed, f"the worker never came to {last}:\n{worker.output}"
    if killed == worker.process.pid:
        assert worker.process.wait(10) == -signal.SIGKILL
        site.start("-c", "2").expect("ready.")


@pytest.mark.parametrize("fault", points(WORKER_POINTS, QUICK))
def test_a_process_dies_at_a_point(site: FaultSite, fault: str) -> None:
    sent = send_everything(site)
    recover(site, fault)
    wait_for([result for result, _ in sent.values()], timeout=25)
    check(site, sent, site.happened(fault), settled=fault.startswith("settle:after"))


@pytest.mark.faults
@pytest.mark.parametrize("fault", CHAINS)
def test_a_supervisor_dies_while_it_gives_back(site: FaultSite, fault: str) -> None:
    sent = send_everything(site)
    recover(site, fault)
    wait_for([result for result, _ in sent.values()], timeout=25)
    check(site, sent, site.happened(fault.partition(",")[0]))


@pytest.mark.faults
@pytest.mark.parametrize("fault", REAPS)
def test_a_reaper_dies_while_it_takes_over(site: FaultSite, fault: str) -> None:
    sent = send_everything(site)
    first = site.start("-c", "2", fault=CHAINS[0])
    assert first.process.wait(20) == -signal.SIGKILL
    recover(site, fault)
    wait_for([result for result, _ in sent.values()], timeout=30)
    check(site, sent, site.happened("settle:before:1:kill"))


@pytest.mark.parametrize("fault", points([f"{m}:{w}:1:kill" for m in ("store", "settle") for w in ("before", "after")]))
def test_results_in_another_store(split: FaultSite, fault: str) -> None:
    sent = send_everything(split)
    recover(split, fault)
    wait_for([result for result, _ in sent.values()], timeout=25)
    check(split, sent, split.happened(fault), settled=fault.startswith("settle:after"))


PRODUCER = """
import sys
import jobs
jobs.app.send_task("plain", args=(21,), task_id="the-one")
print("accepted")
"""


def produce(site: FaultSite, fault: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRODUCER],
        cwd=site.folder,
        env=site.env | {"UMBEL_FAULT": fault},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(("when", "queued"), [("before", 0), ("after", 1)])
def test_a_producer_dies(site: FaultSite, when: str, queued: int) -> None:
    """It has or has not published; publishing once more with the same id makes exactly one task of it."""
    fault = f"publish:{when}:1:kill"
    done = produce(site, fault)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done.stderr
    assert site.app.broker.size("celery", Place.READY) == queued
    again = produce(site)
    assert (again.returncode, again.stdout) == (0, "accepted\n"), again.stderr
    assert site.app.broker.size("celery", Place.READY) == 1
    (seen,) = site.app.broker.peek("celery")
    assert json.loads(seen.raw)["headers"]["id"] == "the-one"
