"""How many processes a worker has: chosen by what runs and what waits, at a time that the test makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from umbel.worker.autoscale import Autoscaler
from umbel.worker.desk import ProcessesDesk
from umbel.worker.place import Place
from umbel.worker.slots import SlotTable

KEEPALIVE = 30


class Worker:
    """What an autoscaler sees of a worker, and what it made of it."""

    def __init__(self, size: int, busy: int, waiting: int, autoscale: tuple[int, int] = (8, 2)) -> None:
        self.size, self.busy, self.waiting, self.autoscale = size, busy, {"q": waiting}, autoscale
        self.queues = [SimpleNamespace(name="q"), SimpleNamespace(name="paused")]
        self.paused = {"paused": "for a reason"}
        self.asked = 0
        self.app = SimpleNamespace(broker=SimpleNamespace(size=self._waits))

    def _waits(self, name: str) -> int:
        self.asked += 1
        return self.waiting[name]

    def change(self, action: Any) -> None:
        action()

    def resize(self, by: int) -> None:
        self.size += by

    def after(self, seconds: int) -> int:
        """Let the time pass and return how many processes there are then."""
        scaler: Any = Autoscaler(self)  # type: ignore[arg-type]
        for now in range(1000, 1000 + seconds):
            scaler.tend(float(now))
        return self.size


def test_short_tasks_keep_their_processes() -> None:
    """Of many that are busy one is between two tasks whenever somebody looks."""
    assert Worker(size=8, busy=7, waiting=100).after(2 * KEEPALIVE) == 8


def test_short_tasks_get_more_processes() -> None:
    assert Worker(size=2, busy=1, waiting=100).after(2 * KEEPALIVE) == 8
    assert Worker(size=4, busy=3, waiting=100).after(2 * KEEPALIVE) == 8


def test_as_many_are_added_as_messages_wait() -> None:
    assert Worker(size=2, busy=2, waiting=3).after(1) == 5
    assert Worker(size=2, busy=2, waiting=100).after(1) == 8
    assert Worker(size=2, busy=2, waiting=0).after(2 * KEEPALIVE) == 2


def test_what_is_idle_for_a_while_goes() -> None:
    assert Worker(size=8, busy=0, waiting=0).after(KEEPALIVE - 1) == 8
    assert Worker(size=8, busy=0, waiting=0).after(KEEPALIVE + 5) == 2
    assert Worker(size=8, busy=5, waiting=0).after(KEEPALIVE + 5) == 5


def test_an_idle_worker_asks_its_broker_rarely() -> None:
    worker = Worker(size=2, busy=0, waiting=0)
    assert worker.after(10 * KEEPALIVE) == 2
    assert worker.asked <= 10


# -- of processes ------------------------------------------------------------------------------------------------


class Crew:
    """A supervisor's places, each with a process."""

    def __init__(self, size: int, room: int) -> None:
        self.room = room
        self._slots = SlotTable(room, 4)
        self.places: list[Place] = []
        for _ in range(size):
            self.add_place()
            self.places[-1].pid = 1
            self.places[-1].consumer = "c"
        self.desk: Any = ProcessesDesk.__new__(ProcessesDesk)
        self.desk._supervisor = self
        self.desk.plan = SimpleNamespace(forks=True, concurrency=1)
        self.desk.orders = SimpleNamespace(concurrency=0)

    def add_place(self) -> None:
        self.places.append(Place(len(self.places), self._slots[len(self.places)]))

    def finishing(self, *indexes: int) -> None:
        """Have these end when what they run has ended, which takes long."""
        for index in indexes:
            place = self.places[index]
            place.slot.started("t", 1.0)
            place.dormant = place.stop_sent = True

    @property
    def awake(self) -> list[int]:
        return [place.index for place in self.places if not place.dormant]


def test_what_is_to_end_is_not_counted_as_busy() -> None:
    crew = Crew(size=3, room=5)
    crew.places[0].slot.started("t", 1.0)
    crew.finishing(1)
    assert (crew.desk.size, crew.desk.busy) == (2, 1)


@pytest.mark.parametrize(
    ("room", "by", "awake"),
    [
        (8, 1, [0, 2]),  # the empty place
        (8, 2, [0, 2, 4]),  # and a new one, rather than wait for one that finishes
        (5, 3, [0, 1, 2, 4]),  # where there is no more room, the one that finishes too
    ],
)
def test_a_pool_that_grows_does_not_wait_for_what_finishes(room: int, by: int, awake: list[int]) -> None:
    crew = Crew(size=4, room=room)
    crew.finishing(1, 3)
    crew.places[2].vacate()
    crew.places[2].dormant = True
    crew.desk.resize(by)
    assert crew.awake == awake
