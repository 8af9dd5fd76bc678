"""What only Redis has: lost answers, restarts, tracking, and clocks that go back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from redis_support import Lossy, consumer_of, opened
from umbel.backends.redis import RedisBackend
from umbel.brokers.redis import leases as leases_module
from umbel.exceptions import BrokerError, LeaseLost, OperationalError, PublishUnknown
from umbel.interfaces import Place, PublishStatus, Requeue, Settlement, StoreLocation
from umbel.message import Message
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing
from umbel.testing.broker_results import record
from umbel.testing.servers import RedisServer


@pytest.fixture
def lossy(redis_url: str) -> Iterator[Lossy]:
    with Lossy(redis_url) as lossy:
        yield lossy


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as server:
        yield server


class TestLostAnswers:
    """The command was applied and nobody was told."""

    def test_a_publish_is_unknown_and_its_repeat_a_duplicate(self, closing: Any, lossy: Lossy) -> None:
        broker = opened(closing, lossy.url)
        broker.publish([outgoing(b"the script is there from now on")])
        lossy.lose_answer_to("EVALSHA")
        message = outgoing(b"x", task_id="t")
        with pytest.raises(PublishUnknown) as caught:
            broker.publish([message])
        assert caught.value.task_id == "t"
        assert broker.publish([message])[0].status is PublishStatus.DUPLICATE
        assert broker.size("q") == 2

    def test_a_batch_names_the_first_that_is_unknown(self, closing: Any, lossy: Lossy) -> None:
        broker = opened(closing, lossy.url)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        broker.purge("q")
        batch = [outgoing(b"x", task_id=f"t{number}") for number in range(700)]
        lossy.lose_answer_to("t600")
        with pytest.raises(PublishUnknown) as caught:
            broker.publish(batch)
        assert caught.value.task_id == "t500"
        statuses = [answer.status for answer in broker.publish(batch)]
        assert statuses[:500] == [PublishStatus.DUPLICATE] * 500
        assert broker.size("q") == 700

    def test_what_was_reserved_is_not_forgotten(self, closing: Any, lossy: Lossy) -> None:
        broker = opened(closing, lossy.url)
        consumer, _, _ = consumer_of(closing, broker)
        consumer.reserve(1)
        broker.publish([outgoing(content) for content in (b"1", b"2", b"3")])
        lossy.lose_answer_to("EVALSHA")
        with pytest.raises(OperationalError):
            consumer.reserve(2)
        assert (broker.size("q"), broker.size("q", Place.HELD)) == (1, 2)
        first = consumer.reserve(1)
        second = consumer.reserve(5)
        third = consumer.reserve(5)
        assert bodies([*first, *second, *third]) == [b"1", b"2", b"3"]
        assert not consumer.settle([Settlement(delivery=held) for held in (*first, *second, *third)]).refused
        assert broker.size("q", Place.HELD) == 0

    def test_a_settle_keeps_its_answer_when_the_reserve_behind_it_fails(self, closing: Any, lossy: Lossy) -> None:
        broker = opened(closing, lossy.url)
        consumer, leases, id = consumer_of(closing, broker)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        (held,) = consumer.reserve(1)
        consumer._recall = True  # as once a minute, and after each new connection
        lossy.lose_answer_to("HKEYS")
        settled = consumer.settle([Settlement(delivery=held)], reserve=1)
        assert (list(settled.refused), list(settled.deliveries)) == ([], [])
        assert consumer.wait(30.0)
        assert bodies([*consumer.reserve(1), *consumer.reserve(1)]) == [b"2"]
        leases.release(id)
        with pytest.raises(LeaseLost):
            consumer.settle([Settlement(delivery=held)], reserve=1)

    def test_a_repeated_settle_counts_as_applied(self, closing: Any, lossy: Lossy) -> None:
        broker = opened(closing, lossy.url)
        consumer, leases, id = consumer_of(closing, broker)
        broker.publish([outgoing(content) for content in (b"1", b"2")])
        (held,) = consumer.reserve(1)
        settlement = Settlement(delivery=held, publish=[outgoing(b"next", "r")])
        lossy.lose_answer_to(held.tag)
        with pytest.raises(OperationalError):
            # Applied or not: that depends on whether the server knew the script.
            consumer.settle([settlement], reserve=1)
        settled = consumer.settle([settlement], reserve=1)
        assert not settled.refused
        lossy.lose_answer_to(settled.deliveries[0].tag)
        again = Settlement(delivery=settled.deliveries[0], publish=[outgoing(b"next", "r")])
        with pytest.raises(OperationalError):
            consumer.settle([again])
        assert not consumer.settle([again]).refused
        assert broker.size("r") == 2
        assert list(consumer.settle([again]).refused) == [again.delivery.tag]
        leases.release(id)
        with pytest.raises(LeaseLost):
            consumer.settle([again])


class TestRestarts:
    """The server goes and comes back, with what it has confirmed."""

    def test_everything_goes_on(self, closing: Any, server: RedisServer) -> None:
        broker = opened(closing, server.url)
        consumer, leases, id = consumer_of(closing, broker)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        (held,) = consumer.reserve(1)
        assert held.raw
        store = broker.store()
        subscription = broker.pubsub().subscribe("ev")
        closing.callback(subscription.close)
        server.kill()
        with pytest.raises(OperationalError):
            broker.publish([outgoing(b"lost")])
        with pytest.raises(OperationalError):
            consumer.settle([Settlement(delivery=held)])
        server.start()
        assert broker.publish([outgoing(b"3")])[0].status is PublishStatus.QUEUED
        assert not leases.renew([id])
        assert bodies(consumer.settle([Settlement(delivery=held)], reserve=5).deliveries) == [b"2", b"3"]
        assert store.put("k", b"v")
        with contextlib.suppress(OperationalError):
            subscription.receive(timeout=0.0)
        assert subscription.receive(timeout=0.0) is None
        broker.pubsub().publish("ev", Message(body=b"back"))
        message = subscription.receive(timeout=10.0)
        assert message is not None
        assert message.body == b"back"

    def test_a_watcher_reads_again(self, closing: Any, server: RedisServer) -> None:
        backend = RedisBackend(server.url)
        backend.open()
        closing.callback(backend.close)
        watcher = backend.watcher()
        closing.callback(watcher.close)
        watcher.add(["t"])
        assert list(watcher.receive(0.0)) == []
        server.restart()
        backend.store(record("t", payload=b"done"))
        found: list[Any] = []
        while not found:
            with contextlib.suppress(OperationalError):
                found += watcher.receive(5.0)
        assert found == [("t", b"done")]

    def test_another_server_is_another_place(self, closing: Any, server: RedisServer, redis_url: str) -> None:
        broker = opened(closing, server.url)
        backend = RedisBackend(redis_url)
        closing.callback(backend.close)
        assert not broker.bind_results(backend.location())
        broker.publish([outgoing(b"x")])
        consumer, _, _ = consumer_of(closing, broker)
        (held,) = consumer.reserve(1)
        with pytest.raises(BrokerError, match="bind_results"):
            consumer.settle([Settlement(delivery=held, result=record("t"))])
        assert not broker.bind_results(StoreLocation(scheme="redis", identity=""))


class TestOlderData:
    """A server that comes back from a snapshot, or a replica that takes over, has forgotten the latest steps."""

    def test_a_settle_that_vanished_is_found_again(self, closing: Any, redis_url: str) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url)
        consumer, _, id = consumer_of(closing, broker)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        first, second = consumer.reserve(2)
        assert consumer.reserve(1) == []  # a new connection has taken stock
        with redis.Redis.from_url(redis_url) as client:
            before = client.hgetall(f"umbel:inf:{id}")
            consumer.settle([Settlement(delivery=first)])
            client.hset(f"umbel:inf:{id}", mapping=before)
        assert consumer.reserve(1) == []  # the connection is as it was: nobody has a reason to ask
        consumer._link.drop()
        assert consumer.reserve(8) == []  # which makes the new connection
        (again,) = consumer.reserve(8)
        assert (again.tag, again.raw) == (first.tag, first.raw)
        assert consumer.settle([Settlement(delivery=again), Settlement(delivery=second)]).refused == []
        assert broker.size("q", Place.HELD) == broker.size("q") == 0

    def test_it_is_looked_for_without_a_new_connection_too(
        self, closing: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url)
        consumer, _, id = consumer_of(closing, broker)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        (first,) = consumer.reserve(1)
        with redis.Redis.from_url(redis_url) as client:
            before = client.hgetall(f"umbel:inf:{id}")
            (second,) = consumer.settle([Settlement(delivery=first)], reserve=1).deliveries
            client.hset(f"umbel:inf:{id}", mapping=before)
        monkeypatch.setattr(consumer, "_inventory_at", 0.0)
        settled = consumer.settle([Settlement(delivery=second)], reserve=4)
        assert [delivery.raw for delivery in settled.deliveries] == [first.raw]


class TestWaiting:
    """A wait without tracking, and one that has nothing to say."""

    def test_a_caller_that_does_not_reserve_is_told_once(self, closing: Any, redis_url: str) -> None:
        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        assert consumer.wait(30.0)
        assert not consumer.wait(0.01)
        assert list(consumer.reserve(1)) == []
        broker.publish([outgoing(b"x")])
        assert consumer.wait(30.0)
        assert not consumer.wait(0.01)

    def test_its_own_changes_are_worth_a_reserve(self, closing: Any, redis_url: str) -> None:
        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        broker.publish([outgoing(b"x")])
        (held,) = consumer.reserve(1)
        assert list(consumer.reserve(1)) == []
        consumer.settle([Settlement(delivery=held, how=Requeue())])
        assert consumer.wait(30.0)
        assert len(consumer.reserve(1)) == 1

    def test_a_push_that_came_with_an_answer_is_heard(self, closing: Any, redis_url: str) -> None:
        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        broker.publish([outgoing(b"held", "q")])
        (held,) = consumer.reserve(1)
        assert list(consumer.reserve(1)) == []
        broker.publish([outgoing(b"x")])
        consumer.settle([Settlement(delivery=held)])
        assert consumer.wait(30.0)
        assert bodies(consumer.reserve(1)) == [b"x"]

    def test_any_producer_ends_it(self, closing: Any, redis_url: str) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker, "other", "q")
        assert list(consumer.reserve(1)) == []
        with redis.Redis.from_url(redis_url) as client:
            client.lpush("q\x06\x169", b"{}")
        assert consumer.wait(30.0)
        (held,) = consumer.reserve(1)
        assert (held.raw, held.queue) == (b"{}", "q")


def test_what_was_applied_is_told_although_the_lease_ended(
    closing: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its holds are reaped; over a new connection it looks for holds before it reserves."""
    monkeypatch.setattr(leases_module, "BATCH", 1)
    clock = FakeClock()
    broker = opened(closing, redis_url, clock)
    broker.publish([outgoing(b"%d" % number) for number in range(3)])
    consumer, leases, _ = consumer_of(closing, broker)
    first, second, _ = consumer.reserve(3)
    clock.advance(31)
    (suspect,) = leases.suspects()
    assert (leases.reap(suspect).left, broker.size("q")) == (2, 1)
    consumer._link.drop()
    assert not consumer.settle([Settlement(delivery=first)]).refused
    settled = consumer.settle([Settlement(delivery=second)], reserve=1)
    assert not settled.refused and not settled.deliveries
    assert broker.size("q", Place.HELD) == 0
    with pytest.raises(LeaseLost):
        consumer.reserve(1)


