"""Several Redis servers in one URL: who is away is passed over, at the start and at each reconnect."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

from redis_support import consumer_of, opened
from umbel import Umbel
from umbel.brokers.redis import RedisBroker
from umbel.brokers.redis.client import Source
from umbel.brokers.redis.link import Link
from umbel.drivers import failover
from umbel.exceptions import ImproperlyConfigured, LeaseLost, OperationalError
from umbel.testing.broker_base import bodies, outgoing
from umbel.testing.servers import RedisServer, free_port
from umbel.worker.inprocess import start_worker


@pytest.fixture
def servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    with RedisServer() as first, RedisServer() as second:
        yield first, second


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def at(closing: Any, server: RedisServer) -> RedisBroker:
    return opened(closing, server.url)


def demote(server: RedisServer, master: RedisServer) -> None:
    """Make the server a replica of the other one."""
    link = Link(Source(server.url, {}))
    assert link.call("REPLICAOF", "127.0.0.1", str(master.port)) == b"OK"
    link.close()


def test_who_is_away_at_the_start_is_passed_over(closing: Any, servers: Any) -> None:
    first, second = servers
    first.kill()
    broker = opened(closing, first.url, alternates=(second.url,))
    broker.publish([outgoing(b"x")])
    assert bodies(at(closing, second).peek("q")) == [b"x"]


def test_everything_goes_on_at_the_next_one(closing: Any, servers: Any) -> None:
    first, second = servers
    broker = opened(closing, f"{first.url};{second.url}")
    consumer, leases, id = consumer_of(closing, broker)
    broker.publish([outgoing(b"1")])
    assert len(consumer.reserve(1)) == 1
    first.kill()
    with contextlib.suppress(OperationalError):
        broker.publish([outgoing(b"2")])
    broker.publish([outgoing(b"3")])
    assert b"3" in bodies(at(closing, second).peek("q"))
    # The other server has never heard of this consumer, which says so and takes a new id.
    with pytest.raises(LeaseLost):
        for _ in range(3):
            with contextlib.suppress(OperationalError):
                consumer.reserve(1)
    assert list(leases.renew([id])) == [id]
    anew = broker.consumer(leases.register("node"), ["q"])
    closing.callback(anew.close)
    assert b"3" in bodies(anew.reserve(5))


def test_one_stays_where_one_is_while_that_answers(closing: Any, servers: Any) -> None:
    first, second = servers
    first.kill()
    broker = opened(closing, first.url, alternates=(second.url,))
    first.start()
    for number in range(3):
        broker.publish([outgoing(b"%d" % number)])
        broker.close()
        broker.open()
    assert at(closing, second).size("q") == 3


def test_one_that_does_not_answer_leaves_time_for_the_next(closing: Any, servers: Any) -> None:
    _, second = servers
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        broker = opened(closing, url, alternates=(second.url,), publish_timeout=0.6)
        broker.publish([outgoing(b"x")])
    assert at(closing, second).size("q") == 1


def test_a_replica_is_passed_over(closing: Any, servers: Any) -> None:
    first, second = servers
    demote(first, second)
    broker = opened(closing, first.url, alternates=(second.url,))
    broker.publish([outgoing(b"x")])
    assert at(closing, second).size("q") == 1
    alone = opened(closing, first.url)
    with pytest.raises(OperationalError, match="READONLY"):
        alone.publish([outgoing(b"y")])


def test_a_master_that_became_a_replica_is_left(closing: Any, servers: Any) -> None:
    first, second = servers
    broker = opened(closing, first.url, alternates=(second.url,))
    broker.publish([outgoing(b"1")])
    demote(first, second)
    with pytest.raises(OperationalError):
        broker.publish([outgoing(b"2")])
    broker.publish([outgoing(b"3")])
    assert bodies(at(closing, second).peek("q")) == [b"3"]


def test_all_are_named_when_none_is_there() -> None:
    ports = [free_port() for _ in range(3)]
    with pytest.raises(OperationalError) as caught:
        Source(";".join(f"redis://:secret@127.0.0.1:{port}/0" for port in ports), {}).connect(1.0)
    assert [str(caught.value).index(f":{port}:") for port in ports] == sorted(
        str(caught.value).index(f":{port}:") for port in ports
    )
    assert "secret" not in str(caught.value)


def order(strategy: Any, *urls: str) -> list[int]:
    """Return the order in which the servers of a list are tried, none of which is there."""
    source = Source(urls[0], {"alternates": urls[1:], "failover_strategy": failover(strategy)})
    failed: dict[int, None] = {}
    while len(failed) < len(source.targets):
        failed[source._choose(failed)] = None
    return list(failed)


def stubborn(urls: list[str]) -> Iterator[str]:
    """Name the last one only."""
    return cycle(urls[-1:])


def test_the_order_is_the_strategy_s() -> None:
    urls = [f"redis://h:{number}/0" for number in range(1, 5)]
    assert order(None, *urls) == order("round-robin", *urls) == [0, 1, 2, 3]
    assert order(stubborn, *urls) == [0, 3, 1, 2]
    assert order(lambda given: iter(given[2:3]), *urls) == [0, 2, 1, 3]
    found = [order("shuffle", *urls) for _ in range(60)]
    assert all(one[0] == 0 and sorted(one) == [0, 1, 2, 3] for one in found)
    assert len({tuple(one) for one in found}) > 1


def test_a_wrong_strategy_is_refused() -> None:
    for wrong in ("roundrobin", "nowhere.at_all", 7, ""):
        with pytest.raises(ImproperlyConfigured, match="round-robin or shuffle"):
            failover(wrong)
    with pytest.raises(ImproperlyConfigured, match="not in broker_url"):
        order(lambda urls: iter(["redis://elsewhere"]), "redis://a", "redis://b")
    assert list(zip(failover("itertools.cycle")(["a"]), range(2), strict=False)) == [("a", 0), ("a", 1)]


def test_one_failure_of_many_threads_moves_on_once(servers: Any) -> None:
    first, second = servers
    first.kill()
    source = Source(first.url, {"alternates": (second.url,)})
    reached: list[int] = []

    def connect() -> None:
        with source.connect(5.0) as sock:
            reached.append(sock.getpeername()[1])

    threads = [threading.Thread(target=connect) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reached == [second.port] * 12


def test_a_worker_moves_with_its_clients(servers: Any, tmp_path: Any) -> None:
    first, second = servers
    app = Umbel(
        "moving",
        broker=[first.url, second.url],
        backend=f"sqlite:///{tmp_path}/results.db",
        lease_heartbeat=1.0,
        lease_ttl=3.0,
        set_as_current=False,
    )

    @app.task
    def double(x: int) -> int:
        return 2 * x

    with start_worker(app, pool="threads"):
        assert double.delay(1).get(timeout=10) == 2
        first.kill()
        assert double.delay(2).get(timeout=20) == 4
        assert double.delay(3).get(timeout=20) == 6
    app.close()
