"""Reserving and settling for one consumer id, each batch in one script.

A command whose answer was lost is not forgotten: the next reserve asks the server for holds that this consumer was
never told of, and a settlement that is repeated counts as applied when its hold is gone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from umbel.brokers.redis.client import Source, Unconfirmed
from umbel.brokers.redis.layout import BEGIN, RESERVE, SETTLE, Layout, Results
from umbel.brokers.redis.link import Link, Word, pack
from umbel.brokers.redis.settling import Settling
from umbel.brokers.redis.waker import Waker
from umbel.exceptions import LeaseLost, OperationalError
from umbel.interfaces import Begin, Consumer, Delivery, Settled, Settlement, Verdict, VerdictKind

LONGEST_WAIT: Final = 1.0  # with tracking: how soon a connection that died silently is noticed
INVENTORY_SECONDS: Final = 60.0  # between two looks at what the server says that we hold
POLL: Final = (0.005, 0.1)  # without tracking, or with a clock of the caller's: first and longest pause
_KINDS: Final = {kind.value.encode(): kind for kind in VerdictKind}


class RedisConsumer(Consumer):
    """See :class:`umbel.interfaces.Consumer`."""

    __slots__ = (
        "_armed",
        "_database",
        "_due_at",
        "_held",
        "_id",
        "_inventory_at",
        "_keys",
        "_layout",
        "_link",
        "_pause",
        "_queues",
        "_recall",
        "_results",
        "_settling",
        "_tail",
        "_told",
        "_tracked",
        "_turn",
        "_unsure",
        "_waker",
    )

    def __init__(
        self, source: Source, layout: Layout, results: Results, *, id: str, queues: Sequence[str], keep_dead: int
    ) -> None:
        self._database = source.db
        self._layout = layout
        self._results = results
        self._id = id
        self._settling = Settling(layout, results, keep_dead)
        self._told = False  # the caller knows that it is worth reserving, and has not
        self.watch(queues)
        self._link = Link(source, on_open=self._track, on_push=self._pushed)
        self._waker = Waker()
        self._tracked = False
        self._due_at: float | None = None
        self._pause = POLL[0]
        self._held: set[str] = set()
        self._unsure: set[str] = set()
        self._recall = False
        self._inventory_at = time.monotonic() + INVENTORY_SECONDS

    def watch(self, queues: Sequence[str]) -> None:
        """Read these queues; see :meth:`umbel.interfaces.Consumer.watch`."""
        layout, id = self._layout, self._id
        self._queues = list(queues)
        keys = [layout.key(f"w:{id}"), layout.key(f"inf:{id}"), layout.key("due")]
        for queue in self._queues:
            keys += [layout.key(f"ends:{queue}"), *layout.list_keys(queue)]
        self._keys: list[Word] = list(keys)
        self._tail: list[Word] = [len(self._queues), *self._queues, len(layout.step_names), *layout.step_names]
        self._turn = 0
        self._armed = False  # the last reserve found nothing, and nothing has changed since

    # -- reserve -------------------------------------------------------------------------------------------------

    def reserve(self, limit: int) -> Sequence[Delivery]:
        """Take up to ``limit`` messages; see :meth:`umbel.interfaces.Consumer.reserve`."""
        if limit <= 0:
            return []
        self._take_stock()
        if self._recall and (recalled := self._recalled(limit)):
            return recalled
        args = self._layout.told()
        args += (limit, self._turn)
        args += self._tail
        self._turn = (self._turn + 1) % len(self._queues)
        self._armed = False
        try:
            reply = self._link.run(RESERVE, self._keys, args)
        except Unconfirmed:
            self._recall = True
            raise
        return self._reserved(reply)

    def _reserved(self, reply: Any) -> list[Delivery]:
        """Build the deliveries of a reply of reserve.lua, and note what to wait for."""
        if reply[0] != b"ok":
            raise self._lost()
        _, wait, fence, runs, raws, specials = reply
        self._told = False
        if not raws:
            self._armed = True
            self._due_at = None if wait < 0 else self._now() + wait / 1000
            return []
        self._armed = False
        self._pause = POLL[0]
        deliveries = []
        at = 0
        for index in range(0, len(runs), 2):
            queue = self._queues[runs[index]]
            stop = at + runs[index + 1]
            for raw in raws[at:stop]:
                deliveries.append(Delivery(tag=str(fence), queue=queue, raw=raw, fence=fence))
                fence += 1
            at = stop
        for index in range(0, len(specials), 4):
            at, count, kind, detail = specials[index : index + 4]
            plain = deliveries[at]
            deliveries[at] = _special(plain.tag, plain.queue, plain.raw, (count, kind, detail))
        self._held.update([delivery.tag for delivery in deliveries])
        return deliveries

    def _take_stock(self) -> None:
        """See to it that what the server says we hold is compared with what we know, now and then.

        A server that came back with older data knows nothing of what we settled lately: those messages are held
        again, by us, and would be for ever.
        """
        now = time.monotonic()
        if now >= self._inventory_at:
            self._inventory_at = now + INVENTORY_SECONDS
            self._recall = True

    def _recalled(self, limit: int) -> list[Delivery]:
        """Return holds of ours that no answer told us of."""
        inflight = self._keys[1]
        tags = [tag.decode() for tag in self._link.call(b"HKEYS", inflight)]
        unknown = sorted((tag for tag in tags if tag not in self._held), key=int)
        taken = unknown[:limit]
        deliveries = []
        for tag, value in zip(taken, self._link.call(b"HMGET", inflight, *taken) if taken else (), strict=True):
            if value is not None:
                queue, _, _, count, _, kind, detail, raw = value.split(b"\0", 7)
                deliveries.append(_special(tag, queue.decode(), raw, (int(count), kind, detail)))
        # Last: a reaper says that it has begun before it moves anything, and is through with it some time later.
        if deliveries and self._link.call(b"HGET", self._keys[0], b"state") != b"live":
            raise self._lost()
        self._recall = len(unknown) > len(taken)
        self._held.update(taken)
        return deliveries

    def _lost(self) -> LeaseLost:
        self._held.clear()
        self._unsure.clear()
        self._settling.forget()
        return LeaseLost(f"consumer {self._id} was taken over or never registered; register anew")

    # -- begin and settle ----------------------------------------------------------------------------------------

    def begin(self, batch: Sequence[Begin]) -> Collection[str]:
        """Mark deliveries as started; see :meth:`umbel.interfaces.Consumer.begin`."""
        args = self._layout.told()
        args += (self._results.database, self._database)
        for begin in batch:
            args += (begin.delivery.tag, "1" if begin.once else "")
            if begin.result is None:
                args += ("", "", "", "")
            else:
                args += self._settling.record(begin.result)
        refused = [tag.decode() for tag in self._link.run(BEGIN, self._keys[1:2], args)]
        self._held.difference_update(refused)
        return refused

    def settle(self, batch: Sequence[Settlement], *, reserve: int = 0) -> Settled:
        """End holds and reserve more; see :meth:`umbel.interfaces.Consumer.settle`."""
        if not batch:
            return Settled(deliveries=self.reserve(reserve))
        args = self._layout.told()
        self._take_stock()
        wanted = 0 if self._recall else reserve
        args += (self._results.database, self._database, wanted, self._turn)
        args += self._tail
        if wanted:
            self._turn = (self._turn + 1) % len(self._queues)
        describe, changes = self._settling.describe, False
        for settlement in batch:
            changes = describe(args, settlement) or changes
        if changes:
            # The server does not tell a connection of its own changes.
            self._armed = self._told = False
        try:
            answer = self._link.run(SETTLE, self._keys, args)
        except Unconfirmed:
            self._unsure.update([settlement.delivery.tag for settlement in batch])
            self._recall = self._recall or wanted > 0
            raise
        return self._settled(batch, answer, reserve)

    def _settled(self, batch: Sequence[Settlement], answer: Any, reserve: int) -> Settled:
        refused, complete, reply, state = answer
        gone = state == b"gone"
        if gone and len(refused) == len(batch):
            raise self._lost()
        done = [settlement.delivery.tag for settlement in batch]
        claims: dict[str, str] = {}
        if complete:
            claims = {tag.decode(): claim.decode() for tag, claim in zip(complete[::2], complete[1::2], strict=True)}
            self._settling.claimed(batch, claims)
            done = [tag for tag in done if tag not in claims]
        self._settling.settled(done)
        self._held.difference_update(done)
        tags: list[str] = []
        if refused:
            # We asked for this before and the answer was lost: gone means that it was applied, as long as we live.
            tags = [tag.decode() for tag in refused]
            tags = tags if gone else [tag for tag in tags if tag not in self._unsure]
        if self._unsure:
            self._unsure.difference_update(done)
        deliveries: list[Delivery] = []
        if reply and not gone:
            deliveries = self._reserved(reply)
        elif reserve and not gone:
            try:
                deliveries = list(self.reserve(reserve))
            except (OperationalError, LeaseLost):
                # What the settle answered is known only here. The next reserve finds out for itself.
                self._armed = self._told = False
        return Settled(refused=tags, complete=claims, deliveries=deliveries)

    # -- wait ----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> bool:
        """Block until it is worth reserving; see :meth:`umbel.interfaces.Consumer.wait`."""
        deadline = time.monotonic() + timeout
        longest = time.monotonic() + LONGEST_WAIT
        while True:
            if not self._armed and not self._told:
                self._told = True
                self._waker.clear()
                return True
            now = time.monotonic()
            left = min(deadline, longest) - now
            if left <= 0:
                self._told = True
                return deadline > now
            if self._armed:
                left = min(left, self._until_due())
                if left <= 0:
                    self._armed = False
                    continue
                if not self._tracked or self._layout.clock is not None:
                    left = min(left, self._pause)
            arrived = self._hear(left)
            if self._waker.clear():
                return False
            if not arrived and self._armed and not self._tracked:
                self._pause = min(self._pause * 2, POLL[1])
                self._armed = False

    def wake(self) -> None:
        """End a wait of another thread, or the next one; see :meth:`umbel.interfaces.Consumer.wake`."""
        self._waker.set()

    def close(self) -> None:
        """Close the connection; see :meth:`umbel.interfaces.Consumer.close`."""
        self._link.close()
        self._waker.close()

    def _until_due(self) -> float:
        return LONGEST_WAIT if self._due_at is None else self._due_at - self._now()

    def _now(self) -> float:
        clock = self._layout.clock
        return time.monotonic() if clock is None else clock.time()

    def _hear(self, timeout: float) -> bool:
        try:
            return self._link.listen(timeout, self._waker)
        except Unconfirmed:
            self._armed = False
            return True

    def _track(self, link: Link) -> None:
        """Ask a new connection to tell when what a reserve has read changes."""
        self._armed = False
        self._inventory_at = 0.0  # it may lead to a server that knows less
        packed = pack((b"CLIENT", b"TRACKING", b"ON", b"NOLOOP"))
        self._tracked = link.exchange(packed) == b"OK"

    def _pushed(self, message: list[Any]) -> None:
        if message[0] == b"invalidate":
            self._armed = False


def _special(tag: str, queue: str, raw: bytes, about: tuple[int, bytes, bytes]) -> Delivery:
    count, kind, detail = about
    verdict = Verdict(kind=_KINDS[kind], detail=detail.decode()) if kind else None
    return Delivery(tag=tag, queue=queue, raw=raw, count=count, fence=int(tag), redelivered=count > 1, verdict=verdict)
