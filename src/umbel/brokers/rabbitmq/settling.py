"""How holds end, where one step is not possible: what follows is published and confirmed, and then the hold is ended.

A crash in between repeats the task, and what follows from it; the other order would lose it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from umbel.brokers.rabbitmq.held import Held
from umbel.brokers.rabbitmq.intake import ANSWER
from umbel.brokers.rabbitmq.letters import RabbitDeadLetters
from umbel.brokers.rabbitmq.messages import properties_of
from umbel.brokers.rabbitmq.notes import Notes
from umbel.brokers.rabbitmq.posting import Letter, PostOffice
from umbel.brokers.rabbitmq.topology import delay_route
from umbel.exceptions import BrokerError, EncodeError, OperationalError, PublishUnknown
from umbel.interfaces import QUEUED, Clock, Dead, Delay, Outgoing, Park, Requeue, Settlement
from umbel.message import Message

logger = logging.getLogger("umbel.brokers.rabbitmq")

NO_GATES = "RabbitMQ has no gates: a limit of how many run at once needs another broker"
NO_UNIQUE = "RabbitMQ does not recognise repeats: unique tasks need another broker"


def letter_of(outgoing: Outgoing, clock: Clock) -> Letter:
    """Return what is to be published. Raises :exc:`BrokerError` for what RabbitMQ cannot do."""
    if outgoing.gate is not None:
        raise BrokerError(NO_GATES)
    if outgoing.unique is not None:
        raise BrokerError(NO_UNIQUE)
    properties = properties_of(outgoing.message, priority=outgoing.priority)
    exchange = outgoing.exchange
    key = outgoing.routing_key if exchange else outgoing.queue
    delay = _seconds(outgoing.not_before, clock)
    if not delay:
        return Letter.of(outgoing.task_id, outgoing.queue, exchange, key, properties, outgoing.message.body)
    return _delayed(outgoing.task_id, outgoing.queue, delay, properties, outgoing.message)


def _seconds(until: datetime | None, clock: Clock) -> int:
    return max(math.ceil((until - clock.now()).total_seconds()), 0) if until is not None else 0


def _delayed(id: str, queue: str, delay: int, properties: dict[str, Any], message: Message) -> Letter:
    # Running out on the way would end the delay early; whoever takes the message looks at its expiry.
    properties.pop("expiration", None)
    exchange, key = delay_route(queue, delay)
    return Letter.of(id, queue, exchange, key, properties, message.body, delayed=True)


class Settler:
    """Publishes what settlements carry. Safe to share between threads."""

    def __init__(self, office: PostOffice, notes: Notes, letters: RabbitDeadLetters, clock: Clock) -> None:
        self._office = office
        self._notes = notes
        self._letters = letters
        self._clock = clock

    def conclude(
        self, find: Callable[[str], Held | None], batch: Sequence[Settlement]
    ) -> tuple[set[str], list[Held], list[Held]]:
        """Publish what the settlements carry; return the tags that are not held, the holds to end, those to give back.

        ``find`` returns what a tag holds.
        """
        refused: set[str] = set()
        done: list[Held] = []
        back: list[Held] = []
        mail: list[Letter] = []
        owners: list[Held] = []
        seen: set[str] = set()
        for settlement in batch:
            held = find(settlement.delivery.tag)
            if held is None or held.tag in seen:
                refused.add(settlement.delivery.tag)
                continue
            seen.add(held.tag)
            if held.concluded:
                # An error came between this and its end, so it is settled again.
                done.append(held)
                continue
            if settlement.result is not None:
                raise BrokerError("RabbitMQ keeps no results: bind_results() said no, so store them first")
            letters = self._letters_of(settlement, held)
            mail += letters
            owners += [held] * len(letters)
            if isinstance(settlement.how, Requeue) and not letters:
                back.append(held)
            else:
                done.append(held)
            if isinstance(settlement.how, Dead):
                self._letters.index(held.queue)
        if mail:
            self._publish(mail, owners)
        for held in done:
            held.concluded = True
        return refused, done, back

    def postpone(self, held: Held, seconds: float) -> bool:
        """Have the message come again later, and not sooner; False where that cannot be: then it must be taken now."""
        properties = properties_of(held.message, priority=held.priority, deliveries=held.count - 1)
        id = str(held.message.headers.get("id") or "")
        letter = _delayed(id, held.queue, max(math.ceil(seconds), 1), properties, held.message)
        try:
            (outcome,) = self._office.publish([letter], ANSWER)
        except (OperationalError, PublishUnknown) as error:
            logger.debug("message %s is not held back: %s", id, error)
            return False
        return outcome is QUEUED

    def _letters_of(self, settlement: Settlement, held: Held) -> list[Letter]:
        try:
            letters = [letter_of(outgoing, self._clock) for outgoing in settlement.publish]
            copy = self._copy(settlement, held)
        except (BrokerError, EncodeError) as error:
            if isinstance(error, OperationalError):
                raise
            return [self._unpublishable(held, str(error))]
        return letters if copy is None else [*letters, copy]

    def _copy(self, settlement: Settlement, held: Held) -> Letter | None:
        """Return the message itself, where it goes on as another one."""
        how, message = settlement.how, held.message
        id = str(message.headers.get("id") or "")
        if isinstance(how, Dead):
            crashes = self._notes.crashes(held.note) if held.note else ()
            return self._letters.letter(held.queue, message, how, crashes)
        if isinstance(how, Park):
            raise BrokerError(NO_GATES)
        if isinstance(how, Delay):
            properties = properties_of(message, priority=held.priority, deliveries=held.count - 1)
            delay = max(_seconds(how.until, self._clock), 1)
            return _delayed(id, held.queue, delay, properties, message)
        if isinstance(how, Requeue) and (how.counted or held.acked):
            deliveries = held.count if how.counted else held.count - 1
            properties = properties_of(message, priority=held.priority, deliveries=deliveries)
            return Letter.of(id, held.queue, "", held.queue, properties, message.body)
        return None

    def _publish(self, mail: Sequence[Letter], owners: Sequence[Held]) -> None:
        # A slow server is waited for: who gives up and publishes again has published twice.
        outcomes = self._office.publish(mail, ANSWER)
        stuck: dict[str, tuple[Held, str]] = {}
        for held, outcome in zip(owners, outcomes, strict=True):
            if outcome is not QUEUED:
                stuck[held.tag] = held, outcome.detail
        if not stuck:
            return
        outcomes = self._office.publish([self._unpublishable(held, why) for held, why in stuck.values()], ANSWER)
        refused = [outcome.detail for outcome in outcomes if outcome is not QUEUED]
        if refused:
            raise OperationalError(f"a message could not be kept as a dead letter: {refused[0]}")

    def _unpublishable(self, held: Held, why: str) -> Letter:
        id = held.message.headers.get("id")
        logger.error(
            "What follows from message %s of %s could not be published, so it is kept: %s", id, held.queue, why
        )
        self._letters.index(held.queue)
        return self._letters.letter(held.queue, held.message, Dead("unpublishable", why))
