"""The thread of a worker that answers remote control, sends heartbeats, and scales the pool.

It belongs to the process that runs no task (of a worker that is one process, it runs beside the tasks), and answers
from what that one knows: so a worker whose tasks are stuck answers too.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from types import SimpleNamespace
from typing import Any, Final

from umbel import signals
from umbel.exceptions import BrokerError, DecodeError, OperationalError, SecurityError, SerializationError
from umbel.interfaces import Subscription
from umbel.mailbox import Request, exchange_of, read_request, send_reply
from umbel.message import Message
from umbel.worker import commands as _builtin  # noqa: F401  # registers them
from umbel.worker.autoscale import Autoscaler
from umbel.worker.control import Panel, nok
from umbel.worker.desk import Desk
from umbel.worker.inspect_commands import SOFTWARE_INFO

logger = logging.getLogger("celery.worker.pidbox")

_LISTEN: Final = 0.25  # seconds for which a close may have to wait
_RETRY_AFTER: Final = 1.0
_FIRST: Final = 2.0


class Remote:
    """Answers for one worker. ``start`` and ``close`` belong to whoever made it."""

    def __init__(self, desk: Desk) -> None:
        """Prepare; nothing runs until :meth:`start`."""
        self._desk = desk
        self._app = desk.app
        self._enabled = bool(self._app.conf.worker_enable_remote_control)
        self._subscription: Subscription | None = None
        self._dispatcher: Any = None
        self._autoscaler = Autoscaler(desk)
        self._closing = threading.Event()
        self._listening = threading.Event()
        self._beat_at = 0.0
        self._online = False
        self._away = False
        self._thread = threading.Thread(target=self._run, name="umbel-remote", daemon=True)
        self.state = SimpleNamespace(app=self._app, hostname=desk.hostname, desk=desk, remote=self, consumer=None)

    def start(self) -> None:
        """Start the thread; returns when it listens, or a little later if the broker does not answer."""
        # One logical time for all that this worker sends.
        self._app.events.clock = self._desk.shared
        self._dispatcher = self._app.events.Dispatcher(hostname=self._desk.hostname, buffer_while_offline=False)
        self._thread.start()
        self._listening.wait(_FIRST)

    def close(self) -> None:
        """Take leave and stop. A second call does nothing."""
        if self._closing.is_set() or not self._thread.is_alive():
            return
        self._closing.set()
        self._thread.join(_FIRST)

    def beat(self) -> None:
        """Send a heartbeat now."""
        self._send("worker-heartbeat")

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._step()
                self._away = False
            except OperationalError as error:
                if not self._away:
                    logger.warning("pidbox: the broker is away (%s); remote control waits for it", error)
                self._away = True
                self._hang_up()
                self._closing.wait(_RETRY_AFTER)
            # The wall of this thread: one command that cannot be read must not make the worker deaf.
            except Exception:
                logger.exception("Control command error")
                self._hang_up()
                self._closing.wait(_RETRY_AFTER)
        self._leave()

    def _step(self) -> None:
        if self._enabled and self._subscription is None:
            self._subscription = self._app.broker.pubsub().subscribe(exchange_of(self._app))
        self._listening.set()
        self._tick()
        if self._subscription is None:
            self._closing.wait(_LISTEN)
            return
        try:
            message = self._subscription.receive(timeout=_LISTEN)
            if message is not None:
                self._handle(message)
        except (DecodeError, SecurityError, ValueError) as error:
            logger.error("A remote control command is ignored: %s", error)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._desk.plan.heartbeat is not None and now >= self._beat_at:
            self._beat_at = now + self._desk.plan.heartbeat
            self._send("worker-heartbeat" if self._online else "worker-online")
            self._online = True
        self._autoscaler.tend(now)

    def _send(self, type: str) -> None:
        if signals.heartbeat_sent.receivers:
            signals.heartbeat_sent.send(sender=self)
        desk = self._desk
        self._dispatcher.send(
            type,
            freq=desk.plan.heartbeat or 2.0,
            active=sum(len(holder.running) for holder in desk.holders()),
            processed=sum(desk.totals().values()),
            loadavg=_load(),
            **SOFTWARE_INFO,
        )

    def _handle(self, message: Message) -> None:
        request = read_request(self._app, message)
        self._desk.shared.adjust(request.clock)
        if request.is_for(self._desk.hostname):
            self._obey(request)

    def _obey(self, request: Request) -> None:
        function = Panel.data.get(request.method)
        try:
            if function is None:
                raise KeyError(request.method)
            value = function(self.state, **request.arguments)
            known = Panel.meta.get(request.method)
            if known is None or known.type == "control":
                self._desk.wait_until_obeyed()
        except SystemExit:
            return
        # The wall around a command, which may be a user's own.
        except Exception as error:
            if function is None:
                logger.error("No such control command: %r", request.method)
            else:
                # A refusal says all there is to say.
                refused = isinstance(error, ValueError | TypeError | LookupError | NotImplementedError)
                logger.error("pidbox command error: %r", error, exc_info=not refused)
            value = nok(repr(error))
        try:
            send_reply(self._app, request, {self._desk.hostname: value})
        except SerializationError as error:
            logger.error("The reply to %r cannot be encoded: %s", request.method, error)
            send_reply(self._app, request, {self._desk.hostname: nok(repr(error))})

    # -- the end -------------------------------------------------------------------------------------------------

    def _hang_up(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                subscription.close()
            except BrokerError as error:
                logger.debug("pidbox: %s", error)

    def _leave(self) -> None:
        self._hang_up()
        if self._online:
            try:
                self._send("worker-offline")
            except BrokerError as error:
                logger.debug("worker-offline was not sent: %s", error)


def _load() -> list[float]:
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (OSError, AttributeError):  # where the system does not count
        return [0.0, 0.0, 0.0]
