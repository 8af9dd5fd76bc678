"""How far a task is: told by the task, written in the background, read by whoever watches.

It is stored as Celery's programs store it, state ``PROGRESS`` with a dict::

    {"current": 3, "total": 10, "percent": 30.0, "text": "resizing"}

``total`` and ``percent`` are None where nobody knows how much there is.

A task only leaves a note of how far it is. One thread of the process writes the newest note of each attempt, so that
neither a task nor an event loop waits for the store::

    quiet --tell--> noted --due--> writing --> quiet, for at least WRITE_SECONDS
                      `-------- end --------`--> ended: nothing is written any more
"""

from __future__ import annotations

import logging
import math
import operator
import os
import queue
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any, Final, NamedTuple, TypeVar

from umbel import signals, states

logger = logging.getLogger("celery.app.trace")

T = TypeVar("T")

PROGRESS: Final = "PROGRESS"
WRITE_SECONDS: Final = 0.1  # the least time between two writes of one attempt
LONGEST_TEXT: Final = 500
#: How long the end of an attempt waits for a write that is on its way.
_END_SECONDS: Final = 1.0

Note = tuple[float, float | None, str]


class Report:
    """Where one attempt says how far it is. :meth:`tell` is for the attempt alone; the rest is for every thread."""

    __slots__ = ("_context", "_ended", "_failed", "_note", "_noted", "_task", "_writing", "due")

    def __init__(self, task: Any, context: Any) -> None:
        self._task = task
        self._context = context
        self._note: Note | None = None
        self._noted = False
        self._ended = False
        self._failed = False
        self._writing = threading.Lock()
        #: The moment (monotonic) before which nothing is to be written.
        self.due = 0.0

    def tell(self, done: Any, total: Any = None, text: Any = None) -> None:
        """Leave a note that replaces the one before it, written or not. Without a text, the text stays what it was.

        Raises :exc:`TypeError` or :exc:`ValueError` for what is no amount; nothing of the store.
        """
        count = _amount("done", done)
        whole = None if total is None else _amount("total", total)
        before = self._note
        words = (before[2] if before is not None else "") if text is None else str(text)[:LONGEST_TEXT]
        self._note = (count, whole, words)
        # After the note: the writer clears the mark before it reads the note, so that none is overlooked.
        if not self._noted:
            self._noted = True
            _writer.ask(self)

    def write(self) -> None:
        """Store the newest note; done by the writer. A store that fails is told of once, and the task goes on."""
        with self._writing:
            self._noted = False
            note = self._note
            if self._ended or note is None:
                return
            context, task = self._context, self._task
            # The outer wall of the thread that writes for all: what one store or serializer raises is no other's.
            try:
                if context.report_state is not None:
                    context.report_state(context.id, PROGRESS, as_meta(*note))
                else:
                    task.app.store_state(task, context.id, PROGRESS, as_meta(*note), context)
            except Exception as error:
                if not self._failed:
                    self._failed = True
                    logger.warning("Task %s[%s]: its progress cannot be stored: %s", task.name, context.id, error)
            self.due = time.monotonic() + WRITE_SECONDS

    def end(self) -> None:
        """Let nothing be written any more. Waits for a write that is on its way, for a second at most."""
        self._ended = True
        if self._writing.acquire(timeout=_END_SECONDS):
            self._writing.release()


class _Silent:
    """The report of an attempt whose state nobody stores."""

    def tell(self, done: Any, total: Any = None, text: Any = None) -> None:
        """Check what is said, and keep nothing."""
        _amount("done", done)
        if total is not None:
            _amount("total", total)

    def end(self) -> None:
        """Do nothing."""


SILENT: Final = _Silent()


