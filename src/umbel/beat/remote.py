"""Beat answers ``umbel inspect ping`` under a name of its own, so that one can see whether it is well.

It keeps silent when it has not looked at its schedule for too long, as a beat that hangs should.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from umbel.beat.choosing import Runs
from umbel.exceptions import BrokerError, DecodeError, OperationalError, SecurityError
from umbel.interfaces import Subscription
from umbel.mailbox import exchange_of, read_request, send_reply
from umbel.utils.nodenames import default_nodename, host_format

logger = logging.getLogger("celery.beat")

#: Seconds without a look after which beat is ill, if the setting says nothing and it looks more often than that.
LEAST_AGE: Final = 60.0
_LISTEN: Final = 0.25
_RETRY_AFTER: Final = 1.0


def beat_nodename(hostname: str | None = None) -> str:
    """Return the node name that ``-n`` means: ``celerybeat@host`` without one.

    >>> beat_nodename("b1@box")
    'b1@box'
    """
    return host_format(default_nodename(hostname, "celerybeat"))


class BeatRemote:
    """A thread that answers ping for one beat. ``start`` and ``close`` belong to whoever made it."""

    def __init__(self, app: Any, beat: Runs, hostname: str) -> None:
        configured = app.conf.beat_remote_control_max_tick_age
        #: Seconds after which a beat that has not looked is ill; 0 for never.
        self.max_age: float = max(2 * beat.longest, LEAST_AGE) if configured is None else configured
        self._app = app
        self._beat = beat
        self._hostname = hostname
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="BeatPidbox", daemon=True)

    def start(self) -> None:
        """Start the thread; a broker that cannot carry commands is told of, and nothing is started."""
        if not self._app.make_broker().features.fanout:
            logger.warning("beat pidbox: this broker cannot carry commands, so remote control is unavailable.")
            return
        self._thread.start()

    def close(self) -> None:
        """Stop answering. A second call does nothing."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    @property
    def stale(self) -> bool:
        """Whether the beat has not looked for too long."""
        seen = self._beat.ticked_at
        return bool(self.max_age) and seen is not None and time.monotonic() - seen > self.max_age

    def _run(self) -> None:
        subscription: Subscription | None = None
        while not self._closing.is_set():
            try:
                if subscription is None:
                    subscription = self._app.broker.pubsub().subscribe(exchange_of(self._app))
                self._answer(subscription)
            except (OperationalError, BrokerError) as error:
                logger.debug("beat pidbox: the broker is away: %s", error)
                subscription = None
                self._closing.wait(_RETRY_AFTER)
            # The wall of this thread: one command that cannot be read must not make beat deaf.
            except Exception:
                logger.exception("beat pidbox command error")
                self._closing.wait(_RETRY_AFTER)
        if subscription is not None:
            try:
                subscription.close()
            except BrokerError as error:
                logger.debug("beat pidbox: %s", error)

    def _answer(self, subscription: Subscription) -> None:
        message = subscription.receive(timeout=_LISTEN)
        if message is None:
            return
        try:
            request = read_request(self._app, message)
            meant = request.method == "ping" and request.is_for(self._hostname)
        except (DecodeError, SecurityError, ValueError) as error:
            logger.error("beat pidbox: a command is ignored: %s", error)
            return
        if not meant:
            return
        if self.stale:
            logger.error("beat pidbox: no look at the schedule for more than %g s; ping gets no answer", self.max_age)
            return
        send_reply(self._app, request, {self._hostname: {"ok": "pong"}})
