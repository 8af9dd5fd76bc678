"""The RabbitMQ broker: where its parts meet, and publishing and looking at queues."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import parse_url
from umbel.brokers.rabbitmq.advice import advice
from umbel.brokers.rabbitmq.consumer import RabbitConsumer
from umbel.brokers.rabbitmq.leases import RabbitLeases
from umbel.brokers.rabbitmq.letters import RabbitDeadLetters, peeked
from umbel.brokers.rabbitmq.link import ChannelClosed, Link
from umbel.brokers.rabbitmq.messages import message_of
from umbel.brokers.rabbitmq.notes import Notes
from umbel.brokers.rabbitmq.posting import Addresses, PostOffice
from umbel.brokers.rabbitmq.pubsub import RabbitPubSub
from umbel.brokers.rabbitmq.settling import Settler, letter_of
from umbel.brokers.rabbitmq.started import Started
from umbel.brokers.rabbitmq.topology import NOT_FOUND, Topology
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BrokerError, ImproperlyConfigured
from umbel.interfaces import (
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
    StoreLocation,
    Survives,
)

logger = logging.getLogger("umbel.brokers.rabbitmq")

KEEP_DEAD: Final = 10_000
CONSUMER_TIMEOUT: Final = 7 * 86400.0  # seconds
BACKOFF: Final = (1.0, 5.0, 30.0, 120.0)  # seconds before the 3rd, 4th, … delivery
_ANSWER: Final = 10.0
_LEVELS: Final = 30.0  # seconds for the 28 queues of the delays, which need not be there to go on


class RabbitBroker(Broker):
    """Messages in RabbitMQ's queues, declared, routed and written as Celery does it.

    ``options``: ``max_deliveries``, ``redelivery_backoff`` (seconds before the 3rd, 4th, … delivery),
    ``publish_timeout``, ``dead_letters`` (how many to keep per queue), ``heartbeat`` and ``consumer_timeout``
    (seconds), ``socket_connect_timeout``, ``login_method``, ``ssl`` (True or a dict), ``delay_queue_type``
    (``quorum`` or ``classic``), ``alternates`` and ``failover_strategy``; and ``find_queue``, a function from a name to
    the :class:`QueueSpec` of a queue that is published to and was never declared here.
    """

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_backoff",
        "_clock",
        "_consumer_timeout",
        "_consumers",
        "_letters",
        "_max_deliveries",
        "_notes",
        "_office",
        "_settler",
        "_topology",
    )
    schemes: ClassVar[tuple[str, ...]] = ("amqp", "amqps", "pyamqp")
    #: Priorities are those of each queue (``x-max-priority``). Delays are held by the server, and cannot be looked at.
    features = BrokerFeatures(lease="connection", shared=True, priorities=1, schedule=False, fanout=True)

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        options = options or {}
        urls = [url, *options.get("alternates", ())]
        order = options.get("failover_strategy") or _round
        self._addresses = Addresses([parse_url(each, options) for each in urls], order)
        self._clock = clock
        most = options.get("max_deliveries", 5)
        self._max_deliveries = None if most is None else int(most)
        self._backoff = [float(pause) for pause in options.get("redelivery_backoff", BACKOFF) or ()]
        timeout = options.get("consumer_timeout", CONSUMER_TIMEOUT)
        self._consumer_timeout = float(timeout) if timeout else None
        self._topology = Topology(
            options.get("find_queue"), delay_type=str(options.get("delay_queue_type") or "quorum")
        )
        patience = float(options.get("publish_timeout", 2.0))
        self._office = PostOffice(self._addresses, self._topology, name="umbel:publisher", patience=patience)
        self._notes = Notes(self._office)
        keep = int(options.get("dead_letters", KEEP_DEAD))
        self._letters = RabbitDeadLetters(self._office, self._topology, clock, keep=keep)
        self._settler = Settler(self._office, self._notes, self._letters, clock)
        self._consumers: WeakValueDictionary[str, RabbitConsumer] = WeakValueDictionary()

    def open(self) -> None:
        """Connect."""
        if self._office.closed:
            self._office.open()

    def close(self) -> None:
        """Give up the shared connections. Consumers and subscriptions have their own."""
        self._office.close()

    def declare(self, queues: Iterable[QueueSpec]) -> None:
        """Declare queues, exchanges and bindings. A queue that is there with other arguments is used as it is."""
        specs = [checked(spec) for spec in queues]
        self._topology.learn(specs)
        if not specs:
            return
        topology = self._topology
        with self._office.post(_ANSWER) as post:
            for spec in specs:
                topology.declare(post.link, spec, timeout=_ANSWER)
            try:
                topology.declare_levels(post.link, timeout=_LEVELS)
                for spec in specs:
                    topology.renew_delays(post.link, spec.name, timeout=_ANSWER)
            except BrokerError as error:
                # Most workers do without. Whoever delays tries it again, and is told.
                logger.warning("consumer: Delayed messages are not provided for: %s", error)
            for spec in specs:
                topology.ensure_celery_delays(post.link, spec, timeout=_ANSWER)

    # -- publish -------------------------------------------------------------------------------------------------

    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object | None = None, timeout: float | None = None
    ) -> Sequence[Published]:
        """Publish all and wait for the server's confirmations."""
        if transaction is not None:
            raise ValueError("RabbitMQ cannot join a database transaction; publish after it has committed")
        if not batch:
            return []
        outcomes: list[Published | None] = [None] * len(batch)
        places, letters = [], []
        for place, outgoing in enumerate(batch):
            try:
                letters.append(letter_of(outgoing, self._clock))
                places.append(place)
            except BrokerError as error:
                outcomes[place] = Published(PublishStatus.REFUSED, str(error))
        if letters:
            for place, outcome in zip(places, self._office.publish(letters, timeout), strict=True):
                outcomes[place] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    # -- parts ---------------------------------------------------------------------------------------------------

    def consumer(self, id: str, queues: Sequence[str]) -> RabbitConsumer:
        """Return the consumer of a registered id. It connects when it is first used."""
        if not queues:
            raise ImproperlyConfigured("a consumer needs at least one queue")
        consumer = RabbitConsumer(
            self._addresses,
            self._topology,
            self._notes,
            self._settler,
            id=id,
            queues=queues,
            max_deliveries=self._max_deliveries,
            backoff=self._backoff,
            consumer_timeout=self._consumer_timeout,
        )
        self._consumers[id] = consumer
        return consumer

    def leases(self) -> RabbitLeases:
        """Return the giver of consumer ids."""
        return RabbitLeases(self._notes, Started(self._office), self._end)

    def _end(self, id: str) -> int:
        consumer = self._consumers.pop(id, None)
        if consumer is None:
            return 0
        held = len(consumer.holding())
        consumer.close()
        return held

    def dead(self) -> RabbitDeadLetters:
        """Return the dead letters of every queue."""
        return self._letters

    def pubsub(self) -> RabbitPubSub:
        """Return the channel for remote control and events."""
        return RabbitPubSub(self._addresses, self._office)

    def store(self) -> None:
        """Return None: RabbitMQ keeps messages alone."""
        return

    def bind_results(self, location: StoreLocation | None) -> bool:
        """Return False: results are stored first, elsewhere."""
        return False

    def durability(self) -> Durability:
        """Return what the server keeps of what it has confirmed."""
        with self._office.post() as post:
            version = post.link.server.get("version", "of unknown version")
        return Durability(
            survives=Survives.POWER_LOSS,
            text=f"RabbitMQ {version}: confirmed messages in durable queues are on its disk",
        )

    def advice(self, queues: Iterable[QueueSpec], *, longest: float | None) -> Sequence[str]:
        """Return what the queues' delivery limits and the server's patience with long tasks may cost."""
        with self._office.post() as post:
            version = str(post.link.server.get("version") or "")
        return advice(version, queues, longest, timeout=self._consumer_timeout, most=self._max_deliveries)

    def connect(self, name: str, *, timeout: float = _ANSWER) -> Link:
        """Return a connection of the caller's own, to close after use; the server lists it under this name."""
        return self._addresses.connect(name, timeout=timeout)

    # -- looking -------------------------------------------------------------------------------------------------

    def size(self, queue: str, place: Place = Place.READY) -> int:
        """Return how many messages are there now. Held: by this process. Scheduled: unknown, so zero."""
        if place is Place.HELD:
            return len(self._held(queue))
        if place is Place.DEAD:
            return self._letters.size(queue)
        if place is Place.SCHEDULED:
            return 0
        return self._ask(queue, frames.QUEUE_DECLARE, frames.declare_queue(queue, passive=True), 1)

    def purge(self, queue: str, place: Place = Place.READY) -> int:
        """Discard what is there now; ValueError for what is held. What is delayed nobody can get at: it stays."""
        if place is Place.HELD:
            raise ValueError("held messages cannot be purged: their consumers are working on them")
        if place is Place.SCHEDULED:
            return 0
        if place is Place.DEAD:
            return self._letters.purge(queue)
        return self._ask(queue, frames.QUEUE_PURGE, (0, queue, False), 0)

    def _ask(self, queue: str, name: frames.Method, args: tuple[Any, ...], index: int) -> int:
        """Ask something that is answered with a number; zero where there is no such queue."""
        answer = name[0], name[1] + 1
        with self._office.post(_ANSWER) as post:
            channel = post.link.channel(timeout=_ANSWER)
            try:
                _, found = channel.call(name, args, answer, timeout=_ANSWER)
            except ChannelClosed as error:
                if error.code == NOT_FOUND:
                    return 0
                raise
            channel.close()
            return int(found[index])

    def peek(self, queue: str, *, place: Place = Place.READY, limit: int = 100) -> Sequence[Peeked]:
        """Return the next messages. They are taken and given back at once, so they count as delivered before."""
        if limit <= 0 or place is Place.SCHEDULED:
            return []
        if place is Place.DEAD:
            return self._letters.page(queue, limit=limit)
        if place is Place.HELD:
            return [peeked(queue, held.message) for held in self._held(queue)[:limit]]
        found: list[Peeked] = []
        with self._office.post(_ANSWER) as post:
            channel = post.link.channel(timeout=_ANSWER)
            try:
                while len(found) < limit:
                    name, content = channel.call(frames.GET, (0, queue, False), frames.GET_OK, frames.GET_EMPTY)
                    if name == frames.GET_EMPTY:
                        break
                    number, again, exchange, key, _ = content.args
                    message, _ = message_of(content._replace(args=("", number, again, exchange, key)), queue)
                    self._notes.gave_back(Notes.key(queue, message))
                    found.append(peeked(queue, message))
            except ChannelClosed as error:
                if error.code != NOT_FOUND:
                    raise
            channel.close()
        return found

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        """Return what a consumer of this process holds, by tag; of others nothing is known."""
        found = self._consumers.get(consumer)
        return {} if found is None else {tag: peeked(held.queue, held.message) for tag, held in found.holding().items()}

    def _held(self, queue: str) -> list[Any]:
        return [
            held for each in list(self._consumers.values()) for held in each.holding().values() if held.queue == queue
        ]


def checked(spec: QueueSpec) -> QueueSpec:
    """Return the queue, if AMQP can carry its name."""
    if not spec.name or len(spec.name.encode()) > 255:
        raise ImproperlyConfigured(f"a queue cannot be named {spec.name!r}: AMQP allows 1 to 255 bytes")
    return spec


def _round(addresses: Sequence[Any]) -> Any:
    import itertools

    return itertools.cycle(addresses)
