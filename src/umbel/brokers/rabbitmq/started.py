"""What must not run twice, and so is acknowledged before it runs: a copy is kept aside, so that its loss can be told::

    umbel.started.<consumer id>    copies of the messages that this consumer acknowledged before they ran

A copy and its acknowledgement go out in one write, and the server takes them in that order: there is never neither.
The copies are purged when nothing of that kind runs any more. Where a process dies, its supervisor finds the copy of
what ran and sends it back with the verdict; the engine that gets it ends it without running it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.frames import Content
from umbel.brokers.rabbitmq.link import Channel, ChannelClosed
from umbel.brokers.rabbitmq.messages import message_of, priority_of, properties_of
from umbel.brokers.rabbitmq.posting import Letter, Post, PostOffice
from umbel.brokers.rabbitmq.topology import NOT_FOUND
from umbel.exceptions import OperationalError
from umbel.interfaces import QUEUED, Verdict
from umbel.message import Message

PREFIX: Final = "umbel.started."
#: The header under which a message that was sent back carries how it is to end.
VERDICT: Final = "umbel-verdict"
_TAG: Final = "umbel-tag"
_QUEUE: Final = "umbel-queue"
_KEEP: Final = 86_400_000  # milliseconds that the queue outlives its last declaration
_AGAIN: Final = 3600.0  # seconds after which it is declared again
_FORGET: Final = 0.5  # seconds
_SETTLES: Final = 0.5  # seconds in which the server reads what a killed process had sent

_verdict: Final = msgspec.json.Decoder(Verdict)


class Aside:
    """The copies of one consumer. Used under its lock."""

    def __init__(self, id: str) -> None:
        self._name = PREFIX + id
        self._declared_at = 0.0
        self._channel: Channel | None = None

    def prepare(self, channel: Channel) -> None:
        """Have the queue there: it goes when nobody declares it for a day, and a copy would go unnoticed."""
        now = time.monotonic()
        if self._channel is not channel or now - self._declared_at >= _AGAIN:
            args = frames.declare_queue(self._name, durable=False, arguments={"x-expires": _KEEP})
            channel.call(frames.QUEUE_DECLARE, args, frames.QUEUE_DECLARE_OK)
            self._channel, self._declared_at = channel, now

    def copy(self, channel: Channel, tag: str, queue: str, message: Message, priority: int) -> bytes:
        """Return the frames that put a copy there."""
        properties = properties_of(message, priority=priority)
        properties["headers"] = {**message.headers, _TAG: tag, _QUEUE: queue}
        properties["delivery_mode"] = 1
        # It is there for as long as it runs, whenever it expires.
        properties.pop("expiration", None)
        content = frames.content(channel.number, frames.encoded(properties), message.body, channel.link.frame_max)
        return frames.publish(channel.number, "", self._name, False) + content

    def clear(self, channel: Channel) -> None:
        """Drop all copies."""
        # A server that has started anew knows the queue no more, and ends the channel of whoever purges it.
        self.prepare(channel)
        channel.send(channel.frame(frames.QUEUE_PURGE, 0, self._name, True))


class Started:
    """The copies that dead consumers have left. Safe to share between threads."""

    def __init__(self, office: PostOffice) -> None:
        self._office = office

    def condemn(self, id: str, verdicts: Mapping[str, Verdict]) -> set[str]:
        """Send back what ran under these tags, each with its verdict; return the tags of which there was a copy."""
        if not verdicts:
            return set()
        name, deadline = PREFIX + id, time.monotonic() + _SETTLES
        with self._office.post() as post:
            found: dict[str, Letter] = {}
            while _exists(post, name):
                found = self._found(post, name, verdicts)
                if len(found) == len(verdicts) or time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        outcomes = self._office.publish(list(found.values())) if found else []
        refused = [outcome.detail for outcome in outcomes if outcome is not QUEUED]
        if refused:
            raise OperationalError(f"a task that was lost could not be sent back: {refused[0]}")
        return set(found)

    def forget(self, id: str) -> None:
        """Delete what a consumer has left."""
        # Whoever stops while the server is away must not wait for this.
        with self._office.post(_FORGET) as post:
            args = (0, PREFIX + id, False, False, False)
            post.channel.call(frames.QUEUE_DELETE, args, frames.QUEUE_DELETE_OK)

    @staticmethod
    def _found(post: Post, name: str, verdicts: Mapping[str, Verdict]) -> dict[str, Letter]:
        """Return what to send back, by its tag; the copies stay where they are."""
        found: dict[str, Letter] = {}
        with contextlib.closing(post.link.channel()) as channel:
            while True:
                answer, content = channel.call(frames.GET, (0, name, False), frames.GET_OK, frames.GET_EMPTY)
                if answer == frames.GET_EMPTY:
                    return found
                headers: Mapping[str, Any] = content.properties.get("headers") or {}
                tag, queue = str(headers.get(_TAG)), str(headers.get(_QUEUE))
                if tag in verdicts:
                    found[tag] = _returned(content, queue, verdicts[tag])


def _returned(content: Content, queue: str, verdict: Verdict) -> Letter:
    number, again, exchange, key, _ = content.args
    message, _ = message_of(content._replace(args=("", number, again, exchange, key)), queue)
    message.headers = {name: value for name, value in message.headers.items() if name not in (_TAG, _QUEUE)}
    properties = properties_of(message, priority=priority_of(message.properties))
    properties["headers"] = {**message.headers, VERDICT: msgspec.json.encode(verdict).decode()}
    properties["delivery_mode"] = 2
    return Letter.of(str(message.headers.get("id") or ""), queue, "", queue, properties, message.body)


def _exists(post: Post, name: str) -> bool:
    channel = post.link.channel()
    try:
        channel.call(frames.QUEUE_DECLARE, frames.declare_queue(name, passive=True), frames.QUEUE_DECLARE_OK)
    except ChannelClosed as refused:
        if refused.code == NOT_FOUND:
            return False
        raise
    channel.close()
    return True


def verdict_of(content: Content) -> Verdict | None:
    """Return how a message that was sent back is to end, or None."""
    told = (content.properties.get("headers") or {}).get(VERDICT)
    if not isinstance(told, str):
        return None
    try:
        return _verdict.decode(told)
    except msgspec.MsgspecError:
        return None
