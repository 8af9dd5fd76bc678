"""The Redis broker: where its parts meet, and publishing and looking at queues."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from umbel.brokers.redis.client import Source, Unconfirmed
from umbel.brokers.redis.consumer import RedisConsumer
from umbel.brokers.redis.durability import durability
from umbel.brokers.redis.finding import Search
from umbel.brokers.redis.layout import (
    BIND,
    COUNT_HELD,
    PUBLISH,
    PUBLISH_IF,
    PURGE,
    PUT,
    WITHDRAW,
    Layout,
    Results,
    from_ms,
    lease_options,
    run_id,
    to_ms,
)
from umbel.brokers.redis.leases import RedisLeases
from umbel.brokers.redis.letters import RedisDeadLetters
from umbel.brokers.redis.link import Link, LinkPool, Word
from umbel.brokers.redis.pubsub import RedisPubSub
from umbel.brokers.redis.store import RedisStore
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import ImproperlyConfigured, OperationalError, PublishUnknown
from umbel.interfaces import (
    QUEUED,
    Broker,
    BrokerFeatures,
    Clock,
    Durability,
    Outgoing,
    Peeked,
    Place,
    Published,
    PublishStatus,
    QueueSpec,
    Sighting,
    StoreLocation,
    Write,
)
from umbel.message import encode_envelope

BATCH: Final = 500
BATCH_BYTES: Final = 1024 * 1024
KEEP_DEAD: Final = 10_000
_HEAD: Final = 5  # the words of publish.lua before the first message


class RedisBroker(Broker):
    """Messages in Celery's queue lists, so that Celery's producers and workers may share them.

    ``options``: ``lease_ttl``, ``lease_heartbeat``, ``max_deliveries``, ``redelivery_backoff``, ``publish_timeout``,
    ``publish_dedupe``, ``dead_letters`` (how many to keep per queue), ``socket_timeout``, ``socket_connect_timeout``,
    and of kombu's transport options ``global_keyprefix``, ``priority_steps``, ``sep``, ``fanout_prefix``,
    ``fanout_patterns``, ``master_name``, ``sentinel_kwargs``, ``client_name``, and ``ssl`` (a dict or True).
    """

    __slots__ = (
        "_clock",
        "_dedupe_ms",
        "_desk",
        "_keep_dead",
        "_layout",
        "_leases",
        "_patience",
        "_pool",
        "_results",
        "_source",
    )
    schemes: ClassVar[tuple[str, ...]] = ("redis", "rediss", "redis+socket", "sentinel")
    features = BrokerFeatures(
        lease="clock",
        shared=True,
        priorities=4,
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
        self._source = Source(url, options)
        self._layout = Layout(options, clock)
        self._clock = clock
        self._leases = lease_options(options)
        self._dedupe_ms = int(float(options.get("publish_dedupe", 120.0) or 0) * 1000)
        self._keep_dead = int(options.get("dead_letters", KEEP_DEAD))
        # Publishing has a deadline of its own.
        self._patience = float(options.get("publish_timeout", 2.0))
        self._pool = LinkPool(self._source, timeout=self._patience)
        self._desk = LinkPool(self._source)
        self._results = Results()

    def open(self) -> None:
        """Connect."""
        if self._pool.closed:
            self._pool.open()
            self._desk.closed = False

    def close(self) -> None:
        """Give up the shared connections. Consumers, leases and subscriptions have their own."""
        self._pool.close()
        self._desk.close()

    def declare(self, queues: Iterable[QueueSpec]) -> None:
        """Let Celery's producers find the queues, by kombu's binding tables."""
        tables: list[Word] = []
        members: list[Word] = []
        for spec in queues:
            _checked(spec.name)
            exchange, key = spec.exchange or spec.name, spec.routing_key or spec.name
            if spec.exchange_type == "fanout":
                continue
            pattern = _kombu_pattern(key) if spec.exchange_type == "topic" else ""
            member = self._layout.separator.join((key, pattern, spec.name))
            for table in ("_kombu.binding", "_kombu.binding_permanent"):
                tables.append(f"{self._layout.prefix}{table}.{exchange}")
                members.append(member)
        if tables:
            with self._pool.link() as link:
                link.run(BIND, tables, [*self._layout.told(), *members])

    # -- publish -------------------------------------------------------------------------------------------------

    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object | None = None, timeout: float | None = None
    ) -> Sequence[Published]:
        """Queue the messages: one round trip for each 500 of them and each MiB."""
        if transaction is not None:
            raise ValueError("Redis cannot join a database transaction; publish after it has committed")
        if not batch:
            return []
        link = self._pool.take(None if timeout == self._patience and len(batch) == 1 else timeout)
        outcomes: list[Published] = []
        try:
            if len(batch) == 1:
                self._publish_one(link, batch[0], outcomes)
            else:
                self._publish_all(link, batch, outcomes)
        except Unconfirmed as error:
            raise PublishUnknown(batch[len(outcomes)].task_id, str(error)) from error
        except OperationalError as error:
            link.close()
            if not outcomes:
                raise
            reason = f"{len(outcomes)} of {len(batch)} were queued: {error}"
            raise PublishUnknown(batch[len(outcomes)].task_id, reason) from error
        except BaseException:
            link.close()
            raise
        self._pool.give(link)
        return outcomes

    def publish_if(self, write: Write, batch: Sequence[Outgoing], *, timeout: float | None = None) -> int | None:
        """Put a value and queue the messages in one script, or do nothing and return None."""
        if len(batch) > BATCH:
            raise ValueError(f"at most {BATCH} messages can be published on a condition, and not {len(batch)}")
        args = [*self._layout.told(), write.key, write.value, write.if_version, self._dedupe_ms]
        for outgoing in batch:
            args += self._item(outgoing)
        link = self._pool.take(timeout)
        try:
            version = link.run(PUBLISH_IF, (), args)
        except Unconfirmed as error:
            raise PublishUnknown(batch[0].task_id if batch else "", str(error)) from error
        except BaseException:
            link.close()
            raise
        self._pool.give(link)
        return None if version is None else int(version)

    def _publish_one(self, link: Link, outgoing: Outgoing, outcomes: list[Published]) -> None:
        key, seen, raw = self._item(outgoing)
        if not key:
            self._publish_all(link, [outgoing], outcomes)
        elif not seen:
            link.call("LPUSH", key, raw)
            outcomes.append(QUEUED)
        else:
            new = link.run(PUT, (key, f"{self._layout.namespace}seen:{seen}"), (self._dedupe_ms, raw))
            outcomes.append(QUEUED if new else Published(PublishStatus.DUPLICATE, outgoing.task_id))

    def _publish_all(self, link: Link, batch: Sequence[Outgoing], outcomes: list[Published]) -> None:
        """Send part after part, each before the answer to the one before it is read."""
        sent: list[Word] | None = None
        for args in self._chunks(batch):
            if sent is None:
                # Alone, so that the server surely has the script for those that follow.
                _conclude(args, link.run(PUBLISH, (), args), outcomes)
                sent = []
                continue
            link.send(PUBLISH.pack((), args))
            if sent:
                _conclude(sent, link.checked(link.read()), outcomes)
            sent = args
        if sent:
            _conclude(sent, link.checked(link.read()), outcomes)

    def _chunks(self, batch: Sequence[Outgoing]) -> Iterator[list[Word]]:
        """Yield the arguments of publish.lua for each part of the batch."""
        head: list[Word] = [*self._layout.told(), self._dedupe_ms]
        args, size = head.copy(), 0
        for outgoing in batch:
            words = self._item(outgoing)
            length = len(words[2])
            if size and (size + length > BATCH_BYTES or len(args) >= len(head) + 3 * BATCH):
                yield args
                args, size = head.copy(), 0
            args += words
            size += length
        yield args

    def _item(self, outgoing: Outgoing) -> tuple[str, str, bytes]:
        seen = outgoing.repeat_key if self._dedupe_ms else ""
        return self._layout.item(outgoing, encode_envelope(outgoing.message), seen)

    # -- parts ---------------------------------------------------------------------------------------------------

    def consumer(self, id: str, queues: Sequence[str]) -> RedisConsumer:
        """Return the consumer of a registered id."""
        if not queues:
            raise ImproperlyConfigured("a consumer needs at least one queue")
        for queue in queues:
            _checked(queue)
        return RedisConsumer(self._source, self._layout, self._results, id=id, queues=queues, keep_dead=self._keep_dead)

    def leases(self) -> RedisLeases:
        """Return the keeper of consumer ids."""
        return RedisLeases(self._source, self._layout, self._clock, *self._leases)

    def dead(self) -> RedisDeadLetters:
        """Return the dead letters of every queue."""
        return RedisDeadLetters(self._desk, self._layout)

    def pubsub(self) -> RedisPubSub:
        """Return the channel for remote control and events."""
        return RedisPubSub(self._source, self._desk, self._layout.prefix, self._source.options)

    def durability(self) -> Durability:
        """Return what this server keeps, by what it says of itself."""
        with self._desk.link() as link:
            return durability(link)

    def store(self) -> RedisStore:
        """Return the small shared store."""
        return RedisStore(self._desk, self._layout)

    def bind_results(self, location: StoreLocation | None) -> bool:
        """Return whether results live on this very server, by its run id; any of its databases will do."""
        if location is None or location.scheme != "redis":
            return self._results.bind(None, None)
        with self._desk.link() as link:
            own = StoreLocation(scheme="redis", identity=run_id(link), database=str(self._source.db))
        return self._results.bind(location, own)

    # -- looking -------------------------------------------------------------------------------------------------

    def size(self, queue: str, place: Place = Place.READY) -> int:
        """Return how many messages are there now."""
        with self._desk.link() as link:
            if place is Place.HELD:
                return int(link.run(COUNT_HELD, (), [*self._layout.told(), queue]))
            if place is not Place.READY:
                return int(link.call("ZCARD", *self._place_keys(queue, place)))
            return sum(link.pipeline([("LLEN", key) for key in self._place_keys(queue, place)]))

    def purge(self, queue: str, place: Place = Place.READY) -> int:
        """Discard what is there now. What a consumer holds cannot be discarded: ValueError."""
        if place is Place.HELD:
            raise ValueError("held messages cannot be purged: their consumers are working on them")
        if place is Place.DEAD:
            return self.dead().purge(queue)
        scheduled = queue if place is Place.SCHEDULED else ""
        with self._desk.link() as link:
            return int(link.run(PURGE, self._place_keys(queue, place), [*self._layout.told(), scheduled]))

    def peek(self, queue: str, *, place: Place = Place.READY, limit: int = 100) -> Sequence[Peeked]:
        """Return the next messages without taking them; of dead letters the latest."""
        if limit <= 0:
            return []
        if place is Place.DEAD:
            return self.dead().page(queue, limit=limit)
        with self._desk.link() as link:
            if place is Place.HELD:
                return self._peek_held(link, queue, limit)
            if place is Place.SCHEDULED:
                rows = _head(link, self._layout.key(f"delayed:{queue}"), limit)
                return [Peeked(raw=row.split(b"\0", 2)[2], queue=queue, at=from_ms(due)) for row, due in rows]
            pages = link.pipeline([("LRANGE", key, -limit, -1) for key in self._place_keys(queue, place)])
        raws = [raw for page in pages for raw in reversed(page)]
        return [Peeked(raw=raw, queue=queue) for raw in raws[:limit]]

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        """Return what one consumer holds, by tag."""
        with self._desk.link() as link:
            words = link.call("HGETALL", self._layout.key(f"inf:{consumer}"))
        pairs = words.items() if isinstance(words, dict) else zip(words[::2], words[1::2], strict=True)
        found = {}
        for tag, value in pairs:
            name, _, reserved, _, _, _, _, raw = value.split(b"\0", 7)
            found[tag.decode()] = Peeked(raw=raw, queue=name.decode(), at=from_ms(reserved))
        return found

    def find(self, task_id: str, queues: Collection[str], *, timeout: float = 2.0) -> Sighting | None:
        """Return where the message of this task is, also where a Celery worker holds it."""
        with self._desk.link() as link:
            return Search(link, self._layout, task_id, queues, timeout).run()

    def withdraw(self, queue: str, messages: Sequence[Peeked]) -> int:
        """Take these out of the schedule."""
        count = 0
        with self._desk.link() as link:
            for first in range(0, len(messages), BATCH):
                args: list[Word] = [*self._layout.told(), queue]
                for each in messages[first : first + BATCH]:
                    if each.at is not None:
                        args += [to_ms(each.at), each.raw]
                count += int(link.run(WITHDRAW, (), args))
        return count

    def _place_keys(self, queue: str, place: Place) -> list[str]:
        if place is Place.READY:
            return self._layout.list_keys(queue)
        return [self._layout.key(f"{'dead' if place is Place.DEAD else 'delayed'}:{queue}")]

    def _peek_held(self, link: Link, queue: str, limit: int) -> list[Peeked]:
        found: list[Peeked] = []
        for id in link.call("ZRANGE", self._layout.key("widx"), 0, -1):
            for value in link.call("HVALS", self._layout.key(f"inf:{id.decode()}")):
                name, _, reserved, _, _, _, _, raw = value.split(b"\0", 7)
                if name.decode() == queue:
                    found.append(Peeked(raw=raw, queue=queue, at=from_ms(reserved)))
            if len(found) >= limit:
                break
        return found[:limit]


def _conclude(args: list[Word], refused: list[Any], outcomes: list[Published]) -> None:
    """Append the outcome of each message of one answered script call."""
    outcomes_of_part = [QUEUED] * ((len(args) - _HEAD) // 3)
    for index in range(0, len(refused), 2):
        position, holder = refused[index], refused[index + 1].decode()
        # Nothing: the task id itself, which the second word of the message starts with.
        id = holder or str(args[_HEAD + 3 * position + 1]).partition("\n")[0]
        outcomes_of_part[position] = Published(PublishStatus.DUPLICATE, id)
    outcomes += outcomes_of_part


def _head(link: Link, key: str, limit: int) -> list[tuple[bytes, float]]:
    """Return the first entries of a sorted set and their scores, read page by page: a large answer holds up the server.

    What goes away at the head in between shifts the places of the rest, so each page begins behind the last entry seen.
    """
    rows: list[tuple[bytes, float]] = []
    start = 0
    while len(rows) < limit:
        asked = min(BATCH, limit - len(rows))
        page = [(row, due) for row, due in link.call("ZRANGE", key, start, start + asked - 1, "WITHSCORES")]
        seen = (rows[-1][1], rows[-1][0]) if rows else (-math.inf, b"")
        rows += [(row, due) for row, due in page if (due, row) > seen]
        if len(page) < asked:
            break
        if len(rows) < limit:
            place = link.call("ZRANK", key, page[-1][0])
            start = 0 if place is None else place + 1
    return rows


def _checked(queue: str) -> str:
    if not queue or "\0" in queue:
        raise ImproperlyConfigured(f"a queue cannot be named {queue!r}")
    return queue


def _kombu_pattern(key: str) -> str:
    """Return the expression that kombu keeps beside a topic binding."""
    words = {"*": r".*?[^\.]", "#": ".*?"}
    return "^" + r"\.".join(words.get(word, re.sub(r"([^\w*#])", r"\\\1", word)) for word in key.split(".")) + "$"
