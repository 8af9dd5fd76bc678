"""Registering consumers, keeping them alive, and taking over from the dead; safe without any clock, see reap.lua."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from umbel.brokers.redis.client import Source
from umbel.brokers.redis.layout import REAP, REGISTER, RELEASE, RENEW, SUSPECTS, Layout
from umbel.brokers.redis.link import Link, Script, Word
from umbel.interfaces import Clock, Leases, Reaped, Suspect, Verdict

BATCH: Final = 256
# A wall clock that went back keeps dead leases in the future. Who shows the same beat for so many times the lease, by
# a clock that never goes back, is dead all the same.
PATIENCE: Final = 3


class RedisLeases(Leases):
    """See :class:`umbel.interfaces.Leases`. Safe to share between threads."""

    __slots__ = ("_clock", "_layout", "_link", "_lock", "_seen", "_ttl")

    def __init__(self, source: Source, layout: Layout, clock: Clock, ttl: float, heartbeat: float) -> None:
        self._layout = layout
        self._clock = clock
        self._ttl = ttl
        self._link = Link(source, timeout=min(source.socket_timeout, heartbeat))
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, float]] = {}  # id -> beat, and when it was first seen

    def register(self, node: str) -> str:
        """Return a new id, alive from now."""
        id: bytes = self._run(REGISTER, (), (node, secrets.token_hex(8), int(self._ttl * 1000)))
        return id.decode()

    def renew(self, ids: Sequence[str]) -> Collection[str]:
        """Keep these alive; return those that are lost."""
        if not ids:
            return []
        return [id.decode() for id in self._run(RENEW, (), (int(self._ttl * 1000), *ids))]

    def release(
        self,
        id: str,
        *,
        started: Collection[str] = (),
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> int:
        """Give back all that a stopped consumer holds; return how many messages that was."""
        # On one line, for it becomes part of a line.
        said = " ".join(cause.replace("\0", " ").split())
        args: list[Word] = [id, said, *self._pauses(), len(started), *started]
        for tag, verdict in (verdicts or {}).items():
            args += (tag, verdict.kind.value, verdict.detail.replace("\0", ""))
        return int(self._run(RELEASE, self._keys(id), args))

    def suspects(self) -> Sequence[Suspect]:
        """Return the consumers whose lease is over."""
        rows = self._run(SUSPECTS, (), ())
        now = self._clock.monotonic()
        seen: dict[str, tuple[int, float]] = {}
        found = []
        for at in range(0, len(rows), 4):
            id, beat, node, late = rows[at].decode(), int(rows[at + 1]), rows[at + 2].decode(), rows[at + 3] / 1000
            before = self._seen.get(id)
            seen[id] = before if before is not None and before[0] == beat else (beat, now)
            if late >= 0 or self._silent(seen[id], now):
                still = now - seen[id][1]
                found.append(Suspect(id=id, beat=beat, node=node, age=max(late, 0.0), still=still))
        self._seen = seen
        return found

    def reap(self, suspect: Suspect) -> Reaped:
        """Take over a batch of what a dead consumer held, if its beat is still the same."""
        before = self._seen.get(suspect.id)
        force = before is not None and before[0] == suspect.beat and self._silent(before, self._clock.monotonic())
        args = (suspect.id, suspect.beat, "1" if force else "", BATCH, *self._pauses())
        moved, left = self._run(REAP, self._keys(suspect.id), args)
        return Reaped(moved=moved, left=left)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._link.close()

    def _silent(self, seen: tuple[int, float], now: float) -> bool:
        return now - seen[1] >= PATIENCE * self._ttl

    def _keys(self, id: str) -> tuple[str, str]:
        return self._layout.key(f"w:{id}"), self._layout.key(f"inf:{id}")

    def _pauses(self) -> list[int]:
        return [len(self._layout.backoff), *self._layout.backoff]

    def _run(self, script: Script, keys: Sequence[Word], args: Sequence[Word]) -> Any:
        with self._lock:
            # Beats are seconds apart, and one that is lost costs a third of a lease.
            if self._link.stale():
                self._link.drop()
            return self._link.run(script, keys, [*self._layout.told(), *args])
