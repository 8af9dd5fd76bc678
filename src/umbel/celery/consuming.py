"""What a ``ConsumerStep`` does in Umbel's worker: it reads messages of its own, by kombu, in a thread of its own.

Umbel's worker reads tasks with drivers of its own and has no loop that kombu could share. The step's consumers are
called in that thread, in the worker's supervisor; a callback that takes long keeps nobody waiting but its own messages.
"""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any, Final

from umbel.drivers import mask, scheme_of, split
from umbel.exceptions import ImproperlyConfigured

logger = logging.getLogger("celery.bootsteps")

_SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel", "amqp", "amqps", "pyamqp")
_LOOK_EVERY: Final = 1.0  # seconds
_RETRY_AFTER: Final = 2.0
_HEARTBEAT: Final = 60.0


def kombu_connection(app: Any, what: str = "this") -> Any:
    """Return kombu's connection to the broker of an app, not connected yet.

    Raises :exc:`ImproperlyConfigured`, which says what to do, where kombu is not installed or the broker is one that
    kombu cannot read together with us. ``what`` needs it.
    """
    url = app.urls.read
    first = split(url)[0]
    if scheme_of(first) not in _SCHEMES:
        raise ImproperlyConfigured(
            f"{what} reads messages of its own by kombu, from Redis or RabbitMQ, and the broker is {mask(first)}"
        )
    try:
        cls: Any = importlib.import_module("kombu").Connection
    except (ImportError, AttributeError):
        cls = None
    # Under the alias the name is there, with less behind it, where kombu is not.
    if cls is None or cls.__module__.partition(".")[0] == "umbel":
        raise ImproperlyConfigured(
            f"{what} reads messages of its own by kombu, which is not installed: pip install 'kombu[redis]', or kombu "
            "alone for RabbitMQ"
        )
    conf = app.conf
    return cls(
        url if isinstance(url, str) else ";".join(url),
        transport_options=dict(conf.broker_transport_options or {}),
        ssl=conf.broker_use_ssl or False,
        heartbeat=_HEARTBEAT,
        connect_timeout=conf.broker_connection_timeout or 4.0,
    )


class Consumption:
    """The consumers of one step and the thread that calls them. Started and stopped by one thread, once."""

    def __init__(self, step: Any, app: Any) -> None:
        """Prepare. Raises as :func:`kombu_connection` does."""
        self._step = step
        self._connection = kombu_connection(app, f"the step {step.alias}")
        self._reading = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"umbel-step-{step.alias}", daemon=True)

    def start(self) -> None:
        """Make the consumers; connected or not, go on in the thread. What ``get_consumers`` raises is raised here."""
        try:
            self._consume()
        except self._lost() as error:
            self._lose(error)
        self._thread.start()

    def stop(self) -> None:
        """Cancel the consumers and end the connection: what was not acknowledged goes back."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_LOOK_EVERY + _RETRY_AFTER)
        for consumer in self._step.consumers or ():
            # The wall around what a connection that is lost already may raise.
            try:
                consumer.cancel()
            except Exception as error:
                logger.debug("A consumer of %s could not be cancelled: %s", self._step.alias, error)
        self._connection.release()

    def _lose(self, error: Exception) -> None:
        self._reading = False
        self._say(error)
        # One that was closed stays closed.
        closed, self._connection = self._connection, self._connection.clone()
        closed.release()

    def _consume(self) -> None:
        channel = self._connection.channel()
        self._step.consumers = self._step.get_consumers(channel)
        for consumer in self._step.consumers or ():
            consumer.consume()
        self._reading = True

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if not self._reading:
                    self._consume()
                self._connection.drain_events(timeout=_LOOK_EVERY)
                if self._connection.supports_heartbeats:
                    self._connection.heartbeat_check()
            except TimeoutError:
                continue
            except self._lost() as error:
                if not self._stopped.is_set():
                    self._lose(error)
                    self._stopped.wait(_RETRY_AFTER)
            # The wall around the step's own callbacks: one message that fails is no reason to read no more.
            except Exception:
                logger.exception("The step %s failed at a message and goes on", self._step.alias)
                if not self._reading:
                    self._stopped.wait(_RETRY_AFTER)

    def _lost(self) -> tuple[type[Exception], ...]:
        return tuple(self._connection.connection_errors) + tuple(self._connection.channel_errors)

    def _say(self, error: Exception) -> None:
        logger.error(
            "The step %s is not connected: %s. Trying again every %g s.", self._step.alias, error, _RETRY_AFTER
        )
