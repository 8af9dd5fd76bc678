"""Remote control and events by exchanges, declared as Celery declares them."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Final

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.frames import Content
from umbel.brokers.rabbitmq.link import Link
from umbel.brokers.rabbitmq.messages import message_of, priority_of, properties_of
from umbel.brokers.rabbitmq.posting import Addresses, PostOffice
from umbel.exceptions import BrokerError, OperationalError
from umbel.interfaces import PubSub, Subscription
from umbel.message import Message

# What is not named here is a durable topic exchange.
_KINDS: Final = {"celery.pidbox": ("fanout", False), "reply.celery.pidbox": ("direct", False)}
_EXPIRES: Final = 60_000  # milliseconds that a queue outlives its reader
_KEEP: Final = 300_000  # milliseconds that a message waits for a slow reader
_HEARTBEAT: Final = 30.0
_ANSWER: Final = 10.0


def _kind(exchange: str) -> tuple[str, bool]:
    return _KINDS.get(exchange, ("topic", True))


class RabbitPubSub(PubSub):
    """See :class:`umbel.interfaces.PubSub`. Safe to share between threads."""

    def __init__(self, addresses: Addresses, office: PostOffice) -> None:
        self._addresses = addresses
        self._office = office
        self._declared: set[str] = set()

    def publish(self, exchange: str, message: Message, *, routing_key: str = "") -> None:
        """Send to all present subscribers. Does not wait: what nobody hears is lost anyway."""
        properties = properties_of(message, priority=priority_of(message.properties))
        properties["delivery_mode"] = message.properties.get("delivery_mode") or 1
        with self._office.post() as post:
            if exchange not in self._declared:
                declare(post.link, exchange)
                self._declared.add(exchange)
            try:
                post.tell(exchange, routing_key, properties, message.body)
            except BrokerError:
                self._declared.discard(exchange)
                raise

    def subscribe(self, exchange: str, *, pattern: str = "#") -> RabbitSubscription:
        """Start listening."""
        name = f"{exchange}.{os.urandom(8).hex()}"
        return RabbitSubscription(self._addresses, name=name, exchange=exchange, key=pattern)

    def replies(self, exchange: str, key: str) -> RabbitSubscription:
        """Open the box of this key, under the name that kombu gives it."""
        return RabbitSubscription(self._addresses, name=f"{key}.{exchange}", exchange=exchange, key=key)


def declare(link: Link, exchange: str) -> None:
    """Declare an exchange of Celery's, or one like it; one that is there stays as it is."""
    kind, durable = _kind(exchange)
    channel = link.channel()
    args = frames.declare_exchange(exchange, kind, durable=durable)
    try:
        channel.call(frames.EXCHANGE_DECLARE, args, frames.EXCHANGE_DECLARE_OK)
    except BrokerError as error:
        if isinstance(error, OperationalError) or "406" not in str(error):
            raise
        return
    channel.close()


class RabbitSubscription(Subscription):
    """One listener with a queue and a connection of its own. Connects anew after an error, when it is used again."""

    def __init__(self, addresses: Addresses, *, name: str, exchange: str, key: str) -> None:
        self._addresses = addresses
        self._name = name
        self._exchange = exchange
        self._key = key
        self._came: deque[Content] = deque()
        self._link: Link | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._open()

    def _open(self) -> Link:
        if self._link is not None and self._link.alive:
            return self._link
        link = self._addresses.connect(f"umbel:{self._name}", timeout=_ANSWER, heartbeat=_HEARTBEAT)
        try:
            declare(link, self._exchange)
            channel = link.channel()
            channel.on_content = lambda _, content: self._came.append(content)
            limits = {"x-expires": _EXPIRES, "x-message-ttl": _KEEP}
            queue = frames.declare_queue(self._name, durable=False, exclusive=True, auto_delete=True, arguments=limits)
            channel.call(frames.QUEUE_DECLARE, queue, frames.QUEUE_DECLARE_OK)
            binding = frames.bind(self._name, self._exchange, self._key)
            channel.call(frames.QUEUE_BIND, binding, frames.QUEUE_BIND_OK)
            channel.call(frames.CONSUME, (0, self._name, "", False, True, False, False, {}), frames.CONSUME_OK)
        except BaseException:
            link.drop()
            raise
        self._link = link
        return link

    def receive(self, *, timeout: float) -> Message | None:
        """Return the next message, or None when the timeout (seconds) has passed."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while not self._came:
                if self._closed:
                    return None
                link = self._open()
                link.tend(time.monotonic())
                left = deadline - time.monotonic()
                link.read(min(max(left, 0.0), _HEARTBEAT / 3))
                if not self._came and left <= 0:
                    return None
            message, _ = message_of(self._came.popleft(), self._name)
            return message

    def close(self) -> None:
        """Stop listening. A second call does nothing."""
        self._closed = True
        with self._lock:
            if self._link is not None:
                self._link.close()
