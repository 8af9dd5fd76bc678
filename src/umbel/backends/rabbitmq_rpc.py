"""Results as messages to whoever called: ``rpc://``.

Each calling process has an address (``reply_to``), which is a queue that goes with it; one thread receives for all. A
worker sends every state there, and nobody else can read it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, NoReturn
from weakref import WeakSet

import msgspec

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import parse_url
from umbel.brokers.rabbitmq.frames import Content
from umbel.brokers.rabbitmq.link import Bell, Channel, Link
from umbel.brokers.rabbitmq.posting import Addresses, Letter, PostOffice
from umbel.brokers.rabbitmq.topology import Topology
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BrokerError, ImproperlyConfigured
from umbel.interfaces import (
    QUEUED,
    ChordStore,
    Clock,
    ResultBackend,
    ResultRecord,
    ResultWatcher,
    StoreLocation,
)
from umbel.states import replaces

logger = logging.getLogger("umbel.backends.rpc")

EXPIRES: Final = 86400.0  # seconds that a queue outlives its process
KEPT: Final = 256 * 2**20  # bytes of results that wait in this process for somebody to ask
KEPT_READ: Final = 32 * 2**20  # bytes of those that somebody has read, for whoever asks again
_OVERHEAD: Final = 500  # bytes of memory that a result takes beside its body
_HEARTBEAT: Final = 60.0
_ANSWER: Final = 10.0
_AGAIN: Final = 1.0  # seconds between two tries to connect
# What a message of each serializer says of itself: its content type and encoding.
_TYPES: Final = {
    "json": ("application/json", "utf-8"),
    "pickle": ("application/x-python-serialize", "binary"),
    "yaml": ("application/x-yaml", "utf-8"),
    "msgpack": ("application/x-msgpack", "binary"),
}


class _Status(msgspec.Struct):
    status: str = ""


_read_status: Final = msgspec.json.Decoder(_Status).decode


class RpcBackend(ResultBackend):
    """Sends results to their callers, and keeps those that came to this process until they are forgotten.

    ``options``: ``broker_url`` (where the URL names no server), ``serializer``, ``persistent``, ``expires`` (seconds),
    ``publish_timeout``, and those of the connection that the broker takes.
    """

    __slots__ = (
        "_addresses",
        "_bell",
        "_changed",
        "_channel",
        "_closed",
        "_expires",
        "_found",
        "_gone",
        "_kept",
        "_link",
        "_lock",
        "_mode",
        "_office",
        "_over",
        "_queues",
        "_read",
        "_thread",
        "_type",
        "_watchers",
    )
    schemes: ClassVar[tuple[str, ...]] = ("rpc",)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        options = options or {}
        self._addresses = Addresses([parse_url(each, options) for each in _urls(url, options)], _round)
        patience = float(options.get("publish_timeout") or 2.0)
        self._office = PostOffice(self._addresses, Topology(), name="umbel:results", patience=patience)
        self._type = _TYPES.get(str(options.get("serializer") or "json"), _TYPES["json"])
        self._mode = 2 if options.get("persistent") else 1
        self._expires = float(options.get("expires") or EXPIRES)
        self._lock = threading.RLock()  # of the receiving connection
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._queues: dict[str, None] = {}
        self._gone: set[str] = set()  # those that were deleted while this consumed from them
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._over = threading.Event()
        # Of what has come.
        self._changed = threading.Condition()
        self._found = _Kept(KEPT)  # and nobody has read it yet
        self._read = _Kept(KEPT_READ)
        self._watchers: WeakSet[RpcWatcher] = WeakSet()

    def open(self) -> None:
        """Let the first use connect."""
        self._closed = False
        self._over.clear()
        self._office.closed = False

    def close(self) -> None:
        """Give up every connection, and what was not fetched yet."""
        self._closed = True
        self._over.set()
        self._office.close()
        thread, self._thread = self._thread, None
        bell, self._bell = self._bell, None
        if bell is not None and thread is not None:
            bell.ring()
            thread.join(_ANSWER)
            bell.close()
        with self._lock:
            if self._link is not None:
                self._link.close()
            self._link = self._channel = None
            self._queues.clear()
            self._gone.clear()

    def location(self) -> StoreLocation | None:
        """Return None: results are nowhere but with their callers."""
        return None

    # -- the worker's side ---------------------------------------------------------------------------------------

    def store(self, record: ResultRecord) -> bool:
        """Send the record to whoever called; return whether there is somebody."""
        return self.store_all([record]) > 0

    def store_all(self, records: Sequence[ResultRecord]) -> int:
        """Send the records and wait once for the confirmations; return for how many there is somebody."""
        sent = [record for record in records if record.reply_to]
        if not sent:
            return 0
        outcomes = self._office.publish([self._letter(record) for record in sent])
        for record, outcome in zip(sent, outcomes, strict=True):
            if outcome is not QUEUED:
                logger.debug("The caller of task %s is gone, so its %s is dropped", record.task_id, record.state)
        return outcomes.count(QUEUED)

    def _letter(self, record: ResultRecord) -> Letter:
        properties = {
            "content_type": self._type[0],
            "content_encoding": self._type[1],
            "delivery_mode": self._mode,
            "correlation_id": record.task_id,
            "priority": 0,
        }
        return Letter.of(record.task_id, "", "", record.reply_to, properties, record.payload)

    # -- the caller's side ---------------------------------------------------------------------------------------

    def expect(self, reply_to: str) -> None:
        """Have the queue of this address there, and receive what comes to it, before anything is sent."""
        with self._lock:
            if reply_to in self._queues:
                return
            channel = self._open()
            self._consume(channel, reply_to)
            self._queues[reply_to] = None
            if self._bell is None:
                self._bell = Bell()
                self._thread = threading.Thread(target=self._receive, args=(self._bell,), name="umbel-rpc", daemon=True)
                self._thread.start()
            self._bell.ring()

    def _open(self) -> Channel:
        channel = self._channel
        if channel is not None and channel.closed is None and self._link is not None and self._link.alive:
            for queue in list(self._gone):
                logger.warning("The queue of results %s was deleted with what was in it; it is declared again", queue)
                self._consume(channel, queue)
            return channel
        link = self._addresses.connect("umbel:replies", timeout=_ANSWER, heartbeat=_HEARTBEAT)
        try:
            channel = link.channel(timeout=_ANSWER)
            channel.on_content = self._on_content
            channel.on_cancel = self._gone.add
            for queue in self._queues:
                self._consume(channel, queue)
        except BaseException:
            link.drop()
            raise
        self._link, self._channel = link, channel
        return channel

    def _consume(self, channel: Channel, queue: str) -> None:
        # As Celery declares it; a connection that is lost for a moment may take it away, and what was in it.
        limits = {"x-expires": int(self._expires * 1000)}
        declared = frames.declare_queue(queue, durable=self._mode == 2, auto_delete=True, arguments=limits)
        channel.call(frames.QUEUE_DECLARE, declared, frames.QUEUE_DECLARE_OK, timeout=_ANSWER)
        consume: tuple[Any, ...] = (
            0,
            queue,
            queue,
            False,
            True,
            False,
            False,
            {},
        )  # the queue's name is that of its consumer, too
        channel.call(frames.CONSUME, consume, frames.CONSUME_OK, timeout=_ANSWER)
        self._gone.discard(queue)

    def _receive(self, bell: Bell) -> None:
        while not self._closed:
            try:
                with self._lock:
                    link = self._open().link
                    link.read(0.0)
                    link.tend(time.monotonic())
                    again = self._gone
                if again:
                    continue
                link.pause(_HEARTBEAT / 3, also=bell)
                bell.rung()
            except BrokerError as error:
                with self._lock:
                    if self._link is not None:
                        self._link.drop()
                    self._channel = None
                if not self._closed:
                    logger.warning("Results cannot be received now: %s", error)
                    self._over.wait(_AGAIN)

    def _on_content(self, name: frames.Method, content: Content) -> None:
        id = content.properties.get("correlation_id")
        if not id:
            return
        state = ""
        with contextlib.suppress(msgspec.DecodeError):
            state = _read_status(content.body).status
        with self._changed:
            before = self._found.get(id) or self._read.get(id)
            if before is not None and state and before[0] and not replaces(state, before[0]):
                return
            self._read.drop(id)
            if self._found.keep(id, state, content.body):
                logger.warning("More than %d MB of results wait here for nobody; the oldest are dropped", KEPT >> 20)
            for watcher in self._watchers:
                watcher.tell(id)
            self._changed.notify_all()

    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        """Return the metas that came to this process."""
        with self._changed:
            found: dict[str, bytes] = {}
            for id in task_ids:
                new = self._found.get(id)
                kept = new or self._read.get(id)
                if kept is not None:
                    found[id] = kept[1]
                if new is not None:
                    self._found.drop(id)
                    self._read.keep(id, *new)
            return found

    def _has(self, task_id: str) -> bool:
        return task_id in self._found or task_id in self._read

    def watcher(self) -> RpcWatcher:
        """Return a new watcher."""
        watcher = RpcWatcher(self._changed, self.fetch, self._has)
        with self._changed:
            self._watchers.add(watcher)
        return watcher

    def forget(self, task_ids: Collection[str]) -> None:
        """Delete the results from this process."""
        with self._changed:
            for id in task_ids:
                self._found.drop(id)
                self._read.drop(id)

    # -- what messages cannot do ---------------------------------------------------------------------------------

    def save_group(self, group_id: str, payload: bytes, *, expires: float | None) -> None:
        """Refuse: nobody else could read it."""
        _refuse("groups cannot be saved")

    def fetch_group(self, group_id: str) -> bytes | None:
        """Refuse."""
        _refuse("groups cannot be restored")

    def forget_group(self, group_id: str) -> None:
        """Do nothing: there is nothing."""

    def chord(self, group_id: str) -> ChordStore:
        """Refuse: its parts would come together nowhere."""
        _refuse("chords do not work")

    def expire(self, limit: int = 500) -> int:
        """Return zero: what is over goes with its queue."""
        return 0


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(
        f"The result backend rpc:// sends each result to its caller alone, so {what} with it. "
        "Use one that stores results, such as redis://."
    )


def _urls(url: str, options: Mapping[str, Any]) -> list[str]:
    rest = url.partition("://")[2]
    if rest:
        return [f"amqp://{rest}"]
    given = options.get("broker_url")
    urls = [given] if isinstance(given, str) else list(given or ())
    found = [part for each in urls for part in each.split(";") if part.strip()]
    if not found or any(each.partition("://")[0] not in ("amqp", "amqps", "pyamqp") for each in found):
        raise ImproperlyConfigured(
            "the result backend rpc:// needs a RabbitMQ broker: broker_url='amqp://…', or the server in its own URL, "
            "such as rpc://user:password@host/virtual_host"
        )
    return found


def _round(addresses: Sequence[Any]) -> Any:
    import itertools

    return itertools.cycle(addresses)


class _Kept(OrderedDict[str, tuple[str, bytes]]):
    """States and metas by task id, those that came first dropped first where they take too much memory."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most  # bytes
        self._size = 0

    def keep(self, id: str, state: str, meta: bytes) -> int:
        """Keep this instead of what is there of the task; return how many others were dropped for it."""
        self.drop(id)
        self[id] = state, meta
        self._size += len(meta) + _OVERHEAD
        dropped = 0
        while self._size > self._most and len(self) > 1:
            _, (_, old) = self.popitem(last=False)
            self._size -= len(old) + _OVERHEAD
            dropped += 1
        return dropped

    def drop(self, id: str) -> None:
        """Forget what is there of the task."""
        if id in self:
            self._size -= len(self.pop(id)[1]) + _OVERHEAD


