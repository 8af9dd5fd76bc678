"""From a delivery to the settlement that ends it.

``admit`` decides, before anything runs, whether a delivery is a task of ours that is due; ``run`` runs it. Both end
in a :class:`~umbel.interfaces.Settlement` that carries everything the ending needs: the result, the follow-ups, and
what becomes of the message. Neither touches the broker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from umbel import signals, states
from umbel.context import Context
from umbel.exceptions import MaxRetriesExceededError, SerializationError, WorkerLostError
from umbel.interfaces import (
    REQUEUE,
    Begin,
    Dead,
    Delivery,
    Execution,
    How,
    Outcome,
    Outgoing,
    Requeue,
    ResultRecord,
    Settlement,
)
from umbel.message import Call
from umbel.tracing import Attempt, ExceptionInfo, TaskPlan, Traced
from umbel.worker import revoked
from umbel.worker.admission import Admission, one_line
from umbel.worker.chords import Chords
from umbel.worker.followups import Errbacks, success_followups
from umbel.worker.records import Records
from umbel.worker.verdicts import FAIL, Condemned, Verdicts, requeues, when_lost

_LONGEST_TRACEBACK = 65536

trace_logger = logging.getLogger("celery.app.trace")


class TaskRunner:
    """Runs the tasks of one app in one process. Its methods may be called from any thread."""

    def __init__(self, app: Any, *, hostname: str, clock: Any = None) -> None:
        self._app = app
        self._hostname = hostname
        records = self._records = Records(app, clock or app.clock)
        self._verdicts = Verdicts(app, records, hostname=hostname)
        #: Return what to run, or the settlement of a delivery that must not run (now): :meth:`Admission.admit`.
        self.admit = Admission(app, records, self._verdicts, hostname=hostname, clock=clock or app.clock).admit
        #: Return what follows the settlement that brought a chord's last part: :meth:`Chords.complete`.
        self.complete = Chords(app, records, hostname=hostname).complete
        #: Return parts of chords with the values that are stored: :meth:`Records.as_stored`.
        self.as_stored = records.as_stored
        self._ignores = records.ignores
        self._failure_record = records.failure
        self._downfall = records.downfall
        self._starts: dict[TaskPlan, _Start] = {}
        self._pid = os.getpid()

    # -- before it runs ------------------------------------------------------------------------------------------

    def begin(self, execution: Execution) -> Begin | None:
        """Return what must be recorded before this execution starts, or None for most tasks."""
        start = self._starts.get(execution.task) or self._start(execution.task)
        if not start.once and not start.tracked:
            return None
        if type(execution) is Condemned:
            return None
        tracked = start.tracked and not self._ignores(execution.task.task, execution.call)
        if not start.once and not tracked:
            return None
        record = None
        if tracked:
            result = {"pid": self._pid, "hostname": self._hostname}
            context = self._context(execution.call, execution.delivery)
            record = self._records.make(execution.call, states.STARTED, result, None, context)
        return Begin(delivery=execution.delivery, result=record, once=start.once)

    def _start(self, plan: TaskPlan) -> _Start:
        start = self._starts[plan] = _Start(plan.task)
        return start

    def unfinished(self, execution: Execution) -> Settlement:
        """Return how an execution ends that was cut off because the worker stops: it comes again, unless it must not.

        Then its task has failed, and is marked as lost.
        """
        # Where a loss is a retry, it may run again; and that a worker stops is no loss.
        if type(execution) is Condemned or when_lost(execution.task.task) != FAIL:
            return Settlement(delivery=execution.delivery, how=REQUEUE)
        error = WorkerLostError("the worker stopped while it ran, and it must not run twice")
        traced = Traced(state=states.FAILURE, result=error)
        context = self._context(execution.call, execution.delivery)
        return self._failure(execution, context, traced)

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, execution: Execution) -> Outcome:
        """Run it in this thread."""
        try:
            if type(execution) is Condemned:
                return self._verdicts.execute(execution)
            call = execution.call
            context = Context.from_call(call, execution.delivery, hostname=self._hostname)
            attempt = self._attempt(execution, context)
            around = execution.task.around
            traced = attempt.run() if around is None else around(attempt)
            return self._outcome(execution, context, traced)
        # The wall around what reads the message and builds the outcome; see below.
        except Exception as error:
            return self.hopeless(execution, error)

    async def run_async(self, execution: Execution) -> Outcome:
        """Run a coroutine task on the running loop."""
        import asyncio  # the loop that runs has it; workers without coroutines do without

        try:
            if type(execution) is Condemned:
                return await asyncio.to_thread(self._verdicts.execute, execution)
            call = execution.call
            context = Context.from_call(call, execution.delivery, hostname=self._hostname)
            attempt = self._attempt(execution, context)
            traced = await attempt.run_async()
            if call.errbacks and traced.state == states.FAILURE:
                # They may be functions that block, and the loop has other tasks.
                return await asyncio.to_thread(self._outcome, execution, context, traced)
            return self._outcome(execution, context, traced)
        except Exception as error:
            return self.hopeless(execution, error)

    def _attempt(self, execution: Execution, context: Context) -> Attempt:
        call = execution.call
        finish = partial(self._finish, execution)
        return Attempt(self._app, execution.task, context, call.args, call.kwargs, execution.guard, finish)

    def _finish(self, execution: Execution, context: Context, traced: Traced) -> Traced:
        """Make the settlement of a success, whose hooks wait: what nobody could read afterwards is a failure."""
        try:
            traced.made = self._success(execution, context, traced)
        except SerializationError as error:
            return Traced(state=states.FAILURE, result=error, einfo=ExceptionInfo(error), runtime=traced.runtime)
        # For the wall around all of this, once the hooks were called: they may hold what must be let go.
        except Exception as error:
            traced.made = error
        return traced

    def hopeless(self, execution: Execution, error: BaseException) -> Outcome:
        """End a message that we failed to carry through, which no later try would end either.

        What the task itself raises does not come here. Let through, the error would end this process, and the next
        one that gets the message.
        """
        call = execution.call
        trace_logger.error(
            "Task %s[%s] is kept as a dead letter: %s", call.task, call.id, one_line(error), exc_info=error
        )
        how = _dead("invalid_task", f"{type(error).__name__}: {one_line(error)}", ExceptionInfo(error).traceback)
        settlement = Settlement(
            delivery=execution.delivery,
            how=how,
            result=self._failure_record(call, error),
            **self._downfall(call, error),
        )
        return Outcome(state=states.FAILURE, settlement=settlement)

    def _context(self, call: Call, delivery: Delivery, plan: TaskPlan | None = None) -> Context:
        return Context.from_call(call, delivery, hostname=self._hostname)

    # -- endings -------------------------------------------------------------------------------------------------

    def _outcome(self, execution: Execution, context: Context, traced: Traced) -> Outcome:
        made = traced.made
        if isinstance(made, Exception):
            raise made
        settlement: Settlement = made or _ENDINGS[traced.state](self, execution, context, traced)
        if context.outgoings:
            # Retries that were asked for without raising: the task went on, and they leave with its outcome.
            publish = list(settlement.publish)
            publish += [each for each in context.outgoings if not any(each is other for other in publish)]
            settlement = msgspec.structs.replace(settlement, publish=publish)
        return Outcome(state=traced.state, settlement=settlement, runtime=traced.runtime)

    def _success(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        call = execution.call
        task = execution.task.task
        record, part = None, None
        follow: Sequence[Outgoing] = ()
        if call.callbacks or call.chain:
            # Before the result is stored, which names them as children.
            follow = success_followups(self._app, task, call, context, traced.result)
        if not self._ignores(task, call):
            record = self._records.make(call, states.SUCCESS, traced.result, None, context)
        if call.chord is not None:
            part = self._records.part(call, states.SUCCESS, traced.result)
        return Settlement(delivery=execution.delivery, result=record, publish=follow, chord=part)

    def _failure(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        task, call, error = execution.task.task, execution.call, traced.result
        how = _after_failure(task, call, context, traced)
        if isinstance(how, Requeue):
            return Settlement(delivery=execution.delivery, how=how)
        record = self._error_record(execution, context, error, traced.traceback)
        sent: Sequence[Outgoing] = ()
        if call.errbacks:
            errbacks = Errbacks(self._app, call)
            errbacks.run(context, error, traced.traceback)
            sent = errbacks.sent
        fall = self._downfall(call, error, traced.traceback)
        return Settlement(delivery=execution.delivery, how=how, result=record, publish=sent, **fall)

    def _error_record(
        self, execution: Execution, context: Context, error: BaseException, traceback: str | None
    ) -> ResultRecord | None:
        task, call = execution.task.task, execution.call
        if self._ignores(task, call) and not task.store_errors_even_if_ignored:
            return None
        return self._failure_record(call, error, traceback, context)

    def _retry(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        record = None
        retry = traced.result
        if not self._ignores(execution.task.task, execution.call):
            reason = retry.exc if retry.exc is not None else retry
            record = self._failure_record(execution.call, reason, traced.traceback, context, states.RETRY)
        outgoing = getattr(retry, "outgoing", None)
        if outgoing is None:
            # Retry raised by hand, without Task.retry: there is nothing new to publish, so the message comes again.
            return Settlement(delivery=execution.delivery, how=REQUEUE, result=record)
        return Settlement(delivery=execution.delivery, result=record, publish=(outgoing,))

    def _ignored(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        return Settlement(delivery=execution.delivery)

    def _rejected(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        reject, call = traced.result, execution.call
        if signals.task_rejected.receivers:
            signals.task_rejected.send(sender=self._hostname, message=execution.delivery, exc=reject)
        if reject.requeue:
            return Settlement(delivery=execution.delivery, how=REQUEUE)
        if signals.task_failure.receivers:
            signals.task_failure.send(
                sender=execution.task.task,
                task_id=call.id,
                exception=reject,
                args=call.args,
                kwargs=call.kwargs,
                traceback=None,
                einfo=ExceptionInfo(reject),
            )
        errbacks = Errbacks(self._app, call)
        errbacks.run(context, reject, None)
        record = self._error_record(execution, context, reject, None)
        how = Dead("rejected", one_line(reject) if reject.reason is None else one_line(reject.reason))
        fall = self._downfall(call, reject)
        return Settlement(delivery=execution.delivery, how=how, result=record, publish=errbacks.sent, **fall)


_ENDINGS: dict[str, Callable[[TaskRunner, Execution, Context, Traced], Settlement]] = {
    states.SUCCESS: TaskRunner._success,
    states.FAILURE: TaskRunner._failure,
    states.RETRY: TaskRunner._retry,
    states.IGNORED: TaskRunner._ignored,
    states.REJECTED: TaskRunner._rejected,
    states.REVOKED: revoked.terminated,
}


class _Start:
    """What the start of a task needs, asked of the task once."""

    __slots__ = ("once", "tracked")

    def __init__(self, task: Any) -> None:
        self.once = not requeues(task)
        self.tracked = bool(task.track_started)


def _after_failure(task: Any, call: Call, context: Context, traced: Traced) -> How:
    """Return what becomes of the message of a task that raised."""
    error = traced.result
    words = f"{type(error).__name__}: {one_line(error)}"
    if _wrong_signature(traced):
        return _dead("wrong_signature", f"{call.task}: {one_line(error)}", traced.traceback)
    if task.dead_letter_exhausted and _exhausted(task, call, context, error):
        return _dead("exhausted", f"after {call.retries} retries: {words}", traced.traceback)
    how = revoked.after_failure(task, error)
    if isinstance(how, Dead):
        return _dead(how.reason, words, traced.traceback)
    return how


def _dead(reason: str, detail: str, traceback: str | None) -> Dead:
    # A traceback quotes what came with the message, and a store takes no half of a character.
    text = (traceback or "")[-_LONGEST_TRACEBACK:].encode("utf-8", "backslashreplace").decode("utf-8")
    return Dead(reason, detail, text)


def _exhausted(task: Any, call: Call, context: Context, error: BaseException) -> bool:
    limit = task.max_retries if context.override_max_retries is None else context.override_max_retries
    return isinstance(error, MaxRetriesExceededError) or (limit is not None and 0 < limit <= call.retries)


_OUR_FRAMES = ("umbel/tracing.py", "umbel/task.py", "umbel/bound.py", "umbel/retrying.py", "umbel/worker/limits.py")


def _wrong_signature(traced: Traced) -> bool:
    # A TypeError that was raised by the call itself, not inside the body, has only our own frames.
    if not isinstance(traced.result, TypeError) or traced.einfo is None:
        return False
    tb = traced.einfo.tb
    while tb is not None and tb.tb_frame.f_code.co_filename.endswith(_OUR_FRAMES):
        tb = tb.tb_next
    return tb is None and "argument" in str(traced.result)
