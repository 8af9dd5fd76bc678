"""Celery's own code on the same keys, and which keys are ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from redis_support import consumer_of, opened
from umbel.backends.redis import RedisBackend
from umbel.brokers.redis import RedisBroker
from umbel.brokers.redis import broker as broker_module
from umbel.exceptions import BrokerError
from umbel.interfaces import (
    Begin,
    ChordPart,
    Delay,
    Outgoing,
    Place,
    PublishStatus,
    QueueSpec,
    Requeue,
    Settlement,
    Write,
)
from umbel.message import Message, decode_envelope
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing
from umbel.testing.broker_results import part, record


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


class TestCelery:
    """Celery's own code, on the same keys."""

    def test_kombu_reads_what_we_publish(self, closing: Any, redis_url: str) -> None:
        kombu: Any = pytest.importorskip("kombu")

        broker = opened(closing, redis_url)
        broker.publish([outgoing(b'["late"]', priority=9), outgoing(b'["soon"]')])
        with kombu.Connection(redis_url) as connection:
            simple = connection.SimpleQueue("q")
            for expected in (["soon"], ["late"]):
                message = simple.get(timeout=5)
                assert message.payload == expected
                message.ack()
            simple.close()
        assert broker.size("q") == 0

    def test_we_read_what_kombu_publishes(self, closing: Any, redis_url: str) -> None:
        kombu: Any = pytest.importorskip("kombu")

        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        with kombu.Connection(redis_url) as connection, connection.Producer() as producer:
            producer.publish([[], {}, {}], routing_key="q", headers={"id": "t", "task": "proj.add"}, priority=6)
        (held,) = consumer.reserve(5)
        message = decode_envelope(held.raw)
        assert (message.headers["id"], json.loads(message.body)) == ("t", [[], {}, {}])

    def test_declared_queues_are_bound_for_kombu(self, closing: Any, redis_url: str) -> None:
        kombu: Any = pytest.importorskip("kombu")

        broker = opened(closing, redis_url)
        broker.declare(
            [
                QueueSpec(name="q"),
                QueueSpec(name="media", exchange="files", exchange_type="topic", routing_key="files.*.new"),
            ]
        )
        with kombu.Connection(redis_url) as connection, connection.Producer() as producer:
            exchange = kombu.Exchange("files", type="topic")
            producer.publish({}, exchange=exchange, routing_key="files.a.new", declare=[exchange])
            producer.publish({}, exchange=exchange, routing_key="files.a.old", declare=[exchange])
        assert (broker.size("media"), broker.size("q")) == (1, 0)

    def test_fanout_both_ways(self, closing: Any, redis_url: str) -> None:
        kombu: Any = pytest.importorskip("kombu")

        broker = opened(closing, redis_url)
        subscription = broker.pubsub().subscribe("celery.pidbox")
        closing.callback(subscription.close)
        heard: list[Any] = []
        with kombu.Connection(redis_url) as connection:
            exchange = kombu.Exchange("celery.pidbox", type="fanout", durable=False)
            queue = kombu.Queue("node.celery.pidbox", exchange, auto_delete=True)
            with connection.Consumer(queue, callbacks=[lambda body, message: heard.append(body)], no_ack=True):
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)
                with connection.Producer() as producer:
                    producer.publish({"method": "ping"}, exchange=exchange)
                message = subscription.receive(timeout=10.0)
                assert message is not None
                assert json.loads(message.body) == {"method": "ping"}
                connection.drain_events(timeout=5)
                broker.pubsub().publish("celery.pidbox", Message(body=b'{"method": "pong"}'))
                connection.drain_events(timeout=5)
        assert heard == [{"method": "ping"}, {"method": "pong"}]

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
    def test_celery_reads_our_results_and_counts_our_chord_parts(self, closing: Any, redis_url: str) -> None:
        celery: Any = pytest.importorskip("celery")

        backend = RedisBackend(redis_url, options={"global_keyprefix": "shop"})
        backend.open()
        closing.callback(backend.close)
        app = celery.Celery("shop", backend=redis_url, set_as_current=False)
        app.conf.result_backend_transport_options = {"global_keyprefix": "shop"}
        meta = {"status": "SUCCESS", "result": 7, "traceback": None, "children": [], "date_done": None, "task_id": "t"}
        assert backend.store(record("t", payload=json.dumps(meta).encode()))
        assert app.AsyncResult("t").result == 7
        app.backend.store_result("s", 1, "STARTED")
        assert backend.store(record("s", payload=json.dumps(meta).encode()))
        app.backend.store_result("u", 8, "SUCCESS")
        assert not backend.store(record("u", "FAILURE", b"{}"))
        assert backend.store(record("v", "FAILURE", b'{"result": {"status": "SUCCESS"}, "status": "FAILURE"}'))
        assert not backend.store(record("v", "RETRY", b"{}"))
        app.backend.set_chord_size("g", 2)
        chord = backend.chord("g")
        assert chord.add(part(0)) is None
        assert chord.add(part(1)) == "t1:1"

    def test_results_of_any_serializer_keep_their_state(self, closing: Any, redis_url: str) -> None:
        backend = RedisBackend(redis_url)
        backend.open()
        closing.callback(backend.close)
        assert backend.store(record("t", "SUCCESS", b"\x80\x04 pickled"))
        assert not backend.store(record("t", "FAILURE", b'{"status": "FAILURE"}'))
        backend.forget(["t"])
        assert backend.store(record("t", "STARTED", b'{"status": "STARTED"}'))


