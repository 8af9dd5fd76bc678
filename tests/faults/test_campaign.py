"""Everything at once: producers and workers under load, and a random process killed again and again.

``UMBEL_FAULT_TASKS`` says how many tasks (4,000; ``make faults`` sends 50,000), ``UMBEL_FAULT_SEED`` repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import (
    FaultSite,
    Kill,
    alive,
    check_repeats,
    check_traces,
    children,
    eventually,
    kill_worker,
    left_unsettled,
)
from support import WorkerProcess

TASKS = int(os.environ.get("UMBEL_FAULT_TASKS") or 4000)
PRODUCERS = PROCESSES = 4
SECONDS = 0.0005
EVERY = (0.2, 0.8) if TASKS < 20_000 else (1.0, 3.0)
LONGEST = 60 + TASKS / 250

PRODUCER = """
import os
import sys
import jobs

name, count, seconds, file = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
accepted = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
# Whoever had this name before was killed. What it had not noted down may have been accepted, or may not.
first = os.read(accepted, 1 << 24).count(b"\\n")
for number in range(first, count):
    jobs.app.send_task("plain", args=(number, seconds), task_id=f"{name}-{number}")
    os.write(accepted, f"{name}-{number}\\n".encode())
"""


class Producer:
    """A process that sends tasks, and notes each when it was accepted; started anew it goes on where it was."""

    def __init__(self, site: FaultSite, name: str, count: int) -> None:
        self.site, self.name, self.count = site, name, count
        self.file = site.folder / f"accepted-{name}"
        self.log = site.folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", PRODUCER, self.name, str(self.count), str(SECONDS), str(self.file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.site.folder, env=self.site.env, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def done(self) -> bool:
        code = self.process.poll()
        assert code in {None, 0}, self.log.read_text()
        return code == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Nemesis:
    """Kills a random process now and then, and replaces it."""

    def __init__(self, site: FaultSite, chance: random.Random, producers: list[Producer]) -> None:
        self.site, self.chance, self.producers = site, chance, producers
        self.workers = [site.start("-c", "2") for _ in range(PROCESSES // 2)]
        self.kills: list[Kill] = []
        self.count: Counter[str] = Counter()
        self.processes = 0  # worker processes that died

    def strike(self) -> bool:
        """Kill somebody; return whether there was anybody to kill: who is only starting is spared."""
        what = self.chance.choice(["child", "child", "child", "worker", "zygote", "producer"])
        if what == "producer":
            senders = [producer for producer in self.producers if not producer.done]
            if senders:
                self.count["producers"] += 1
                producer = self.chance.choice(senders)
                producer.kill()
                producer.start()
            return bool(senders)
        workers = [worker for worker in self.workers if children(worker.process.pid)]
        if not workers:
            return False
        worker = self.chance.choice(workers)
        if what == "child":
            pid = self.chance.choice(children(worker.process.pid) or [0])
            if pid:
                self._struck("children", (time.monotonic_ns(), {pid}))
                os.kill(pid, signal.SIGKILL)
            return bool(pid)
        if what == "worker":
            self._struck("workers", kill_worker(worker))
        else:
            self._struck("zygotes", self._kill_zygote(worker))
        self.workers[self.workers.index(worker)] = self.site.start("-c", "2")
        return True

    def _struck(self, what: str, kill: Kill) -> None:
        self.count[what] += 1
        self.kills.append(kill)
        self.processes += len(kill[1])

    def _kill_zygote(self, worker: WorkerProcess) -> Kill:
        """Without it the worker gives back what its processes held, and ends."""
        (zygote,) = children(worker.process.pid, deep=False)
        below = children(worker.process.pid)
        at = time.monotonic_ns()
        os.kill(zygote, signal.SIGKILL)
        assert worker.process.wait(15) == 1, worker.output
        eventually(lambda: not any(map(alive, below)), timeout=5)
        return at, below


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, request.getfixturevalue(f"{request.param}_url")).closing() as made:
        yield made


def outcomes(site: FaultSite, ids: list[str]) -> dict[str, tuple[str, Any]]:
    """Return state and value of everything that has a result."""
    assert site.app.backend is not None
    found = {}
    for at in range(0, len(ids), 1000):
        for id, meta in site.app.backend.fetch(ids[at : at + 1000]).items():
            read = json.loads(meta)
            found[id] = read["status"], read["result"]
    return found


@contextlib.contextmanager
def checkpoints(file: Path) -> Iterator[None]:
    """Copy the log into the file each 50 ms, as another program that has it open might."""
    enough = threading.Event()

    def copy() -> None:
        with contextlib.closing(sqlite3.connect(file, timeout=0)) as connection:
            while not enough.wait(0.05):
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    thread = threading.Thread(target=copy)
    if file.exists():
        thread.start()
    try:
        yield
    finally:
        enough.set()
        if thread.ident is not None:
            thread.join(10)


@pytest.mark.timeout(60 + LONGEST)
def test_random_processes_are_killed(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F01, F02, F33. Load, and a random death every now and then; on SQLite somebody else checkpoints as well."""
    assert site.left() == {}
    producers = [Producer(site, f"p{at}", TASKS // PRODUCERS) for at in range(PRODUCERS)]
    with contextlib.ExitStack() as ending:
        for producer in producers:
            ending.callback(producer.kill)
        ending.enter_context(checkpoints(site.folder / "umbel.db"))
        nemesis = Nemesis(site, chance, producers)
        started = time.monotonic()
        strike_at = started + 1.0
        while not (all(producer.done for producer in producers) and site.left() == {}):
            now = time.monotonic()
            assert now < started + LONGEST, f"it never ended: {site.left()}"
            if now >= strike_at and nemesis.strike():
                strike_at = time.monotonic() + chance.uniform(*EVERY)
            time.sleep(0.05)
        took = time.monotonic() - started
    ids = [f"{producer.name}-{number}" for producer in producers for number in range(producer.count)]
    assert sorted(ids) == sorted(id for producer in producers for id in producer.file.read_text().split())
    # What was on its way from one place to another when it was looked for there.
    eventually(lambda: len(outcomes(site, ids)) == len(ids), timeout=20)

    right = {id: ("SUCCESS", int(id.rpartition("-")[2]) * 2) for id in ids}
    stored = outcomes(site, ids)
    attempts = site.attempts()
    ended = {attempt.task_id for attempt in attempts if attempt.ended}
    row.lost = sum(stored[id] != right[id] or id not in ended for id in ids)
    assert {attempt.task_id for attempt in attempts} <= set(ids)
    row.load = f"{len(ids)} tasks, {PRODUCERS} producers, {PROCESSES} processes, {took:.0f} s"
    row.faults = "killed: " + ", ".join(f"{count} {what}" for what, count in sorted(nemesis.count.items()))
    row.repeats, row.bound = site.duplicates(), left_unsettled(SECONDS) * nemesis.processes
    row.recovered = site.recovery(nemesis.kills)
    assert nemesis.kills
    check_repeats(site, {pid for _, pids in nemesis.kills for pid in pids})
    row.check()
    site.stop_all()
    check_traces(site)
    for producer in producers:
        assert producer.log.read_text() == ""
