"""Endings that were decided outside an engine: the process is gone, and the next engine settles the failure."""

from __future__ import annotations

import logging
import signal
from typing import Any, Final

from umbel import signals, states
from umbel.context import Context
from umbel.exceptions import MaxDeliveriesExceeded, Terminated, TimeLimitExceeded, WorkerLostError
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
        logger.error("Task %s[%s] ends as FAILURE: %s", call.task, call.id, error)
        how: How = ACK
        task = plan.task if plan is not None else None
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

    def fail(self, condemned: Condemned) -> Settlement | Condemned:
        """Return how it ends, or where somebody wants to be told, what to run for that."""
        call, plan = condemned.call, condemned.told
        task = plan.task if plan is not None else None
        if not self._ignored(task, call):
            condemned.record = self._records.failure(call, condemned.error)
        errbacks = Errbacks(self._app, call)
        wants = plan is not None and (
            plan.on_failure is not None or plan.after_return is not None or bool(signals.task_failure.receivers)
        )
        if condemned.delivery.count > self._most or not (wants or errbacks.called):
            return _settlement(condemned, errbacks)
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
        return Outcome(state=states.FAILURE, settlement=_settlement(condemned, errbacks))

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


def _settlement(condemned: Condemned, errbacks: Errbacks) -> Settlement:
    return Settlement(delivery=condemned.delivery, how=condemned.how, result=condemned.record, publish=errbacks.sent)


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
    if not task.acks_late:
        return False
    chosen = task.on_lost
    return bool(task.reject_on_worker_lost) if chosen is None else bool(chosen == "requeue")


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
