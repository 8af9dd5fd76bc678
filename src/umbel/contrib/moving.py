"""Taking messages out of the queues of one broker and giving them to another, or to another queue.

A message is taken away only when the other side has confirmed it: after a crash it may be in both places, and never in
none. What is looked at and not wanted goes back to where it was.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from umbel.drivers import open_broker, scheme_of, split
from umbel.exceptions import BrokerError, CeleryError
from umbel.interfaces import Broker, Delivery, Outgoing, Peeked, Place, PublishStatus, QueueSpec, Settlement
from umbel.message import Message, decode_envelope, read_headers
from umbel.serialization import dumps, loads

T = TypeVar("T")

_BATCH: Final = 100
_LOOK_EVERY: Final = 0.5
#: Headers that are between Umbel's own clients and workers.
_OWN: Final = "umbel-"


#: What tells which queues there are, by the scheme of the URL. RabbitMQ tells it to nobody who speaks AMQP.
_LISTINGS: Final = {
    "sqlite": "umbel.brokers.sqlite.listing",
    **dict.fromkeys(("redis", "rediss", "redis+socket", "sentinel"), "umbel.brokers.redis.listing"),
}


class Found(msgspec.Struct, frozen=True):
    """A message of a task, in the queue where it was found."""

    message: Message
    queue: str
    task: str
    id: str
    due: datetime | None = None  # waits in the schedule until then

    def outgoing(self, spec: QueueSpec | None = None) -> Outgoing:
        """Return the message as it is, for the same queue or another."""
        queue = self.queue if spec is None else spec.name
        priority = self.message.properties.get("priority")
        through = spec is not None and spec.exchange_type != "direct"
        return Outgoing(
            message=self.message,
            task_id=self.id,
            queue=queue,
            exchange=spec.exchange if spec is not None and through else "",
            routing_key=spec.routing_key if spec is not None and through else queue,
            priority=priority if type(priority) is int else 0,
        )


Decide = Callable[[Found], Outgoing | None]


class Refused(BrokerError):
    """Raised when the other broker does not take a message; it is still where it was."""


def open_other(url: Any, options: Mapping[str, Any] | None = None) -> Broker:
    """Return the broker of a URL, connected, that takes every message: also one whose id it has seen lately.

    A retry has the id of the task that it is one of, and a message that is moved within one server is no repeat.
    """
    broker = open_broker(url, options={**(options or {}), "publish_dedupe": 0.0})
    broker.open()
    return broker


def queues_of(url: str, options: Mapping[str, Any] | None = None) -> Sequence[str] | None:
    """Return the queues of a broker that have messages, also those that no app declares; None where it cannot tell.

    Raises :exc:`OperationalError`.
    """
    module = _LISTINGS.get(scheme_of(split(url)[0]))
    if module is None:
        return None
    found: Sequence[str] = importlib.import_module(module).queues(url, options or {})
    return found


def found_in(queue: str, raw: bytes, message: Message | None, due: datetime | None = None) -> Found | None:
    """Return what was found, or None where it is not the message of a task."""
    try:
        message = message or decode_envelope(raw)
        task, task_id = read_headers(message)
    except CeleryError:
        return None
    return Found(message, queue, task, task_id, due)


def publish(broker: Broker, outgoings: Sequence[Outgoing]) -> None:
    """Hand messages over. Raises :exc:`Refused` for the first that is not taken."""
    for outgoing, outcome in zip(outgoings, broker.publish(outgoings), strict=True):
        if outcome.status is not PublishStatus.QUEUED:
            raise Refused(f"{outgoing.task_id} of {outgoing.queue!r} was not taken: {outcome.detail}")


class StopFiltering(Exception):
    """Raised by what decides, when nothing more is to be looked at."""


class Moving:
    """One run over the queues of a source; ``decide`` says of each message where it goes, or None: it stays."""

    def __init__(
        self,
        source: Broker,
        destination: Broker,
        queues: Iterable[str],
        decide: Decide,
        *,
        limit: int | None = None,
        patience: float = 0.0,
        most: int | None = None,
    ) -> None:
        """Prepare.

        :param limit: at most so many are handed over.
        :param patience: seconds to wait for more messages once there are none.
        :param most: at most so many are looked at: as many as there were, where they might come back.
        """
        self._source = source
        self._destination = destination
        self._queues = list(queues)
        self._decide = decide
        self._left = limit
        self._most = most
        self._patience = patience

    # -- what is ready -------------------------------------------------------------------------------------------

    def copy(self) -> Iterator[Found]:
        """Hand over what is wanted and leave it where it was; yield each.

        On RabbitMQ all of it is taken and given back, so that it counts as delivered once.
        """
        for name in self._queues:
            everything = self._source.peek(name, limit=self._source.size(name))
            for batch in _batches(everything):
                yield from self._hand_over([(found_in(name, each.raw, each.message), each) for each in batch])

    def move(self) -> Iterator[Found]:
        """Hand over what is wanted and take it away; yield each."""
        leases = self._source.leases()
        id = leases.register("umbel-migrate")
        consumer = self._source.consumer(id, self._queues)
        try:
            yield from self._drain(leases, id, consumer)
        finally:
            leases.release(id)
            consumer.close()
            leases.close()

    def _drain(self, leases: Any, id: str, consumer: Any) -> Iterator[Found]:
        def take_away(wanted: Sequence[Delivery]) -> None:
            consumer.settle([Settlement(delivery=delivery) for delivery in wanted])

        quiet_since = time.monotonic()
        while self._left != 0 and self._most != 0:
            deliveries = consumer.reserve(min(n for n in (_BATCH, self._left, self._most) if n is not None))
            if leases.renew([id]):
                raise BrokerError("this was silent for too long: what it held, the workers have again")
            if not deliveries:
                if time.monotonic() - quiet_since >= self._patience:
                    return
                consumer.wait(min(_LOOK_EVERY, max(self._patience, 0.01)))
                continue
            quiet_since = time.monotonic()
            self._most = None if self._most is None else self._most - len(deliveries)
            pairs = [(found_in(each.queue, each.raw, each.message), each) for each in deliveries]
            yield from self._hand_over(pairs, take_away)

    # -- what waits for its time ---------------------------------------------------------------------------------

    def scheduled(self, *, keep: bool) -> Iterator[Found]:
        """Do the same with what waits for its time, unless the broker shows none of it; yield each.

        What falls due just now, and is taken by a worker while it is handed over, is in both places.
        """
        for name in self._queues:

            def take_away(wanted: Sequence[Peeked], name: str = name) -> None:
                if not keep:
                    self._source.withdraw(name, wanted)

            for batch in self._waiting(name):
                pairs = [(found_in(name, each.raw, each.message, each.at), each) for each in batch]
                yield from self._hand_over(pairs, take_away)

    def _waiting(self, name: str) -> Iterator[Sequence[Peeked]]:
        """Yield what waits for its time in one queue, each once, part by part from the head.

        Each part is read when it is asked for: what falls due while those before it are handed over is not in it.
        """
        left, limit = self._source.size(name, Place.SCHEDULED), _BATCH
        seen: set[int] = set()
        while left > 0 and self._left != 0:
            shown = self._source.peek(name, place=Place.SCHEDULED, limit=limit)
            fresh = [each for each in shown if hash((each.at, each.raw)) not in seen][:left]
            left -= len(fresh)
            for batch in _batches(fresh):
                seen.update(hash((each.at, each.raw)) for each in batch)
                yield batch
            if len(shown) < limit:
                if not fresh:
                    return
            elif len(fresh) < limit / 2:
                # What stays is at the head, and shown again.
                limit *= 2

    def _hand_over(
        self, pairs: Iterable[tuple[Found | None, T]], then: Callable[[Sequence[T]], None] = lambda wanted: None
    ) -> Iterator[Found]:
        chosen: list[tuple[Found, T, Outgoing]] = []
        for found, origin in pairs:
            if self._left is not None and len(chosen) >= self._left:
                break
            try:
                outgoing = self._decide(found) if found is not None else None
            except StopFiltering:
                self._left = len(chosen)
                break
            if found is not None and outgoing is not None:
                chosen.append((found, origin, outgoing))
        if chosen:
            publish(self._destination, [outgoing for _, _, outgoing in chosen])
            then([origin for _, origin, _ in chosen])
        if self._left is not None:
            self._left -= len(chosen)
        yield from (found for found, _, _ in chosen)


def _batches(everything: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(everything), _BATCH):
        yield everything[first : first + _BATCH]


def for_celery(found: Found) -> Found | None:
    """Return the message as Celery's workers want it: it says itself when it is due, and has nothing of ours.

    None for one that is due later and cannot say so: of Celery's old protocol, in something else than JSON.
    """
    message = found.message
    headers = {name: value for name, value in message.headers.items() if not name.startswith(_OWN)}
    if found.due is None:
        return Found(message.replace(headers=headers), found.queue, found.task, found.id)
    # A retry or a limit may have put it off since it was sent: what the schedule says holds.
    eta = found.due.isoformat()
    if "task" in headers:
        return Found(message.replace(headers={**headers, "eta": eta}), found.queue, found.task, found.id)
    if message.content_type != "application/json" or "compression" in headers:
        return None
    _, _, body = dumps({**loads(message.body, message.content_type, message.content_encoding), "eta": eta}, "json")
    return Found(message.replace(headers=headers, body=body), found.queue, found.task, found.id)
