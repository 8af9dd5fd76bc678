"""A broker at two URLs: ``broker_read_url`` for those who consume, ``broker_write_url`` for those who publish."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from umbel.interfaces import (
    Broker,
    Consumer,
    DeadLetters,
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
    Subscription,
    Write,
)
from umbel.message import Message


class SplitBroker(Broker):
    """Reads at one broker and publishes at another. Each is connected to when it is first needed.

    They are meant to be two ways to the same messages. What follows from a task (a retry, a callback, the next link
    of a chain) is published where the task was read: in one step with its ack, which two servers could not share.
    """

    __slots__ = ("_lock", "_read", "_reading", "_write", "features")

    def __init__(self, read: Broker, write: Broker) -> None:
        self._read = read
        self._write = write
        self._reading = False
        self._lock = threading.Lock()
        publishing = write.features
        self.features = msgspec.structs.replace(
            read.features, dedupe=publishing.dedupe, transactions=publishing.transactions
        )

    @property
    def _reader(self) -> Broker:
        # A program that only publishes may have no way to the other one.
        with self._lock:
            if not self._reading:
                self._read.open()
                self._reading = True
        return self._read

    def open(self) -> None:
        """Connect to the one that is written to."""
        self._write.open()

    def close(self) -> None:
        """Give up both."""
        with self._lock:
            self._reading = False
        self._read.close()
        self._write.close()

    def declare(self, queues: Iterable[QueueSpec]) -> None:
        """Make sure that the queues exist at both."""
        specs = list(queues)
        self._reader.declare(specs)
        self._write.declare(specs)

    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object | None = None, timeout: float | None = None
    ) -> Sequence[Published]:
        """Hand the messages to the one that is written to."""
        return self._write.publish(batch, transaction=transaction, timeout=timeout)

    def publish_if(self, write: Write, batch: Sequence[Outgoing], *, timeout: float | None = None) -> int | None:
        """Do it at the one that is read, which has the store: two servers could not do it in one step."""
        return self._reader.publish_if(write, batch, timeout=timeout)

    def consumer(self, id: str, queues: Sequence[str]) -> Consumer:
        """Return a consumer of the one that is read."""
        return self._reader.consumer(id, queues)

    def leases(self) -> Leases:
        """Return the leases of the one that is read."""
        return self._reader.leases()

    def size(self, queue: str, place: Place = Place.READY) -> int:
        """Count at the one that is read."""
        return self._reader.size(queue, place)

    def purge(self, queue: str, place: Place = Place.READY) -> int:
        """Discard at the one that is read."""
        return self._reader.purge(queue, place)

    def peek(self, queue: str, *, place: Place = Place.READY, limit: int = 100) -> Sequence[Peeked]:
        """Look into the one that is read."""
        return self._reader.peek(queue, place=place, limit=limit)

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        """Return what one consumer holds."""
        return self._reader.held(consumer)

    def find(self, task_id: str, queues: Collection[str], *, timeout: float = 2.0) -> Sighting | None:
        """Look for the message of a task in the one that is read."""
        return self._reader.find(task_id, queues, timeout=timeout)

    def advice(self, queues: Iterable[QueueSpec], *, longest: float | None) -> Sequence[str]:
        """Return the advice of the one that is read."""
        return self._reader.advice(queues, longest=longest)

    def dead(self) -> DeadLetters:
        """Return the dead letters of the one that is read."""
        return self._reader.dead()

    def pubsub(self) -> PubSub:
        """Return a channel that publishes at the one and subscribes at the other."""
        return SplitPubSub(self._write.pubsub(), self._subscribing)

    def _subscribing(self) -> PubSub:
        return self._reader.pubsub()

    def store(self) -> Store | None:
        """Return the store of the one that is read: workers keep what others may know there."""
        return self._reader.store()

    def bind_results(self, location: StoreLocation | None) -> bool:
        """Let the one that is read write results, where they live with it."""
        return self._reader.bind_results(location)


class SplitPubSub(PubSub):
    """Publishes at one broker and subscribes at another."""

    __slots__ = ("_subscribing", "_write")

    def __init__(self, write: PubSub, subscribing: Callable[[], PubSub]) -> None:
        self._write = write
        self._subscribing = subscribing

    def publish(self, exchange: str, message: Message, *, routing_key: str = "") -> None:
        """Send to all present subscribers."""
        self._write.publish(exchange, message, routing_key=routing_key)

    def subscribe(self, exchange: str, *, pattern: str = "#") -> Subscription:
        """Start listening."""
        return self._subscribing().subscribe(exchange, pattern=pattern)

    def reply(self, exchange: str, key: str, message: Message) -> None:
        """Send to one box."""
        self._write.reply(exchange, key, message)

    def replies(self, exchange: str, key: str) -> Subscription:
        """Open a box."""
        return self._subscribing().replies(exchange, key)
