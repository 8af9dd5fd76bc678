"""The Redis that everybody uses dies, and a replica that is behind takes its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fault_support import FaultSite, check_traces, eventually, wait_for
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RedisServer

pytestmark = pytest.mark.faults

BEFORE, BEHIND = 2000, 1000
SECONDS = 0.004
LEASE = "6"


def command(server: RedisServer, *words: str) -> Any:
    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*words)


def offset(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("replication")["master_repl_offset"])


@pytest.fixture
def servers() -> Iterator[tuple[RedisServer, RedisServer, Proxy]]:
    """A server, its replica, and what the replica is connected through."""
    with RedisServer(appendonly=True) as first, RedisServer(appendonly=True) as second, Proxy(first.url) as line:
        command(second, "REPLICAOF", "127.0.0.1", str(line.port))
        eventually(lambda: redis.Redis.from_url(second.url).info("replication")["master_link_status"] == "up")
        yield first, second, line


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_replica_that_is_behind_takes_over(
    servers: tuple[RedisServer, RedisServer, Proxy], tmp_path: Path, row: Any
) -> None:
    """F26. What the replica had received is done; of the rest nothing is stuck. Results are elsewhere."""
    first, second, line = servers
    urls = f"{first.url};{second.url}"
    with FaultSite(tmp_path, urls, f"sqlite:///{tmp_path}/results.db", LEASE_TTL=LEASE).closing() as site:
        workers = [site.start("-c", "2") for _ in range(2)]
        for worker in workers:
            worker.expect("ready.")
        kept = [site.send("plain", number, SECONDS) for number in range(BEFORE)]
        eventually(lambda: offset(first) == offset(second))
        line.swallow()
        cut = time.monotonic_ns()
        behind = [site.send("plain", number, SECONDS) for number in range(BEFORE, BEFORE + BEHIND)]
        first.kill()
        dead = time.monotonic_ns()
        command(second, "REPLICAOF", "NO", "ONE")
        line.heal()
        row.recovered = wait_for(kept, 40)
        more = [site.send("plain", number, SECONDS) for number in range(100)]
        wait_for(more, 20)
        eventually(lambda: site.left() == {}, timeout=20)
        fresh = [site.app.AsyncResult(each.id) for each in behind]
        lost = sum(not each.ready() for each in fresh)
        row.load = f"{BEFORE} received by the replica, {BEHIND} not"
        row.faults = f"failover to it; {lost} lost"
        row.lost = sum(each.result != number * 2 for part in (kept, more) for number, each in enumerate(part))
        row.repeats = site.duplicates()
        # Whose ends the replica had not received: all that ran between the cut and the death, and what ran then.
        row.bound = sum(cut <= each.started_at <= dead or each.ended_at >= cut for each in site.attempts())
        row.check()
        assert lost <= BEHIND
        for each in fresh:
            assert not each.ready() or each.successful()
        ended = [attempts[0].ended_at for attempts in site.repeats().values() if attempts[0].ended_at]
        assert sum(at < cut for at in ended) <= 4 * 3, "what had ended, and had been told, before the cut ran again"
        site.stop_all()
        check_traces(site)
