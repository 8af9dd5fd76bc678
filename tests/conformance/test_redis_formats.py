"""Celery's own code on the same keys, and which keys are ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from redis_support import consumer_of, opened
from umbel.backends.redis import RedisBackend
from umbel.brokers.redis import RedisBroker
from umbel.exceptions import BrokerError
from umbel.interfaces import Begin, Delay, Outgoing, PublishStatus, QueueSpec, Requeue, Settlement
from umbel.message import Message, decode_envelope
from umbel.testing import FakeClock
from umbel.testing.broker_base import outgoing
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

    @staticmethod
    def _statuses(broker: RedisBroker, *ids: str) -> list[PublishStatus]:
        batch: list[Outgoing] = [outgoing(b"x", task_id=id) for id in ids]
        return [answer.status for answer in broker.publish(batch)]
