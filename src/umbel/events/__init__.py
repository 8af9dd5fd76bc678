"""Events: what workers and clients tell of tasks as they happen, in Celery's form.

``app.events`` is an :class:`Events`: its ``Dispatcher`` sends, its ``Receiver`` listens, and its ``State`` keeps what
was heard of workers and tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from umbel.events.dispatcher import EventDispatcher
from umbel.events.event import Event, LogicalClock, group_from
from umbel.events.receiver import EventReceiver

__all__ = ["Event", "EventDispatcher", "EventReceiver", "Events", "LogicalClock", "group_from"]


class Events:
    """``app.events``. Safe to share between threads; what it makes belongs to one thread."""

    def __init__(self, app: Any) -> None:
        self.app = app

    @cached_property
    def clock(self) -> LogicalClock:
        """The logical clock of this process, which events and remote control share."""
        return LogicalClock()

    @cached_property
    def Receiver(self) -> type[EventReceiver]:
        """The class that listens, bound to this app."""
        return type("EventReceiver", (EventReceiver,), {"app": self.app, "__module__": EventReceiver.__module__})

    @cached_property
    def Dispatcher(self) -> type[EventDispatcher]:
        """The class that sends, bound to this app."""
        return type("EventDispatcher", (EventDispatcher,), {"app": self.app, "__module__": EventDispatcher.__module__})

    @cached_property
    def State(self) -> type[Any]:
        """The class that keeps what was heard: :class:`umbel.events.state.State`."""
        from umbel.events.state import State

        return State

    @contextmanager
    def default_dispatcher(
        self, hostname: str | None = None, enabled: bool = True, buffer_while_offline: bool = False
    ) -> Iterator[EventDispatcher]:
        """``with app.events.default_dispatcher() as d:`` lends a dispatcher for a few events."""
        with self.Dispatcher(
            hostname=hostname, enabled=enabled, buffer_while_offline=buffer_while_offline
        ) as dispatcher:
            yield dispatcher
