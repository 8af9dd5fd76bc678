"""The broker suite, part 4: results and chord parts that are applied in the same step as the ack."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from umbel.interfaces import (
    Begin,
    Broker,
    ChordPart,
    Consumer,
    Delivery,
    Place,
    Requeue,
    ResultBackend,
    ResultRecord,
    Settlement,
    StoreLocation,
)
from umbel.testing.broker_base import BrokerBase, bodies, load, needs, outgoing


def record(task_id: str, state: str = "SUCCESS", payload: bytes = b'{"status": "SUCCESS"}') -> ResultRecord:
    """Return a record to store."""
    return ResultRecord(task_id=task_id, state=state, payload=payload, expires=3600)


def part(index: int, *, group: str = "g", payload: bytes = b"") -> ChordPart:
    """Return one member's contribution."""
    content = payload or b'[1, "t%d", "SUCCESS", %d]' % (index, index)
    return ChordPart(group_id=group, index=index, task_id=f"t{index}", state="SUCCESS", payload=content, expires=3600)


@needs(atomic_results=True)
class ResultTests(BrokerBase):
    """Where results live in the broker's store, an outcome is applied exactly once.

    A settlement that brings a chord's last part applies its result and its part and nothing else: the delivery stays
    held, and the settlement that follows carries the follow-ups, the body and the ack, without result and part. A
    crash between the two repeats nothing then.
    """

    @pytest.fixture
    def backend(self, broker: Broker) -> ResultBackend:
        """The result backend in the broker's store, which settle() writes to."""
        if not self.backend_driver:
            pytest.skip("this suite names no backend_driver")
        backend: ResultBackend = load(self.backend_driver)(self.backend_url or self.url, options={}, clock=self.clock)
        backend.open()
        self._opened.append(backend)
        assert broker.bind_results(backend.location())
        return backend

    def _holding(self, broker: Broker, *contents: bytes) -> tuple[Consumer, Sequence[Delivery]]:
        self.send(broker, *contents)
        consumer = self.consumer(broker)
        return consumer, self.take(consumer, len(contents))

    def test_elsewhere_means_no(self, broker: Broker, backend: ResultBackend) -> None:
        assert not broker.bind_results(StoreLocation(scheme="elsewhere", identity="x"))
        assert not broker.bind_results(None)
        assert broker.bind_results(backend.location())

    def test_settle_stores_the_result(self, broker: Broker, backend: ResultBackend) -> None:
        consumer, (held,) = self._holding(broker, b"x")
        self.end(consumer, held, result=record("t"), publish=[outgoing(b"next")])
        assert backend.fetch(["t"]) == {"t": b'{"status": "SUCCESS"}'}
        assert bodies(broker.peek("q")) == [b"next"]

    def test_a_refused_settlement_stores_nothing(self, broker: Broker, backend: ResultBackend) -> None:
        _, (held,) = self._holding(broker, b"x")
        late = Settlement(delivery=held, result=record("t"), publish=[outgoing(b"next")], chord=part(0))
        backend.chord("g").begin(1, expires=3600)
        assert self.refuses(self.consumer(broker), late)
        assert backend.fetch(["t"]) == {}
        assert list(backend.chord("g").parts()) == []
        assert broker.size("q") == 0

    def test_a_final_state_stays_and_the_message_goes(self, broker: Broker, backend: ResultBackend) -> None:
        consumer, (held,) = self._holding(broker, b"x")
        backend.store(record("t", payload=b"first"))
        self.end(consumer, held, result=record("t", "FAILURE", b"second"))
        assert backend.fetch(["t"]) == {"t": b"first"}
        assert broker.size("q", Place.HELD) == 0

    def test_begin_stores_started(self, broker: Broker, backend: ResultBackend) -> None:
        consumer, (first, second) = self._holding(broker, b"1", b"2")
        self.end(consumer, second)
        started = [
            Begin(delivery=held, result=record(id, "STARTED", b"started"))
            for held, id in ((first, "t1"), (second, "t2"))
        ]
        assert list(consumer.begin(started)) == [second.tag]
        assert backend.fetch(["t1", "t2"]) == {"t1": b"started"}

    def test_a_watcher_sees_it(self, broker: Broker, backend: ResultBackend) -> None:
        consumer, (held,) = self._holding(broker, b"x")
        watcher = backend.watcher()
        self._opened.append(watcher)
        watcher.add(["t"])
        assert list(watcher.receive(0.0)) == []
        self.end(consumer, held, result=record("t", payload=b"done"))
        assert ("t", b"done") in watcher.receive(10.0)

    def test_the_last_part_keeps_its_delivery(self, broker: Broker, backend: ResultBackend) -> None:
        chord = backend.chord("g")
        chord.begin(2, expires=3600)
        consumer, (first, second) = self._holding(broker, b"1", b"2")
        early = Settlement(delivery=first, result=record("t0"), chord=part(0), publish=[outgoing(b"link 0")])
        assert not consumer.settle([early]).complete
        last = Settlement(delivery=second, result=record("t1"), chord=part(1), publish=[outgoing(b"link 1")])
        settled = consumer.settle([last])
        assert list(settled.complete) == [second.tag]
        assert not settled.refused
        assert set(backend.fetch(["t0", "t1"])) == {"t0", "t1"}
        assert (broker.size("q", Place.HELD), bodies(broker.peek("q"))) == (1, [b"link 0"])
        assert list(chord.parts()) == [part(0).payload, part(1).payload]
        self.end(consumer, second, publish=[outgoing(b"link 1"), outgoing(b"body")])
        assert (broker.size("q", Place.HELD), bodies(broker.peek("q"))) == (0, [b"link 0", b"link 1", b"body"])
        assert list(chord.parts()) == []
        assert chord.add(part(1)) is None

    def test_a_redelivered_last_part_owns_its_claim(self, broker: Broker, backend: ResultBackend) -> None:
        backend.chord("g").begin(2, expires=3600)
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        self.send(broker, b"1", b"2")
        first, second = self.take(consumer, 2)
        assert not consumer.settle([Settlement(delivery=first, chord=part(0))]).complete
        claim = consumer.settle([Settlement(delivery=second, chord=part(1))]).complete[second.tag]
        leases.release(id, started=[second.tag])
        other = self.consumer(broker)
        (again,) = self.take(other)
        repeated = Settlement(delivery=again, chord=part(1, payload=b"another value"))
        assert other.settle([repeated]).complete == {again.tag: claim}
        assert list(backend.chord("g").parts()) == [part(0).payload, part(1).payload]
        self.end(other, again, publish=[outgoing(b"body")])
        assert self.drain(broker) == [b"body"]

    def test_a_repeated_earlier_part_is_only_acknowledged(self, broker: Broker, backend: ResultBackend) -> None:
        backend.chord("g").begin(2, expires=3600)
        consumer, held = self._holding(broker, b"1", b"2", b"3")
        consumer.settle([Settlement(delivery=held[0], chord=part(0))])
        settled = consumer.settle([Settlement(delivery=held[1], chord=part(1))])
        assert set(settled.complete) == {held[1].tag}
        again = consumer.settle([Settlement(delivery=held[2], chord=part(0))])
        assert (dict(again.complete), list(again.refused)) == ({}, [])
        assert broker.size("q", Place.HELD) == 1

    def test_a_held_last_part_may_be_given_back(self, broker: Broker, backend: ResultBackend) -> None:
        backend.chord("g").begin(1, expires=3600)
        consumer, (held,) = self._holding(broker, b"1")
        claim = consumer.settle([Settlement(delivery=held, chord=part(0))]).complete[held.tag]
        self.end(consumer, held, how=Requeue())
        (again,) = self.take(consumer)
        assert consumer.settle([Settlement(delivery=again, chord=part(0))]).complete == {again.tag: claim}

    def test_further_results_are_stored_in_the_same_step(self, broker: Broker, backend: ResultBackend) -> None:
        consumer, (held,) = self._holding(broker, b"x")
        rest = [record("t1", "FAILURE", b"after it"), record("t2", "FAILURE", b"after that")]
        late = Settlement(delivery=held, results=rest)
        assert self.refuses(self.consumer(broker), late)
        assert backend.fetch(["t1", "t2"]) == {}
        self.end(consumer, held, result=record("t", "FAILURE", b"first"), results=rest)
        assert backend.fetch(["t", "t1", "t2"]) == {"t": b"first", "t1": b"after it", "t2": b"after that"}

    def test_one_settlement_may_bring_several_parts(self, broker: Broker, backend: ResultBackend) -> None:
        backend.chord("g").begin(4, expires=3600)
        consumer, (first, second) = self._holding(broker, b"1", b"2")
        early = Settlement(delivery=first, results=[record("t1")], chord=part(1), parts=[part(0)])
        assert not consumer.settle([early]).complete
        last = Settlement(delivery=second, results=[record("t3")], chord=part(3), parts=[part(2)])
        claim = consumer.settle([last]).complete[second.tag]
        assert set(backend.fetch(["t1", "t3"])) == {"t1", "t3"}
        assert list(backend.chord("g").parts()) == [part(index).payload for index in range(4)]
        assert consumer.settle([last]).complete == {second.tag: claim}
        self.end(consumer, second, publish=[outgoing(b"body")])
        assert list(backend.chord("g").parts()) == []
