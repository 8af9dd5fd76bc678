"""The broker goes away and comes back: whoever runs goes on, whoever waits is served, and nothing happens twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import TTL, FaultSite, children, eventually, kill, tree, wait_for
from support import WorkerProcess
from umbel.exceptions import OperationalError
from umbel.interfaces import Place
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RedisServer

faults = pytest.mark.faults
#: Seconds for an answer, so that a connection that carries nothing is found while this test waits.
ANSWER = 2.0
#: Seconds until a worker consumes again once its broker answers.
AGAIN = 5.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that keeps what it has confirmed."""
    with RedisServer(appendonly=True) as made:
        yield made


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.url) as made:
        yield made


@pytest.fixture
def site(server: RedisServer, tmp_path: Path) -> Iterator[FaultSite]:
    """The client speaks with the server itself."""
    with FaultSite(tmp_path, server.url, LEASE_TTL="9").closing() as made:
        yield made


def through(site: FaultSite, proxy: Proxy, *options: str, lease: float = 9.0) -> Any:
    """Start a worker behind the proxy. An answer must be given up before the next beat is due."""
    url = f"{proxy.url}?socket_timeout={min(ANSWER, lease / 4):g}"
    return site.start(*options, URL=url, RESULTS=url, LEASE_TTL=str(lease))


def settle(site: FaultSite, row: Any, results: list[Any], bound: int = 0, timeout: float = 40) -> None:
    """Wait for everything and check that each body ran once."""
    row.recovered = wait_for(results, timeout)
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), bound
    row.check()
    site.stop_all()
    for running in site.workers:
        assert "Traceback" not in running.output, running.output


@faults
@pytest.mark.parametrize(
    ("pool", "how"),
    [
        ("prefork", "server killed"),
        ("prefork", "half-open"),
        ("prefork", "connections reset"),
        ("threads", "server killed"),
        ("threads", "half-open"),
        ("asyncio", "server killed"),
    ],
)
def test_a_blip_disturbs_nothing_that_runs(
    site: FaultSite, server: RedisServer, proxy: Proxy, row: Any, pool: str, how: str
) -> None:
    """F10, F11, F15. Shorter than the lease: what runs ends where it runs, and what waits behind it runs once too."""
    through(site, proxy, "-c", "2", "-P", pool).expect("ready.")
    results = [site.send("plain", number, 4.0 if number < 2 else 0.01) for number in range(60)]
    eventually(lambda: len(site.attempts()) >= 2)
    if how == "server killed":
        server.kill()
        time.sleep(2.0)
        server.start()
    elif how == "half-open":
        proxy.swallow()
        time.sleep(2.0)
        proxy.heal(reset=False)
    else:
        for _ in range(10):
            proxy.reset()
            time.sleep(0.2)
    row.load, row.faults = "2 tasks of 4 s, 58 short", how
    settle(site, row, results)


@pytest.mark.parametrize(
    "how",
    ["connections reset", *(pytest.param(how, marks=faults) for how in ("server killed", "half-open"))]
    + [pytest.param(how, marks=faults) for how in ("refused", "answer lost")],
)
def test_an_idle_worker_consumes_again(site: FaultSite, server: RedisServer, proxy: Proxy, row: Any, how: str) -> None:
    """F14. Whoever waits for a first message finds out by itself that its connection carries nothing any more."""
    through(site, proxy, "-c", "2").expect("ready.")
    time.sleep(1.5)
    if how == "server killed":
        server.kill()
        time.sleep(3.0)
        server.start()
    elif how == "half-open":
        proxy.swallow()
        proxy.heal(reset=False)
    elif how == "connections reset":
        proxy.reset()
    elif how == "refused":
        proxy.refuse()
        time.sleep(6.0)
        proxy.heal()
    else:
        # The next look of each process is never answered, and its connection stays.
        proxy.drop_reply(b"EVALSHA", times=3, hang=True)
        time.sleep(1.5)
    results = [site.send("plain", number) for number in range(100)]
    sent = time.monotonic_ns()
    row.load, row.faults = "100 tasks, idle before", how
    settle(site, row, results)
    first = min(attempt.started_at for attempt in site.attempts())
    assert (first - sent) / 1e9 < AGAIN, "it took too long"


@faults
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_new_work_starts_beside_old_after_a_long_outage(
    site: FaultSite, server: RedisServer, proxy: Proxy, row: Any, pool: str
) -> None:
    """Longer than the lease, and nobody has taken over: what runs goes on, and new tasks do not wait for it."""
    worker = through(site, proxy, "-c", "2", "-P", pool, lease=3.0)
    worker.expect("ready.")
    results = [site.send("plain", 0, 14.0)]
    eventually(lambda: len(site.attempts()) == 1)
    proxy.refuse()
    time.sleep(5.0)
    proxy.heal()
    results += [site.send("plain", number) for number in range(1, 40)]
    sent = time.monotonic()
    wait_for(results[1:], 20)
    assert not results[0].ready(), "new work had to wait for what ran"
    assert time.monotonic() - sent < AGAIN + 2.0
    row.load, row.faults = "1 task of 14 s, 39 short", "5 s away, lease 3 s"
    settle(site, row, results)
    assert "lost its lease" not in worker.output


