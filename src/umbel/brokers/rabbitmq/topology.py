"""Queues, exchanges and bindings: declared as Celery declares them, and never changed where they are there already.

A queue that is there with other arguments is used as it is: the server refuses the declaration (406), which is told
once in the log. Delays use Celery's topology of one queue for each bit of the number of seconds::

    celery_delayed_27 ──1──> waits 2^27 s ──> celery_delayed_26 ──0──> celery_delayed_25 … ──> celery_delayed_delivery
                      ──0──────────────────────────^

Celery leads from there on by patterns such as ``#.key``, which no direct exchange understands. We bind the queue
itself, under a word of its own behind the 28 bits, so that any queue can have delays and none gets another's messages.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.link import Channel, ChannelClosed, Link
from umbel.brokers.rabbitmq.messages import DELAYED
from umbel.exceptions import BrokerError, OperationalError
from umbel.interfaces import QueueSpec

logger = logging.getLogger("umbel.brokers.rabbitmq")

LEVELS: Final = 28
LONGEST_DELAY: Final = 2**LEVELS - 1  # seconds, eight years and a half
PRECONDITION_FAILED: Final = 406
NOT_FOUND: Final = 404
#: The kinds of queues that Celery knows for delays.
QUEUE_TYPES: Final = ("quorum", "classic")
_LAST: Final = "*." * (LEVELS - 1) + "0.#"  # leads from the last level to where the queues are bound
_LEAST: Final = 0.05  # seconds
_SIDE_BY_SIDE: Final = 4  # channels that declare the delays: twice as many gain little


class Topology:
    """What this process has declared. Safe to share between threads; each call brings a link of its caller's."""

    def __init__(self, find: Callable[[str], QueueSpec | None] | None = None, *, delay_type: str = "quorum") -> None:
        """``find`` returns the description of a queue that was not declared here, or None."""
        self._find = find
        self._delay_type = delay_type
        self._specs: dict[str, QueueSpec] = {}
        self._known: set[str] = set()
        self._exchanges: set[str] = set()
        self._delayed: set[str] = set()
        self._delays = False
        self._done: set[int] = set()  # which parts of declaring the delays are
        self._quorum: set[str] = set()
        self._lock = threading.Lock()  # of declaring the delays

    def learn(self, specs: Iterable[QueueSpec]) -> None:
        """Remember how these queues are to be declared."""
        for spec in specs:
            self._specs[spec.name] = spec

    def forget(self) -> None:
        """Declare everything anew when it is needed: the server, or what it holds, may be another.

        Waits for nobody: whoever declares meanwhile does so on a connection that is good.
        """
        self._known.clear()
        self._exchanges.clear()
        self._delayed.clear()
        self._delays = False
        self._done.clear()

    def spec(self, queue: str) -> QueueSpec:
        """Return how this queue is to be declared."""
        found = self._specs.get(queue)
        if found is None:
            found = (self._find(queue) if self._find is not None else None) or QueueSpec(name=queue)
            self._specs[queue] = found
        return found

    def is_quorum(self, queue: str) -> bool:
        """Whether the queue is known to be a quorum queue."""
        return queue in self._quorum or self.spec(queue).arguments.get("x-queue-type") == "quorum"

    def knows(self, queue: str) -> bool:
        """Whether it was declared by this process."""
        return queue in self._known

    # -- queues --------------------------------------------------------------------------------------------------

    def ensure(self, link: Link, queue: str, *, timeout: float) -> None:
        """Have the queue, its exchange and its binding declared, once per process, all within the timeout (seconds)."""
        if queue in self._known:
            return
        self.declare(link, self.spec(queue), timeout=timeout)

    def declare(self, link: Link, spec: QueueSpec, *, timeout: float) -> None:
        """Declare a queue, its exchange and its binding, all within the timeout (seconds).

        Raises :exc:`BrokerError` for what the server refuses.
        """
        deadline = time.monotonic() + timeout
        self._delayed.discard(spec.name)
        self._specs[spec.name] = spec
        arguments = dict(spec.arguments)
        if spec.max_priority is not None:
            arguments.setdefault("x-max-priority", spec.max_priority)
        quorum = arguments.get("x-queue-type") == "quorum"
        args = frames.declare_queue(spec.name, durable=spec.durable or quorum, arguments=arguments)
        refused = attempt(link, frames.QUEUE_DECLARE, args, frames.QUEUE_DECLARE_OK, timeout=_left(deadline))
        if refused is None:
            if quorum:
                self._quorum.add(spec.name)
        else:
            self._accept(f"queue {spec.name!r}", refused)
            if "current is 'quorum'" in refused.text:
                self._quorum.add(spec.name)
        if spec.exchange:
            self._declare_exchange(link, spec.exchange, spec.exchange_type, timeout=_left(deadline))
            binding = frames.bind(spec.name, spec.exchange, spec.routing_key)
            refused = attempt(link, frames.QUEUE_BIND, binding, frames.QUEUE_BIND_OK, timeout=_left(deadline))
            if refused is not None:
                where = f"queue {spec.name!r} cannot be bound to exchange {spec.exchange!r}"
                raise BrokerError(f"{where}: {refused.text} ({refused.code})")
        self._known.add(spec.name)

    def _declare_exchange(self, link: Link, name: str, kind: str, *, timeout: float) -> None:
        if name in self._exchanges:
            return
        args = frames.declare_exchange(name, kind)
        refused = attempt(link, frames.EXCHANGE_DECLARE, args, frames.EXCHANGE_DECLARE_OK, timeout=timeout)
        if refused is not None:
            self._accept(f"exchange {name!r}", refused)
        self._exchanges.add(name)

    @staticmethod
    def _accept(what: str, refused: ChannelClosed) -> None:
        if refused.code != PRECONDITION_FAILED:
            raise BrokerError(f"{what} cannot be declared: {refused.text} ({refused.code})")
        logger.warning(
            "The %s is there already, with other arguments, and is used as it is: %s. To have it as the settings say, "
            "delete it when it is empty, or give it another name.",
            what,
            refused.text,
        )

    def has_exchange(self, link: Link, name: str, *, timeout: float) -> bool:
        """Whether there is an exchange of this name, asked once."""
        if not name or name in self._exchanges:
            return True
        args = frames.declare_exchange(name, "direct", passive=True)
        if attempt(link, frames.EXCHANGE_DECLARE, args, frames.EXCHANGE_DECLARE_OK, timeout=timeout) is not None:
            return False
        self._exchanges.add(name)
        return True

    # -- delays --------------------------------------------------------------------------------------------------

    def ensure_delays(self, link: Link, queue: str, *, timeout: float) -> None:
        """Have Celery's delays declared, and this queue bound to their end, all within the timeout (seconds).

        A call that ran out of time is gone on with by the next one.
        """
        if queue in self._delayed:
            return
        deadline = time.monotonic() + timeout
        self._ensure_levels(link, deadline)
        try:
            self._lead_to(link, queue, deadline)
        except ChannelClosed as refused:
            if refused.code != NOT_FOUND:
                raise
            # It was deleted since this process declared it.
            self.declare(link, self.spec(queue), timeout=_left(deadline))
            self._lead_to(link, queue, deadline)

    def declare_levels(self, link: Link, *, timeout: float) -> None:
        """Have Celery's delays declared, so that whoever delays first need not wait for that."""
        self._ensure_levels(link, time.monotonic() + timeout)

    def renew_delays(self, link: Link, queue: str, *, timeout: float) -> None:
        """Bind a queue that may be new to the end of the delays, where there are any, within the timeout (seconds).

        Those who had bound the one before it go on to publish, and do not hear that it went.
        """
        deadline = time.monotonic() + timeout
        if queue in self._delayed:
            return
        self._delays = self._delays or self._has_levels(link, deadline)
        if not self._delays:
            return
        try:
            self._lead_to(link, queue, deadline)
        except ChannelClosed as refused:
            logger.warning("Queue %r may not get what is delayed: %s (%d)", queue, refused.text, refused.code)

    def _lead_to(self, link: Link, queue: str, deadline: float) -> None:
        binding = frames.bind(queue, DELAYED, "*." * LEVELS + delay_word(queue))
        refused = attempt(link, frames.QUEUE_BIND, binding, frames.QUEUE_BIND_OK, timeout=_left(deadline))
        if refused is not None:
            raise refused
        self._delayed.add(queue)

    def ensure_celery_delays(self, link: Link, spec: QueueSpec, *, timeout: float) -> None:
        """Do for a queue what Celery's workers do, so that what Celery's clients delay finds its way here.

        They delay by the server where there are quorum queues, unless the exchange is a direct one.
        """
        if not self.is_quorum(spec.name) or not spec.exchange or spec.exchange_type == "direct":
            return
        if all(word in ("#", "*") for word in spec.routing_key.split(".")):
            # Any key would match, and the queue get a copy of whatever anybody delays for any other.
            logger.warning(
                "Queue %r gets nothing that a Celery client delays: its routing key %r would match all that is delayed",
                spec.name,
                spec.routing_key,
            )
            return
        deadline = time.monotonic() + timeout
        self._ensure_levels(link, deadline)
        key = spec.routing_key if spec.routing_key.startswith("#") else f"#.{spec.routing_key}"
        with contextlib.closing(link.channel(timeout=_left(deadline))) as channel:
            passing_on = frames.bind(spec.exchange, DELAYED, key)
            channel.call(frames.EXCHANGE_BIND, passing_on, frames.EXCHANGE_BIND_OK, timeout=_left(deadline))
            arriving = frames.bind(spec.name, spec.exchange, key)
            channel.call(frames.QUEUE_BIND, arriving, frames.QUEUE_BIND_OK, timeout=_left(deadline))

    def _ensure_levels(self, link: Link, deadline: float) -> None:
        if self._delays:
            return
        if not self._lock.acquire(timeout=_left(deadline)):
            raise _too_long()
        try:
            if not self._delays:
                if not self._has_levels(link, deadline):
                    self._declare_levels(link, deadline)
                self._delays = True
        finally:
            self._lock.release()

    def _has_levels(self, link: Link, deadline: float) -> bool:
        """Whether somebody has declared the delays, with queues of whatever type; their last binding is seen to."""
        if not self._is_there(link, DELAYED, deadline):
            return False
        # Whoever declared this exchange had declared all but this binding, and may have crashed there.
        end = frames.bind(DELAYED, _level(0), _LAST)
        refused = attempt(link, frames.EXCHANGE_BIND, end, frames.EXCHANGE_BIND_OK, timeout=_left(deadline))
        return refused is None or refused.code != NOT_FOUND

    @staticmethod
    def _is_there(link: Link, exchange: str, deadline: float) -> bool:
        args = frames.declare_exchange(exchange, "topic", passive=True)
        return attempt(link, frames.EXCHANGE_DECLARE, args, frames.EXCHANGE_DECLARE_OK, timeout=_left(deadline)) is None

    def _declare_levels(self, link: Link, deadline: float) -> None:
        if self._done and not self._is_there(link, _level(LEVELS - 1), deadline):
            self._done.clear()  # the server is another one than that of the last try
        parts = list(enumerate(_parts(self._delay_type)))
        with contextlib.ExitStack() as closing:
            channels = []
            for _ in range(_SIDE_BY_SIDE):
                channels.append(closing.enter_context(contextlib.closing(link.channel(timeout=_left(deadline)))))
            # The last part says that all others are there.
            for some in (parts[:LEVELS], parts[LEVELS:-1], parts[-1:]):
                left = [(number, part) for number, part in some if number not in self._done]
                while left:
                    self._declare_parts(link, dict(zip(channels, left[:_SIDE_BY_SIDE], strict=False)), deadline)
                    del left[:_SIDE_BY_SIDE]
        self._done.clear()

    def _declare_parts(self, link: Link, work: Mapping[Channel, tuple[int, _Part]], deadline: float) -> None:
        """Have the server do one part for each channel, side by side: a quorum queue takes it many milliseconds."""
        for channel, (_, part) in work.items():
            if channel.closed is None:
                data = b"".join(channel.frame(step.name, *step.args) for step in part)
                channel.start(data, *(step.answer for step in part), timeout=_left(deadline))
        for channel, (number, part) in work.items():
            try:
                for step in part:
                    channel.answer(step.answer, timeout=_left(deadline))
            except ChannelClosed:
                # It ended with the first step that was refused, of this part or of an earlier one.
                for step in part:
                    refused = attempt(link, step.name, step.args, step.answer, timeout=_left(deadline))
                    if refused is not None:
                        self._accept(step.what, refused)
            self._done.add(number)


