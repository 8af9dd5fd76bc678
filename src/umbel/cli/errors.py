"""How a command ends when it cannot do what it was asked."""

from __future__ import annotations

from typing import IO, Any

import click

EX_FAILED = 1
EX_NOT_FOUND = 3
EX_REFUSED = 4
EX_PARTLY = 5
EX_UNAVAILABLE = 69
EX_CANT_CREATE = 73
EX_TIMED_OUT = 75
EX_CONFIG = 78
EX_INTERRUPTED = 130


class Trouble(click.ClickException):
    """Ends the command with one line on standard error and this exit code. The line says what to do."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"Error: {self.format_message()}", file=file, err=file is None)
