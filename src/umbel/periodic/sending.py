"""The messages of an entry: what is sent when one of its times has come."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from umbel.canvas_base import as_signature
from umbel.collecting import Collected
from umbel.interfaces import Outgoing
from umbel.periodic.entry import Entry

#: Most messages that a broker takes in one step with a record.
ATOMIC: Final = 500
_NAMES: Final = uuid.UUID("8a5c2a60-6f0e-4a51-9d8a-3f1f6b1c2d77")
_CANVAS: Final = {"celery.chain": "chain", "celery.group": "group", "celery.chord": "chord"}


class Lazy:
    """An argument of an entry that is computed when the entry is sent: Celery's ``BeatLazyFunc``."""

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._func = func
        self._func_params: dict[str, Any] = {"args": args, "kwargs": kwargs}

    def __call__(self) -> Any:
        """Return the value now."""
        return self.delay()

    def delay(self) -> Any:
        """Return the value now."""
        return self._func(*self._func_params["args"], **self._func_params["kwargs"])


def task_id_at(which: str, due: datetime) -> str:
    """Return the id of the task that an entry sends for one of its times, whoever sends it.

    ``which`` tells it from all entries of the store: :attr:`umbel.periodic.table.Line.which`.
    """
    return str(uuid.uuid5(_NAMES, f"{which}\0{due.astimezone(UTC).isoformat()}"))


def last_of(call: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the call whose result says that all has ended: of a chain the last, of a chord the body.

    None for a group: nothing is stored under its id.
    """
    kind = call.get("subtask_type") or _CANVAS.get(call["task"])
    if kind == "group":
        return None
    fields = call.get("kwargs") or {}
    if kind == "chain":
        steps = fields.get("tasks") or ()
        return last_of(steps[-1]) if steps else None
    if kind == "chord":
        body = fields.get("body")
        return None if body is None else last_of(body)
    return call


def messages(app: Any, entry: Entry, task_id: str) -> list[Outgoing]:
    """Return the messages of an entry, the task's with this id. Raises what sending the task by hand would raise."""
    options: dict[str, Any] = {**entry.options, "task_id": task_id}
    options["headers"] = {**(options.get("headers") or {}), "celery_beat_task": True}
    outbox = Collected(app)
    args = [each() if isinstance(each, Lazy) else each for each in entry.args]
    kwargs = {key: each() if isinstance(each, Lazy) else each for key, each in entry.kwargs.items()}
    subtask = _CANVAS.get(entry.task)
    said: dict[str, Any] = {"task": entry.task, "args": args, "kwargs": kwargs, "subtask_type": subtask}
    sig = as_signature({**said, "options": {}, "immutable": False}, app)
    if subtask is None:
        outbox.call(sig, args, kwargs, options)
    else:
        sig._deliver(outbox, (), {}, options)
    return outbox.outgoings