class _Writer:
    """The thread that writes for all tasks of a process. It starts with the first report and stays."""

    def __init__(self) -> None:
        # Its put() may be interrupted by a signal handler that raises (a soft time limit) and harms nothing.
        self._asked: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, report: Report) -> None:
        """Have the report written when it is due."""
        self._asked.put(report)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                signals.task_postrun.connect(_end_of_attempt, dispatch_uid="umbel.progress")
                thread = threading.Thread(target=self._run, name="umbel-progress", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        waiting: dict[Report, None] = {}
        while True:
            now = time.monotonic()
            for report in [each for each in waiting if each.due <= now]:
                del waiting[report]
                report.write()
            first = min((each.due for each in waiting), default=None)
            patience = None if first is None else max(0.0, first - time.monotonic())
            try:
                waiting[self._asked.get(timeout=patience)] = None
            except queue.Empty:
                pass


_writer = _Writer()


def _end_of_attempt(sender: Any = None, **_: Any) -> None:
    report = getattr(getattr(sender, "request", None), "_progress", None)
    if report is not None:
        report.end()


def _after_fork() -> None:
    # The thread exists in the parent only.
    global _writer
    _writer = _Writer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def report_of(task: Any) -> Report | _Silent:
    """Return where the attempt that runs here says how far it is; one that keeps nothing where nobody would read it.

    That is outside of an attempt, where results are ignored or disabled, and in an eager run that stores nothing.
    """
    context = task.request
    found: Report | _Silent | None = context._progress
    if found is None:
        said = vars(context).get("ignore_result")
        unheard = (
            not context.id
            or context.called_directly
            or (task.ignore_result if said is None else said)
            or (context.is_eager and not task.store_eager_result)
            or task.backend is None
        )
        found = SILENT if unheard else Report(task, context)
        if context.id:
            context._progress = found
    return found


def track(report: Report | _Silent, items: Iterable[T], total: Any, text: Any) -> Iterator[T]:
    """Yield the items; each counts as done when the next one is asked for."""
    whole = _size_of(items) if total is None else total
    report.tell(0, whole, text)
    for done, item in enumerate(items, 1):
        yield item
        report.tell(done, whole)


async def track_async(report: Report | _Silent, items: AsyncIterable[T], total: Any, text: Any) -> AsyncIterator[T]:
    """Do :func:`track` for what is iterated with ``async for``."""
    whole = _size_of(items) if total is None else total
    report.tell(0, whole, text)
    done = 0
    async for item in items:
        yield item
        done += 1
        report.tell(done, whole)


def _size_of(items: Any) -> int | None:
    try:
        return len(items)
    except TypeError:
        return operator.length_hint(items, 0) or None


def _amount(name: str, value: Any) -> float:
    """Return the number as one that JSON can carry."""
    if type(value) is not int:
        if isinstance(value, bool) or not (isinstance(value, Real | Decimal) or hasattr(value, "__index__")):
            raise TypeError(f"progress: {name} must be a number, not {type(value).__name__}")
        try:
            value = operator.index(value)
        except TypeError:
            value = float(value)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"progress: {name} must be a number from 0 on, not {value}")
    found: float = value
    return found


def as_meta(done: float, total: float | None, text: str) -> dict[str, Any]:
    """Return what is stored."""
    return {"current": done, "total": total, "percent": percent_of(done, total), "text": text}


def percent_of(done: float, total: float | None) -> float | None:
    """Return how much is done, from 0 to 100 with one decimal; None if nobody knows how much there is.

    >>> percent_of(1, 3)
    33.3
    """
    if total is None:
        return None
    return 100.0 if done >= total else math.floor(1000 * (done / total)) / 10


class Progress(NamedTuple):
    """How far a task is, whoever wrote it."""

    state: str
    current: float | None = None
    total: float | None = None
    percent: float | None = None
    text: str = ""

    @property
    def ready(self) -> bool:
        """Whether the task has ended."""
        return self.state in states.READY_STATES


def read_progress(state: str, info: Any) -> Progress:
    """Return how far a task is by its state and what is stored with it; what is not understood is left out.

    Besides our own it knows what programs for Celery commonly write: ``current`` or ``done``, ``total``, ``percent``,
    and ``text``, ``description``, ``status`` or ``message``.
    """
    if state == states.SUCCESS:
        return Progress(state, percent=100.0)
    if state in states.ALL_STATES or not isinstance(info, Mapping):
        return Progress(state)
    current, total = _number(info, "current", "done", "n"), _number(info, "total")
    percent = _number(info, "percent")
    if current is not None and total is not None:
        percent = percent_of(current, total)
    words = next((info[name] for name in ("text", "description", "status", "message") if info.get(name)), "")
    return Progress(state, current, total, None if percent is None else min(percent, 100.0), str(words)[:LONGEST_TEXT])


def _number(info: Mapping[Any, Any], *names: str) -> float | None:
    for name in names:
        value = info.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
            return value
    return None
