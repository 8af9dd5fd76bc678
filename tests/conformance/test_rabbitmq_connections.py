"""RabbitMQ's connections: what the loss of one ends and what not, their channels, and what a refusal leaves behind."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from rabbitmq_support import Rabbit, close_connections, settle, take
from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.consumer import RabbitConsumer
from umbel.brokers.rabbitmq.link import ChannelClosed
from umbel.brokers.rabbitmq.notes import Notes
from umbel.exceptions import OperationalError, PublishUnknown
from umbel.interfaces import Begin, Consumer, Outgoing, PublishStatus, QueueSpec, Settlement
from umbel.testing.broker_base import bodies, outgoing, until
from umbel.testing.servers import RabbitMQServer

Q, R = QueueSpec(name="q"), QueueSpec(name="r")


@contextlib.contextmanager
def configured(server: RabbitMQServer, name: str, value: int) -> Iterator[None]:
    """Change a number of the server's configuration, for connections that are made from now on."""
    before = int(server.evaluate(f"{{ok, V}} = application:get_env(rabbit, {name}), V."))
    server.evaluate(f"application:set_env(rabbit, {name}, {value}).")
    try:
        yield
    finally:
        server.evaluate(f"application:set_env(rabbit, {name}, {before}).")


def lose(consumer: Consumer, server: RabbitMQServer) -> None:
    """Have the server end the connections of consumers, and this one hear of it."""
    close_connections(server, "umbel:node")
    with pytest.raises(OperationalError):
        while True:
            consumer.wait(1.0)


def crashed(rabbit: Rabbit, *messages: Outgoing, times: int = 1) -> None:
    """Publish messages that look as if they had killed the processes that took them."""
    broker = rabbit.broker(Q, redelivery_backoff=())
    broker.publish(messages)
    for _ in range(times):
        for _ in messages:
            consumer = rabbit.consumer(broker)
            take(consumer)
        consumer.close()


