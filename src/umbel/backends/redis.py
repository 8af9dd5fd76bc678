"""The Redis result backend: Celery's keys and formats, with Celery's rules applied in one script."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from umbel.brokers.redis.client import Source
from umbel.brokers.redis.layout import AUDIT, CHORD, RESULT, Layout, Results, run_id
from umbel.brokers.redis.link import Link, LinkPool, Word, pack
from umbel.brokers.redis.settling import part_words
from umbel.brokers.redis.store import RedisStore
from umbel.brokers.redis.waker import Waker
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BackendStoreError, BrokerError, OperationalError
from umbel.interfaces import (
    ChordPart,
    ChordStore,
    Clock,
    ResultBackend,
    ResultRecord,
    ResultWatcher,
    StoreLocation,
)

_LARGEST: Final = 512 * 1024 * 1024  # redis.io/docs/latest/develop/data-types/strings: a value holds 512 MB
_PAGE: Final = 500
_PATIENCE: Final = 1.0  # seconds
_REREAD: Final = 1.0  # seconds: a message of the channel may be lost
_CHORD_KEYS: Final = (".s", ".t", ".j", ".d", ".c", ".b")


class RedisBackend(ResultBackend):
    """Keeps results where Celery's clients and workers look for them.

    ``options``: ``socket_timeout``, ``socket_connect_timeout``, ``ssl``, and of Celery's
    ``result_backend_transport_options`` ``global_keyprefix``, ``master_name``, ``sentinel_kwargs``.
    """

    __slots__ = ("_layout", "_names", "_pool", "_source")
    schemes: ClassVar[tuple[str, ...]] = ("redis", "rediss", "redis+socket", "sentinel")
    shares_chords: ClassVar[bool] = True

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        options = options or {}
        self._source = Source(url, options)
        self._layout = Layout({"global_keyprefix": options.get("global_keyprefix")}, clock)
        self._pool = LinkPool(self._source)
        self._names = Results()
        prefix = str(options.get("global_keyprefix") or "")
        # As Celery has it: a prefix that does not end in a separator gets one.
        self._names.prefix = prefix + "_" if prefix and prefix[-1] not in ":_-." else prefix

    def open(self) -> None:
        """Let the first use connect: whoever waits for a result has a deadline of its own."""
        self._pool.closed = False

    def close(self) -> None:
        """Give up the shared connections. Watchers have their own."""
        self._pool.close()

    def location(self) -> StoreLocation | None:
        """Return the server's run id, the database and the prefix; None where the server does not tell."""
        with self._pool.link() as link:
            identity = run_id(link)
        if not identity:
            return None
        return StoreLocation(
            scheme="redis", identity=identity, database=str(self._source.db), prefix=self._names.prefix
        )

    def store(self, record: ResultRecord) -> bool:
        """Store the record unless one that is there must stay; say whether it was stored."""
        keys, args = self._told(record)
        with self._pool.link() as link:
            return bool(link.run(RESULT, keys, args))

    def store_all(self, records: Sequence[ResultRecord]) -> int:
        """Store those that may be, in one round trip; return how many."""
        if not records:
            return 0
        calls = [self._told(record) for record in records]
        with self._pool.link() as link:
            return sum(map(int, link.run_many(RESULT, calls)))

    def shared_store(self) -> RedisStore:
        """Return the small store in the same database, where a broker on it would have it."""
        return RedisStore(self._pool, self._layout)

    def _told(self, record: ResultRecord) -> tuple[list[Word], list[Word]]:
        """Return the keys and the arguments of the script for one record."""
        if len(record.payload) > _LARGEST:
            raise BackendStoreError(
                f"the result of {record.task_id} has {len(record.payload)} bytes, Redis holds {_LARGEST} in a value",
                state=record.state,
                task_id=record.task_id,
            )
        args = [*self._layout.told(), record.state, _ms(record.expires), record.payload]
        return [self._names.task_key(record.task_id)], args

    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        """Return the encoded metas that exist."""
        if not task_ids:
            return {}
        with self._pool.link(timeout) as link:
            values = link.call("MGET", *[self._names.task_key(id) for id in task_ids])
        return {id: value for id, value in zip(task_ids, values, strict=True) if value is not None}

    def watcher(self) -> RedisWatcher:
        """Return a new watcher with a connection of its own."""
        return RedisWatcher(self._source, self._names)

    def forget(self, task_ids: Collection[str]) -> None:
        """Delete the results."""
        keys = [self._names.task_key(id) + suffix for id in task_ids for suffix in ("", ".state")]
        if keys:
            with self._pool.link() as link:
                link.call("UNLINK", *keys)

    def save_group(self, group_id: str, payload: bytes, *, expires: float | None) -> None:
        """Keep a group's encoded description."""
        with self._pool.link() as link:
            link.call(*_set(self._names.group_key(group_id), payload, expires))

    def fetch_group(self, group_id: str) -> bytes | None:
        """Return what :meth:`save_group` kept."""
        with self._pool.link() as link:
            payload: bytes | None = link.call("GET", self._names.group_key(group_id))
        return payload

    def forget_group(self, group_id: str) -> None:
        """Delete the description of a group, and its chord counters."""
        key = self._names.group_key(group_id)
        with self._pool.link() as link:
            link.call("UNLINK", key, *[key + suffix for suffix in _CHORD_KEYS])

    def chord(self, group_id: str) -> RedisChord:
        """Return the parts of one chord."""
        return RedisChord(self._pool, self._layout, self._names.group_key(group_id))

    def abandoned_chords(self, claim: str, *, limit: int = 100) -> Sequence[tuple[str, bytes]]:
        """Claim chords that are full and that nobody completes, among ``limit`` that it is time to look at."""
        key = self._names.prefix + "umbel:chords"
        # Asked by the thread that renews leases, which a results server that is away must not keep from it.
        with self._pool.link(_PATIENCE) as link:
            found = link.run(AUDIT, [key], [*self._layout.told(), limit, claim])
        own = len(self._names.group_key(""))
        return [(base.decode()[own:], note) for base, note in zip(found[::2], found[1::2], strict=True)]

    def expire(self, limit: int = 500) -> int:
        """Return zero: the server deletes what is over."""
        return 0


