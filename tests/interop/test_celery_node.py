"""celery-node, Celery's protocol in JavaScript: as a client of our worker, and as the worker of our client.

Over RabbitMQ its results are in Redis here as well: its results over AMQP are a format that Celery gave up in 5.0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import peers
from support import WorkerProcess, environment, run, worker
from umbel.celery import switch_path

# Programs of others start slowly on a busy machine.
pytestmark = pytest.mark.timeout(240)

PROGRAMS = Path(__file__).resolve().parent / "programs"


@pytest.fixture(params=["redis", "rabbitmq"])
def urls(request: pytest.FixtureRequest, redis_url: str) -> tuple[str, str]:
    """The broker and the store of results."""
    broker = redis_url if request.param == "redis" else request.getfixturevalue("rabbitmq_url")
    return broker, redis_url


def node(role: str, urls: tuple[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment for one of the program's roles."""
    binary, modules = peers.node()
    broker, results = urls
    # amqplib takes a virtual host that is quoted for the one of that very name.
    words = [binary, str(PROGRAMS / "celery_node.js"), role, broker.removesuffix("/%2F"), results]
    return words, {**os.environ, "NODE_PATH": str(modules)}


def test_it_sends_tasks_and_reads_results(urls: tuple[str, str]) -> None:
    words, theirs = node("client", urls)
    broker, results = urls
    env = environment(BROKER=broker, BACKEND=results, PYTHONPATH=switch_path(), PYTHONDONTWRITEBYTECODE="1")
    with worker("watched", "-c", "2", "-l", "info", cwd=PROGRAMS, env=env, celery=True):
        done = subprocess.run(words, env=theirs, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "added": {"value": 5},
        "applied": {"value": 9},
        "failed": {"state": "FAILURE", "type": "ValueError", "message": ["no"]},
        "text": {"value": "näh ☃"},
        "many": [2 * n for n in range(50)],
        "first_protocol": {"value": 13},
    }


def test_it_runs_tasks_and_writes_results(urls: tuple[str, str]) -> None:
    words, theirs = node("worker", urls)
    broker, results = urls
    env = environment(BROKER=broker, BACKEND=results, PYTHONDONTWRITEBYTECODE="1")
    code = """
import json, os
from umbel import Umbel
app = Umbel("caller", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
added = [app.send_task("node.add", (n, 1)) for n in range(50)]
later = app.send_task("node.later", kwargs={"name": "näh"})
failed = app.send_task("node.fail")
values = [each.get(timeout=20) for each in added]
error = failed.get(timeout=20, propagate=False)
chained = app.signature("node.add", (1, 2)).apply_async()
print(json.dumps({
    "added": values,
    "later": later.get(timeout=20),
    "failed": [failed.state, failed.failed(), str(error)],
    "states": [added[0].state, chained.get(timeout=20)],
}))
"""
    running = WorkerProcess(words, PROGRAMS, theirs)
    try:
        running.expect("ready.")
        seen = json.loads(run(code, cwd=PROGRAMS, env=env, python=sys.executable, timeout=50))
    finally:
        print(running.output)
        running.stop()
    assert seen["added"] == [n + 1 for n in range(50)]
    assert seen["later"] == {"got": {"name": "näh"}}
    # It writes that a task failed, and not of what.
    assert seen["failed"][:2] == ["FAILURE", True]
    print(seen["failed"])
    assert seen["states"] == ["SUCCESS", 3]