class TestAcknowledgedBeforeItRan:
    """It comes to nobody again, so what follows from it has only this consumer to publish it."""

    def test_it_is_held_over_the_loss_of_the_connection(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        broker = rabbit.broker(Q, R)
        id = broker.leases().register("node")
        consumer = broker.consumer(id, ["q"])
        broker.publish([outgoing(b"once"), outgoing(b"other")])
        once, other = take(consumer, 2)
        consumer.begin([Begin(delivery=once, once=True)])
        # An answer of the server on that channel: it has read the acknowledgement.
        assert list(consumer.reserve(1)) == []
        lose(consumer, rabbitmq_server)
        # On a new connection the server's numbers start anew, so that this has the one of the first.
        (again,) = take(consumer)
        assert (again.raw, again.tag.split(".")[1]) == (b"other", once.tag.split(".")[1])
        assert set(broker.held(id)) == {once.tag, again.tag}
        assert list(consumer.begin([Begin(delivery=once, once=True)])) == []
        settled = consumer.settle(
            [
                Settlement(delivery=each, publish=[outgoing(b"after " + each.raw, "r")])
                for each in (once, other, again, once)
            ]
        )
        assert settled.refused == {other.tag, once.tag}
        assert bodies(broker.peek("r")) == [b"after once", b"after other"]
        until(lambda: broker.size(f"umbel.started.{id}") == 0)
        assert consumer.settle([Settlement(delivery=once)]).refused == {once.tag}
        consumer.close()

    def test_copies_stay_while_one_of_a_lost_connection_runs(
        self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer
    ) -> None:
        broker = rabbit.broker(Q)
        id = broker.leases().register("node")
        consumer = broker.consumer(id, ["q"])
        broker.publish([outgoing(b"1"), outgoing(b"2")])
        (first,) = take(consumer)
        consumer.begin([Begin(delivery=first, once=True)])
        (second,) = take(consumer)
        lose(consumer, rabbitmq_server)
        (second,) = take(consumer)
        consumer.begin([Begin(delivery=second, once=True)])
        settle(consumer, second)
        assert list(consumer.reserve(1)) == []
        assert broker.size(f"umbel.started.{id}") == 2
        settle(consumer, first)
        until(lambda: broker.size(f"umbel.started.{id}") == 0)
        consumer.close()

    def test_a_server_that_has_forgotten_the_copies(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        """As after its restart: the queue of the copies is not durable."""
        broker = rabbit.broker(Q)
        id = broker.leases().register("node")
        consumer = broker.consumer(id, ["q"])
        broker.publish([outgoing(b"once"), outgoing(b"other")])
        (once,) = take(consumer)
        consumer.begin([Begin(delivery=once, once=True)])
        assert bodies(take(consumer)) == [b"other"]
        lose(consumer, rabbitmq_server)
        channel = rabbit.link().channel()
        channel.call(frames.QUEUE_DELETE, (0, f"umbel.started.{id}", False, False, False), frames.QUEUE_DELETE_OK)
        (other,) = take(consumer)
        settle(consumer, once)
        assert list(consumer.reserve(1)) == []
        settle(consumer, other)
        consumer.close()

    def test_an_error_before_the_others_end_publishes_nothing_twice(
        self, rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker = rabbit.broker(Q, R)
        broker.publish([outgoing(b"once"), outgoing(b"other")])
        consumer = rabbit.consumer(broker)
        assert isinstance(consumer, RabbitConsumer)
        once, other = take(consumer, 2)
        consumer.begin([Begin(delivery=once, once=True)])
        link = consumer._intake.open().link

        def broken(*args: Any, **options: Any) -> None:
            raise link.fail("it broke")

        batch = [Settlement(delivery=once, publish=[outgoing(b"next", "r")]), Settlement(delivery=other)]
        with monkeypatch.context() as patch:
            patch.setattr(consumer._intake, "end", broken)
            with pytest.raises(OperationalError, match="it broke"):
                consumer.settle(batch)
        assert consumer.settle(batch).refused == {other.tag}
        assert broker.size("r") == 1


class TestHeartbeats:
    def test_the_server_s_are_kept(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        """Who asks for rarer ones, and had them from the server before, sends those that it wants now."""
        broker = rabbit.broker(Q, heartbeat=120)
        consumer = rabbit.consumer(broker)
        assert list(consumer.reserve(1)) == []
        with configured(rabbitmq_server, "heartbeat", 2):
            lose(consumer, rabbitmq_server)
            broker.publish([outgoing(b"long")])
            (held,) = take(consumer)
        # The server gives up after two heartbeats and a little.
        time.sleep(6.5)
        settle(consumer, held)
        assert broker.size("q") == 0


class TestErrorsOfAPublisher:
    """The connections of publishers are others: what goes wrong on them ends no hold."""

    def test_a_post_whose_channel_the_server_closed_is_of_use_again(
        self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer
    ) -> None:
        crashed(rabbit, outgoing(b"x"))
        with configured(rabbitmq_server, "max_message_size", 100_000):
            broker = rabbit.broker(Q)
            (refused,) = broker.publish([outgoing(b"x" * 200_000)])
            assert refused.status is PublishStatus.REFUSED
        consumer = rabbit.consumer(broker)
        (held,) = consumer.reserve(1)
        assert held.redelivered
        settle(consumer, held)

    @pytest.mark.parametrize("error", [OperationalError("no answer"), ChannelClosed(403, "refused")], ids=repr)
    def test_a_note_that_cannot_be_made(
        self, rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        crashed(rabbit, outgoing(b"again"))
        broker = rabbit.broker(Q, R)
        broker.publish([outgoing(b"%d" % number, "r") for number in range(3)])
        consumer = rabbit.consumer(broker, "r")
        first, second, third = take(consumer, 3)
        consumer.watch(["q"])

        def broken(*args: Any, **options: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Notes, "begin", broken)
            settled = consumer.settle([Settlement(delivery=first)], reserve=1)
            assert (list(settled.refused), list(settled.deliveries)) == ([], [])
            settle(consumer, second)
            with pytest.raises(OperationalError):
                while not consumer.reserve(1):
                    consumer.wait(1.0)
        (again,) = take(consumer)
        assert again.raw == b"again"
        with monkeypatch.context() as patch:
            patch.setattr(Notes, "end", broken)
            settle(consumer, again)
        settle(consumer, third)
        assert (broker.size("q"), broker.size("r")) == (0, 0)

    def test_what_is_held_back_leaves_no_trace_in_the_consumer(self, rabbit: Rabbit) -> None:
        crashed(rabbit, outgoing(b"poison", task_id="t"), times=2)
        broker = rabbit.broker(Q, redelivery_backoff=(1,))
        consumer = rabbit.consumer(broker)
        assert isinstance(consumer, RabbitConsumer)
        assert list(consumer.reserve(5)) == []
        until(lambda: broker.size("q") == 0)
        assert not consumer._intake._out
        (held,) = take(consumer, timeout=20)
        settle(consumer, held)
        assert not consumer._intake._out


class TestChannels:
    """A connection has so many of them, which are used again and again."""

    def test_numbers_come_back_the_lowest_first(self, rabbit: Rabbit) -> None:
        link = rabbit.link()
        for _ in range(5):
            channel = link.channel()
            assert channel.number == 1
            channel.close()
            channel.close()
        channels = [link.channel() for _ in range(4)]
        channels[2].close()
        channels[0].close()
        passive = frames.declare_queue("none", passive=True)
        with pytest.raises(ChannelClosed):
            channels[1].call(frames.QUEUE_DECLARE, passive, frames.QUEUE_DECLARE_OK)
        channels[1].close()
        channels[0].close()
        assert [link.channel().number for _ in range(4)] == [1, 2, 3, 5]
        assert channels[3].call(frames.QOS, (0, 1, False), frames.QOS_OK)[0] == frames.QOS_OK

    def test_a_number_that_both_sides_gave_up_at_once(self, rabbit: Rabbit) -> None:
        link = rabbit.link()
        for _ in range(20):
            channel = link.channel()
            channel.send(channel.frame(frames.ACK, 999, False))
            with pytest.raises(ChannelClosed, match="unknown delivery tag"):
                channel.close()
            # Its number is used again once the answer to our end has come too.
            until(lambda: link.read(0.1) or not link._channels)
        assert link.channel().number == 1

    def test_after_the_last_number(self, rabbit: Rabbit) -> None:
        link = rabbit.link()
        link.channel().close()
        link._numbers = 65_535
        channel = link.channel()
        assert channel.number == 1
        with pytest.raises(OperationalError, match="channels of the connection are in use"):
            link.channel()
        # Whoever had it gets a new one: it would be of no use ever again.
        assert not link.alive

    def test_as_many_as_the_server_allows(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        with configured(rabbitmq_server, "channel_max", 3):
            link = rabbit.link()
        assert [link.channel().number for _ in range(3)] == [1, 2, 3]
        with pytest.raises(OperationalError, match="all 3 channels"):
            link.channel()

    def test_many_short_questions(self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer) -> None:
        with configured(rabbitmq_server, "channel_max", 3):
            broker = rabbit.broker(Q)
        for _ in range(50):
            assert (broker.size("q"), broker.size("none"), broker.dead().size("q")) == (0, 0, 0)
        (post,) = broker._office._free
        assert post.link._numbers <= 3


class TestADeclarationThatIsRefused:
    def test_what_follows_is_a_dead_letter(
        self, rabbit: Rabbit, rabbitmq_server: RabbitMQServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        may = '<<"limited">>, <<"/">>, <<"^(q|umbel.*)$">>, <<".*">>, <<".*">>, <<"tests">>'
        rabbitmq_server.evaluate(
            'rabbit_auth_backend_internal:add_user(<<"limited">>, <<"secret">>, <<"tests">>), '
            f"rabbit_auth_backend_internal:set_permissions({may})."
        )
        try:
            broker = rabbit.broker(Q, url=rabbit.url.replace("guest:guest", "limited:secret"))
            # Whoever may not declare the delays goes on without them.
            assert "Delayed messages are not provided for" in caplog.text
            broker.publish([outgoing(b"1"), outgoing(b"2")])
            consumer = rabbit.consumer(broker)
            first, second = take(consumer, 2)
            settle(consumer, first, publish=[outgoing(b"next", "r")])
            (letter,) = broker.dead().page("q")
            assert (letter.reason, bodies([letter])) == ("unpublishable", [b"1"])
            assert "queue 'r' cannot be declared" in letter.detail
            assert "(403)" in letter.detail
            settle(consumer, second)
            (outcome,) = broker.publish([outgoing(b"3", "r")])
            assert outcome.status is PublishStatus.REFUSED
            consumer.close()
            broker.close()
        finally:
            rabbitmq_server.evaluate('rabbit_auth_backend_internal:delete_user(<<"limited">>, <<"tests">>).')


class _Stuck:
    """Stands between a client and the server until a client sends much: then it reads no more, and resets it."""

    def __init__(self, url: str, *, after: int) -> None:
        parts = urlsplit(url)
        self._server = parts.hostname, parts.port
        self._after = after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(str(parts.port), str(self._listener.getsockname()[1]))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                for source, target, most in ((client, server, self._after), (server, client, 2**60)):
                    self._threads.append(threading.Thread(target=self._pass, args=(source, target, most), daemon=True))
                    self._threads[-1].start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, most: int) -> None:
        with contextlib.suppress(OSError):
            while most > 0 and (data := source.recv(65536)):
                target.sendall(data)
                most -= len(data)
            if most <= 0:
                # Whoever sends has filled what the system keeps for it by then, and waits to go on.
                time.sleep(0.5)
                source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                source.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)


class TestAConnectionThatBreaksWhileItIsWritten:
    def test_a_reset(self, rabbit: Rabbit) -> None:
        with contextlib.closing(_Stuck(rabbit.url, after=1_000_000)) as stuck:
            broker = rabbit.broker(Q, url=stuck.url)
            with pytest.raises(PublishUnknown):
                broker.publish([outgoing(b"x" * 32_000_000)], timeout=30)
            broker.close()

    def test_an_end(self, rabbit: Rabbit) -> None:
        """The other side takes nothing more, and has closed: to wait until it reads would be to wait for nothing."""
        link = rabbit.link()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link._sock.close()
        link._sock = ours
        theirs.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        with theirs, pytest.raises(OperationalError, match="closed the connection"):
            link.write(b"x" * 32_000_000, started + 20)
        assert time.monotonic() - started < 10


class TestAQueueThatIsDeleted:
    """The server ends its consumers, and what is held of others stays as it was."""

    def _delete(self, rabbit: Rabbit, consumer: Consumer, caplog: pytest.LogCaptureFixture) -> None:
        channel = rabbit.link().channel()
        channel.call(frames.QUEUE_DELETE, (0, "q", False, False, False), frames.QUEUE_DELETE_OK)
        until(lambda: consumer.wait(0.1) or "has ended the consumer of queue 'q'" in caplog.text)

    @pytest.mark.parametrize("limit", [1, 5])
    def test_nothing_that_is_held_is_lost(self, rabbit: Rabbit, limit: int, caplog: pytest.LogCaptureFixture) -> None:
        broker = rabbit.broker(Q, R)
        consumer = rabbit.consumer(broker, "q", "r")
        broker.publish([outgoing(b"q", "q"), outgoing(b"r", "r")])
        held = [*take(consumer), *take(consumer)]
        assert not consumer.wait(0.1)
        self._delete(rabbit, consumer, caplog)
        assert list(consumer.reserve(limit)) == []
        settle(consumer, *held, publish=[outgoing(b"next", "r")])
        taken = take(consumer, 2)
        assert bodies(taken) == [b"next"] * 2
        settle(consumer, *taken)
        broker.publish([outgoing(b"again", "q")])
        settle(consumer, *take(consumer))
        assert (broker.size("q"), broker.size("r")) == (0, 0)

    def test_who_waits_waits_at_the_new_one(self, rabbit: Rabbit, caplog: pytest.LogCaptureFixture) -> None:
        broker = rabbit.broker(Q)
        consumer = rabbit.consumer(broker)
        assert not consumer.wait(0.1)
        self._delete(rabbit, consumer, caplog)
        assert not consumer.wait(0.1)
        broker.publish([outgoing(b"x")])
        assert consumer.wait(10.0)
        assert bodies(take(consumer)) == [b"x"]

    def test_the_thread_beside_hears_of_it(self, rabbit: Rabbit) -> None:
        """It reads what comes while somebody waits, who then must ask for another consumer."""
        consumer = rabbit.consumer(rabbit.broker(Q))
        assert isinstance(consumer, RabbitConsumer)
        waiting = threading.Thread(target=consumer.wait, args=(50.0,))
        waiting.start()
        until(lambda: consumer._waiting)
        with consumer._lock:
            consumer._intake._on_cancel(next(iter(consumer._intake._live)))
            consumer._tend()
        waiting.join(10)
        assert not waiting.is_alive()
