"""Looking at dead letters, and moving or deleting them by their keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from umbel.brokers.redis.layout import DISCARD, REVIVE, Layout, from_ms
from umbel.brokers.redis.link import LinkPool, Word
from umbel.interfaces import Crash, DeadLetters, Peeked


class RedisDeadLetters(DeadLetters):
    """See :class:`umbel.interfaces.DeadLetters`."""

    __slots__ = ("_desk", "_layout")

    def __init__(self, desk: LinkPool, layout: Layout) -> None:
        self._desk = desk
        self._layout = layout

    def queues(self) -> Sequence[str]:
        """Return the names of the queues that have dead letters, sorted."""
        with self._desk.link() as link:
            return sorted(name.decode() for name in link.call("SMEMBERS", self._layout.key("dead")))

    def page(self, queue: str, *, before: str = "", limit: int = 100) -> Sequence[Peeked]:
        """Return dead letters, the latest first."""
        if limit <= 0 or (before and not before.isdecimal()):
            return []
        newest = f"({before}" if before else "+inf"
        with self._desk.link() as link:
            keys = link.call("ZREVRANGEBYSCORE", self._layout.key(f"dead:{queue}"), newest, "-inf", "LIMIT", 0, limit)
            values = link.call("HMGET", self._layout.key(f"letters:{queue}"), *keys) if keys else ()
        # One that is gone was moved or deleted in between.
        return [letter_of(queue, key.decode(), value) for key, value in zip(keys, values, strict=True) if value]

    def revive(self, queue: str, letters: Mapping[str, bytes | None], *, to: str = "") -> Collection[str]:
        """Move these letters to the tail of their queue, or another, in one step; return the keys that were there."""
        args: list[Word] = [*self._layout.told(), queue, to or queue]
        for key, raw in letters.items():
            args += (key, raw or b"")
        with self._desk.link() as link:
            return [key.decode() for key in link.run(REVIVE, (), args)]

    def discard(self, queue: str, keys: Collection[str]) -> Collection[str]:
        """Delete these letters in one step; return the keys that were there."""
        with self._desk.link() as link:
            return [key.decode() for key in link.run(DISCARD, (), [*self._layout.told(), queue, "", *keys])]

    def purge(self, queue: str) -> int:
        """Delete all letters of a queue; return how many there were."""
        with self._desk.link() as link:
            return int(link.run(DISCARD, (), [*self._layout.told(), queue, "1"]))


def letter_of(queue: str, key: str, value: bytes) -> Peeked:
    """Return a dead letter as it was stored (see give.lua)."""
    at, _, reason, detail, traceback, crashes, raw = value.split(b"\0", 6)
    return Peeked(
        raw=raw,
        queue=queue,
        at=from_ms(at),
        key=key,
        reason=reason.decode(),
        detail=detail.decode(),
        traceback=traceback.decode(),
        crashes=[crash_of(line) for line in crashes.decode().split("\n") if line],
    )


def crash_of(line: str) -> Crash:
    """Return one line of a log of crashes."""
    at, consumer, cause = line.split("\t", 2)
    return Crash(at=from_ms(at), consumer=consumer, cause=cause)
