"""From a function to a task: its class, its name, and the check of its arguments."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from umbel.current import connect_on_app_finalize
from umbel.exceptions import DuplicateTaskNameWarning
from umbel.registry import qualname
from umbel.retrying import add_autoretry_behaviour
from umbel.sensitive import veil_of

_PYDANTIC = ("pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs")


class Header:
    """Checks arguments against a function's parameters, without calling it.

    Raises the same ``TypeError`` as a call would. Plain positional calls, the usual ones, cost a comparison.
    """

    __slots__ = ("_fun", "_most", "_names", "_needed", "_plain", "_signature")

    def __init__(self, fun: Callable[..., Any], *, bound: bool) -> None:
        signature = inspect.signature(fun)
        parameters = list(signature.parameters.values())
        if bound and parameters and parameters[0].kind in (_ONLY, _BOTH):
            parameters = parameters[1:]
        self._fun = fun
        self._signature = signature.replace(parameters=parameters)
        positional = [each for each in parameters if each.kind in (_ONLY, _BOTH)]
        self._names = [each.name for each in positional if each.kind == _BOTH]
        self._needed = sum(1 for each in positional if each.default is each.empty)
        unlimited = any(each.kind == each.VAR_POSITIONAL for each in parameters)
        self._most = float("inf") if unlimited else len(positional)
        # Whether a call by position alone can be right.
        self._plain = not any(each.kind == each.KEYWORD_ONLY and each.default is each.empty for each in parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.check(args, kwargs)

    def check(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Raise ``TypeError`` if the function could not be called so."""
        if not kwargs and self._plain and self._needed <= len(args) <= self._most:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            name = getattr(self._fun, "__name__", "task")
            raise TypeError(f"{name}() {error}") from None


_ONLY = inspect.Parameter.POSITIONAL_ONLY
_BOTH = inspect.Parameter.POSITIONAL_OR_KEYWORD


def task_from_function(
    app: Any, fun: Callable[..., Any], *, shared: bool, name: str | None = None, base: Any = None, **options: Any
) -> Any:
    """Return the app's task for a function; the one that is there already if the name is taken.

    :param shared: the function comes from elsewhere (another app, ``shared_task``), so that a taken name is no news.
    """
    name = name or app.gen_task_name(fun.__name__, fun.__module__)
    existing = app.registry.get(name)
    if existing is not None:
        taken_by = getattr(existing, "_decorated_fun", None)
        if not shared and taken_by is not None and taken_by is not fun:
            _warn_taken(name, taken_by, fun)
        return existing
    task = _task_class(app, fun, name, base or app.Task, options)()
    task.__qualname__ = fun.__qualname__
    app.registry[name] = task
    app.forget_plan(task)
    task.bind(app)
    veil_of(task)  # now, so that a name that is no parameter is told where the task is declared
    add_autoretry_behaviour(task, **options)
    return task


def _task_class(app: Any, fun: Callable[..., Any], name: str, base: Any, options: dict[str, Any]) -> Any:
    bind = options.pop("bind", False)
    if any(options.pop(option, None) for option in _PYDANTIC):
        raise NotImplementedError(f"task {name}: pydantic=True is not supported yet; validate inside the task")
    run = fun if bind else staticmethod(fun)
    attributes = {
        "_app": app,
        "name": name,
        "run": run,
        "_decorated": True,
        "_decorated_fun": staticmethod(fun),
        "__doc__": fun.__doc__,
        "__module__": fun.__module__,
        "__annotations__": dict(getattr(fun, "__annotations__", {})),
        "__header__": header_of(fun, bound=bind),
        "__wrapped__": run,
        **options,
    }
    return type(fun.__name__, (base,), attributes)


def header_of(fun: Callable[..., Any], *, bound: bool = False) -> Header | None:
    """Return the check of a function's arguments, or None where its parameters are unknown."""
    try:
        return Header(fun, bound=bound)
    except (TypeError, ValueError):  # a builtin without a signature
        return None


def _warn_taken(name: str, first: Any, second: Any) -> None:
    warnings.warn(
        DuplicateTaskNameWarning(
            f"task name {name!r} is taken by {qualname(first)}, so {qualname(second)} was not registered: "
            "calls under this name reach the first. Give one of them another name."
        ),
        stacklevel=outside(),
    )


def outside() -> int:
    """Return the ``stacklevel`` by which a warning of the caller's names the user's line."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "umbel":
        frame, level = frame.f_back, level + 1
    return level


def decorate(app: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Do ``@app.task`` and ``@app.task(...)``."""
    shared, lazy = options.pop("shared", True), options.pop("lazy", True)
    keep = options.pop("filter", None)
    del lazy  # a task reads the configuration when it needs it, so it can always be made at once

    def create(fun: Callable[..., Any]) -> Any:
        task = task_from_function(app, fun, shared=False, **options)
        if shared:
            connect_on_app_finalize(lambda other: task_from_function(other, fun, shared=True, **options))
        return keep(task) if keep is not None else task

    return apply_decorator(create, args, "task")


def apply_decorator(create: Callable[[Any], Any], args: tuple[Any, ...], name: str) -> Any:
    """Return what a decorator called with these positional arguments evaluates to."""
    if not args:
        return create
    if len(args) == 1 and callable(args[0]):
        return create(args[0])
    raise TypeError(f"@{name} takes a function, or options by name: @{name}(bind=True), not {args!r}")
