"""The result backend inside one process: the reference of the whole contract.

All backends of one ``memory://name`` in a process share their results, with each other and with the broker of that
name, so that a settlement applies a result in its own step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from umbel.bell import Bell
from umbel.brokers.memory_state import Shared, location_of, name_of, shared
from umbel.clock import SYSTEM_CLOCK
from umbel.interfaces import (
    ChordPart,
    ChordStore,
    Clock,
    ResultBackend,
    ResultRecord,
    ResultWatcher,
    StoreLocation,
)


class MemoryBackend(ResultBackend):
    """Keeps what the tasks of one process returned."""

    schemes: ClassVar[tuple[str, ...]] = ("memory",)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = name_of(url)
        self.clock = clock
        self._shared = shared(self.name)

    def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def close(self) -> None:
        """Do nothing: results stay for the next backend of this name."""

    def location(self) -> StoreLocation:
        return location_of(self.name)

    def store(self, record: ResultRecord) -> bool:
        with self._shared.lock:
            return self._shared.results.store(record, self.clock.time())

    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        with self._shared.lock:
            return self._shared.results.fetch(task_ids, self.clock.time())

    def watcher(self) -> MemoryWatcher:
        return MemoryWatcher(self._shared, self.clock)

    def forget(self, task_ids: Collection[str]) -> None:
        with self._shared.lock:
            self._shared.results.forget(task_ids)

    def save_group(self, group_id: str, payload: bytes, *, expires: float | None) -> None:
        with self._shared.lock:
            self._shared.results.save_group(group_id, payload, expires, self.clock.time())

    def fetch_group(self, group_id: str) -> bytes | None:
        with self._shared.lock:
            return self._shared.results.fetch_group(group_id, self.clock.time())

    def forget_group(self, group_id: str) -> None:
        with self._shared.lock:
            self._shared.results.forget_group(group_id)

    def chord(self, group_id: str) -> MemoryChord:
        return MemoryChord(self._shared, self.clock, group_id)

    def expire(self, limit: int = 500) -> int:
        with self._shared.lock:
            return self._shared.results.expire(limit, self.clock.time())


class MemoryChord(ChordStore):
    """The parts of one chord, counted once per member."""

    def __init__(self, shared: Shared, clock: Clock, group_id: str) -> None:
        self._shared = shared
        self._clock = clock
        self._group_id = group_id

    def begin(self, size: int, *, expires: float | None) -> None:
        with self._shared.lock:
            self._shared.results.chord(self._group_id, expires, self._clock.time()).begin(size)

    def extend(self, count: int) -> None:
        """Make it wait for so many members more."""
        with self._shared.lock:
            self._shared.results.chord(self._group_id, None, self._clock.time()).extra += count

    def add(self, part: ChordPart) -> str | None:
        with self._shared.lock:
            return self._shared.results.chord(self._group_id, part.expires, self._clock.time()).add(part)

    def parts(self) -> Iterator[bytes]:
        with self._shared.lock:
            return iter(self._shared.results.chord_parts(self._group_id, self._clock.time()))

    def close(self, claim: str) -> None:
        with self._shared.lock:
            self._shared.results.close_chord(self._group_id, claim, self._clock.time())


class MemoryWatcher(ResultWatcher):
    """Tells when results change."""

    def __init__(self, shared: Shared, clock: Clock) -> None:
        self._shared = shared
        self._clock = clock
        self._bell = Bell()
        self._watched: set[str] = set()
        self._changed: dict[str, bytes] = {}

    def add(self, task_ids: Collection[str]) -> None:
        with self._shared.lock:
            self._watched.update(task_ids)
            self._shared.results.watch(task_ids, self._tell, self._clock.time())

    def _tell(self, task_id: str, payload: bytes) -> None:
        self._changed[task_id] = payload
        self._bell.set()

    def discard(self, task_ids: Collection[str]) -> None:
        with self._shared.lock:
            self._watched.difference_update(task_ids)
            self._shared.results.unwatch(task_ids, self._tell)
            for task_id in task_ids:
                self._changed.pop(task_id, None)

    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        if timeout > 0:
            self._clock.wait(self._bell, timeout)
        with self._shared.lock:
            self._bell.clear()
            changed, self._changed = self._changed, {}
        return list(changed.items())

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        with self._shared.lock:
            self._shared.results.unwatch(self._watched, self._tell)
            self._watched.clear()
