"""How a task ends that was revoked before it started, or terminated while it ran: as REVOKED.

``runner`` is the :class:`~umbel.worker.runner.TaskRunner`; this is a part of it in a file of its own.
"""

from __future__ import annotations

import logging
import signal
from typing import Any

from umbel import signals, states
from umbel.context import Context
from umbel.exceptions import NotRegistered, TaskRevokedError, TimeLimitExceeded
from umbel.interfaces import ACK, Dead, Delivery, Execution, How, Requeue, Settlement, Verdict
from umbel.message import Call
from umbel.tracing import TaskPlan, Traced

logger = logging.getLogger("celery.worker.request")


def discarded(runner: Any, execution: Execution) -> Settlement:
    """End a message whose task was revoked before it started."""
    call = execution.call
    logger.info("Discarding revoked task: %s[%s]", call.task, call.id)
    context = runner._context(call, execution.delivery, execution.task)
    return _ending(runner, execution.delivery, call, execution.task.task, context, "revoked", None)


def terminated(runner: Any, execution: Execution, context: Context, traced: Traced) -> Settlement:
    """End a task in which :exc:`Terminated` was raised."""
    args = traced.result.args
    signum = args[0] if args and isinstance(args[0], int) else signal.SIGTERM
    return _ending(runner, execution.delivery, execution.call, execution.task.task, context, "terminated", int(signum))


def killed(runner: Any, delivery: Delivery, call: Call, verdict: Verdict) -> Settlement:
    """End a message whose process was killed on request while it ran; the verdict's detail is the signal's name."""
    try:
        plan = TaskPlan(runner._app.tasks[call.task])
    except NotRegistered:
        # It ran in a process of another version, and there is nobody to tell.
        return Settlement(delivery=delivery)
    try:
        signum = signal.Signals[verdict.detail].value
    except KeyError:
        signum = signal.SIGTERM.value
    context = runner._context(call, delivery, plan)
    return _ending(runner, delivery, call, plan.task, context, "terminated", signum)


def after_failure(task: Any, error: BaseException) -> How:
    """Return what becomes of the message of a task that failed: where its class says so, it is not acknowledged."""
    if not task.acks_late:
        return ACK
    if isinstance(error, TimeLimitExceeded):
        return ACK if task.acks_on_timeout else Requeue(counted=True)
    return ACK if task.acks_on_failure else Dead("failed", f"{type(error).__name__}: {error}")


def _ending(
    runner: Any, delivery: Delivery, call: Call, task: Any, context: Context, reason: str, signum: int | None
) -> Settlement:
    if signals.task_revoked.receivers:
        signals.task_revoked.send(
            sender=task, request=context, terminated=signum is not None, signum=signum, expired=False
        )
    record, error = None, TaskRevokedError(reason)
    if not runner._ignores(task, call):
        record = runner._failure_record(call, error, None, context, states.REVOKED)
    return Settlement(delivery=delivery, result=record, **runner._downfall(call, error, None, states.REVOKED))
