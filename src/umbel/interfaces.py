"""The seams: what a broker, a result backend, an executor, a schedule and a middleware must do.

A message is in exactly one place: a queue, the schedule, a gate, one consumer's in-flight set, the ends, the dead
letters, or settled. Every method that moves a message moves it in one atomic step::

    publish ──> queue | schedule | gate
    queue, ends ──reserve──> in flight of one consumer
    in flight ──settle(ack)──> gone, with its result and follow-ups
              ──settle(requeue)──> head of its queue
              ──settle(delay)──> schedule        ──settle(park)──> gate
              ──settle(dead)──> dead letters ──revive──> tail of its queue   ──discard──> gone
              ──release, reap──> head of its queue, or the ends with a verdict
    schedule ──due──> queue                      gate ──freed──> queue

Nobody but the holder can settle: a tag names one hold of one consumer, and consumer ids are never used twice.
"""

from __future__ import annotations

import enum
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Protocol

import msgspec

from umbel.message import Message

# -- values that cross the seams ---------------------------------------------------------------------------------


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A queue and how it is bound. Brokers without exchanges use the name alone."""

    name: str
    exchange: str = ""
    exchange_type: str = "direct"
    routing_key: str = ""
    durable: bool = True
    max_priority: int | None = None
    arguments: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A message, the queue it goes to, and what must hold before it may be seen."""

    message: Message
    task_id: str
    queue: str
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0  # as Celery has it on this broker; on Redis 0 is the highest
    not_before: datetime | None = None  # waits in the schedule until then
    unique: str | None = None  # refused as a duplicate while this key is taken
    unique_ttl: float | None = None  # seconds after which the key frees itself
    gate: str | None = None  # waits at this gate until it is freed
    attempt: str = ""  # tells apart the publishes of one task id that are not repeats of each other, such as retries

    @property
    def repeat_key(self) -> str:
        """The name under which a repeat of this publish is recognised."""
        return f"{self.task_id}\n{self.attempt}" if self.attempt else self.task_id


class PublishStatus(enum.Enum):
    """What became of one message of a publish."""

    QUEUED = "queued"
    DUPLICATE = "duplicate"  # one with the same task id or unique key is there already
    REFUSED = "refused"


class Published(msgspec.Struct, frozen=True):
    """The outcome of publishing one message: its status, and for a duplicate the id that holds the key."""

    status: PublishStatus
    detail: str = ""


QUEUED = Published(PublishStatus.QUEUED)


class VerdictKind(enum.Enum):
    """Why a message was ended from outside an engine."""

    LOST = "lost"  # at most once, or on_lost="fail", and its process died
    TIME_LIMIT = "time_limit"
    TERMINATED = "terminated"
    MAX_DELIVERIES = "max_deliveries"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """An ending decided outside an engine; the next engine that reserves the message settles it as a failure."""

    kind: VerdictKind
    detail: str = ""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message held by one consumer until it is settled.

    ``raw`` is kombu's JSON envelope, except where the broker has native headers: then ``message`` is set and ``raw``
    is the body alone.
    """

    tag: str  # names this hold, not the message
    queue: str
    raw: bytes
    message: Message | None = None
    count: int = 1  # deliveries of this message so far, this one included
    fence: int = 0  # grows with every delivery of this message
    enqueued_at: datetime | None = None
    redelivered: bool = False
    verdict: Verdict | None = None


class Ack(msgspec.Struct, frozen=True):
    """Done: forget the message."""


class Requeue(msgspec.Struct, frozen=True):
    """Not done: back to the head of its queue. ``counted`` says whether this delivery counts as one that crashed."""

    counted: bool = False


class Delay(msgspec.Struct, frozen=True):
    """Not now: the same bytes go to the schedule until the moment."""

    until: datetime


class Park(msgspec.Struct, frozen=True):
    """Not now: the same bytes wait at the gate until it is freed."""

    gate: str


class Dead(msgspec.Struct, frozen=True):
    """Never: kept as a dead letter with the reason, a word such as ``undecodable``, and the detail in a sentence."""

    reason: str
    detail: str = ""
    traceback: str = ""


How = Ack | Requeue | Delay | Park | Dead
ACK = Ack()
REQUEUE = Requeue()


class ResultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored for one task id: a state to compare, and the encoded meta that only the codec reads."""

    task_id: str
    state: str
    payload: bytes
    expires: float | None = None  # seconds to keep it; None keeps it for ever


