"""The store and the PubSub of the memory broker."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterator

from umbel.bell import Bell
from umbel.brokers.memory_state import Shared
from umbel.interfaces import Clock, PubSub, Store, Stored, Subscription
from umbel.message import Message, decode_envelope, encode_envelope


class MemoryStore(Store):
    """Small shared state of the process."""

    def __init__(self, shared: Shared, clock: Clock) -> None:
        self._shared = shared
        self._clock = clock

    def get(self, key: str) -> Stored | None:
        with self._shared.lock:
            return self._get(key)

    def _get(self, key: str) -> Stored | None:
        stored, until = self._shared.values.get(key, (None, None))
        if until is not None and until <= self._clock.time():
            del self._shared.values[key]
            return None
        return stored

    def put(self, key: str, value: bytes, *, if_version: int | None = None, ttl: float | None = None) -> int | None:
        with self._shared.lock:
            return self.put_locked(key, value, if_version=if_version, ttl=ttl)

    def put_locked(
        self, key: str, value: bytes, *, if_version: int | None = None, ttl: float | None = None
    ) -> int | None:
        """Do :meth:`put` for a caller who has the lock."""
        stored = self._get(key)
        if if_version is not None and if_version != (stored.version if stored is not None else 0):
            return None
        version = next(self._shared.numbers)
        until = None if ttl is None else self._clock.time() + ttl
        self._shared.values[key] = (Stored(value, version), until)
        return version

    def delete(self, key: str) -> bool:
        with self._shared.lock:
            there = self._get(key) is not None
            self._shared.values.pop(key, None)
            return there

    def scan(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        with self._shared.lock:
            found = [(key, self._get(key)) for key in sorted(self._shared.values) if key.startswith(prefix)]
        return iter([(key, stored) for key, stored in found if stored is not None])

    def lease(self, name: str, owner: str, ttl: float) -> int | None:
        with self._shared.lock:
            now = self._clock.time()
            holder, fence, until = self._shared.owners.get(name, ("", 0, now))
            if holder != owner:
                if until > now:
                    return None
                fence = next(self._shared.numbers)
            self._shared.owners[name] = (owner, fence, now + ttl)
            return fence


class MemoryPubSub(PubSub):
    """Tells the subscribers of this process."""

    def __init__(self, shared: Shared, clock: Clock) -> None:
        self._shared = shared
        self._clock = clock

    def publish(self, exchange: str, message: Message, *, routing_key: str = "") -> None:
        with self._shared.lock:
            for tell in self._shared.listeners.get(exchange, ()):
                tell(routing_key, message)

    def subscribe(self, exchange: str, *, pattern: str = "#") -> MemorySubscription:
        return MemorySubscription(self._shared, self._clock, exchange, pattern)


class MemorySubscription(Subscription):
    """One listener."""

    def __init__(self, shared: Shared, clock: Clock, exchange: str, pattern: str) -> None:
        self._shared = shared
        self._clock = clock
        self._exchange = exchange
        self._pattern = _topic(pattern)
        self._bell = Bell()
        self._queue: deque[bytes] = deque()
        with shared.lock:
            shared.listeners.setdefault(exchange, []).append(self._tell)

    def _tell(self, routing_key: str, message: Message) -> None:
        if self._pattern.fullmatch(routing_key):
            # Encoded, because a subscriber may change what it receives and a publisher what it sent.
            self._queue.append(encode_envelope(message))
            self._bell.set()

    def receive(self, *, timeout: float) -> Message | None:
        if not self._queue and timeout > 0:
            self._clock.wait(self._bell, timeout)
        with self._shared.lock:
            self._bell.clear()
            return decode_envelope(self._queue.popleft()) if self._queue else None

    def close(self) -> None:
        with self._shared.lock:
            listeners = self._shared.listeners.get(self._exchange, [])
            if self._tell in listeners:
                listeners.remove(self._tell)


@functools.cache
def _topic(pattern: str) -> re.Pattern[str]:
    """Return AMQP's topic pattern as a regular expression: ``*`` is one word, ``#`` any number of words.

    >>> bool(_topic("worker.#").fullmatch("worker")), bool(_topic("*.sent").fullmatch("task.mail.sent"))
    (True, False)
    """
    # Each word brings the dot before it, and the lookbehind lets the first one come without.
    dot = r"(?:(?<!.)|\.)"
    words = {"*": dot + r"[^.]+", "#": f"(?:{dot}[^.]+)*"}
    return re.compile("".join(words.get(word, dot + re.escape(word)) for word in pattern.split(".")))
