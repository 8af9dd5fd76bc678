"""The values that cross the seams."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from umbel.message import Message


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
    gate: str | None = None  # waits at this gate until it is freed, and then for not_before, if that is later
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
    """Never: kept as a dead letter with the reason, a word such as ``undecodable``, and the detail in a sentence.

    ``kept`` stands in for the message where that is too large to be kept: an envelope without its body, or the first
    bytes of what is no envelope.
    """

    reason: str
    detail: str = ""
    traceback: str = ""
    kept: bytes | None = None


How = Ack | Requeue | Delay | Park | Dead
ACK = Ack()
REQUEUE = Requeue()


class ResultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored for one task id: a state to compare, and the encoded meta that only the codec reads."""

    task_id: str
    state: str
    payload: bytes
    expires: float | None = None  # seconds to keep it; None keeps it for ever
    reply_to: str = ""  # the caller's address, for backends that send results instead of storing them


class ChordPart(msgspec.Struct, frozen=True, kw_only=True):
    """One member's contribution to a chord, in the form of Celery's keys.

    A member is a task id at an index: Celery gives the members of a group inside the header, and those that are added
    later, an index that others have too.
    """

    group_id: str
    index: int | None
    task_id: str
    state: str
    payload: bytes  # the member as Celery stores it: [1, task_id, state, result], encoded
    expires: float | None = None
    ordered: bool = True  # whether the body gets the values by index, and not as they come in
    note: bytes = b""  # what an audit needs to complete the chord, for backends that share chords with others


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How one delivery ends, with everything that must happen in the same step."""

    delivery: Delivery
    how: How = ACK
    result: ResultRecord | None = None
    results: Sequence[ResultRecord] = ()  # of tasks that will never run, since this one failed before them
    publish: Sequence[Outgoing] = ()
    chord: ChordPart | None = None
    parts: Sequence[ChordPart] = ()  # further ones of the same chord, counted before it
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


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """Where the message of one task was seen: a moment later it may be elsewhere.

    ``seen.at`` is the due moment of one that is scheduled, the moment of its death for a dead letter and, where the
    broker knows it, the moment of the reservation for one that is held; ``seen.crashes`` are its crashed deliveries.
    """

    place: Literal["ready", "scheduled", "gate", "held", "ends", "dead"]
    seen: Peeked
    position: int = 0  # of one that is ready: how many go before it, plus one
    of: int = 0  # how many are ready in that queue
    consumer: str = ""  # of one that is held: who holds it; empty where another system's worker does
    node: str = ""  # and its node name
    gate: str = ""
    verdict: Verdict | None = None


class Stored(msgspec.Struct, frozen=True):
    """A value of the store with the version that a conditional put compares."""

    value: bytes
    version: int


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A conditional put, as :meth:`Broker.publish_if` makes it."""

    key: str
    value: bytes
    if_version: int  # 0: absent


class StoreLocation(msgspec.Struct, frozen=True):
    """Names one physical store, so that a broker can tell whether results live where its messages live."""

    scheme: str
    identity: str  # a server's run id, a file's real path
    database: str = ""
    prefix: str = ""
