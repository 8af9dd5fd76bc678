"""After tens of thousands of tasks and a few lost connections nobody has grown, and the store is as empty as before."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from fault_support import FaultSite, check_traces, eventually, tree, wait_for
from umbel.exceptions import OperationalError
from umbel.testing.proxy import Proxy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

TASKS = min(30_000, int(os.environ.get("UMBEL_FAULT_TASKS") or 10_000))
WARM = 3000
BATCH = 500
RECONNECTS = 3
#: KiB that a process may keep of all that: arenas of the allocator, filled caches.
GROWTH = 20 << 10
NOTHING = """
@app.task(name="nothing", ignore_result=True)
def nothing():
    pass
"""


@pytest.fixture(params=["sqlite", "redis"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FaultSite, Proxy | None]]:
    """The workers and the producer use the proxy, where there is one."""
    url = request.getfixturevalue(f"{request.param}_url")
    if request.param == "sqlite":
        with FaultSite(tmp_path, url, tasks=NOTHING).closing() as site:
            yield site, None
        return
    with Proxy(url) as proxy, FaultSite(tmp_path, proxy.url, tasks=NOTHING).closing() as site:
        site.env["STORE"] = url
        yield site, proxy


def sizes(pids: list[int]) -> dict[int, tuple[int, int]]:
    """Return for each process its resident KiB and how many files it has open."""
    found = {}
    for pid in pids:
        text = Path(f"/proc/{pid}/status").read_text()
        found[pid] = int(text.partition("\nVmRSS:")[2].split()[0]), len(os.listdir(f"/proc/{pid}/fd"))
    return found


def rows(site: FaultSite) -> dict[str, int]:
    """Return how much is in each part of the store; of a Redis the keys without an end, by their kind."""
    found: dict[str, int] = {}
    file = site.folder / "umbel.db"
    if file.exists():
        with closing(sqlite3.connect(file)) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    with redis.Redis.from_url(site.env["STORE"]) as client:
        for key in client.scan_iter(count=1000):
            if client.ttl(key) == -1:
                kind = key.decode().rpartition(":")[0] or key.decode()
                found[kind] = found.get(kind, 0) + 1
    return found


def waiting(site: FaultSite) -> int:
    """Return how much is anywhere in the queue; a lost connection counts as much."""
    try:
        return sum(site.left().values())
    except OperationalError:
        return TASKS


def run(site: FaultSite, count: int, proxy: Proxy | None = None) -> None:
    """Send so many tasks and wait for their end, with some connections lost on the way."""
    for at in range(0, count, BATCH):
        site.app.send_many([("nothing", ())] * min(BATCH, count - at))
        if proxy is not None and at % (count // (RECONNECTS + 1)) < BATCH and at:
            proxy.reset()
        eventually(lambda: waiting(site) < 2 * BATCH, timeout=30)
    eventually(lambda: waiting(site) == 0, timeout=40)


def test_nothing_grows(case: tuple[FaultSite, Proxy | None], chance: random.Random, row: Any) -> None:
    """F32. Memory and open files of worker and producer, and what the store keeps, are as after the first few."""
    site, proxy = case
    worker = site.start("-c", "2", "-l", "error")
    eventually(lambda: len(tree(worker.process.pid)) >= 4)
    run(site, WARM, proxy)
    wait_for([site.send("plain", number) for number in range(20)], 20)
    everyone = [*tree(worker.process.pid), os.getpid()]
    before, kept = sizes(everyone), rows(site)
    started = time.monotonic()
    run(site, TASKS, proxy)
    row.recovered = time.monotonic() - started
    wait_for([site.send("plain", number) for number in range(20)], 20)
    time.sleep(1.0)
    assert [*tree(worker.process.pid), os.getpid()] == everyone, "a process died"
    after, now = sizes(everyone), rows(site)
    grown = max(after[pid][0] - before[pid][0] for pid in everyone)
    row.load = f"{TASKS} tasks that do nothing"
    row.faults = f"{RECONNECTS if proxy is not None else 0} resets; {grown} KiB more"
    row.lost, row.repeats, row.bound = 0, site.duplicates(), 0
    row.check()
    assert grown < GROWTH
    for pid in everyone:
        # One that is being closed; and here, where the proxy is, both ends of all that are open.
        more = 24 if pid == os.getpid() else 2
        assert after[pid][1] <= before[pid][1] + more, f"process {pid} has {after[pid][1] - before[pid][1]} files more"
    # Results of the last twenty tasks, and what is remembered of publishes for two minutes, may be there.
    grown_rows = {name: count - kept.get(name, 0) for name, count in now.items() if count > kept.get(name, 0) + 50}
    grown_rows.pop("seen", None)
    assert not grown_rows, f"the store keeps {grown_rows}"
    site.stop_all()
    check_traces(site)