class ChordPart(msgspec.Struct, frozen=True, kw_only=True):
    """One member's contribution to a chord, in the form of Celery's keys."""

    group_id: str
    index: int | None
    task_id: str
    state: str
    payload: bytes  # the member as Celery stores it: [1, task_id, state, result], encoded
    expires: float | None = None


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How one delivery ends, with everything that must happen in the same step."""

    delivery: Delivery
    how: How = ACK
    result: ResultRecord | None = None
    publish: Sequence[Outgoing] = ()
    chord: ChordPart | None = None
    frees: Sequence[str] = ()  # gates to open by one and unique keys to give up


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What a settle answered.

    ``refused`` holds the tags that this consumer no longer held: nothing of those settlements was applied.
    ``complete`` maps the tag of a delivery that brought a chord's last part to its claim token: that delivery stays
    in flight until a further settlement publishes the body. ``deliveries`` are the newly reserved messages.
    """

    refused: Collection[str] = ()
    complete: Mapping[str, str] = msgspec.field(default_factory=dict)
    deliveries: Sequence[Delivery] = ()


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery about to run: a STARTED record to store, and whether it must never be run again."""

    delivery: Delivery
    result: ResultRecord | None = None
    once: bool = False


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer whose lease looks over, with the beat it showed: reaping needs the same beat seen twice."""

    id: str
    beat: int
    node: str = ""
    age: float = 0.0  # seconds since the lease ended, by the store's clock
    still: float = 0.0  # seconds for which this very beat has been there, by a clock of the observer's own
    dead: bool = False  # surely, without any clock: such as that the kernel has freed its lock


class Reaped(msgspec.Struct, frozen=True, kw_only=True):
    """What one reaping step did. ``left`` above zero asks for another step."""

    moved: int
    left: int


class Place(enum.Enum):
    """Where a message of a queue can be looked for."""

    READY = "ready"
    SCHEDULED = "scheduled"
    HELD = "held"
    DEAD = "dead"


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery that ended with the death of its process."""

    at: datetime
    consumer: str  # the id of the consumer that held it; it starts with the node name
    cause: str = ""  # such as "signal 9 (SIGKILL)"


class Peeked(msgspec.Struct, frozen=True, kw_only=True):
    """A message seen without being taken, and why it is where it is.

    From ``key`` on the fields are those of dead letters. A key names one dead letter of its queue and is never used
    again; ``crashes`` holds the latest deliveries that crashed, the oldest first.
    """

    raw: bytes
    queue: str
    message: Message | None = None
    at: datetime | None = None  # due moment, or when it died
    key: str = ""
    reason: str = ""
    detail: str = ""
    traceback: str = ""
    crashes: Sequence[Crash] = ()


class Stored(msgspec.Struct, frozen=True):
    """A value of the store with the version that a conditional put compares."""

    value: bytes
    version: int


class StoreLocation(msgspec.Struct, frozen=True):
    """Names one physical store, so that a broker can tell whether results live where its messages live."""

    scheme: str
    identity: str  # a server's run id, a file's real path
    database: str = ""
    prefix: str = ""


# -- broker ------------------------------------------------------------------------------------------------------


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

    @abstractmethod
    def dead(self) -> DeadLetters:
        """Return the dead letters of every queue."""

    @abstractmethod
    def pubsub(self) -> PubSub:
        """Return the channel for remote control and events."""

    def durability(self) -> Durability:
        """Return what the server or the file says about what it keeps, in one round trip or two."""
        return Durability(survives=Survives.NOTHING, text="this driver does not say what it keeps")

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
    def revive(self, queue: str, letters: Mapping[str, bytes | None]) -> Collection[str]:
        """Move these letters, by their keys, to the tail of their queue; return the keys that were there.

        One atomic step: a letter is never in both places, and of two callers one moves it. It keeps its priority and
        starts anew: no crash counts any more and no verdict holds. Bytes beside a key replace the message's own.
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


class Subscription(ABC):
    """One listener. Owned by one thread."""

    __slots__ = ()

    @abstractmethod
    def receive(self, *, timeout: float) -> Message | None:
        """Return the next message, or None when the timeout (seconds) has passed."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening."""


# -- result backend ----------------------------------------------------------------------------------------------


class ResultBackend(ABC):
    """Keeps what tasks returned. Safe to share between threads; never across a fork."""

    __slots__ = ()
    schemes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def open(self) -> None:
        """Connect. A second call does nothing."""

    @abstractmethod
    def close(self) -> None:
        """Give up every connection. A second call does nothing."""

    @abstractmethod
    def location(self) -> StoreLocation | None:
        """Return where results physically live, or None where that cannot be known."""

    @abstractmethod
    def store(self, record: ResultRecord) -> bool:
        """Store the record unless :func:`umbel.states.replaces` forbids it; say whether it was stored."""

    @abstractmethod
    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        """Return the encoded metas that exist, in one round trip.

        ``timeout`` (seconds) bounds how long a store that does not answer is waited for, where that is less than what
        the driver allows for an answer.
        """

    @abstractmethod
    def watcher(self) -> ResultWatcher:
        """Return a new watcher with a connection of its own."""

    @abstractmethod
    def forget(self, task_ids: Collection[str]) -> None:
        """Delete the results."""

    @abstractmethod
    def save_group(self, group_id: str, payload: bytes, *, expires: float | None) -> None:
        """Keep a group's encoded description."""

    @abstractmethod
    def fetch_group(self, group_id: str) -> bytes | None:
        """Return what :meth:`save_group` kept."""

    @abstractmethod
    def forget_group(self, group_id: str) -> None:
        """Delete the description of a group, and its chord counters."""

    @abstractmethod
    def chord(self, group_id: str) -> ChordStore:
        """Return the parts of one chord."""

    @abstractmethod
    def expire(self, limit: int = 500) -> int:
        """Delete up to ``limit`` records that are past their time; return how many. Zero where the store does it."""


