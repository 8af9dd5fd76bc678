"""What a broker must do, and the parts it is reached by: consumers, leases, dead letters, store and channels."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import msgspec

from umbel.interfaces.values import (
    Begin,
    Delivery,
    Outgoing,
    Peeked,
    Place,
    Published,
    QueueSpec,
    Reaped,
    Settled,
    Settlement,
    Sighting,
    Stored,
    StoreLocation,
    Suspect,
    Verdict,
    Write,
)
from umbel.message import Message


class BrokerFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker can do; the engine and the conformance suite read this and never a class name."""

    lease: str  # "clock", "kernel" or "connection": what ends a dead consumer's hold
    shared: bool  # whether other processes can reach the same queues
    priorities: int  # how many levels it keeps apart; 1 if none
    schedule: bool  # holds not_before itself
    transactions: bool = False  # publish() may join the caller's database transaction
    dedupe: bool = False  # recognises a repeated task id
    atomic_results: bool = False  # can apply a result in the same step as the ack (see Broker.bind_results)
    gates: bool = False
    ends: bool = False  # keeps verdicts beside the message
    fanout: bool = False  # has a PubSub that reaches other processes
    guarded: bool = False  # has publish_if
    finds: bool = False  # has find


class Survives(enum.IntEnum):
    """What a confirmed message survives, from least to most."""

    NOTHING = 0  # a crash of whoever keeps it may lose it
    PROCESS = 1  # a crash of that process, not a power cut
    POWER_LOSS = 2  # it was on disk when it was confirmed


