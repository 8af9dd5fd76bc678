"""The receiver behind the dashboard: how it comes back, and what is said while it hears nothing. No broker, no wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from umbel import Umbel
from umbel.dashboard.live import Live
from umbel.dashboard.roll import roll
from umbel.dashboard.verdict import judge
from umbel.exceptions import OperationalError


class Stopped:
    """An event that is set after so many waits, and keeps for how long each was to be."""

    def __init__(self, most: int) -> None:
        self.waits: list[float] = []
        self.told: list[str] = []
        self._most = most
        self.live: Any = None

    def is_set(self) -> bool:
        return len(self.waits) >= self._most

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        self.told.append(self.live.problem)
        return self.is_set()


def receiver(outages: list[bool], woken: list[Any]) -> type[Any]:
    """Return a class of receivers of which each fails: True stands for one that had subscribed before."""

    class Receiver:
        should_stop = False

        def __init__(self, handlers: dict[str, Callable[[dict[str, Any]], object]]) -> None:
            self.handlers = handlers

        def wakeup_workers(self, channel: Any = None) -> None:
            woken.append(channel)

        def capture(self) -> None:
            if outages.pop(0):
                self.wakeup_workers()
            raise OperationalError("the broker is  gone")

    return Receiver


@pytest.fixture
def app() -> Any:
    app = Umbel("live", broker="memory://live-test", set_as_current=False)
    yield app
    app.close()


def test_after_an_outage_the_next_one_is_waited_for_as_shortly_as_the_first(app: Any) -> None:
    outages = [False, False, False, False, False, False, True, False, True]
    woken: list[Any] = []
    app.events.Receiver = receiver(list(outages), woken)
    live = Live(app)
    stopped = live._stopped = Stopped(len(outages))  # type: ignore[assignment]
    stopped.live = live
    live._listen()
    assert stopped.waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 1.0, 2.0, 1.0]
    assert set(stopped.told) == {"No events are heard: the broker is gone"}
    assert woken == [None, None], "workers are still asked to tell of themselves"


def test_who_hears_nothing_says_so_until_it_hears_again(app: Any) -> None:
    live = Live(app)
    assert live.problem == ""
    live.deaf = "No events are heard: gone"
    verdict = judge(live, roll(live), [])
    assert (verdict.level, verdict.text) == ("fail", "No events are heard.")
    live.away = "The broker cannot be reached: gone"
    assert live.tick()["problem"] == live.away
    assert judge(live, roll(live), []).text == "The broker cannot be reached."
    live.away = ""
    live._subscribed(lambda channel: None)
    assert live.problem == ""
