"""Connections to Redis that break in the worst places: nothing is lost, and nothing happens twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, eventually, wait_for
from umbel import Umbel
from umbel.brokers.redis import RedisBroker
from umbel.brokers.redis.client import Source
from umbel.brokers.redis.layout import RESERVE, SETTLE
from umbel.brokers.redis.pubsub import RedisSubscription
from umbel.exceptions import OperationalError, PublishUnknown
from umbel.interfaces import Place
from umbel.message import Message
from umbel.testing.proxy import Proxy


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_url) as made:
        yield made


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Iterator[FaultSite]:
    """The client speaks with the server itself; the workers are told to use the proxy."""
    with FaultSite(tmp_path, redis_url, LEASE_TTL="6").closing() as made:
        yield made


@pytest.fixture
def producer(proxy: Proxy) -> Iterator[Umbel]:
    app = Umbel("producer", broker=proxy.url, backend=proxy.url, set_as_current=False)
    app.conf.publish_timeout = 5.0
    yield app
    app.close()


def through(site: FaultSite, proxy: Proxy, *options: str) -> Any:
    worker = site.start("-c", "2", *options, URL=proxy.url, RESULTS=proxy.url)
    worker.expect("ready.")
    return worker


def test_a_publish_whose_answer_is_lost_makes_one_task(producer: Umbel, proxy: Proxy, row: Any) -> None:
    """F12. Without a retry the caller is told that nobody knows; publishing again with the same id settles it."""
    unknown = 0
    for number in range(60):
        lost = number % 10 == 0
        if lost:
            proxy.drop_reply(b"EVALSHA")
        try:
            producer.send_task("plain", args=(number,), task_id=f"id-{number}", retry=False)
        except PublishUnknown as error:
            unknown += 1
            assert error.task_id == f"id-{number}"
            producer.send_task("plain", args=(number,), task_id=f"id-{number}", retry=False)
    size = producer.broker.size("celery")
    row.load, row.faults = "60 publishes", f"{proxy.dropped} answers lost"
    row.lost, row.repeats, row.bound = max(0, 60 - size), max(0, size - 60), 0
    row.check()
    assert unknown == proxy.dropped == 6


def test_a_publish_that_is_retried_makes_one_task(producer: Umbel, proxy: Proxy) -> None:
    proxy.drop_reply(b"EVALSHA", times=2)
    producer.send_task("plain", args=(1,))
    assert (producer.broker.size("celery"), proxy.dropped) == (1, 2)


def test_a_publish_to_a_server_that_is_down_says_so_in_time(producer: Umbel, proxy: Proxy) -> None:
    producer.send_task("plain", args=(1,))
    producer.conf.publish_timeout = 0.5
    proxy.refuse()
    with pytest.raises(OperationalError):
        producer.send_task("plain", args=(2,))
    proxy.heal()
    producer.send_task("plain", args=(3,))
    assert producer.broker.size("celery") == 2


def test_a_subscription_that_is_half_open_is_found(redis_url: str, proxy: Proxy) -> None:
    """F14. Nothing is sent on it, so that it has to ask now and then, or be deaf for ever."""
    with closing(RedisBroker(redis_url)) as broker:
        broker.open()
        subscription = RedisSubscription(Source(proxy.url, {}), "/0.ev", "#", True, doubted=0.3)
        with closing(subscription):
            broker.pubsub().publish("ev", Message(body=b"before"))
            first = subscription.receive(timeout=10.0)
            assert first is not None and first.body == b"before"
            asked = proxy.accepted
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                assert subscription.receive(timeout=0.1) is None
            assert proxy.accepted == asked  # one that answers is kept
            proxy.swallow()
            broker.pubsub().publish("ev", Message(body=b"lost"))
            proxy.heal(reset=False)
            message = None
            deadline = time.monotonic() + 15.0
            while message is None and time.monotonic() < deadline:
                message = subscription.receive(timeout=0.2)
                broker.pubsub().publish("ev", Message(body=b"after"))
            assert message is not None and message.body == b"after"


@pytest.mark.faults
@pytest.mark.parametrize("script", [SETTLE, RESERVE], ids=["settle", "reserve"])
def test_answers_to_a_worker_are_lost(site: FaultSite, proxy: Proxy, script: Any, row: Any) -> None:
    """F12. What was settled is not run again, and what was reserved unseen is found; no process has died."""
    worker = through(site, proxy)
    results = []
    for _ in range(5):
        proxy.drop_reply(script.sha)
        results += [site.send("plain", number) for number in range(40)]
        wait_for(results, timeout=30)
        eventually(lambda: site.app.broker.size("celery", Place.HELD) == 0, timeout=15)
    row.load, row.faults = "200 tasks", f"{proxy.dropped} answers lost"
    row.lost = sum(result.result != number % 40 * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), 0
    row.check()
    assert proxy.dropped >= 3
    assert worker.process.poll() is None
    site.stop_all()


@pytest.mark.faults
@pytest.mark.parametrize("reset", [True, False], ids=["then reset", "for ever"])
def test_half_open_connections(site: FaultSite, proxy: Proxy, row: Any, reset: bool) -> None:
    """F14. Connections that stay and carry nothing are found, and the worker consumes soon after new ones work."""
    through(site, proxy)
    wait_for([site.send("plain", number) for number in range(10)], timeout=20)
    proxy.swallow()
    results = [site.send("plain", number) for number in range(50)]
    time.sleep(3.0)
    assert not any(result.ready() for result in results)
    proxy.heal(reset=reset)
    row.recovered = wait_for(results, timeout=20)
    row.load, row.faults = "60 tasks", "3 s half-open"
    row.lost, row.repeats, row.bound = sum(not result.successful() for result in results), site.duplicates(), 2
    row.check()
    site.stop_all()


@pytest.mark.faults
def test_resets_all_the_time(site: FaultSite, proxy: Proxy, row: Any) -> None:
    """F11. Each 50 ms or so all connections of a worker end with a reset."""
    through(site, proxy)
    results, resets = [], 0
    for number in range(400):
        results.append(site.send("plain", number, 0.002))
        if number % 20 == 0:
            resets += proxy.reset()
            time.sleep(0.05)
    row.recovered = wait_for(results, timeout=30)
    row.load, row.faults = "400 tasks", f"{resets} resets"
    row.lost = sum(not result.successful() for result in results)
    row.repeats, row.bound = site.duplicates(), 0
    row.check()
    site.stop_all()
