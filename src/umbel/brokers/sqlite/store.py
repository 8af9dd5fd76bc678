"""The small shared store beside the queues."""

from __future__ import annotations

from collections.abc import Iterator

from umbel.brokers.sqlite.database import Session, Transaction
from umbel.interfaces import Store, Stored

_LIVE = "(expires IS NULL OR expires > ?)"
_PAGE = 500
_SWEPT = 16  # rows past their time that go with each one that is written: more than come


def put(
    tx: Transaction, key: str, value: bytes, *, if_version: int | None = None, ttl: float | None = None
) -> int | None:
    """Do :meth:`Store.put` as a part of a transaction."""
    row = tx.execute(f"SELECT version FROM pairs WHERE key = ? AND {_LIVE}", (key, tx.now)).fetchone()
    if if_version is not None and if_version != (row[0] if row is not None else 0):
        return None
    version = tx.take()
    expires = None if ttl is None else tx.now + ttl
    tx.execute("DELETE FROM pairs WHERE key IN (SELECT key FROM pairs WHERE expires <= ? LIMIT ?)", (tx.now, _SWEPT))
    tx.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?)", (key, value, version, expires))
    return version


class SqliteStore(Store):
    """Versions come from the file's one sequence, so a deleted key never gets an old version back."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, key: str) -> Stored | None:
        """Return the value and its version, or None."""
        with self._session.read() as connection:
            row = connection.execute(
                f"SELECT value, version FROM pairs WHERE key = ? AND {_LIVE}", (key, self._session.clock.time())
            ).fetchone()
        return None if row is None else Stored(*row)

    def put(self, key: str, value: bytes, *, if_version: int | None = None, ttl: float | None = None) -> int | None:
        """Write and return the new version; ``if_version`` (0: absent) makes it conditional, None then says no."""
        with self._session.write() as tx:
            return put(tx, key, value, if_version=if_version, ttl=ttl)

    def delete(self, key: str) -> bool:
        """Remove the key and say whether it was there."""
        with self._session.write() as tx:
            row = tx.execute("DELETE FROM pairs WHERE key = ? RETURNING expires", (key,)).fetchone()
            return row is not None and (row[0] is None or row[0] > tx.now)

    def scan(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        """Yield the live keys that start with the prefix, in their order, read in pages."""
        after, inclusive = prefix, True
        while True:
            with self._session.read() as connection:
                rows = connection.execute(
                    f"SELECT key, value, version FROM pairs WHERE key {'>=' if inclusive else '>'} ? AND {_LIVE} "
                    "ORDER BY key LIMIT ?",
                    (after, self._session.clock.time(), _PAGE),
                ).fetchall()
            for key, value, version in rows:
                if not key.startswith(prefix):
                    return
                yield key, Stored(value, version)
            if len(rows) < _PAGE:
                return
            after, inclusive = rows[-1][0], False

    def lease(self, name: str, owner: str, ttl: float) -> int | None:
        """Take or renew a named lease for ``ttl`` seconds; return its fence (grows with each new owner) or None."""
        with self._session.write() as tx:
            row = tx.execute("SELECT owner, fence, expires FROM leases WHERE name = ?", (name,)).fetchone()
            live = row is not None and row[2] > tx.now
            if live and row[0] != owner:
                return None
            fence = row[1] if live else tx.take()
            tx.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (name, owner, fence, tx.now + ttl))
            return int(fence)
