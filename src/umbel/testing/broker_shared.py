"""The broker suite, part 5: the store and the PubSub beside the queues."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from umbel.interfaces import Broker, Place, Store, Subscription, Write
from umbel.message import Message
from umbel.testing.broker_base import BrokerBase, needs, outgoing, until


class StoreTests(BrokerBase):
    """Small shared state with versions, times to live and fenced leases."""

    @pytest.fixture
    def store(self, broker: Broker) -> Store:
        """The store beside the queues."""
        store = broker.store()
        if store is None:
            pytest.skip("this broker has no store")
        return store

    def test_get_put_delete(self, store: Store) -> None:
        assert store.get("k") is None
        version = store.put("k", b"\x00value")
        stored = store.get("k")
        assert stored is not None
        assert (stored.value, stored.version) == (b"\x00value", version)
        assert [store.delete("k"), store.delete("k")] == [True, False]
        assert store.get("k") is None

    def test_a_conditional_put_compares_the_version(self, store: Store) -> None:
        first = store.put("k", b"1", if_version=0)
        assert first
        assert store.put("k", b"2", if_version=0) is None
        second = store.put("k", b"2", if_version=first)
        assert second is not None
        assert second > first
        assert store.put("k", b"3", if_version=first) is None
        stored = store.get("k")
        assert stored is not None
        assert stored.value == b"2"

    def test_a_deleted_key_does_not_bring_its_version_back(self, store: Store) -> None:
        first = store.put("k", b"1")
        store.delete("k")
        assert store.put("k", b"2", if_version=first) is None
        second = store.put("k", b"2", if_version=0)
        assert second != first

    @needs(guarded=True)
    def test_messages_are_published_on_a_condition(self, broker: Broker, store: Store) -> None:
        first = broker.publish_if(Write(key="k", value=b"1", if_version=0), [outgoing(b"[1]"), outgoing(b"[2]")])
        assert first
        assert broker.publish_if(Write(key="k", value=b"1", if_version=0), [outgoing(b"[3]")]) is None
        second = broker.publish_if(Write(key="k", value=b"2", if_version=first), [])
        assert second not in (None, first)
        stored = store.get("k")
        assert stored is not None
        assert (stored.value, stored.version) == (b"2", second)
        assert broker.size("q") == 2

    @needs(guarded=True)
    def test_of_many_who_publish_on_one_condition_one_does(self, broker: Broker) -> None:
        def fire(number: int) -> int | None:
            return broker.publish_if(Write(key="k", value=b"%d" % number, if_version=0), [outgoing(b"[%d]" % number)])

        with ThreadPoolExecutor(8) as pool:
            won = [version for version in pool.map(fire, range(20)) if version is not None]
        assert len(won) == broker.size("q") == 1

    @needs(guarded=True)
    def test_a_repeat_and_a_message_that_waits_are_published_on_a_condition(self, broker: Broker) -> None:
        later = self.clock.now() + timedelta(hours=1)
        once = outgoing(task_id="once")
        broker.publish([once])
        version = broker.publish_if(Write(key="k", value=b"1", if_version=0), [once, outgoing(not_before=later)])
        assert version
        assert broker.size("q") == (1 if broker.features.dedupe else 2)
        assert broker.size("q", Place.SCHEDULED) == 1

    def test_a_key_dies_after_its_time(self, store: Store) -> None:
        store.put("short", b"1", ttl=0.05)
        store.put("long", b"1", ttl=600)
        self.clock.advance(0.06)
        until(lambda: store.get("short") is None)
        assert store.put("short", b"2", if_version=0)
        assert store.get("long") is not None

    def test_a_put_without_ttl_lives_on(self, store: Store) -> None:
        store.put("k", b"1", ttl=0.05)
        store.put("k", b"2")
        store.put("other", b"1", ttl=0.05)
        self.clock.advance(0.06)
        until(lambda: store.get("other") is None)
        assert store.get("k") is not None

    def test_scan(self, store: Store) -> None:
        for key in ("a:1", "a:2", "a%3", "a*4", "b:1"):
            store.put(key, key.encode())
        assert {key: stored.value for key, stored in store.scan("a:")} == {"a:1": b"a:1", "a:2": b"a:2"}
        assert [key for key, _ in store.scan("a*")] == ["a*4"]
        assert [key for key, _ in store.scan("a%")] == ["a%3"]
        assert len(list(store.scan(""))) == 5

    def test_a_lease_has_one_owner_and_a_growing_fence(self, store: Store) -> None:
        first = store.lease("beat", "one", 600)
        assert first is not None
        assert store.lease("beat", "two", 600) is None
        assert store.lease("beat", "one", 600) == first
        assert store.lease("other", "two", 600) is not None

    def test_a_lease_that_is_over_goes_to_the_next(self, store: Store) -> None:
        first = store.lease("beat", "one", 0.05)
        assert first is not None
        self.clock.advance(0.06)
        until(lambda: store.lease("beat", "two", 600) is not None)
        second = store.lease("beat", "two", 600)
        assert second is not None
        assert second > first
        assert store.lease("beat", "one", 600) is None

    def test_threads_race_for_one_put(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda number: store.put("k", b"%d" % number, if_version=0), range(8)))
        assert len([version for version in won if version is not None]) == 1

    def test_keys_do_not_meet_the_queues(self, broker: Broker, store: Store) -> None:
        store.put("q", b"not a message")
        self.send(broker, b"x")
        assert self.drain(broker) == [b"x"]
        stored = store.get("q")
        assert stored is not None
        assert stored.value == b"not a message"


class PubSubTests(BrokerBase):
    """Whoever listens now hears it; nobody else ever does."""

    def _subscribe(self, broker: Broker, exchange: str, pattern: str = "#") -> Subscription:
        subscription = broker.pubsub().subscribe(exchange, pattern=pattern)
        self._opened.append(subscription)
        return subscription

    def _drain(self, subscription: Subscription) -> list[bytes]:
        """Everything up to the message that says it is the last."""
        seen: list[bytes] = []
        while True:
            message = subscription.receive(timeout=10.0)
            assert message is not None
            if message.body == b"end":
                return seen
            seen.append(message.body)

    def test_all_subscribers_hear_it(self, broker: Broker) -> None:
        pubsub = broker.pubsub()
        pubsub.publish("celery.pidbox", Message(body=b"before"))
        first, second = (self._subscribe(broker, "celery.pidbox") for _ in range(2))
        pubsub.publish("celery.pidbox", Message(body=b"\xff1", headers={"clock": 3}, properties={"reply_to": "r"}))
        pubsub.publish("elsewhere", Message(body=b"2"))
        pubsub.publish("celery.pidbox", Message(body=b"end"))
        message = first.receive(timeout=10.0)
        assert message is not None
        assert (message.body, message.headers["clock"], message.properties["reply_to"]) == (b"\xff1", 3, "r")
        assert message.content_type == "application/json"
        assert self._drain(first) == []
        assert self._drain(second) == [b"\xff1"]

    def test_patterns_choose(self, broker: Broker) -> None:
        workers, everything = self._subscribe(broker, "ev", "worker.#"), self._subscribe(broker, "ev")
        pubsub = broker.pubsub()
        for key in ("worker.online", "task.sent", "worker.heartbeat", "workers.x"):
            pubsub.publish("ev", Message(body=key.encode()), routing_key=key)
        pubsub.publish("ev", Message(body=b"end"), routing_key="worker.end")
        assert self._drain(workers) == [b"worker.online", b"worker.heartbeat"]
        assert self._drain(everything) == [b"worker.online", b"task.sent", b"worker.heartbeat", b"workers.x"]

    def test_nothing_to_hear(self, broker: Broker) -> None:
        assert self._subscribe(broker, "ev").receive(timeout=0.0) is None

    def test_a_closed_one_is_left_alone(self, broker: Broker) -> None:
        subscription = broker.pubsub().subscribe("ev")
        subscription.close()
        subscription.close()
        broker.pubsub().publish("ev", Message(body=b"x"))

    @needs(fanout=True)
    def test_another_broker_hears_it(self, broker: Broker) -> None:
        subscription = self._subscribe(self.open(), "ev")
        broker.pubsub().publish("ev", Message(body=b"x"))
        message = subscription.receive(timeout=10.0)
        assert message is not None
        assert message.body == b"x"
