"""Time for tests: it stands still until a test moves it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

_START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakeClock:
    """Time that moves only when a test says so; a wait ends when its event is set or time passes it.

    Safe to share between threads. It is a :class:`umbel.interfaces.Clock`.

    >>> clock = FakeClock()
    >>> clock.now().isoformat()
    '2026-01-01T12:00:00+00:00'
    >>> clock.advance(1.5)
    >>> clock.monotonic()
    1.5
    """

    def __init__(self, start: datetime = _START) -> None:
        self._start = start
        self._elapsed = 0.0
        self._shift = 0.0
        self._waiters = 0
        self._moved = threading.Condition()

    def now(self) -> datetime:
        """Return the wall time as an aware UTC datetime."""
        with self._moved:
            return self._start + timedelta(seconds=self._elapsed + self._shift)

    def time(self) -> float:
        """Return the wall time in seconds since the epoch."""
        return self.now().timestamp()

    def monotonic(self) -> float:
        """Return the seconds that the test has let pass."""
        with self._moved:
            return self._elapsed

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Block until the event is set or the test has moved time past the timeout; return whether it is set."""
        with self._moved:
            deadline = None if timeout is None else self._elapsed + timeout
            self._waiters += 1
            self._moved.notify_all()
            try:
                while not event.is_set():
                    if deadline is not None and self._elapsed >= deadline:
                        return False
                    # The short real wait only notices events set without advance().
                    self._moved.wait(0.001)
                return True
            finally:
                self._waiters -= 1

    def advance(self, seconds: float) -> None:
        """Let time pass, and end the waits whose timeout that reaches."""
        with self._moved:
            self._elapsed += seconds
            self._moved.notify_all()

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP would; monotonic time stays as it is."""
        with self._moved:
            self._shift += seconds
            self._moved.notify_all()

    def until_waiting(self, count: int = 1, *, timeout: float = 5.0) -> None:
        """Block until that many threads wait on this clock; real seconds bound it, by AssertionError."""
        deadline = time.monotonic() + timeout
        with self._moved:
            while self._waiters < count:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{self._waiters} threads wait on the clock, not {count}, after {timeout} s")
                self._moved.wait(left)
