"""Calling one task with many values: in one message, or in messages of so many each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from umbel.canvas_base import Canvas
from umbel.canvas_group import group
from umbel.lazylist import LazyList
from umbel.outbox import Outbox
from umbel.signatures import Signature


def _kept(it: Iterable[Any]) -> Any:
    return it if isinstance(it, list | tuple | LazyList) else LazyList(it)


class _Map(Canvas):
    """One message that calls a task with each of some values."""

    _task_name: ClassVar[str]

    def __init__(self, task: Any, it: Iterable[Any], **options: Any) -> None:
        options.pop("immutable", None)
        super().__init__(self._task_name, (), {"task": task, "it": _kept(it)}, immutable=True, **options)

    @classmethod
    def from_dict(cls, d: Any, app: Any = None) -> Any:
        """Return what a dictionary describes."""
        return cls(d["kwargs"]["task"], d["kwargs"]["it"], app=app, **d["options"])

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy; it takes no arguments."""
        copy = super().clone(None, None, **options)
        return type(self)(self["kwargs"]["task"], self["kwargs"]["it"], app=self._app, **copy["options"])

    def _deliver(self, outbox: Outbox, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        given = self._merge(options=options)[2]
        task = self["kwargs"]["task"]
        given.setdefault("route_name", task["task"] if isinstance(task, dict) else task)
        return outbox.call(self, (), {"task": task, "it": list(self["kwargs"]["it"])}, given)

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Call the task with all values here and now."""
        given = self._merge(options=options)[2]
        return self.type.apply((), {"task": self["kwargs"]["task"], "it": list(self["kwargs"]["it"])}, **given)

    def _parts(self) -> Iterable[Any]:
        return (self["kwargs"]["task"],)


@Signature.register_type("xmap")
class xmap(_Map):  # a function to its users
    """Call the task with each value, in one message: ``task.map(it)``. Its value is the list of theirs."""

    _task_name = "celery.map"

    def __repr__(self) -> str:
        return f"[{_name(self)}(x) for x in {_shown(self)}]"


@Signature.register_type("xstarmap")
class xstarmap(_Map):
    """Call the task with each list of arguments, in one message: ``task.starmap(it)``."""

    _task_name = "celery.starmap"

    def __repr__(self) -> str:
        return f"[{_name(self)}(*x) for x in {_shown(self)}]"


@Signature.register_type("chunks")
class chunks(Canvas):
    """Call the task with each list of arguments, ``n`` in one message: ``task.chunks(it, n)``."""

    def __init__(self, task: Any, it: Iterable[Any], n: int, **options: Any) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"chunks of {n!r}: say how many calls go into one message, 1 or more")
        options.pop("immutable", None)
        super().__init__("celery.chunks", (), {"task": task, "it": _kept(it), "n": n}, immutable=True, **options)

    @classmethod
    def from_dict(cls, d: Any, app: Any = None) -> Any:
        """Return what a dictionary describes."""
        return cls(d["kwargs"]["task"], d["kwargs"]["it"], d["kwargs"]["n"], app=app, **d["options"])

    @classmethod
    def apply_chunks(cls, task: Any, it: Iterable[Any], n: int, app: Any = None) -> Any:
        """Send the group at once."""
        return cls(task, it, n, app=app)()

    def __call__(self, **options: Any) -> Any:
        """Send it as a group; returns a :class:`GroupResult`."""
        return self.apply_async(**options)

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy; it takes no arguments."""
        merged, fields = self._merge(options=options)[2], self["kwargs"]
        return type(self)(fields["task"], fields["it"], fields["n"], app=self._app, **merged)

    def group(self) -> Any:
        """Return the group of messages that it is; an iterator is read as the group is sent."""
        return group(self._chunked(), app=self._app)

    def _chunked(self) -> Iterator[Any]:
        task, values, size = self["kwargs"]["task"], iter(self["kwargs"]["it"]), self["kwargs"]["n"]
        while chunk := list(itertools.islice(values, size)):
            yield xstarmap(task, chunk, app=self._app)

    def _deliver(self, outbox: Outbox, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        given = {"route_name": _name(self), **self["options"], **options}
        given.pop("task_id", None)
        return self.group()._deliver(outbox, args, kwargs, given)

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Call the task with all values here and now."""
        return self.group().apply(args, kwargs, **options)

    def _parts(self) -> Iterable[Any]:
        return (self["kwargs"]["task"],)

    def __repr__(self) -> str:
        return f"chunks({_name(self)}, {_shown(self)}, {self['kwargs']['n']})"


def _name(sig: Any) -> str:
    task = sig["kwargs"]["task"]
    return str(task["task"] if isinstance(task, dict) else task)


def _shown(sig: Any) -> str:
    text = repr(sig["kwargs"]["it"])
    return text if len(text) <= 100 else text[:97] + "..."
