"""Endings that were decided outside an engine: the process is gone, and the next engine settles the failure."""

from __future__ import annotations

import logging
import signal
from typing import Any, Final

from umbel import signals, states
from umbel.context import Context
from umbel.exceptions import (
    MaxDeliveriesExceeded,
    SerializationError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from umbel.interfaces import (
    ACK,
    Dead,
    Delivery,
    Execution,
    How,
    Outcome,
    ResultRecord,
    Settlement,
    Verdict,
    VerdictKind,
)
from umbel.message import Call
from umbel.retrying import retry_task
from umbel.tracing import ExceptionInfo, TaskPlan
from umbel.worker import revoked
from umbel.worker.followups import Errbacks
from umbel.worker.records import Records

logger = logging.getLogger("celery.worker.strategy")

_ERRORS: Final[dict[VerdictKind, type[Exception]]] = {
    VerdictKind.LOST: WorkerLostError,
    VerdictKind.TIME_LIMIT: TimeLimitExceeded,
    VerdictKind.TERMINATED: Terminated,
    VerdictKind.MAX_DELIVERIES: MaxDeliveriesExceeded,
}
#: What becomes of a task whose process is lost.
REQUEUES: Final = "requeue"
RETRY: Final = "retry"
FAIL: Final = "fail"

# Handlers that kill their process too are not called again and again.
_PATIENCE: Final = 3


class Condemned(Execution, kw_only=True, eq=False):
    """A delivery that has a verdict, and a task or errbacks that want to be told: in user code, so it is executed.

    ``task`` is the plan of the task, or where this process does not know it, that of an errback.
    """

    error: Exception
    how: How
    record: ResultRecord | None = None
    told: TaskPlan | None = None


class Verdicts:
    """Carries out verdicts. Its methods may be called from any thread."""

    def __init__(self, app: Any, records: Records, *, hostname: str) -> None:
        limit = app.conf.max_deliveries
        self._app = app
        self._records = records
        self._hostname = hostname
        self._most = (5 if limit is None else limit) + _PATIENCE
        # What umbel.worker.revoked asks of a runner.
        self._ignores = records.ignores
        self._failure_record = records.failure
        self._downfall = records.downfall

    def _context(self, call: Call, delivery: Delivery, plan: Any = None) -> Context:
        return Context.from_call(call, delivery, hostname=self._hostname)

    def sentence(
        self, delivery: Delivery, call: Call, plan: TaskPlan | None, reserved_at: float
    ) -> Settlement | Condemned:
        """Return how a delivery with a verdict ends; where somebody wants to be told, what to run for that."""
        verdict = delivery.verdict
        assert verdict is not None
        if verdict.kind is VerdictKind.TERMINATED:
            return revoked.killed(self, delivery, call, verdict)
        error = _ERRORS[verdict.kind](verdict.detail or verdict.kind.value)
        task = plan.task if plan is not None else None
        if verdict.kind is VerdictKind.LOST and task is not None and when_lost(task) == RETRY:
            again = self._again(delivery, call, task, error)
            if again is not None:
                return again
        logger.error("Task %s[%s] ends as FAILURE: %s", call.task, call.id, error)
        how: How = ACK
        if verdict.kind is VerdictKind.MAX_DELIVERIES:
            how = Dead(verdict.kind.value, str(error))
        elif (
            verdict.kind is VerdictKind.TIME_LIMIT and task is not None and task.acks_late and not task.acks_on_timeout
        ):
            # Its supervisor had it end all the same, so it is not for an engine to start it again.
            how = Dead(verdict.kind.value, str(error))
        return self.fail(
            Condemned(delivery=delivery, call=call, task=plan, reserved_at=reserved_at, error=error, how=how, told=plan)
        )

    def _again(self, delivery: Delivery, call: Call, task: Any, error: Exception) -> Settlement | None:
        """Return the settlement that tries a lost task again, as a retry of its own would; None if none is left."""
        if task.max_retries is not None and call.retries >= task.max_retries:
            return None
        context = self._context(call, delivery)
        task.push_request(context)
        try:
            retry = retry_task(task, None, None, error, False, None, None, None, {})
        except SerializationError as inner:
            logger.error("Task %s[%s] cannot be sent again after its process was lost: %s", call.task, call.id, inner)
            return None
        finally:
            task.pop_request()
        record = None
        if not self._ignored(task, call):
            record = self._records.failure(call, error, None, context, states.RETRY)
        if signals.task_retry.receivers:
            signals.task_retry.send(sender=task, request=context, reason=retry, einfo=ExceptionInfo(error))
        logger.warning("Task %s[%s] retry: %s", call.task, call.id, error)
        return Settlement(delivery=delivery, result=record, publish=context.outgoings or ())

    def fail(self, condemned: Condemned) -> Settlement | Condemned:
        """Return how it ends, or where somebody wants to be told, what to run for that."""
        call, plan = condemned.call, condemned.told
        task = plan.task if plan is not None else None
        if not self._ignored(task, call):
            context = self._context(call, condemned.delivery)
            condemned.record = self._records.failure(call, condemned.error, None, context)
        errbacks = Errbacks(self._app, call)
        wants = plan is not None and (
            plan.on_failure is not None or plan.after_return is not None or bool(signals.task_failure.receivers)
        )
        if condemned.delivery.count > self._most or not (wants or errbacks.called):
            return self._settlement(condemned, errbacks)
        if plan is None:
            condemned.task = TaskPlan(errbacks.called[0].type)
        return condemned

    def execute(self, condemned: Condemned) -> Outcome:
        """Tell the handlers and the errbacks, in this thread, and return the outcome."""
        call, error = condemned.call, condemned.error
        context = self._context(call, condemned.delivery)
        if condemned.told is not None:
            self._tell(condemned.told, call, context, error)
        errbacks = Errbacks(self._app, call)
        errbacks.run(context, error, None)
        return Outcome(state=states.FAILURE, settlement=self._settlement(condemned, errbacks))

    def _tell(self, plan: TaskPlan, call: Call, context: Context, error: Exception) -> None:
        einfo = ExceptionInfo(error)
        plan.task.push_request(context)
        try:
            if plan.on_failure is not None:
                plan.on_failure(error, call.id, call.args, call.kwargs, einfo)
            if plan.after_return is not None:
                plan.after_return(states.FAILURE, error, call.id, call.args, call.kwargs, einfo)
        # The wall around user code: the outcome is decided already.
        except Exception:
            logger.error("Task handler of %s[%s] raised", call.task, call.id, exc_info=True)
        finally:
            plan.task.pop_request()
        if signals.task_failure.receivers:
            signals.task_failure.send(
                sender=plan.task,
                task_id=call.id,
                exception=error,
                args=call.args,
                kwargs=call.kwargs,
                traceback=None,
                einfo=einfo,
            )

    def _ignored(self, task: Any, call: Call) -> bool:
        if task is None:
            return bool(call.headers.get("ignore_result"))
        return self._records.ignores(task, call) and not task.store_errors_even_if_ignored

    def _settlement(self, condemned: Condemned, errbacks: Errbacks) -> Settlement:
        return Settlement(
            delivery=condemned.delivery,
            how=condemned.how,
            result=condemned.record,
            publish=errbacks.sent,
            **self._downfall(condemned.call, condemned.error),
        )


def lost_verdict(app: Any, task: str, cause: str) -> Verdict | None:
    """Return the verdict on a running task whose process died, or None where it comes again and the crash counts.

    For the supervisor, which gives it to :meth:`umbel.interfaces.Leases.release`. ``task`` is the name of the task
    that ran and may be unknown here; ``cause`` is from :func:`cause_of_death`.
    """
    found = app.tasks.get(task)
    if found is None or requeues(found):
        return None
    return Verdict(kind=VerdictKind.LOST, detail=f"Worker exited prematurely: {cause}")


def requeues(task: Any) -> bool:
    """Say whether the message of a task comes again when the process that ran it is lost."""
    return when_lost(task) == REQUEUES


def when_lost(task: Any) -> str:
    """Return what becomes of a task when the process that runs it is lost: ``requeue``, ``retry`` or ``fail``.

    Its ``on_lost``, or else what Celery's options say, of which ``retry_on_worker_lost`` wins. Who acknowledges early
    is not run again, unless as a retry.
    """
    chosen = task.on_lost
    if chosen is None:
        chosen = RETRY if task.retry_on_worker_lost else REQUEUES if task.reject_on_worker_lost else FAIL
    return FAIL if chosen == REQUEUES and not task.acks_late else str(chosen)


def cause_of_death(code: int) -> str:
    """Return words for how a process ended: a negative code is a signal.

    >>> cause_of_death(-9)
    'signal 9 (SIGKILL)'
    """
    if code >= 0:
        return f"exitcode {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
