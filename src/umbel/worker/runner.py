"""From a delivery to the settlement that ends it.

``admit`` decides, before anything runs, whether a delivery is a task of ours that is due; ``run`` runs it. Both end
in a :class:`~umbel.interfaces.Settlement` that carries everything the ending needs: the result, the follow-ups, and
what becomes of the message. Neither touches the broker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from umbel import signals, states
from umbel.context import Context
from umbel.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    InvalidTaskError,
    MaxDeliveriesExceeded,
    NotRegistered,
    SerializationError,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from umbel.interfaces import (
    ACK,
    REQUEUE,
    Begin,
    Dead,
    Delay,
    Delivery,
    Execution,
    Outcome,
    ResultRecord,
    Settlement,
    Verdict,
    VerdictKind,
)
from umbel.message import Call, Message, decode_call, decode_envelope, read_headers
from umbel.meta import encode_meta
from umbel.tracing import Attempt, ExceptionInfo, TaskPlan, Traced
from umbel.worker.followups import failure_followups, success_followups

logger = logging.getLogger("celery.worker.strategy")
trace_logger = logging.getLogger("celery.app.trace")

_VERDICTS: dict[VerdictKind, type[Exception]] = {
    VerdictKind.LOST: WorkerLostError,
    VerdictKind.TIME_LIMIT: TimeLimitExceeded,
    VerdictKind.TERMINATED: Terminated,
    VerdictKind.MAX_DELIVERIES: MaxDeliveriesExceeded,
}


class TaskRunner:
    """Runs the tasks of one app in one process. Its methods may be called from any thread."""

    def __init__(self, app: Any, *, hostname: str, clock: Any = None) -> None:
        self._app = app
        self._hostname = hostname
        self._clock = clock or app.clock
        self._plans: dict[str, TaskPlan] = {}
        self._accept = tuple(app.conf.accept_content)
        self._extended = bool(app.conf.result_extended)
        self._serializer: str = app.conf.result_serializer
        self._expires = _seconds(app.conf.result_expires)
        self._has_backend = app.backend is not None
        self._pid = os.getpid()

    # -- before it runs ------------------------------------------------------------------------------------------

    def admit(self, delivery: Delivery, reserved_at: float) -> Execution | Settlement:
        """Return what to run, or the settlement of a delivery that must not run (now)."""
        try:
            message = delivery.message or decode_envelope(delivery.raw)
        except DecodeError as error:
            return self._undecodable(delivery, None, error)
        try:
            call = decode_call(message, self._accept)
        except (DecodeError, InvalidTaskError) as error:
            return self._undecodable(delivery, message, error)
        if delivery.verdict is not None:
            return self._condemned(delivery, call, delivery.verdict)
        plan = self._plans.get(call.task)
        if plan is None:
            try:
                plan = self._plans[call.task] = TaskPlan(self._app.tasks[call.task])
            except NotRegistered:
                return self._unknown(delivery, call)
        if call.eta is not None or call.expires is not None:
            early = self._timing(delivery, call, plan)
            if early is not None:
                return early
        if call.chord is not None:
            return self._unsupported_chord(delivery, call)
        if logger.isEnabledFor(logging.INFO):
            logger.info("Task %(name)s[%(id)s] received", {"name": call.task, "id": call.id})
        if signals.task_received.receivers:
            signals.task_received.send(sender=self._hostname, request=self._context(call, delivery, plan))
        return Execution(delivery=delivery, call=call, task=plan, reserved_at=reserved_at)

    def begin(self, execution: Execution) -> Begin | None:
        """Return what must be recorded before this execution starts, or None for most tasks."""
        task = execution.task.task
        once = not task.acks_late
        tracked = task.track_started and not self._ignores(task, execution.call)
        if not once and not tracked:
            return None
        record = None
        if tracked and self._has_backend:
            result = {"pid": self._pid, "hostname": self._hostname}
            record = self._record(execution.call, states.STARTED, result, None, self._context_of(execution))
        return Begin(delivery=execution.delivery, result=record, once=once)

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, execution: Execution) -> Outcome:
        """Run it in this thread."""
        call = execution.call
        context = self._context_of(execution)
        traced = Attempt(self._app, execution.task, context, call.args, call.kwargs).run()
        return self._outcome(execution, context, traced)

    async def run_async(self, execution: Execution) -> Outcome:
        """Run a coroutine task on the running loop."""
        call = execution.call
        context = self._context_of(execution)
        traced = await Attempt(self._app, execution.task, context, call.args, call.kwargs).run_async()
        return self._outcome(execution, context, traced)

    def _context_of(self, execution: Execution) -> Context:
        return self._context(execution.call, execution.delivery, execution.task)

    def _context(self, call: Call, delivery: Delivery, plan: TaskPlan) -> Context:
        return Context.from_call(call, delivery, hostname=self._hostname)

    # -- endings -------------------------------------------------------------------------------------------------

    def _outcome(self, execution: Execution, context: Context, traced: Traced) -> Outcome:
        ending = _ENDINGS[traced.state]
        settlement = ending(self, execution, context, traced)
        if context.outgoings:
            # Retries that were asked for without raising: the task went on, and they leave with its outcome.
            publish = list(settlement.publish)
            publish += [each for each in context.outgoings if not any(each is other for other in publish)]
            settlement = msgspec.structs.replace(settlement, publish=publish)
        return Outcome(state=traced.state, settlement=settlement, runtime=traced.runtime)

    def _success(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        call = execution.call
        record = None
        try:
            if not self._ignores(execution.task.task, call):
                record = self._record(call, states.SUCCESS, traced.result, None, context)
            follow = success_followups(self._app, call, traced.result) if call.callbacks or call.chain else ()
        except SerializationError as error:
            # The body ran, but nobody could read what it returned: Celery calls that a failure as well.
            trace_logger.error("Task %s[%s]: the result cannot be encoded: %s", call.task, call.id, error)
            return self._failure(
                execution,
                context,
                Traced(state=states.FAILURE, result=error, einfo=ExceptionInfo(error), runtime=traced.runtime),
            )
        return Settlement(delivery=execution.delivery, result=record, publish=follow)

    def _failure(self, execution: Execution, context: Context, traced: Traced) -> Settlement:
        task, call = execution.task.task, execution.call
        record = None
        if not self._ignores(task, call) or task.store_errors_even_if_ignored:
            record = self._failure_record(call, traced.result, traced.traceback, context)
        follow = failure_followups(self._app, call) if call.errbacks else ()
        how = ACK
        if _wrong_signature(traced):
            return Settlement(
                delivery=execution.delivery,
                how=Dead("wrong_signature", f"{call.task}: {traced.result}"),
                result=record,
                publish=follow,
            )
        return Settlement(delivery=execution.delivery, how=how, result=record, publish=follow)

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
        reject = traced.result
        if signals.task_rejected.receivers:
            signals.task_rejected.send(sender=self._hostname, message=execution.delivery, exc=reject)
        if reject.requeue:
            return Settlement(delivery=execution.delivery, how=REQUEUE)
        return Settlement(delivery=execution.delivery, how=Dead("rejected", str(reject.reason)))

    # -- deliveries that do not run ------------------------------------------------------------------------------

    def _undecodable(self, delivery: Delivery, message: Message | None, error: Exception) -> Settlement:
        if isinstance(error, ContentDisallowed):
            reason = "content_disallowed"
        elif isinstance(error, InvalidTaskError):
            reason = "invalid_task"
        else:
            reason = "undecodable"
        logger.error("Message from %s is kept as a dead letter (%s): %s", delivery.queue, reason, _one_line(error))
        record = None
        if message is not None and self._has_backend:
            record = self._orphan_record(message, error)
        return Settlement(delivery=delivery, how=Dead(reason, _one_line(error)), result=record)

    def _orphan_record(self, message: Message, error: Exception) -> ResultRecord | None:
        try:
            _, task_id = read_headers(message)
        except (InvalidTaskError, DecodeError):
            return None
        payload = encode_meta(task_id, states.FAILURE, error, None, (), self._clock.now(), serializer=self._serializer)
        return ResultRecord(task_id=task_id, state=states.FAILURE, payload=payload, expires=self._expires)

    def _unknown(self, delivery: Delivery, call: Call) -> Settlement:
        error = NotRegistered(call.task)
        logger.error(
            "Received unregistered task of type %r.\nThe message is kept as a dead letter. "
            "Did you remember to import the module containing this task, and is its name absolute?",
            call.task,
        )
        if signals.task_unknown.receivers:
            signals.task_unknown.send(sender=self._hostname, message=delivery, exc=error, name=call.task, id=call.id)
        record = None if call.headers.get("ignore_result") else self._failure_record(call, error, None, None)
        detail = f"task {call.task!r} is not registered here"
        return Settlement(delivery=delivery, how=Dead("unregistered", detail), result=record)

    def _unsupported_chord(self, delivery: Delivery, call: Call) -> Settlement:
        logger.error("Task %s[%s] is part of a chord, which this version cannot complete", call.task, call.id)
        return Settlement(delivery=delivery, how=Dead("chord", "members of chords are not supported yet"))

    def _condemned(self, delivery: Delivery, call: Call, verdict: Verdict) -> Settlement:
        error = _VERDICTS[verdict.kind](verdict.detail or verdict.kind.value)
        logger.error("Task %s[%s] ends as FAILURE: %s", call.task, call.id, error)
        how = Dead(verdict.kind.value, verdict.detail) if verdict.kind is VerdictKind.MAX_DELIVERIES else ACK
        follow = failure_followups(self._app, call) if call.errbacks else ()
        record = self._failure_record(call, error, None, None)
        return Settlement(delivery=delivery, how=how, result=record, publish=follow)

    def _timing(self, delivery: Delivery, call: Call, plan: TaskPlan) -> Settlement | None:
        now = self._clock.now()
        expires = _moment(call.expires)
        if expires is not None and expires <= now:
            logger.info("Discarding revoked task: %s[%s]", call.task, call.id)
            context = self._context(call, delivery, plan)
            if signals.task_revoked.receivers:
                signals.task_revoked.send(
                    sender=plan.task, request=context, terminated=False, signum=None, expired=True
                )
            record = None
            if not self._ignores(plan.task, call):
                record = self._failure_record(call, TaskRevokedError("expired"), None, context, states.REVOKED)
            return Settlement(delivery=delivery, result=record)
        eta = _moment(call.eta)
        # A broker with a schedule hands a message out when it is due by the broker's clock, which may be a little
        # ahead of ours; only what a Celery producer put straight into the queue is really early.
        if eta is not None and (eta - now).total_seconds() > 0.5:
            return Settlement(delivery=delivery, how=Delay(eta))
        return None

    # -- records -------------------------------------------------------------------------------------------------

    def _ignores(self, task: Any, call: Call) -> bool:
        return not self._has_backend or bool(call.headers.get("ignore_result")) or bool(task.ignore_result)

    def _record(
        self, call: Call, state: str, result: Any, traceback: str | None, context: Context | None
    ) -> ResultRecord:
        payload = encode_meta(
            call.id,
            state,
            result,
            traceback,
            context.children if context is not None else (),
            self._clock.now() if state in states.READY_STATES else None,
            request=context,
            extended=self._extended,
            serializer=self._serializer,
        )
        return ResultRecord(task_id=call.id, state=state, payload=payload, expires=self._expires)

    def _failure_record(
        self,
        call: Call,
        error: BaseException,
        traceback: str | None,
        context: Context | None,
        state: str = states.FAILURE,
    ) -> ResultRecord | None:
        if not self._has_backend:
            return None
        try:
            return self._record(call, state, error, traceback, context)
        except SerializationError as inner:
            readable = EncodeError(f"{type(error).__name__}: its arguments cannot be encoded ({inner})")
            return self._record(call, state, readable, traceback, context)


_ENDINGS: dict[str, Callable[[TaskRunner, Execution, Context, Traced], Settlement]] = {
    states.SUCCESS: TaskRunner._success,
    states.FAILURE: TaskRunner._failure,
    states.RETRY: TaskRunner._retry,
    states.IGNORED: TaskRunner._ignored,
    states.REJECTED: TaskRunner._rejected,
}


_OUR_FRAMES = ("umbel/tracing.py", "umbel/task.py", "umbel/bound.py", "umbel/retrying.py")


def _wrong_signature(traced: Traced) -> bool:
    # A TypeError that was raised by the call itself, not inside the body, has only our own frames.
    if not isinstance(traced.result, TypeError) or traced.einfo is None:
        return False
    tb = traced.einfo.tb
    while tb is not None and tb.tb_frame.f_code.co_filename.endswith(_OUR_FRAMES):
        tb = tb.tb_next
    return tb is None and "argument" in str(traced.result)


def _moment(text: Any) -> datetime | None:
    if text is None:
        return None
    if isinstance(text, int | float):
        return datetime.fromtimestamp(text, UTC)
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else float(value)
    return seconds if seconds > 0 else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:1024]
