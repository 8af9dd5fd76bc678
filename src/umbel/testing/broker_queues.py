"""The broker suite, part 1: publishing, order, the schedule, waiting, and looking without taking."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from umbel.interfaces import Broker, Dead, Place, PublishStatus, QueueSpec
from umbel.testing.broker_base import BrokerBase, bodies, body, needs, outgoing

MIB = 1024 * 1024


class QueueTests(BrokerBase):
    """Messages go through queues in order, by priority, and no earlier than they may."""

    top_priority = 0  # the number that goes first: 0 as on Redis

    def test_publish_answers_for_each_message(self, broker: Broker) -> None:
        answers = broker.publish([outgoing(b"a"), outgoing(b"b")])
        assert [answer.status for answer in answers] == [PublishStatus.QUEUED] * 2
        assert list(broker.publish([])) == []

    def test_order_within_a_queue(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2")
        self.send(broker, b"3")
        consumer = self.consumer(broker)
        assert bodies(self.take(consumer, 9)) == [b"1", b"2", b"3"]

    def test_the_message_arrives_as_it_was_sent(self, broker: Broker) -> None:
        (sent,) = self.send(broker, b"\x00\xff binary")
        (held,) = self.take(self.consumer(broker))
        assert (held.queue, held.count, held.redelivered, held.verdict) == ("q", 1, False, None)
        assert body(held) == b"\x00\xff binary"
        (seen,) = broker.peek("q", place=Place.HELD)
        assert body(seen) == body(held)
        assert sent.task_id.encode() in held.raw or held.message is not None

    @needs(priorities=range(2, 256))
    def test_priority_goes_first(self, broker: Broker) -> None:
        low = 9 - self.top_priority
        self.send(broker, b"late 1", priority=low)
        self.send(broker, b"soon 1", priority=self.top_priority)
        self.send(broker, b"late 2", priority=low)
        self.send(broker, b"soon 2", priority=self.top_priority)
        assert self.drain(broker) == [b"soon 1", b"soon 2", b"late 1", b"late 2"]

    def test_size_counts_every_priority(self, broker: Broker) -> None:
        for priority in (0, 3, 5, 9):
            self.send(broker, b"x", priority=priority)
        assert broker.size("q") == 4
        assert len(broker.peek("q")) == 4
        assert broker.purge("q") == 4

    def test_a_held_message_is_invisible(self, broker: Broker) -> None:
        self.send(broker, b"x")
        first, second = self.consumer(broker), self.consumer(broker)
        assert bodies(first.reserve(5)) == [b"x"]
        assert list(second.reserve(5)) == []
        assert list(first.reserve(5)) == []

    def test_reserve_takes_no_more_than_its_limit(self, broker: Broker) -> None:
        self.send(broker, *[b"x"] * 5)
        consumer = self.consumer(broker)
        assert len(consumer.reserve(3)) == 3
        assert list(consumer.reserve(0)) == []

    def test_queues_take_turns(self, broker: Broker) -> None:
        self.send(broker, *[b"long"] * 20)
        self.send(broker, b"short", queue="r")
        consumer = self.consumer(broker, "q", "r")
        assert b"short" in [body(consumer.reserve(1)[0]) for _ in range(3)]

    def test_only_its_own_queues_are_read(self, broker: Broker) -> None:
        self.send(broker, b"q")
        self.send(broker, b"r", queue="r")
        assert bodies(self.take(self.consumer(broker, "r"), 5)) == [b"r"]

    def test_a_batch_ends_at_one_mebibyte(self, broker: Broker) -> None:
        self.send(broker, *[b"x" * (300 * 1024)] * 8)
        batch = self.consumer(broker).reserve(8)
        assert 1 <= len(batch) < 8
        assert sum(len(held.raw) for held in batch[:-1]) <= MIB

    @pytest.mark.parametrize("content", [b"", "žlutý 🐎".encode(), b"x" * MIB], ids=["empty", "unicode", "1 MiB"])
    def test_any_body(self, broker: Broker, content: bytes) -> None:
        self.send(broker, content)
        assert self.drain(broker) == [content]

    def test_names_may_be_any_text(self, broker: Broker) -> None:
        broker.declare([QueueSpec(name="fronta č. 1/'x'\"")])
        self.send(broker, b"x", queue="fronta č. 1/'x'\"", task_id="úloha:1 {x}")
        assert self.drain(broker, "fronta č. 1/'x'\"") == [b"x"]

    def test_declaring_again_changes_nothing(self, broker: Broker) -> None:
        self.send(broker, b"x")
        broker.declare([QueueSpec(name="q", max_priority=3)])
        assert broker.size("q") == 1

    def test_size_and_purge(self, broker: Broker) -> None:
        assert (broker.size("q"), broker.purge("q")) == (0, 0)
        self.send(broker, b"1", b"2")
        self.send(broker, b"3", queue="r")
        assert (broker.size("q"), broker.size("r")) == (2, 1)
        assert broker.purge("q") == 2
        assert (broker.size("q"), broker.size("r")) == (0, 1)
        assert self.drain(broker) == [b"3"]

    def test_held_messages_are_counted_apart_and_not_purged(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        assert (broker.size("q"), broker.size("q", Place.HELD), broker.size("r", Place.HELD)) == (1, 1, 0)
        assert broker.purge("q") == 1
        self.end(consumer, held)
        assert broker.size("q", Place.HELD) == 0

    def test_peek_takes_nothing(self, broker: Broker) -> None:
        self.send(broker, b"1", b"2", b"3")
        assert bodies(broker.peek("q", limit=2)) == [b"1", b"2"]
        assert {peeked.queue for peeked in broker.peek("q")} == {"q"}
        assert self.drain(broker) == [b"1", b"2", b"3"]

    def test_dead_letters_can_be_seen_and_purged(self, broker: Broker) -> None:
        self.send(broker, b"bad")
        consumer = self.consumer(broker)
        self.end(consumer, *self.take(consumer), how=Dead("undecodable", "not JSON: 'x'"))
        assert (broker.size("q", Place.DEAD), broker.size("q"), broker.size("r", Place.DEAD)) == (1, 0, 0)
        (dead,) = broker.peek("q", place=Place.DEAD)
        assert (body(dead), dead.reason, dead.detail) == (b"bad", "undecodable", "not JSON: 'x'")
        assert dead.at is not None
        assert list(consumer.reserve(5)) == []
        assert broker.purge("q", Place.DEAD) == 1
        assert broker.size("q", Place.DEAD) == 0


@needs(schedule=True)
class ScheduleTests(BrokerBase):
    """``not_before`` is held to the moment, by the broker and by the clock that it was given."""

    def test_not_before_is_held_to_the_moment(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        self.send(broker, b"later", not_before=self.later(60))
        self.send(broker, b"now")
        assert bodies(self.take(consumer, 5)) == [b"now"]
        self.clock.advance(59.9)
        assert list(consumer.reserve(5)) == []
        self.clock.advance(0.2)
        assert bodies(self.take(consumer, 5)) == [b"later"]

    def test_the_earliest_comes_due_first(self, broker: Broker) -> None:
        for seconds in (30, 10, 20):
            self.send(broker, b"%d" % seconds, not_before=self.later(seconds))
        self.clock.advance(31)
        assert self.drain(broker) == [b"10", b"20", b"30"]

    def test_a_past_moment_is_due_at_once(self, broker: Broker) -> None:
        self.send(broker, b"x", not_before=self.later(-1))
        assert self.drain(broker) == [b"x"]

    def test_it_can_be_seen_and_purged(self, broker: Broker) -> None:
        moment = self.later(60)
        self.send(broker, b"x", not_before=moment)
        self.send(broker, b"y", queue="r", not_before=moment)
        assert (broker.size("q", Place.SCHEDULED), broker.size("q")) == (1, 0)
        (seen,) = broker.peek("q", place=Place.SCHEDULED)
        assert body(seen) == b"x"
        assert seen.at is not None
        assert abs((seen.at - moment).total_seconds()) < 0.01
        assert broker.purge("q", Place.SCHEDULED) == 1
        self.clock.advance(61)
        assert self.drain(broker) == [b"y"]

    def test_wait_ends_when_one_comes_due(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        self.send(broker, b"x", not_before=self.later(60))
        assert list(consumer.reserve(5)) == []
        self.clock.advance(61)
        assert consumer.wait(30.0)
        assert bodies(consumer.reserve(5)) == [b"x"]

    def test_only_its_own_queues_come_due_for_a_consumer(self, broker: Broker) -> None:
        self.send(broker, b"x", queue="r", not_before=self.later(1))
        self.clock.advance(2)
        assert list(self.consumer(broker, "q").reserve(5)) == []
        assert bodies(self.consumer(broker, "r").reserve(5)) == [b"x"]


class WaitTests(BrokerBase):
    """A wait ends when there is something to reserve, or when it is told to."""

    def test_wait_ends_on_publish(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        assert list(consumer.reserve(1)) == []
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(consumer.wait, 30.0)
            self.send(broker, b"x")
            assert waiting.result(10)
        assert bodies(consumer.reserve(1)) == [b"x"]

    @needs(shared=True)
    def test_wait_ends_on_publish_by_another_broker(self, broker: Broker) -> None:
        other = self.open()
        consumer = self.consumer(broker)
        assert list(consumer.reserve(1)) == []
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(consumer.wait, 30.0)
            self.send(other, b"x")
            assert waiting.result(10)
        assert bodies(consumer.reserve(1)) == [b"x"]

    def test_wait_returns_at_once_when_a_message_is_there(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        self.send(broker, b"x")
        assert consumer.wait(30.0)

    def test_wait_ends_when_a_message_goes_back(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, first = self.member(broker, leases)
        assert len(first.reserve(1)) == 1
        second = self.consumer(broker)
        assert list(second.reserve(1)) == []
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(second.wait, 30.0)
            leases.release(id)
            assert waiting.result(10)
        assert bodies(second.reserve(1)) == [b"x"]

    def test_wake_ends_a_wait(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        assert list(consumer.reserve(1)) == []
        started = threading.Event()

        def wait() -> None:
            started.set()
            consumer.wait(30.0)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wait)
            assert started.wait(10)
            consumer.wake()
            waiting.result(10)

    def test_a_wake_before_the_wait_ends_it_too(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        assert list(consumer.reserve(1)) == []
        consumer.wake()
        consumer.wake()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(consumer.wait, 30.0).result(10)

    def test_no_timeout_means_no_wait(self, broker: Broker) -> None:
        consumer = self.consumer(broker)
        assert list(consumer.reserve(1)) == []
        consumer.wait(0.0)
