"""The broker suite, part 3: what dead and stopping consumers held comes back, once."""

from __future__ import annotations

import pytest

from umbel.exceptions import LeaseLost
from umbel.interfaces import Begin, Broker, Place, Requeue, Settlement, Suspect, Verdict, VerdictKind
from umbel.testing.broker_base import BrokerBase, bodies, needs, outgoing


@needs(lease={"clock", "kernel"})
class ReleaseTests(BrokerBase):
    """A supervisor gives back what a stopped process held."""

    def test_ids_are_never_used_again(self, broker: Broker) -> None:
        leases = self.leases(broker)
        seen = set()
        for _ in range(5):
            id = leases.register("node")
            assert id not in seen
            seen.add(id)
            leases.release(id)

    def test_release_gives_back_in_order_and_does_not_count(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3", b"4")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        assert len(self.take(consumer, 3)) == 3
        assert leases.release(id) == 3
        again = self.take(self.consumer(broker), 4)
        assert bodies(again) == [b"1", b"2", b"3", b"4"]
        assert {held.count for held in again} == {1}

    def test_releasing_again_does_nothing(self, broker: Broker) -> None:
        self.send(broker, b"1")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        self.take(consumer)
        assert [leases.release(id), leases.release(id), leases.release("nobody")] == [1, 0, 0]
        assert broker.size("q") == 1

    def test_the_started_count(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        first, *_ = self.take(consumer, 3)
        leases.release(id, started=[first.tag])
        again = self.take(self.consumer(broker), 3)
        assert bodies(again) == [b"1", b"2", b"3"]
        assert [(held.count, held.redelivered) for held in again] == [(2, True), (1, False), (1, False)]

    @needs(ends=True)
    def test_a_verdict_goes_to_the_ends_and_is_reserved_first(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        _, second = self.take(consumer, 2)
        verdict = Verdict(kind=VerdictKind.TIME_LIMIT, detail="ran for 12 s, the limit is 10 s")
        leases.release(id, started=[second.tag], verdicts={second.tag: verdict})
        self.send(broker, b"0", priority=0)
        other = self.consumer(broker)
        again = self.take(other, 3)
        assert (bodies(again)[0], again[0].verdict, again[0].queue) == (b"2", verdict, "q")
        assert sorted(bodies(again)) == [b"0", b"1", b"2"]
        assert [held.verdict for held in again[1:]] == [None, None]

    @needs(ends=True)
    def test_a_verdict_survives_the_engine_that_took_it(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        verdict = Verdict(kind=VerdictKind.TERMINATED)
        for _ in range(3):
            id, consumer = self.member(broker, leases)
            (held,) = self.take(consumer)
            leases.release(id, verdicts={held.tag: verdict} if held.verdict is None else {})
        _, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        assert held.verdict == verdict
        self.end(consumer, held, how=Requeue())
        (held,) = self.take(consumer)
        assert held.verdict == verdict
        self.end(consumer, held)
        assert [broker.size("q", place) for place in Place] == [0, 0, 0, 0]

    @needs(ends=True)
    def test_what_must_run_once_is_lost(self, broker: Broker) -> None:
        self.send(broker, b"once", b"again")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        once, again = self.take(consumer, 2)
        assert not consumer.begin([Begin(delivery=once, once=True), Begin(delivery=again)])
        leases.release(id, started=[once.tag])
        first, second = self.take(self.consumer(broker), 2)
        assert (bodies([first, second]), second.verdict) == ([b"once", b"again"], None)
        assert first.verdict is not None
        assert first.verdict.kind is VerdictKind.LOST

    @needs(ends=True)
    def test_too_many_crashes_end_it(self) -> None:
        broker = self.open(max_deliveries=2)
        self.send(broker, b"poison")
        leases = self.leases(broker)
        for _ in range(2):
            id, consumer = self.member(broker, leases)
            (held,) = self.take(consumer)
            leases.release(id, started=[held.tag])
        (ended,) = self.take(self.consumer(broker))
        assert ended.verdict is not None
        assert ended.verdict.kind is VerdictKind.MAX_DELIVERIES

    def test_a_released_consumer_can_do_nothing(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        leases.release(id)
        assert self.refuses(consumer, Settlement(delivery=held, publish=[outgoing(b"late")]))
        with pytest.raises(LeaseLost):
            consumer.reserve(1)
        assert list(leases.renew([id])) == [id]
        assert bodies(broker.peek("q")) == [b"x"]

    def test_renew_reports_the_lost(self, broker: Broker) -> None:
        leases = self.leases(broker)
        kept, gone = leases.register("node"), leases.register("node")
        leases.release(gone)
        assert list(leases.renew([kept, gone, "nobody"])) in ([gone, "nobody"], ["nobody", gone])
        assert list(leases.renew([])) == []


@needs(lease="clock")
class ReapTests(BrokerBase):
    """Anyone may take over from a consumer whose lease is over, and nobody from one that renews."""

    def test_a_live_one_is_no_suspect(self, broker: Broker) -> None:
        leases = self.leases(broker)
        id = leases.register("node")
        for _ in range(5):
            self.clock.advance(20)
            assert list(leases.suspects()) == []
            assert list(leases.renew([id])) == []

    def test_a_live_one_is_not_reaped_whatever_its_beat(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        assert [leases.reap(Suspect(id=id, beat=beat)).moved for beat in range(5)] == [0] * 5
        assert list(leases.renew([id])) == []
        self.end(consumer, held)

    def test_a_dead_one_is_taken_over(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        self.take(consumer, 2)
        suspect = self.expired(leases, id)
        assert suspect.age >= 0
        assert self.suspect(leases, id).beat == suspect.beat
        reaped = leases.reap(suspect)
        assert (reaped.moved, reaped.left) == (2, 0)
        assert list(leases.suspects()) == []
        again = self.take(self.consumer(broker), 5)
        assert bodies(again) == [b"1", b"2", b"3"]
        assert [(held.count, held.redelivered) for held in again] == [(2, True), (2, True), (1, False)]

    def test_one_that_woke_up_in_time_is_not(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        suspect = self.expired(leases, id)
        assert list(leases.renew([id])) == []
        assert leases.reap(suspect).moved == 0
        self.clock.advance(20)
        assert leases.reap(suspect).moved == 0
        self.end(consumer, held)

    def test_a_beat_seen_before_a_renewal_never_reaps(self, broker: Broker) -> None:
        """The lease is over again, but the beat that was observed is an older one."""
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        self.take(consumer)
        old = self.expired(leases, id)
        leases.renew([id])
        new = self.expired(leases, id)
        assert new.beat != old.beat
        assert leases.reap(old).moved == 0
        assert leases.reap(new).moved == 1

    def test_the_reaped_is_told(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        leases.reap(self.expired(leases, id))
        assert list(leases.renew([id])) == [id]
        with pytest.raises(LeaseLost):
            consumer.reserve(1)
        assert list(consumer.begin([Begin(delivery=held)])) == [held.tag]
        assert self.refuses(consumer, Settlement(delivery=held, publish=[outgoing(b"late")]))
        assert bodies(broker.peek("q")) == [b"x"]

    def test_a_stale_settle_does_not_touch_the_new_holder(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, slow = self.member(broker, leases)
        (stale,) = self.take(slow)
        leases.reap(self.expired(leases, id))
        fast = self.consumer(broker)
        (held,) = self.take(fast)
        assert held.fence > stale.fence
        assert self.refuses(slow, Settlement(delivery=stale))
        assert broker.size("q", Place.HELD) == 1
        self.end(fast, held)

    def test_batches_and_the_record_last(self, broker: Broker) -> None:
        contents = [b"%03d" % number for number in range(350)]
        self.send(broker, *contents)
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        assert len(self.take(consumer, 350)) == 350
        suspect, moved, steps = self.expired(leases, id), 0, 0
        while True:
            reaped = leases.reap(suspect)
            moved, steps = moved + reaped.moved, steps + 1
            if not reaped.left:
                break
            # Another reaper finds it again if this one dies here, and its holder has lost it all the same.
            assert self.suspect(leases, id).beat == suspect.beat
            assert list(leases.renew([id])) == [id]
            with pytest.raises(LeaseLost):
                consumer.reserve(1)
            assert steps < 400
        assert moved == 350
        assert list(leases.suspects()) == []
        again = self.take(self.consumer(broker), 350)
        assert bodies(again) == contents
        assert leases.reap(suspect).moved == 0

    @needs(ends=True)
    def test_what_must_run_once_is_lost_when_reaped(self, broker: Broker) -> None:
        self.send(broker, b"once")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        consumer.begin([Begin(delivery=held, once=True)])
        leases.reap(self.expired(leases, id))
        (again,) = self.take(self.consumer(broker))
        assert again.verdict is not None
        assert again.verdict.kind is VerdictKind.LOST

    def test_a_jump_of_the_wall_clock_does_not_kill_the_living(self, broker: Broker) -> None:
        """F19. A reaper compares beats: after the jump every lease looks over, and the living move theirs."""
        leases = self.leases(broker)
        id = leases.register("node")
        self.clock.jump(3600)
        before = {suspect.id: suspect for suspect in leases.suspects()}
        assert list(leases.renew([id])) == []
        for suspect in before.values():
            assert leases.reap(suspect).moved == 0
        assert list(leases.renew([id])) == []
