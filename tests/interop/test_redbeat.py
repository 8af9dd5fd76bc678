"""RedBeat, a scheduler that keeps its entries in Redis, on the alias; neither Celery nor kombu is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import peers
from support import WorkerProcess, environment, eventually, run, worker
from umbel.celery import switch_path

# Programs of others start slowly on a busy machine.
pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import os
from celery import Celery

app = Celery("beaten", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.redbeat_redis_url = os.environ["URL"]
app.conf.beat_schedule = {"often": {"task": "say", "schedule": 1.0, "args": ("declared",)}}


@app.task(name="say")
def say(what):
    return f"said {what}"
"""

# As RedBeat's own documentation adds one.
ADDED = """
from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry
from beaten import app
RedBeatSchedulerEntry("added", "say", schedule(run_every=1), args=["added"], app=app).save()
"""


def test_its_entries_are_sent(tmp_path: Path, redis_url: str) -> None:
    peers.needed("redbeat")
    (tmp_path / "beaten.py").write_text(PROGRAM)
    env = environment(PYTHONPATH=switch_path(), URL=redis_url)
    command = [
        sys.executable,
        "-m",
        "umbel",
        "--as-celery",
        "-A",
        "beaten",
        "beat",
        "-l",
        "info",
        "--max-interval",
        "1",
    ]
    beat = WorkerProcess([*command, "-S", "redbeat.RedBeatScheduler"], tmp_path, env)
    try:
        beat.expect(". scheduler -> redbeat.schedulers.RedBeatScheduler")
        beat.expect("beat: Acquired lock")
        run(ADDED, cwd=tmp_path, env=env)
        with worker("beaten", "-l", "info", "-c", "1", cwd=tmp_path, env=env, celery=True) as running:
            for what in ("declared", "added"):
                eventually(lambda what=what: running.output.count(f"'said {what}'") >= 2)  # type: ignore[misc]
    finally:
        status = beat.stop()
    assert status == 0 and "beat: Releasing lock" in beat.output and "Traceback" not in beat.output, beat.output
