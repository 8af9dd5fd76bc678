"""The broker inside one process: the reference of the whole contract.

All brokers of one ``memory://name`` in a process share their messages, which live as long as the process. Another
process, a forked child too, has messages of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, ClassVar

from umbel.bell import Bell
from umbel.brokers.memory_dead import MemoryDeadLetters, letters
from umbel.brokers.memory_find import find
from umbel.brokers.memory_state import PRIORITIES, Entry, Held, Member, Shared, location_of, name_of, shared
from umbel.brokers.memory_store import MemoryPubSub, MemoryStore
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import LeaseLost
from umbel.interfaces import (
    Ack,
    Begin,
    Broker,
    BrokerFeatures,
    Clock,
    Consumer,
    Crash,
    Dead,
    Delay,
    Delivery,
    Durability,
    Leases,
    Outgoing,
    Park,
    Peeked,
    Place,
    Published,
    QueueSpec,
    Reaped,
    Requeue,
    Settled,
    Settlement,
    Sighting,
    StoreLocation,
    Survives,
    Suspect,
    Verdict,
    VerdictKind,
    Write,
)

_BATCH_BYTES = 1024 * 1024
_REAP_BATCH = 100
LOST = Verdict(kind=VerdictKind.LOST, detail="its process died, and it must not run twice")


class MemoryBroker(Broker):
    """Carries messages between the threads of one process."""

    schemes: ClassVar[tuple[str, ...]] = ("memory",)
    features = BrokerFeatures(
        lease="clock",
        shared=False,
        priorities=PRIORITIES,
        schedule=True,
        dedupe=True,
        atomic_results=True,
        gates=True,
        ends=True,
        fanout=False,
        guarded=True,
        finds=True,
    )

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        options = options or {}
        self.name = name_of(url)
        self.clock = clock
        self.lease_ttl = float(options.get("lease_ttl", 30.0))
        self.max_deliveries: int | None = options.get("max_deliveries", 5) or None
        self.backoff = tuple(float(pause) for pause in options.get("redelivery_backoff", (1, 5, 30, 120)) or ())
        self.dedupe = float(options.get("publish_dedupe", 120.0) or 0.0)
        self.stores_results = False
        self._shared = shared(self.name)

    def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def close(self) -> None:
        """Do nothing: messages stay for the next broker of this name."""

    def declare(self, queues: Iterable[QueueSpec]) -> None:
        with self._shared.lock:
            for queue in queues:
                self._shared.messages.lane(queue.name)

    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object | None = None, timeout: float | None = None
    ) -> Sequence[Published]:
        if transaction is not None:
            raise ValueError("the memory broker has no transactions: publish without transaction=")
        with self._shared.lock:
            now = self.clock.time()
            return [self._shared.messages.publish(outgoing, now, self.dedupe) for outgoing in batch]

    def publish_if(self, write: Write, batch: Sequence[Outgoing], *, timeout: float | None = None) -> int | None:
        with self._shared.lock:
            version = self.store().put_locked(write.key, write.value, if_version=write.if_version)
            if version is not None:
                now = self.clock.time()
                for outgoing in batch:
                    self._shared.messages.publish(outgoing, now, self.dedupe)
            return version

    def consumer(self, id: str, queues: Sequence[str]) -> MemoryConsumer:
        return MemoryConsumer(self, self._shared, id, queues)

    def leases(self) -> MemoryLeases:
        return MemoryLeases(self, self._shared)

    def size(self, queue: str, place: Place = Place.READY) -> int:
        with self._shared.lock:
            return sum(1 for _ in self._look(queue, place))

    def peek(self, queue: str, *, place: Place = Place.READY, limit: int = 100) -> Sequence[Peeked]:
        with self._shared.lock:
            return list(islice(self._look(queue, place), limit))

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        with self._shared.lock:
            member = self._shared.members.get(consumer)
            held = {} if member is None else member.held
            return {tag: Peeked(raw=each.entry.raw, queue=each.entry.queue) for tag, each in held.items()}

    def _look(self, queue: str, place: Place) -> Iterator[Peeked]:
        messages = self._shared.messages
        messages.due(self.clock.time())
        if place is Place.READY:
            for entry in messages.lane(queue):
                yield Peeked(raw=entry.raw, queue=queue)
        elif place is Place.SCHEDULED:
            for due, _, entry in sorted(messages.schedule, key=lambda item: item[:2]):
                if entry.queue == queue:
                    yield Peeked(raw=entry.raw, queue=queue, at=datetime.fromtimestamp(due, UTC))
        elif place is Place.DEAD:
            yield from letters(messages, queue)
        else:
            for member in self._shared.members.values():
                for held in member.held.values():
                    if held.entry.queue == queue:
                        yield Peeked(raw=held.entry.raw, queue=queue)

    def purge(self, queue: str, place: Place = Place.READY) -> int:
        with self._shared.lock:
            count = sum(1 for _ in self._look(queue, place))
            messages = self._shared.messages
            if place is Place.READY:
                messages.lanes.pop(queue, None)
            elif place is Place.SCHEDULED:
                # Sorted stays a heap.
                messages.schedule[:] = sorted(item for item in messages.schedule if item[2].queue != queue)
            elif place is Place.DEAD:
                messages.dead.pop(queue, None)
            else:
                for member in self._shared.members.values():
                    kept = {tag: held for tag, held in member.held.items() if held.entry.queue != queue}
                    member.held = kept
            return count

    def withdraw(self, queue: str, messages: Sequence[Peeked]) -> int:
        wanted = [each.raw for each in messages]
        with self._shared.lock:
            kept = []
            for item in self._shared.messages.schedule:
                if item[2].queue == queue and item[2].raw in wanted:
                    wanted.remove(item[2].raw)
                else:
                    kept.append(item)
            # Sorted stays a heap.
            self._shared.messages.schedule[:] = sorted(kept)
        return len(messages) - len(wanted)

    def find(self, task_id: str, queues: Collection[str], *, timeout: float = 2.0) -> Sighting | None:
        with self._shared.lock:
            self._shared.messages.due(self.clock.time())
            return find(self._shared, task_id)

    def dead(self) -> MemoryDeadLetters:
        return MemoryDeadLetters(self._shared)

    def pubsub(self) -> MemoryPubSub:
        return MemoryPubSub(self._shared, self.clock)

    def durability(self) -> Durability:
        """Say that nothing outlives the process."""
        return Durability(
            survives=Survives.NOTHING,
            text="this process alone: gone when it ends",
            advice=["use sqlite:/// or redis:// for tasks that matter"],
        )

    def store(self) -> MemoryStore:
        return MemoryStore(self._shared, self.clock)

    def bind_results(self, location: StoreLocation | None) -> bool:
        self.stores_results = location is not None and location == location_of(self.name)
        return self.stores_results


class MemoryConsumer(Consumer):
    """Reserves and settles for one registered id."""

    def __init__(self, broker: MemoryBroker, shared: Shared, id: str, queues: Sequence[str]) -> None:
        self._broker = broker
        self._clock = broker.clock
        self._shared = shared
        self._id = id
        self._turn = 0
        self._bell = Bell()
        self.watch(queues)

    def watch(self, queues: Sequence[str]) -> None:
        self._queues = list(dict.fromkeys(queues))
        with self._shared.lock:
            self._shared.waiting[self._bell] = frozenset(queues)

    def reserve(self, limit: int) -> Sequence[Delivery]:
        with self._shared.lock:
            return self._reserve(limit)

    def _reserve(self, limit: int) -> list[Delivery]:
        member = self._shared.members.get(self._id)
        if member is None or member.reaped:
            raise LeaseLost(f"consumer {self._id} was given up or taken over; register a new one")
        messages = self._shared.messages
        messages.due(self._clock.time())
        taken: list[Delivery] = []
        size = 0
        for entry in islice(messages.take(self._rotated()), max(limit, 0)):
            if taken and size + len(entry.raw) > _BATCH_BYTES:
                messages.put_back(entry)
                break
            size += len(entry.raw)
            taken.append(self._hold(member, entry))
        return taken

    def _rotated(self) -> list[str]:
        self._turn += 1
        start = self._turn % len(self._queues) if self._queues else 0
        return self._queues[start:] + self._queues[:start]

    def _hold(self, member: Member, entry: Entry) -> Delivery:
        fence = next(self._shared.numbers)
        tag = str(fence)
        member.held[tag] = Held(entry)
        return Delivery(
            tag=tag,
            queue=entry.queue,
            raw=entry.raw,
            count=entry.crashes + 1,
            fence=fence,
            enqueued_at=entry.enqueued_at,
            redelivered=entry.crashes > 0,
            verdict=entry.verdict,
        )

    def begin(self, batch: Sequence[Begin]) -> Collection[str]:
        self._check_results(begun.result is not None for begun in batch)
        lost = []
        with self._shared.lock:
            now = self._clock.time()
            held = self._held()
            for begun in batch:
                entry = held.get(begun.delivery.tag)
                if entry is None:
                    lost.append(begun.delivery.tag)
                    continue
                entry.once = entry.once or begun.once
                if begun.result is not None:
                    self._shared.results.store(begun.result, now)
        return lost

    def _held(self) -> dict[str, Held]:
        member = self._shared.members.get(self._id)
        # What a reaper has not moved yet may still be settled: that takes it from the only place it is in.
        return member.held if member is not None else {}

    def _check_results(self, carried: Iterable[bool]) -> None:
        if not self._broker.stores_results and any(carried):
            raise ValueError("this broker was not bound to the result backend: store results before settling")

    def settle(self, batch: Sequence[Settlement], *, reserve: int = 0) -> Settled:
        """End the holds in one atomic step and reserve up to ``reserve`` more in the same trip.

        A settlement that brings a chord's last part applies its result and its part only. The settlement that follows
        carries everything else again, with the body, and its ack closes the chord.
        """
        self._check_results(bool(one.result or one.chord or one.results or one.parts) for one in batch)
        refused: list[str] = []
        complete: dict[str, str] = {}
        with self._shared.lock:
            now = self._clock.time()
            held = self._held()
            requeued: list[tuple[int, Entry, Requeue]] = []
            for settlement in batch:
                tag = settlement.delivery.tag
                if tag not in held:
                    refused.append(tag)
                elif claim := self._store(held[tag], settlement, now):
                    complete[tag] = claim
                else:
                    self._apply(held.pop(tag), settlement, requeued, now)
            # The last one reserved goes back first, so that the first ends up at the head.
            for _, entry, how in sorted(requeued, key=lambda item: item[0], reverse=True):
                crash = None
                if how.counted:
                    crash = Crash(at=datetime.fromtimestamp(now, UTC), consumer=self._id, cause="given back as crashed")
                self._shared.messages.put_back(entry, crash=crash, limit=self._broker.max_deliveries)
            # A consumer that was taken over learns it from its next reserve, not instead of this answer.
            deliveries = self._reserve(reserve) if reserve > 0 and self._is_live() else []
        return Settled(refused=refused, complete=complete, deliveries=deliveries)

    def _is_live(self) -> bool:
        member = self._shared.members.get(self._id)
        return member is not None and not member.reaped

    def _store(self, held: Held, settlement: Settlement, now: float) -> str | None:
        """Store the result and the chord part; return the claim token if the part is the last."""
        results = self._shared.results
        if settlement.result is not None:
            results.store(settlement.result, now)
        for record in settlement.results:
            results.store(record, now)
        part = settlement.chord
        if part is None:
            return None
        chord = results.chord(part.group_id, part.expires, now)
        claims = [chord.add(each) for each in (*settlement.parts, part)]
        claim = next(filter(None, claims), None)
        if claim is not None:
            held.claim = (part.group_id, claim)
        return claim

    def _apply(
        self, held: Held, settlement: Settlement, requeued: list[tuple[int, Entry, Requeue]], now: float
    ) -> None:
        messages, entry, how = self._shared.messages, held.entry, settlement.how
        # Free before publishing: a retry takes the unique key of its task again.
        for name in settlement.frees:
            messages.free(name, now)
        for outgoing in settlement.publish:
            # No window: this happens once, with the ack, and a retry repeats the task id on purpose.
            messages.publish(outgoing, now, 0.0, follow_up=True)
        if isinstance(how, Requeue):
            if how.counted and held.once and entry.verdict is None:
                entry.verdict = LOST
            requeued.append((settlement.delivery.fence, entry, how))
            return
        if isinstance(how, Delay):
            messages.delay(entry, how.until.timestamp())
            return
        if isinstance(how, Park):
            messages.park(entry, how.gate)
            return
        if isinstance(how, Dead):
            messages.bury(entry, how, now)
        if held.claim is not None and isinstance(how, Ack):
            self._shared.results.close_chord(*held.claim, now)

    def wait(self, timeout: float) -> bool:
        deadline = self._clock.monotonic() + timeout
        while True:
            if self._bell.is_set():
                self._bell.clear()
                return True
            with self._shared.lock:
                now = self._clock.time()
                messages = self._shared.messages
                messages.due(now)
                if messages.is_waiting(self._queues):
                    return True
                next_due = messages.schedule[0][0] - now if messages.schedule else None
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            self._clock.wait(self._bell, left if next_due is None else min(left, next_due))

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        with self._shared.lock:
            self._shared.waiting.pop(self._bell, None)


class MemoryLeases(Leases):
    """Registers consumers and takes over from those that stopped renewing.

    All are in this process, so leases go by its monotonic time: no jump of the wall clock ends or prolongs one.
    """

    def __init__(self, broker: MemoryBroker, shared: Shared) -> None:
        self._broker = broker
        self._clock = broker.clock
        self._shared = shared

    def register(self, node: str) -> str:
        with self._shared.lock:
            id = f"{node}:{next(self._shared.numbers)}:{uuid.uuid4().hex[:16]}"
            self._shared.members[id] = Member(node, self._clock.monotonic() + self._broker.lease_ttl)
        return id

    def renew(self, ids: Sequence[str]) -> Collection[str]:
        lost = []
        with self._shared.lock:
            ends_at = self._clock.monotonic() + self._broker.lease_ttl
            for id in ids:
                member = self._shared.members.get(id)
                if member is None or member.reaped:
                    lost.append(id)
                else:
                    member.beat += 1
                    member.ends_at = ends_at
        return lost

    def release(
        self,
        id: str,
        *,
        started: Collection[str] = (),
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> int:
        verdicts = verdicts or {}
        with self._shared.lock:
            member = self._shared.members.pop(id, None)
            if member is None:
                return 0
            for tag, held in reversed(member.held.items()):
                verdict = verdicts.get(tag)
                # One that was to be ended, and whose process had to be ended instead, must not come round for ever.
                counts = tag in started or (verdict is not None and held.entry.verdict is not None)
                self._give_back(held, crash=self._crash(id, cause) if counts else None, verdict=verdict)
            return len(member.held)

    def _crash(self, id: str, cause: str) -> Crash:
        return Crash(at=datetime.fromtimestamp(self._clock.time(), UTC), consumer=id, cause=cause)

    def _give_back(self, held: Held, *, crash: Crash | None, verdict: Verdict | None) -> None:
        entry, broker = held.entry, self._broker
        if entry.verdict is None:
            entry.verdict = verdict or (LOST if held.once else None)
        self._shared.messages.put_back(entry, crash=crash, limit=broker.max_deliveries, pauses=broker.backoff)

    def suspects(self) -> Sequence[Suspect]:
        with self._shared.lock:
            now = self._clock.monotonic()
            return [
                Suspect(id=id, beat=member.beat, node=member.node, age=max(0.0, now - member.ends_at))
                for id, member in self._shared.members.items()
                if member.reaped or member.ends_at < now
            ]

    def reap(self, suspect: Suspect) -> Reaped:
        with self._shared.lock:
            member = self._shared.members.get(suspect.id)
            if member is None or member.beat != suspect.beat:
                return Reaped(moved=0, left=0)
            if not member.reaped and member.ends_at >= self._clock.monotonic():
                return Reaped(moved=0, left=0)
            member.reaped = True
            moved = min(len(member.held), _REAP_BATCH)
            for _ in range(moved):
                # The last first, so that over all batches the first ends up at the head.
                crash = self._crash(suspect.id, "its worker was lost")
                self._give_back(member.held.popitem()[1], crash=crash, verdict=None)
            if not member.held:
                del self._shared.members[suspect.id]
            return Reaped(moved=moved, left=len(member.held))

    def close(self) -> None:
        """Do nothing: there is no connection."""
