"""What only RabbitMQ has: exchanges, what is declared already, delays, returns, and a lease by connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rabbitmq_support import Rabbit, close_connections, routed, settle, take
from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import parse_url
from umbel.brokers.rabbitmq.broker import RabbitBroker
from umbel.brokers.rabbitmq.consumer import RabbitConsumer
from umbel.brokers.rabbitmq.link import ChannelClosed
from umbel.brokers.rabbitmq.topology import _parts, delay_route
from umbel.exceptions import EncodeError, ImproperlyConfigured, OperationalError, PublishUnknown
from umbel.interfaces import (
    ACK,
    Begin,
    Dead,
    Delay,
    Outgoing,
    Place,
    PublishStatus,
    QueueSpec,
    Requeue,
    Settlement,
    Verdict,
    VerdictKind,
)
from umbel.message import Message
from umbel.testing.broker_base import bodies, outgoing, until
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RabbitMQServer

QUORUM = QueueSpec(name="q", arguments={"x-queue-type": "quorum"})


class TestRouting:
    """Exchanges decide which queue a message reaches."""

    def test_a_topic_exchange(self, rabbit: Rabbit) -> None:
        specs = [
            QueueSpec(name="eu", exchange="orders", exchange_type="topic", routing_key="order.eu.#"),
            QueueSpec(name="all", exchange="orders", exchange_type="topic", routing_key="order.*.new"),
        ]
        broker = rabbit.broker(*specs)
        broker.publish([routed(b"1", "eu", "orders", "order.eu.new")])
        broker.publish([routed(b"2", "eu", "orders", "order.eu.x.y")])
        assert (bodies(broker.peek("eu")), bodies(broker.peek("all"))) == ([b"1", b"2"], [b"1"])

    def test_a_fanout_exchange(self, rabbit: Rabbit) -> None:
        specs = [QueueSpec(name=name, exchange="all", exchange_type="fanout") for name in ("q", "r")]
        broker = rabbit.broker(*specs)
        broker.publish([routed(b"x", "q", "all", "")])
        assert (broker.size("q"), broker.size("r")) == (1, 1)

    def test_who_publishes_first_declares(self, rabbit: Rabbit) -> None:
        spec = QueueSpec(name="q", exchange="e", exchange_type="topic", routing_key="a.#", max_priority=5)
        broker = rabbit.broker(find_queue={"q": spec}.get)
        assert broker.publish([routed(b"x", "q", "e", "a.b")])[0].status is PublishStatus.QUEUED
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    def test_a_queue_that_was_deleted_is_declared_again(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"1")])
        channel = rabbit.link().channel()
        channel.call(frames.QUEUE_DELETE, (0, "q", False, False, False), frames.QUEUE_DELETE_OK)
        assert [each.status for each in broker.publish([outgoing(b"2"), outgoing(b"3")])] == [PublishStatus.QUEUED] * 2
        assert broker.size("q") == 2

    def test_nobody_takes_it(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q", exchange="e", exchange_type="topic", routing_key="a.#"))
        good, bad = routed(b"1", "q", "e", "a.b"), routed(b"2", "q", "e", "z")
        first, second, third = broker.publish([good, bad, good])
        assert (first.status, third.status) == (PublishStatus.QUEUED, PublishStatus.QUEUED)
        assert second.status is PublishStatus.REFUSED
        assert "no queue takes what goes to exchange 'e' with key 'z'" in second.detail
        assert broker.size("q") == 2

    def test_there_is_no_such_exchange(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        lost, good = broker.publish([routed(b"1", "q", "nowhere", "k"), outgoing(b"2")])
        assert (lost.status, good.status) == (PublishStatus.REFUSED, PublishStatus.QUEUED)
        assert "there is no exchange 'nowhere'" in lost.detail

    def test_an_exchange_that_was_deleted_is_declared_again(self, rabbit: Rabbit) -> None:
        spec = QueueSpec(name="q", exchange="e", exchange_type="topic", routing_key="k")
        broker = rabbit.broker(spec)
        broker.publish([routed(b"1", "q", "e", "k")])
        channel = rabbit.link().channel()
        # exchange.delete, which we never send ourselves
        name = b"\x01e"
        payload = b"\x00\x28\x00\x14\x00\x00" + name + b"\x00"
        channel.ask(frames.HEAD.pack(1, 1, len(payload)) + payload + b"\xce", (40, 21))
        with pytest.raises(PublishUnknown, match="no exchange 'e'"):
            broker.publish([routed(b"2", "q", "e", "k")])
        assert broker.publish([routed(b"3", "q", "e", "k")])[0].status is PublishStatus.QUEUED
        assert bodies(broker.peek("q")) == [b"1", b"3"]

    def test_priorities_are_those_of_the_queue(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q", max_priority=9), QueueSpec(name="plain"))
        for queue in ("q", "plain"):
            broker.publish([outgoing(b"%d" % number, queue, priority=number) for number in (1, 9, 4)])
        assert bodies(take(rabbit.consumer(broker, "q"), 3)) == [b"9", b"4", b"1"]
        assert bodies(take(rabbit.consumer(broker, "plain"), 3)) == [b"1", b"9", b"4"]

    def test_a_message_keeps_what_it_says(self, rabbit: Rabbit) -> None:
        headers = {
            "task": "t", "id": "1", "big": 2**40, "float": 1.5, "yes": True, "none": None, "list": [1, "ž", [None]],
            "table": {"k": {"n": -1}}, "text": "žluť", "bytes": b"\xff\x00",
        }  # fmt: skip
        properties = {"correlation_id": "1", "reply_to": "r", "priority": 3, "delivery_mode": 1, "expiration": "60000"}
        message = Message(body=b"\x00", content_type="application/x-msgpack", headers=headers, properties=properties)
        message.content_encoding = "binary"
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([Outgoing(message=message, task_id="1", queue="q", priority=3)])
        (held,) = take(rabbit.consumer(broker))
        assert held.message is not None
        assert held.message.headers == headers
        assert {name: held.message.properties[name] for name in properties} == properties
        assert (held.message.content_type, held.message.content_encoding) == ("application/x-msgpack", "binary")
        assert held.message.properties["delivery_info"] == {"exchange": "", "routing_key": "q"}

    @pytest.mark.parametrize("headers", [{"x": object()}, {"n" * 300: 1}, {"x": 2**70}], ids=["type", "name", "number"])
    def test_what_amqp_cannot_carry_is_told_and_harms_nobody(self, rabbit: Rabbit, headers: dict[str, Any]) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        message = Message(body=b"", headers=headers)
        with pytest.raises(EncodeError, match="AMQP cannot carry"):
            broker.publish([outgoing(b"before"), Outgoing(message=message, task_id="1", queue="q")])
        assert broker.size("q") == 0
        assert broker.publish([outgoing(b"x")])[0].status is PublishStatus.QUEUED

    @pytest.mark.parametrize("options", [{"gate": "g"}, {"unique": "k"}], ids=["gate", "unique"])
    def test_what_it_cannot_do_is_refused_by_name(self, rabbit: Rabbit, options: dict[str, Any]) -> None:
        (outcome,) = rabbit.broker(QueueSpec(name="q")).publish([outgoing(b"x", **options)])
        assert outcome.status is PublishStatus.REFUSED
        assert "RabbitMQ" in outcome.detail

    def test_thousands_are_confirmed_in_one_go(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        batch = [outgoing(b"x" * 200) for _ in range(3000)]
        assert {each.status for each in broker.publish(batch, timeout=30)} == {PublishStatus.QUEUED}
        assert broker.size("q") == 3000


class TestWhatIsThere:
    """What was declared by others is used as it is."""

    def test_a_queue_with_other_arguments(self, rabbit: Rabbit, caplog: pytest.LogCaptureFixture) -> None:
        rabbit.broker(QueueSpec(name="q", max_priority=3))
        with caplog.at_level(logging.WARNING):
            broker = rabbit.broker(QueueSpec(name="q", max_priority=9, exchange="e", routing_key="k"))
        (record,) = caplog.records
        assert "queue 'q' is there already, with other arguments" in record.getMessage()
        assert "inequivalent arg 'x-max-priority'" in record.getMessage()
        broker.publish([routed(b"x", "q", "e", "k")])
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    def test_a_quorum_queue_that_was_taken_for_a_classic_one(self, rabbit: Rabbit) -> None:
        rabbit.broker(QUORUM)
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"%d" % number) for number in range(20)])
        consumer = rabbit.consumer(broker)
        taken = take(consumer, 20)
        assert sorted(bodies(taken)) == sorted(b"%d" % number for number in range(20))
        settle(consumer, *taken)

    def test_an_exchange_of_another_type(self, rabbit: Rabbit, caplog: pytest.LogCaptureFixture) -> None:
        rabbit.broker(QueueSpec(name="r", exchange="e", exchange_type="topic", routing_key="#"))
        with caplog.at_level(logging.WARNING):
            broker = rabbit.broker(QueueSpec(name="q", exchange="e", routing_key="k"))
        assert "exchange 'e' is there already" in caplog.text
        broker.publish([routed(b"x", "q", "e", "k")])
        assert (broker.size("q"), broker.size("r")) == (1, 1)

    def test_names_that_amqp_does_not_allow(self, rabbit: Rabbit) -> None:
        for name in ("", "q" * 256):
            with pytest.raises(ImproperlyConfigured, match="1 to 255 bytes"):
                rabbit.broker(QueueSpec(name=name))


class TestQuorum:
    """Quorum queues hand over a little later, and know no common prefetch."""

    def test_all_of_it(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QUORUM)
        broker.publish([outgoing(b"%d" % number) for number in range(200)])
        consumer = rabbit.consumer(broker)
        seen: list[bytes] = []
        while len(seen) < 200:
            taken = consumer.reserve(50) or (consumer.wait(5.0) and ()) or ()
            seen += bodies(taken)
            settle(consumer, *taken)
        assert sorted(seen, key=int) == [b"%d" % number for number in range(200)]
        until(lambda: broker.size("q") == 0)

    def test_give_back_and_wait(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QUORUM)
        consumer = rabbit.consumer(broker)
        assert list(consumer.reserve(1)) == []
        broker.publish([outgoing(b"x")])
        assert consumer.wait(10.0)
        (held,) = take(consumer)
        settle(consumer, held, how=Requeue())
        (again,) = take(consumer)
        assert (again.raw, again.count) == (b"x", 1)
        settle(consumer, again)

    def test_its_crashes_are_counted_alike(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QUORUM, max_deliveries=3)
        broker.publish([outgoing(b"poison", task_id="t")])
        counts = []
        for _ in range(4):
            consumer = rabbit.consumer(broker)
            (held,) = take(consumer)
            counts.append(held.count)
            consumer.close()
        assert counts == [1, 2, 3, 4]
        assert held.verdict is not None and held.verdict.kind is VerdictKind.MAX_DELIVERIES

    def test_what_comes_to_a_busy_consumer_goes_back(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QUORUM)
        busy, idle = rabbit.consumer(broker), rabbit.consumer(broker)
        broker.publish([outgoing(b"%d" % number) for number in range(10)])
        # Its consumer is given more than this at once, and nobody asks for the rest.
        until(lambda: busy.reserve(5) or busy.wait(0.1))
        taken = take(busy, 1)
        mine = len(busy.holding()) if isinstance(busy, RabbitConsumer) else 0
        assert taken and 1 <= mine < 10
        assert len(take(idle, 10 - mine)) == 10 - mine


class TestDelays:
    """A moment in the future is waited for by the server, in Celery's queues."""

    def _late(self, seconds: float) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    def test_never_early(self, rabbit: Rabbit) -> None:
        names = ["q", "a.dotted.q", "q with 'odd' / signs #*", "q" * 200]
        broker = rabbit.broker(*[QueueSpec(name=name, exchange="celery", routing_key="k") for name in names])
        due = self._late(1.2)
        outcomes = broker.publish([outgoing(name.encode(), name, not_before=due) for name in names], timeout=30)
        assert [outcome.status for outcome in outcomes] == [PublishStatus.QUEUED] * 4
        assert [broker.size(name) for name in names] == [0] * 4
        consumer = rabbit.consumer(broker, *names)
        first = take(consumer)
        assert datetime.now(UTC) >= due
        for held in [*first, *take(consumer, 3)]:
            assert (held.raw.decode(), held.count, held.redelivered) == (held.queue, 1, False)
            assert held.message is not None
            assert held.message.properties["delivery_info"] == {"exchange": "", "routing_key": held.queue}
            assert not [name for name in held.message.headers if name.startswith("x-")]

    def test_each_queue_gets_its_own(self, rabbit: Rabbit) -> None:
        names = ["b", "a.b", "c.a.b"]
        broker = rabbit.broker(*[QueueSpec(name=name) for name in names])
        broker.publish([outgoing(name.encode(), name, not_before=self._late(0.5)) for name in names], timeout=30)
        taken = take(rabbit.consumer(broker, *names), 3)
        assert sorted((held.queue, held.raw.decode()) for held in taken) == sorted((name, name) for name in names)
        assert list(rabbit.consumer(broker, *names).reserve(5)) == []

    def test_delay_and_a_retry_by_settlement(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), publish_timeout=30.0)
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        consumer = rabbit.consumer(broker)
        first, second = take(consumer, 2)
        due = self._late(0.7)
        settle(consumer, first, how=Delay(due))
        settle(consumer, second, publish=[outgoing(b"again", not_before=due)])
        assert sorted(bodies(take(consumer, 2))) == [b"1", b"again"]
        assert datetime.now(UTC) >= due

    def test_a_past_moment_is_no_delay(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"x", not_before=self._late(-5))])
        assert broker.size("q") == 1

    def test_kombu_finds_what_it_would_have_declared(self, rabbit: Rabbit) -> None:
        native: Any = pytest.importorskip("kombu.transport.native_delayed_delivery")
        from kombu import Connection

        broker = rabbit.broker(QueueSpec(name="q"), publish_timeout=30.0, delay_queue_type="quorum")
        broker.publish([outgoing(b"x", not_before=self._late(0.1))])
        with Connection(rabbit.url) as connection:
            native.declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    def test_we_find_what_kombu_has_declared(self, rabbit: Rabbit) -> None:
        native: Any = pytest.importorskip("kombu.transport.native_delayed_delivery")
        from kombu import Connection

        with Connection(rabbit.url) as connection:
            native.declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
        # What was chosen first is used, whatever is asked for now.
        broker = rabbit.broker(QueueSpec(name="q"), delay_queue_type="quorum")
        broker.publish([outgoing(b"x", not_before=self._late(0.5))])
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    def test_levels_that_are_there_already_are_used_as_they_are(
        self, rabbit: Rabbit, caplog: pytest.LogCaptureFixture
    ) -> None:
        channel = rabbit.link().channel()
        for level, part in zip(range(27, -1, -1), _parts("classic"), strict=False):
            if level in (27, 23, 22, 1, 0):
                for step in part:
                    channel.call(step.name, step.args, step.answer)
        broker = rabbit.broker(QueueSpec(name="q"), delay_queue_type="quorum")
        told = [text for text in caplog.messages if "is there already, with other arguments" in text]
        assert [text.partition(" is there")[0] for text in told] == [
            f"The queue 'celery_delayed_{level}'" for level in (27, 23, 22, 1, 0)
        ]
        broker.publish([outgoing(b"x", not_before=self._late(1.5))])
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    def test_who_declares_queues_declares_the_delays(self, rabbit: Rabbit) -> None:
        rabbit.broker(QueueSpec(name="q"))
        args = frames.declare_exchange("celery_delayed_delivery", "topic", passive=True)
        rabbit.link().channel().call(frames.EXCHANGE_DECLARE, args, frames.EXCHANGE_DECLARE_OK)

    def test_a_slow_declaration_is_told_before_anything_is_sent(self, rabbit: Rabbit) -> None:
        """Whoever repeats what was denied must not have it twice; and each try goes on where the last one ended."""
        failed: list[str] = []
        with Proxy(rabbit.url) as proxy:
            broker = rabbit.broker(url=proxy.url)
            proxy.delay(0.1)

            def sent() -> bool:
                try:
                    (outcome,) = broker.publish([outgoing(b"x", not_before=self._late(0.5))])
                except OperationalError as error:
                    assert not isinstance(error, PublishUnknown)
                    failed.append(str(error))
                    return False
                return outcome.status is PublishStatus.QUEUED

            until(sent, timeout=15)
            proxy.heal()
            assert failed
            assert bodies(take(rabbit.consumer(broker))) == [b"x"]
            assert {broker.size(f"celery_delayed_{level}") for level in range(28)} == {0}
            assert broker.size("q") == 0

    def test_who_declares_keeps_nobody_waiting_beyond_their_time(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker()
        with broker._topology._lock:
            with pytest.raises(OperationalError, match="took too long") as caught:
                broker.publish([outgoing(b"x", not_before=self._late(5))], timeout=0.5)
            broker._topology.forget()
        assert not isinstance(caught.value, PublishUnknown)

    def test_a_deadline_that_passes_while_one_of_many_is_declared_again(
        self, rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others are queued by then, so it is refused alone."""
        broker = rabbit.broker(QueueSpec(name="q"), QueueSpec(name="r"))
        broker.publish([outgoing(b"0", "q")])
        channel = rabbit.link().channel()
        channel.call(frames.QUEUE_DELETE, (0, "r", False, False, False), frames.QUEUE_DELETE_OK)

        def late(*args: Any, **options: Any) -> None:
            raise OperationalError("too late")

        monkeypatch.setattr(broker._topology, "declare", late)
        queued, refused = broker.publish([outgoing(b"1", "q"), outgoing(b"2", "r")])
        assert (queued.status, refused.status) == (PublishStatus.QUEUED, PublishStatus.REFUSED)
        with pytest.raises(OperationalError, match="too late"):
            broker.publish([outgoing(b"3", "r")])

    @pytest.mark.parametrize("by", ["a worker that starts", "a consumer", "a publisher"])
    def test_a_queue_that_was_made_anew_gets_what_is_delayed(
        self, rabbit: Rabbit, by: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours, theirs = rabbit.broker(QueueSpec(name="q")), rabbit.broker(QueueSpec(name="q"))
        ours.publish([outgoing(b"1", not_before=self._late(0.1))])
        consumer = rabbit.consumer(theirs)
        settle(consumer, *take(consumer))
        assert not consumer.wait(0.1)
        channel = rabbit.link().channel()
        channel.call(frames.QUEUE_DELETE, (0, "q", False, False, False), frames.QUEUE_DELETE_OK)
        if by == "a publisher":
            consumer.close()
            theirs.publish([outgoing(b"0")])
            consumer = rabbit.consumer(theirs)
            settle(consumer, *take(consumer))
        elif by == "a consumer":
            until(lambda: consumer.wait(0.1) or "has ended the consumer of queue 'q'" in caplog.text)
            assert list(consumer.reserve(1)) == []
        else:
            consumer.close()
            consumer = rabbit.consumer(rabbit.broker(QueueSpec(name="q")))
        ours.publish([outgoing(b"2", not_before=self._late(0.1))])
        assert bodies(take(consumer)) == [b"2"]

    def test_a_queue_that_was_deleted_before_its_first_delay(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker._topology._delayed.clear()
        channel = rabbit.link().channel()
        channel.call(frames.QUEUE_DELETE, (0, "q", False, False, False), frames.QUEUE_DELETE_OK)
        (outcome,) = broker.publish([outgoing(b"x", not_before=self._late(0.1))])
        assert outcome.status is PublishStatus.QUEUED
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    def test_whoever_declared_crashed_before_the_last_step(self, rabbit: Rabbit) -> None:
        channel = rabbit.link().channel()
        for step in [step for part in _parts("classic") for step in part][:-1]:
            channel.call(step.name, step.args, step.answer)
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"x", not_before=self._late(1.5))])
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]

    @pytest.mark.parametrize("key", ["#", "*", "*.#"])
    def test_a_queue_of_any_key_gets_no_copies_of_the_others(self, rabbit: Rabbit, key: str) -> None:
        quorum = {"x-queue-type": "quorum"}
        every = QueueSpec(name="all", exchange="e", exchange_type="topic", routing_key=key, arguments=quorum)
        broker = rabbit.broker(QueueSpec(name="q"), every)
        broker.publish([outgoing(b"x", not_before=self._late(0.1))])
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]
        assert broker.size("all") == 0

    def test_the_way_is_celery_s(self) -> None:
        exchange, key = delay_route("a.b", 5)
        assert exchange == "celery_delayed_27"
        assert key == "0." * 25 + "1.0.1.umbel:a%2Eb"
        assert delay_route("q", 10**12)[1].startswith("1." * 28)
        assert len(delay_route("ž" * 120, 1)[1].encode()) < 256

    def test_what_is_delayed_can_be_neither_seen_nor_purged(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), publish_timeout=30.0)
        broker.publish([outgoing(b"x", not_before=self._late(0.5))])
        place = Place.SCHEDULED
        assert (broker.size("q", place), list(broker.peek("q", place=place)), broker.purge("q", place)) == (0, [], 0)
        assert bodies(take(rabbit.consumer(broker))) == [b"x"]


class TestPoison:
    """A message that kills its process again and again ends, and tells so."""

    def test_it_ends_with_a_verdict_and_its_story(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), max_deliveries=2)
        broker.publish([outgoing(b"poison", task_id="t")])
        for count in (1, 2):
            consumer = rabbit.consumer(broker)
            (held,) = take(consumer)
            assert (held.count, held.verdict) == (count, None)
            consumer.close()
        consumer = rabbit.consumer(broker)
        (ended,) = take(consumer)
        assert ended.verdict is not None and ended.verdict.kind is VerdictKind.MAX_DELIVERIES
        settle(consumer, ended, how=Dead("max_deliveries", "too often"))
        (letter,) = broker.dead().page("q")
        assert [crash.consumer[:5] for crash in letter.crashes] == ["node:", "node:"]
        # Its notes are gone: revived it starts anew.
        broker.dead().revive("q", {letter.key: None})
        (again,) = take(consumer)
        assert (again.count, again.redelivered) == (1, False)

    def test_a_message_that_comes_again_is_reserved_alone(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"1"), outgoing(b"2"), outgoing(b"3")])
        crashed = rabbit.consumer(broker)
        take(crashed, 2)
        crashed.close()
        consumer = rabbit.consumer(broker)
        assert [bodies(consumer.reserve(5)) for _ in range(3)] == [[b"1"], [b"2"], [b"3"]]

    def test_a_give_back_between_processes_costs_at_most_one(self, rabbit: Rabbit) -> None:
        """The server does not say whether a message crashed or was given back, so the first time counts."""
        ours, theirs = (rabbit.broker(QueueSpec(name="q")) for _ in range(2))
        ours.publish([outgoing(b"x")])
        counts = []
        for broker in (ours, theirs) * 4:
            consumer = rabbit.consumer(broker)
            (held,) = take(consumer)
            counts.append(held.count)
            settle(consumer, held, how=Requeue())
            consumer.close()
        assert max(counts) <= 2

    def test_a_verdict_of_a_supervisor_is_found(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"x")])
        leases = broker.leases()
        id = leases.register("node")
        consumer = broker.consumer(id, ["q"])
        (held,) = take(consumer)
        leases.release(id, verdicts={held.tag: Verdict(kind=VerdictKind.TIME_LIMIT, detail="3 s")})
        (ended,) = take(rabbit.consumer(broker))
        assert ended.verdict == Verdict(kind=VerdictKind.TIME_LIMIT, detail="3 s")

    def test_what_must_run_once_is_acknowledged_before(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"once"), outgoing(b"other")])
        consumer = rabbit.consumer(broker)
        once, other = take(consumer, 2)
        assert list(consumer.begin([Begin(delivery=once, once=True), Begin(delivery=other)])) == []
        settle(consumer, once, publish=[outgoing(b"next", "r")])
        consumer.close()
        assert bodies(take(rabbit.consumer(broker), 1)) == [b"other"]
        assert broker.size("r") == 1


class TestFollowUps:
    """What follows is published first; where that cannot be, the message is kept."""

    def test_the_message_is_kept_as_a_dead_letter(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"x")])
        consumer = rabbit.consumer(broker)
        (held,) = take(consumer)
        settle(consumer, held, publish=[routed(b"next", "q", "nowhere", "k")])
        (letter,) = broker.dead().page("q")
        assert (letter.reason, bodies([letter])) == ("unpublishable", [b"x"])
        assert "nowhere" in letter.detail
        assert broker.size("q", Place.HELD) == 0

    def test_a_lost_connection_publishes_nothing(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"x")])
        consumer = rabbit.consumer(broker)
        (held,) = take(consumer)
        close_connections(rabbitmq_server, "umbel:node")
        settlement = Settlement(delivery=held, publish=[outgoing(b"next", "r")])
        refused: list[str] = []

        def settled() -> bool:
            with contextlib.suppress(OperationalError):
                refused.extend(consumer.settle([settlement]).refused)
            return bool(refused)

        until(settled)
        assert refused == [held.tag]
        assert broker.size("r") == 0
        (again,) = take(consumer)
        assert (again.raw, again.count, again.redelivered) == (b"x", 2, True)


class TestTheConnectionIsTheLease:
    """What was held is somebody else's when the connection is lost, however that happened."""

    def test_an_acknowledgement_never_goes_to_another_connection(
        self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer
    ) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        consumer = rabbit.consumer(broker)
        first, _ = take(consumer, 2)
        close_connections(rabbitmq_server, "umbel:node")
        with pytest.raises(OperationalError):
            while True:
                consumer.wait(1.0)
        again = take(consumer, 2)
        # The numbers of the server start anew, and so the old first one would end the new first one.
        assert list(consumer.settle([Settlement(delivery=first)]).refused) == [first.tag]
        settle(consumer, *again)
        assert broker.size("q") == 0

    def test_a_channel_that_the_server_closes(self, rabbit: Rabbit) -> None:
        """As it does with one whose message was not settled within the server's consumer_timeout."""
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"x")])
        consumer = rabbit.consumer(broker)
        assert isinstance(consumer, RabbitConsumer)
        (held,) = take(consumer)
        channel = consumer._intake.open()
        channel.send(channel.frame(frames.ACK, 999, False))
        with pytest.raises(OperationalError, match="unknown delivery tag"):
            while True:
                consumer.wait(1.0)
        assert list(consumer.settle([Settlement(delivery=held)]).refused) == [held.tag]
        (again,) = take(consumer)
        assert (again.raw, again.count) == (b"x", 2)

    def test_it_lives_while_user_code_runs(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), heartbeat=1)
        broker.publish([outgoing(b"x")])
        consumer = rabbit.consumer(broker)
        (held,) = take(consumer)
        # The server gives up after two heartbeats and a little.
        time.sleep(3.0)
        settle(consumer, held)
        assert broker.size("q") == 0

    def test_a_half_open_connection_is_found(self, rabbit: Rabbit) -> None:
        with Proxy(rabbit.url) as proxy:
            broker = rabbit.broker(QueueSpec(name="q"), url=proxy.url, heartbeat=1, socket_connect_timeout=0.5)
            consumer = rabbit.consumer(broker)
            assert list(consumer.reserve(1)) == []
            proxy.swallow()
            started = time.monotonic()
            with pytest.raises(OperationalError):
                while time.monotonic() - started < 30:
                    consumer.wait(1.0)
            proxy.heal()
            broker.publish([outgoing(b"x")], timeout=10)
            assert bodies(take(consumer)) == [b"x"]

    def test_after_a_restart_of_the_server(self, rabbit: Rabbit) -> None:
        with Proxy(rabbit.url) as proxy:
            broker = rabbit.broker(QueueSpec(name="q"), url=proxy.url)
            consumer = rabbit.consumer(broker)
            assert list(consumer.reserve(1)) == []
            proxy.refuse()
            with pytest.raises(OperationalError):
                broker.publish([outgoing(b"x")])
            with pytest.raises(OperationalError):
                consumer.wait(5.0)
            with pytest.raises(OperationalError):
                consumer.reserve(1)
            proxy.heal()
            broker.publish([outgoing(b"x")])
            assert bodies(take(consumer)) == [b"x"]


