"""Stores that are full: publishing says so, what was accepted stays, and everything goes on when there is room."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fault_support import FaultSite, check_traces, eventually, wait_for
from umbel.exceptions import OperationalError
from umbel.interfaces import Place
from umbel.testing.servers import RedisServer

pytestmark = pytest.mark.faults

_CLONE_NEWNS = 0x00020000
_MS_PRIVATE = 1 << 18
_MS_REC = 1 << 14
SIZE = "12m"  # SQLite copies its log into the file when that has 4 MB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for twelve megabytes, which only this process and its children see."""
    if os.geteuid():
        pytest.skip("needs root, to mount a small file system in a namespace of its own")
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "small"
    folder.mkdir()
    outside = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
            pytest.skip(f"needs a mount namespace: {os.strerror(ctypes.get_errno())}")
        done = libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={SIZE}".encode())
        if done:
            pytest.skip(f"needs tmpfs: {os.strerror(ctypes.get_errno())}")
        yield folder
        libc.umount2(bytes(folder), 2)
    finally:
        libc.setns(outside, _CLONE_NEWNS)
        os.close(outside)


class Ballast:
    """A file that takes all the room there is."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ballast"

    def fill(self) -> None:
        with self.file.open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def drop(self) -> None:
        self.file.unlink()


class Sender(threading.Thread):
    """Sends one task after the other, and notes what was accepted and what was refused."""

    def __init__(self, site: FaultSite, name: str) -> None:
        super().__init__()
        self.site, self.prefix = site, name
        self.accepted: list[Any] = []
        self.refused: list[OperationalError] = []
        self.errors: list[BaseException] = []
        self.enough = threading.Event()

    def run(self) -> None:
        try:
            while not self.enough.wait(0.01):
                number = len(self.accepted)
                try:
                    self.accepted.append(self.site.send("plain", number))
                except OperationalError as error:
                    self.refused.append(error)
        # Looked at in the test, where it can fail of it.
        except BaseException as error:
            self.errors.append(error)


def test_a_disk_that_is_full(small_disk: Path, tmp_path: Path, row: Any) -> None:
    """F29. Publishing is refused, nothing accepted is lost, the file is whole, and the workers go on by themselves."""
    with FaultSite(tmp_path, f"sqlite:///{small_disk}/umbel.db").closing() as site:
        workers = [site.start("-c", "1") for _ in range(2)]
        for worker in workers:
            worker.expect("ready.")
        senders = [Sender(site, name) for name in ("one", "two")]
        ballast = Ballast(small_disk)
        for sender in senders:
            sender.start()
        try:
            for _ in range(3):
                time.sleep(1.0)
                before = sum(len(sender.refused) for sender in senders)
                ballast.fill()
                eventually(lambda: sum(len(sender.refused) for sender in senders) > before + 2)  # noqa: B023
                time.sleep(1.0)
                ballast.drop()
        finally:
            for sender in senders:
                sender.enough.set()
                sender.join(20)
        assert not [error for sender in senders for error in sender.errors]
        refused = [error for sender in senders for error in sender.refused]
        assert any("full" in str(error) for error in refused), refused[:3]
        results = [result for sender in senders for result in sender.accepted]
        row.recovered = wait_for(results, 30)
        row.load, row.faults = f"{len(results)} tasks", f"3 times full; {len(refused)} publishes refused"
        row.lost = sum(result.result != at * 2 for sender in senders for at, result in enumerate(sender.accepted))
        # What could not be settled in time may have been given back by a process that ended of it.
        row.repeats, row.bound = site.duplicates(), 2 * 3 * len(workers)
        row.check()
        assert {attempt.task_id for attempt in site.attempts()} == {result.id for result in results}
        site.stop_all()
        done = subprocess.run(
            [sys.executable, "-c", CHECK, str(small_disk / "umbel.db")], capture_output=True, text=True, check=True
        )
        assert done.stdout == "ok\n"


CHECK = """
import sqlite3, sys
for (line,) in sqlite3.connect(sys.argv[1]).execute("PRAGMA integrity_check"):
    print(line)
"""

LIMITED = """
import json, os, resource, sys
import jobs
from umbel.exceptions import OperationalError, PublishUnknown

