"""Reserve, run, settle: the loop of one worker process.

    reserved ──admit──> pending settlement (unknown, expired, early, unreadable)
        │
      ready ──100 ms without a start──> given back to the head of its queue
        │ begin (only tasks that ask for it)
     running ──outcome──> pending settlement ──settle──> gone

Outcomes are settled in batches: in the same trip that reserves the next messages, within ``settle_window`` seconds,
or before a task known to take longer starts. The lock is held by the engine's thread except inside user code; the
keeper may take it only then. So one thread at a time uses the consumer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from umbel.exceptions import LeaseLost, OperationalError
from umbel.interfaces import REQUEUE, Consumer, Delivery, Execution, Executor, Outcome, Settlement
from umbel.worker.admission import ReadAhead
from umbel.worker.runner import TaskRunner

logger = logging.getLogger("umbel.worker.engine")

MAX_BATCH = 64
IDLE_WAIT = 1.0
FOREVER = 10**9


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is told: its queues and its limits (seconds, KiB)."""

    queues: list[str]
    hostname: str
    concurrency: int = 1
    prefetch_max: int | None = None
    settle_window: float = 0.002
    give_back_after: float = 0.1
    max_tasks: int | None = None
    max_memory: int | None = None


class Engine:
    """Drives one consumer and one executor until it is stopped. ``stop`` may be called from anywhere."""

    def __init__(
        self,
        app: Any,
        *,
        consumer: Consumer,
        executor: Executor,
        runner: TaskRunner,
        options: EngineOptions,
        slot: Any = None,
    ) -> None:
        self._app = app
        self._consumer = consumer
        self._executor = executor
        self._runner = runner
        self._options = options
        self._slot = slot
        self._ahead = ReadAhead(limit=options.prefetch_max)
        self._ready: deque[Execution] = deque()
        self._pending: list[Settlement] = []
        self._oldest_pending = 0.0
        self._running: dict[str, Execution] = {}
        self._finished: deque[tuple[Execution, Outcome]] = deque()
        self._lock = threading.Lock()
        self._woken = False
        self._stop_by: float | None = None
        self._ended = ""
        self._processed = 0
        self._inline = executor.features.inline
        self._in_task_since = 0.0
        self._keeper_awake = threading.Event()
        self._bundled = False
        self.totals: Counter[str] = Counter()

    # -- from outside --------------------------------------------------------------------------------------------

    def stop(self, timeout: float | None = None) -> None:
        """Stop reserving, give back what has not started, and let running tasks finish for ``timeout`` seconds.

        Without a timeout they may take for ever; a second call can only shorten it. Safe in a signal handler.
        """
        deadline = time.monotonic() + (FOREVER if timeout is None else timeout)
        if self._stop_by is None or deadline < self._stop_by:
            self._stop_by = deadline
        self._consumer.wake()
        self._keeper_awake.set()

    def active(self) -> list[Execution]:
        """Return the executions that run now."""
        return list(self._running.values())

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Work until stopped; return why it ended: ``stopped``, ``max_tasks``, ``max_memory`` or ``lease_lost``.

        Afterwards nothing is held but what did not finish in time, and that was given back too.
        """
        backend = self._app.backend
        self._bundled = backend is not None and self._app.broker.bind_results(backend.location())
        self._executor.start(self._runner, self._done)
        keeper = threading.Thread(target=self._keep, name="umbel-keeper", daemon=True)
        if self._inline:
            keeper.start()
        step = self._step_inline if self._inline else self._step_beside
        delay = 0.05
        with self._lock:
            while self._stop_by is None and not self._ended:
                try:
                    step()
                    delay = 0.05
                except LeaseLost as error:
                    logger.error("This process lost its lease: %s. What it held runs elsewhere.", error)
                    self._forget()
                    self._ended = "lease_lost"
                except OperationalError as error:
                    logger.warning("consumer: Connection to broker lost (%s). Trying again in %.2fs.", error, delay)
                    self._rest(delay)
                    delay = min(delay * 2, 2.0)
            self._finish()
        self._keeper_awake.set()
        return self._ended or "stopped"

    def _rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._stop_by is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _step_inline(self) -> None:
        if not self._ready:
            self._take(self._ahead.want())
            if not self._ready:
                if not self._pending:
                    self._consumer.wait(IDLE_WAIT)
                return
        execution = self._ready.popleft()
        if self._pending and (
            len(self._pending) >= MAX_BATCH
            or execution.delivery.count > 1
            or time.monotonic() - self._oldest_pending >= self._options.settle_window
            or self._ahead.slow(execution.call.task, self._options.settle_window)
        ):
            self._settle()
        if not self._begin((execution,)):
            return
        self._run_here(execution)
        if execution.delivery.count > 1:
            # It may have killed its worker before: nothing else shares its fate.
            self._settle()

    def _run_here(self, execution: Execution) -> None:
        tag = execution.delivery.tag
        self._running[tag] = execution
        started = execution.started_at = self._in_task_since = time.monotonic()
        if self._slot is not None:
            self._slot.started(tag, started)
        if not self._keeper_awake.is_set():
            self._keeper_awake.set()
        self._lock.release()
        try:
            self._executor.submit(execution)
        finally:
            self._lock.acquire()
            self._in_task_since = 0.0
            if self._slot is not None:
                self._slot.idle()
        self._collect()

    def _step_beside(self) -> None:
        self._woken = False
        self._collect()
        free = self._executor.free() - len(self._ready)
        if self._pending or free > 0:
            self._take(max(free, 0))
        self._give_back_stale()
        starts = [self._ready.popleft() for _ in range(min(len(self._ready), self._executor.free()))]
        for execution in self._begin(starts):
            self._running[execution.delivery.tag] = execution
            self._executor.submit(execution)
        if not starts and not self._pending and not self._finished:
            self._consumer.wait(IDLE_WAIT)

    def _done(self, execution: Execution, outcome: Outcome) -> None:
        self._finished.append((execution, outcome))
        if not self._inline and not self._woken:
            # One wake-up serves every outcome until the engine looks.
            self._woken = True
            self._consumer.wake()

    def _collect(self) -> None:
        """Turn outcomes into pending settlements."""
        while self._finished:
            execution, outcome = self._finished.popleft()
            self._running.pop(execution.delivery.tag, None)
            self._ahead.saw(execution.call.task, outcome.runtime)
            self.totals[execution.call.task] += 1
            self._processed += 1
            if self._slot is not None:
                self._slot.count(1)
            self._add(outcome.settlement)
        options = self._options
        if options.max_tasks is not None and self._processed >= options.max_tasks:
            self._ended = "max_tasks"
        elif options.max_memory is not None and _rss_kib() > options.max_memory:
            self._ended = "max_memory"

    def _add(self, settlement: Settlement) -> None:
        if not self._pending:
            self._oldest_pending = time.monotonic()
        self._pending.append(settlement)

    # -- the consumer --------------------------------------------------------------------------------------------

    def _take(self, limit: int) -> None:
        """Settle what is pending and reserve up to ``limit`` more, in one trip where both are needed."""
        if self._ended or self._stop_by is not None:
            limit = 0
        deliveries = self._settle(limit) if self._pending else self._consumer.reserve(limit) if limit else ()
        now = time.monotonic()
        for delivery in deliveries:
            admitted = self._runner.admit(delivery, now)
            if isinstance(admitted, Settlement):
                self._add(admitted)
            else:
                self._ready.append(admitted)

    def _settle(self, reserve: int = 0) -> Sequence[Delivery]:
        batch = self._pending
        if not self._bundled:
            batch = self._store_results(batch)
        settled = self._consumer.settle(batch, reserve=reserve)
        # Only now: an error above leaves the batch pending, and settling twice is refused, not applied twice.
        self._pending = []
        if settled.refused:
            logger.warning("%d outcomes were refused: their messages had been taken over.", len(settled.refused))
        return settled.deliveries

    def _store_results(self, batch: list[Settlement]) -> list[Settlement]:
        # Store before ack. A crash in between repeats a task whose result is there already, and the backend
        # refuses to replace it; the other order would lose the result of a task that nobody runs again.
        backend = self._app.backend
        plain = []
        for settlement in batch:
            if settlement.result is not None:
                if backend is not None:
                    backend.store(settlement.result)
                settlement = msgspec.structs.replace(settlement, result=None)
            plain.append(settlement)
        return plain

    def _begin(self, executions: Sequence[Execution]) -> Sequence[Execution]:
        """Record the start of those that ask for it; return those that are still held."""
        records = [record for execution in executions if (record := self._runner.begin(execution)) is not None]
        if not records:
            return executions
        if not self._bundled and self._app.backend is not None:
            for record in records:
                if record.result is not None:
                    self._app.backend.store(record.result)
            records = [msgspec.structs.replace(record, result=None) for record in records]
        try:
            lost: Collection[str] = self._consumer.begin(records)
        except OperationalError:
            self._ready.extendleft(reversed(executions))
            raise
        return [execution for execution in executions if execution.delivery.tag not in lost]

    def _give_back_stale(self) -> None:
        if self._ready and time.monotonic() - self._ready[0].reserved_at >= self._options.give_back_after:
            self._give_back()

    def _give_back(self) -> None:
        for execution in self._ready:
            self._add(Settlement(delivery=execution.delivery, how=REQUEUE))
        self._ready.clear()
        if self._pending:
            self._settle()

    def _forget(self) -> None:
        self._ready.clear()
        self._pending = []

    # -- the keeper ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """While a task runs, settle what finished before it and give back what waits behind it."""
        window = max(self._options.settle_window, 0.001)
        while self._stop_by is None and not self._ended:
            if not self._in_task_since:
                self._keeper_awake.clear()
                if not self._in_task_since:
                    self._keeper_awake.wait()
                continue
            time.sleep(window)
            since = self._in_task_since
            if not since or time.monotonic() - since < window or not (self._pending or self._ready):
                continue
            self._attend()
        while self._in_task_since and (self._pending or self._ready):
            self._attend(stopping=True)
            time.sleep(window)

    def _attend(self, stopping: bool = False) -> None:
        if not self._lock.acquire(timeout=0.001):
            return
        try:
            if not self._in_task_since:
                return
            if self._pending:
                self._settle()
            if stopping:
                self._give_back()
            else:
                self._give_back_stale()
        except LeaseLost:
            # The engine's own next call meets it too, and ends there.
            self._forget()
        except OperationalError as error:
            logger.debug("the keeper will try again: %s", error)
        finally:
            self._lock.release()

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Give back what has not started, wait for what runs, settle everything."""
        deadline = self._stop_by if self._stop_by is not None else time.monotonic() + FOREVER
        if not self._persist(self._give_back):
            return
        while not self._inline and self._running and time.monotonic() < deadline:
            self._collect()
            self._persist(self._flush)
            if self._stop_by is not None:
                deadline = self._stop_by
            if self._running and not self._finished:
                self._woken = False
                self._consumer.wait(min(0.25, max(0.0, deadline - time.monotonic())))
        unfinished = self._executor.stop(timeout=max(0.0, min(deadline - time.monotonic(), 0.1)))
        self._collect()
        for execution in unfinished:
            self._add(Settlement(delivery=execution.delivery, how=REQUEUE))
        self._persist(self._flush)

    def _flush(self) -> None:
        if self._pending:
            self._settle()

    def _persist(self, action: Any) -> bool:
        """Do a last step although the broker may be away for a moment; the supervisor's release is the net."""
        for attempt in range(5):
            try:
                action()
            except LeaseLost:
                self._forget()
                return False
            except OperationalError as error:
                logger.warning("consumer: Connection to broker lost while stopping (%s).", error)
                time.sleep(0.1 * 2**attempt)
            else:
                return True
        return False


def _rss_kib() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    except OSError:
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
