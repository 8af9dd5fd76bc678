"""What comes in to one consumer: its connection, the server's consumers on it, and what they have brought.

::

    queue ──ask──> arrived ──take──> out ──acknowledge──> gone
          ──wait──> arrived                ──give back──> queue

Asking hands over as many messages as are wanted and not one more. From a classic queue: a consumer is registered with
that prefetch and taken away in the same write, and the server hands over what is there in between. A single message,
which may run for long, comes by a consumer that stays until it is settled: the consumer's timeout holds for it, and
with a prefetch of one it brings no other. A quorum queue hands over later, so its consumers stay too, and what they
bring beyond what was asked for goes back when nobody takes it. While there is nothing, consumers wait.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.frames import Content
from umbel.brokers.rabbitmq.link import Bell, Channel, Link, unreachable
from umbel.brokers.rabbitmq.posting import Addresses
from umbel.brokers.rabbitmq.topology import Topology

logger = logging.getLogger("umbel.brokers.rabbitmq")

ANSWER: Final = 10.0  # seconds that the server may take
MOST: Final = 64  # messages asked for at once
_AGREE: Final = 0.02  # seconds


class Intake:
    """Not locked: its owner lets one thread at a time use it, but for :meth:`pause`.

    Every method may raise :exc:`OperationalError` or :exc:`ChannelClosed`; its owner then calls :meth:`lose`, unless
    this is :attr:`alive` all the same.
    """

    def __init__(
        self, addresses: Addresses, topology: Topology, *, id: str, queues: Sequence[str], timeout: float | None
    ) -> None:
        self.queues = list(queues)
        self._once = list(queues)  # all that were ever read: the place of each here is in the names of its consumers
        #: What has arrived and was not taken, with its queue.
        self.arrived: deque[tuple[str, Content]] = deque()
        self.times: deque[float] = deque()  # when each of them arrived, on the monotonic clock
        #: Names this connection in tags; empty while there is none.
        self.born = ""
        self._id = id
        self._addresses = addresses
        self._topology = topology
        self._arguments = {"x-consumer-timeout": int(timeout * 1000)} if timeout else {}
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._out: dict[int, str] = {}  # numbers that were taken and not settled -> their consumer
        self._live: dict[str, tuple[str, int]] = {}  # consumers that stay -> their queue and prefetch
        self._names = 0
        self._ended: set[str] = set()  # queues whose consumer the server has taken away
        self._turn = 0
        self._mean = 0.0  # bytes of a message

    # -- the connection ------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether there is a connection, and nothing of it is known to be lost."""
        channel = self._channel
        return channel is not None and channel.link.alive and channel.closed is None

    @property
    def lacking(self) -> bool:
        """Whether the server has taken consumers away, which asking and waiting bring back."""
        return bool(self._ended)

    @property
    def heartbeat(self) -> float:
        """Seconds between signs of life, as the server has agreed to; zero if none are sent. From any thread."""
        link = self._link
        return link.heartbeat if link is not None else 0.0

    def open(self) -> Channel:
        """Return the channel, connecting first if there is none."""
        if self._channel is not None:
            return self._channel
        link = self._addresses.connect(f"umbel:{self._id}", timeout=ANSWER, heartbeat=self._addresses.heartbeat)
        try:
            for queue in self.queues:
                self._have(link, queue)
            channel = link.channel(timeout=ANSWER)
        except BaseException:
            link.drop()
            raise
        channel.on_content = self._on_content
        channel.on_cancel = self._on_cancel
        self._link, self._channel, self.born = link, channel, os.urandom(4).hex()
        return channel

    def lose(self, *, orderly: bool = False) -> None:
        """Forget the connection; the server takes back all that came by it."""
        link, self._link, self._channel = self._link, None, None
        if link is not None:
            link.close() if orderly else link.drop()
        self.born = ""
        self._ended.clear()
        self.arrived.clear()
        self.times.clear()
        self._out.clear()
        self._live.clear()
        # The queues may be gone, or the server be another one now.
        self._topology.forget()

    def read(self) -> None:
        """Take in what has come, if there is a connection, and find out whether it still is good."""
        if self._link is not None:
            self._link.read(0.0)
            self._check()

    def tend(self, now: float) -> None:
        """Show that we live, and find out whether the server does."""
        if self._link is not None:
            self._link.tend(now)

    def pause(self, timeout: float, bell: Bell) -> bool:
        """Wait for something to come; return whether there is a connection at all. From any thread."""
        link = self._link
        if link is not None:
            link.pause(timeout, also=bell)
        return link is not None

    def _check(self) -> None:
        channel = self._channel
        if channel is not None and channel.closed is not None:
            raise unreachable(self._addresses.name, channel.closed)

    def _on_content(self, name: frames.Method, content: Content) -> None:
        self.times.append(time.monotonic())
        self.arrived.append((self._queue_of(content.args[0]), content))
        self._mean += (len(content.body) - self._mean) / 16

    def _on_cancel(self, name: str) -> None:
        # What is held of other queues has nothing to do with it, and what is held of this one may come again or not:
        # to end all holds would repeat the ones and lose what follows from the others.
        queue = self._queue_of(name)
        self._live.pop(name, None)
        self._ended.add(queue)
        logger.warning("consumer: The server has ended the consumer of queue %r; it is declared again", queue)

    def _bring_back(self, channel: Channel) -> None:
        """Have the queues there whose consumers were taken away."""
        if self._ended:
            self._topology.forget()
        while self._ended:
            queue = self._ended.pop()
            if queue in self.queues:
                self._have(channel.link, queue)

    def _have(self, link: Link, queue: str) -> None:
        self._topology.ensure(link, queue, timeout=ANSWER)
        self._topology.renew_delays(link, queue, timeout=ANSWER)

    # -- asking --------------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Count the first that has arrived as taken."""
        _, content = self.arrived.popleft()
        self.times.popleft()
        self._out[content.args[1]] = content.args[0]

    def ask_one(self) -> Iterator[None]:
        """Ask one queue after the other for a message that may run for long; go on until one brings it."""
        channel = self.open()
        self._bring_back(channel)
        full = self._full()
        live = {queue for name, (queue, _) in self._live.items() if name not in full}
        for queue in self._next_turn():
            if queue in live:
                continue  # what is there would have come
            channel.ask(self._subscription(queue, 1, wait=True), frames.CONSUME_OK, timeout=ANSWER)
            if not self.arrived:
                # What follows the consumer's registration comes before any later answer.
                channel.call(frames.QOS, (0, 1, False), frames.QOS_OK, timeout=ANSWER)
            self._settle_in(queue)
            yield

    def ask_many(self, wanted: Callable[[], int], most_bytes: int) -> Iterator[None]:
        """Ask one queue after the other for as many as are wanted by then; go on until there are enough."""
        self._bring_back(self.open())
        self.unsubscribe()
        for queue in self._next_turn():
            want = min(wanted(), MOST)
            if self._mean * want > most_bytes:
                want = max(int(most_bytes / self._mean), 1)
            if want <= 0:
                return
            if self._topology.is_quorum(queue):
                self._subscribe(queue, want)
                self._settle_in(queue)
            else:
                self._pull(queue, want)
            yield

    def wait_for_any(self) -> None:
        """Have a consumer wait at each queue."""
        channel = self.open()
        self._bring_back(channel)
        full = self._full()
        live = {queue for name, (queue, _) in self._live.items() if name not in full}
        for queue in self.queues:
            if queue not in live:
                channel.send(self._subscription(queue, 1))

    def _next_turn(self) -> list[str]:
        self._turn = (self._turn + 1) % len(self.queues)
        return self.queues[self._turn :] + self.queues[: self._turn]

    def _pull(self, queue: str, want: int) -> None:
        channel = self.open()
        name = self._named_for(queue)
        data = (
            channel.frame(frames.QOS, 0, want, False)
            + channel.frame(frames.CONSUME, 0, queue, name, False, False, False, True, self._arguments)
            + channel.frame(frames.CANCEL, name, False)
        )
        channel.ask(data, frames.CANCEL_OK, timeout=ANSWER)
        self._check()

    def _subscribe(self, queue: str, prefetch: int) -> None:
        """Have a consumer of this queue stay, with about this prefetch."""
        channel = self.open()
        for name, (other, size) in list(self._live.items()):
            if other == queue:
                if prefetch <= size <= 4 * prefetch:
                    return
                del self._live[name]
                channel.send(channel.frame(frames.CANCEL, name, True))
        channel.send(self._subscription(queue, prefetch))

    def _subscription(self, queue: str, prefetch: int, *, wait: bool = False) -> bytes:
        channel, name = self.open(), self._named_for(queue)
        self._live[name] = queue, prefetch
        arguments = (0, queue, name, False, False, False, not wait, self._arguments)
        return channel.frame(frames.QOS, 0, prefetch, False) + channel.frame(frames.CONSUME, *arguments)

    def _settle_in(self, queue: str) -> None:
        """Wait for what a new consumer of a quorum queue brings: that comes when its members agree, or not at all."""
        if self._topology.is_quorum(queue) and not self.arrived:
            self.open().link.read(_AGREE)
        self._check()

    def _named_for(self, queue: str) -> str:
        self._names += 1
        return f"{self._id}.{self._names}.{self._once.index(queue)}"

    def _queue_of(self, name: str) -> str:
        return self._once[int(name.rpartition(".")[2])]

    def watch(self, queues: Sequence[str]) -> None:
        """Read these queues from now on; what was taken from others stays taken, what only arrived goes back."""
        self.queues = list(queues)
        self._once += [queue for queue in queues if queue not in self._once]
        self._turn = 0
        if self._channel is None:
            return
        self.unsubscribe(quorum=True)
        self.give_back_arrived()
        for queue in queues:
            self._have(self._channel.link, queue)

    # -- consumers that stay -------------------------------------------------------------------------------------

    def _full(self) -> set[str]:
        """Return the consumers that bring no more before what they brought is settled: its timeout is theirs."""
        out = Counter(self._out.values())
        return {name for name, (_, prefetch) in self._live.items() if out[name] >= prefetch}

    def exposed(self) -> bool:
        """Whether messages may be here, or come, that nobody is about to take."""
        return bool(self.arrived) or len(self._full()) < len(self._live)

    def unsubscribe(self, *, full: bool = False, quorum: bool = False) -> None:
        """Take away the consumers that stay; full ones, and those of quorum queues, only where it is said."""
        if not self._live:
            return
        channel = self.open()
        kept = set() if full else self._full()
        names = [
            name
            for name, (queue, _) in self._live.items()
            if name not in kept and (quorum or not self._topology.is_quorum(queue) or queue not in self.queues)
        ]
        for name in names:
            del self._live[name]
        if names:
            channel.send(b"".join(channel.frame(frames.CANCEL, name, True) for name in names))

    # -- ending --------------------------------------------------------------------------------------------------

    def end(self, done: Collection[int], back: Sequence[int] = (), *, more: bool = False, first: bytes = b"") -> None:
        """Acknowledge some and give back others, in one write; ``more`` says that more will be asked for at once.

        ``first`` are frames that go before them in that write.
        """
        channel = self.open()
        # What frees a place must not draw in a message that nobody has asked for.
        self.unsubscribe(full=True, quorum=not more)
        parts: list[bytes] = [first]
        if done:
            last = max(done)
            unsettled = {*self._out, *(content.args[1] for _, content in self.arrived)}
            if all(number in done for number in unsettled if number <= last):
                parts.append(channel.frame(frames.ACK, last, True))
            else:
                parts += [channel.frame(frames.ACK, number, False) for number in sorted(done)]
        parts += [channel.frame(frames.NACK, number, False, True) for number in back]
        channel.send(b"".join(parts), timeout=ANSWER)
        for number in (*done, *back):
            self._out.pop(number, None)

    def give_back_arrived(self) -> None:
        """Give back what arrived and nobody took: its process is busy, and others may not be."""
        self.unsubscribe(quorum=True)
        channel = self.open()
        back: list[Any] = [content.args[1] for _, content in self.arrived]
        self.arrived.clear()
        self.times.clear()
        if not back:
            return
        channel.send(b"".join(channel.frame(frames.NACK, number, False, True) for number in back))
