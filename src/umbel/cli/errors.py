"""How a command ends when it cannot do what it was asked."""

from __future__ import annotations

from typing import IO, Any, Final

import click

from umbel.exceptions import (
    BackendError,
    BrokerError,
    CeleryError,
    ContentDisallowed,
    ImproperlyConfigured,
    QueueNotFound,
    TimeoutError,
)

EX_FAILED = 1
EX_NOT_FOUND = 3
EX_REFUSED = 4
EX_PARTLY = 5
EX_UNAVAILABLE = 69
EX_CANT_CREATE = 73
EX_TIMED_OUT = 75
EX_CONFIG = 78
EX_INTERRUPTED = 130

#: The exit code of an error of ours that a command does not look at itself: that of the first class that it is of.
_CODES: Final[tuple[tuple[type[CeleryError], int], ...]] = (
    (ImproperlyConfigured, EX_CONFIG),
    (QueueNotFound, EX_CONFIG),
    (ContentDisallowed, EX_CONFIG),
    (BrokerError, EX_UNAVAILABLE),
    (BackendError, EX_UNAVAILABLE),
    (TimeoutError, EX_TIMED_OUT),
    (CeleryError, EX_FAILED),
)


class Trouble(click.ClickException):
    """Ends the command with one line on standard error and this exit code. The line says what to do."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"Error: {self.format_message()}", file=file, err=file is None)


def trouble_of(error: CeleryError) -> Trouble:
    """Return what to end the command with: each error of ours says on its own what is wrong and what to do."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    return Trouble(" ".join(str(error).split()) or type(error).__name__, code)
