"""The dead letters of the broker inside one process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from umbel.brokers.memory_state import Letter, Messages, Shared
from umbel.interfaces import DeadLetters, Peeked


def letters(messages: Messages, queue: str) -> Iterator[Peeked]:
    """Yield the dead letters of a queue, the latest first. Its caller holds the lock."""
    for key, letter in reversed(messages.dead.get(queue, {}).items()):
        yield peeked(queue, key, letter)


def peeked(queue: str, key: str, letter: Letter) -> Peeked:
    """Return a dead letter as those see it who look."""
    return Peeked(
        raw=letter.entry.raw,
        queue=queue,
        at=letter.at,
        key=key,
        reason=letter.why.reason,
        detail=letter.why.detail,
        traceback=letter.why.traceback,
        crashes=letter.entry.log,
    )


class MemoryDeadLetters(DeadLetters):
    """See :class:`umbel.interfaces.DeadLetters`."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def queues(self) -> Sequence[str]:
        """Return the names of the queues that have dead letters, sorted."""
        with self._shared.lock:
            return sorted(queue for queue, found in self._shared.messages.dead.items() if found)

    def page(self, queue: str, *, before: str = "", limit: int = 100) -> Sequence[Peeked]:
        """Return dead letters, the latest first."""
        with self._shared.lock:
            found = letters(self._shared.messages, queue)
            older = (letter for letter in found if not before or int(letter.key) < int(before))
            return list(islice(older, max(limit, 0)))

    def revive(self, queue: str, letters: Mapping[str, bytes | None], *, to: str = "") -> Collection[str]:
        """Move these letters to the tail of their queue, or of another; return the keys that were there."""
        with self._shared.lock:
            return [key for key, raw in letters.items() if self._shared.messages.revive(queue, key, raw, to or queue)]

    def discard(self, queue: str, keys: Collection[str]) -> Collection[str]:
        """Delete these letters; return the keys that were there."""
        with self._shared.lock:
            there = self._shared.messages.dead.get(queue, {})
            return [key for key in dict.fromkeys(keys) if there.pop(key, None) is not None]
