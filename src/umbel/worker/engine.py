"""Reserve, run, settle: the loop of one worker process.

    reserved ──admit──> pending settlement (unknown, expired, early, unreadable)
        │
      ready ──100 ms without a start──> given back to the head of its queue
        │ begin (only tasks that ask for it)
     running ──outcome──> pending settlement ──settle──> gone

Outcomes are settled in batches: in the same trip that reserves the next messages, within ``settle_window`` seconds,
or before a task starts that is known, or feared, to take longer than what is read ahead at once. The lock is held by
the engine's thread except inside user code; the keeper may take it only then. So one thread at a time uses the
consumer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import msgspec

from umbel.bell import Bell
from umbel.exceptions import LeaseLost, OperationalError
from umbel.interfaces import Consumer, Execution, Executor, Outcome, Settlement
from umbel.tracing import in_body
from umbel.worker.around import wrapped
from umbel.worker.door import Door
from umbel.worker.holding import Hold
from umbel.worker.keeper import Keeper
from umbel.worker.limits import GRACE, LimitBook, Limiter, Limits
from umbel.worker.readahead import ReadAhead
from umbel.worker.runner import TaskRunner
from umbel.worker.slots import Slot

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
    time_limit: float | None = None
    soft_time_limit: float | None = None
    supervised: bool = True  # a process of its own kills this one at a hard limit


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
        slot: Slot | None = None,
        limiter: Limiter | None = None,
        door: Door | None = None,
    ) -> None:
        self._consumer = consumer
        self._executor = executor
        self._runner = runner
        self._wrapped = wrapped(runner, app.middlewares)
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
        self._limits = LimitBook(soft=options.soft_time_limit, hard=options.time_limit)
        self._limiter = limiter or Limiter()
        self._free_entries = deque(range(slot.capacity)) if slot is not None and not self._inline else deque()
        self._entries: dict[str, int] = {}
        self._bell = Bell()
        self._woken = False
        self._stop_by: float | None = None
        self._ended = ""
        self._processed = 0
        self.totals: Counter[str] = Counter()
        #: What must not start now; its setters may be called from any thread.
        self.door = door or Door(runner)
        # What others want is written by them and taken up by the engine's thread, which compares and does not clear:
        # what is wanted meanwhile is found the next time.
        self._queues_wanted: Sequence[str] | None = None
        self._queues_taken: Sequence[str] | None = None
        self._size_wanted: int | None = None
        self._size_taken: int | None = None
        if slot is not None:
            self._hold.settled = self._settled
            if self._inline:
                self._hold.changed = self._write_ready

    def stop(self, timeout: float | None = None) -> None:
        """Stop reserving, give back what has not started, and let running tasks finish for ``timeout`` seconds.

        Without a timeout they may take for ever; a second call can only shorten it. Safe in a signal handler.
        """
        deadline = time.monotonic() + (FOREVER if timeout is None else timeout)
        if self._stop_by is None or deadline < self._stop_by:
            self._stop_by = deadline
        self._keeper.stop()
        self._wake()

    def retire(self, reason: str) -> None:
        """End like :meth:`stop` without a timeout, and have ``run`` return this reason. From any thread."""
        self._ended = self._ended or reason
        self._wake()

    def watch(self, queues: Sequence[str]) -> None:
        """Read these queues from now on. From any thread."""
        self._queues_wanted = tuple(queues)
        self._wake()

    def resize(self, concurrency: int) -> None:
        """Run so many at once from now on. From any thread."""
        self._size_wanted = concurrency
        self._wake()

    def _take_up(self) -> None:
        """Do what was asked for by :meth:`watch` and :meth:`resize`."""
        size = self._size_wanted
        if size is not None and size != self._size_taken:
            # Not from their thread: what is reserved for a slot that goes would find none.
            self._executor.resize(size)
            self._size_taken = size
        queues = self._queues_wanted
        if queues is not None and queues is not self._queues_taken:
            try:
                self._consumer.watch(queues)
            except NotImplementedError:
                # The next process starts with them.
                self._ended = self._ended or "queues"
            else:
                self._hold.leave(queues)
            self._queues_taken = queues

    def forget_limits(self) -> None:
        """Ask the tasks for their time limits again. From any thread."""
        self._limits = LimitBook(soft=self._options.soft_time_limit, hard=self._options.time_limit)

    def interrupt(self, task_id: str, error: BaseException) -> bool:
        """Raise the error in a running task; return whether the task runs and could be asked. From any thread."""
        for execution in self.active():
            if execution.call.id == task_id:
                if execution.guard is not None:
                    return bool(execution.guard.interrupt(error))
                wanted = partial(self._runs_body, execution.delivery.tag)
                if self._limiter.interrupt_main(error, wanted):
                    # What it interrupted may have left something behind in the process, such as a loop.
                    self._ended = self._ended or "terminated"
                    return True
        return False

    def _runs_body(self, tag: str, frame: FrameType | None) -> bool:
        return tag in self._running and in_body(frame)

    def active(self) -> list[Execution]:
        """Return the executions that run now."""
        return list(self._running.values())

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Work until stopped; return why it ended: ``stopped``, ``max_tasks``, ``max_memory`` or ``lease_lost``.

        Afterwards nothing is held but what did not finish in time, and that was given back too.
        """
        self._executor.start(self._wrapped, self._done)
        if self._inline:
            self._keeper.start()
        step = self._step_inline if self._inline else self._step_beside
        delay, bound = 0.05, False
        with self._lock:
            while self._stop_by is None and not self._ended:
                try:
                    if not bound:
                        self._hold.bind()
                        bound = True
                    self._take_up()
                    step()
                    delay = 0.05
                except LeaseLost as error:
                    logger.error("This process lost its lease: %s. What it held runs elsewhere.", error)
                    self._hold.forget()
                    self._ended = "lease_lost"
                except OperationalError as error:
                    logger.warning("consumer: Connection to broker lost (%s). Trying again in %.2fs.", error, delay)
                    self._rest(delay)
                    delay = min(delay * 2, 1.0)
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
                    self._idle()
                return
        execution = hold.ready.popleft()
        if self.door.watched and (ending := self.door.stop(execution)) is not None:
            hold.add(ending)
            return
        # A message that was delivered before may kill its worker again: nothing else shares its fate.
        suspect = execution.delivery.count > 1
        if hold.pending and (
            suspect
            or len(hold.pending) >= MAX_BATCH
            or time.monotonic() - hold.oldest_pending >= self._options.settle_window
            or self._ahead.slow(execution.call.task)
        ):
            try:
                hold.settle()
            except OperationalError:
                hold.ready.appendleft(execution)
                raise
        if self._run_here(execution) and suspect:
            hold.settle()

    def _run_here(self, execution: Execution) -> bool:
        tag, slot = execution.delivery.tag, self._slot
        started = execution.started_at = time.monotonic()
        limits = self._limits.of(execution)
        if slot is not None and not self._mark(slot, execution, limits, started):
            self._give_way(slot, (execution,))
            return False
        try:
            if not self._hold.begin((execution,)):
                return False
            if limits is not None:
                execution.guard = self._limiter.guard(execution, limits, started, shared=not self._options.supervised)
            self._running[tag] = execution
            # What will be over soon leaves no time for a round trip: the keeper makes it meanwhile.
            quick = not self._hold.ready and not self._ahead.slow(execution.call.task)
            self._keeper.enter(started, self._ahead.want() if quick else 0)
            try:
                self._executor.submit(execution)
            finally:
                self._keeper.leave()
        finally:
            if slot is not None:
                slot.ended()
        self._collect()
        return True

    def _mark(self, slot: Slot, execution: Execution, limits: Limits | None, started: float) -> bool:
        """Write down that it starts; return whether it may."""
        hard = limits.hard if limits is not None else 0.0
        index = -1
        if not self._inline:
            index = self._entries[execution.delivery.tag] = self._free_entries.popleft()
        call = execution.call
        return slot.started(
            execution.delivery.tag,
            started,
            call.id,
            call.task,
            hard,
            started + hard + (0.0 if self._inline else GRACE) if hard else 0.0,
            len(self._hold.ready),
            index,
        )

    def _give_way(self, slot: Slot, executions: Sequence[Execution]) -> None:
        """Start nothing: the lease may be over, or the supervisor takes back what has not started."""
        self._hold.ready.extendleft(reversed(executions))
        self._unmark(executions)
        if slot.expired:
            self._await_renewal(slot)
            return
        while slot.gated and self._stop_by is None:
            time.sleep(0.001)
        self._hold.give_back()
        slot.dropped()

    def _await_renewal(self, slot: Slot) -> None:
        """Start nothing until the supervisor has renewed the lease: what we hold is ours until the store denies it."""
        logger.warning("The lease was not renewed in time; no task starts here until it is.")
        while slot.expired and self._stop_by is None and not self._ended:
            if slot.lost:
                raise LeaseLost("others have taken over")
            self._collect()
            self._hold.settle()
            time.sleep(0.05)

    def _write_ready(self) -> None:
        """Write down what is reserved and has not started: only the supervisor can give it back if we cannot."""
        ready, slot = self._hold.ready, self._slot
        if slot is not None and (len(ready) > 1 or self._running):
            slot.reserved([execution.delivery.tag for execution in ready])
            if self._running:
                slot.behind(len(ready))

    def _unmark(self, executions: Iterable[Execution | Settlement]) -> None:
        """Take back that these have started, where they do not end in the order in which they start."""
        indexes = [index for each in executions if (index := self._entries.pop(each.delivery.tag, None)) is not None]
        if self._slot is not None:
            self._slot.free(indexes)
        self._free_entries.extend(indexes)

    def _settled(self, batch: Sequence[Settlement]) -> None:
        if self._slot is None:
            return
        if self._inline:
            self._slot.settled()
            return
        self._unmark(batch)

    def _step_beside(self) -> None:
        hold = self._hold
        self._woken = False
        self._collect()
        free = self._executor.free() - len(hold.ready)
        if hold.pending or free > 0:
            hold.take(0 if self._ended else max(free, 0))
        hold.give_back_stale(self._options.give_back_after)
        starts = self._admitted([hold.ready.popleft() for _ in range(min(len(hold.ready), self._executor.free()))])
        try:
            held = hold.begin(starts)
        except OperationalError:
            self._unmark(starts)
            raise
        if len(held) < len(starts):
            self._unmark([execution for execution in starts if execution not in held])
        for execution in held:
            self._running[execution.delivery.tag] = execution
            self._executor.submit(execution)
        if starts or hold.pending or self._finished:
            return
        if free > 0:
            self._idle()
        else:
            # Messages that nobody is free for would end the consumer's wait at once.
            self._pause(self._options.give_back_after if hold.ready else IDLE_WAIT)

    def _admitted(self, starts: Sequence[Execution]) -> Sequence[Execution]:
        """Write down what starts, with what stands around it; leave out what must not start."""
        if self.door.watched:
            starts = self._let_in(starts)
        for at, execution in enumerate(starts):
            started = time.monotonic()
            limits = self._limits.of(execution)
            execution.guard = self._limiter.guard(execution, limits, started, shared=True)
            if self._slot is not None and not self._mark(self._slot, execution, limits, started):
                self._give_way(self._slot, starts[at:])
                return starts[:at]
        return starts

    def _let_in(self, starts: Sequence[Execution]) -> Sequence[Execution]:
        allowed = []
        for execution in starts:
            ending = self.door.stop(execution)
            if ending is None:
                allowed.append(execution)
            else:
                self._hold.add(ending)
        return allowed

    def _idle(self) -> None:
        if self._slot is not None:
            self._slot.beat(time.monotonic())
        self._consumer.wait(IDLE_WAIT)

    def _pause(self, seconds: float) -> None:
        """Wait for an outcome, or for an order."""
        if self._slot is not None:
            self._slot.beat(time.monotonic())
        self._bell.wait(seconds)
        # Before anything is looked at: what rings from here on has either been written down, or rings for the next.
        self._bell.clear()

    def _wake(self) -> None:
        """End a wait of either kind, or the next one."""
        self._bell.set()
        self._consumer.wake()

    def _done(self, execution: Execution, outcome: Outcome) -> None:
        self._finished.append((execution, outcome))
        if not self._inline and not self._woken:
            # One wake-up serves every outcome until the engine looks.
            self._woken = True
            self._wake()

    def _collect(self) -> None:
        """Turn outcomes into pending settlements."""
        if not self._finished:
            return
        while self._finished:
            execution, outcome = self._finished.popleft()
            self._running.pop(execution.delivery.tag, None)
            self._ahead.saw(execution.call.task, outcome.runtime)
            self.totals[execution.call.task] += 1
            self._processed += 1
            if self._slot is not None:
                self._slot.count(1)
                if not self._inline and (index := self._entries.get(execution.delivery.tag)) is not None:
                    self._slot.ended(index)
            self._hold.add(outcome.settlement)
        options = self._options
        if options.max_tasks is not None and self._processed >= options.max_tasks:
            self._ended = "max_tasks"
        elif options.max_memory is not None and _rss_kib() > options.max_memory:
            self._ended = "max_memory"

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Give back what has not started, wait for what runs, settle everything.

        A broker that is away ends none of this: it may be back before what runs has ended.
        """
        held = self._persist(self._hold.give_back)
        while held and not self._inline and self._running and time.monotonic() < self._deadline():
            self._woken = False
            self._collect()
            held = self._persist(self._hold.settle)
            if self._running and not self._finished:
                self._pause(min(0.25, max(0.0, self._deadline() - time.monotonic())))
        unfinished = self._executor.stop(timeout=max(0.0, min(self._deadline() - time.monotonic(), 0.1)))
        if not held:
            return
        self._collect()
        for execution in unfinished:
            self._hold.add(self._runner.unfinished(execution))
        self._persist(self._hold.settle)

    def _deadline(self) -> float:
        return time.monotonic() + FOREVER if self._stop_by is None else self._stop_by

    def _persist(self, action: Callable[[], object]) -> bool:
        """Do a last step although the broker may be away for a moment; the supervisor's release is the net.

        Returns whether what is held is still ours.
        """
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
                break
        return True


def _rss_kib() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    except OSError:
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