class TestPublishing:
    """One deadline for connecting, sending and confirming; and an honest answer."""

    def test_an_answer_that_does_not_come(self, rabbit: Rabbit) -> None:
        with Proxy(rabbit.url) as proxy:
            broker = rabbit.broker(QueueSpec(name="q"), url=proxy.url)
            broker.publish([outgoing(b"x")])
            proxy.swallow()
            started = time.monotonic()
            with pytest.raises(PublishUnknown) as caught:
                broker.publish([outgoing(b"x", task_id="t")], timeout=0.5)
            assert caught.value.task_id == "t"
            assert time.monotonic() - started < 5.0

    def test_a_slow_confirmation_is_waited_for_before_an_end(self, rabbit: Rabbit) -> None:
        """Who gives up and settles again has published twice what follows."""
        with Proxy(rabbit.url) as proxy:
            broker = rabbit.broker(QueueSpec(name="q"), QueueSpec(name="next"), url=proxy.url, publish_timeout=0.5)
            broker.publish([outgoing(b"x")], timeout=10)
            consumer = rabbit.consumer(broker)
            taken = take(consumer)
            proxy.delay(1.0)
            settle(consumer, *taken, publish=[outgoing(b"y", "next")])
            proxy.delay(0.0)
            assert (broker.size("q"), broker.size("next")) == (0, 1)

    def test_a_server_that_takes_no_connection(self, rabbit: Rabbit) -> None:
        with Proxy(rabbit.url) as proxy:
            broker = rabbit.broker(url=proxy.url)
            proxy.refuse()
            with pytest.raises(OperationalError) as caught:
                broker.publish([outgoing(b"x")], timeout=0.5)
            assert not isinstance(caught.value, PublishUnknown)

    def test_a_server_that_is_short_of_memory(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        broker.publish([outgoing(b"1")])
        consumer = rabbit.consumer(broker)
        rabbitmq_server.evaluate("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).")
        try:
            with pytest.raises(OperationalError):
                broker.publish([outgoing(b"2")], timeout=0.5)
            # Whoever consumes goes on: that is what makes room again.
            (held,) = take(consumer)
            settle(consumer, held)
        finally:
            rabbitmq_server.evaluate("rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")
        until(lambda: broker.publish([outgoing(b"3")])[0].status is PublishStatus.QUEUED)

    def test_it_goes_on_to_the_next_server(self, rabbit: Rabbit) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            nowhere = f"amqp://guest:guest@127.0.0.1:{closed.getsockname()[1]}//"
            broker = rabbit.broker(QueueSpec(name="q"), url=nowhere, alternates=(rabbit.url,), publish_timeout=10.0)
            assert broker.publish([outgoing(b"x")])[0].status is PublishStatus.QUEUED

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (("guest:guest", "guest:wrong"), "the user or the password is wrong"),
            (("/%2F", "/nowhere"), "the virtual host does not exist"),
        ],
        ids=["password", "virtual host"],
    )
    def test_a_wrong_address_says_what_is_wrong(self, rabbit: Rabbit, change: tuple[str, str], words: str) -> None:
        with pytest.raises(OperationalError, match=words) as caught:
            rabbit.broker(url=rabbit.url.replace(*change))
        assert "wrong@" not in str(caught.value)

    def test_many_threads(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        threads = [
            threading.Thread(target=lambda: [broker.publish([outgoing(b"x")], timeout=20) for _ in range(20)])
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert broker.size("q") == 200


class TestForeignMessages:
    """What other clients send is delivered, whatever it is."""

    def test_without_anything(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        channel = rabbit.link().channel()
        channel.send(frames.publish(1, "", "q", False) + frames.content(1, b"\0\0", b"plain", 4096))
        consumer = rabbit.consumer(broker)
        (held,) = take(consumer)
        assert held.message is not None
        assert (held.raw, held.message.headers, held.message.content_type) == (b"plain", {}, "application/json")
        settle(consumer, held, how=Dead("invalid_task"))
        assert bodies(broker.dead().page("q")) == [b"plain"]

    def test_a_channel_error_ends_the_channel_alone(self, rabbit: Rabbit) -> None:
        link = rabbit.link()
        first, second = link.channel(), link.channel()
        with pytest.raises(ChannelClosed) as caught:
            first.call(frames.QUEUE_DECLARE, frames.declare_queue("none", passive=True), frames.QUEUE_DECLARE_OK)
        assert caught.value.code == 404
        assert second.call(frames.QOS, (0, 1, False), frames.QOS_OK)[0] == frames.QOS_OK
        with pytest.raises(ChannelClosed):
            first.send(b"")


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "name", "user"),
        [
            ("amqp://", "localhost:5672/", "guest"),
            ("amqp://host", "host:5672/", "guest"),
            ("amqp://host//", "host:5672/", "guest"),
            ("pyamqp://me:p%40ss@host:1234/shop", "host:1234/shop", "me"),
            ("amqps://host/a%2Fb", "host:5671/a/b", "guest"),
            ("amqp://[::1]:5672/v", "[::1]:5672/v", "guest"),
        ],
    )
    def test_what_a_url_means(self, url: str, name: str, user: str) -> None:
        address = parse_url(url, {})
        assert (address.name, address.user) == (name, user)
        assert "p@ss" not in repr(address)

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("amqp://host:port/", "port"),
            ("redis://host", "not a RabbitMQ URL"),
            ("amqp://host?heartbeat=soon", "heartbeat"),
            ("amqps://host?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ],
    )
    def test_what_no_url_means(self, url: str, words: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=words):
            parse_url(url, {})


def test_an_acknowledgement_is_one_frame_for_many(rabbit: Rabbit) -> None:
    broker = rabbit.broker(QueueSpec(name="q"))
    broker.publish([outgoing(b"%d" % number) for number in range(6)])
    consumer = rabbit.consumer(broker)
    taken = take(consumer, 6)
    consumer.settle([Settlement(delivery=held, how=ACK) for held in (taken[1], taken[0], taken[4])])
    consumer.settle([Settlement(delivery=held) for held in (taken[2], taken[5])])
    consumer.close()
    assert bodies(take(rabbit.consumer(broker))) == [b"3"]
    until(lambda: broker.size("q") == 0)


class TestPauses:
    """What kills its process again and again comes back later and later."""

    def _crash(self, rabbit: Rabbit, broker: RabbitBroker) -> int:
        consumer = rabbit.consumer(broker)
        (held,) = take(consumer, timeout=20)
        consumer.close()
        return held.count

    def test_the_third_delivery_waits(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), redelivery_backoff=(1.5, 2))
        broker.publish([outgoing(b"poison", task_id="t"), outgoing(b"behind")])
        assert [self._crash(rabbit, broker) for _ in range(2)] == [1, 2]
        crashed = time.monotonic()
        consumer = rabbit.consumer(broker)
        # It stands in nobody's way meanwhile.
        assert bodies(take(consumer)) == [b"behind"]
        (held,) = take(consumer, timeout=20)
        assert (held.raw, held.count) == (b"poison", 3)
        assert time.monotonic() - crashed >= 1.5
        consumer.close()

    def test_a_message_that_was_held_back_ends_all_the_same(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), redelivery_backoff=(0.1,), max_deliveries=3)
        broker.publish([outgoing(b"poison", task_id="t")])
        assert [self._crash(rabbit, broker) for _ in range(3)] == [1, 2, 3]
        consumer = rabbit.consumer(broker)
        (ended,) = take(consumer, timeout=20)
        assert ended.verdict is not None and ended.verdict.kind is VerdictKind.MAX_DELIVERIES
        settle(consumer, ended, how=Dead("max_deliveries", "too often"))
        (letter,) = broker.dead().page("q")
        assert len(letter.crashes) == 3

    def test_a_give_back_waits_for_nothing(self, rabbit: Rabbit) -> None:
        ours, theirs = (rabbit.broker(QueueSpec(name="q"), redelivery_backoff=(3600,)) for _ in range(2))
        ours.publish([outgoing(b"x")])
        for broker in (ours, theirs) * 3:
            consumer = rabbit.consumer(broker)
            settle(consumer, *take(consumer), how=Requeue())
            consumer.close()


