"""Trying a task again: what the next call looks like, and doing it by itself for chosen exceptions."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from umbel.collecting import Collected
from umbel.exceptions import Ignore, Reject, Retry
from umbel.retry import exponential_backoff
from umbel.signatures import Signature, signature


def retry_task(
    task: Any,
    args: Any,
    kwargs: Any,
    exc: BaseException | None,
    throw: bool,
    eta: Any,
    countdown: float | None,
    max_retries: int | None,
    options: Mapping[str, Any],
) -> Retry:
    """Do :meth:`Task.retry`.

    In a worker nothing is sent here: the message travels on the exception (``outgoing``), and the settlement that
    acknowledges the old one publishes it in the same step, so that a crash can neither lose nor double the task.
    """
    request = task.request
    if request.called_directly:
        # No worker is here to try again, so the caller gets the reason.
        _raise_over_current(exc or Retry("Task can be retried", None))
    if max_retries is not None:
        request.override_max_retries = max_retries
    limit = task.max_retries if max_retries is None else max_retries
    retries = request.retries + 1
    if not eta and countdown is None:
        countdown = task.default_retry_delay
    args, kwargs = _next_arguments(task, request, args, kwargs)
    sig = next_call(task, request, args, kwargs, countdown=countdown, eta=eta, retries=retries, **options)
    if limit is not None and retries > limit:
        if exc is not None:
            _raise_over_current(exc)
        raise task.MaxRetriesExceededError(
            f"Can't retry {task.name}[{request.id}] args:{sig.args} kwargs:{sig.kwargs}",
            task_args=sig.args,
            task_kwargs=sig.kwargs,
        )
    retry = Retry(exc=exc, when=eta or countdown, is_eager=request.is_eager, sig=sig)
    if not request.is_eager:
        outgoing = Collected(task.app).again(task.name, sig.args, sig.kwargs, _given(sig.options))
        retry.outgoing = outgoing  # type: ignore[attr-defined]
        if not throw:
            request.outgoings = [*(request.outgoings or ()), outgoing]
    if throw:
        raise retry
    return retry


def next_call(
    task: Any, request: Any, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
) -> Signature[Any]:
    """Return the signature of the call that a request describes: same id, callbacks, headers, queue and priority."""
    merged = {**request.as_execution_options(), "ignore_result": ignores_result(task, request), **options}
    info = request.delivery_info or {}
    if info.get("priority") is not None:
        merged.setdefault("priority", info["priority"])
    if queue:
        merged["queue"] = queue
    elif info.get("routing_key") and not info.get("exchange"):
        merged["queue"] = info["routing_key"]
    elif info.get("exchange"):
        merged.update(exchange=info["exchange"], routing_key=info.get("routing_key"))
    return signature(
        task,
        request.args if args is None else args,
        request.kwargs if kwargs is None else kwargs,
        options=merged,
        app=task.app,
    )


def ignores_result(task: Any, request: Any) -> bool:
    """Say whether this call stores no result: what its sender said, else what the task says."""
    said = vars(request).get("ignore_result")
    return bool(task.ignore_result if said is None else said)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _raise_over_current(exc: BaseException) -> NoReturn:
    # With an error being handled, that one is what happened; an exc of the same error adds nothing.
    current = sys.exc_info()[1]
    if current is None or current is exc:
        raise exc
    raise exc from current


def _next_arguments(task: Any, request: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of the next call; new ones take the place of old ones for the same parameter."""
    clash = (args is not None and kwargs is None and request.kwargs) or (
        kwargs is not None and args is None and request.args
    )
    if not clash:
        return args, kwargs
    try:
        declared = inspect.signature(task.run)
    except (TypeError, ValueError):
        return args, kwargs
    if kwargs is None:
        return args, _without_positional(declared, args, request.kwargs)
    try:
        bound = declared.bind_partial(*request.args)
    except TypeError:
        return args, kwargs
    # Only a name that may be given either way is replaced; *args and positional-only ones keep their place.
    both = inspect.Parameter.POSITIONAL_OR_KEYWORD
    left = dict(kwargs)
    for name in kwargs:
        if name in bound.arguments and declared.parameters[name].kind == both:
            bound.arguments[name] = left.pop(name)
    return bound.args, {**bound.kwargs, **left}


def _without_positional(declared: inspect.Signature, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    only, both = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    positional = [each for each in declared.parameters.values() if each.kind in (only, both)]
    taken = {each.name for each in positional[: len(args)] if each.kind == both}
    return {name: value for name, value in kwargs.items() if name not in taken}


class AutoRetry:
    """When a task tries again by itself, as its decorator or class said."""

    __slots__ = ("backoff", "backoff_max", "jitter", "never", "on", "options")

    def __init__(self, task: Any, options: Mapping[str, Any]) -> None:
        def said(name: str, default: Any) -> Any:
            return options[name] if name in options else getattr(task, name, default)

        self.on: tuple[type[BaseException], ...] = tuple(said("autoretry_for", ()) or ())
        self.never: tuple[type[BaseException], ...] = tuple(said("dont_autoretry_for", ()) or ())
        self.options: dict[str, Any] = dict(said("retry_kwargs", {}) or {})
        self.backoff = float(said("retry_backoff", False) or 0)
        self.backoff_max = float(said("retry_backoff_max", 600))
        self.jitter = bool(said("retry_jitter", True))

    def catches(self, error: BaseException) -> bool:
        """Say whether this exception of the body means another try."""
        return isinstance(error, self.on) and not isinstance(error, (Ignore, Reject, Retry, *self.never))

    def again(self, task: Any, error: BaseException) -> NoReturn:
        """End the attempt that raised this: with :exc:`Retry`, or with the error if it was the last try."""
        options = dict(self.options)
        request = task.request
        if self.backoff:
            options["countdown"] = exponential_backoff(
                max(1, int(self.backoff)), request.retries, self.backoff_max, full_jitter=self.jitter
            )
        if request.override_max_retries is not None:
            # The body asked for fewer tries itself, and raised when they were used up.
            options["max_retries"] = request.override_max_retries
        raise task.retry(exc=error, **options)


def add_autoretry_behaviour(task: Any, **options: Any) -> None:
    """Have ``task.run`` try again for the exceptions of ``autoretry_for``; does nothing without any. Once per task."""
    policy = AutoRetry(task, options)
    if not policy.on or hasattr(task, "_orig_run"):
        return
    original = task._orig_run = task.run
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            try:
                return await original(*args, **kwargs)
            except BaseException as error:
                if not policy.catches(error):
                    raise
                policy.again(task, error)

        task.run = run_async
        return

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            if not policy.catches(error):
                raise
            policy.again(task, error)

    task.run = run
