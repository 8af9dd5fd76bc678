"""Those who take over from the dead die themselves, or come all at once: each message is moved once, and none stays."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, at_once, eventually, finish, kill_worker, wait_for
from umbel.brokers.redis import RedisBroker
from umbel.brokers.redis import leases as redis_leases
from umbel.brokers.sqlite import SqliteBroker
from umbel.brokers.sqlite import leases as sqlite_leases
from umbel.interfaces import Broker, Place, QueueSpec
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing

pytestmark = pytest.mark.faults

HELD = 300
BATCH = 7
KILLS = 5
TASKS = """
from umbel.brokers.redis import leases as redis_leases
from umbel.brokers.sqlite import leases as sqlite_leases

redis_leases.BATCH = sqlite_leases._REAP_BATCH = int(os.environ["REAP_BATCH"])
"""


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def site(url: str, tmp_path: Path) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, url, tasks=TASKS, REAP_BATCH=str(BATCH)).closing() as made:
        yield made


def in_places(site: FaultSite) -> int:
    return sum(site.app.broker.size("celery", place) for place in (Place.READY, Place.SCHEDULED, Place.HELD))


def test_reapers_die_one_after_the_other(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F07. Each has moved a few batches when it is killed; the next one goes on where it was."""
    gate = site.folder / "gate"
    results = at_once(site, [("waiting", number, str(gate)) for number in range(HELD)])
    first = site.start("-P", "threads", "-c", str(HELD))
    eventually(lambda: len(site.attempts()) == HELD)
    kill = kill_worker(first)
    moved = 0
    for number in range(KILLS):
        batches = chance.randint(1, 6)
        moved += batches * BATCH
        fault = f"reap:after:{batches}:kill"
        marks = site.folder / f"marks-{number}"
        marks.mkdir()
        # Of another queue: what it moves stays where it is put.
        reaper = site.start("-P", "threads", "-c", "1", "-Q", "other", fault=fault, UMBEL_FAULT_MARKS=str(marks))
        eventually(lambda mark=marks / fault: mark.exists())  # type: ignore[misc]
        assert reaper.process.wait(10) == -signal.SIGKILL
        assert in_places(site) == HELD
        assert site.app.broker.size("celery", Place.HELD) == HELD - moved
    gate.touch()
    site.start("-P", "threads", "-c", "4")
    wait_for(results, 40)
    row.load, row.faults = f"{HELD} tasks in one process", f"1 worker killed, and {KILLS} reapers of it"
    row.bound = HELD
    finish(site, row, results, [kill], threads=True)
    assert row.repeats == HELD


# -- at once -------------------------------------------------------------------------------------------------------

WORKERS = 50
LIVING = 10
REAPERS = 3
TTL = 30.0


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_leases, "BATCH", BATCH)
    monkeypatch.setattr(sqlite_leases, "_REAP_BATCH", BATCH)


def maker(url: str, closing: ExitStack) -> Callable[[], Broker]:
    """Return what opens a broker of its own on one store and one clock."""
    clock = FakeClock()
    options = {"lease_ttl": TTL, "lease_heartbeat": TTL / 3, "redelivery_backoff": (), "max_deliveries": None}

    def make() -> Broker:
        broker: Any = SqliteBroker if url.startswith("sqlite") else RedisBroker
        made: Broker = broker(url, options=options, clock=clock)
        made.open()
        closing.callback(made.close)
        return made

    make.clock = clock  # type: ignore[attr-defined]
    return make


class FakeWorker:
    """Registers and reserves as a worker would, and runs nothing."""

    def __init__(self, broker: Broker, count: int, closing: ExitStack) -> None:
        self.leases = broker.leases()
        closing.callback(self.leases.close)
        self.id = self.leases.register("fake")
        self.consumer = broker.consumer(self.id, ["q"])
        closing.callback(self.consumer.close)
        self.held: list[bytes] = []
        while len(self.held) < count and (batch := self.consumer.reserve(count - len(self.held))):
            self.held += bodies(batch)

    def renew(self) -> None:
        assert list(self.leases.renew([self.id])) == [], "a living worker was taken over"


def sweep(broker: Broker, start: threading.Barrier, moved: list[int], errors: list[BaseException]) -> None:
    """Take over from everybody who is dead, until nobody is."""
    leases = broker.leases()
    try:
        start.wait(10)
        while suspects := leases.suspects():
            taken = [leases.reap(suspect) for suspect in suspects]
            moved.append(sum(each.moved for each in taken))
            if not any(each.moved or each.left for each in taken):
                return
    # Looked at below, where the test can fail of it.
    except BaseException as error:
        errors.append(error)
    finally:
        leases.close()


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("round", range(5))
def test_three_sweep_at_once(url: str, chance: random.Random, row: Any, round: int) -> None:
    """F08. Fifty workers of whom ten live, in small batches: each message is moved once, and the living keep theirs."""
    with ExitStack() as closing:
        make = maker(url, closing)
        clock: FakeClock = make.clock  # type: ignore[attr-defined]
        broker = make()
        broker.declare([QueueSpec(name="q")])
        counts = [chance.randint(0, 40) for _ in range(WORKERS)]
        broker.publish([outgoing(b"%d" % number) for number in range(sum(counts))])
        workers = [FakeWorker(broker, count, closing) for count in counts]
        living, dead = workers[:LIVING], workers[LIVING:]
        for each in dead:
            # On a file the kernel must see it too.
            each.leases.close()
        clock.advance(TTL + 1)
        for each in living:
            each.renew()
        start = threading.Barrier(REAPERS)
        moved: list[int] = []
        errors: list[BaseException] = []
        threads = [threading.Thread(target=sweep, args=(make(), start, moved, errors)) for _ in range(REAPERS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for each in living:
                each.renew()
        for thread in threads:
            thread.join(10)
        assert not errors, errors
        there = Counter(bodies(broker.peek("q", limit=10_000)))
        row.load, row.faults = f"{sum(counts)} held by {WORKERS} workers", f"{len(dead)} die, {REAPERS} reap at once"
        wanted = [content for each in dead for content in each.held]
        row.lost, row.repeats = len(set(wanted) - there.keys()), sum(there.values()) - len(there)
        row.bound = 0
        row.check()
        assert sum(moved) == len(wanted) == sum(there.values())
        assert broker.size("q", Place.HELD) == sum(len(each.held) for each in living)
        assert {suspect.id for suspect in workers[0].leases.suspects()} == set()
