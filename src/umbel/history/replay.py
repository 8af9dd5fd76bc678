"""Sending tasks once more that were heard of: from their dead letter, their stored arguments, or what events told.

The history keeps texts of arguments, cut and redacted. A text is only taken for the arguments where it surely is all of
them; else the task is refused, because running something else is worse than running nothing.
"""

from __future__ import annotations

import ast
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from umbel.exceptions import CeleryError, EncodeError, ImproperlyConfigured, OperationalError, QueueNotFound
from umbel.history.history import History
from umbel.history.rows import TaskRow
from umbel.meta import decoder
from umbel.sensitive import HIDDEN

logger = logging.getLogger("umbel.history")

#: The header that says which task this one repeats.
REPLAY_OF: Final = "umbel-replay-of"
# A quote in a text is told with a backslash before it, and a backslash by itself.
_AMBIGUOUS: Final = re.compile(r"\\(?!')")


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one: ``new_id`` is the task that was sent, the same as ``id`` for a dead letter that was put back.

    ``refusal`` says why nothing was sent, and is empty otherwise.
    """

    id: str
    new_id: str = ""
    source: str = ""  # "dead letter", "result" or "events"
    refusal: str = ""


class Refused(CeleryError):
    """Raised where a task cannot be sent once more; the text says why."""


class Replayer:
    """Sends tasks of one app once more. Used by one thread."""

    def __init__(self, app: Any, history: History | None) -> None:
        self._app = app
        self._history = history
        self._letters: dict[str, Any] | None = None

    def one(self, id: str) -> Replayed:
        """Send one task once more, whatever its state. Raises :exc:`OperationalError` where the broker is away."""
        letter = self._letter(id)
        if letter is not None:
            if self._app.dead.requeue(letter):
                return Replayed(id=id, new_id=id, source="dead letter")
            return Replayed(id=id, refusal="its dead letter is not whole, or somebody else was faster")
        row = self._history.task(id) if self._history is not None else None
        try:
            name, args, kwargs, queue, source = self._call(id, row)
        except Refused as refused:
            return Replayed(id=id, refusal=str(refused))
        options = origin(id, row)
        if queue:
            options["queue"] = queue
        try:
            sent = self._app.send_task(name, args=args, kwargs=kwargs, **options)
        except (EncodeError, QueueNotFound) as error:
            return Replayed(id=id, refusal=" ".join(str(error).split()))
        return self._noted(Replayed(id=id, new_id=sent.id, source=source))

    def _noted(self, done: Replayed) -> Replayed:
        """Write down what was sent in place of what, so that whoever sends many once more leaves this one out."""
        if self._history is not None:
            try:
                self._history.replayed(done.id, done.new_id)
            except (OperationalError, ImproperlyConfigured) as error:
                logger.warning(
                    "Task %s was sent in place of %s, which cannot be recorded: %s", done.new_id, done.id, error
                )
        return done

    def all(
        self,
        ids: Iterable[str],
        *,
        rate: float = 0.0,
        stopping: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[Replayed]:
        """Do :meth:`one` for each, at most ``rate`` in a second (0: as fast as it goes), until ``stopping`` is set."""
        stopping = stopping or threading.Event()
        began = clock()
        for number, id in enumerate(ids):
            if rate and (early := began + number / rate - clock()) > 0:
                stopping.wait(early)
            if stopping.is_set():
                return
            yield self.one(id)

    def _letter(self, id: str) -> Any:
        if self._letters is None:
            # All at once: to look for each alone would be to read all of them each time.
            self._letters = {letter.task_id: letter for letter in reversed(self._app.dead.list()) if letter.task_id}
        return self._letters.get(id)

    def _call(self, id: str, row: TaskRow | None) -> tuple[str, Any, Any, str | None, str]:
        stored = self._stored(id)
        if stored is not None:
            name, args, kwargs, queue, source = stored
            # What is stored as its queue is its routing key, and may be the key of an exchange.
            known = queue in {spec.name for spec in self._app.queues(None)}
            return name, args, kwargs, queue if known or row is None or not row.queue else row.queue, source
        if row is None:
            raise Refused("neither a dead letter, nor a result with arguments, nor the history knows it")
        if not row.name:
            raise Refused("nobody told its name: its worker sent no task-received, and its sender no task-sent")
        return row.name, arguments_of(row.args, ()), arguments_of(row.kwargs, {}), row.queue, "events"

    def _stored(self, id: str) -> tuple[str, Any, Any, str | None, str] | None:
        """Return the call as ``result_extended`` keeps it, or None."""
        if self._app.backend is None:
            return None
        try:
            payload = self._app.backend.fetch([id]).get(id)
            meta = decoder(self._app.conf)(payload) if payload is not None else {}
        except OperationalError:
            raise
        except CeleryError:
            return None
        name, args, kwargs = meta.get("name"), meta.get("args"), meta.get("kwargs")
        if not isinstance(name, str) or not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            return None
        if HIDDEN in args or HIDDEN in kwargs.values():
            raise Refused("a part of its arguments is sensitive and was not kept; its caller must send it anew")
        return name, args, kwargs, meta.get("queue"), "result"


def origin(id: str, row: TaskRow | None) -> dict[str, Any]:
    """Return the options that say which task the new one repeats."""
    options: dict[str, Any] = {"headers": {REPLAY_OF: id}}
    if row is not None and row.workflow is not None:
        # So it is seen beside what it repeats.
        options |= {"root_id": row.root or id, "parent_id": id}
    return options


def arguments_of(text: str | None, empty: Any) -> Any:
    """Return the arguments that a text shows. Raises :exc:`Refused` unless they are surely all of them.

    >>> arguments_of("(17, 'eva')", ())
    (17, 'eva')
    """
    if text is None:
        raise Refused("nobody told its arguments: its worker sent no task-received")
    if HIDDEN in text:
        raise Refused("a part of its arguments is sensitive and was not kept; its caller must send it anew")
    if _AMBIGUOUS.search(text):
        raise Refused("its arguments hold a backslash, and the text that events tell says it in two ways")
    if "..." in text or "…" in text:
        raise Refused("its arguments are too long to have been kept whole; result_extended keeps them")
    try:
        found = ast.literal_eval(text) if text.strip() else empty
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise Refused("its arguments are more than plain values, and their text does not say what they were") from None
    if any(isinstance(each, bytes) for each in _parts(found)):
        raise Refused("its arguments hold bytes, and the text that events tell does not say which")
    if not isinstance(found, dict if isinstance(empty, dict) else list | tuple):
        raise Refused(f"its arguments are not readable: {text[:80]}")
    return found


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value and all that is in it."""
    yield value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(key)
            yield from _parts(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _parts(item)
