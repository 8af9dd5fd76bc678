"""The small shared store, in one hash beside the queues; see store.lua."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from umbel.brokers.redis.layout import STORE, Layout
from umbel.brokers.redis.link import LinkPool, Word
from umbel.interfaces import Store, Stored

_PAGE: Final = 500


class RedisStore(Store):
    """See :class:`umbel.interfaces.Store`. Safe to share between threads."""

    __slots__ = ("_layout", "_pool")

    def __init__(self, pool: LinkPool, layout: Layout) -> None:
        self._pool = pool
        self._layout = layout

    def get(self, key: str) -> Stored | None:
        """Return the value and its version, or None."""
        row = self._run("get", key)
        return None if row is None else Stored(row[1], int(row[0]))

    def put(self, key: str, value: bytes, *, if_version: int | None = None, ttl: float | None = None) -> int | None:
        """Write and return the new version, or None if another version is there."""
        version = self._run(
            "put",
            key,
            value,
            "" if if_version is None else if_version,
            "" if ttl is None else max(1, int(ttl * 1000)),
        )
        return None if version is None else int(version)

    def delete(self, key: str) -> bool:
        """Remove the key and say whether it was there."""
        return bool(self._run("delete", key))

    def scan(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        """Yield the live keys that start with the prefix, each once."""
        pattern = "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in prefix) + "*"
        cursor, seen = b"0", set()
        while True:
            with self._pool.link() as link:
                now = self._milliseconds(link.call("TIME"))
                cursor, rows = link.call("HSCAN", self._layout.key("store"), cursor, "MATCH", pattern, "COUNT", _PAGE)
            for key, row in zip(rows[::2], rows[1::2], strict=True):
                version, stop, value = row.split(b"\0", 2)
                # HSCAN may return a key twice while the hash grows.
                if key not in seen and not (stop and float(stop) <= now):
                    seen.add(key)
                    yield key.decode(), Stored(value, int(version))
            if cursor == b"0":
                return

    def lease(self, name: str, owner: str, ttl: float) -> int | None:
        """Take or renew a named lease; return its fence, or None if another owner has it."""
        fence = self._run("lease", name, owner, max(1, int(ttl * 1000)))
        return None if fence is None else int(fence)

    def _milliseconds(self, answer: list[bytes]) -> float:
        clock = self._layout.clock
        return int(answer[0]) * 1000 + int(answer[1]) / 1000 if clock is None else clock.time() * 1000

    def _run(self, operation: str, key: str, *args: Word) -> Any:
        with self._pool.link() as link:
            return link.run(STORE, (), [*self._layout.told(), operation, key, *args])
