"""Sending events."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from umbel.events.event import Event, group_from, utcoffset
from umbel.exceptions import BrokerError
from umbel.message import Message
from umbel.serialization import dumps
from umbel.utils.nodenames import anon_nodename

#: Events kept while the broker is away; the oldest go first.
KEPT_OFFLINE: Final = 10_000


class EventDispatcher:
    """Sends events as this process, or as the node ``hostname``. Safe to share between threads.

    ``groups`` limits what is sent ("task", "worker"); none means all. Events of a ``buffer_group`` are sent together,
    when ``buffer_limit`` of them are there or :meth:`flush` is called. ``connection`` and ``channel`` are accepted as
    in Celery and not needed.
    """

    app: Any = None

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        enabled: bool = True,
        channel: Any = None,
        buffer_while_offline: bool = True,
        app: Any = None,
        serializer: str | None = None,
        groups: Iterable[str] | None = None,
        delivery_mode: int = 1,
        buffer_group: Iterable[str] | None = None,
        buffer_limit: int = 24,
        on_send_buffered: Callable[[], object] | None = None,
    ) -> None:
        self.app = app if app is not None else self.app
        self.connection = connection
        self.channel = channel
        self.hostname = hostname or anon_nodename()
        self.buffer_while_offline = buffer_while_offline
        self.serializer = serializer or self.app.conf.event_serializer
        self.groups = set(groups or ())
        self.delivery_mode = delivery_mode
        self.buffer_group = frozenset(buffer_group or ())
        self.buffer_limit = buffer_limit
        self.on_send_buffered = on_send_buffered
        self.on_enabled: set[Callable[[], object]] = set()
        self.on_disabled: set[Callable[[], object]] = set()
        self.clock = self.app.events.clock
        self.exchange: str = self.app.conf.event_exchange
        self.headers = {"hostname": self.hostname}
        self.pid = os.getpid()
        self.enabled = enabled
        self.mutex = threading.RLock()
        self._buffers: dict[str, list[dict[str, Any]]] = {}
        self._unsent: deque[tuple[Any, str]] = deque(maxlen=KEPT_OFFLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enable(self) -> None:
        """Send from now on."""
        self.enabled = True
        for tell in list(self.on_enabled):
            tell()

    def disable(self) -> None:
        """Send nothing any more; what waits is sent first."""
        if not self.enabled:
            return
        self.close()
        for tell in list(self.on_disabled):
            tell()

    def send(
        self,
        type: str,
        blind: bool = False,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Send one event, or keep it for the next :meth:`flush` if its group is buffered.

        Does nothing while disabled or for a group that is not wanted. A broker that cannot be reached is no error
        with ``buffer_while_offline``; else :exc:`OperationalError`.

        :param blind: the event shows no logical time.
        """
        group = group_from(type)
        if not self.enabled or (self.groups and group not in self.groups):
            return
        event = self._event(type, fields, blind=blind)
        if group not in self.buffer_group:
            self._publish(event, type.replace("-", "."))
            return
        with self.mutex:
            waiting = self._buffers.setdefault(group, [])
            waiting.append(event)
            full = len(waiting) >= self.buffer_limit
        if full:
            self.flush()
        elif self.on_send_buffered is not None:
            self.on_send_buffered()

    def publish(
        self, type: str, fields: Mapping[str, Any], producer: Any = None, blind: bool = False, **options: Any
    ) -> None:
        """Send one event whatever is enabled; ``producer`` and the options are accepted as in Celery."""
        self._publish(self._event(type, fields, blind=blind), type.replace("-", "."))

    def _event(self, type: str, fields: Mapping[str, Any], *, blind: bool) -> dict[str, Any]:
        clock = None if blind else self.clock.forward()
        return Event(type, hostname=self.hostname, utcoffset=utcoffset(), pid=self.pid, clock=clock, **fields)

    def _publish(self, event: Any, routing_key: str) -> None:
        try:
            self.app.broker.pubsub().publish(self.exchange, self._message(event), routing_key=routing_key)
        except BrokerError:
            if not self.buffer_while_offline:
                raise
            with self.mutex:
                self._unsent.append((event, routing_key))

    def _message(self, event: Any) -> Message:
        content_type, encoding, body = dumps(event, self.serializer, what="the event")
        properties = {"delivery_mode": self.delivery_mode}
        return Message(
            body=body,
            content_type=content_type,
            content_encoding=encoding,
            headers=dict(self.headers),
            properties=properties,
        )

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what waits: what could not be sent (``errors``), and what is buffered (``groups``)."""
        with self.mutex:
            unsent: list[tuple[Any, str]] = []
            if errors:
                unsent = list(self._unsent)
                self._unsent.clear()
            if groups:
                unsent += [(events, f"{group}.multi") for group, events in self._buffers.items() if events]
                self._buffers = {}
        for event, routing_key in unsent:
            self._publish(event, routing_key)

    def extend_buffer(self, other: EventDispatcher) -> None:
        """Take over what another could not send."""
        self._unsent.extend(other._unsent)

    def close(self) -> None:
        """Send what waits and stop. A second call does nothing."""
        if self.enabled:
            self.flush()
            self.enabled = False
