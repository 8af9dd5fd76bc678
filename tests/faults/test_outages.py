"""The server or the way to it is lost under load, for workers and for a publisher."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import TTL, FaultSite, check_traces, eventually, send_many, wait_for
from umbel import Umbel
from umbel.exceptions import OperationalError, PublishUnknown
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RedisServer

pytestmark = pytest.mark.faults

# Of one process whose settle is cut off: what it ran, and what had ended within the window in which outcomes are
# settled together; the third is for a machine that is busy.
PER_PROCESS = 3


@pytest.fixture
def proxied(redis_url: str, tmp_path: Path) -> Iterator[tuple[FaultSite, Proxy]]:
    """The client speaks with the server itself, the workers by way of the proxy."""
    with Proxy(redis_url) as proxy, FaultSite(tmp_path, redis_url).closing() as made:
        made.env |= {"URL": proxy.url, "RESULTS": proxy.url}
        yield made, proxy


def test_the_server_is_killed(tmp_path: Path, chance: random.Random, row: Any) -> None:
    """F15. Redis with every write on disk is killed and started again; confirmed tasks are all there."""
    with RedisServer(appendonly=True) as server, FaultSite(tmp_path, server.url, LEASE_TTL="3").closing() as site:
        workers = [site.start("-c", "2") for _ in range(2)]
        for worker in workers:
            worker.expect("ready.")
        results = send_many(site, 1500, 0.004)
        for _ in range(2):
            time.sleep(chance.uniform(0.3, 0.8))
            server.kill()
            time.sleep(0.5)
            server.start()
        row.load, row.faults = "1500 tasks, 2 x 2 processes", "2 kills of redis-server"
        row.recovered = wait_for(results, 30)
        row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
        row.repeats, row.bound = site.duplicates(), 0
        row.check()
        site.stop_all()
        check_traces(site)


def test_an_outage_longer_than_the_lease(proxied: tuple[FaultSite, Proxy], row: Any) -> None:
    """F10. Nobody can renew for two leases; when the server is back, the living are not taken for dead."""
    site, proxy = proxied
    workers = [site.start("-c", "2") for _ in range(2)]
    for worker in workers:
        worker.expect("ready.")
    results = send_many(site, 600, 0.004)
    time.sleep(0.3)
    proxy.refuse()
    time.sleep(2 * TTL)
    proxy.heal()
    row.load, row.faults = "600 tasks, 2 x 2 processes", f"{2 * TTL:g} s without a server"
    row.recovered = wait_for(results, 30)
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    # What ran or had ended when the connections broke could not be settled in time.
    row.repeats, row.bound = site.duplicates(), PER_PROCESS * 4
    row.check()
    site.stop_all()


def test_a_publisher_in_an_outage(proxied: tuple[FaultSite, Proxy], chance: random.Random, row: Any) -> None:
    """F12. Answers are lost, connections reset, the server is away: what was accepted runs, and all of it once."""
    site, proxy = proxied
    site.start("-c", "2").expect("ready.")
    producer = Umbel("producer", broker=proxy.url, backend=proxy.url, set_as_current=False)
    producer.conf.publish_timeout = 1.0
    accepted, unknown, refused = [], [], []
    faults: list[Callable[[], object]] = [lambda: proxy.drop_reply(b"EVALSHA"), proxy.reset, proxy.refuse]
    try:
        for number in range(300):
            if number % 20 == 10:
                chance.choice(faults)()
            try:
                accepted.append(producer.send_task("plain", args=(number,), retry=chance.random() < 0.5).id)
            except PublishUnknown as error:
                unknown.append(error.task_id)
            except OperationalError:
                refused.append(number)
                proxy.heal()
    finally:
        proxy.heal()
        producer.close()
    started = time.monotonic()
    results = [site.app.AsyncResult(id) for id in accepted]
    wait_for(results, 20)
    eventually(lambda: site.left() == {})
    row.load = f"300 publishes: {len(unknown)} unknown, {len(refused)} refused"
    row.faults, row.recovered = "15 faults", time.monotonic() - started
    ran = {attempt.task_id for attempt in site.attempts()}
    row.lost = len(set(accepted) - ran)
    row.repeats, row.bound = site.duplicates(), PER_PROCESS * 15
    row.check()
    # Beyond what was accepted, only what nobody could know about.
    assert ran <= set(accepted) | set(unknown)
    site.stop_all()