@faults
def test_a_lease_that_was_renewed_too_late(site: FaultSite, row: Any) -> None:
    """The supervisor stands still for longer than the lease: nothing starts meanwhile, and nothing is given up."""
    worker = site.start("-c", "2", "-P", "threads", LEASE_TTL="3")
    worker.expect("ready.")
    results = [site.send("plain", 0, 13.0)]
    eventually(lambda: len(site.attempts()) == 1)
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        time.sleep(3.5)
        results += [site.send("plain", number) for number in range(1, 20)]
        worker.expect("no task starts here until it is")
        time.sleep(1.0)
        assert len(site.attempts()) == 1
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
    wait_for(results[1:], 20)
    assert not results[0].ready(), "new work had to wait for what ran"
    row.load, row.faults = "1 task of 13 s, 19 short", "no beat for 4.5 s; lease 3 s"
    settle(site, row, results)


@faults
def test_the_living_are_given_time_to_come_back(site: FaultSite, server: RedisServer, proxy: Proxy, row: Any) -> None:
    """F10. Whoever is back first does not take the others, who cannot renew yet, for dead."""
    with Proxy(server.url) as slower:
        first = through(site, proxy, "-c", "1", lease=4.5)
        second = through(site, slower, "-c", "1", lease=4.5)
        for worker in (first, second):
            worker.expect("ready.")
        results = [site.send("plain", number, 13.0) for number in range(2)]
        eventually(lambda: len(site.attempts()) == 2)
        for each in (proxy, slower):
            each.refuse()
        time.sleep(6.0)
        proxy.heal()
        # Ten sweeps of the one that is back, each of which finds the lease of the other over.
        first.expect("The connection to the broker is back")
        time.sleep(2.5)
        slower.heal()
        row.load, row.faults = "2 tasks of 13 s", "6 s away, one 2.5 s longer; lease 4.5 s"
        settle(site, row, results)
        assert "Restoring" not in first.output + second.output


@faults
def test_the_dead_are_taken_over_after_an_outage(site: FaultSite, server: RedisServer, proxy: Proxy, row: Any) -> None:
    """That time is one lease, and not for ever."""
    living = through(site, proxy, "-c", "1", lease=TTL)
    living.expect("ready.")
    dying = through(site, proxy, "-c", "1", lease=TTL)
    dying.expect("ready.")
    results = [site.send("plain", number, 6.0) for number in range(2)]
    eventually(lambda: len(site.attempts()) == 2)
    proxy.refuse()
    kill(dying)
    time.sleep(2 * TTL)
    proxy.heal()
    row.load, row.faults = "2 tasks of 6 s", "away, and 1 of 2 workers killed meanwhile"
    row.recovered = wait_for(results, 40)
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), 1
    row.check()
    assert row.repeats == 1 and "Restoring 1 unacknowledged" in living.output
    site.stop_all()


@faults
def test_a_cut_off_worker_is_not_taken_over_before_its_lease_ends(
    site: FaultSite, server: RedisServer, proxy: Proxy, row: Any
) -> None:
    """Another worker is connected all the time, and must not take a blip of this one for its death."""
    connected = site.start("-c", "1", LEASE_TTL="9")
    connected.expect("ready.")
    cut = through(site, proxy, "-c", "1")
    cut.expect("ready.")
    results = [site.send("plain", number, 12.0) for number in range(2)]
    eventually(lambda: len(site.attempts()) == 2)
    proxy.refuse()
    time.sleep(8.0)
    proxy.heal()
    row.load, row.faults = "2 tasks of 12 s", "1 of 2 cut off for 8 s; lease 9 s"
    settle(site, row, results)
    assert "Restoring" not in connected.output


@pytest.fixture
def local(tmp_path: Path, sqlite_url: str) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, sqlite_url, LEASE_TTL="3").closing() as made:
        yield made


