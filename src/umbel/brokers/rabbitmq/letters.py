"""Dead letters, in queues of their own::

    umbel.dead.<queue>    the dead letters of that queue, the oldest first
    umbel.dead            one message for each queue that has, or had, dead letters: its name

Whoever reads takes all letters of a queue at once, as the only consumer that the server lets in, and gives back what
it does not keep, in order. So of two who revive or discard the same letter one does, from whatever process.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.frames import Content
from umbel.brokers.rabbitmq.link import Channel, ChannelClosed
from umbel.brokers.rabbitmq.messages import message_of, priority_of, properties_of
from umbel.brokers.rabbitmq.posting import Letter, Post, PostOffice
from umbel.brokers.rabbitmq.topology import NOT_FOUND, Topology
from umbel.exceptions import DecodeError, EncodeError, OperationalError
from umbel.interfaces import QUEUED, Clock, Crash, Dead, DeadLetters, Peeked, QueueSpec
from umbel.message import Message, decode_envelope, encode_envelope

logger = logging.getLogger("umbel.brokers.rabbitmq")

PREFIX: Final = "umbel.dead."
INDEX: Final = "umbel.dead"
_PATIENCE: Final = 30.0  # seconds that a reader waits for another one to finish
_LOCKED: Final = (403, 405)  # ACCESS_REFUSED and RESOURCE_LOCKED: somebody else reads
_HEAD: Final = "umbel-dead-"


class RabbitDeadLetters(DeadLetters):
    """See :class:`umbel.interfaces.DeadLetters`.

    A letter that is revived is published first and then taken out, so a crash in between leaves it in both places.
    """

    __slots__ = ("_clock", "_indexed", "_keep", "_last", "_lock", "_office", "_topology")

    def __init__(self, office: PostOffice, topology: Topology, clock: Clock, *, keep: int) -> None:
        self._office = office
        self._topology = topology
        self._clock = clock
        self._keep = keep
        self._lock = threading.Lock()
        self._last = 0
        self._indexed: set[str] = set()

    # -- for consumers -------------------------------------------------------------------------------------------

    def letter(self, queue: str, message: Message, how: Dead, crashes: Sequence[Crash] = ()) -> Letter:
        """Return what is to be published when this message dies. The same post must then be told :meth:`index`."""
        with self._lock:
            # Keys tell the order of deaths and are never used again.
            key = self._last = max(time.time_ns(), self._last + 1)
        info = message.properties.get("delivery_info") or {}
        headers = {
            **message.headers,
            _HEAD + "key": str(key),
            _HEAD + "at": repr(self._clock.time()),
            _HEAD + "reason": how.reason,
            _HEAD + "detail": how.detail,
            _HEAD + "traceback": how.traceback,
            _HEAD + "exchange": str(info.get("exchange") or ""),
            _HEAD + "routing-key": str(info.get("routing_key") or ""),
            _HEAD + "crashes": msgspec.json.encode(list(crashes)).decode(),
        }
        properties = properties_of(message, priority=priority_of(message.properties))
        properties["headers"] = headers
        properties.pop("expiration", None)
        return Letter.of(
            str(message.headers.get("id") or ""), self._declared(queue), "", PREFIX + queue, properties, message.body
        )

    def _declared(self, queue: str) -> str:
        name = PREFIX + queue
        self._topology.learn([QueueSpec(name=name, arguments={"x-max-length": self._keep})])
        return name

    def index(self, queue: str) -> None:
        """Have :meth:`queues` tell of this queue."""
        if queue in self._indexed:
            return
        if queue not in self._names():
            self._topology.learn([QueueSpec(name=INDEX)])
            note = Letter.of("", INDEX, "", INDEX, {"delivery_mode": 2}, queue.encode())
            self._office.publish([note], _PATIENCE)
        self._indexed.add(queue)

    # -- for people ----------------------------------------------------------------------------------------------

    def queues(self) -> Sequence[str]:
        """Return the names of the queues that have dead letters, sorted."""
        return sorted(name for name in self._names() if self.size(name))

    def _names(self) -> set[str]:
        with self._reading(INDEX) as (_, contents):
            return {content.body.decode() for content in contents}

    def size(self, queue: str) -> int:
        """Return how many letters of this queue there are."""
        deadline = time.monotonic() + _PATIENCE
        with self._office.post(_PATIENCE) as post:
            while True:
                count, readers = _count(post, PREFIX + queue)
                # While somebody reads they are with him; what he does not keep comes back.
                if count or not readers or time.monotonic() > deadline:
                    return count
                time.sleep(0.01)

    def purge(self, queue: str) -> int:
        """Delete all letters of this queue; return how many that was."""
        with self._reading(PREFIX + queue) as (channel, contents):
            for content in contents:
                channel.send(channel.frame(frames.ACK, content.args[1], False))
            return len(contents)

    def page(self, queue: str, *, before: str = "", limit: int = 100) -> Sequence[Peeked]:
        """Return dead letters, the latest first."""
        if limit <= 0 or (before and not before.isdecimal()):
            return []
        found: list[tuple[int, Content]] = []
        with self._reading(PREFIX + queue) as (_, contents):
            for content in contents:
                key = _key(content)
                if key and (not before or key < int(before)):
                    found.append((key, content))
        found.sort(key=lambda pair: pair[0], reverse=True)
        return [_peeked(queue, content) for _, content in found[:limit]]

    def revive(self, queue: str, letters: Mapping[str, bytes | None], *, to: str = "") -> Collection[str]:
        """Move these letters to the tail of their queue, or of another; return the keys that were there."""
        if not letters:
            return []
        with self._reading(PREFIX + queue) as (channel, contents):
            there = {str(_key(content)): content for content in contents}
            moving = [key for key in letters if key in there]
            renewed = [_renewed(queue, there[key], letters[key], to or queue) for key in moving]
            if not moving:
                return []
            outcomes = self._office.publish(renewed, _PATIENCE)
            done = []
            for key, outcome in zip(moving, outcomes, strict=True):
                if outcome is QUEUED:
                    channel.send(channel.frame(frames.ACK, there[key].args[1], False))
                    done.append(key)
            if len(done) < len(moving):
                refused = next(outcome.detail for outcome in outcomes if outcome is not QUEUED)
                logger.error("%d dead letters of %s could not go back: %s", len(moving) - len(done), queue, refused)
        return done

    def discard(self, queue: str, keys: Collection[str]) -> Collection[str]:
        """Delete these letters; return the keys that were there."""
        wanted = dict.fromkeys(keys)
        if not wanted:
            return []
        done = []
        with self._reading(PREFIX + queue) as (channel, contents):
            for content in contents:
                if (key := str(_key(content))) in wanted:
                    channel.send(channel.frame(frames.ACK, content.args[1], False))
                    done.append(key)
        return done

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[tuple[Channel, list[Content]]]:
        """Hold all messages of a queue, as its only reader; what is not acknowledged goes back afterwards."""
        deadline = time.monotonic() + _PATIENCE
        with self._office.post(_PATIENCE) as post:
            while True:
                channel = post.link.channel()
                contents: list[Content] = []
                channel.on_content = lambda _, content, into=contents: into.append(content)
                try:
                    self._take_all(channel, name)
                    break
                except ChannelClosed as refused:
                    if refused.code == NOT_FOUND:
                        channel = post.link.channel()
                        break
                    if refused.code not in _LOCKED:
                        raise
                    if time.monotonic() > deadline:
                        raise OperationalError(f"others have been reading {name} for {_PATIENCE:g} s") from refused
                time.sleep(0.005)
            try:
                yield channel, contents
            finally:
                channel.close()

    @staticmethod
    def _take_all(channel: Channel, name: str) -> None:
        channel.call(frames.CONSUME, (0, name, "", False, False, True, False, {}), frames.CONSUME_OK)
        # When none is left there, all are on their way; and whatever is on its way arrives before the next answer.
        passive = frames.declare_queue(name, passive=True)
        while channel.call(frames.QUEUE_DECLARE, passive, frames.QUEUE_DECLARE_OK)[1][1]:
            pass
        channel.call(frames.QOS, (0, 0, False), frames.QOS_OK)


def _count(post: Post, name: str) -> tuple[int, int]:
    """Return how many messages wait in a queue, and how many read it; zeros where there is no such queue."""
    channel = post.link.channel()
    try:
        passive = frames.declare_queue(name, passive=True)
        _, (_, messages, consumers) = channel.call(frames.QUEUE_DECLARE, passive, frames.QUEUE_DECLARE_OK)
    except ChannelClosed as refused:
        if refused.code == NOT_FOUND:
            return 0, 0
        raise
    channel.close()
    return messages, consumers


def _key(content: Content) -> int:
    key = str((content.properties.get("headers") or {}).get(_HEAD + "key", ""))
    return int(key) if key.isdecimal() else 0


def _opened(queue: str, content: Content) -> tuple[Message, dict[str, Any]]:
    """Return the message as it was alive, and what is said about its death."""
    message, _ = message_of(content, queue)
    told = {name: message.headers.pop(name) for name in list(message.headers) if str(name).startswith(_HEAD)}
    info = {"exchange": told.get(_HEAD + "exchange") or "", "routing_key": told.get(_HEAD + "routing-key") or queue}
    message.properties["delivery_info"] = info
    return message, {name.removeprefix(_HEAD): value for name, value in told.items()}


def _peeked(queue: str, content: Content) -> Peeked:
    message, told = _opened(queue, content)
    about: dict[str, Any] = {
        "at": datetime.fromtimestamp(float(told.get("at") or 0), UTC),
        "key": str(told.get("key")),
        "reason": str(told.get("reason") or ""),
        "detail": str(told.get("detail") or ""),
        "traceback": str(told.get("traceback") or ""),
        "crashes": msgspec.json.decode(told.get("crashes") or "[]", type=list[Crash]),
    }
    return peeked(queue, message, **about)


def peeked(queue: str, message: Message, **about: Any) -> Peeked:
    """Return a message as people look at it: in an envelope, so that it can be kept and given back as bytes."""
    try:
        return Peeked(raw=encode_envelope(message), queue=queue, **about)
    except EncodeError:
        return Peeked(raw=message.body, queue=queue, message=message, **about)


def _renewed(queue: str, content: Content, replaced: bytes | None, to: str) -> Letter:
    message, _ = _opened(queue, content)
    if replaced is not None:
        try:
            message = decode_envelope(replaced)
        except DecodeError as error:
            raise ValueError(f"what is to replace a dead letter of {queue} cannot be read: {error}") from error
    properties = properties_of(message, priority=priority_of(message.properties))
    properties.pop("expiration", None)
    return Letter.of(str(message.headers.get("id") or ""), to, "", to, properties, message.body)