# What it may write: little more than is there.
largest = max(os.path.getsize(path) for path in (sys.argv[1], sys.argv[1] + "-wal"))
said = {"accepted": [], "unknown": [], "refused": 0}
for limit in (largest + 50_000, largest + 100_000, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    failed = 0
    for number in range(300):
        try:
            said["accepted"].append(jobs.app.send_task("plain", args=(number, 0.0)).id)
        except PublishUnknown as error:
            said["unknown"].append(error.task_id)
            failed += 1
        except OperationalError:
            said["refused"] += 1
            failed += 1
        if failed == 5:
            break
print(json.dumps(said))
"""


def test_a_process_that_may_write_no_more(tmp_path: Path, sqlite_url: str, row: Any) -> None:
    """F29. RLIMIT_FSIZE makes writes fail in the middle: each failed publish is told, and the file is whole."""
    import json

    with FaultSite(tmp_path, sqlite_url).closing() as site:
        site.send("plain", 0).forget()
        site.app.broker.purge("celery")
        file = str(tmp_path / "umbel.db")
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, file],
            cwd=site.folder,
            env=site.env,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["refused"] + len(said["unknown"]) >= 10, said
        site.start("-c", "2")
        accepted = [site.app.AsyncResult(id) for id in said["accepted"]]
        row.recovered = wait_for(accepted, 20)
        eventually(lambda: site.left() == {})
        ran = {attempt.task_id for attempt in site.attempts()}
        row.load = f"{len(accepted)} accepted, {len(said['unknown'])} unknown"
        row.faults = f"{said['refused']} refused by RLIMIT_FSIZE"
        row.lost, row.repeats, row.bound = len(set(said["accepted"]) - ran), site.duplicates(), 0
        row.check()
        assert ran <= {*said["accepted"], *said["unknown"]}
        site.stop_all()
        check_traces(site)


# -- Redis ---------------------------------------------------------------------------------------------------------


def command(server: RedisServer, *words: str) -> Any:
    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*words)


def fill(server: RedisServer) -> None:
    """Let it have less memory than it uses."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) // 2)


def test_a_redis_that_is_full(tmp_path: Path, row: Any) -> None:
    """F30. With noeviction a publish is refused and says why; workers keep their leases and end what is there."""
    settings = {"maxmemory-policy": "noeviction"}
    with RedisServer(settings=settings) as server, FaultSite(tmp_path, server.url, LEASE_TTL="3").closing() as site:
        worker = site.start("-c", "2")
        worker.expect("ready.")
        wait_for([site.send("plain", number) for number in range(50)], 20)
        gate = site.folder / "gate"
        held = [site.send("waiting", number, str(gate)) for number in range(2)]
        eventually(lambda: len(site.attempts()) == 52)
        results = [site.send("plain", number, 0.001) for number in range(300)]
        later = [site.send("plain", number, countdown=2.0) for number in range(100)]
        fill(server)
        refused = 0
        for number in range(20):
            with pytest.raises(OperationalError, match="(?i)maxmemory|OOM"):
                site.send("plain", number)
            refused += 1
        # Longer than the lease: nobody may be taken for dead because it cannot say that it lives.
        time.sleep(5.0)
        gate.touch()
        row.recovered = wait_for([*held, *results, *later], 20)
        assert "lost its lease" not in worker.output
        command(server, "CONFIG", "SET", "maxmemory", "0")
        more = [site.send("plain", number) for number in range(50)]
        wait_for(more, 20)
        row.load, row.faults = "402 tasks", f"no memory left; {refused} publishes refused"
        parts = (held, results, later, more)
        row.lost = sum(result.result != number * 2 for part in parts for number, result in enumerate(part))
        row.repeats, row.bound = site.duplicates(), 0
        row.check()
        site.stop_all()
        check_traces(site)


def test_a_redis_that_is_full_while_a_worker_dies(tmp_path: Path, row: Any) -> None:
    """F30. Taking over from the dead only moves what is there, so it works without memory, as does registering."""
    settings = {"maxmemory-policy": "noeviction"}
    with RedisServer(settings=settings) as server, FaultSite(tmp_path, server.url).closing() as site:
        first = site.start("-c", "2")
        first.expect("ready.")
        gate = site.folder / "gate"
        results = [site.send("waiting", number, str(gate)) for number in range(20)]
        eventually(lambda: len(site.attempts()) == 2)
        fill(server)
        first.process.kill()
        first.process.wait(10)
        gate.touch()
        second = site.start("-c", "2")
        row.recovered = wait_for(results, 30)
        row.load, row.faults = "20 tasks", "no memory left, 1 worker killed"
        row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
        row.repeats, row.bound = site.duplicates(), 2
        row.check()
        assert "Restoring" in second.output
        site.stop_all()


def test_a_redis_that_deletes_what_it_likes(tmp_path: Path) -> None:
    """F30. With allkeys-lru a worker says what that means when it starts, and where durability is strict does not."""
    settings = {"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru", "appendonly": "yes"}
    strict = "\napp.conf.durability = os.environ.get('DURABILITY')\n"
    with RedisServer(settings=settings) as server, FaultSite(tmp_path, server.url, tasks=strict).closing() as site:
        lax = site.start("-c", "1")
        lax.expect("ready.")
        assert "with allkeys-lru a full server deletes messages" in lax.output
        refused = site.start("-c", "1", DURABILITY="strict")
        assert refused.process.wait(20) == 78, refused.output
        assert "durability='strict'" in refused.output
        assert site.app.broker.size("celery", Place.READY) == 0
        site.stop_all()
