"""Publishing with confirmation: many messages are written one after the other, and then their confirmations awaited.

Every message is ``mandatory``: the server returns what no queue takes, which it would confirm and drop otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import Address
from umbel.brokers.rabbitmq.link import Channel, ChannelClosed, Link
from umbel.brokers.rabbitmq.topology import PRECONDITION_FAILED, Topology
from umbel.exceptions import BrokerError, OperationalError, PublishUnknown
from umbel.interfaces import QUEUED, Published, PublishStatus

logger = logging.getLogger("umbel.brokers.rabbitmq")

_CHUNK: Final = 262144  # bytes written before looking whether something was answered
_IDLE: Final = 5.0  # seconds after which a connection is tried before it is trusted
_TELL: Final = 5.0  # seconds
_KEPT: Final = 8  # connections kept for the next use
_LEAST: Final = 0.1  # seconds for a confirmation to come; who has waited for less knows nothing, and publishes again


class Letter(NamedTuple):
    """One message ready to be published. ``queue`` is declared first, unless it is empty."""

    id: str  # of the task, for errors
    queue: str
    exchange: str
    key: str
    properties: bytes
    body: bytes
    delayed: bool = False

    @classmethod
    def of(
        cls,
        id: str,
        queue: str,
        exchange: str,
        key: str,
        properties: Mapping[str, Any],
        body: bytes,
        *,
        delayed: bool = False,
    ) -> Letter:
        """Return a letter. :exc:`EncodeError` for what AMQP cannot carry, so that nothing of a batch is sent then."""
        frames.short(exchange)
        frames.short(key)
        return cls(id, queue, exchange, key, frames.encoded(properties), body, delayed)


class Post:
    """One connection for publishing and for short questions. Used by one thread at a time."""

    def __init__(self, link: Link, *, timeout: float) -> None:
        self.link = link
        self.channel: Channel = self._confirming(timeout)
        self.idle_since = time.monotonic()

    def _confirming(self, timeout: float) -> Channel:
        channel = self.link.channel(timeout=timeout)
        channel.call(frames.CONFIRM_SELECT, (False,), frames.CONFIRM_SELECT_OK, timeout=timeout)
        channel.on_confirm = self._on_confirm
        channel.on_content = self._on_return
        self._next = 1
        self._open: dict[int, int] = {}  # number on this channel -> place in the batch
        self._refused: dict[int, str] = {}
        self._returned: Counter[tuple[str, str]] = Counter()
        self._reason = ""
        return channel

    def _on_confirm(self, number: int, multiple: bool, taken: bool) -> None:
        numbers = [each for each in self._open if each <= number] if multiple else [number]
        for each in numbers:
            place = self._open.pop(each, None)
            if place is not None and not taken:
                self._refused[place] = "the queue takes no more, or could not store it"

    def _on_return(self, name: frames.Method, content: frames.Content) -> None:
        _, self._reason, exchange, key = content.args
        self._returned[exchange, key] += 1

    def send(self, letters: Sequence[Letter], deadline: float) -> dict[int, str]:
        """Publish all and wait for the confirmations; return what was refused, by its place, and why.

        :exc:`PublishUnknown` if that is not known by the deadline (monotonic seconds). As long as the server confirms
        one message after the other, it moves on: how much a server can take is no sign that it is away.
        """
        patience = deadline - time.monotonic()
        self._refused, self._open = {}, {}
        self._returned.clear()
        if self.channel.closed is not None:
            self.channel = self._confirming(deadline - time.monotonic())
        try:
            self._write(letters, patience)
            deadline, left = time.monotonic() + patience if len(letters) > 1 else deadline, len(self._open)
            while self._open:
                if not self.link.read(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise self.link.fail(self.link.blocked or "the server did not confirm in time")
                self._look()
                if len(self._open) < left:
                    deadline, left = time.monotonic() + patience, len(self._open)
        except (OperationalError, ChannelClosed) as error:
            if isinstance(error, ChannelClosed) and error.code == PRECONDITION_FAILED and len(letters) == 1:
                # It is this one that the server refuses, such as for its size: it has taken nothing of it.
                return {0: f"{error.text} ({error.code})"}
            unconfirmed = min(self._open.values(), default=0)
            # Numbers start anew on a new channel, so what is late for these cannot be taken for others.
            self.link.drop()
            raise PublishUnknown(letters[unconfirmed].id, str(error)) from error
        self._find_returned(letters)
        return self._refused

    def renew(self, timeout: float) -> None:
        """Open another channel in place of one that the server has closed."""
        self.channel = self._confirming(timeout)

    def tell(self, exchange: str, key: str, properties: dict[str, Any], body: bytes) -> None:
        """Publish to whoever listens now, and do not wait."""
        if self.channel.closed is not None:
            self.channel = self._confirming(_TELL)
        number = self.channel.number
        data = frames.content(number, frames.encoded(properties), body, self.link.frame_max)
        self._next += 1
        self.channel.send(frames.publish(number, exchange, key, False) + data, timeout=_TELL)

    def _write(self, letters: Sequence[Letter], patience: float) -> None:
        channel, room = self.channel, self.link.frame_max
        parts: list[bytes] = []
        size = 0
        for place, letter in enumerate(letters):
            parts.append(frames.publish(channel.number, letter.exchange, letter.key, True))
            parts.append(frames.content(channel.number, letter.properties, letter.body, room))
            size += len(parts[-1])
            self._open[self._next] = place
            self._next += 1
            if size > _CHUNK:
                self.link.write(b"".join(parts), time.monotonic() + patience)
                self.link.read(0.0)
                self._look()
                parts, size = [], 0
        self.link.write(b"".join(parts), time.monotonic() + patience)

    def _look(self) -> None:
        if self.channel.closed is not None:
            raise self.channel.closed

    def _find_returned(self, letters: Sequence[Letter]) -> None:
        """Tell which messages came back: those with the same address come back in the order of sending."""
        if not self._returned:
            return
        for place, letter in enumerate(letters):
            address = letter.exchange, letter.key
            if self._returned[address] > 0:
                self._returned[address] -= 1
                self._refused.setdefault(place, f"no queue takes what goes to {_shown(*address)} ({self._reason})")


class PostOffice:
    """Posts for whoever needs one for a moment. Safe to share between threads."""

    def __init__(self, addresses: Addresses, topology: Topology, *, name: str, patience: float) -> None:
        self._addresses = addresses
        self._topology = topology
        self._name = name
        self.patience = patience
        self._free: deque[Post] = deque()  # its methods are atomic
        self.closed = True

    def open(self) -> None:
        """Connect, so that a wrong address is told now."""
        self.closed = False
        if not self._free:
            self._give(self._take(self.patience))

    def close(self) -> None:
        """Close what is idle now; what is in use is closed when it comes back."""
        self.closed = True
        while True:
            try:
                self._free.pop().link.close()
            except IndexError:
                return

    @contextlib.contextmanager
    def post(self, timeout: float | None = None) -> Iterator[Post]:
        """Lend a post that is nobody else's."""
        post = self._take(self.patience if timeout is None else timeout)
        try:
            yield post
        finally:
            self._give(post)

    def _take(self, timeout: float) -> Post:
        deadline = time.monotonic() + timeout
        while True:
            try:
                post = self._free.pop()
            except IndexError:
                break
            if self._usable(post, deadline):
                return post
        link = self._addresses.connect(self._name, timeout=max(deadline - time.monotonic(), 0.01))
        try:
            return Post(link, timeout=max(deadline - time.monotonic(), 0.01))
        except BaseException:
            link.drop()
            raise

    @staticmethod
    def _usable(post: Post, deadline: float) -> bool:
        try:
            post.link.read(0.0)
            now = time.monotonic()
            patience = min((deadline - now) / 3, 1.0)
            if post.channel.closed is not None:
                # By a refusal, which was told to whoever had it then.
                post.renew(patience)
            elif now - post.idle_since > _IDLE:
                # Half open it would take the message and never answer.
                post.channel.call(frames.QOS, (0, 0, False), frames.QOS_OK, timeout=patience)
        except (OperationalError, ChannelClosed):
            post.link.drop()
        return post.link.alive

    def _give(self, post: Post) -> None:
        if not post.link.alive:
            return
        if self.closed or len(self._free) >= _KEPT:
            post.link.close()
            return
        post.idle_since = time.monotonic()
        self._free.append(post)

    # -- publishing ----------------------------------------------------------------------------------------------

    def publish(self, letters: Sequence[Letter], timeout: float | None = None) -> list[Published]:
        """Publish, declaring first what is new to this process; return one outcome each.

        :exc:`OperationalError` if nothing was queued, :exc:`PublishUnknown` if that cannot be known.
        """
        patience = self.patience if timeout is None else timeout
        deadline = time.monotonic() + patience
        try:
            return self._publish(letters, deadline, least=min(_LEAST, patience / 4))
        except PublishUnknown:
            # An exchange may be gone, and a server that comes back may know less than before.
            self._topology.forget()
            raise

    def _publish(self, letters: Sequence[Letter], deadline: float, least: float) -> list[Published]:
        with self.post(deadline - time.monotonic()) as post:
            if post.link.blocked:
                raise OperationalError(f"RabbitMQ at {self._addresses.name}: {post.link.blocked}")
            refused = self._declare(post.link, letters, deadline)
            _still(deadline, least)
            left = [place for place in range(len(letters)) if place not in refused]
            again = self._send(post, letters, left, refused, deadline)
            if again:
                # Deleted since we have declared them, or never declared by anybody.
                self._topology.forget()
                try:
                    found = self._declare(post.link, [letters[place] for place in again], deadline, again)
                    _still(deadline, least)
                except OperationalError:
                    if len(again) == len(letters):
                        raise
                    # Others of them are queued. These are not, and that is known.
                    found = {place: refused[place] for place in again}
                for place in again:
                    del refused[place]
                refused.update(found)
                self._send(post, letters, [place for place in again if place not in refused], refused, deadline)
        outcomes = [QUEUED] * len(letters)
        for place, reason in refused.items():
            outcomes[place] = Published(PublishStatus.REFUSED, reason)
        return outcomes

    @staticmethod
    def _send(
        post: Post, letters: Sequence[Letter], places: Sequence[int], refused: dict[int, str], deadline: float
    ) -> list[int]:
        """Send those at these places and note what was refused; return the places of what came back."""
        if not places:
            return []
        found = post.send([letters[place] for place in places], deadline)
        refused.update((places[place], reason) for place, reason in found.items())
        return [
            places[place]
            for place, reason in found.items()
            if reason.startswith("no queue") and letters[places[place]].queue
        ]

    def _declare(
        self, link: Link, letters: Sequence[Letter], deadline: float, places: Sequence[int] | None = None
    ) -> dict[int, str]:
        """Have everything declared that these need; return what cannot be, by its place, and why."""
        topology, refused = self._topology, {}
        for at, letter in enumerate(letters):
            try:
                if letter.queue and not topology.knows(letter.queue):
                    topology.ensure(link, letter.queue, timeout=_left(deadline))
                    if places:  # it was deleted, and with it the way of what others delay for it
                        topology.renew_delays(link, letter.queue, timeout=_left(deadline))
                if letter.delayed:
                    topology.ensure_delays(link, letter.queue, timeout=_left(deadline))
                elif letter.exchange and not topology.has_exchange(link, letter.exchange, timeout=_left(deadline)):
                    text = f"there is no exchange {letter.exchange!r}; declare it with a queue in task_queues"
                    refused[places[at] if places else at] = text
            except BrokerError as error:
                if isinstance(error, OperationalError):
                    raise
                text = f"{error.text} ({error.code})" if isinstance(error, ChannelClosed) else str(error)
                refused[places[at] if places else at] = text
        return refused


