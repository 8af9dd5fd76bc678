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

from umbel.interfaces.backend import ChordStore, ResultBackend, ResultWatcher
from umbel.interfaces.broker import (
    Broker,
    BrokerFeatures,
    Consumer,
    DeadLetters,
    Durability,
    Leases,
    PubSub,
    Store,
    Subscription,
    Survives,
)
from umbel.interfaces.clock import Clock
from umbel.interfaces.executor import Execution, Executor, ExecutorFeatures, Outcome, Runner
from umbel.interfaces.middleware import Middleware
from umbel.interfaces.values import (
    ACK,
    QUEUED,
    REQUEUE,
    Ack,
    Begin,
    ChordPart,
    Crash,
    Dead,
    Delay,
    Delivery,
    How,
    Outgoing,
    Park,
    Peeked,
    Place,
    Published,
    PublishStatus,
    QueueSpec,
    Reaped,
    Requeue,
    ResultRecord,
    Settled,
    Settlement,
    Sighting,
    Stored,
    StoreLocation,
    Suspect,
    Verdict,
    VerdictKind,
    Write,
)

__all__ = [
    "ACK",
    "Ack",
    "Begin",
    "Broker",
    "BrokerFeatures",
    "ChordPart",
    "ChordStore",
    "Clock",
    "Consumer",
    "Crash",
    "Dead",
    "DeadLetters",
    "Delay",
    "Delivery",
    "Durability",
    "Execution",
    "How",
    "Executor",
    "ExecutorFeatures",
    "Leases",
    "Middleware",
    "Outcome",
    "Outgoing",
    "Park",
    "Peeked",
    "Place",
    "PubSub",
    "PublishStatus",
    "Published",
    "QUEUED",
    "QueueSpec",
    "REQUEUE",
    "Reaped",
    "Requeue",
    "ResultBackend",
    "ResultRecord",
    "ResultWatcher",
    "Runner",
    "Settled",
    "Settlement",
    "Sighting",
    "Store",
    "StoreLocation",
    "Stored",
    "Subscription",
    "Survives",
    "Suspect",
    "Verdict",
    "VerdictKind",
    "Write",
]
