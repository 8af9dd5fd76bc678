"""A connection in kombu's shape: to ask whether the broker answers, and how long a queue is.

What programs do with the connection of an app beyond that, such as publishing raw messages, needs the real kombu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn, Self

from umbel.clock import SYSTEM_CLOCK
from umbel.drivers import mask, open_broker, scheme_of, split
from umbel.exceptions import OperationalError
from umbel.interfaces import Broker, QueueSpec
from umbel.routing import queue_spec


class queue_declare_ok_t(NamedTuple):
    """What a broker says about a queue."""

    queue: str
    message_count: int
    consumer_count: int


class Transport(NamedTuple):
    """What kind of broker a connection leads to."""

    driver_type: str
    driver_name: str


_DRIVERS: Final = {
    **dict.fromkeys(("rediss", "redis+socket", "valkey", "valkeys", "sentinel", "sentinels"), "redis"),
    **dict.fromkeys(("amqps", "pyamqp", "librabbitmq"), "amqp"),
}


class Channel:
    """What little of a channel there is; made by :meth:`Connection.channel`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def queue_declare(self, queue: str = "", passive: bool = False, **options: Any) -> queue_declare_ok_t:
        """Return how many messages wait in a queue, which is made unless ``passive``. Consumers are not counted."""
        broker = self.connection.broker
        if not passive:
            broker.declare([QueueSpec(name=queue, exchange=queue, routing_key=queue)])
        return queue_declare_ok_t(queue, broker.size(queue), 0)

    def queue_purge(self, queue: str = "", **options: Any) -> int:
        """Discard what waits in a queue and return how many messages that were."""
        return int(self.connection.broker.purge(queue))

    def close(self) -> None:
        """Do nothing: a channel holds nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"Umbel's channel has no {name!r}: use app.send_task, or the real kombu for raw messages")


class Connection:
    """A connection to a broker by its URL. It connects when first used; ``release`` ends it. One thread at a time."""

    recoverable_connection_errors = (OperationalError,)
    connection_errors = (OperationalError,)
    recoverable_channel_errors: tuple[type[Exception], ...] = ()
    channel_errors: tuple[type[Exception], ...] = ()

    def __init__(
        self, hostname: str | None = "memory://", *, make: Callable[[], Broker] | None = None, **options: Any
    ) -> None:
        """Describe a connection.

        :param make: returns the broker, not connected; given by an app that has its own settings for it.
        """
        self.hostname = hostname
        self._make = make
        self._broker: Broker | None = None

    @property
    def broker(self) -> Broker:
        """The broker, connected. Raises :exc:`OperationalError` if it cannot be reached."""
        if self._broker is None:
            url = self.hostname or "memory://"
            broker = self._make() if self._make is not None else _open(url)
            broker.open()
            self._broker = broker
        return self._broker

    @property
    def connected(self) -> bool:
        """Whether it is connected."""
        return self._broker is not None

    @property
    def connection(self) -> Any:
        """The same as :attr:`broker`."""
        return self.broker

    @property
    def transport_cls(self) -> str:
        """The scheme of the URL."""
        return scheme_of(split(self.hostname or "memory://")[0])

    @property
    def transport(self) -> Transport:
        """What kind of broker it is."""
        scheme = self.transport_cls
        return Transport(_DRIVERS.get(scheme, scheme), scheme)

    @property
    def default_channel(self) -> Channel:
        """A channel, once connected."""
        return self.channel()

    def connect(self) -> Any:
        """Connect now and return what is connected."""
        return self.broker

    def channel(self) -> Channel:
        """Return a channel."""
        self.connect()
        return Channel(self)

    def ensure_connection(
        self,
        errback: Callable[[BaseException, float], Any] | None = None,
        max_retries: int | None = None,
        interval_start: float = 2,
        interval_step: float = 2,
        interval_max: float = 30,
        callback: Callable[[], Any] | None = None,
        reraise_as_library_errors: bool = True,
        timeout: float | None = None,
    ) -> Self:
        """Connect, trying again after a while; with None for ever, else at most ``max_retries`` times."""
        from threading import Event

        deadline = None if timeout is None else SYSTEM_CLOCK.monotonic() + timeout
        interval, tries = float(interval_start), 0
        while True:
            try:
                self.connect()
                return self
            except OperationalError as error:
                left = None if deadline is None else deadline - SYSTEM_CLOCK.monotonic()
                if (max_retries is not None and tries >= max_retries) or (left is not None and left <= 0):
                    raise
                tries += 1
                if errback is not None:
                    errback(error, interval)
                SYSTEM_CLOCK.wait(Event(), interval if left is None else min(interval, left))
                if callback is not None:
                    callback()
                interval = min(interval + interval_step, interval_max)

    def ensure(self, obj: Any, fun: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Return the function: publishing retries by itself."""
        return fun

    def clone(self, **options: Any) -> Connection:
        """Return a connection to the same place that is not connected."""
        return Connection(self.hostname, make=self._make)

    def as_uri(self, include_password: bool = False, mask: str = "**", **options: Any) -> str:
        """Return the URL, its password hidden unless asked for."""
        return str(self.hostname) if include_password else _mask(self.hostname, mask)

    def release(self) -> None:
        """End the connection, if there is one. It may be used again."""
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()

    close = release

    @contextmanager
    def _pooled(self) -> Iterator[Connection]:
        with self:
            yield self

    def SimpleQueue(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not there: raises with what to do instead."""
        raise NotImplementedError("Umbel carries tasks; for queues of your own install kombu and connect with it")

    SimpleBuffer = SimpleQueue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Connection: {self.as_uri()}>"


def _open(url: str) -> Broker:
    return open_broker(url, clock=SYSTEM_CLOCK, app_name="")


def _mask(url: Any, hidden: str) -> str:
    return mask(url, hidden=hidden)


class ConnectionPool:
    """Gives out connections of an app; each ends with its block."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make

    @contextmanager
    def acquire(self, block: bool = False, timeout: float | None = None) -> Iterator[Connection]:
        """Lend a connection for the block."""
        with self._make() as connection:
            yield connection

    acquire_channel = acquire

    def force_close_all(self) -> None:
        """Do nothing: there is none that nobody uses."""


class Producer:
    """What publishes in kombu. An app's tasks publish without one, so this one only says so."""

    def __init__(self, channel: Any = None, *args: Any, **options: Any) -> None:
        self.channel = channel
        self.connection = channel

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """Not there: raises with what to do instead."""
        raise NotImplementedError("Umbel publishes tasks: use task.apply_async or app.send_task, or install kombu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


class Consumer:
    """What consumes in kombu. Only for programs that name the class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError("Umbel's workers consume tasks; for messages of your own install kombu")


def maybe_declare(entity: Any, channel: Any = None, *args: Any, **options: Any) -> bool:
    """Declare a queue at the broker behind a channel, a connection or a producer; say whether that was done."""
    connection = getattr(channel, "connection", None) or channel
    if not isinstance(connection, Connection):
        return False
    connection.broker.declare([queue_spec(entity)])
    return True
