"""Every broker, under any order of calls, does what the model does: crashes, zombies, reapers and clock jumps included.

All drivers answer to one model, so what memory does, the others do. ``UMBEL_MACHINE_EXAMPLES`` and
``UMBEL_MACHINE_STEPS`` make the search longer and random; without them it is short and the same each time.
``UMBEL_MACHINE_SHRINK=1`` makes a failure small.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_model import MAX_DELIVERIES, Item, Member, Model, Ways
from umbel.backends import memory as memory_backend
from umbel.backends import sqlite as sqlite_backend
from umbel.brokers import memory
from umbel.brokers.sqlite import SqliteBroker
from umbel.brokers.sqlite import leases as sqlite_leases
from umbel.exceptions import LeaseLost
from umbel.interfaces import (
    ACK,
    Ack,
    Begin,
    Dead,
    Delay,
    Delivery,
    Outgoing,
    Park,
    Place,
    PublishStatus,
    QueueSpec,
    Requeue,
    ResultRecord,
    Settlement,
    Suspect,
    Verdict,
    VerdictKind,
)
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing
from umbel.testing.servers import RedisServer

TTL = 30.0
QUEUES = ("q", "r")
GATES = ("gate-1", "gate-2")
KEYS = ("key-1", "key-2")
PRIORITIES = (0, 0, 0, 3, 9)
STATES = ("STARTED", "RETRY", "SUCCESS", "FAILURE")
MOST_LIVE = 4

EXAMPLES = int(os.environ.get("UMBEL_MACHINE_EXAMPLES", "0"))
STEPS = int(os.environ.get("UMBEL_MACHINE_STEPS", "40"))
# Making a failure small takes minutes; the whole of one is printed at once without.
SHRINK = bool(os.environ.get("UMBEL_MACHINE_SHRINK"))

some = st.integers(min_value=1, max_value=5)
seconds_ahead = st.sampled_from([None, None, None, -1, 2, 20, 90])
hows = st.sampled_from(["ack", "ack", "requeue", "counted", "delay", "park", "dead"])


class Client:
    """One consumer as its process sees it: what it believes to hold, and what it has settled before."""

    def __init__(self, broker: Any, queues: tuple[str, ...]) -> None:
        self.leases = broker.leases()
        self.id: str = self.leases.register("node")
        self.consumer = broker.consumer(self.id, list(queues))
        self.queues = queues
        self.holds: dict[str, Delivery] = {}
        self.settled: list[Delivery] = []
        self.supervised = True

    def __repr__(self) -> str:
        return f"Client({self.id.partition(':')[2]}, {self.queues})"

    def close(self) -> None:
        self.consumer.close()
        if self.supervised:
            self.leases.close()


class BrokerMachine(RuleBasedStateMachine):
    """Calls a driver and the model side by side."""

    ways: ClassVar[Ways]
    open: ClassVar[Callable[[FakeClock, dict[str, Any]], tuple[Any, Any]]]
    disconnect: ClassVar[Callable[[Any], None]]

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        options = {"max_deliveries": MAX_DELIVERIES, "lease_ttl": TTL, "redelivery_backoff": ()}
        self.broker, self.backend = type(self).open(self.clock, options)
        self.broker.open()
        self.backend.open()
        assert self.broker.bind_results(self.backend.location())
        self.broker.declare([QueueSpec(name=name) for name in QUEUES])
        self.reaper = self.broker.leases()
        self.model = Model(self.ways)
        self.clients: list[Client] = []
        self.seen: dict[str, tuple[Suspect, int]] = {}
        self.published: list[tuple[Outgoing, float]] = []  # since the wall clock jumped
        self.numbers = 0
        self.false_reaps = 0

    @initialize(count=st.integers(min_value=3, max_value=10))
    def there_is_work(self, count: int) -> None:
        """Two consumers and some messages, so that most steps have something to do."""
        for queues in (("q",), ("q", "r")):
            self.register(queues)
        self.publish([("q", 0, None, "", "")] * count)
        # More than a reaper moves at once.
        self.took(self.clients[0], 5, self.clients[0].consumer.reserve(5))

    def now(self) -> float:
        return self.clock.time()

    # -- publishing ----------------------------------------------------------------------------------------------

    def message(
        self, queue: str, priority: int, ahead: int | None = None, gate: str = "", unique: str = ""
    ) -> tuple[Outgoing, Item]:
        self.numbers += 1
        # Never on a whole second, where drivers that round would differ.
        moment = None if ahead is None else self.clock.now() + timedelta(seconds=ahead + 0.5)
        made = outgoing(
            b"%d" % self.numbers, queue, priority=priority, not_before=moment, gate=gate or None, unique=unique or None
        )
        item = Item(self.numbers, queue, priority, "", task_id=made.task_id, gate=gate)
        item.due = moment.timestamp() if moment is not None else 0.0
        return made, item

    @rule(
        batch=st.lists(
            st.tuples(
                st.sampled_from(QUEUES),
                st.sampled_from(PRIORITIES),
                seconds_ahead,
                st.sampled_from(["", "", "", *GATES]),
                st.sampled_from(["", "", "", *KEYS]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def publish(self, batch: list[tuple[str, int, int | None, str, str]]) -> None:
        made = [self.message(*each) for each in batch]
        outcomes = self.broker.publish([out for out, _ in made])
        for (out, item), outcome in zip(made, outcomes, strict=True):
            holder = self.model.unique.get(out.unique or "")
            assert outcome.status is self.model.publish(item, self.now(), out.unique or "")
            if outcome.status is PublishStatus.DUPLICATE:
                assert outcome.detail == holder
            else:
                self.published.append((out, self.now()))

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def publish_again(self, data: st.DataObject) -> None:
        out, at = data.draw(st.sampled_from(self.published[-5:]))
        if self.now() - at > 60:
            return  # how long a driver remembers is its own affair
        (outcome,) = self.broker.publish([out])
        assert outcome.status is PublishStatus.DUPLICATE

    # -- one consumer --------------------------------------------------------------------------------------------

    def client(self, data: st.DataObject, among: list[Client] | None = None) -> Client:
        """Choose one, more often than not one that lives: there are always more of the others."""
        among = self.clients if among is None else among
        living = [client for client in among if self.lives(client)]
        return data.draw(st.sampled_from(living * 3 + among[-3:] if living else among))

    def busy(self) -> list[Client]:
        """Those that have something to talk of."""
        return [client for client in self.clients if self.known(client)]

    def lives(self, client: Client) -> bool:
        return self.model.members[client.id].state == "live"

    @precondition(lambda self: sum(map(self.lives, self.clients)) < MOST_LIVE)
    @rule(queues=st.sampled_from([("q",), ("r",), ("q", "r"), ("r", "q")]))
    def register(self, queues: tuple[str, ...]) -> None:
        client = Client(self.broker, queues)
        assert client.id not in self.model.members, "an id was used twice"
        self.model.members[client.id] = Member(queues)
        self.clients.append(client)

    @rule(data=st.data(), limit=some)
    def reserve(self, data: st.DataObject, limit: int) -> None:
        self.reserve_as(self.client(data), limit)

    def reserve_as(self, client: Client, limit: int) -> None:
        if not self.lives(client):
            with pytest.raises(LeaseLost):
                client.consumer.reserve(limit)
            return
        self.took(client, limit, client.consumer.reserve(limit))

    def took(self, client: Client, limit: int, deliveries: Any) -> None:
        self.model.reserved(client.id, limit, self.now(), deliveries)
        client.holds.update({delivery.tag: delivery for delivery in deliveries})

    def known(self, client: Client) -> list[Delivery]:
        """What the process may still talk of: its holds, those it has lost, and what it has settled before."""
        return [*client.holds.values(), *client.settled[-2:]]

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), once=st.booleans(), tracked=st.booleans())
    def begin(self, data: st.DataObject, once: bool, tracked: bool) -> None:
        client = self.client(data, self.busy())
        known = self.known(client)
        chosen = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique_by=lambda held: held.tag))
        batch = [
            Begin(delivery=held, once=once, result=self.record(held, "STARTED") if tracked else None) for held in chosen
        ]
        lost = set(client.consumer.begin(batch))
        for begun in batch:
            item = self.model.holds(client.id, begun.delivery)
            assert (begun.delivery.tag in lost) == (item is None)
            if item is not None:
                item.once = item.once or once
                if begun.result is not None:
                    self.model.store(begun.result)

    def record(self, held: Delivery, state: str) -> ResultRecord:
        task_id = "task-" + bodies([held])[0].decode()
        self.numbers += 1
        payload = json.dumps({"status": state, "result": self.numbers, "task_id": task_id}).encode()
        return ResultRecord(task_id=task_id, state=state, payload=payload)

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), limit=st.sampled_from([0, 0, 1, 3]))
    def settle_several(self, data: st.DataObject, limit: int) -> None:
        client = self.client(data, self.busy())
        known = self.known(client)
        chosen = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique_by=lambda held: held.tag))
        batch = []
        for held in chosen:
            state = data.draw(st.sampled_from(["", *STATES]))
            follow = [self.message("q", 0)[0]] if data.draw(st.booleans()) else []
            result = self.record(held, state) if state else None
            batch.append(Settlement(delivery=held, how=self.how(data, held), result=result, publish=follow))
        self.settle(client, batch, limit)

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), key=st.sampled_from(["", *KEYS]), frees=st.lists(st.sampled_from(KEYS + GATES), max_size=2))
    def settle_one(self, data: st.DataObject, key: str, frees: list[str]) -> None:
        """One that frees, and takes a key again for the task that has it."""
        client = self.client(data, self.busy())
        known = self.known(client)
        held = data.draw(st.sampled_from(known))
        again = self.message("r", 3, data.draw(seconds_ahead), "", key)[0]
        self.settle(client, [Settlement(delivery=held, publish=[again], frees=frees)], 0)

    def stale(self) -> list[tuple[Client, Delivery]]:
        """What processes still talk of although it is no longer theirs."""
        return [
            (client, delivery)
            for client in self.clients
            for delivery in self.known(client)
            if self.model.holds(client.id, delivery) is None
        ]

    @precondition(lambda self: self.stale())
    @rule(data=st.data(), state=st.sampled_from(STATES), publish=st.booleans(), limit=st.sampled_from([0, 0, 2]))
    def settle_too_late(self, data: st.DataObject, state: str, publish: bool, limit: int) -> None:
        client, delivery = data.draw(st.sampled_from(self.stale()))
        follow = [self.message("q", 0)[0]] if publish else []
        how = self.how(data, delivery)
        result = self.record(delivery, state)
        self.settle(client, [Settlement(delivery=delivery, how=how, result=result, publish=follow)], limit)

    @precondition(lambda self: self.model.unique)
    @rule(data=st.data(), frees=st.booleans())
    def retry_with_its_key(self, data: st.DataObject, frees: bool) -> None:
        """A retry keeps its task id, and takes the unique key of its task again."""
        held = [
            (client, delivery)
            for client in self.clients
            for delivery in client.holds.values()
            if (item := self.model.holds(client.id, delivery)) and item.task_id in self.model.unique.values()
        ]
        if not held:
            return
        client, delivery = data.draw(st.sampled_from(held))
        task_id = self.model.items[bodies([delivery])[0]].task_id
        key = next(key for key, holder in self.model.unique.items() if holder == task_id)
        self.numbers += 1
        again = outgoing(b"%d" % self.numbers, "q", task_id=task_id, unique=key)
        self.settle(client, [Settlement(delivery=delivery, publish=[again], frees=[key] if frees else [])], 0)
        assert self.model.items[b"%d" % self.numbers].place == "ready"

    def how(self, data: st.DataObject, held: Delivery) -> Any:
        kind = data.draw(hows)
        if held.verdict is not None and kind in ("delay", "park"):
            return ACK  # what has a verdict is ended, or given back
        if kind == "delay":
            ahead = data.draw(st.sampled_from([1, 15]))
            return Delay(self.clock.now() + timedelta(seconds=ahead + 0.5))
        return {
            "ack": ACK,
            "requeue": Requeue(),
            "counted": Requeue(counted=True),
            "park": Park("gate-1"),
            "dead": Dead("reason", "detail"),
        }[kind]

    def settle(self, client: Client, batch: list[Settlement], limit: int) -> None:
        lives = self.lives(client)
        held = {one.delivery.tag: self.model.holds(client.id, one.delivery) for one in batch}
        try:
            settled = client.consumer.settle(batch, reserve=limit)
        except LeaseLost:
            assert not lives and not any(held.values()), "an answer about what was applied was lost"
            self.forget(client, batch)
            return
        assert set(settled.refused) == {tag for tag, item in held.items() if item is None}
        returned = []
        for one in batch:
            item = held[one.delivery.tag]
            if item is not None:
                self.apply(one, item)
                if isinstance(one.how, Requeue):
                    returned.append((item, one.how))
        self.model.back([item for item, _ in returned], {item.tag for item, how in returned if how.counted})
        self.forget(client, batch)
        if limit and lives:
            self.took(client, limit, settled.deliveries)
        else:
            assert not settled.deliveries

    def forget(self, client: Client, batch: list[Settlement]) -> None:
        for one in batch:
            client.holds.pop(one.delivery.tag, None)
            client.settled.append(one.delivery)

    def apply(self, one: Settlement, item: Item) -> None:
        model, how = self.model, one.how
        if one.result is not None:
            model.store(one.result)
        model.free(one.frees, self.now())
        for out in one.publish:
            fresh = Item(int(out.message.body), out.queue, out.priority, "", task_id=out.task_id)
            fresh.due = out.not_before.timestamp() if out.not_before is not None else 0.0
            model.publish(fresh, self.now(), out.unique or "", by=out.task_id)
        if isinstance(how, Ack):
            item.place = "gone"
        elif isinstance(how, Delay):
            item.place, item.due = "scheduled", how.until.timestamp()
        elif isinstance(how, Park):
            model.park(item, how.gate)
        elif isinstance(how, Dead):
            item.place = "dead"

    # -- death ---------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The process is gone, and with it all that it knew."""
        client = self.client(data)
        client.holds.clear()
        client.settled.clear()

    @rule(data=st.data())
    def supervisor_dies(self, data: st.DataObject) -> None:
        client = self.client(data)
        if client.supervised:
            client.supervised = False
            client.leases.close()

    @rule(data=st.data())
    def a_connection_breaks(self, data: st.DataObject) -> None:
        """Between two calls: nobody notices, but the next call comes by another connection."""
        type(self).disconnect(self.client(data).consumer)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.clients), min_size=1, max_size=4, unique_by=id))
        self.renewed([client.id for client in chosen])

    def renewed(self, ids: list[str]) -> None:
        lost = set(self.reaper.renew(ids))
        for id in ids:
            member = self.model.members[id]
            assert (id in lost) == (member.state != "live"), "a consumer was reaped that must not be"
            member.beat += id not in lost

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        client = self.client(data)
        tags = [item.tag for item in self.model.held_by(client.id)]
        started = [tag for tag in tags if data.draw(st.booleans())]
        kinds = st.sampled_from([None, None, VerdictKind.TERMINATED, VerdictKind.TIME_LIMIT])
        verdicts = {tag: kind for tag in tags if (kind := data.draw(kinds)) is not None}
        told = {tag: Verdict(kind=kind, detail="as decided") for tag, kind in verdicts.items()}
        expected = self.model.release(client.id, started, verdicts)
        assert self.reaper.release(client.id, started=started, verdicts=told) == expected
        assert self.reaper.release(client.id, started=started) == 0, "safe to repeat"

    @rule()
    def look_for_the_dead(self) -> None:
        found = {suspect.id: suspect for suspect in self.reaper.suspects()}
        for id, suspect in found.items():
            assert self.model.members[id].state != "gone"
            self.seen[id] = suspect, self.model.members[id].beat
        unfinished = {id for id, member in self.model.members.items() if member.state == "reaped"}
        assert unfinished <= found.keys(), "what a reaper left behind is found again"

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def reap(self, data: st.DataObject) -> None:
        self.reap_one(data.draw(st.sampled_from(sorted(self.seen))))

    def reap_one(self, id: str) -> int:
        suspect, beat = self.seen[id]
        member = self.model.members[id]
        reaped = self.reaper.reap(suspect)
        if member.state == "gone" or (member.state == "live" and member.beat != beat):
            # The beat has moved: it lives. The next call by that consumer tells whether it still does.
            self.false_reaps += reaped.moved
            assert (reaped.moved, reaped.left) == (0, 0), "a living consumer was reaped"
            return 0
        if reaped.moved or reaped.left or member.state == "reaped":
            assert (reaped.moved, reaped.left) == self.model.reap(id)
            return reaped.left
        # It held nothing, or its lease is not over by the driver's clock: its next renewal tells which.
        before = len(self.model.held_by(id))
        if list(self.reaper.renew([id])):
            assert not before, "it was reaped and what it held stayed behind"
            member.state = "gone"
        else:
            member.beat += 1
        return 0

    @rule(data=st.data(), wait=st.sampled_from([0, 31, 95]))
    def a_reaper_is_late(self, data: st.DataObject, wait: int) -> None:
        """It saw a beat, the consumer renewed, and then was silent again: what was seen is worth nothing."""
        client = self.client(data)
        if client.supervised and data.draw(st.booleans()):
            client.supervised = False
            client.leases.close()
        self.clock.advance(31)
        self.look_for_the_dead()
        self.renewed([client.id])
        self.clock.advance(wait)
        if client.id in self.seen:
            self.reap_one(client.id)

    @rule(data=st.data(), awake=st.booleans())
    def a_lease_ends(self, data: st.DataObject, awake: bool) -> None:
        """A consumer with its supervisor falls silent, and a reaper comes; its process may live on as a zombie."""
        client = self.client(data)
        if client.supervised:
            client.supervised = False
            client.leases.close()
        self.clock.advance(31)
        self.look_for_the_dead()
        if client.id in self.seen:
            self.reap_one(client.id)
        if awake:
            self.renewed([client.id])
            self.reserve_as(client, 1)

    # -- the world -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 10, 31, 95]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-3600, -20, 20, 3600]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.clock.jump(seconds)
        self.published.clear()

    @rule(queue=st.sampled_from(QUEUES), place=st.sampled_from([Place.READY, Place.SCHEDULED, Place.DEAD]))
    def purge(self, queue: str, place: Place) -> None:
        items = self.model.at(place.value, queue)
        if any(item.due <= self.now() for item in self.model.at("scheduled")):
            return  # whether those are in the queue already is a driver's affair
        assert self.broker.purge(queue, place) == len(items)
        for item in items:
            item.place = "gone"

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        for queue in QUEUES:
            seen = {place.value: bodies(self.broker.peek(queue, place=place, limit=1000)) for place in Place}
            self.model.check_places(queue, self.now(), seen)
            for place in (Place.HELD, Place.DEAD):
                assert self.broker.size(queue, place) == len(seen[place.value])

    @invariant()
    def results_are_as_settled(self) -> None:
        stored = self.backend.fetch(list(self.model.results))
        assert {id: json.loads(payload)["status"] for id, payload in stored.items()} == self.model.results

    def teardown(self) -> None:
        """Whatever happened, in the end one healthy worker finds every message that is left, once."""
        try:
            self.recover()
        finally:
            for client in self.clients:
                client.close()
            self.reaper.close()
            self.backend.close()
            self.broker.close()

    def recover(self) -> None:
        for client in self.clients:
            if client.supervised:
                client.supervised = False
                client.leases.close()
        # A wall clock that went back hides the dead until they have been silent for long by the other clock.
        for _ in range(2):
            self.reaper.suspects()
            self.clock.advance(4 * TTL)
        self.look_for_the_dead()
        for id in self.seen:
            while self.model.members[id].state != "gone" and self.reap_one(id):
                pass
        left = [id for id, member in self.model.members.items() if member.state != "gone"]
        assert not left, "a dead consumer was never taken over"
        waiting = self.model.at("scheduled") + self.model.at("gate")
        last_due = max((item.due for item in waiting), default=0.0)
        self.clock.advance(max(0.0, last_due - self.now()) + 1)
        last = Client(self.broker, QUEUES)
        self.clients.append(last)
        self.model.members[last.id] = Member(QUEUES)
        (opener,) = self.broker.publish([self.message("q", 9)[0]])
        assert opener.status is PublishStatus.QUEUED
        self.model.publish(Item(self.numbers, "q", 9, ""), self.now())
        while batch := last.consumer.reserve(20):
            self.took_all(last, batch, len(self.model.at("gate")))
        assert {item.place for item in self.model.items.values()} <= {"gone", "dead"}
        places = [Place.READY, Place.SCHEDULED, Place.HELD]
        assert [self.broker.size(queue, place) for queue in QUEUES for place in places] == [0] * 6
        self.every_message_is_in_one_place()
        self.results_are_as_settled()
        assert not self.false_reaps

    def took_all(self, last: Client, batch: Any, gated: int) -> None:
        self.took(last, 20, batch)
        frees = [gate for gate in GATES for _ in range(gated)]
        self.settle(last, [Settlement(delivery=batch[0], frees=frees)], 0)
        if len(batch) > 1:
            self.settle(last, [Settlement(delivery=held) for held in batch[1:]], 0)


