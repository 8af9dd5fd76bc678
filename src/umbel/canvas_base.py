"""What every kind of canvas has: it is sent through an outbox, or run here and now where that is configured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from umbel.current import allow_join_result, app_or_default
from umbel.outbox import Outbox
from umbel.signatures import Signature

T = TypeVar("T")

# What a caller may say about the connection, which is the app's own affair.
_CONNECTION: Final = ("producer", "publisher", "connection", "router", "app")


def kind_of(sig: Any) -> str:
    """Return ``chain``, ``group``, ``chord``, or nothing for the call of a task."""
    return (sig.get("subtask_type") or "") if isinstance(sig, Mapping) else ""


def as_signature(value: Any, app: Any) -> Any:
    """Return a signature as it is, and a dictionary as one."""
    if isinstance(value, Signature):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"a canvas is made of signatures such as task.s(2), not of {value!r:.100}")
    return Signature.from_dict(value, app=app)


def is_many(value: Any) -> bool:
    """Say whether this is an iterable of signatures, and not one of them."""
    return isinstance(value, Iterable) and not isinstance(value, Mapping | str)


def is_empty_group(sig: Any) -> bool:
    """Say whether this is a group without members, which a chain leaves out."""
    return kind_of(sig) == "group" and not sig.tasks


def unrolled(sig: Any) -> Any:
    """Return the only member of a group of one; anything else as it is."""
    return sig.tasks[0] if kind_of(sig) == "group" and sig.has_one() else sig


def field(key: str, doc: str) -> Any:
    """Return a property for what a canvas keeps among its keyword arguments."""

    def read(self: Any) -> Any:
        return self["kwargs"][key]

    def write(self: Any, value: Any) -> None:
        self["kwargs"][key] = value

    return property(read, write, doc=doc)


def with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item and whether it is the last one."""
    iterator = iter(items)
    try:
        item = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield item, False
        item = following
    yield item, True


class Canvas(Signature[Any]):
    """Several calls, as one signature."""

    def apply_async(self, args: Any = None, kwargs: Any = None, route_name: str | None = None, **options: Any) -> Any:
        """Send it, 500 messages in one step of the broker; return its result.

        Arguments and options are those of :meth:`Signature.apply_async`. An error in the middle says in a note how many
        tasks were sent.
        """
        given = {key: value for key, value in options.items() if value is not None and key not in _CONNECTION}
        if route_name is not None:
            given["route_name"] = route_name
        app = self.app
        if app.conf.task_always_eager:
            with allow_join_result():
                return self._run_here(args or (), dict(kwargs or {}), given)
        with Outbox(app) as outbox:
            return self._deliver(outbox, args or (), dict(kwargs or {}), given)

    def _send_within(self, seconds: float, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Any:
        # Each of its batches has the whole timeout, and its options travel with what is sent later.
        return self.apply_async(args, kwargs, **options)

    def _run_here(self, args: Any, kwargs: dict[str, Any], options: dict[str, Any]) -> Any:
        return self.apply(args, kwargs, **options)

    @property
    def app(self) -> Any:
        """The app it was made with, else that of its first task, else the current one."""
        return self._app or self._own_app() or app_or_default()

    def _own_app(self) -> Any:
        for part in self._parts():
            own = part._own_app() if isinstance(part, Canvas) else getattr(getattr(part, "_type", None), "app", None)
            found = getattr(part, "_app", None) or own
            if found is not None:
                return found
        return None

    def _parts(self) -> Iterable[Any]:
        """Return what says which app it belongs to."""
        return itertools.islice(self["kwargs"].get("tasks") or (), 1)
