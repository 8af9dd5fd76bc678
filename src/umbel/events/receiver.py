"""Listening to events."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from umbel.events.event import utcoffset
from umbel.exceptions import DecodeError
from umbel.serialization import accepted_by, loads
from umbel.utils.identity import uuid

logger = logging.getLogger("celery.events")

#: Seconds after which :attr:`EventReceiver.should_stop` is looked at.
_LOOK_EVERY = 0.5

Handler = Callable[[dict[str, Any]], object]


class EventReceiver:
    """Calls a handler for each event: the one of its type, else that of ``"*"``. Used by one thread.

    Set :attr:`should_stop` from anywhere to end :meth:`capture`. ``channel`` is accepted as in Celery, where it is the
    connection, and so are the options of the queue.
    """

    app: Any = None

    def __init__(
        self,
        channel: Any = None,
        handlers: Mapping[str, Handler] | None = None,
        routing_key: str = "#",
        node_id: str | None = None,
        app: Any = None,
        queue_prefix: str | None = None,
        accept: Iterable[str] | None = None,
        **queue_options: Any,
    ) -> None:
        self.app = app if app is not None else self.app
        self.channel = self.connection = channel
        self.handlers: Mapping[str, Handler] = {} if handlers is None else handlers
        self.routing_key = routing_key
        self.node_id = node_id or uuid()
        self.queue_prefix = queue_prefix or self.app.conf.event_queue_prefix
        self.exchange: str = self.app.conf.event_exchange
        conf = self.app.conf
        self.accept = set(accepted_by(conf, {conf.event_serializer, "json"} if accept is None else set(accept)))
        self.clock = self.app.events.clock
        self.should_stop = False

    def capture(self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True) -> None:
        """Handle events until :attr:`should_stop` is set, or ``limit`` messages came.

        Raises ``TimeoutError`` when none came for ``timeout`` seconds, and :exc:`OperationalError` if the broker is
        lost: calling again listens anew.

        :param wakeup: ask all workers for a heartbeat, so that they are known at once.
        """
        for _ in self.itercapture(limit=limit, timeout=timeout, wakeup=wakeup):
            pass

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[None]:
        """Do :meth:`capture` step by step: yields after each message that was handled."""
        subscription = self.app.broker.pubsub().subscribe(self.exchange, pattern=self.routing_key)
        try:
            if wakeup:
                self.wakeup_workers()
            seen, quiet_since = 0, time.monotonic()
            while not self.should_stop and (limit is None or seen < limit):
                try:
                    message = subscription.receive(
                        timeout=_LOOK_EVERY if timeout is None else min(timeout, _LOOK_EVERY)
                    )
                except DecodeError as error:
                    logger.error("What was received is no message: %s", error)
                    continue
                if message is not None:
                    self._receive_message(message)
                    seen, quiet_since = seen + 1, time.monotonic()
                    yield
                elif timeout is not None and time.monotonic() - quiet_since >= timeout:
                    raise TimeoutError(f"no event came for {timeout} s")
        finally:
            subscription.close()

    def _receive_message(self, message: Any) -> None:
        try:
            body = loads(message.body, message.content_type, message.content_encoding, self.accept)
        except DecodeError as error:
            logger.error("An event cannot be decoded: %s", error)
            return
        self._receive(body, message)

    def _receive(self, body: Any, message: Any = None) -> None:
        for event in body if isinstance(body, list) else (body,):
            if isinstance(event, dict) and isinstance(event.get("type"), str):
                self.process(*self.event_from_message(event))
            else:
                logger.error("This is no event: %.200r", event)

    def event_from_message(self, body: dict[str, Any], localize: bool = True) -> tuple[str, dict[str, Any]]:
        """Return the type and the event, with the logical time and the time of its arrival, its own in our zone."""
        type: str = body["type"]
        if type == "task-sent":
            # Clients hear nobody, so that their logical time says nothing: just before what we know.
            body["clock"] = (self.clock.value or 1) - 1
        elif isinstance(body.get("clock"), int):
            self.clock.adjust(body["clock"])
        else:
            body["clock"] = self.clock.forward()
        offset, timestamp = body.get("utcoffset"), body.get("timestamp")
        if localize and isinstance(offset, int | float) and isinstance(timestamp, int | float):
            with contextlib.suppress(OverflowError):  # of a number that is no time
                body["timestamp"] = timestamp - (offset - utcoffset()) * 3600
        body["local_received"] = time.time()
        return type, body

    def process(self, type: str, event: dict[str, Any]) -> None:
        """Hand an event to its handler."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler is not None:
            handler(event)

    def wakeup_workers(self, channel: Any = None) -> None:
        """Ask all workers for a heartbeat now."""
        self.app.control.broadcast("heartbeat")
