"""What the keeper does while a task runs and there is nothing to do."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from umbel.exceptions import OperationalError
from umbel.worker.keeper import Keeper


class Hold:
    """Nothing is held, or what is cannot be settled; it counts how often somebody looks."""

    def __init__(self, *, pending: bool = False) -> None:
        self.looks = 0
        self.takes = 0
        self.ready: deque[Any] = deque()
        self._pending = pending

    @property
    def pending(self) -> bool:
        self.looks += 1
        return self._pending

    def take(self, limit: int) -> None:
        self.takes += 1
        raise OperationalError("away")


def kept(hold: Hold, seconds: float) -> None:
    lock = threading.Lock()
    keeper = Keeper(hold, lock, settle_window=0.002, give_back_after=0.1)  # type: ignore[arg-type]
    lock.acquire()
    keeper.start()
    for _ in range(2):
        keeper.enter(time.monotonic())
        time.sleep(seconds)
        keeper.leave()
    keeper.close()
    lock.release()


def test_it_sleeps_while_a_task_runs_and_nothing_waits() -> None:
    hold = Hold()
    kept(hold, 0.3)
    # Once or twice for each task, and not once for each window.
    assert 1 <= hold.looks <= 8, hold.looks


def test_it_leaves_a_broker_that_is_away_in_peace() -> None:
    hold = Hold(pending=True)
    kept(hold, 0.4)
    assert 2 <= hold.takes <= 12, hold.takes
