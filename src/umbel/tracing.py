"""One attempt to run one task: the hooks, signals and endings around the body, in Celery's order.

    enter: request pushed, task_prerun, before_start
    body
    leave: on_success | on_failure | on_retry, its signal, its log line, after_return (of a success or a failure),
           task_postrun, request popped

The worker and eager calls share this code; what becomes of the outcome (stored, published, settled) is theirs.
Nothing here touches a broker or a backend.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import sys
import threading
import time
import traceback as traceback_module
import uuid
import weakref
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from umbel import signals, states
from umbel.context import Context
from umbel.exceptions import Ignore, Reject, Retry, Terminated
from umbel.message import saferepr
from umbel.sensitive import HIDDEN, veil_of
from umbel.utils.text import one_line

if TYPE_CHECKING:
    import asyncio

# Celery's name for it, so that what users configured for it (levels, filters, Sentry's ignore list) goes on working.
logger = logging.getLogger("celery.app.trace")

SUCCEEDED = "Task %(name)s[%(id)s] succeeded in %(runtime)ss: %(return_value)s"
FAILED = "Task %(name)s[%(id)s] %(description)s: %(exc)s"
RETRIED = "Task %(name)s[%(id)s] retry: %(exc)s"
IGNORED = "Task %(name)s[%(id)s] ignored"
TERMINATED = "Task %(name)s[%(id)s] terminated"
REJECTED = "Task %(name)s[%(id)s] %(exc)s"
_LONGEST_REPR = 1 << 16
#: The states in which a task has returned; after the others it runs again, or something else decides about it.
_RETURNED = frozenset({states.SUCCESS, states.FAILURE})


class ExceptionInfo:
    """What handlers get as ``einfo``: the exception, its class, and the traceback as text."""

    __slots__ = ("exception", "internal", "tb", "traceback", "type")

    def __init__(
        self,
        exception: BaseException | tuple[Any, BaseException, Any] | None = None,
        internal: bool = False,
    ) -> None:
        """Describe an exception, or a triple as :func:`sys.exc_info` gives it, or what is being handled now."""
        if not isinstance(exception, BaseException):
            exception = (exception or sys.exc_info())[1]
        if exception is None:
            raise ValueError("ExceptionInfo needs an exception, or to be made in an except block")
        self.exception = exception
        self.type = type(exception)
        self.tb = exception.__traceback__
        self.internal = internal
        self.traceback = format_traceback(exception, self.tb)

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {self.exception!r}>"

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """Return the triple of :func:`sys.exc_info`."""
        return self.type, self.exception, self.tb


def format_traceback(exception: BaseException, tb: TracebackType | None) -> str:
    """Return the traceback as text; an exception whose own ``__str__`` raises still gets one."""
    # The first frame is the one below, which tells a user nothing.
    if tb is not None and tb.tb_next is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    try:
        return "".join(traceback_module.format_exception(type(exception), exception, tb))
    except Exception as error:  # the exception's own code runs here
        return f"{type(exception).__name__}: <unprintable: {type(error).__name__}>\n"


class Traced(msgspec.Struct, kw_only=True, eq=False):
    """How an attempt ended. ``result`` is the return value, or the exception where the state is not SUCCESS."""

    state: str
    result: Any = None
    einfo: ExceptionInfo | None = None
    runtime: float = 0.0
    #: What ``finish`` has made of it; a worker's settlement.
    made: Any = None

    @property
    def traceback(self) -> str | None:
        """Return the traceback as text, where there is one."""
        return self.einfo.traceback if self.einfo is not None else None


#: Returns what runs the attempts of a task in place of :meth:`Attempt.run`, or None; set where others may wrap them.
around_of: Callable[[Any], Callable[[Attempt], Traced] | None] | None = None


class TaskPlan:
    """What is asked of one task at every attempt, looked up once: hooks that are not overridden are not called."""

    __slots__ = ("after_return", "around", "before_start", "fun", "is_coroutine", "on_failure", "on_retry",
                 "on_success", "task", "veil")  # fmt: skip

    def __init__(self, task: Any) -> None:
        base = _root_task(type(task))
        self.task = task
        # First, for it may change the task.
        self.around = None if around_of is None else around_of(task)
        # A task's own __call__ (Flask's ContextTask pattern) wraps run; the plain one would only push a request again.
        self.fun: Callable[..., Any] = task if _overrides(task, base, "__call__") else task.run
        self.is_coroutine = inspect.iscoroutinefunction(inspect.unwrap(task.run)) or inspect.iscoroutinefunction(
            task.run
        )
        self.veil = veil_of(task)
        self.before_start = _hook(task, base, "before_start")
        self.on_success = _hook(task, base, "on_success")
        self.on_failure = _hook(task, base, "on_failure")
        self.on_retry = _hook(task, base, "on_retry")
        self.after_return = _hook(task, base, "after_return")


def _root_task(cls: type) -> type:
    for base in cls.__mro__:
        if base.__module__ == "umbel.task" and base.__name__ == "Task":
            return base
    return cls


def _overrides(task: Any, base: type, name: str) -> bool:
    return getattr(type(task), name, None) is not getattr(base, name, None)


def _hook(task: Any, base: type, name: str) -> Callable[..., Any] | None:
    overridden = _overrides(task, base, name) or name in getattr(task, "__dict__", {})
    return getattr(task, name, None) if overridden else None


_runners = threading.local()

#: Tasks of a loop that their executor has cancelled because it stops: it decides what becomes of their messages.
given_up: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine task in a thread that has no loop running, on a loop kept for that thread."""
    runner: asyncio.Runner | None = getattr(_runners, "runner", None)
    if runner is None:
        import asyncio

        runner = _runners.runner = asyncio.Runner()
    # A Runner keeps the context of its first run; each task must see its own request.
    return runner.run(coroutine, context=contextvars.copy_context())


