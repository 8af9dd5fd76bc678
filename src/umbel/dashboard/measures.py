"""Counting events by time, and telling from a few samples where a queue is going."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Final

#: Seconds of one point of a chart, and how many points are kept.
BUCKET: Final = 5
POINTS: Final = 180
_WINDOW: Final = 30
KINDS: Final = ("sent", "started", "succeeded", "failed", "retried", "processed")


class Rates:
    """How often things happened in the last quarter of an hour. Safe to share between threads."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[str, float]] = {}
        self._since = int(time.time()) // BUCKET
        self._lock = threading.Lock()

    def count(self, kind: str, at: float, by: int = 1) -> None:
        """Count something that happened; kinds that no chart shows are left out."""
        if kind in KINDS:
            with self._lock:
                bucket = self._bucket(at)
                bucket[kind] = bucket.get(kind, 0) + by

    def backlog(self, waiting: int, at: float) -> None:
        """Note how many messages wait."""
        with self._lock:
            self._bucket(at)["waiting"] = waiting

    def _bucket(self, at: float) -> dict[str, float]:
        slot = int(at) // BUCKET
        found = self._counts.get(slot)
        if found is None:
            found = self._counts[slot] = {}
            for old in [key for key in self._counts if key <= slot - POINTS]:
                del self._counts[old]
        return found

    def per_second(self, kind: str) -> float:
        """Return the rate over the last half minute, without the bucket that is not full yet."""
        last = int(time.time()) // BUCKET
        slots = range(last - _WINDOW // BUCKET, last)
        with self._lock:
            return sum(self._counts.get(slot, {}).get(kind, 0) for slot in slots) / _WINDOW

    def total(self, kind: str) -> int:
        """Return how often it happened in the last quarter of an hour."""
        with self._lock:
            return int(sum(bucket.get(kind, 0) for bucket in self._counts.values()))

    def latest(self, tasks: bool) -> list[float | None]:
        """Return the last point that is complete: time, done, failed, retried, waiting."""
        return self._point(int(time.time()) // BUCKET - 1, tasks)

    def series(self, tasks: bool) -> dict[str, Any]:
        """Return all points, as lists of one length. With ``tasks`` their events are on."""
        last = int(time.time()) // BUCKET
        points = [self._point(slot, tasks) for slot in range(last - POINTS, last)]
        names = ("at", "done", "failed", "retried", "waiting")
        columns = {name: [point[at] for point in points] for at, name in enumerate(names)}
        return {"bucket": BUCKET, **columns}

    def _point(self, slot: int, tasks: bool) -> list[float | None]:
        if slot < self._since:
            # Nobody was listening then, which is not the same as nothing.
            return [slot * BUCKET, None, None, None, None]
        with self._lock:
            bucket = dict(self._counts.get(slot, {}))
        done = bucket.get("succeeded", 0) if tasks else bucket.get("processed", 0)
        rates = [done / BUCKET, bucket.get("failed", 0) / BUCKET, bucket.get("retried", 0) / BUCKET]
        return [slot * BUCKET, *rates, bucket.get("waiting")]


class Trend:
    """By how much a number changes a second, over the last minute. Used by one thread."""

    def __init__(self, *, over: float = 60.0, least: float = 8.0) -> None:
        self._over, self._least = over, least
        self._samples: deque[tuple[float, int]] = deque(maxlen=120)

    def add(self, at: float, value: int) -> None:
        """Take a sample."""
        self._samples.append((at, value))
        while self._samples and at - self._samples[0][0] > self._over:
            self._samples.popleft()

    def slope(self) -> float | None:
        """Return the slope of the line that fits best; None where there are too few samples."""
        if len(self._samples) < 3 or self._samples[-1][0] - self._samples[0][0] < self._least:
            return None
        times = [at for at, _ in self._samples]
        middle = sum(times) / len(times)
        mean = sum(value for _, value in self._samples) / len(times)
        spread = sum((at - middle) ** 2 for at in times)
        return sum((at - middle) * (value - mean) for at, value in self._samples) / spread