class TestKeys:
    """Everything lies under the prefix, and nothing is left behind."""

    def test_the_prefix_is_on_every_key(self, closing: Any, redis_url: str) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url, global_keyprefix="shop.")
        backend = RedisBackend(redis_url, options={"global_keyprefix": "shop."})
        closing.callback(backend.close)
        broker.bind_results(backend.location())
        broker.store().put("k", b"v", ttl=60)
        broker.store().lease("beat", "me", 60)
        broker.publish([outgoing(b"x", unique="u", gate="g"), outgoing(b"y"), outgoing(b"z")])
        consumer, _, _ = consumer_of(closing, broker)
        first, second = consumer.reserve(2)
        consumer.begin([Begin(delivery=first, result=record("t", "STARTED"))])
        consumer.settle([Settlement(delivery=first, how=Requeue(counted=True))])
        consumer.settle([Settlement(delivery=second, how=Delay(FakeClock().now()), result=record("t"), chord=part(0))])
        with redis.Redis.from_url(redis_url) as client:
            keys = [key.decode() for key in client.scan_iter()]
        assert len(keys) > 10
        assert [key for key in keys if not key.startswith("shop.")] == []

    def test_work_that_is_done_leaves_no_message(self, closing: Any, redis_url: str) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url, publish_dedupe=0)
        consumer, leases, id = consumer_of(closing, broker)
        for _ in range(3):
            broker.publish([outgoing(b"x"), outgoing(b"y", not_before=FakeClock().now())])
            while batch := consumer.reserve(10):
                counted = [held for held in batch if held.count == 1]
                done = [held for held in batch if held.count > 1]
                consumer.settle([Settlement(delivery=held, how=Requeue(counted=True)) for held in counted])
                consumer.settle([Settlement(delivery=held) for held in done])
        leases.release(id)
        with redis.Redis.from_url(redis_url) as client:
            keys = {key.decode() for key in client.scan_iter()}
        assert keys <= {"umbel:epoch", "umbel:fence", "umbel:ids"}

    def test_a_key_that_is_no_queue_breaks_nothing(self, closing: Any, redis_url: str) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url)
        with redis.Redis.from_url(redis_url) as client:
            client.set("q", "text")
            for batch in ([outgoing(b"1", task_id="a")], [outgoing(b"1", task_id="b"), outgoing(b"2", task_id="c")]):
                with pytest.raises(BrokerError, match="WRONGTYPE"):
                    broker.publish(batch)
            client.delete("q")
        assert self._statuses(broker, "a", "b", "c") == [PublishStatus.QUEUED] * 3

    def test_a_special_publish_to_it_may_be_repeated(self, closing: Any, redis_url: str) -> None:
        redis: Any = pytest.importorskip("redis")

        broker = opened(closing, redis_url)
        past = FakeClock().now()
        with redis.Redis.from_url(redis_url) as client:
            client.set("q", "text")
            message = outgoing(b"x", task_id="t", not_before=past, unique="u")
            with pytest.raises(BrokerError, match="WRONGTYPE"):
                broker.publish([message])
            with pytest.raises(BrokerError, match="WRONGTYPE"):
                broker.publish_if(Write(key="k", value=b"v", if_version=0), [message])
            assert broker.store().get("k") is None
            client.delete("q")
        assert broker.publish([message])[0].status is PublishStatus.QUEUED

    @staticmethod
    def _statuses(broker: RedisBroker, *ids: str) -> list[PublishStatus]:
        batch: list[Outgoing] = [outgoing(b"x", task_id=id) for id in ids]
        return [answer.status for answer in broker.publish(batch)]