class TestOnce:
    """What must not run twice is gone from its queue when it runs; its loss is told all the same."""

    LOST = Verdict(kind=VerdictKind.LOST, detail="its process died")

    def test_a_lost_one_comes_back_to_be_ended(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        leases = broker.leases()
        id = leases.register("node")
        consumer = broker.consumer(id, ["q"])
        broker.publish([outgoing(b"1", task_id="a"), outgoing(b"2", task_id="b"), outgoing(b"3", task_id="c")])
        first, second, third = take(consumer, 3)
        consumer.begin([Begin(delivery=first, once=True), Begin(delivery=second, once=True)])
        settle(consumer, second)
        leases.release(id, verdicts={first.tag: self.LOST})
        other = rabbit.consumer(broker)
        found = {held.raw: held for held in take(other, 2)}
        assert set(found) == {b"1", third.raw}
        assert (found[b"1"].verdict, found[b"3"].verdict) == (self.LOST, None)
        message = found[b"1"].message
        assert message is not None and message.headers["id"] == "a"
        assert not [name for name in message.headers if str(name).startswith("umbel-")]
        settle(other, *found.values())
        assert broker.size("q") == 0

    def test_what_ended_leaves_nothing(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"))
        leases = broker.leases()
        id = leases.register("node")
        consumer = broker.consumer(id, ["q"])
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        once = take(consumer, 2)
        consumer.begin([Begin(delivery=held, once=True) for held in once])
        assert broker.size(f"umbel.started.{id}") == 2
        settle(consumer, once[0])
        assert broker.size(f"umbel.started.{id}") == 2
        settle(consumer, once[1])
        until(lambda: broker.size(f"umbel.started.{id}") == 0)
        leases.release(id)
        channel = rabbit.link().channel()
        with pytest.raises(ChannelClosed, match="no queue"):
            args = frames.declare_queue(f"umbel.started.{id}", passive=True)
            channel.call(frames.QUEUE_DECLARE, args, frames.QUEUE_DECLARE_OK)


class TestWatching:
    """Other queues can be read by the consumer that there is."""

    @pytest.mark.parametrize("kind", ["classic", "quorum"])
    def test_what_is_held_stays_held(self, rabbit: Rabbit, kind: str) -> None:
        arguments = {"x-queue-type": kind} if kind == "quorum" else {}
        broker = rabbit.broker(*(QueueSpec(name=name, arguments=arguments) for name in ("q", "r")))
        broker.publish([outgoing(b"q1", "q"), outgoing(b"q2", "q"), outgoing(b"r1", "r")])
        consumer = rabbit.consumer(broker, "q")
        (held,) = take(consumer)
        consumer.watch(["r"])
        (other,) = take(consumer)
        assert (held.raw, other.raw) == (b"q1", b"r1")
        settle(consumer, held, other)
        assert list(consumer.reserve(5)) == []
        until(lambda: broker.size("q") == 1)
        consumer.watch(["q", "r"])
        assert bodies(take(consumer)) == [b"q2"]

    def test_one_that_waits_hears_of_the_others(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), QueueSpec(name="r"))
        consumer = rabbit.consumer(broker, "q")
        assert not consumer.wait(0.01)
        consumer.watch(["r"])
        broker.publish([outgoing(b"q", "q")])
        assert not consumer.wait(0.2)
        broker.publish([outgoing(b"r", "r")])
        assert consumer.wait(10.0)
        assert bodies(take(consumer)) == [b"r"]
        assert broker.size("q") == 1

    def test_while_the_broker_is_away(self, rabbit: Rabbit) -> None:
        broker = rabbit.broker(QueueSpec(name="q"), QueueSpec(name="r"))
        broker.publish([outgoing(b"r", "r")])
        with Proxy(rabbit.url) as proxy:
            consumer = rabbit.consumer(rabbit.broker(url=proxy.url), "q")
            assert not consumer.wait(0.01)
            proxy.refuse()
            consumer.watch(["r"])
            proxy.heal()
            assert bodies(take(consumer)) == [b"r"]
            consumer.close()
