"""The ``logtool`` command: what a worker's log says about its tasks."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import click

from umbel.cli.options import Target, command, global_options

_LINE: Final = re.compile(r"^\[\d{4}-\d\d-\d\d [^\]]*\] (.*)")
_TASK: Final = re.compile(r"^Task (\S+)\[([^\]]+)\] (.*)")
_DISCARDED: Final = re.compile(r"^Discarding revoked task: (\S+)\[([^\]]+)\]")
_GOOD: Final = ("succeeded", "ignored")
#: A task that is retried has not ended: it is received again.
_ON_ITS_WAY: Final = ("retry:",)


class Audit:
    """Reads lines and remembers what became of each task."""

    def __init__(self) -> None:
        self.received: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.failed: set[str] = set()
        self.types: Counter[str] = Counter()

    def feed(self, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield each line with its kind: ``task``, ``error``, ``trace`` (what follows a line) or ``debug``."""
        last = ""
        for line in lines:
            line = line.rstrip("\n")
            match = _LINE.match(line)
            if match is None:
                yield "trace", f"{last}\n{line}" if last else line
                last = ""
                continue
            last = line
            yield self._kind(match[1]), line

    def _kind(self, text: str) -> str:
        task = _TASK.match(text)
        if task is None:
            discarded = _DISCARDED.match(text)
            if discarded is not None:
                self._end(discarded[1], discarded[2], good=False)
            return "error" if discarded is not None else "debug"
        name, id, what = task.groups()
        if what.startswith("received"):
            if id not in self.received:
                self.types[name] += 1
            self.received[id] = name
            return "task"
        if what.startswith(_ON_ITS_WAY):
            return "task"
        good = what.startswith(_GOOD)
        self._end(name, id, good=good)
        return "task" if good else "error"

    def _end(self, name: str, id: str, *, good: bool) -> None:
        self.ended[id] = name
        if good:
            self.failed.discard(id)
        else:
            self.failed.add(id)

    @property
    def incomplete(self) -> list[str]:
        """The tasks that were received and did not end."""
        return [id for id in self.received if id not in self.ended]


@click.group("logtool")
@global_options()
def logtool() -> None:
    """Say what a worker's log tells about its tasks. The worker must have logged at INFO.

    Without files the log is read from standard input.
    """


def _lines(files: Iterable[Any]) -> Iterator[str]:
    for file in files or [sys.stdin]:
        yield from file


def _sub(name: str, text: str) -> Callable[[Callable[..., None]], click.Command]:
    def decorate(function: Callable[..., None]) -> click.Command:
        files = click.argument("files", nargs=-1, type=click.File(errors="replace"))
        made = command(name, short_help=text, help=text)(files(function))
        logtool.add_command(made)
        return made

    return decorate


@_sub("stats", "Count tasks, errors and successes.")
def stats(target: Target, files: Any) -> None:
    """Count."""
    audit = Audit()
    for _ in audit.feed(_lines(files)):
        pass
    good = len(audit.ended) - len(audit.failed)
    click.echo(
        f"Report\n======\nTask total: {len(audit.received)}\nTask errors: {len(audit.failed)}\n"
        f"Task success: {good}\nTask completed: {len(audit.ended)}\n\nTasks\n====="
    )
    for name, count in audit.types.most_common():
        click.echo(f"{name}: {count}")


@_sub("traces", "Print the tracebacks, each with the line before it.")
def traces(target: Target, files: Any) -> None:
    """Print tracebacks."""
    _print(files, "trace")


@_sub("errors", "Print the lines of tasks that did not succeed.")
def errors(target: Target, files: Any) -> None:
    """Print errors."""
    _print(files, "error")


@_sub("debug", "Print the lines that are about no task.")
def debug(target: Target, files: Any) -> None:
    """Print the rest."""
    _print(files, "debug")


@_sub("incomplete", "Print the ids of tasks that were received and did not end.")
def incomplete(target: Target, files: Any) -> None:
    """Print what did not end."""
    audit = Audit()
    for _ in audit.feed(_lines(files)):
        pass
    for id in audit.incomplete:
        click.echo(f"Did not complete: {id}")


def _print(files: Any, wanted: str) -> None:
    for kind, line in Audit().feed(_lines(files)):
        if kind == wanted:
            click.echo(line)
