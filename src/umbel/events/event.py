"""What an event is: a mapping with a type, the fields of that type, and those that every event has."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

# A time beyond it leaves no room to count on in 64 bits: nothing that carries it could be sent any more.
_LATEST: Final = 1 << 62


def Event(type: str, _fields: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return an event of this type, with the present time unless a ``timestamp`` is given.

    >>> Event("task-started", uuid="id", timestamp=1.0)
    {'uuid': 'id', 'timestamp': 1.0, 'type': 'task-started'}
    """
    event = {**(_fields or {}), **fields}
    event.setdefault("timestamp", time.time())
    event["type"] = type
    return event


def group_from(type: str) -> str:
    """Return the group of a type.

    >>> group_from("worker-heartbeat")
    'worker'
    """
    return type.partition("-")[0]


def utcoffset() -> float:
    """Return how many hours this machine's clock is behind UTC: negative in the east, as Celery counts them."""
    return -time.localtime().tm_gmtoff / 3600


class LogicalClock:
    """Lamport's clock: it moves with every message sent, and past that of every message received. Thread-safe."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._lock = threading.Lock()

    def forward(self) -> int:
        """Move on by one and return the time."""
        with self._lock:
            self.value += 1
            return self.value

    def adjust(self, other: Any) -> int:
        """Move past the time of a message that was received; what is no number, or no time, counts as nothing."""
        seen = other if isinstance(other, int) and other < _LATEST else 0
        with self._lock:
            self.value = max(self.value, seen) + 1
            return self.value
