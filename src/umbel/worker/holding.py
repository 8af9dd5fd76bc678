"""What one process holds: the messages that wait to start, and the outcomes that wait to be settled."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from umbel.exceptions import OperationalError
from umbel.interfaces import (
    REQUEUE,
    Ack,
    Consumer,
    Delivery,
    Execution,
    Requeue,
    ResultRecord,
    Settled,
    Settlement,
)
from umbel.worker.runner import TaskRunner

logger = logging.getLogger("umbel.worker.engine")


class Hold:
    """The only user of the consumer. Not locked: its owner lets one thread at a time use it."""

    def __init__(self, app: Any, consumer: Consumer, runner: TaskRunner) -> None:
        self.ready: deque[Execution] = deque()
        self.pending: list[Settlement] = []
        self.oldest_pending = 0.0  # monotonic seconds
        self._app = app
        self._consumer = consumer
        self._runner = runner
        self._bundled = False
        # Chords that were completed by the settlement of a tag, and are closed when it is applied: group id, claim.
        self._claims: dict[str, list[tuple[str, str]]] = {}
        #: Told of every batch that was settled, and of more or less being ready.
        self.settled: Callable[[Sequence[Settlement]], None] | None = None
        self.changed: Callable[[], None] | None = None

    def bind(self) -> None:
        """Learn whether the broker writes results in its own atomic step."""
        backend = self._app.backend
        broker = self._app.broker
        # Where a broker never does, there is no need for the backend to be there already.
        asks = backend is not None and broker.features.atomic_results
        self._bundled = asks and broker.bind_results(backend.location())

    def add(self, settlement: Settlement) -> None:
        """Keep an ending until the next :meth:`settle`."""
        if not self.pending:
            self.oldest_pending = time.monotonic()
        self.pending.append(settlement)

    def take(self, limit: int) -> None:
        """Settle what is pending and reserve up to ``limit`` more, in one trip where both are needed."""
        deliveries: Sequence[Delivery] = ()
        if self.pending:
            deliveries = self.settle(limit)
        elif limit:
            deliveries = self._consumer.reserve(limit)
        now = time.monotonic()
        for delivery in deliveries:
            admitted = self._runner.admit(delivery, now)
            if isinstance(admitted, Settlement):
                self.add(admitted)
            else:
                self.ready.append(admitted)
        if deliveries and self.changed is not None:
            self.changed()

    def settle(self, reserve: int = 0) -> Sequence[Delivery]:
        """Settle all that is pending; an error leaves it pending, and settling twice is refused, not applied twice.

        Where a chord's last part was among it, what follows is settled too, or where more was reserved, pending.
        """
        if not self.pending and not reserve:
            return ()
        batch = self.pending if self._bundled else self._stored(self.pending)
        settled = self._consumer.settle(batch, reserve=reserve)
        self.pending = []
        if self._claims:
            self._close_chords(batch, settled)
        if settled.complete:
            self._complete(batch, settled.complete)
        if self.settled is not None:
            self.settled(batch)
        if settled.refused:
            # That something to be given back is gone already is no loss: somebody else was quicker.
            refused = [each for each in batch if each.delivery.tag in settled.refused]
            lost = sum(not isinstance(each.how, Requeue) for each in refused)
            if lost:
                logger.warning("%d outcomes were refused: their messages had been taken over.", lost)
        if settled.complete and not reserve:
            self.settle()
        return settled.deliveries

    def _complete(self, batch: Sequence[Settlement], complete: Mapping[str, str]) -> None:
        """Have what follows a chord's last part settled next: its body, or its failure."""
        for settlement in batch:
            claim = complete.get(settlement.delivery.tag)
            if claim is None or settlement.chord is None:
                continue
            try:
                following = self._runner.complete(settlement)
            except OperationalError as error:
                logger.warning("The parts of chord %s cannot be read yet: %s", settlement.chord.group_id, error)
                # Its part is counted once, so it may be brought again.
                following = settlement
            if following.chord is not None or not isinstance(following.how, Ack):
                # Only an ack without another part closes the chord by itself.
                self._claim(settlement, claim)
            self.add(following)

    def _claim(self, settlement: Settlement, claim: str) -> None:
        assert settlement.chord is not None
        claims = self._claims.setdefault(settlement.delivery.tag, [])
        if (settlement.chord.group_id, claim) not in claims:
            claims.append((settlement.chord.group_id, claim))

    def _close_chords(self, batch: Sequence[Settlement], settled: Settled) -> None:
        for settlement in batch:
            tag = settlement.delivery.tag
            if tag in settled.complete or (claims := self._claims.pop(tag, None)) is None:
                continue
            if tag not in settled.refused:
                for group_id, claim in claims:
                    try:
                        self._app.backend.chord(group_id).close(claim)
                    except OperationalError as error:
                        logger.warning("Chord %s has ended, but could not be closed: %s", group_id, error)

    def _stored(self, batch: list[Settlement]) -> list[Settlement]:
        # Store before ack. A crash in between repeats a task whose result is there already, and the backend
        # refuses to replace it; the other order would lose the result of a task that nobody runs again.
        repeated = not self._store([record for settlement in batch for record in _records(settlement)])
        return [self._count(settlement, repeated) if _says_more(settlement) else settlement for settlement in batch]

    def _store(self, records: Sequence[ResultRecord]) -> bool:
        """Return whether all are stored now; else an earlier run of one of the tasks had stored its own."""
        backend = self._app.backend
        if backend is None or not records:
            return True
        if len(records) == 1:
            return bool(backend.store(records[0]))
        return bool(backend.store_all(records) == len(records))

    def _count(self, settlement: Settlement, repeated: bool) -> Settlement:
        """Add the parts of a settlement whose results are stored, and what follows if they complete a chord.

        Publish, then close: a crash in between calls the body of a chord twice; the other order might lose it.
        """
        backend = self._app.backend
        while True:
            part = settlement.chord
            claim = None
            if part is not None and backend is not None:
                chord = backend.chord(part.group_id)
                parts = [*settlement.parts, part]
                if repeated:
                    parts = self._runner.as_stored(parts)
                claims = [chord.add(each) for each in parts]
                claim = next(filter(None, claims), None)
            if claim is None:
                return msgspec.structs.replace(settlement, result=None, results=(), chord=None, parts=())
            self._claim(settlement, claim)
            settlement = self._runner.complete(settlement)
            self._store(_records(settlement))

    def begin(self, executions: Sequence[Execution]) -> Sequence[Execution]:
        """Record the start of those that ask for it; return those that are still held."""
        records = [record for execution in executions if (record := self._runner.begin(execution)) is not None]
        if not records:
            return executions
        try:
            if not self._bundled:
                self._store([record.result for record in records if record.result is not None])
                records = [msgspec.structs.replace(record, result=None) for record in records]
            lost: Collection[str] = self._consumer.begin(records)
        except OperationalError:
            self.ready.extendleft(reversed(executions))
            raise
        return [execution for execution in executions if execution.delivery.tag not in lost]

    def give_back(self) -> None:
        """Return all that has not started to the head of its queue, in order."""
        for execution in self.ready:
            self.add(Settlement(delivery=execution.delivery, how=REQUEUE))
        self.ready.clear()
        self.settle()
        if self.changed is not None:
            self.changed()

    def give_back_stale(self, after: float) -> None:
        """Do :meth:`give_back` if the first has waited for so many seconds."""
        if self.ready and time.monotonic() - self.ready[0].reserved_at >= after:
            self.give_back()

    def leave(self, queues: Collection[str]) -> None:
        """Have the next :meth:`settle` give back what has not started and is of none of these queues."""
        kept = []
        for execution in self.ready:
            if execution.delivery.queue in queues:
                kept.append(execution)
            else:
                self.add(Settlement(delivery=execution.delivery, how=REQUEUE))
        if len(kept) < len(self.ready):
            self.ready.clear()
            self.ready.extend(kept)
            if self.changed is not None:
                self.changed()

    def forget(self) -> None:
        """Drop everything: the lease is lost, and it belongs to others now."""
        self.ready.clear()
        self.pending = []


def _records(settlement: Settlement) -> list[ResultRecord]:
    return [record for record in (settlement.result, *settlement.results) if record is not None]


def _says_more(settlement: Settlement) -> bool:
    """Say whether a settlement carries what a broker without results does not understand."""
    return settlement.result is not None or settlement.chord is not None or bool(settlement.results)