def profile(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if SHRINK or phase is not Phase.shrink],
        print_blob=True,
    )


def stay(consumer: Any) -> None:
    """This driver has no connections."""


def run(
    opening: Callable[..., tuple[Any, Any]], ways: Ways, examples: int, disconnect: Callable[[Any], None] = stay
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    ways_of = {"open": staticmethod(opening), "disconnect": staticmethod(disconnect), "ways": ways}
    machine = type("Machine", (BrokerMachine,), ways_of)
    run_state_machine_as_test(machine, settings=profile(examples))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> int:
    """Reapers move three messages at a time, so that they can die in the middle."""
    from umbel.brokers.redis import leases as redis_leases

    monkeypatch.setattr(memory, "_REAP_BATCH", 3)
    monkeypatch.setattr(sqlite_leases, "_REAP_BATCH", 3)
    monkeypatch.setattr(redis_leases, "BATCH", 3)
    return 3


pytestmark = pytest.mark.timeout(3600 if EXAMPLES or SHRINK else 300)


def test_memory(small_batches: int) -> None:
    """F31. The memory broker."""

    def opening(clock: FakeClock, options: dict[str, Any]) -> tuple[Any, Any]:
        url = f"memory://{uuid.uuid4().hex}"
        broker = memory.MemoryBroker(url, options=options, clock=clock)
        return broker, memory_backend.MemoryBackend(url, options={}, clock=clock)

    run(opening, Ways(keeps_position=False, latest_first=True, reap_batch=small_batches), 400)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="umbel-machine-") as made:
        yield made


