"""The broker suite, part 2: how holds end, and what happens in the same step."""

from __future__ import annotations

from typing import Any

import pytest

from umbel.exceptions import LeaseLost
from umbel.interfaces import (
    Begin,
    Broker,
    Dead,
    Delay,
    Park,
    Place,
    Published,
    PublishStatus,
    Requeue,
    Settlement,
    VerdictKind,
)
from umbel.testing.broker_base import BrokerBase, bodies, needs, outgoing, until


class SettleTests(BrokerBase):
    """Only the holder settles, once, and everything that a settlement carries happens or nothing does."""

    def test_ack_forgets_the_message(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        self.end(consumer, *self.take(consumer))
        assert [broker.size("q", place) for place in Place] == [0, 0, 0, 0]
        assert list(consumer.reserve(5)) == []

    def test_requeue_returns_to_the_head_in_order_and_does_not_count(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3", b"4")
        consumer = self.consumer(broker)
        first = self.take(consumer, 3)
        self.end(consumer, *first, how=Requeue())
        again = self.take(consumer, 4)
        assert bodies(again) == [b"1", b"2", b"3", b"4"]
        assert [held.count for held in again] == [1, 1, 1, 1]
        assert {held.tag for held in again}.isdisjoint(held.tag for held in first)

    def test_requeue_keeps_the_order_of_the_queue_and_not_of_the_batch(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3")
        consumer = self.consumer(broker)
        first, second, third = self.take(consumer, 3)
        self.end(consumer, second, third, first, how=Requeue())
        assert bodies(self.take(consumer, 3)) == [b"1", b"2", b"3"]

    @needs(priorities=range(2, 256))
    def test_requeue_keeps_the_priority(self, broker: Broker) -> None:
        self.send(broker, b"low", priority=9)
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        self.send(broker, b"high", priority=0)
        self.end(consumer, held, how=Requeue())
        assert bodies(self.take(consumer, 2)) == [b"high", b"low"]

    def test_a_counted_requeue_counts(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        (first,) = self.take(consumer)
        self.end(consumer, first, how=Requeue(counted=True))
        (again,) = self.take(consumer)
        assert (again.count, again.redelivered) == (2, True)
        assert again.fence > first.fence

    def test_the_fence_grows_without_a_count(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        (first,) = self.take(consumer)
        self.end(consumer, first, how=Requeue())
        (again,) = self.take(consumer)
        assert again.fence > first.fence

    @needs(schedule=True)
    def test_delay_moves_the_same_bytes_to_the_schedule(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        self.end(consumer, held, how=Delay(self.later(60)))
        assert (broker.size("q", Place.SCHEDULED), broker.size("q", Place.HELD)) == (1, 0)
        assert list(consumer.reserve(5)) == []
        self.clock.advance(61)
        (again,) = self.take(consumer)
        assert (again.raw, again.count) == (held.raw, 1)

    def test_settling_twice_is_refused(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        self.end(consumer, held)
        late = Settlement(delivery=held, how=Requeue(), publish=[outgoing(b"follow-up")])
        assert self.refuses(consumer, late)
        assert broker.size("q") == 0

    def test_twice_in_one_batch_is_refused_once(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        settled = consumer.settle([Settlement(delivery=held, publish=[outgoing(b"y")])] * 2)
        assert list(settled.refused) == [held.tag]
        assert broker.size("q") == 1

    def test_another_consumer_is_refused_whole(self, broker: Broker) -> None:
        self.send(broker, b"x")
        holder, other = self.consumer(broker), self.consumer(broker)
        (held,) = self.take(holder)
        for how in (Requeue(), Dead("stolen"), Requeue(counted=True)):
            assert self.refuses(other, Settlement(delivery=held, how=how, publish=[outgoing(b"follow-up")]))
        assert (broker.size("q"), broker.size("q", Place.DEAD), broker.size("q", Place.HELD)) == (0, 0, 1)
        self.end(holder, held)

    def test_the_others_of_a_batch_are_settled(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3")
        consumer = self.consumer(broker)
        first, second, third = self.take(consumer, 3)
        self.end(consumer, second)
        settled = consumer.settle([Settlement(delivery=held) for held in (first, second, third)])
        assert list(settled.refused) == [second.tag]
        assert broker.size("q", Place.HELD) == 0

    def test_it_publishes_in_the_same_step(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker, "q")
        (held,) = self.take(consumer)
        self.end(consumer, held, publish=[outgoing(b"1"), outgoing(b"2"), outgoing(b"3", "r")])
        assert self.drain(broker, "q") == [b"1", b"2"]
        assert self.drain(broker, "r") == [b"3"]

    def test_a_retry_may_repeat_the_task_id(self, broker: Broker) -> None:
        """What a settlement publishes happens once with its ack, so it is never taken for a repeated publish."""
        (sent,) = self.send(broker, b"first try")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        self.end(consumer, held, publish=[outgoing(b"second try", task_id=sent.task_id)])
        assert bodies(self.take(consumer)) == [b"second try"]

    @needs(schedule=True)
    def test_it_schedules_in_the_same_step(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        self.end(consumer, held, publish=[outgoing(b"retry", task_id="t", not_before=self.later(5))])
        assert list(consumer.reserve(5)) == []
        self.clock.advance(6)
        assert bodies(self.take(consumer)) == [b"retry"]

    def test_it_reserves_in_the_same_trip(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3", b"4")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        settled = consumer.settle([Settlement(delivery=held)], reserve=2)
        assert bodies(settled.deliveries) == [b"2", b"3"]
        assert list(consumer.settle([], reserve=0).deliveries) == []
        assert bodies(consumer.settle([], reserve=5).deliveries) == [b"4"]

    def test_begin_answers_what_is_not_held(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2")
        consumer = self.consumer(broker)
        first, second = self.take(consumer, 2)
        self.end(consumer, first)
        assert list(consumer.begin([Begin(delivery=first), Begin(delivery=second)])) == [first.tag]
        self.end(consumer, second)

    @needs(lease={"clock", "kernel"})
    def test_an_unregistered_consumer_reserves_nothing(self, broker: Broker) -> None:
        self.send(broker, b"x")
        consumer = self.consumer(broker, id="nobody")
        with pytest.raises(LeaseLost):
            consumer.reserve(1)
        assert broker.size("q") == 1


class PoisonTests(BrokerBase):
    """A message that kills its worker again and again ends, with a verdict."""

    @needs(ends=True)
    def test_too_many_deliveries_end_it(self) -> None:
        broker = self.open(max_deliveries=3)
        self.send(broker, b"poison")
        consumer = self.consumer(broker)
        for number in (1, 2, 3):
            (held,) = self.take(consumer)
            assert (held.count, held.verdict) == (number, None)
            self.end(consumer, held, how=Requeue(counted=True))
        (ended,) = self.take(consumer)
        assert ended.verdict is not None
        assert ended.verdict.kind is VerdictKind.MAX_DELIVERIES
        assert bodies([ended]) == [b"poison"]
        self.end(consumer, ended, how=Dead("max_deliveries"))
        assert broker.size("q", Place.DEAD) == 1

    def test_none_means_no_limit(self) -> None:
        broker = self.open(max_deliveries=None)
        self.send(broker, b"x")
        consumer = self.consumer(broker)
        for _ in range(12):
            (held,) = self.take(consumer)
            self.end(consumer, held, how=Requeue(counted=True))
        (held,) = self.take(consumer)
        assert (held.count, held.verdict) == (13, None)


@needs(gates=True)
class GateTests(BrokerBase):
    """Limited messages wait outside the queues, and one is let through at a time."""

    def test_a_settlement_frees_one(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", gate="limit")
        self.send(broker, b"other", gate="another")
        self.send(broker, b"open")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer, 5)
        self.end(consumer, held, frees=["limit"])
        (held,) = self.take(consumer, 5)
        assert bodies([held]) == [b"1"]
        self.end(consumer, held, frees=["limit", "another"])
        assert sorted(bodies(self.take(consumer, 5))) == [b"2", b"other"]

    def test_park_waits_at_the_gate(self, broker: Broker) -> None:
        self.send(broker, b"limited", b"open")
        consumer = self.consumer(broker)
        limited, opened = self.take(consumer, 2)
        self.end(consumer, limited, how=Park("limit"))
        assert list(consumer.reserve(5)) == []
        self.end(consumer, opened, frees=["limit"])
        (again,) = self.take(consumer, 5)
        assert (again.raw, again.count) == (limited.raw, 1)

    def test_what_is_let_through_too_early_waits_on(self, broker: Broker) -> None:
        """A gate and a moment must both be over, whichever is the first."""
        self.send(broker, b"early", gate="limit", not_before=self.later(60))
        self.send(broker, b"late", gate="limit", not_before=self.later(10))
        self.send(broker, b"open", b"open")
        consumer = self.consumer(broker)
        first, second = self.take(consumer, 5)
        self.end(consumer, first, frees=["limit"])
        assert (list(consumer.reserve(5)), broker.size("q", Place.SCHEDULED)) == ([], 1)
        self.clock.advance(61)
        (held,) = self.take(consumer, 5)
        assert bodies([held]) == [b"early"]
        self.end(consumer, second, frees=["limit"])
        (held,) = self.take(consumer, 5)
        assert bodies([held]) == [b"late"]

    def test_a_refused_settlement_frees_nothing(self, broker: Broker) -> None:
        self.send(broker, b"open")
        self.send(broker, b"limited", gate="limit")
        holder, other = self.consumer(broker), self.consumer(broker)
        (held,) = self.take(holder)
        assert self.refuses(other, Settlement(delivery=held, frees=["limit"]))
        assert list(other.reserve(5)) == []


class RepeatTests(BrokerBase):
    """A publish that is repeated is recognised, by the task id or by a key of the caller's."""

    def _publish(self, broker: Broker, **options: Any) -> Published:
        return broker.publish([outgoing(b"x", **options)])[0]

    @needs(dedupe=True)
    def test_the_same_task_id_is_a_duplicate(self, broker: Broker) -> None:
        assert self._publish(broker, task_id="t").status is PublishStatus.QUEUED
        again = self._publish(broker, task_id="t")
        assert (again.status, again.detail) == (PublishStatus.DUPLICATE, "t")
        answers = broker.publish(
            [outgoing(b"y", task_id="u"), outgoing(b"y", task_id="t"), outgoing(b"y", task_id="u")]
        )
        assert [answer.status for answer in answers] == [
            PublishStatus.QUEUED,
            PublishStatus.DUPLICATE,
            PublishStatus.DUPLICATE,
        ]
        assert broker.size("q") == 2

    @needs(dedupe=True)
    def test_another_attempt_of_one_task_is_no_repeat(self, broker: Broker) -> None:
        """A retry has the id of its task, and a publish of its own that may have to be repeated."""
        for attempt in ("", "1", "2"):
            sent = outgoing(task_id="t", attempt=attempt)
            assert broker.publish([sent])[0].status is PublishStatus.QUEUED
            repeat = broker.publish([sent])[0]
            assert (repeat.status, repeat.detail) == (PublishStatus.DUPLICATE, "t")
            assert broker.publish([sent, outgoing()])[0].status is PublishStatus.DUPLICATE
        assert broker.size("q") == 6

    @needs(dedupe=True)
    def test_it_is_recognised_after_it_was_settled(self, broker: Broker) -> None:
        self._publish(broker, task_id="t")
        assert self.drain(broker) == [b"x"]
        assert self._publish(broker, task_id="t").status is PublishStatus.DUPLICATE

    def test_the_window_ends(self) -> None:
        broker = self.open(publish_dedupe=0.05)
        self._publish(broker, task_id="t")
        self.clock.advance(0.06)
        until(lambda: self._publish(broker, task_id="t").status is PublishStatus.QUEUED)

    def test_it_can_be_turned_off(self) -> None:
        broker = self.open(publish_dedupe=0)
        assert [self._publish(broker, task_id="t").status for _ in range(2)] == [PublishStatus.QUEUED] * 2

    @needs(dedupe=True)
    def test_a_unique_key_is_taken_until_it_is_freed(self, broker: Broker) -> None:
        assert self._publish(broker, task_id="a", unique="report:7").status is PublishStatus.QUEUED
        taken = self._publish(broker, task_id="b", unique="report:7")
        assert (taken.status, taken.detail) == (PublishStatus.DUPLICATE, "a")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer, 5)
        assert self._publish(broker, task_id="c", unique="report:7").status is PublishStatus.DUPLICATE
        self.end(consumer, held, frees=["report:7"])
        assert self._publish(broker, task_id="d", unique="report:7").status is PublishStatus.QUEUED

    @needs(dedupe=True)
    def test_a_refused_duplicate_takes_no_task_id(self, broker: Broker) -> None:
        self._publish(broker, task_id="a", unique="k")
        self._publish(broker, task_id="b", unique="k")
        assert self._publish(broker, task_id="b").status is PublishStatus.QUEUED

    @needs(dedupe=True)
    def test_a_unique_key_frees_itself(self, broker: Broker) -> None:
        self._publish(broker, unique="k", unique_ttl=0.05)
        self.clock.advance(0.06)
        until(lambda: self._publish(broker, unique="k", unique_ttl=60).status is PublishStatus.QUEUED)
        assert self._publish(broker, unique="k").status is PublishStatus.DUPLICATE