class Durability(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says of itself: one line for people, and what they should change."""

    survives: Survives
    text: str
    advice: Sequence[str] = ()
    warnings: Sequence[str] = ()  # what :meth:`Broker.advice` said, where it was asked


class Broker(ABC):
    """Carries messages between clients and workers. Safe to share between threads; never across a fork."""

    __slots__ = ()
    schemes: ClassVar[tuple[str, ...]]
    features: BrokerFeatures

    @abstractmethod
    def open(self) -> None:
        """Connect. A second call does nothing. Raises :exc:`OperationalError` if it cannot within the timeout."""

    @abstractmethod
    def close(self) -> None:
        """Give up every connection. A second call does nothing; a closed broker may be opened again."""

    @abstractmethod
    def declare(self, queues: Iterable[QueueSpec]) -> None:
        """Make sure that the queues exist. Never changes a queue that is there."""

    @abstractmethod
    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object | None = None, timeout: float | None = None
    ) -> Sequence[Published]:
        """Hand over the messages in one step and return one outcome each, in order.

        Returning means that the store has confirmed. Connecting, sending and that confirmation have ``timeout``
        seconds together; without it, what the driver was told when it was made. Raises :exc:`OperationalError` if
        nothing was queued and :exc:`PublishUnknown` if that cannot be known. ``transaction`` is an open transaction of
        the caller's on the same database; it is an error where ``features.transactions`` is false, never ignored.
        """

    def publish_if(self, write: Write, batch: Sequence[Outgoing], *, timeout: float | None = None) -> int | None:
        """Put a value into the store and hand over the messages, at most 500, in one step.

        Returns the value's new version. If another version was there, nothing is done and None is returned. Raises as
        :meth:`publish` does; whether it was done, the store's version then tells. Only where ``features.guarded``.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot publish on a condition")

    @abstractmethod
    def consumer(self, id: str, queues: Sequence[str]) -> Consumer:
        """Return the consumer of a registered id, with a connection of its own."""

    @abstractmethod
    def leases(self) -> Leases:
        """Return the keeper of consumer ids, with a connection of its own."""

    @abstractmethod
    def size(self, queue: str, place: Place = Place.READY) -> int:
        """Return how many messages are there now."""

    @abstractmethod
    def purge(self, queue: str, place: Place = Place.READY) -> int:
        """Discard what is there now and return how many messages that was."""

    @abstractmethod
    def peek(self, queue: str, *, place: Place = Place.READY, limit: int = 100) -> Sequence[Peeked]:
        """Return the next messages without taking them."""

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        """Return what one consumer holds, by tag; nothing where the broker cannot tell."""
        return {}

    def find(self, task_id: str, queues: Collection[str], *, timeout: float = 2.0) -> Sighting | None:
        """Return where the message of this task is, or None if it is in none of these queues, nor held, nor dead.

        Looks through what is there, page by page, and takes nothing; a driver that knows more queues may look there
        too. Raises ``TimeoutError`` when that took longer than ``timeout`` seconds. Only where ``features.finds``.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot look for one message")

    def withdraw(self, queue: str, messages: Sequence[Peeked]) -> int:
        """Take these out of the schedule, as :meth:`peek` showed them; return how many were still there.

        A driver whose schedule cannot be looked at has nothing to take out.
        """
        return 0

    @abstractmethod
    def dead(self) -> DeadLetters:
        """Return the dead letters of every queue."""

    @abstractmethod
    def pubsub(self) -> PubSub:
        """Return the channel for remote control and events."""

    def durability(self) -> Durability:
        """Return what the server or the file says about what it keeps, in one round trip or two."""
        return Durability(survives=Survives.NOTHING, text="this driver does not say what it keeps")

    def advice(self, queues: Iterable[QueueSpec], *, longest: float | None) -> Sequence[str]:
        """Return what may cost work with these queues, and tasks of up to ``longest`` seconds (None: without a limit).

        One text each, with what to do about it.
        """
        return ()

    @abstractmethod
    def store(self) -> Store | None:
        """Return the small shared store beside the queues, or None where the broker has none."""

    @abstractmethod
    def bind_results(self, location: StoreLocation | None) -> bool:
        """Learn where results live; return whether settle and begin will write them in their own atomic step.

        Where the answer is no, the engine stores a result through the backend before it settles, and settlements
        come without one. May be asked again after a reconnect, and the answer may then differ.
        """


class DeadLetters(ABC):
    """The dead letters of one broker. Safe to share between threads; needs no closing.

    :meth:`Broker.size` and :meth:`Broker.purge` count and discard them by the queue.
    """

    __slots__ = ()

    @abstractmethod
    def queues(self) -> Sequence[str]:
        """Return the names of the queues that have dead letters, sorted."""

    @abstractmethod
    def page(self, queue: str, *, before: str = "", limit: int = 100) -> Sequence[Peeked]:
        """Return dead letters, the latest first; ``before``, the key of the last one seen, asks for those behind it."""

    @abstractmethod
    def revive(self, queue: str, letters: Mapping[str, bytes | None], *, to: str = "") -> Collection[str]:
        """Move these letters, by their keys, to the tail of their queue; return the keys that were there.

        One atomic step: a letter is never in both places, and of two callers one moves it. It keeps its priority and
        starts anew: no crash counts any more and no verdict holds. Bytes beside a key replace the message's own.
        With ``to`` they go to the tail of that queue instead.
        """

    @abstractmethod
    def discard(self, queue: str, keys: Collection[str]) -> Collection[str]:
        """Delete these letters; return the keys that were there. There is no way back."""


class Consumer(ABC):
    """Reserves and settles for one registered id.

    Used by one thread at a time; only :meth:`wake` may be called from another. Every method may raise
    :exc:`OperationalError`; what was reserved stays held until it is settled, released or reaped.
    :exc:`LeaseLost` from :meth:`reserve` or :meth:`settle` says that the id was reaped: register anew.
    """

    __slots__ = ()

    @abstractmethod
    def reserve(self, limit: int) -> Sequence[Delivery]:
        """Take up to ``limit`` messages into the in-flight set; never waits.

        Ends go first, then due messages of the schedule move into their queues; queues take turns, and inside one
        queue priority is strict. A batch ends at 1 MiB.
        """

    @abstractmethod
    def begin(self, batch: Sequence[Begin]) -> Collection[str]:
        """Mark deliveries as started, in one step; return the tags that are no longer held (do not run those)."""

    @abstractmethod
    def settle(self, batch: Sequence[Settlement], *, reserve: int = 0) -> Settled:
        """End the holds in one atomic step and reserve up to ``reserve`` more in the same trip.

        A settlement whose delivery is not held is refused whole. Several requeued messages keep their order.
        """

    def watch(self, queues: Sequence[str]) -> None:
        """Read these queues from the next reserve on; what is held stays held.

        A driver that cannot do this raises ``NotImplementedError``.
        """
        raise NotImplementedError

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Block until a message may be there, :meth:`wake` is called, or the timeout (seconds) has passed.

        Returns whether it is worth reserving. May wake for nothing; never misses a message by more than 100 ms.
        """

    @abstractmethod
    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one. Safe in a signal handler."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection. Does not give messages back: :meth:`Leases.release` does."""


class Leases(ABC):
    """Registers consumers, keeps them alive, and gives back what dead ones held. Owned by the supervisor."""

    __slots__ = ()

    @abstractmethod
    def register(self, node: str) -> str:
        """Return a new consumer id, alive from now; never one that was used before."""

    @abstractmethod
    def renew(self, ids: Sequence[str]) -> Collection[str]:
        """Keep these alive in one round trip; return the ids that are lost."""

    @abstractmethod
    def release(
        self,
        id: str,
        *,
        started: Collection[str] = (),
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> int:
        """Give back all that a stopped consumer holds and forget it; return how many messages that was.

        The tags in ``started`` count as crashed deliveries, ``cause`` saying how the process died: they wait for
        ``redelivery_backoff`` before they come again, or go to the ends after ``max_deliveries`` of them. Those in
        ``verdicts`` go to the ends, and count where they had a verdict already; the rest returns to the head of its
        queue in order, its count unchanged. Safe to repeat after a failure.
        """

    @abstractmethod
    def suspects(self) -> Sequence[Suspect]:
        """Return the consumers whose lease is over.

        Unless they are surely dead, their beat must be seen again, unchanged, before a reap.
        """

    @abstractmethod
    def reap(self, suspect: Suspect) -> Reaped:
        """Take over from a dead consumer if its beat is still the same; move one batch of what it held.

        From the first step on that consumer can neither reserve nor renew. Its record is removed last.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class Store(ABC):
    """Small shared state: revokes, pauses, beat leases, unique keys. Safe to share between threads."""

    __slots__ = ()

    @abstractmethod
    def get(self, key: str) -> Stored | None:
        """Return the value and its version, or None."""

    @abstractmethod
    def put(self, key: str, value: bytes, *, if_version: int | None = None, ttl: float | None = None) -> int | None:
        """Write and return the new version; ``if_version`` (0: absent) makes it conditional, None then says no."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Remove the key and say whether it was there."""

    @abstractmethod
    def scan(self, prefix: str) -> Iterator[tuple[str, Stored]]:
        """Yield the live keys that start with the prefix."""

    @abstractmethod
    def lease(self, name: str, owner: str, ttl: float) -> int | None:
        """Take or renew a named lease for ``ttl`` seconds; return its fence (grows with each new owner) or None."""


class PubSub(ABC):
    """Tells everyone who listens now; keeps nothing. Carries remote control and events."""

    __slots__ = ()

    @abstractmethod
    def publish(self, exchange: str, message: Message, *, routing_key: str = "") -> None:
        """Send to all present subscribers of the exchange whose pattern matches."""

    @abstractmethod
    def subscribe(self, exchange: str, *, pattern: str = "#") -> Subscription:
        """Start listening; what is published after this returns is received."""

    def reply(self, exchange: str, key: str, message: Message) -> None:
        """Send to the one box that :meth:`replies` opened under this key; to nobody if it is closed by now."""
        self.publish(exchange, message, routing_key=key)

    def replies(self, exchange: str, key: str) -> Subscription:
        """Open the box of this key, an id without dots; what is sent to it after this returns is received."""
        return self.subscribe(exchange, pattern=key)


class Subscription(ABC):
    """One listener. Owned by one thread."""

    __slots__ = ()

    @abstractmethod
    def receive(self, *, timeout: float) -> Message | None:
        """Return the next message, or None when the timeout (seconds) has passed."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening."""
