"""A progress bar in the terminal for one task: rich's where rich is installed, else a line that is written over.

Where the output is no terminal, a line is added for every change of state and every tenth of the way.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final, Protocol, TextIO

from umbel import states
from umbel.progress import Progress, read_progress
from umbel.utils.text import one_line

_WIDTH: Final = 30
_WORDS: Final = {states.PENDING: "waiting", states.STARTED: "started", states.RETRY: "waiting to be tried again"}


class Bar(Protocol):
    """Shows how far a task is. Used by one thread."""

    def show(self, progress: Progress) -> None:
        """Show it in the place of what was shown before."""


def watch(result: Any, timeout: float | None = None, file: TextIO | None = None, *, propagate: bool = True) -> Any:
    """Show how far the task is until it ends; then return its value or raise its exception.

    Raises what :meth:`AsyncResult.get` raises, :exc:`TimeoutError` among it. ``file`` is standard error unless given.
    """
    with bar_on(sys.stderr if file is None else file) as bar:
        last = Progress(states.PENDING)
        if not result.ignored:
            bar.show(last)

        def news(meta: dict[str, Any]) -> None:
            nonlocal last
            last = read_progress(meta["status"], meta["result"])
            bar.show(last)

        try:
            value = result.get(timeout=timeout, propagate=propagate, on_message=news)
        finally:
            # One that was known already, or whose failure came from a task before it, brought no news of its own.
            if not last.ready and result._cache is not None:
                bar.show(read_progress(result._cache["status"], None))
        return value


@contextlib.contextmanager
def bar_on(file: TextIO) -> Iterator[Bar]:
    """Return what suits the output: a bar of rich, a line that is written over, or lines."""
    if not file.isatty():
        yield _Lines(file)
        return
    try:
        from rich.console import Console
    except ImportError:
        with contextlib.closing(_Line(file)) as line:
            yield line
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(show_speed=False),
        rich_progress.TimeElapsedColumn(),
        # What a task says is shown as it is: no markup, and no control characters.
        rich_progress.TextColumn("{task.description}", markup=False),
    )
    with rich_progress.Progress(*columns, console=Console(file=file)) as shown:
        yield _Rich(shown)


def words_of(progress: Progress) -> str:
    """Return what is to be said beside a bar, on one line and without control characters."""
    if progress.state == "PROGRESS" and progress.text:
        return one_line(progress.text, 80)
    word = _WORDS.get(progress.state, progress.state.lower())
    return one_line(f"{word}: {progress.text}" if progress.text else word, 80)


def _count(progress: Progress) -> str:
    if progress.percent is not None:
        return f"{progress.percent:3.0f} %"
    return "" if progress.current is None else f"{progress.current:g}"


class _Rich:
    def __init__(self, shown: Any) -> None:
        self._shown = shown
        self._row = shown.add_task("", total=None)

    def show(self, progress: Progress) -> None:
        about: dict[str, Any] = {"description": words_of(progress)}
        if progress.percent is not None:
            about |= {"total": 100.0, "completed": progress.percent}
        self._shown.update(self._row, **about)
        if progress.ready:
            # Whatever it came to, nothing moves any more.
            self._shown.stop_task(self._row)
            if progress.percent is None and self._shown.tasks[0].total is None:
                self._shown.update(self._row, total=100.0)


class _Line:
    """One line, written over."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._length = 0
        self._percent = 0.0

    def show(self, progress: Progress) -> None:
        if progress.percent is not None:
            self._percent = progress.percent
        full = int(_WIDTH * self._percent / 100)
        text = f"[{'#' * full}{'.' * (_WIDTH - full)}] {_count(progress)} {words_of(progress)}"
        self._file.write("\r" + text.ljust(self._length))
        self._file.flush()
        self._length = len(text)

    def close(self) -> None:
        """End the line."""
        self._file.write("\n")
        self._file.flush()


class _Lines:
    """A line for what is worth one."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last: tuple[str, int] | None = None

    def show(self, progress: Progress) -> None:
        mark = progress.state, int((progress.percent or 0.0) // 10)
        if mark == self._last:
            return
        self._last = mark
        self._file.write(f"{_count(progress)} {words_of(progress)}".strip() + "\n")
        self._file.flush()
