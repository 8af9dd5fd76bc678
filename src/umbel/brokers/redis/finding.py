"""Looking for the message of one task on the server.

Page by page with plain commands, never in a script: a server that looks through a long queue serves nobody meanwhile.
What moves while we look may be missed, so the places that a message comes from are looked at before those that it goes
to, and all of them twice before it counts as gone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any, Final

from umbel.brokers.redis.layout import Layout, from_ms
from umbel.brokers.redis.letters import crash_of, letter_of
from umbel.brokers.redis.link import Link
from umbel.interfaces import Crash, Peeked, Sighting, Verdict, VerdictKind
from umbel.spotting import is_of, marks_of

_PAGE: Final = 500
_SCAN: Final = 200


class Search:
    """One search on one connection, under these names of queues, for at most ``timeout`` seconds."""

    def __init__(self, link: Link, layout: Layout, task_id: str, queues: Collection[str], timeout: float) -> None:
        self._link = link
        self._layout = layout
        self._id = task_id
        self._marks = marks_of(task_id)
        self._queues = list(dict.fromkeys(queues))
        self._timeout = timeout
        self._until = time.monotonic() + timeout

    def run(self) -> Sighting | None:
        """Return where the message is; None if it is nowhere."""
        for _ in range(2):
            for look in (self._ready, self._scheduled, self._gates, self._held, self._celerys, self._ends):
                for sighting in look():
                    return sighting
        return next(self._dead(), None)

    def _is_it(self, raw: bytes) -> bool:
        ours, celerys = self._marks
        return (ours in raw or celerys in raw) and is_of(raw, self._id)

    def _in_time(self) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError(f"there are too many messages to look through within {self._timeout:g} s")

    def _seen(self, raw: bytes, queue: str, at: datetime | None = None) -> Peeked:
        sha1 = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
        lines = self._link.call("HGET", self._layout.key("crashes"), sha1)
        crashes: list[Crash] = [crash_of(line) for line in lines.decode().split("\n") if line] if lines else []
        return Peeked(raw=raw, queue=queue, at=at, crashes=crashes)

    # -- the places ----------------------------------------------------------------------------------------------

    def _ready(self) -> Iterator[Sighting]:
        for queue in self._queues:
            keys = self._layout.list_keys(queue)
            before = 0
            for key in keys:
                for index, raw in self._list(key):
                    if self._is_it(raw):
                        total = sum(self._link.pipeline([("LLEN", each) for each in keys]))
                        position = before + index + 1
                        yield Sighting(
                            place="ready", seen=self._seen(raw, queue), position=position, of=max(position, total)
                        )
                before += int(self._link.call("LLEN", key))

    def _list(self, key: str) -> Iterator[tuple[int, bytes]]:
        """Yield the messages of a list with their places from the end at which it is read."""
        at = 0
        while True:
            self._in_time()
            page = self._link.call("LRANGE", key, -at - _PAGE, -at - 1)
            yield from enumerate(reversed(page), at)
            if len(page) < _PAGE:
                return
            at += _PAGE

    def _scheduled(self) -> Iterator[Sighting]:
        for queue in self._queues:
            at = 0
            while True:
                self._in_time()
                rows = self._link.call("ZRANGE", self._layout.key(f"delayed:{queue}"), at, at + _PAGE - 1, "WITHSCORES")
                for member, due in rows:
                    raw = member.split(b"\0", 2)[2]
                    if self._is_it(raw):
                        yield Sighting(place="scheduled", seen=self._seen(raw, queue, from_ms(due)))
                if len(rows) < _PAGE:
                    break
                at += _PAGE

    def _held(self) -> Iterator[Sighting]:
        for id in self._link.call("ZRANGE", self._layout.key("widx"), 0, -1):
            for value in self._values(self._layout.key(f"inf:{id.decode()}")):
                name, _, reserved, _, _, _, _, raw = value.split(b"\0", 7)
                if self._is_it(raw):
                    node = self._link.call("HGET", self._layout.key(f"w:{id.decode()}"), "node") or b""
                    seen = self._seen(raw, name.decode(), from_ms(reserved))
                    yield Sighting(place="held", seen=seen, consumer=id.decode(), node=node.decode())

    def _celerys(self) -> Iterator[Sighting]:
        """Look at what Celery's workers hold: [message, exchange, routing key] by a tag."""
        for value in self._values(f"{self._layout.prefix}unacked"):
            if self._marks[0] in value or self._marks[1] in value:
                message, _, routing_key = json.loads(value)
                raw = json.dumps(message).encode()
                if self._is_it(raw):
                    yield Sighting(place="held", seen=Peeked(raw=raw, queue=str(routing_key)))

    def _ends(self) -> Iterator[Sighting]:
        for queue in self._queues:
            for _, value in self._list(self._layout.key(f"ends:{queue}")):
                _, _, kind, detail, raw = value.split(b"\0", 4)
                if self._is_it(raw):
                    verdict = Verdict(kind=VerdictKind(kind.decode()), detail=detail.decode())
                    yield Sighting(place="ends", seen=self._seen(raw, queue), verdict=verdict)

    def _gates(self) -> Iterator[Sighting]:
        start = self._layout.key("gate:")
        for key in self._keys(start):
            for _, value in self._list(key):
                queue, _, due, raw = value.split(b"\0", 3)
                if self._is_it(raw):
                    seen = self._seen(raw, queue.decode(), from_ms(due) if due else None)
                    yield Sighting(place="gate", seen=seen, gate=key.removeprefix(start))

    def _dead(self) -> Iterator[Sighting]:
        for queue in self._link.call("SMEMBERS", self._layout.key("dead")):
            found: list[Peeked] = []
            for key, value in self._pairs(self._layout.key(f"letters:{queue.decode()}")):
                if self._marks[0] in value or self._marks[1] in value:
                    letter = letter_of(queue.decode(), key.decode(), value)
                    found += [letter] if self._is_it(letter.raw) else []
            if found:
                yield Sighting(place="dead", seen=max(found, key=lambda letter: int(letter.key)))

    # -- reading a key in parts ----------------------------------------------------------------------------------

    def _keys(self, start: str) -> Iterator[str]:
        cursor: Any = b"0"
        pattern = "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in start) + "*"
        while True:
            self._in_time()
            cursor, keys = self._link.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN * 5)
            yield from (key.decode() for key in keys)
            if int(cursor) == 0:
                return

    def _values(self, key: str) -> Iterator[bytes]:
        for _, value in self._pairs(key):
            yield value

    def _pairs(self, key: str) -> Iterator[tuple[bytes, bytes]]:
        cursor: Any = b"0"
        while True:
            self._in_time()
            cursor, flat = self._link.call("HSCAN", key, cursor, "COUNT", _SCAN)
            yield from zip(flat[::2], flat[1::2], strict=True)
            if int(cursor) == 0:
                return
