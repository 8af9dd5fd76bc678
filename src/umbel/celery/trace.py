"""``celery.app.trace``: the function around each attempt, for those who wrap it.

Who replaces ``celery.app.trace.build_tracer`` is asked for a tracer of each task when a worker first runs that task,
and the attempts then go through it: ``tracer(task_id, args, kwargs, request)``, as in Celery.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from umbel import tracing
from umbel.tracing import FAILED, IGNORED, REJECTED, RETRIED, SUCCEEDED

LOG_RECEIVED: Final = "Task %(name)s[%(id)s] received"
LOG_SUCCESS: Final = SUCCEEDED
LOG_FAILURE: Final = FAILED
LOG_INTERNAL_ERROR: Final = FAILED
LOG_RETRY: Final = RETRIED
LOG_IGNORED: Final = IGNORED
LOG_REJECTED: Final = REJECTED

TraceInfo = tracing.Traced


class trace_ok_t(NamedTuple):
    """What a tracer returns: the value, how it ended, how long it took, and the value in words."""

    retval: Any
    info: Any
    runtime: float
    retstr: str


_attempt: contextvars.ContextVar[Any] = contextvars.ContextVar("umbel_attempt")


def task_has_custom(task: Any, attr: str) -> bool:
    """Say whether a task's class overrides a method."""
    from umbel.task import Task

    return getattr(type(task), attr, None) is not getattr(Task, attr, None)


def build_tracer(name: str, task: Any, *args: Any, **kwargs: Any) -> Callable[..., trace_ok_t]:
    """Return the function that runs the attempt at hand. Only for what wraps it: a worker calls the result."""

    def trace_task(uuid: str, args: Any, kwargs: Any, request: Any = None) -> trace_ok_t:
        hand = _attempt.get()
        hand.traced = hand.attempt.run()
        traced = hand.traced
        return trace_ok_t(traced.result, traced.einfo, traced.runtime, "")

    return trace_task


class _Hand:
    """One attempt on its way through a tracer, and what became of it."""

    __slots__ = ("attempt", "traced")

    def __init__(self, attempt: Any) -> None:
        self.attempt = attempt
        self.traced: Any = None


def tracer_of(task: Any) -> Callable[[Any], Any] | None:
    """Return what runs an attempt through the tracer that somebody put in place of ours, or None."""
    page: Any = sys.modules.get("celery.app.trace")
    builder = vars(page).get("build_tracer") if page is not None else None
    if builder is None or builder is build_tracer:
        return None
    tracer = builder(task.name, task, app=task.app)

    def around(attempt: Any) -> Any:
        hand = _Hand(attempt)
        token = _attempt.set(hand)
        try:
            context = attempt.context
            tracer(context.id, attempt.args, attempt.kwargs, dict(vars(context)))
        finally:
            _attempt.reset(token)
        # A tracer that does not call what it wraps must not lose the task.
        return hand.traced if hand.traced is not None else attempt.run()

    return around


def trace_task(task: Any, uuid: str, args: Any, kwargs: Any, request: Any = None, **opts: Any) -> Any:
    """Run a task here and now and return how it ended."""
    from umbel.context import Context

    return tracing.run_eager(task, Context({**(request or {}), "id": uuid}), args, kwargs)


def trace_task_ret(name: str, uuid: str, request: Any, body: Any = None, *args: Any, app: Any = None, **kw: Any) -> Any:
    """Refuse: a worker of Umbel reads messages itself."""
    raise NotImplementedError("run a task by task.apply(args, kwargs), or start a worker")


fast_trace_task = trace_task_ret


def get_log_policy(task: Any, einfo: Any, exc: BaseException) -> Any:
    """Return what a failure is called in the log."""
    return "raised expected" if isinstance(exc, tuple(task.throws or ())) else "raised unexpected"


def get_task_name(request: Any, default: str) -> str:
    """Return a call's shadow name, or the task's."""
    return getattr(request, "shadow", None) or default


def setup_worker_optimizations(app: Any, hostname: str | None = None) -> None:
    """Do nothing: there is one way to run a task."""


def reset_worker_optimizations(app: Any = None) -> None:
    """Do nothing."""


tracing.around_of = tracer_of