class ChordStore(ABC):
    """The parts of one chord, counted once per member."""

    __slots__ = ()

    @abstractmethod
    def begin(self, size: int, *, expires: float | None) -> None:
        """Record how many members there are."""

    @abstractmethod
    def add(self, part: ChordPart) -> str | None:
        """Add one part; return the claim token if all are in and the body is not yet claimed by another part."""

    @abstractmethod
    def parts(self) -> Iterator[bytes]:
        """Yield the encoded parts in the order of their index, read in pages."""

    @abstractmethod
    def close(self, claim: str) -> None:
        """Mark the body as published and delete the parts."""


class ResultWatcher(ABC):
    """Tells when results change. One thread receives; any thread may add, discard and wake."""

    __slots__ = ()

    @abstractmethod
    def add(self, task_ids: Collection[str]) -> None:
        """Watch these too. A record that is there already is reported by the next :meth:`receive`."""

    @abstractmethod
    def discard(self, task_ids: Collection[str]) -> None:
        """Stop watching these."""

    @abstractmethod
    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        """Return (task id, encoded meta) of watched tasks that changed, waiting up to the timeout (seconds).

        ``patience`` (seconds) bounds how long a store that does not answer is waited for, where that is less than
        what the driver allows for an answer; :exc:`OperationalError` then. A change may be reported twice, or late by
        at most a second; a final state is never missed.
        """

    @abstractmethod
    def wake(self) -> None:
        """End a :meth:`receive` of another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


# -- executor ----------------------------------------------------------------------------------------------------


class Execution(msgspec.Struct, kw_only=True, eq=False):
    """One attempt to run one task, from its reservation to its outcome."""

    delivery: Delivery
    call: Any  # the decoded message: umbel.message.Call
    task: Any  # the registered task
    reserved_at: float = 0.0  # monotonic seconds
    started_at: float = 0.0  # monotonic seconds; 0 until it starts
    guard: Any = None  # stands around the body and lets errors in: umbel.tracing.BodyGuard


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution ended: the state for counters and logs, and the settlement to apply."""

    state: str
    settlement: Settlement
    runtime: float = 0.0


class ExecutorFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor can do to a running task."""

    inline: bool  # submit() returns when the task has ended
    soft_limits: bool
    hard_limits: bool  # by killing the process, so its mates are lost too unless it runs one at a time
    terminate: bool
    coroutines: bool  # runs many coroutine tasks at once on one loop


class Executor(ABC):
    """Runs executions inside one process and never touches the broker."""

    __slots__ = ()
    features: ClassVar[ExecutorFeatures]

    @abstractmethod
    def start(self, run: Runner, done: Callable[[Execution, Outcome], None]) -> None:
        """Get ready. ``done`` is called once for each submitted execution, from any thread."""

    @abstractmethod
    def free(self) -> int:
        """Return how many executions could start right now."""

    @abstractmethod
    def submit(self, execution: Execution) -> None:
        """Start one execution; raises :exc:`PoolFull` when nothing is free."""

    @abstractmethod
    def stop(self, *, timeout: float) -> Sequence[Execution]:
        """Let running executions finish until the timeout (seconds); return those that did not."""


class Runner(Protocol):
    """Runs one task to its outcome; never raises for what user code does."""

    def run(self, execution: Execution) -> Outcome:
        """Run it in this thread."""
        ...

    async def run_async(self, execution: Execution) -> Outcome:
        """Run a coroutine task on the running loop."""
        ...


# -- the small ones ----------------------------------------------------------------------------------------------


class Schedule(ABC):
    """When something recurs. A pure value: hashable, comparable, no clock of its own."""

    __slots__ = ()

    @abstractmethod
    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first due time strictly after the moment, or None if there is none."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""


class Middleware:
    """Wraps publishing and executing. Override what you need; the rest passes through."""

    def publish(
        self, batch: Sequence[Outgoing], call_next: Callable[[Sequence[Outgoing]], Sequence[Published]]
    ) -> Sequence[Published]:
        """Wrap the publishing of a batch."""
        return call_next(batch)

    def execute(self, execution: Execution, call_next: Callable[[Execution], Outcome]) -> Outcome:
        """Wrap one execution."""
        return call_next(execution)

    async def execute_async(
        self, execution: Execution, call_next: Callable[[Execution], Awaitable[Outcome]]
    ) -> Outcome:
        """Wrap one execution of a coroutine task."""
        return await call_next(execution)


class Clock(Protocol):
    """The only source of time, and the only way to wait for it."""

    def now(self) -> datetime:
        """Return the wall time as an aware UTC datetime."""
        ...

    def time(self) -> float:
        """Return the wall time in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Block until the event is set or the timeout (seconds) has passed; return whether it is set."""
        ...
