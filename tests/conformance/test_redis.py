"""What only Redis has: lost answers, restarts, Celery beside us on the same keys, and clocks that go back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from umbel.backends.redis import RedisBackend
from umbel.brokers.redis import RedisBroker
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BrokerError, LeaseLost, OperationalError, PublishUnknown
from umbel.interfaces import Begin, Delay, Outgoing, Place, PublishStatus, Requeue, Settlement, StoreLocation
from umbel.message import Message, decode_envelope
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing
from umbel.testing.broker_results import part, record
from umbel.testing.servers import RedisServer


class Lossy:
    """Stands between a client and the server, and loses answers when told to: the command runs, the answer does not
    arrive. Ended by leaving its ``with``.
    """

    def __init__(self, url: str) -> None:
        self._to = url.removeprefix("redis://").partition("/")[0].rsplit(":", 1)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listening]
        self._threads: list[threading.Thread] = []
        self._losing = ""
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"

    def lose_answer_to(self, word: str) -> None:
        """Close the connection instead of passing the next answer to a command with this word."""
        self._losing = word

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection((self._to[0], int(self._to[1])))
                self._open += [client, server]
                self._start(self._carry, client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._start(self._answer, client, server)
            while data := client.recv(65536):
                if self._losing and self._losing.encode() in data:
                    self._losing = ""
                    server.sendall(data)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(data)

    @staticmethod
    def _answer(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Lossy:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for opened in self._open:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)
        for opened in self._open:
            opened.close()


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


def opened(closing: contextlib.ExitStack, url: str, clock: Any = SYSTEM_CLOCK, **options: Any) -> RedisBroker:
    broker = RedisBroker(url, options=options, clock=clock)
    broker.open()
    closing.callback(broker.close)
    return broker


def consumer_of(closing: contextlib.ExitStack, broker: RedisBroker, *queues: str) -> tuple[Any, Any, str]:
    leases = broker.leases()
    closing.callback(leases.close)
    id = leases.register("node")
    consumer = broker.consumer(id, list(queues or ("q",)))
    closing.callback(consumer.close)
    return consumer, leases, id


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


class TestClocks:
    """A wall clock may jump either way."""

    def test_a_clock_that_went_back_does_not_keep_the_dead_alive(self, closing: Any, redis_url: str) -> None:
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
        from datetime import UTC, datetime, timedelta

        broker = opened(closing, redis_url)
        consumer, _, _ = consumer_of(closing, broker)
        broker.publish([outgoing(b"x", not_before=datetime.now(UTC) + timedelta(milliseconds=60))])
        assert list(consumer.reserve(1)) == []
        while not (batch := consumer.reserve(1)):
            consumer.wait(5.0)
        assert bodies(batch) == [b"x"]


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

        from umbel.interfaces import QueueSpec

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

    def test_retries_of_one_id_are_no_repeats(self, closing: Any, redis_url: str) -> None:
        broker = opened(closing, redis_url)
        for retries in (0, 1, 2):
            message = outgoing(b"x", task_id="t")
            message.message.headers["retries"] = retries
            assert broker.publish([message])[0].status is PublishStatus.QUEUED
            assert broker.publish([message])[0].detail == "t"
            assert broker.publish([message, outgoing(b"y")])[0].detail == "t"