class _Step(NamedTuple):
    what: str
    name: frames.Method
    args: tuple[Any, ...]
    answer: frames.Method


_Part = tuple[_Step, ...]  # steps in this order, each with another answer


def _parts(delay_type: str) -> Iterator[_Part]:
    """Yield what declares the delays: the levels, what leads from each to the next, and last what leads out.

    As kombu.transport.native_delayed_delivery does it: with other arguments Celery's workers would meet a 406.
    """
    for level in range(LEVELS - 1, -1, -1):
        name = _level(level)
        arguments: dict[str, Any] = {
            "x-queue-type": delay_type,
            "x-overflow": "reject-publish",
            "x-message-ttl": 2**level * 1000,
            "x-dead-letter-exchange": _level(level - 1) if level else DELAYED,
        }
        if delay_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
        exchange = frames.declare_exchange(name, "topic")
        queue = frames.declare_queue(name, arguments=arguments)
        wait = frames.bind(name, name, "*." * (LEVELS - 1 - level) + "1.#")
        yield (
            _Step(f"exchange {name!r}", frames.EXCHANGE_DECLARE, exchange, frames.EXCHANGE_DECLARE_OK),
            _Step(f"queue {name!r}", frames.QUEUE_DECLARE, queue, frames.QUEUE_DECLARE_OK),
            _Step(f"binding of queue {name!r}", frames.QUEUE_BIND, wait, frames.QUEUE_BIND_OK),
        )
    for level in range(LEVELS - 1, 0, -1):
        skip = frames.bind(_level(level - 1), _level(level), "*." * (LEVELS - 1 - level) + "0.#")
        yield (_Step(f"binding of exchange {_level(level)!r}", frames.EXCHANGE_BIND, skip, frames.EXCHANGE_BIND_OK),)
    delivery = frames.declare_exchange(DELAYED, "topic")
    end = frames.bind(DELAYED, _level(0), _LAST)
    yield (
        _Step(f"exchange {DELAYED!r}", frames.EXCHANGE_DECLARE, delivery, frames.EXCHANGE_DECLARE_OK),
        _Step(f"binding of exchange {DELAYED!r}", frames.EXCHANGE_BIND, end, frames.EXCHANGE_BIND_OK),
    )


