"""Remote control and events, on the channels that Celery's fanout exchanges use."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from umbel.brokers.redis.client import Source
from umbel.brokers.redis.link import Link, LinkPool, pack
from umbel.interfaces import PubSub, Subscription
from umbel.message import Message, decode_envelope, encode_envelope


class RedisPubSub(PubSub):
    """See :class:`umbel.interfaces.PubSub`. Safe to share between threads."""

    __slots__ = ("_patterns", "_pool", "_prefix", "_source")

    def __init__(self, source: Source, pool: LinkPool, prefix: str, options: Mapping[str, Any]) -> None:
        self._source = source
        self._pool = pool
        fanout = options.get("fanout_prefix", True)
        form = (fanout if isinstance(fanout, str) else "/{db}.") if fanout else ""
        self._prefix = prefix + form.replace("{db}", str(source.db))
        self._patterns = bool(options.get("fanout_patterns", True))

    def publish(self, exchange: str, message: Message, *, routing_key: str = "") -> None:
        """Send to all present subscribers."""
        with self._pool.link() as link:
            link.call("PUBLISH", self._channel(exchange, routing_key), _envelope(exchange, routing_key, message))

    def subscribe(self, exchange: str, *, pattern: str = "#") -> Subscription:
        """Start listening; what is published after this returns is received."""
        plain = self._channel(exchange, "")
        return RedisSubscription(self._source, plain, pattern, self._patterns)

    def _channel(self, exchange: str, routing_key: str) -> str:
        suffix = f"/{routing_key}" if routing_key and self._patterns else ""
        return f"{self._prefix}{exchange}{suffix}"


class RedisSubscription(Subscription):
    """See :class:`umbel.interfaces.Subscription`."""

    __slots__ = ("_arrived", "_keyed", "_link", "_matches", "_plain")

    def __init__(self, source: Source, plain: str, pattern: str, patterns: bool) -> None:
        self._plain = plain
        self._keyed = f"{_escaped(plain)}/{_escaped(pattern, keep='*').replace('#', '*')}" if patterns else ""
        self._matches = topic(pattern)
        self._arrived: deque[tuple[str, bytes]] = deque()
        self._link = Link(source, on_open=self._subscribe, on_push=self._pushed)
        self._link.open()

    def receive(self, *, timeout: float) -> Message | None:
        """Return the next message, or None when the timeout (seconds) has passed."""
        deadline = time.monotonic() + timeout
        while True:
            while self._arrived:
                key, raw = self._arrived.popleft()
                if self._matches(key):
                    return decode_envelope(raw)
            self._link.open()
            left = deadline - time.monotonic()
            if not self._link.listen(left) and left <= 0:
                return None

    def close(self) -> None:
        """Stop listening."""
        self._link.close()

    def _subscribe(self, link: Link) -> None:
        # The plain channel carries messages without a routing key, which only "#" matches. The answers to these are
        # push messages; the one to PING says that they are done.
        commands: list[tuple[str, ...]] = [("SUBSCRIBE", self._plain), ("PING",)]
        if self._keyed:
            commands.insert(0, ("PSUBSCRIBE", self._keyed))
        link.checked(link.exchange(b"".join([pack(command) for command in commands])))

    def _pushed(self, message: list[Any]) -> None:
        if message[0] == b"message":
            self._arrived.append(("", message[2]))
        elif message[0] == b"pmessage":
            self._arrived.append((message[2].decode()[len(self._plain) + 1 :], message[3]))


def _envelope(exchange: str, routing_key: str, message: Message) -> bytes:
    """Return the message with the properties that kombu's readers ask for."""
    properties = {
        "delivery_mode": 2,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "priority": 0,
        "delivery_tag": str(uuid4()),
        **message.properties,
    }
    return encode_envelope(message.replace(properties=properties))


def topic(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a routing key matches: ``*`` is one word, ``#`` any number of words.

    >>> topic("worker.#")("worker.online"), topic("*.sent")("task.multi.sent")
    (True, False)
    """
    words = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    compiled = re.compile("".join(words.get(word, re.escape(word) + r"\.") for word in pattern.split(".")))

    def matches(key: str) -> bool:
        # With a dot after each word, the last one too.
        return compiled.fullmatch(key + ".") is not None

    return matches


def _escaped(text: str, keep: str = "") -> str:
    return "".join(f"\\{letter}" if letter in "*?[]^\\" and letter not in keep else letter for letter in text)
