"""Workers are replaced under load, one after the other, as a deployment does it."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from fault_support import FaultSite, check_traces, wait_for
from umbel.interfaces import Place
from umbel.result import AsyncResult

PER_SECOND = 30
ROUNDS = 20
#: How each kind of worker is started so that eight tasks run in it, where that can be.
POOLS = {"prefork": ("-c", "4"), "threads": ("-c", "8"), "asyncio": ("-c", "8"), "solo": ()}
ASYNC = """
import asyncio


@app.task(bind=True, name="aplain")
async def aplain(self, number, seconds=0.0):
    note("start", self)
    await asyncio.sleep(seconds)
    note("end", self)
    return number * 2
"""


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    url = request.getfixturevalue(f"{request.param}_url")
    with FaultSite(tmp_path, url, tasks=ASYNC).closing() as made:
        yield made


@contextmanager
def load(
    site: FaultSite, chance: random.Random, *, name: str = "plain", per_second: int = PER_SECOND
) -> Iterator[list[AsyncResult[Any]]]:
    """Send tasks all the time, most of them short, some as long as a second, now and then a bulk."""
    sent: list[AsyncResult[Any]] = []
    errors: list[BaseException] = []
    enough = threading.Event()

    def send() -> None:
        try:
            while not enough.wait(1 / per_second):
                number = len(sent)
                seconds = 1.0 if number % 40 == 0 else chance.uniform(0.0, 0.05)
                sent.append(site.send(name, number, seconds))
                if number % 100 == 50:
                    sent.extend(site.app.send_many([(name, (number + at,)) for at in range(1, 31)]))
        # Looked at below, where the test can fail of it.
        except BaseException as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        enough.set()
        sender.join(20)
    assert not errors, errors


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=[pytest.mark.faults, pytest.mark.timeout(120)])])
def test_rolling_restarts(site: FaultSite, chance: random.Random, rounds: int, row: Any) -> None:
    """F16. Each old worker ends with exit 0, and each task runs once: what ran may finish, the rest is given back."""
    old = site.start("-c", "2")
    old.expect("ready.")
    slowest = 0.0
    with load(site, chance) as results:
        for _ in range(rounds):
            first = chance.random() < 0.5
            if first:
                new = site.start("-c", "2")
                new.expect("ready.")
            time.sleep(chance.uniform(0.0, 0.5))
            stopping = time.monotonic()
            assert old.stop(timeout=20) == 0, old.output
            slowest = max(slowest, time.monotonic() - stopping)
            if not first:
                new = site.start("-c", "2")
                new.expect("ready.")
            old = new
    row.recovered = wait_for(results, 40)
    row.load, row.faults = f"{len(results)} tasks, 2 processes", f"{rounds} restarts, the slowest {slowest:.1f} s"
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), 0
    row.check()
    assert slowest < 5.0 + 3, "a task of a second did not keep it so long"
    site.stop_all()
    check_traces(site)


def registered(site: FaultSite) -> int:
    """Return how many consumers the store knows, dead ones included."""
    file = site.folder / "umbel.db"
    if file.exists():
        with contextlib.closing(sqlite3.connect(file)) as connection:
            return int(connection.execute("SELECT count(*) FROM consumers").fetchone()[0])
    with redis.Redis.from_url(site.env["URL"]) as client:
        return int(client.zcard("umbel:widx"))


@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", list(POOLS))
def test_stopped_at_any_moment(site: FaultSite, chance: random.Random, pool: str, row: Any) -> None:
    """F16. After exit 0 nothing is in flight and nobody registered; the next worker does the rest, each task once."""
    name = "aplain" if pool == "asyncio" else "plain"
    slowest = 0.0
    with load(site, chance, name=name, per_second=15 if pool == "solo" else 50) as results:
        for _ in range(ROUNDS):
            worker = site.start("-P", pool, *POOLS[pool])
            worker.expect("ready.")
            assert registered(site) > 0
            time.sleep(chance.uniform(0.0, 0.5))
            stopping = time.monotonic()
            assert worker.stop(timeout=25) == 0, worker.output
            slowest = max(slowest, time.monotonic() - stopping)
            assert (site.app.broker.size("celery", Place.HELD), registered(site)) == (0, 0)
    site.start("-P", pool, *POOLS[pool])
    row.recovered = wait_for(results, 40)
    row.load, row.faults = f"{len(results)} tasks", f"{ROUNDS} SIGTERM, the slowest {slowest:.1f} s"
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), 0
    row.check()
    site.stop_all()
    check_traces(site)
