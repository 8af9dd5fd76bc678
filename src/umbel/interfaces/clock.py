"""What tells the time."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The only source of time, and the only way to wait for it."""

    def now(self) -> datetime:
        """Return the wall time as an aware UTC datetime."""
        ...

    def time(self) -> float:
        """Return the wall time in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Block until the event is set or the timeout (seconds) has passed; return whether it is set."""
        ...
