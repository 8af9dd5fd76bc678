"""Beats that are killed and stopped while they lead: each due time is sent once, in order, and soon."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment
from umbel import Umbel
from umbel.message import decode_envelope
from umbel.periodic.sending import task_id_at
from umbel.periodic.table import Table
from umbel.testing.servers import RedisServer

BEATS = 3
SECONDS = float(os.environ.get("UMBEL_BEAT_SECONDS") or 60)
GAP = 10.0  # seconds after which another beat has taken over, with what is left of a second

PROGRAM = """
import os, signal
from umbel import Umbel
from umbel.beat import Beat
app = Umbel("beats", broker=os.environ["URL"], beat_schedule={"tick": {"task": "tick", "schedule": 1.0}})
import logging
logging.basicConfig(level="INFO", force=True)
beat = Beat(app)
signal.signal(signal.SIGTERM, lambda *_: beat.stop())
print("beat", beat.owner, flush=True)
beat.run()
"""


class Beats:
    """Three beats of one app; what they send stays in the queue."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._env = folder, environment(URL=url)
        self.app = Umbel("beats", broker=url, beat_schedule={"tick": {"task": "tick", "schedule": 1.0}})
        self.processes: list[WorkerProcess] = []

    def start(self) -> WorkerProcess:
        process = WorkerProcess([sys.executable, "-c", PROGRAM], self._folder, self._env)
        self.processes.append(process)
        process.expect("beat ")
        return process

    def leader(self) -> WorkerProcess | None:
        """The one that says so last, among those that run."""
        leading = [each for each in self.processes if each.process.poll() is None and _leads(each.output)]
        return leading[-1] if leading else None

    def sent(self) -> list[str]:
        found = [decode_envelope(each.raw) for each in self.app.broker.peek("celery", limit=10_000)]
        return [str(message.headers["id"]) for message in found]

    def close(self) -> None:
        for each in self.processes:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
            each.stop(signal.SIGKILL)
        self.app.close()


def _leads(output: str) -> bool:
    return output.rfind("beat: leading") > output.rfind("another beat leads")


@pytest.fixture(params=["sqlite", "redis"])
def beats(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Beats]:
    with ExitStack() as stack:
        if request.param == "redis":
            url = stack.enter_context(RedisServer()).url
        else:
            url = f"sqlite:///{tmp_path}/umbel.db"
        made = Beats(tmp_path, url)
        stack.callback(made.close)
        yield made


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_the_leader_is_killed_and_stopped(beats: Beats, chance: random.Random, row: Any) -> None:
    """F23. Every due time is sent exactly once and in order; a leader that wakes up sends nothing."""
    for _ in range(BEATS):
        beats.start()
    until, faults, woken = time.monotonic() + SECONDS, [], []
    while time.monotonic() < until:
        time.sleep(chance.uniform(2, 4))
        leader = beats.leader()
        if leader is None:
            continue
        if chance.random() < 0.5:
            leader.process.kill()
            leader.process.wait(5)
            faults.append("kill")
            beats.start()
        else:
            leader.process.send_signal(signal.SIGSTOP)
            time.sleep(chance.uniform(7, 9))
            leader.process.send_signal(signal.SIGCONT)
            faults.append("stop")
            woken.append(leader)
    time.sleep(GAP)
    for each in beats.processes:
        if each.process.poll() is None:
            assert each.stop() == 0
    end = datetime.now(UTC)
    line = Table(beats.app).line("tick")
    ids = beats.sent()
    first = datetime.fromtimestamp(line.record.anchor, UTC)
    due = [first + timedelta(seconds=n) for n in range(1, int((end - first).total_seconds()) + 1)]
    expected = [task_id_at(line.which, each) for each in due]
    row.load, row.faults = f"{len(due)} due times", f"{faults.count('kill')} kills, {faults.count('stop')} stops"
    row.lost = len(set(expected[: len(ids)]) - set(ids))
    row.repeats, row.bound = len(ids) - len(set(ids)), 0
    row.check()
    assert ids == expected[: len(ids)]
    assert (end - due[len(ids) - 1]).total_seconds() < GAP
    assert len(faults) >= 3
    assert all("Traceback" not in each.output for each in beats.processes), beats.processes[0].output