class TestAstray:
    """A queue whose key holds no list: an error in a script is not undone, so nothing else may suffer from it."""

    @pytest.fixture
    def client(self, redis_url: str) -> Iterator[Any]:
        redis: Any = pytest.importorskip("redis")
        with redis.Redis.from_url(redis_url) as client:
            yield client

    @staticmethod
    def _dead(broker: RedisBroker, queue: str) -> list[bytes]:
        letters = broker.dead().page(queue)
        assert all((each.reason, each.detail) == ("unpublishable", "its queue's key holds no list") for each in letters)
        return bodies(letters)

    def test_a_reserve_goes_on_with_the_other_queues(self, closing: Any, redis_url: str, client: Any) -> None:
        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker, "a", "r", "b")
        client.set("r", "text")
        broker.publish([outgoing(b"1", "a"), outgoing(b"2", "a"), outgoing(b"3", "b")])
        taken = [*consumer.reserve(2), *consumer.reserve(2), *consumer.reserve(2)]
        assert sorted(bodies(taken)) == [b"1", b"2", b"3"]
        assert not consumer.settle([Settlement(delivery=held) for held in taken], reserve=1).refused

    def test_what_comes_due_there_stops_nobody(self, closing: Any, redis_url: str, client: Any) -> None:
        clock = FakeClock()
        broker = opened(closing, redis_url, clock)
        consumer, _, _ = consumer_of(closing, broker)
        due = clock.now() + timedelta(seconds=1)
        broker.publish([outgoing(b"astray", "r", not_before=due, priority=3), outgoing(b"here", not_before=due)])
        client.set("r\x06\x163", "text")
        clock.advance(2)
        assert bodies(consumer.reserve(2)) == [b"here"]
        assert self._dead(broker, "r") == [b"astray"]
        assert broker.size("r", Place.SCHEDULED) == 0
        client.delete("r\x06\x163")
        (letter,) = broker.dead().page("r")
        assert list(broker.dead().revive("r", {letter.key: None})) == [letter.key]
        assert client.llen("r\x06\x163") == 1

    def test_a_batch_keeps_its_follow_ups(self, closing: Any, redis_url: str, client: Any) -> None:
        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        broker.publish([outgoing(b"%d" % number) for number in range(4)])
        broker.publish([outgoing(b"gated", "r", gate="g")])
        held = consumer.reserve(4)
        client.set("r", "text")
        past = FakeClock().now()
        settled = consumer.settle(
            [
                Settlement(delivery=held[0], publish=[outgoing(b"astray", "r"), outgoing(b"next", "s")]),
                Settlement(delivery=held[1], publish=[outgoing(b"special", "r", not_before=past)]),
                Settlement(delivery=held[2], frees=["g"]),
                Settlement(delivery=held[3], publish=[outgoing(b"last", "s")]),
            ]
        )
        assert not settled.refused
        assert sorted(self._dead(broker, "r")) == [b"astray", b"gated", b"special"]
        assert bodies(broker.peek("s")) == [b"next", b"last"]
        assert broker.size("q", Place.HELD) == 0

    @pytest.mark.parametrize("counted", [True, False])
    def test_what_is_given_back_is_kept(self, closing: Any, redis_url: str, client: Any, counted: bool) -> None:
        broker = opened(closing, redis_url)
        consumer, leases, id = consumer_of(closing, broker, "r", "q")
        broker.publish([outgoing(b"%d" % number, "r") for number in range(3)])
        broker.publish([outgoing(b"here")])
        held = [*consumer.reserve(2), *consumer.reserve(4)]
        client.set("r", "text")
        first = next(delivery for delivery in held if delivery.queue == "r")
        again = Settlement(delivery=first, how=Requeue(counted=counted))
        assert not consumer.settle([again]).refused
        assert leases.release(id, started=[held[-1].tag]) == 3
        assert sorted(self._dead(broker, "r")) == [b"0", b"1", b"2"]
        assert bodies(broker.peek("q")) == [b"here"]