def test_sqlite(small_batches: int, folder: str) -> None:
    """F31. The SQLite broker."""

    def opening(clock: FakeClock, options: dict[str, Any]) -> tuple[Any, Any]:
        url = f"sqlite:///{folder}/{uuid.uuid4().hex}.db?synchronous=NORMAL"
        return SqliteBroker(url, options=options, clock=clock), sqlite_backend.SqliteBackend(
            url, options={}, clock=clock
        )

    run(opening, Ways(keeps_position=True, latest_first=False, reap_batch=small_batches), 120)


def test_redis(small_batches: int, redis_server: RedisServer) -> None:
    """F31. The Redis broker."""
    import redis

    from umbel.backends.redis import RedisBackend
    from umbel.brokers.redis import RedisBroker

    url = redis_server.url

    def opening(clock: FakeClock, options: dict[str, Any]) -> tuple[Any, Any]:
        with redis.Redis.from_url(url) as admin:
            admin.flushall()
        results = url.removesuffix("/0") + "/1"
        return RedisBroker(url, options=options, clock=clock), RedisBackend(results, options={}, clock=clock)

    def disconnect(consumer: Any) -> None:
        consumer._link.drop()

    run(opening, Ways(keeps_position=False, latest_first=True, reap_batch=small_batches), 120, disconnect)