class TestClocks:
    """A wall clock may jump either way."""

    def test_a_clock_that_went_back_does_not_keep_the_dead_alive(self, closing: Any, redis_url: str) -> None:
        """F19. Its lease ends in a future that does not come; it is dead by how long it was silent."""
        clock = FakeClock()
        broker = opened(closing, redis_url, clock)
        broker.publish([outgoing(b"x")])
        consumer, leases, id = consumer_of(closing, broker)
        consumer.reserve(1)
        clock.jump(-86400)
        assert list(leases.suspects()) == []
        clock.advance(91)
        (suspect,) = leases.suspects()
        assert (suspect.id, leases.reap(suspect).moved) == (id, 1)
        assert broker.size("q") == 1

    def test_fences_and_ids_grow_although_the_clock_went_back(self, closing: Any, redis_url: str) -> None:
        clock = FakeClock()
        broker = opened(closing, redis_url, clock)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        consumer, leases, id = consumer_of(closing, broker)
        (first,) = consumer.reserve(1)
        clock.jump(-86400)
        (second,) = consumer.reserve(1)
        assert second.fence > first.fence
        assert int(leases.register("node").split(":")[1]) > int(id.split(":")[1])

    def test_later_redeliveries_wait(self, closing: Any, redis_url: str) -> None:
        clock = FakeClock()
        broker = opened(closing, redis_url, clock, redelivery_backoff=(1, 5))
        broker.publish([outgoing(b"x")])
        for pause in (0, 1, 5):
            clock.advance(pause - 0.1)
            if pause:
                consumer, _, _ = consumer_of(closing, broker)
                assert list(consumer.reserve(1)) == []
            clock.advance(0.2)
            consumer, leases, id = consumer_of(closing, broker)
            (held,) = consumer.reserve(1)
            leases.release(id, started=[held.tag])
            if not pause:
                consumer, leases, id = consumer_of(closing, broker)
                (held,) = consumer.reserve(1)
                assert held.count == 2
                leases.release(id, started=[held.tag])
        assert broker.size("q", Place.SCHEDULED) == 1

    def test_the_server_s_own_clock(self, closing: Any, redis_url: str) -> None:
        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        broker.publish([outgoing(b"x", not_before=datetime.now(UTC) + timedelta(milliseconds=60))])
        assert list(consumer.reserve(1)) == []
        while not (batch := consumer.reserve(1)):
            consumer.wait(5.0)
        assert bodies(batch) == [b"x"]