class TestCosts:
    """What must not grow with the square of what is there, by the server's own count of its commands."""

    @pytest.fixture
    def client(self, redis_url: str) -> Iterator[Any]:
        redis: Any = pytest.importorskip("redis")
        with redis.Redis.from_url(redis_url) as client:
            yield client

    @staticmethod
    def _calls(client: Any, command: str) -> int:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def test_a_schedule_is_taken_out_in_one_pass(self, closing: Any, redis_url: str, client: Any) -> None:
        broker = opened(closing, redis_url)
        due = datetime(2100, 1, 1, tzinfo=UTC)
        broker.publish([outgoing(b"%d" % number, not_before=due) for number in range(1000)])
        shown = broker.peek("q", place=Place.SCHEDULED, limit=1000)
        assert bodies(shown) == [b"%d" % number for number in range(1000)]
        client.config_resetstat()
        # Every second one, the last first: those that stay are in the way.
        assert broker.withdraw("q", shown[::-2]) == 500
        assert self._calls(client, "zrangebyscore") <= 12
        assert bodies(broker.peek("q", place=Place.SCHEDULED, limit=1000)) == [b"%d" % n for n in range(0, 1000, 2)]
        assert broker.withdraw("q", shown) == 500

    def test_a_schedule_is_shown_in_pages(self, closing: Any, redis_url: str, client: Any) -> None:
        broker = opened(closing, redis_url)
        due = datetime(2100, 1, 1, tzinfo=UTC)
        broker.publish([outgoing(b"%d" % number, not_before=due) for number in range(1200)])
        client.config_resetstat()
        shown = broker.peek("q", place=Place.SCHEDULED, limit=1100)
        assert bodies(shown) == [b"%d" % number for number in range(1100)]
        assert self._calls(client, "zrange") == 3
        assert len(broker.peek("q", place=Place.SCHEDULED, limit=5000)) == 1200

    @pytest.mark.parametrize("gone", ["head", "page", "last"])
    def test_pages_miss_nothing_when_the_head_goes(
        self, closing: Any, redis_url: str, client: Any, gone: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker = opened(closing, redis_url)
        client.zadd("z", {f"{number:04}": number // 7 for number in range(1000)})
        monkeypatch.setattr(broker_module, "BATCH", 100)
        with broker._desk.link() as link:
            call, taken = link.call, False

            class Moving:
                """Takes something away once the first page was read."""

                @staticmethod
                def call(*words: Any) -> Any:
                    nonlocal taken
                    if words[0] == "ZRANK" and not taken:
                        taken = True
                        first, last = {"head": (0, 49), "page": (0, 120), "last": (99, 99)}[gone]
                        client.zremrangebyrank("z", first, last)
                    return call(*words)

            rows = [int(row) for row, _ in broker_module._head(Moving, "z", 2000)]  # type: ignore[arg-type]
        lost = range(100, 121) if gone == "page" else ()
        assert rows == [number for number in range(1000) if number not in lost]

    def test_a_part_without_an_index_costs_no_look_at_the_others(
        self, closing: Any, redis_url: str, client: Any
    ) -> None:
        backend = RedisBackend(redis_url)
        backend.open()
        closing.callback(backend.close)
        chord = backend.chord("g")
        chord.begin(5, expires=3600)
        client.config_resetstat()
        for number in range(3):
            assert chord.add(self._part(number)) is None
        assert chord.add(self._part(2)) is None
        assert self._calls(client, "zrangebyscore") == 0
        # Celery before 5.7 counts in the sorted set alone: what it has counted is not counted again.
        client.zadd("celery-taskset-meta-g.j", {self._part(3).payload: "+inf"})
        assert chord.add(self._part(3)) is None
        assert len(list(chord.parts())) == 4
        assert chord.add(self._part(4)) == "t4:+inf"

    @staticmethod
    def _part(number: int) -> ChordPart:
        return ChordPart(
            group_id="g",
            index=None,
            task_id=f"t{number}",
            state="SUCCESS",
            payload=b'[1, "t%d", "SUCCESS", %d]' % (number, number),
            expires=3600,
        )