class RpcWatcher(ResultWatcher):
    """See :class:`umbel.interfaces.ResultWatcher`. Has no connection of its own: the backend's serves them all."""

    __slots__ = ("__weakref__", "_changed", "_fetch", "_has", "_news", "_watched", "_woken")

    def __init__(self, changed: threading.Condition, fetch: Any, has: Callable[[str], bool]) -> None:
        self._changed = changed
        self._fetch = fetch
        self._has = has
        self._watched: set[str] = set()
        self._news: dict[str, None] = {}
        self._woken = False

    def tell(self, id: str) -> None:
        """Hear of a change; under the lock."""
        if id in self._watched:
            self._news[id] = None

    def add(self, task_ids: Collection[str]) -> None:
        """Watch these too."""
        with self._changed:
            self._watched.update(task_ids)
            self._news.update(dict.fromkeys(filter(self._has, task_ids)))
            self._changed.notify_all()

    def discard(self, task_ids: Collection[str]) -> None:
        """Stop watching these."""
        with self._changed:
            self._watched.difference_update(task_ids)
            for id in task_ids:
                self._news.pop(id, None)

    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        """Return what changed, waiting up to the timeout (seconds)."""
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._woken, max(timeout, 0.0))
            self._woken = False
            news, self._news = self._news, {}
            return list(self._fetch(news).items())

    def wake(self) -> None:
        """End a :meth:`receive` of another thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """Watch nothing more."""
        with self._changed:
            self._watched.clear()
            self._news.clear()
