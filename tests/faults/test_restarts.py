"""Workers are replaced under load, one after the other, as a deployment does it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, check_traces, wait_for
from umbel.result import AsyncResult

PER_SECOND = 30


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, request.getfixturevalue(f"{request.param}_url")).closing() as made:
        yield made


@contextmanager
def load(site: FaultSite, chance: random.Random) -> Iterator[list[AsyncResult[Any]]]:
    """Send tasks all the time, most of them short, some as long as a second, now and then a bulk."""
    sent: list[AsyncResult[Any]] = []
    errors: list[BaseException] = []
    enough = threading.Event()

    def send() -> None:
        try:
            while not enough.wait(1 / PER_SECOND):
                number = len(sent)
                seconds = 1.0 if number % 40 == 0 else chance.uniform(0.0, 0.05)
                sent.append(site.send("plain", number, seconds))
                if number % 100 == 50:
                    sent.extend(site.app.send_many([("plain", (number + at,)) for at in range(1, 31)]))
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
    """Each old worker ends with exit 0, and each task runs once: what ran could finish, the rest was given back."""
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
