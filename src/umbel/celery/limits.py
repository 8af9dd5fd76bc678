"""``kombu.utils.limits``: a token bucket."""

from __future__ import annotations

import time
from collections import deque
from typing import Any


class TokenBucket:
    """Lets ``fill_rate`` tokens a second through, and up to ``capacity`` at once. Not shared between threads."""

    def __init__(self, fill_rate: float, capacity: float = 1) -> None:
        self.fill_rate = float(fill_rate)
        self.capacity = float(capacity)
        self._tokens = float(capacity)
        self.timestamp = time.monotonic()
        self.contents: deque[Any] = deque()

    def add(self, item: Any) -> None:
        """Keep something that waits."""
        self.contents.append(item)

    def pop(self) -> Any:
        """Return what has waited longest."""
        return self.contents.popleft()

    def clear_pending(self) -> None:
        """Forget what waits."""
        self.contents.clear()

    def can_consume(self, tokens: int = 1) -> bool:
        """Take tokens if there are enough; say whether they were taken."""
        if tokens <= self._get_tokens():
            self._tokens -= tokens
            return True
        return False

    def expected_time(self, tokens: int = 1) -> float:
        """Return the seconds until there are enough."""
        return (max(float(tokens), self._get_tokens()) - self._get_tokens()) / self.fill_rate

    def _get_tokens(self) -> float:
        now = time.monotonic()
        self._tokens = min(self.capacity, self._tokens + self.fill_rate * (now - self.timestamp))
        self.timestamp = now
        return self._tokens