@faults
def test_a_file_that_is_locked_for_a_while(local: FaultSite, row: Any) -> None:
    """Another program holds the file for longer than anyone waits, and than the lease: nothing is lost or repeated."""
    for _ in range(2):
        local.start("-c", "2").expect("ready.")
    results = [local.send("plain", number, 2.0 if number < 2 else 0.01) for number in range(60)]
    eventually(lambda: len(local.attempts()) >= 2)
    with contextlib.closing(sqlite3.connect(local.folder / "umbel.db", isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(7.0)
        with pytest.raises(OperationalError):
            local.send("plain", 60)
        other.execute("ROLLBACK")
    results += [local.send("plain", number) for number in range(60, 80)]
    row.load, row.faults = "80 tasks, 2 x 2 processes", "the file locked for 9 s; lease 3 s"
    settle(local, row, results)
    assert "Restoring" not in "".join(running.output for running in local.workers)


def test_a_folder_that_is_read_only_for_a_while(local: FaultSite, row: Any) -> None:
    """A process that is started meanwhile is started again until it can write; the others never closed the file."""
    # Root may write anywhere unless this is taken from it.
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if bound and shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv: apt-get install util-linux")
    command = [*bound, sys.executable, "-m", "umbel", "-A", "jobs", "worker", "-c", "2", "-l", "info", "-n", "w0@test"]
    running = WorkerProcess(command, local.folder, local.env)
    local.workers.append(running)
    running.expect("ready.")
    results = [local.send("plain", number) for number in range(10)]
    wait_for(results, 20)
    files = [*local.folder.glob("umbel.db*"), local.folder]
    modes = {file: file.stat().st_mode for file in files}
    for file, mode in modes.items():
        file.chmod(mode & 0o577)
    try:
        for pid in children(running.process.pid):
            os.kill(pid, signal.SIGKILL)
        results += [local.send("plain", number) for number in range(10, 20)]
        running.expect("name a file that this user can write")
        time.sleep(1.0)
        assert not any(result.ready() for result in results[10:])
    finally:
        for file, mode in modes.items():
            file.chmod(mode)
    row.load, row.faults = "20 tasks", "the folder read-only, its processes killed"
    row.recovered = wait_for(results, 40)
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = local.duplicates(), 0
    row.check()
    local.stop_all()


# -- later ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "redis"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FaultSite, RedisServer | None]]:
    if request.param == "sqlite":
        with FaultSite(tmp_path, request.getfixturevalue("sqlite_url")).closing() as made:
            yield made, None
        return
    server = request.getfixturevalue("server")
    with FaultSite(tmp_path, server.url).closing() as made:
        yield made, server


@faults
def test_what_is_due_later_runs_once_and_never_early(either: tuple[FaultSite, RedisServer | None], row: Any) -> None:
    """F21. Workers are killed and replaced, and the server is too."""
    site, server = either
    worker = site.start("-c", "2")
    worker.expect("ready.")
    started = time.monotonic()
    due = {number: 1.0 + number % 80 / 10 for number in range(160)}
    results = [site.send("plain", number, countdown=due[number]) for number in due]
    latest_send = time.monotonic()
    for _ in range(2):
        time.sleep(2.0)
        kill(worker)
        if server is not None:
            site.app.close()
            server.kill()
            server.start()
        worker = site.start("-c", "2")
        worker.expect("ready.")
    row.load, row.faults = "160 tasks, 1 to 9 s ahead", "2 workers killed" + (", the server twice" if server else "")
    row.recovered = wait_for(results, 40)
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats, row.bound = site.duplicates(), 2 * 2 * 4
    row.check()
    by_id = {result.id: number for number, result in enumerate(results)}
    for attempt in site.attempts():
        early = started + due[by_id[attempt.task_id]] - attempt.started_at / 1e9
        # Sent between these two moments, so due so much after the first at least.
        assert early <= 0.0, f"it ran {early:.3f} s early"
    assert latest_send - started < 5.0
    for attempts in site.repeats().values():
        assert all(site.died(attempt) for attempt in attempts[:-1]), "it ran again although its process lived"
    site.stop_all()


def pss(pid: int) -> int:
    """Return the KiB that the process and all below it have for themselves."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0])
    return total


@faults
@pytest.mark.parametrize("number", [100_000])
def test_a_hundred_thousand_tasks_for_tomorrow(
    either: tuple[FaultSite, RedisServer | None], row: Any, number: int
) -> None:
    """F22. They cost a worker nothing, and nobody waits for them."""
    site, _ = either
    worker = site.start("-c", "2")
    worker.expect("ready.")
    wait_for([site.send("plain", each) for each in range(200)], 20)
    time.sleep(1.5)
    before = pss(worker.process.pid)
    for start in range(0, number, 5000):
        site.app.send_many([("plain", (each,)) for each in range(start, start + 5000)], countdown=86400)
    assert site.app.broker.size("celery", Place.SCHEDULED) == number
    started = time.monotonic()
    row.recovered = wait_for([site.send("plain", each) for each in range(200)], 20)
    took = time.monotonic() - started
    time.sleep(1.5)
    grown = pss(worker.process.pid) - before
    row.load, row.faults = f"{number} a day ahead, 400 now", f"{grown} KiB more"
    row.lost, row.repeats, row.bound = 0, site.duplicates(), 0
    row.check()
    assert took < 10.0
    assert grown <= 2048, f"the worker grew by {grown} KiB"
    assert len(site.attempts()) == 400
    site.app.broker.purge("celery", Place.SCHEDULED)
    site.stop_all()
