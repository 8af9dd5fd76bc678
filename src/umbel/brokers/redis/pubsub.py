"""Remote control and events, on the channels that Celery's fanout exchanges use."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import uuid4

from umbel.brokers.redis.client import Source
from umbel.brokers.redis.link import DOUBTED, Link, LinkPool, pack
from umbel.exceptions import OperationalError
from umbel.interfaces import PubSub, Subscription
from umbel.message import Message, decode_envelope, encode_envelope

_SEPARATOR: Final = "\x06\x16"
_KEPT_MS: Final = 10_000  # for as long as kombu keeps a box that nobody reads
_BOUND_FOR: Final = 3600.0  # seconds, as kombu's
_PATIENCE: Final = 2.0  # seconds that a server has to say that it is there


class RedisPubSub(PubSub):
    """See :class:`umbel.interfaces.PubSub`. Safe to share between threads."""

    __slots__ = ("_patterns", "_pool", "_prefix", "_prefix_keys", "_source")

    def __init__(self, source: Source, pool: LinkPool, prefix: str, options: Mapping[str, Any]) -> None:
        self._source = source
        self._pool = pool
        fanout = options.get("fanout_prefix", True)
        form = (fanout if isinstance(fanout, str) else "/{db}.") if fanout else ""
        self._prefix_keys = prefix
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

    def reply(self, exchange: str, key: str, message: Message) -> None:
        """Push to the list where kombu looks for replies. One that nobody fetches goes by itself."""
        box = f"{self._prefix_keys}{key}.{exchange}"
        with self._pool.link() as link:
            push = ("LPUSH", box, _envelope(exchange, key, message))
            link.pipeline([push, ("PEXPIRE", box, _KEPT_MS)])

    def replies(self, exchange: str, key: str) -> Subscription:
        """Bind a list as kombu does, so that Celery's workers find it."""
        return ReplyBox(self._source, self._prefix_keys, exchange, key)

    def _channel(self, exchange: str, routing_key: str) -> str:
        suffix = f"/{routing_key}" if routing_key and self._patterns else ""
        return f"{self._prefix}{exchange}{suffix}"


class RedisSubscription(Subscription):
    """See :class:`umbel.interfaces.Subscription`.

    After ``doubted`` seconds of silence the server is asked whether it is there: one that a firewall or a failover
    has cut off would be listened to for ever.
    """

    __slots__ = ("_arrived", "_doubted", "_heard_at", "_keyed", "_link", "_matches", "_plain")

    def __init__(self, source: Source, plain: str, pattern: str, patterns: bool, *, doubted: float = DOUBTED) -> None:
        self._plain = plain
        self._doubted = doubted
        self._heard_at = 0.0
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
            now = time.monotonic()
            doubted = self._heard_at + self._doubted
            if self._link.listen(min(deadline, doubted) - now):
                self._heard_at = time.monotonic()
            elif now >= doubted:
                # Whatever the timeout: no time at all would be no proof. If it is gone, the next round subscribes anew.
                if self._link.answers(_PATIENCE):
                    self._heard_at = time.monotonic()
            elif now >= deadline:
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
        self._heard_at = time.monotonic()

    def _pushed(self, message: list[Any]) -> None:
        if message[0] == b"message":
            self._arrived.append(("", message[2]))
        elif message[0] == b"pmessage":
            self._arrived.append((message[2].decode()[len(self._plain) + 1 :], message[3]))


class ReplyBox(Subscription):
    """A list of replies. It and its binding are deleted on closing; what is left by a crash goes by itself."""

    __slots__ = ("_box", "_link", "_member", "_table")

    def __init__(self, source: Source, prefix: str, exchange: str, key: str) -> None:
        self._link = Link(source)
        self._box = f"{prefix}{key}.{exchange}"
        self._table = f"{prefix}_kombu.binding.{exchange}"
        self._member = _SEPARATOR.join((key, "", f"{key}.{exchange}"))
        # The table of bindings is deleted by kombu's sweep once this moment has passed and nobody has moved it.
        deadline = f"{(time.time() + _BOUND_FOR) * 1000:.0f}"
        bind = ("ZADD", f"{prefix}_kombu.binding_deadlines", "GT", deadline, exchange)
        self._link.pipeline([("SADD", self._table, self._member), bind])

    def receive(self, *, timeout: float) -> Message | None:
        """Return the next reply, or None when the timeout (seconds) has passed."""
        deadline = time.monotonic() + timeout
        longest = min(1.0, self._link.timeout / 2)
        while True:
            left = deadline - time.monotonic()
            found = (
                self._link.call("BRPOP", self._box, f"{min(left, longest):.3f}")
                if left >= 0.001
                else self._link.call("RPOP", self._box)
            )
            if found is not None:
                return decode_envelope(found[1] if isinstance(found, list | tuple) else found)
            if left < 0.001:
                return None

    def close(self) -> None:
        """Delete the list and its binding."""
        try:
            self._link.pipeline([("SREM", self._table, self._member), ("DEL", self._box)])
        except OperationalError:
            # Whoever waited has what there was; the keys are swept, as above.
            pass
        finally:
            self._link.close()


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
