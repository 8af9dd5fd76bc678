"""Results in an SQLite file: the broker's own, or another one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from umbel.brokers.sqlite.database import Database, Session
from umbel.brokers.sqlite.outcomes import (
    add_part,
    begin_chord,
    close_chord,
    extend_chord,
    forget_chord,
    later,
    store_records,
)
from umbel.brokers.sqlite.store import SqliteStore
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

_PAGE = 500
_SHORTEST, _LONGEST = 0.001, 0.02
_SCAN_FROM = 200  # watching more ids than this, reading all that changed is cheaper than asking for each
_ASKED = "task_id IN (SELECT value FROM json_each(?))"
_LIVE = "(expires IS NULL OR expires > ?)"


def _pages(ids: Iterable[str]) -> Iterator[str]:
    everything = list(ids)
    for start in range(0, len(everything), _PAGE):
        yield json.dumps(everything[start : start + _PAGE])


class SqliteBackend(ResultBackend):
    """Results in one file. Takes the broker's URLs; on the broker's file a result commits together with its ack."""

    schemes: ClassVar[tuple[str, ...]] = ("sqlite",)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = Database(url, options or {}, clock)
        self._opening = threading.Lock()
        self._session: Session | None = None

    def open(self) -> None:
        """Open the file, and make it if it is not there. A second call does nothing; after a fork it opens anew."""
        with self._opening:
            if self._session is None or not self._session.usable:
                self._session = self._database.session()

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._opening:
            if self._session is not None:
                self._session.close()
            self._session = None

    def _open(self) -> Session:
        if self._session is None:
            self.open()
        assert self._session is not None
        return self._session

    def location(self) -> StoreLocation | None:
        """Return the file's real path."""
        return self._database.location()

    def store(self, record: ResultRecord) -> bool:
        """Store the record unless :func:`umbel.states.replaces` forbids it; say whether it was stored."""
        with self._open().write() as tx:
            return store_records(tx, [record]) > 0

    def store_all(self, records: Sequence[ResultRecord]) -> int:
        """Store those that may be, in one transaction; return how many."""
        with self._open().write() as tx:
            return store_records(tx, records)

    def shared_store(self) -> SqliteStore:
        """Return the small store in the same file."""
        return SqliteStore(self._open())

    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        """Return the encoded metas that exist."""
        found: dict[str, bytes] = {}
        session = self._open()
        for page in _pages(task_ids):
            with session.read() as connection:
                rows = connection.execute(
                    f"SELECT task_id, payload FROM results WHERE {_ASKED} AND {_LIVE}", (page, session.clock.time())
                )
                found.update(rows.fetchall())
        return found

    def watcher(self) -> ResultWatcher:
        """Return a new watcher with a connection of its own."""
        return SqliteWatcher(self._database.session())

    def forget(self, task_ids: Collection[str]) -> None:
        """Delete the results."""
        for page in _pages(task_ids):
            with self._open().write() as tx:
                tx.execute(f"DELETE FROM results WHERE {_ASKED}", (page,))

    def save_group(self, group_id: str, payload: bytes, *, expires: float | None) -> None:
        """Keep a group's encoded description."""
        with self._open().write() as tx:
            tx.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", (group_id, payload, later(tx, expires)))

    def fetch_group(self, group_id: str) -> bytes | None:
        """Return what :meth:`save_group` kept."""
        session = self._open()
        with session.read() as connection:
            row = connection.execute(
                f"SELECT payload FROM groups WHERE group_id = ? AND {_LIVE}", (group_id, session.clock.time())
            ).fetchone()
        return None if row is None else row[0]

    def forget_group(self, group_id: str) -> None:
        """Delete the description of a group, and its chord counters."""
        with self._open().write() as tx:
            tx.execute("DELETE FROM groups WHERE group_id = ?", (group_id,))
            forget_chord(tx, group_id)

    def chord(self, group_id: str) -> ChordStore:
        """Return the parts of one chord."""
        return SqliteChord(self._open(), group_id)

    def expire(self, limit: int = 500) -> int:
        """Delete up to ``limit`` records that are past their time, and give free space back; return how many."""
        session = self._open()
        deleted = 0
        with session.write() as tx:
            for table, key in (("results", "number"), ("groups", "group_id")):
                gone = tx.execute(
                    f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE expires <= ? LIMIT ?)",
                    (tx.now, limit - deleted),
                )
                deleted += gone.rowcount
            chords = tx.execute(
                "SELECT group_id FROM chords WHERE expires <= ? LIMIT ?", (tx.now, limit - deleted)
            ).fetchall()
            for (group_id,) in chords:
                forget_chord(tx, group_id)
        session.vacuum()
        return deleted + len(chords)


