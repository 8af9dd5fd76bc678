"""What one process holds: the messages that wait to start, and the outcomes that wait to be settled."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from umbel.exceptions import OperationalError
from umbel.interfaces import REQUEUE, Consumer, Delivery, Execution, Requeue, Settlement
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
        #: Told of every batch that was settled, and of more or less being ready.
        self.settled: Callable[[Sequence[Settlement]], None] | None = None
        self.changed: Callable[[], None] | None = None

    def bind(self) -> None:
        """Learn whether the broker writes results in its own atomic step."""
        backend = self._app.backend
        self._bundled = backend is not None and self._app.broker.bind_results(backend.location())

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
        """Settle all that is pending; an error leaves it pending, and settling twice is refused, not applied twice."""
        if not self.pending and not reserve:
            return ()
        batch = self.pending if self._bundled else self._stored(self.pending)
        settled = self._consumer.settle(batch, reserve=reserve)
        self.pending = []
        if self.settled is not None:
            self.settled(batch)
        if settled.refused:
            # That something to be given back is gone already is no loss: somebody else was quicker.
            refused = [each for each in batch if each.delivery.tag in settled.refused]
            lost = sum(not isinstance(each.how, Requeue) for each in refused)
            if lost:
                logger.warning("%d outcomes were refused: their messages had been taken over.", lost)
        return settled.deliveries

    def _stored(self, batch: list[Settlement]) -> list[Settlement]:
        # Store before ack. A crash in between repeats a task whose result is there already, and the backend
        # refuses to replace it; the other order would lose the result of a task that nobody runs again.
        plain = []
        for settlement in batch:
            if settlement.result is not None:
                if self._app.backend is not None:
                    self._app.backend.store(settlement.result)
                settlement = msgspec.structs.replace(settlement, result=None)
            plain.append(settlement)
        return plain

    def begin(self, executions: Sequence[Execution]) -> Sequence[Execution]:
        """Record the start of those that ask for it; return those that are still held."""
        records = [record for execution in executions if (record := self._runner.begin(execution)) is not None]
        if not records:
            return executions
        try:
            if not self._bundled:
                for record in records:
                    if record.result is not None:
                        self._app.backend.store(record.result)
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

    def forget(self) -> None:
        """Drop everything: the lease is lost, and it belongs to others now."""
        self.ready.clear()
        self.pending = []