class RedisChord(ChordStore):
    """See :class:`umbel.interfaces.ChordStore`. Safe to share between threads."""

    __slots__ = ("_base", "_layout", "_pool")

    def __init__(self, pool: LinkPool, layout: Layout, base: str) -> None:
        self._pool = pool
        self._layout = layout
        self._base = base

    def begin(self, size: int, *, expires: float | None) -> None:
        """Record how many members there are."""
        with self._pool.link() as link:
            # A chord that is applied again has the same group id and starts afresh.
            link.pipeline([("DEL", self._base + ".c"), _set(self._base + ".s", size, expires)])

    def extend(self, count: int) -> None:
        """Make it wait for so many members more."""
        self._run("extend", count)

    def add(self, part: ChordPart) -> str | None:
        """Add one part; return the claim token if all are in and the body is this part's to publish."""
        token = self._run("add", *part_words(part))
        return None if token is None else token.decode()

    def parts(self) -> Iterator[bytes]:
        """Yield the encoded parts in the order of their index, or as they came (``result_chord_ordered=False``)."""
        key = self._base + ".j"
        with self._pool.link() as link:
            read = "LRANGE" if link.call("TYPE", key) == b"list" else "ZRANGE"
        start = 0
        while True:
            with self._pool.link() as link:
                page = link.call(read, key, start, start + _PAGE - 1)
            yield from page
            if len(page) < _PAGE:
                return
            start += _PAGE

    def close(self, claim: str) -> None:
        """Mark the body as published and delete the parts."""
        self._run("close", claim)

    def _run(self, operation: str, *args: Word) -> Any:
        with self._pool.link() as link:
            return link.run(CHORD, [self._base], [*self._layout.told(), operation, *args])


