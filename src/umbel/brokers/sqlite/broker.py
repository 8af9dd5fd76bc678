"""The broker: publishing, and looking into the queues."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from umbel.brokers.sqlite.consumer import SqliteConsumer
from umbel.brokers.sqlite.database import Database, Session
from umbel.brokers.sqlite.finding import find
from umbel.brokers.sqlite.leases import SqliteLeases
from umbel.brokers.sqlite.letters import SqliteDeadLetters, delete_messages, moment
from umbel.brokers.sqlite.places import LOWEST_PRIORITY, Redelivery, prepare, publish_batch
from umbel.brokers.sqlite.pubsub import SqlitePubSub
from umbel.brokers.sqlite.store import SqliteStore, put
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import (
    Broker,
    BrokerFeatures,
    Clock,
    Consumer,
    DeadLetters,
    Durability,
    Leases,
    Outgoing,
    Peeked,
    Place,
    Published,
    PubSub,
    QueueSpec,
    Sighting,
    Store,
    StoreLocation,
    Survives,
    Write,
)

_PURGE_BATCH = 2000

_TABLES: dict[Place, str] = {
    Place.READY: "ready",
    Place.SCHEDULED: "scheduled",
    Place.HELD: "held",
    Place.DEAD: "dead",
}
# Each gives: message, moment.
_PEEK: dict[Place, str] = {
    Place.READY: "SELECT message, NULL FROM ready WHERE queue = ? ORDER BY priority, position LIMIT ?",
    Place.SCHEDULED: "SELECT message, due / 1e6 FROM scheduled WHERE queue = ? ORDER BY due, message LIMIT ?",
    Place.HELD: "SELECT message, NULL FROM held JOIN messages ON messages.id = message "
    "WHERE queue = ? ORDER BY hold LIMIT ?",
}
_HELD_BY = (
    "SELECT hold, raw, queue FROM held JOIN messages ON messages.id = message "
    "WHERE consumer = (SELECT number FROM consumers WHERE id = ?) ORDER BY hold"
)
_PURGE: dict[Place, str] = {
    Place.READY: "DELETE FROM ready WHERE (queue, priority, position) IN (SELECT queue, priority, position FROM ready "
    "WHERE queue = ? AND message <= ? LIMIT ?) RETURNING message",
    Place.SCHEDULED: "DELETE FROM scheduled WHERE (due, message) IN (SELECT due, message FROM scheduled "
    "WHERE queue = ? AND message <= ? LIMIT ?) RETURNING message",
    Place.HELD: "DELETE FROM held WHERE hold IN (SELECT hold FROM held JOIN messages ON messages.id = message "
    "WHERE queue = ? AND message <= ? LIMIT ?) RETURNING message",
    Place.DEAD: "DELETE FROM dead WHERE (queue, number) IN (SELECT queue, number FROM dead "
    "WHERE queue = ? AND message <= ? LIMIT ?) RETURNING message",
}
# One of those with these bytes: equal ones are the same message to everybody.
_WITHDRAW = (
    "DELETE FROM scheduled WHERE (due, message) IN (SELECT scheduled.due, message FROM scheduled "
    "JOIN messages ON messages.id = message WHERE scheduled.queue = ? AND raw = ? LIMIT 1) RETURNING message"
)


class SqliteBroker(Broker):
    """Queues in one SQLite file on a local disk, for any number of processes of one machine.

    ``sqlite:///jobs.db`` is a file in the working directory and ``sqlite:////var/lib/jobs.db`` an absolute path.
    ``?synchronous=NORMAL`` may lose the last commits in a power failure, though not in a crash of a process.
    """

    schemes: ClassVar[tuple[str, ...]] = ("sqlite",)
    features = BrokerFeatures(
        lease="kernel",
        shared=True,
        priorities=LOWEST_PRIORITY + 1,
        schedule=True,
        dedupe=True,
        atomic_results=True,
        gates=True,
        ends=True,
        fanout=True,
        guarded=True,
        finds=True,
    )

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        options = options or {}
        self._database = Database(url, options, clock)
        self._ttl = float(options.get("lease_ttl", 30.0))
        self._redelivery = Redelivery(options)
        self._window = float(options.get("publish_dedupe") or 0) if "publish_dedupe" in options else 120.0
        self._patience = float(options.get("publish_timeout", 2.0))
        self._bound = False
        self._opening = threading.Lock()
        self._session: Session | None = None
        self._notes: Session | None = None

    def open(self) -> None:
        """Open the file, and make it if it is not there. A second call does nothing; after a fork it opens anew."""
        with self._opening:
            if self._session is None or not self._session.usable:
                # Publishing has a deadline, also where another program has locked the file.
                self._session = self._database.session(patience=self._patience)

    def close(self) -> None:
        """Close the file. A second call does nothing; a closed broker may be opened again."""
        with self._opening:
            for session in (self._session, self._notes):
                if session is not None:
                    session.close()
            self._session = self._notes = None

    def _open(self) -> Session:
        if self._session is None:
            self.open()
        assert self._session is not None
        return self._session

    def declare(self, queues: Iterable[QueueSpec]) -> None:
        """Do nothing: a queue is there as soon as it is named."""

    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object | None = None, timeout: float | None = None
    ) -> Sequence[Published]:
        """Hand over the messages in one commit and return one outcome each, in order."""
        if transaction is not None:
            raise ImproperlyConfigured("the SQLite broker cannot publish inside a transaction of the caller's")
        if not batch:
            return []
        prepared = prepare(batch)
        with self._open().write(timeout=timeout or self._patience, publishing=batch[0].task_id) as tx:
            return publish_batch(tx, prepared, self._window)

    def publish_if(self, write: Write, batch: Sequence[Outgoing], *, timeout: float | None = None) -> int | None:
        """Put a value and hand over the messages in one commit, or do nothing and return None."""
        prepared = prepare(batch)
        with self._open().write(timeout=timeout or self._patience, publishing=batch[0].task_id if batch else "") as tx:
            version = put(tx, write.key, write.value, if_version=write.if_version)
            if version is not None and prepared:
                publish_batch(tx, prepared, self._window)
            return version

    def consumer(self, id: str, queues: Sequence[str]) -> Consumer:
        """Return the consumer of a registered id, with a connection of its own."""
        return SqliteConsumer(self._database, id, queues, redelivery=self._redelivery, results=lambda: self._bound)

    def leases(self) -> Leases:
        """Return the keeper of consumer ids, with a connection of its own."""
        return SqliteLeases(self._database, ttl=self._ttl, redelivery=self._redelivery)

    def size(self, queue: str, place: Place = Place.READY) -> int:
        """Return how many messages are there now."""
        if place is Place.HELD:
            counting = "SELECT count(*) FROM held JOIN messages ON messages.id = message WHERE queue = ?"
        else:
            counting = f"SELECT count(*) FROM {_TABLES[place]} WHERE queue = ?"
        with self._open().read() as connection:
            return int(connection.execute(counting, (queue,)).fetchone()[0])

    def purge(self, queue: str, place: Place = Place.READY) -> int:
        """Discard what is there now and return how many messages that was.

        Held messages are discarded too if asked for; their holders' settlements are then refused.
        """
        session = self._open()
        with session.read() as connection:
            (newest,) = connection.execute("SELECT value FROM sequence").fetchone()
        purged = 0
        while True:
            # In batches: one transaction for a million messages would write a log of a gigabyte.
            with session.write() as tx:
                messages = [row[0] for row in tx.execute(_PURGE[place], (queue, newest, _PURGE_BATCH)).fetchall()]
                delete_messages(tx, messages)
            purged += len(messages)
            if len(messages) < _PURGE_BATCH:
                return purged

    def peek(self, queue: str, *, place: Place = Place.READY, limit: int = 100) -> Sequence[Peeked]:
        """Return the next messages without taking them; of dead letters the latest."""
        if place is Place.DEAD:
            return self.dead().page(queue, limit=limit)
        seen = []
        with self._open().read() as connection:
            for message, at in connection.execute(_PEEK[place], (queue, limit)).fetchall():
                row = connection.execute("SELECT raw FROM messages WHERE id = ?", (message,)).fetchone()
                if row is not None:  # another process may have taken it away in between
                    when = None if at is None else moment(at)
                    seen.append(Peeked(raw=row[0], queue=queue, at=when))
        return seen

    def withdraw(self, queue: str, messages: Sequence[Peeked]) -> int:
        """Take these out of the schedule, in one transaction."""
        taken: list[int] = []
        with self._open().write() as tx:
            for each in messages:
                taken += [row[0] for row in tx.execute(_WITHDRAW, (queue, each.raw)).fetchall()]
            delete_messages(tx, taken)
        return len(taken)

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        """Return what one consumer holds, by tag."""
        with self._open().read() as connection:
            rows = connection.execute(_HELD_BY, (consumer,)).fetchall()
        return {str(hold): Peeked(raw=raw, queue=queue) for hold, raw, queue in rows}

    def find(self, task_id: str, queues: Collection[str], *, timeout: float = 2.0) -> Sighting | None:
        """Return where the message of this task is, whatever its queue."""
        return find(self._open(), task_id, timeout)

    def dead(self) -> DeadLetters:
        """Return the dead letters of every queue."""
        return SqliteDeadLetters(self._open)

    def pubsub(self) -> PubSub:
        """Return the channel for remote control and events."""
        with self._opening:
            if self._notes is None or not self._notes.usable:
                # What is told to those who listen now need not survive a power failure.
                self._notes = self._database.session(synchronous="NORMAL")
            return SqlitePubSub(self._database, self._notes)

    def durability(self) -> Durability:
        """Return what this file keeps."""
        with self._open().read() as connection:
            (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        name = f"SQLite {sqlite3.sqlite_version}, {self._database.path}, synchronous={self._database.synchronous}"
        if synchronous >= 2:
            return Durability(survives=Survives.POWER_LOSS, text=f"{name}: on disk when confirmed")
        return Durability(
            survives=Survives.PROCESS,
            text=f"{name}: survives a crash; a power cut may lose the last commits",
            advice=["take ?synchronous=NORMAL out of the URL where a power cut must lose nothing"],
        )

    def store(self) -> Store | None:
        """Return the small shared store beside the queues."""
        return SqliteStore(self._open())

    def bind_results(self, location: StoreLocation | None) -> bool:
        """Learn where results live; they are written in the settling commit if that is the same file."""
        self._bound = location == self._database.location()
        return self._bound
