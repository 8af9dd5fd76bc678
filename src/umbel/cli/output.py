"""How commands print lists and objects: a table on a terminal, lines with tabs in a pipe, or JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import click

from umbel.cli.errors import EX_NOT_FOUND, EX_REFUSED, Trouble, trouble_of
from umbel.cli.options import ParamType, Target
from umbel.exceptions import CeleryError

Command = Callable[..., Any]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


class Past(ParamType):
    """A moment in ISO 8601 (without an offset it is UTC), or how long ago: 90s, 15m, 2h, 7d, 4w."""

    name = "time or age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return it as an aware datetime."""
        if isinstance(value, datetime):
            return value
        found = _AGO.fullmatch(value.strip())
        try:
            if found is not None:
                return datetime.now(UTC) - timedelta(seconds=float(found[1]) * _UNITS[found[2]])
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither an age such as 2h nor a time such as 2030-01-31T18:00:00+00:00", param, ctx
            )
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def output_option(function: Command) -> Command:
    """Add ``-o``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "plain", "json", "jsonl"]),
        help="How to print; on a terminal a table, else plain: lines with tabs.",
    )(function)


class JsonTrouble(Trouble):
    """A :class:`Trouble` for programs: one JSON object on standard error."""

    def __init__(self, trouble: Trouble, docs: str) -> None:
        super().__init__(trouble.message, trouble.exit_code)
        self._docs = docs

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the object."""
        message, _, hint = self.message.partition("; ")
        error = {"code": self.exit_code, "message": message, "hint": hint or None, "docs": self._docs}
        click.echo(json.dumps({"error": error}), file=file, err=file is None)


@contextmanager
def answered(target: Target, output: str | None, docs: str, *, tasks: bool = False) -> Iterator[Any]:
    """Give the app, with its tasks imported if so wished, and close it.

    What goes wrong is told in the way that was asked for.
    """
    try:
        with closing(target.load_tasks() if tasks else target.load(needed=not target.broker)) as app:
            yield app
    except (CeleryError, Trouble) as error:
        if not is_json(output):
            raise
        raise JsonTrouble(error if isinstance(error, Trouble) else trouble_of(error), docs) from error


def clean(text: str) -> str:
    """Return a stranger's text so that it cannot move the cursor of a terminal or begin a new line.

    >>> clean("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def is_json(output: str | None) -> bool:
    """Say whether a program reads this."""
    return output in ("json", "jsonl")


def as_json(value: Any) -> str:
    """Return a value as JSON; what JSON has not, as a text."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def list_rows(
    schema: str,
    items: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]],
    output: str | None,
    *,
    more: Any = None,
) -> None:
    """Print a list: objects for programs, and for people these columns of each."""
    if output == "json":
        click.echo(as_json({"schema": schema, "data": list(items), "next": more}))
        return
    if output == "jsonl":
        for item in items:
            click.echo(as_json(item))
        return
    rows = [tuple(clean(cell(item)) for cell in columns.values()) for item in items]
    if output == "plain" or (output is None and not sys.stdout.isatty()):
        for row in rows:
            click.echo("\t".join(row))
    elif rows:
        _table([tuple(columns), *rows])


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def show(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print the fields of one thing, those that are there."""
    found = [(name, value) for name, value in pairs if value not in (None, "", [], (), {})]
    width = max((len(name) for name, _ in found), default=0) + 1
    for name, value in found:
        text = value if isinstance(value, str) else as_json(value)
        click.echo(f"{name + ':':<{width}} {clean(text)}")


def moment(seconds: float | None) -> str | None:
    """Return seconds since the epoch as RFC 3339 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def seconds(length: float | None) -> str:
    """Return a length of time for people.

    >>> seconds(0.0123), seconds(75), seconds(None)
    ('12 ms', '75.0 s', '-')
    """
    if length is None:
        return "-"
    return f"{length * 1000:.0f} ms" if length < 1 else f"{length:.1f} s"


def confirm(question: str, *, yes: bool, count: int, what: str = "tasks") -> None:
    """Ask before many are changed. Ends the command with exit code 4 if the answer is no, or nobody is there."""
    if yes or not count:
        return
    if not sys.stdin.isatty():
        raise Trouble(f"nobody is here to be asked about {count:,} {what}; --yes does not ask", EX_REFUSED)
    if not click.confirm(question, err=True):
        raise Trouble("nothing was changed", EX_REFUSED)


def not_found(what: str, hint: str) -> Trouble:
    """Return the trouble of something that is not there."""
    return Trouble(f"{clean(what)}; {hint}", EX_NOT_FOUND)