class RedisWatcher(ResultWatcher):
    """See :class:`umbel.interfaces.ResultWatcher`.

    A channel's message is a hint that may be lost; what is watched is read again each second while someone receives,
    and after each new connection.
    """

    __slots__ = (
        "_added",
        "_changed",
        "_discarded",
        "_link",
        "_lock",
        "_names",
        "_over",
        "_reread_at",
        "_seen",
        "_waiting",
        "_waker",
        "_woken",
    )

    def __init__(self, source: Source, names: Results) -> None:
        self._names = names
        self._link = Link(source, on_open=self._opened, on_push=self._pushed)
        self._waker = Waker()
        self._lock = threading.Lock()
        self._added: set[str] = set()
        self._discarded: set[str] = set()
        self._woken = False
        self._over = False
        self._waiting = False  # whether a thread receives, which then must hear of what is added
        # Only the receiving thread uses these.
        self._seen: dict[str, int | None] = {}  # watched id -> hash of what was reported last
        # Each push by itself: two reports that come together are two, and on_message hears of both.
        self._changed: list[tuple[str, bytes]] = []
        self._reread_at = 0.0

    def add(self, task_ids: Collection[str]) -> None:
        """Watch these too."""
        with self._lock:
            self._added.update(task_ids)
            self._discarded.difference_update(task_ids)
            waiting = self._waiting
        if waiting:
            self._waker.set()

    def discard(self, task_ids: Collection[str]) -> None:
        """Stop watching these."""
        with self._lock:
            self._added.difference_update(task_ids)
            self._discarded.update(task_ids)

    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        """Return (task id, encoded meta) of watched tasks that changed, waiting up to the timeout (seconds)."""
        with self._lock:
            self._waiting = True
        if patience is not None:
            self._link.hurry(patience)
        try:
            return self._receive(time.monotonic() + timeout)
        finally:
            self._waiting = False
            if self._link.hurried:
                self._link.relax()

    def _receive(self, deadline: float) -> list[tuple[str, bytes]]:
        while True:
            if self._over:
                self._link.close()
                raise OperationalError("the watcher was closed")
            self._link.open()
            self._update()
            now = time.monotonic()
            if self._seen and now >= self._reread_at:
                self._read(list(self._seen))
                self._reread_at = now + _REREAD
            self._update()
            if self._changed or now >= deadline:
                changed, self._changed = self._changed, []
                return [item for item in changed if item[0] in self._seen]
            until = min(deadline, self._reread_at) if self._seen else deadline
            self._link.listen(until - now, self._waker)
            if self._waker.clear() and self._woken:
                self._woken = False
                deadline = now

    def wake(self) -> None:
        """End a :meth:`receive` of another thread, or the next one."""
        self._woken = True
        self._waker.set()

    def close(self) -> None:
        """Close the connection. Whoever receives in another thread gets :exc:`OperationalError`."""
        self._over = True
        self._link.close()
        self._waker.close()

    def _update(self) -> None:
        """Do what :meth:`add` and :meth:`discard` asked for."""
        with self._lock:
            added, self._added = self._added, set()
            discarded, self._discarded = self._discarded, set()
        gone = [id for id in discarded if self._seen.pop(id, id) != id]
        # Answered by push messages only, so it can go along with what follows.
        leave = pack(("UNSUBSCRIBE", *map(self._names.task_key, gone))) if gone else b""
        fresh = [id for id in added if id not in self._seen]
        self._seen.update(dict.fromkeys(fresh))
        if fresh:
            self._read(fresh, subscribe=True, before=leave)
        elif leave:
            self._link.send(leave)

    def _read(self, ids: Sequence[str], *, subscribe: bool = False, before: bytes = b"") -> None:
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            keys = [self._names.task_key(id) for id in page]
            packed = pack(("MGET", *keys))
            if subscribe:
                # First, so that nothing falls between the two. Its own answers are push messages.
                packed = before + pack(("SUBSCRIBE", *keys)) + packed
                before = b""
            try:
                values = self._link.checked(self._link.exchange(packed))
            except BrokerError:
                # A refused SUBSCRIBE leaves the answer to MGET behind.
                self._link.drop()
                raise
            for id, value in zip(page, values, strict=True):
                if value is not None:
                    self._note(id, value)

    def _note(self, id: str, payload: bytes) -> None:
        if id in self._seen and self._seen[id] != (mark := hash(payload)):
            self._seen[id] = mark
            self._changed.append((id, payload))

    def _opened(self, link: Link) -> None:
        if self._seen:
            self._read(list(self._seen), subscribe=True)

    def _pushed(self, message: list[Any]) -> None:
        if message[0] == b"message":
            self._note(message[1].decode()[len(self._names.task_key("")) :], message[2])


def _ms(seconds: float | None) -> Word:
    return "" if seconds is None else max(1, int(seconds * 1000))


def _set(key: str, value: Word, expires: float | None) -> tuple[Word, ...]:
    return ("SET", key, value) if expires is None else ("SET", key, value, "PX", _ms(expires))