def end_thread() -> None:
    """Close the loop that :func:`run_coroutine` has kept for this thread, which ends."""
    runner: asyncio.Runner | None = vars(_runners).pop("runner", None)
    if runner is not None:
        runner.close()


class BodyGuard(Protocol):
    """Stands around the body of a task, and may raise errors in it from outside: time limits, termination."""

    def run(self, body: Callable[[], Any]) -> Any:
        """Run it in this thread and return what it returns."""
        ...

    def run_async(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Return a coroutine that does the same on the running loop."""
        ...


class Attempt:
    """One attempt. ``run`` and ``run_async`` never raise for what user code does; use each attempt once."""

    __slots__ = ("app", "args", "context", "finish", "guard", "kwargs", "plan", "started")

    def __init__(
        self,
        app: Any,
        plan: TaskPlan,
        context: Context,
        args: Any,
        kwargs: dict[str, Any],
        guard: BodyGuard | None = None,
        finish: Callable[[Context, Traced], Traced] | None = None,
    ) -> None:
        """Prepare; nothing is run. The ``guard`` stands around the body, without the hooks' ends.

        :param finish: called after the body, before any hook, with a success; what it returns is how the attempt ends.
        """
        self.app = app
        self.guard = guard
        self.finish = finish
        self.plan = plan
        self.context = context
        self.args = args
        self.kwargs = kwargs
        self.started = 0.0

    def run(self) -> Traced:
        """Run the task in this thread, to its end."""
        self.plan.task.push_request(self.context)
        try:
            self.started = time.monotonic()
            try:
                self._enter()
                if self.guard is not None:
                    value = self._guarded(self.guard)
                else:
                    value = self.plan.fun(*self.args, **self.kwargs)
                    if self.plan.is_coroutine or inspect.iscoroutine(value):
                        value = run_coroutine(value)
            except BaseException as error:
                traced = self._failed(error)
            else:
                traced = self._returned(value)
            return self._leave(traced)
        finally:
            self.plan.task.pop_request()

    async def run_async(self) -> Traced:
        """Run a coroutine task on the running loop. Hooks run on the loop too, so they must not block.

        Raises :exc:`asyncio.CancelledError` where the loop's task is in :data:`given_up`. Any other cancellation, of
        something that the body waits for, is an error like others.
        """
        from asyncio import CancelledError, current_task

        self.plan.task.push_request(self.context)
        try:
            self.started = time.monotonic()
            try:
                self._enter()
                body = cast(Coroutine[Any, Any, Any], self.plan.fun(*self.args, **self.kwargs))
                value = await (body if self.guard is None else self.guard.run_async(body))
            except BaseException as error:
                if isinstance(error, CancelledError) and current_task() in given_up:
                    raise
                traced = self._failed(error)
            else:
                traced = self._returned(value)
            return self._leave(traced)
        finally:
            self.plan.task.pop_request()

    def _guarded(self, guard: BodyGuard) -> Any:
        if self.plan.is_coroutine:
            return run_coroutine(guard.run_async(self.plan.fun(*self.args, **self.kwargs)))
        value = guard.run(lambda: self.plan.fun(*self.args, **self.kwargs))
        return run_coroutine(guard.run_async(value)) if inspect.iscoroutine(value) else value

    def _enter(self) -> None:
        task, context = self.plan.task, self.context
        if signals.task_prerun.receivers:
            signals.task_prerun.send(sender=task, task_id=context.id, task=task, args=self.args, kwargs=self.kwargs)
        if self.plan.before_start is not None:
            self.plan.before_start(context.id, self.args, self.kwargs)

    def _returned(self, value: Any) -> Traced:
        traced = Traced(state=states.SUCCESS, result=value, runtime=time.monotonic() - self.started)
        return traced if self.finish is None else self.finish(self.context, traced)

    def _failed(self, error: BaseException) -> Traced:
        runtime = time.monotonic() - self.started
        if isinstance(error, Ignore):
            return Traced(state=states.IGNORED, result=error, runtime=runtime)
        if isinstance(error, Reject):
            return Traced(state=states.REJECTED, result=error, runtime=runtime)
        if isinstance(error, Retry):
            return Traced(state=states.RETRY, result=error, einfo=ExceptionInfo(error), runtime=runtime)
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            # Ctrl+C of an eager call belongs to the caller; worker processes ignore SIGINT.
            if self.context.is_eager:
                raise error
        if isinstance(error, Terminated) and not self.context.is_eager:
            return Traced(state=states.REVOKED, result=error, runtime=runtime)
        return Traced(state=states.FAILURE, result=error, einfo=ExceptionInfo(error), runtime=runtime)

    def _leave(self, traced: Traced) -> Traced:
        try:
            if traced.state == states.SUCCESS:
                self._succeeded(traced)
            elif traced.state == states.FAILURE:
                self._report_failure(traced)
            elif traced.state == states.RETRY:
                self._report_retry(traced)
            elif traced.state == states.REVOKED:
                logger.info(TERMINATED, self._words())
            elif traced.state == states.REJECTED:
                logger.warning(REJECTED, self._words(exc=_repr(traced.result)))
            else:
                logger.info(IGNORED, self._words())
            if self.plan.after_return is not None and traced.state in _RETURNED:
                self.plan.after_return(
                    traced.state, traced.result, self.context.id, self.args, self.kwargs, traced.einfo
                )
        except BaseException as error:
            if self.context.is_eager and not isinstance(error, Exception):
                # What ends a program belongs to the caller.
                raise
            # A handler's error must not change an outcome that is decided already.
            logger.error("Task handler of %s[%s] raised", self.plan.task.name, self.context.id, exc_info=True)
        if signals.task_postrun.receivers:
            signals.task_postrun.send(
                sender=self.plan.task,
                task_id=self.context.id,
                task=self.plan.task,
                args=self.args,
                kwargs=self.kwargs,
                retval=traced.result,
                state=traced.state,
            )
        return traced

    def _succeeded(self, traced: Traced) -> None:
        if self.plan.on_success is not None:
            self.plan.on_success(traced.result, self.context.id, self.args, self.kwargs)
        if signals.task_success.receivers:
            signals.task_success.send(sender=self.plan.task, result=traced.result, runtime=traced.runtime)
        if logger.isEnabledFor(logging.INFO) and not self.context.is_eager:
            # Celery's repr shows strings as they are; a result must not forge lines of the log.
            hidden = self.plan.veil is not None and self.plan.veil.everything
            text = HIDDEN if hidden else saferepr(traced.result, self.plan.task.resultrepr_maxsize)
            text = one_line(text, _LONGEST_REPR)
            words = self._words(runtime=traced.runtime, return_value=text)
            logger.info(SUCCEEDED, words, extra={"data": words})

    def _report_failure(self, traced: Traced) -> None:
        error, einfo = traced.result, traced.einfo
        if self.plan.on_failure is not None:
            self.plan.on_failure(error, self.context.id, self.args, self.kwargs, einfo)
        if signals.task_failure.receivers:
            signals.task_failure.send(
                sender=self.plan.task,
                task_id=self.context.id,
                exception=error,
                args=self.args,
                kwargs=self.kwargs,
                traceback=einfo.tb if einfo else None,
                einfo=einfo,
            )
        if self.context.is_eager:
            return
        expected = isinstance(error, tuple(self.plan.task.throws or ()))
        words = self._words(description="raised expected" if expected else "raised unexpected", exc=_repr(error))
        level = logging.INFO if expected else logging.ERROR
        exc_info = einfo.exc_info if einfo is not None and not expected else None
        logger.log(level, FAILED, words, exc_info=exc_info, extra={"data": words})

    def _report_retry(self, traced: Traced) -> None:
        retry = traced.result
        if self.plan.on_retry is not None:
            reason = retry.exc if retry.exc is not None else retry
            self.plan.on_retry(reason, self.context.id, self.args, self.kwargs, traced.einfo)
        if signals.task_retry.receivers:
            signals.task_retry.send(sender=self.plan.task, request=self.context, reason=retry, einfo=traced.einfo)
        logger.info(RETRIED, self._words(exc=one_line(retry)))

    def _words(self, **more: Any) -> dict[str, Any]:
        veil = self.plan.veil
        args, kwargs = (self.args, self.kwargs) if veil is None else veil.values(self.args, self.kwargs)
        return {
            "id": self.context.id,
            # It came with the message, unlike the name of a task that this app has.
            "name": one_line(self.context.shadow) if self.context.shadow else self.plan.task.name,
            "args": args,
            "kwargs": kwargs,
            "hostname": self.context.hostname,
            **more,
        }


def _repr(error: BaseException) -> str:
    try:
        return one_line(repr(error), _LONGEST_REPR)
    except Exception as inner:  # the exception's own code runs here
        return f"<unrepresentable {type(error).__name__}: {type(inner).__name__}>"


def in_body(frame: FrameType | None) -> bool:
    """Say whether an error raised in this frame of the running thread would be caught as the task's own."""
    below = None
    found = False
    while frame is not None:
        if frame.f_code is _RUN:
            found = below is not None and below not in _OUTSIDE
        below, frame = frame.f_code, frame.f_back
    return found


_RUN = Attempt.run.__code__
_OUTSIDE = {Attempt._failed.__code__, Attempt._leave.__code__}


def run_eager(task: Any, context: Context, args: Any, kwargs: dict[str, Any], *, throw: bool = False) -> Traced:
    """Run a task here and now, as ``apply`` does; with ``throw`` its error is raised instead of returned."""
    context.is_eager = True
    if context.id is None:
        context.id = str(uuid.uuid4())
    plan = TaskPlan(task)
    attempt = Attempt(task.app, plan, context, args, kwargs)
    # Inside a running loop a coroutine task cannot be run to its end on this thread.
    if plan.is_coroutine and _loop_running():
        traced = _in_thread(attempt)
    else:
        traced = attempt.run() if plan.around is None else plan.around(attempt)
    if throw and traced.state in states.PROPAGATE_STATES:
        raise traced.result
    return traced


def _loop_running() -> bool:
    asyncio = sys.modules.get("asyncio")  # where it was never imported no loop runs
    return asyncio is not None and asyncio._get_running_loop() is not None


def _in_thread(attempt: Attempt) -> Traced:
    outcome: list[Traced | BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.append(context.run(attempt.run))
        except BaseException as error:  # a hook's own; it belongs to the thread that asked
            outcome.append(error)
        finally:
            end_thread()

    thread = threading.Thread(target=work, name="umbel-eager")
    thread.start()
    thread.join()
    (ended,) = outcome
    if isinstance(ended, BaseException):
        raise ended
    return ended