class SqliteChord(ChordStore):
    """The parts of one chord."""

    def __init__(self, session: Session, group_id: str) -> None:
        self._session = session
        self._group_id = group_id

    def begin(self, size: int, *, expires: float | None) -> None:
        """Record how many members there are."""
        with self._session.write() as tx:
            begin_chord(tx, self._group_id, size, expires)

    def extend(self, count: int) -> None:
        """Make it wait for so many members more."""
        with self._session.write() as tx:
            extend_chord(tx, self._group_id, count)

    def add(self, part: ChordPart) -> str | None:
        """Add one part; return the claim token if all are in and the body is not yet claimed by another part."""
        with self._session.write() as tx:
            return add_part(tx, part)

    def parts(self) -> Iterator[bytes]:
        """Yield the encoded parts in the order of their index, read in pages."""
        after: tuple[int, str] = (-1, "")
        while True:
            with self._session.read() as connection:
                rows = connection.execute(
                    "SELECT place, task_id, payload FROM chord_parts "
                    "WHERE group_id = ? AND (place, task_id) > (?, ?) ORDER BY place, task_id LIMIT ?",
                    (self._group_id, *after, _PAGE),
                ).fetchall()
            yield from (row[2] for row in rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1][:2]

    def close(self, claim: str) -> None:
        """Mark the body as published and delete the parts."""
        with self._session.write() as tx:
            close_chord(tx, self._group_id, claim)


class SqliteWatcher(ResultWatcher):
    """Looks at the file's version, and reads what is newer than what it has seen. One thread receives."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waker = session.shared.waker()
        self._mutex = threading.Lock()
        self._watched: set[str] = set()
        self._new: set[str] = set()
        self._version = 0
        self._seen = self._newest()

    def _newest(self) -> int:
        with self._session.read() as connection:
            return int(connection.execute("SELECT value FROM sequence").fetchone()[0])

    def add(self, task_ids: Collection[str]) -> None:
        """Watch these too; what is there already is reported by the next :meth:`receive`."""
        with self._mutex:
            fresh = set(task_ids) - self._watched
            self._watched |= fresh
            self._new |= fresh
        self._waker.ring()

    def discard(self, task_ids: Collection[str]) -> None:
        """Stop watching these."""
        with self._mutex:
            self._watched.difference_update(task_ids)
            self._new.difference_update(task_ids)

    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        """Return (task id, encoded meta) of watched tasks that changed, waiting up to the timeout (seconds)."""
        deadline = time.monotonic() + timeout
        pause = _SHORTEST
        self._waker.sleeping = True
        try:
            while not (found := self._changes()):
                left = deadline - time.monotonic()
                why = self._waker.sleep(min(pause, left))
                if b"w" in why or left <= 0:
                    return self._changes()
                pause = _SHORTEST if why else min(pause * 1.5, _LONGEST)
            return found
        finally:
            self._waker.sleeping = False

    def _changes(self) -> list[tuple[str, bytes]]:
        with self._mutex:
            new, self._new = self._new, set()
            old = self._watched - new
        try:
            # Both before anything is read: what is committed from here on makes them differ next time.
            version, newest = self._session.version(), self._newest()
            found = self._read(new, 0)
            if version == self._version:
                return found  # and what was seen stays as it is: a commit may have come between the two
            found += self._read(old, self._seen)
        except BaseException:
            with self._mutex:
                self._new |= new & self._watched
            raise
        self._version, self._seen = version, newest
        return found

    def _read(self, ids: Collection[str], seen: int) -> list[tuple[str, bytes]]:
        """Return what is newer than that number."""
        now = self._session.clock.time()
        found: list[tuple[str, bytes]] = []
        with self._session.read() as connection:
            if seen and len(ids) > _SCAN_FROM:
                changed = "SELECT task_id FROM results WHERE number > ?"
                ids = [id for (id,) in connection.execute(changed, (seen,)).fetchall() if id in ids]
            for page in _pages(ids):
                rows = connection.execute(
                    f"SELECT task_id, payload FROM results WHERE {_ASKED} AND {_LIVE} AND number > ?",
                    (page, now, seen),
                )
                found += rows.fetchall()
        return found

    def wake(self) -> None:
        """End a :meth:`receive` of another thread, or the next one."""
        self._waker.wake()

    def close(self) -> None:
        """Close the connection."""
        self._session.shared.dismiss(self._waker)
        self._session.close()
