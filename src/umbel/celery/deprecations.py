"""Warnings about old names, and the rest of ``celery.exceptions`` that Umbel itself never raises."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import click


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Something will be deprecated."""


class CDeprecationWarning(DeprecationWarning):
    """Something is deprecated."""


class CeleryCommandException(click.ClickException):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        setattr(self, "exit_code", exit_code)  # noqa: B010  (click has it on the class)


def reraise(tp: type[BaseException], value: BaseException, tb: TracebackType | None = None) -> NoReturn:
    """Raise an exception with this traceback."""
    raise value if value.__traceback__ is tb else value.with_traceback(tb)


def warn(
    description: str | None = None,
    deprecation: str | None = None,
    removal: str | None = None,
    alternative: str | None = None,
    stacklevel: int = 2,
) -> None:
    """Warn that something is old, and say what to use instead."""
    words = [f"{description} is scheduled for deprecation in {deprecation or 'a later version'}"]
    kind: type[Warning] = CPendingDeprecationWarning
    if removal:
        words = [f"{description} is deprecated and will be removed in version {removal}"]
        kind = CDeprecationWarning
    if alternative:
        words.append(alternative)
    warnings.warn(kind(". ".join(words)), stacklevel=stacklevel + 1)


def deprecated(
    deprecation: str | None = None,
    removal: str | None = None,
    alternative: str | None = None,
    description: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator of functions that warns at each call."""

    def decorate(fun: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fun)
        def warned(*args: Any, **kwargs: Any) -> Any:
            warn(description or f"{fun.__module__}.{fun.__qualname__}", deprecation, removal, alternative, 3)
            return fun(*args, **kwargs)

        return warned

    return decorate


def deprecated_property(
    deprecation: str | None = None,
    removal: str | None = None,
    alternative: str | None = None,
    description: str | None = None,
) -> Callable[[Callable[..., Any]], property]:
    """Return a decorator that makes a property which warns at each access."""

    def decorate(fun: Callable[..., Any]) -> property:
        return property(deprecated(deprecation, removal, alternative, description or fun.__name__)(fun))

    return decorate
