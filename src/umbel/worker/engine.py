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
from collections.abc import Callable
from typing import Any

import msgspec

from umbel.exceptions import LeaseLost, OperationalError
from umbel.interfaces import REQUEUE, Consumer, Execution, Executor, Outcome, Settlement
from umbel.worker.admission import ReadAhead
from umbel.worker.holding import Hold
from umbel.worker.keeper import Keeper
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
        self._consumer = consumer
        self._executor = executor
        self._runner = runner
        self._options = options
        self._slot = slot
        self._inline = executor.features.inline
        self._ahead = ReadAhead(limit=options.prefetch_max)
        self._hold = Hold(app, consumer, runner)
        self._lock = threading.Lock()
        self._keeper = Keeper(
            self._hold, self._lock, settle_window=options.settle_window, give_back_after=options.give_back_after
        )
        self._running: dict[str, Execution] = {}
        self._finished: deque[tuple[Execution, Outcome]] = deque()
        self._woken = False
        self._stop_by: float | None = None
        self._ended = ""
        self._processed = 0
        self.totals: Counter[str] = Counter()

    def stop(self, timeout: float | None = None) -> None:
        """Stop reserving, give back what has not started, and let running tasks finish for ``timeout`` seconds.

        Without a timeout they may take for ever; a second call can only shorten it. Safe in a signal handler.
        """
        deadline = time.monotonic() + (FOREVER if timeout is None else timeout)
        if self._stop_by is None or deadline < self._stop_by:
            self._stop_by = deadline
        self._keeper.stop()
        self._consumer.wake()

    def active(self) -> list[Execution]:
        """Return the executions that run now."""
        return list(self._running.values())

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Work until stopped; return why it ended: ``stopped``, ``max_tasks``, ``max_memory`` or ``lease_lost``.

        Afterwards nothing is held but what did not finish in time, and that was given back too.
        """
        self._hold.bind()
        self._executor.start(self._runner, self._done)
        if self._inline:
            self._keeper.start()
        step = self._step_inline if self._inline else self._step_beside
        delay = 0.05
        with self._lock:
            while self._stop_by is None and not self._ended:
                try:
                    step()
                    delay = 0.05
                except LeaseLost as error:
                    logger.error("This process lost its lease: %s. What it held runs elsewhere.", error)
                    self._hold.forget()
                    self._ended = "lease_lost"
                except OperationalError as error:
                    logger.warning("consumer: Connection to broker lost (%s). Trying again in %.2fs.", error, delay)
                    self._rest(delay)
                    delay = min(delay * 2, 2.0)
            self._finish()
        self._keeper.close()
        return self._ended or "stopped"

    def _rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._stop_by is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _step_inline(self) -> None:
        hold = self._hold
        if not hold.ready:
            hold.take(self._ahead.want())
            if not hold.ready:
                if not hold.pending:
                    self._consumer.wait(IDLE_WAIT)
                return
        execution = hold.ready.popleft()
        # A message that was delivered before may kill its worker again: nothing else shares its fate.
        suspect = execution.delivery.count > 1
        if hold.pending and (
            suspect
            or len(hold.pending) >= MAX_BATCH
            or time.monotonic() - hold.oldest_pending >= self._options.settle_window
            or self._ahead.slow(execution.call.task, self._options.settle_window)
        ):
            try:
                hold.settle()
            except OperationalError:
                hold.ready.appendleft(execution)
                raise
        if hold.begin((execution,)):
            self._run_here(execution)
            if suspect:
                hold.settle()

    def _run_here(self, execution: Execution) -> None:
        tag = execution.delivery.tag
        self._running[tag] = execution
        started = execution.started_at = time.monotonic()
        if self._slot is not None:
            self._slot.started(tag, started)
        self._keeper.enter(started)
        try:
            self._executor.submit(execution)
        finally:
            self._keeper.leave()
            if self._slot is not None:
                self._slot.idle()
        self._collect()

    def _step_beside(self) -> None:
        hold = self._hold
        self._woken = False
        self._collect()
        free = self._executor.free() - len(hold.ready)
        if hold.pending or free > 0:
            hold.take(0 if self._ended else max(free, 0))
        hold.give_back_stale(self._options.give_back_after)
        starts = [hold.ready.popleft() for _ in range(min(len(hold.ready), self._executor.free()))]
        for execution in hold.begin(starts):
            self._running[execution.delivery.tag] = execution
            self._executor.submit(execution)
        if not starts and not hold.pending and not self._finished:
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
            self._hold.add(outcome.settlement)
        options = self._options
        if options.max_tasks is not None and self._processed >= options.max_tasks:
            self._ended = "max_tasks"
        elif options.max_memory is not None and _rss_kib() > options.max_memory:
            self._ended = "max_memory"

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Give back what has not started, wait for what runs, settle everything."""
        if not self._persist(self._hold.give_back):
            return
        while not self._inline and self._running and time.monotonic() < self._deadline():
            self._collect()
            self._persist(self._hold.settle)
            if self._running and not self._finished:
                self._woken = False
                self._consumer.wait(min(0.25, max(0.0, self._deadline() - time.monotonic())))
        unfinished = self._executor.stop(timeout=max(0.0, min(self._deadline() - time.monotonic(), 0.1)))
        self._collect()
        for execution in unfinished:
            self._hold.add(Settlement(delivery=execution.delivery, how=REQUEUE))
        self._persist(self._hold.settle)

    def _deadline(self) -> float:
        return time.monotonic() + FOREVER if self._stop_by is None else self._stop_by

    def _persist(self, action: Callable[[], object]) -> bool:
        """Do a last step although the broker may be away for a moment; the supervisor's release is the net."""
        for attempt in range(5):
            try:
                action()
            except LeaseLost:
                self._hold.forget()
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
