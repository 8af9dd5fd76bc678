"""The only source of time.

Policy times (due moments, expiry, back-off) come from a :class:`~umbel.interfaces.Clock`; waits on a socket or a
file are real. :class:`SystemClock` is the one in production; tests use ``umbel.testing.FakeClock``.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime


class SystemClock:
    """The machine's own time. Stateless, so one instance may be shared by every thread."""

    __slots__ = ()

    def now(self) -> datetime:
        """Return the wall time as an aware UTC datetime."""
        return datetime.now(UTC)

    def time(self) -> float:
        """Return the wall time in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back, for measuring and deadlines."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Block until the event is set or the timeout (seconds) has passed; return whether it is set."""
        return event.wait(timeout)


SYSTEM_CLOCK = SystemClock()
