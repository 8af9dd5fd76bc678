"""What a running task does with other tasks: its children, and the task that takes its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from umbel.bound import BoundTask
from umbel.exceptions import Ignore


class Composing(BoundTask):
    """The part of a task that deals with other tasks. Users see :class:`umbel.task.Task`."""

    def send_event(self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Send a monitoring event about the running attempt; does nothing while nobody collects events."""

    def add_trail(self, result: Any) -> Any:
        """Record a result as a child of the running attempt; returns it."""
        if self.trail:
            self.request.children.append(result)
        return result

    def on_replace(self, sig: Any) -> Any:
        """Called by :meth:`replace` with the signature that takes this task's place."""
        if self.request.is_eager:
            return sig.apply().get()
        sig.delay()
        raise Ignore("Replaced by new task")

    def replace(self, sig: Any) -> Any:
        """End this attempt and have the signature take the task's place."""
        _needs_canvas("Task.replace")

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a task to the chord that this one is a member of."""
        _needs_canvas("Task.add_to_chord")

    def chunks(self, it: Iterable[Any], n: int) -> Any:
        """Return a signature that calls this task for the arguments of ``it``, ``n`` in one message."""
        _needs_canvas("Task.chunks")

    def map(self, it: Iterable[Any]) -> Any:
        """Return a signature that calls this task with each value of ``it``, in one message."""
        _needs_canvas("Task.map")

    def starmap(self, it: Iterable[Any]) -> Any:
        """Return a signature that calls this task with each list of arguments of ``it``, in one message."""
        _needs_canvas("Task.starmap")


def _needs_canvas(what: str) -> NoReturn:
    raise NotImplementedError(f"{what} needs the canvas (chain, group, chord), which is not supported yet")
