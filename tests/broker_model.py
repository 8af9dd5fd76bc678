"""What a broker must do, as plain Python: the oracle of the stateful test. It holds one record for each message.

A message is at one place: ``ready``, ``scheduled``, ``gate``, ``held``, ``ends``, ``dead`` or ``gone``. Where the
contract leaves an order open (what came out of the schedule or through a gate) the message is *loose*: its priority
is checked, its position is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from umbel.interfaces import Delivery, PublishStatus, ResultRecord, VerdictKind
from umbel.states import replaces
from umbel.testing.broker_base import body

MAX_DELIVERIES = 3


@dataclass(frozen=True)
class Ways:
    """Where drivers may differ.

    ``keeps_position``: what comes back goes to the place it had, not on top of what came back before it.
    ``latest_first``: a reaper moves the latest holds first.
    """

    keeps_position: bool
    latest_first: bool
    reap_batch: int = 3


@dataclass
class Item:
    """One message."""

    number: int
    queue: str
    priority: int
    place: str
    position: float = 0.0
    task_id: str = ""
    due: float = 0.0
    gate: str = ""
    parked: float = 0.0
    loose: bool = False
    crashes: int = 0
    verdict: VerdictKind | None = None
    holder: str = ""
    tag: str = ""
    fence: int = 0
    once: bool = False

    @property
    def content(self) -> bytes:
        return b"%d" % self.number


@dataclass
class Member:
    """One consumer id. ``beat`` counts what must stop a reaper that saw an older one."""

    queues: Sequence[str]
    state: str = "live"  # then "reaped" while a reaper has not finished, then "gone"
    beat: int = 0
    tags: list[str] = field(default_factory=list)


class Model:
    """The whole broker. Every method is one atomic step, as it must be in the driver."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways
        self.items: dict[bytes, Item] = {}
        self.members: dict[str, Member] = {}
        self.unique: dict[str, str] = {}
        self.results: dict[str, str] = {}
        self._tail = 0.0
        self._head = 0.0
        self._fence = 0

    def at(self, place: str, queue: str = "") -> list[Item]:
        """Return what is there, in order."""
        found = [item for item in self.items.values() if item.place == place and queue in ("", item.queue)]
        return sorted(found, key=lambda item: (item.priority, item.position))

    # -- in ------------------------------------------------------------------------------------------------------

    def publish(self, item: Item, now: float, unique: str = "", *, by: str = "") -> PublishStatus:
        """Add a message, unless another task holds its key. A follow-up is published ``by`` a task."""
        holder = self.unique.get(unique)
        if unique and holder is not None and not (by and by == holder):
            return PublishStatus.DUPLICATE
        if unique:
            self.unique[unique] = item.task_id
        self.items[item.content] = item
        item.place = "gate" if item.gate else "scheduled" if item.due > now else "ready"
        item.position = item.parked = self._next()
        return PublishStatus.QUEUED

    def _next(self) -> float:
        self._tail += 1
        return self._tail

    def free(self, names: Iterable[str], now: float) -> None:
        """Give up keys, and let the first of each gate through: to the schedule, if it is not due."""
        for name in names:
            self.unique.pop(name, None)
            waiting = [item for item in self.at("gate") if item.gate == name]
            if waiting:
                first = min(waiting, key=lambda item: item.position if self.ways.keeps_position else item.parked)
                first.place, first.loose = "scheduled" if first.due > now else "ready", True

    def park(self, item: Item, gate: str) -> None:
        """Let it wait at the gate."""
        item.place, item.gate, item.due, item.parked = "gate", gate, 0.0, self._next()

    # -- reserve -------------------------------------------------------------------------------------------------

    def reserved(self, id: str, limit: int, now: float, deliveries: Sequence[Delivery]) -> None:
        """Check what a reserve gave, and note it."""
        queues = self.members[id].queues
        for item in self._due(now):
            self._came_due(item)
        ends = [item for queue in queues for item in self.at("ends", queue)]
        ready = {queue: self.at("ready", queue) for queue in queues}
        taken = [self.items[body(delivery)] for delivery in deliveries]
        assert len({item.number for item in taken}) == len(taken)
        assert len(taken) == min(limit, len(ends) + sum(map(len, ready.values()))), "not all that could be reserved"
        first = min(limit, len(ends))
        assert all(item in ends for item in taken[:first]), "the ends go before the queues"
        for queue in queues:
            self._check_order(ready[queue], [item for item in taken[first:] if item.queue == queue])
        if limit > first:
            share = (limit - first) // len(queues)
            for queue in queues:
                got = sum(item.queue == queue for item in taken[first:])
                assert got >= min(share, len(ready[queue])), f"{queue} did not have its turn"
        for item, delivery in zip(taken, deliveries, strict=True):
            self._take(id, item, delivery)

    def _due(self, now: float, queue: str = "") -> list[Item]:
        found = [item for item in self.at("scheduled", queue) if item.due <= now]
        return sorted(found, key=lambda item: (item.due, item.number))

    def _came_due(self, item: Item) -> None:
        item.place, item.loose = "ready", True
        item.position = self._next()

    @staticmethod
    def _check_order(ready: Sequence[Item], taken: Sequence[Item]) -> None:
        assert all(item in ready for item in taken), "delivered although it was not ready"
        assert [item.priority for item in taken] == sorted(item.priority for item in taken), "priorities are strict"
        left = [item for item in ready if item not in taken]
        assert not left or not taken or taken[-1].priority <= left[0].priority, "a more urgent one was left"
        firm = [item for item in ready if not item.loose]
        got = [item for item in taken if not item.loose]
        assert got == firm[: len(got)], "out of order"

    def _take(self, id: str, item: Item, delivery: Delivery) -> None:
        assert delivery.queue == item.queue
        assert (delivery.verdict and delivery.verdict.kind) == item.verdict
        if item.verdict is None:
            assert delivery.count == item.crashes + 1
            assert delivery.redelivered == (item.crashes > 0)
        assert delivery.fence > self._fence, "fences grow"
        self._fence = item.fence = delivery.fence
        item.place, item.holder, item.tag, item.once, item.loose = "held", id, delivery.tag, False, False

    # -- out -----------------------------------------------------------------------------------------------------

    def holds(self, id: str, delivery: Delivery) -> Item | None:
        """Return the message of a hold, if it is still that consumer's."""
        item = self.items.get(body(delivery))
        mine = item is not None and (item.place, item.holder, item.tag) == ("held", id, delivery.tag)
        return item if mine else None

    def store(self, record: ResultRecord) -> None:
        """Keep a result's state, unless the one that is there wins."""
        old = self.results.get(record.task_id)
        if old is None or replaces(record.state, old):
            self.results[record.task_id] = record.state

    def back(self, items: Iterable[Item], crashed: Collection[str] = ()) -> None:
        """Return messages, in the order of their holds, to the heads of their queues, or to the ends."""
        for item in sorted(items, key=lambda item: item.fence, reverse=True):
            if item.tag in crashed and item.verdict is None:
                item.crashes += 1
                if item.once:
                    item.verdict = VerdictKind.LOST
                elif item.crashes >= MAX_DELIVERIES:
                    item.verdict = VerdictKind.MAX_DELIVERIES
            item.place = "ready" if item.verdict is None else "ends"
            if not self.ways.keeps_position:
                self._head -= 1
                item.position = self._head

    # -- leases --------------------------------------------------------------------------------------------------

    def held_by(self, id: str) -> list[Item]:
        """Return what a consumer holds, the earliest first."""
        return sorted((i for i in self.at("held") if i.holder == id), key=lambda item: item.fence)

    def release(self, id: str, started: Collection[str], verdicts: Mapping[str, VerdictKind]) -> int:
        """Give back all that it holds and forget it."""
        items = self.held_by(id)
        for item in items:
            if item.verdict is None:
                item.verdict = verdicts.get(item.tag)
        self.back(items, {*started, *(item.tag for item in items if item.once)})
        self.members[id].state = "gone"
        return len(items)

    def reap(self, id: str) -> tuple[int, int]:
        """Take over one batch; return how many moved and how many are left."""
        items = self.held_by(id)
        size = self.ways.reap_batch
        batch = items[-size:] if self.ways.latest_first else items[:size]
        self.back(batch, {item.tag for item in batch})
        left = len(items) - len(batch)
        self.members[id].state = "reaped" if left else "gone"
        return len(batch), left

    # -- all places ----------------------------------------------------------------------------------------------

    def check_places(self, queue: str, now: float, seen: Mapping[str, Sequence[bytes]]) -> None:
        """Compare what can be seen of a queue: each message in exactly one place, and the queue in order."""
        # What is due may have been moved already, or not yet.
        for item in self._due(now, queue):
            if item.content not in seen["scheduled"]:
                self._came_due(item)
        for place in ("held", "dead"):
            assert Counter(seen[place]) == Counter(item.content for item in self.at(place, queue)), place
        assert Counter(seen["scheduled"]) == Counter(i.content for i in self.at("scheduled", queue)), "scheduled"
        ready = self.at("ready", queue)
        assert Counter(seen["ready"]) == Counter(item.content for item in ready), "ready"
        firm = {item.content for item in ready if not item.loose}
        assert [each for each in seen["ready"] if each in firm] == [i.content for i in ready if not i.loose], "order"
