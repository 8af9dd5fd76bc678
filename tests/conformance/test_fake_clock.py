"""The fake clock keeps time as the real one does, only slower."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from umbel.interfaces import Clock
from umbel.testing import FakeClock


def test_it_is_a_clock_and_stands_still(clock: FakeClock) -> None:
    kept: Clock = clock
    assert (kept.now(), kept.time(), kept.monotonic()) == (kept.now(), kept.time(), kept.monotonic())
    assert kept.now().utcoffset() == timedelta(0)
    assert kept.now().timestamp() == kept.time()


def test_advance_moves_everything(clock: FakeClock) -> None:
    now, seconds = clock.now(), clock.time()
    clock.advance(2.5)
    assert (clock.now() - now, clock.time() - seconds, clock.monotonic()) == (timedelta(seconds=2.5), 2.5, 2.5)


def test_a_jump_leaves_monotonic_time_alone(clock: FakeClock) -> None:
    now = clock.now()
    clock.jump(-3600)
    assert (clock.now() - now, clock.monotonic()) == (timedelta(hours=-1), 0.0)


def test_a_wait_ends_when_time_passes_it(clock: FakeClock) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(clock.wait, threading.Event(), 10.0)
        clock.until_waiting()
        clock.advance(9.9)
        clock.until_waiting()
        assert not waiting.done()
        clock.advance(0.2)
        assert waiting.result(5) is False


def test_a_wait_ends_when_its_event_is_set(clock: FakeClock) -> None:
    event = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(clock.wait, event, timeout) for timeout in (None, 60.0)]
        clock.until_waiting(2)
        event.set()
        assert [one.result(5) for one in waiting] == [True, True]


def test_no_timeout_is_no_wait(clock: FakeClock) -> None:
    assert clock.wait(threading.Event(), 0.0) is False


def test_nobody_waits(clock: FakeClock) -> None:
    with pytest.raises(AssertionError, match="0 threads wait"):
        clock.until_waiting(timeout=0.01)
