"""The task: what a decorated function becomes, and the ways to call it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast, overload

from umbel import asyncio as off_loop
from umbel.composing import Composing
from umbel.context import Context
from umbel.current import denied_join_result, pop_frame, push_frame, top_frame
from umbel.eager import apply_eagerly, round_trip
from umbel.progress import report_of, track, track_async
from umbel.publishing import Dispatch, prepare
from umbel.retrying import next_call, retry_task
from umbel.signatures import Signature, signature

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar

    from umbel.asyncresult import AsyncResult, EagerResult
    from umbel.exceptions import Retry

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any)
    T = TypeVar("T")
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")

__all__ = ["Context", "Task"]


class Task(Composing, Generic[P, R]):
    """A function that workers run. Made by :meth:`Umbel.task`, or by subclassing with ``name`` and ``run``.

    One instance serves every call in every thread; what belongs to one call is in :attr:`request`.
    """

    __header__: ClassVar[Any] = None
    _custom_call: ClassVar[bool] = False
    _custom_apply_async: ClassVar[bool] = False
    _custom_result: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._custom_call = cls.__call__ is not Task.__call__
        cls._custom_apply_async = cls.apply_async is not Task.apply_async
        cls._custom_result = cls.AsyncResult is not Task.AsyncResult

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The body. A class-based task defines it; it may be a coroutine function."""
        raise NotImplementedError("Tasks must define the run method.")

    run._missing = True  # type: ignore[attr-defined]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the body here, as a plain function. For a coroutine function, return the coroutine."""
        frame = top_frame()
        if self._custom_call and frame is not None and frame.task is self and frame.request is not None:
            request = frame.request
            if not request.called_directly and not request._protected:
                # A worker runs this attempt through the class's own __call__, and has pushed its request.
                request._protected = True
                return cast(R, self.run(*args, **kwargs))
        push_frame(self, Context(args=args, kwargs=kwargs))
        try:
            value = self.run(*args, **kwargs)
        finally:
            pop_frame()
        return cast(R, self._within(value, args, kwargs) if inspect.iscoroutine(value) else value)

    async def _within(self, coroutine: Awaitable[Any], args: Any, kwargs: Any) -> Any:
        push_frame(self, Context(args=args, kwargs=kwargs))
        try:
            return await coroutine
        finally:
            pop_frame()

    # -- sending -------------------------------------------------------------------------------------------------

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the task with these arguments; short for :meth:`apply_async` without options."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send the task and return its result object. Returns when the broker has confirmed.

        Options are those of :meth:`Umbel.send_task`. Raises ``TypeError`` if the arguments do not fit the signature,
        ``ValueError`` if options contradict each other, :exc:`EncodeError` if the arguments cannot be serialized, and
        :exc:`OperationalError` if the broker cannot be reached within ``publish_timeout``.
        """
        if task_id is not None or link is not None or link_error is not None or shadow is not None:
            options.update(task_id=task_id, link=link, link_error=link_error, shadow=shadow)
        app = self.app
        dispatch = self._prepare(app, args, kwargs, options)
        if dispatch is None:
            return cast("AsyncResult[R]", self._apply_now(args, kwargs, options))
        dispatch.send(app)
        return cast("AsyncResult[R]", dispatch.result(app))

    def _prepare(self, app: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Dispatch | None:
        """Return the call ready to be sent, or None where it must be run here instead."""
        plan = app.plan_of(self)
        if plan.check is not None:
            plan.check(args or (), kwargs or {})
        if type(self).shadow_name is not Task.shadow_name or "shadow_name" in self.__dict__:
            options["shadow"] = options.get("shadow") or self.shadow_name(args, kwargs, options)
        return None if plan.eager else prepare(app, plan, args, kwargs, options)

    def _apply_now(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        args, kwargs = round_trip(self, args, kwargs, options)
        with denied_join_result():
            return self.apply(args, kwargs, **options)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Do :meth:`delay` without blocking the event loop."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Do :meth:`apply_async` without blocking the event loop.

        If it is cancelled the task may or may not have been sent.
        """
        app, timeout = self.app, options.get("timeout")
        if self._custom_apply_async and type(self).aapply_async is Task.aapply_async:
            # Its class has something to do with each call.
            return await off_loop.send(
                app, timeout, lambda left: self.apply_async(args, kwargs, **{**options, "timeout": left})
            )
        dispatch = self._prepare(app, args, kwargs, options)
        if dispatch is None:
            eager = await off_loop.run(lambda: self._apply_now(args, kwargs, options))
            return cast("AsyncResult[R]", eager)
        await off_loop.send(app, timeout, lambda left: dispatch.send_within(app, left))
        return cast("AsyncResult[R]", dispatch.result(app))

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: Any = None,
        loglevel: Any = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Run the task here and now, as a worker would, retries and callbacks included.

        :param throw: raise the task's error; None takes ``task_eager_propagates``.
        """
        options.update(
            link=link, link_error=link_error, task_id=task_id, logfile=logfile, loglevel=loglevel, headers=headers
        )
        return cast("EagerResult[R]", apply_eagerly(self, args, kwargs, retries or 0, throw, options))

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """End this attempt and have the task tried again later; raises :exc:`Retry`.

        Over the limit it raises ``exc``, or :exc:`MaxRetriesExceededError` without one; called outside of a worker
        it raises ``exc`` at once. With ``throw=False`` it returns the :exc:`Retry`, and the next try is sent when
        this attempt ends, however it ends.

        :param max_retries: the limit for this attempt; None takes the task's.
        """
        return retry_task(self, args, kwargs, exc, throw, eta, countdown, max_retries, options)

    # -- inside a run --------------------------------------------------------------------------------------------

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Store a state of a task, for example its progress; of the running attempt unless ``task_id`` says else."""
        request = self.request
        report = request.report_state
        task_id = task_id if task_id is not None else request.id
        if report is not None and task_id == request.id:
            report(task_id, state, meta)
        else:
            self.app.store_state(self, task_id, state, meta, request if task_id == request.id else None)

    def progress(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """Say how far the running attempt is: ``self.progress(3, 10, "resizing")``. Waits for no store.

        The newest is stored as the state ``PROGRESS``, at most ten times a second, until the attempt ends. Nothing is
        stored where the result is ignored. Raises :exc:`TypeError` or :exc:`ValueError` for what is no amount.

        :param total: how much there is; None if nobody knows.
        :param text: what is being done; None leaves it as it was.
        """
        report_of(self).tell(done, total, text)

    @overload
    def track(self, iterable: Iterable[T], total: float | None = None, text: str | None = None) -> Iterator[T]: ...
    @overload
    def track(
        self, iterable: AsyncIterable[T], total: float | None = None, text: str | None = None
    ) -> AsyncIterator[T]: ...
    def track(self, iterable: Any, total: float | None = None, text: str | None = None) -> Any:
        """Return the items one by one, and do :meth:`progress` for each that was dealt with.

        ``total`` is the length of the iterable where it has one. Go through an asynchronous one with ``async for``.
        """
        steps: Any = track if hasattr(iterable, "__iter__") or not hasattr(iterable, "__aiter__") else track_async
        return steps(report_of(self), iterable, total, text)

    def send_event(self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Send an event of the running attempt, such as ``self.send_event("task-progress", done=3)``."""
        request = self.request
        with self.app.events.default_dispatcher(hostname=request.hostname) as dispatcher:
            dispatcher.send(type_, uuid=request.id, **fields)

    # -- signatures and results ----------------------------------------------------------------------------------

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Signature[R]:
        """Return a signature of this task: arguments and options of a call that is made later, perhaps elsewhere."""
        starkwargs.setdefault("app", self.app)
        return cast("Signature[R]", signature(self, args, *starargs, **starkwargs))

    subtask = signature

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return a signature with these arguments, which may be incomplete."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """Return a signature that ignores what a callback or chain would prepend to its arguments."""
        return self.signature(args, kwargs, immutable=True)

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: Any = None, **extra_options: Any
    ) -> Signature[R]:
        """Return a signature that makes the running call once more."""
        return next_call(self, request if request is not None else self.request, args, kwargs, queue, **extra_options)

    subtask_from_request = signature_from_request

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult[R]:
        """Return the result of a call of this task by its id."""
        kwargs.setdefault("task_name", self.name)
        return cast("AsyncResult[R]", self.app.AsyncResult(task_id, **kwargs))