class Addresses:
    """The servers of one cluster, in the order to try them. Safe to share between threads."""

    def __init__(self, addresses: Sequence[Address], order: Any) -> None:
        self._all = tuple(addresses)
        self._order = iter(order(self._all)) if len(self._all) > 1 else None
        self._current = next(self._order) if self._order is not None else self._all[0]
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The server that is used now, as people are shown it."""
        return self._current.name

    @property
    def heartbeat(self) -> float:
        """Seconds between signs of life of connections that may be silent for long."""
        return self._current.heartbeat

    def connect(self, name: str, *, timeout: float, heartbeat: float = 0.0) -> Link:
        """Return a new connection to the first server that takes one, all tries together within the timeout."""
        deadline = time.monotonic() + timeout
        for attempt in range(len(self._all)):
            address = self._current
            share = (deadline - time.monotonic()) / (len(self._all) - attempt)
            try:
                return Link(address, name=name, timeout=max(share, 0.01), heartbeat=heartbeat)
            except OperationalError as error:
                self._next(address)
                failure = error
        raise failure

    def _next(self, failed: Address) -> None:
        if self._order is not None:
            with self._lock:
                if self._current is failed:
                    self._current = next(self._order)


def _still(deadline: float, least: float) -> None:
    if deadline - time.monotonic() < least:
        raise OperationalError("connecting and declaring took too long; nothing was sent")


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.01)


def _shown(exchange: str, key: str) -> str:
    return f"exchange {exchange!r} with key {key!r}" if exchange else f"queue {key!r}"
