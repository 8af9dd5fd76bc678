"""Which tasks may run because a message says so inside: the setting ``task_allow_from_message``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from umbel.message import Call

# What only carries other tasks, with how many of its arguments by place may be some. They need not be in the list.
_CARRIERS: Final = {
    "celery.accumulate": 0, "celery.chain": 0, "celery.chord": 2, "celery.chord_unlock": 2, "celery.chunks": 1,
    "celery.group": 1, "celery.map": 1, "celery.starmap": 1,
}  # fmt: skip
_CARRIED: Final = ("tasks", "header", "body", "task", "callback")
_LINKED: Final = ("link", "link_error", "chain", "chord")


class AllowList:
    """The names and patterns of one app's list. Safe to share between threads."""

    def __init__(self, names: Iterable[str]) -> None:
        """Take names, and patterns with ``*``, ``?`` or ``[...]`` as in ``task_routes``."""
        names = list(names)
        self._names = frozenset(names)
        patterns = [fnmatch.translate(name) for name in names if any(sign in name for sign in "*?[")]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def refused(self, call: Call) -> str | None:
        """Return the first task that the call would have run later and that is not in the list, or None."""
        todo: list[Any] = [call.callbacks, call.errbacks, call.chain, call.chord]
        if call.task in _CARRIERS:
            todo += _carried(call.task, call.args, call.kwargs)
        return next((name for name in _tasks(todo) if not self._allows(name)), None)

    def _allows(self, name: str) -> bool:
        return name in self._names or (self._pattern is not None and self._pattern.match(name) is not None)


def _tasks(todo: list[Any]) -> Iterator[str]:
    """Yield the names of the tasks in these signatures, however deep; keeps no stack of Python's own."""
    while todo:
        one = todo.pop()
        if isinstance(one, list | tuple):
            todo += one
        if not isinstance(one, Mapping):
            continue
        name, kind = one.get("task"), one.get("subtask_type")
        carries = bool(kind) or name is None or name in _CARRIERS
        if not carries or name not in (None, *_CARRIERS):
            yield str(name)
        options, kwargs = one.get("options"), one.get("kwargs")
        if isinstance(options, Mapping):
            todo += [options.get(key) for key in _LINKED]
        if carries:
            todo += _carried(str(name), one.get("args"), kwargs)


def _carried(name: str, args: Any, kwargs: Any) -> list[Any]:
    found = [kwargs.get(key) for key in _CARRIED] if isinstance(kwargs, Mapping) else []
    return found + (list(args[: _CARRIERS.get(name, 0)]) if isinstance(args, list | tuple) else [])