def attempt(
    link: Link, name: frames.Method, args: tuple[Any, ...], answer: frames.Method, *, timeout: float
) -> ChannelClosed | None:
    """Ask for something on a channel of its own; return the refusal, or None when it was done."""
    deadline = time.monotonic() + timeout
    with contextlib.closing(link.channel(timeout=timeout)) as channel:
        try:
            channel.call(name, args, answer, timeout=_left(deadline))
        except ChannelClosed as refused:
            return refused
    return None


def delay_route(queue: str, seconds: int) -> tuple[str, str]:
    """Return the exchange and the key that bring a message to the queue after so many seconds."""
    bits = ".".join(f"{min(max(seconds, 1), LONGEST_DELAY):0{LEVELS}b}")
    return _level(LEVELS - 1), f"{bits}.{delay_word(queue)}"


def delay_word(queue: str) -> str:
    """Return the one word that stands for a queue behind the bits: without dots, and not too long for a key."""
    word = "umbel:" + quote(queue, safe=" ").replace(".", "%2E")
    return word if len(word) <= 150 else "umbel:" + hashlib.sha256(queue.encode()).hexdigest()


def _left(deadline: float) -> float:
    """Return the seconds until then. To ask with fewer than a few would cost the connection and tell nothing."""
    seconds = deadline - time.monotonic()
    if seconds < _LEAST:
        raise _too_long()
    return seconds


def _too_long() -> OperationalError:
    return OperationalError("declaring what the message needs took too long; nothing was sent")


def _level(level: int) -> str:
    return f"celery_delayed_{level}"
