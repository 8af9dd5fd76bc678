"""A real worker on RabbitMQ: processes that die, limits, a server that restarts, stopping, and the commands."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import environment, eventually, run, worker
from umbel.brokers.rabbitmq.broker import RabbitBroker
from umbel.interfaces import Place
from umbel.testing.proxy import Proxy

TASKS = """
import os, signal, time
from umbel import Umbel
app = Umbel("t", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.update(max_deliveries=3, worker_shutdown_timeout=2)
LOG = os.environ["LOG"]

def note(word):
    with open(LOG, "a") as file:
        file.write(word + "\\n")

@app.task
def add(x, y):
    return x + y

@app.task
def poison():
    note("poison")
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(time_limit=1)
def stuck():
    note("stuck")
    time.sleep(60)

@app.task
def slow(name, seconds):
    note("start " + name)
    time.sleep(seconds)
    note("end " + name)
    return name

@app.task(acks_late=False)
def once():
    note("once")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "t.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def env(home: Path, rabbitmq_url: str, redis_url: str) -> dict[str, str]:
    return environment(URL=rabbitmq_url, RESULTS=redis_url, LOG=str(home / "log"), C_FORCE_ROOT="1")


def said(home: Path) -> list[str]:
    log = home / "log"
    return log.read_text().splitlines() if log.exists() else []


@contextlib.contextmanager
def looking(url: str) -> Iterator[RabbitBroker]:
    broker = RabbitBroker(url)
    broker.open()
    try:
        yield broker
    finally:
        broker.close()


def test_what_kills_its_process_ends_and_harms_nobody(home: Path, env: dict[str, str], rabbitmq_url: str) -> None:
    code = """
from t import add, once, poison
bad = poison.delay()
good = [add.delay(n, 1) for n in range(50)]
assert [r.get(timeout=40) for r in good] == [n + 1 for n in range(50)]
error = bad.get(timeout=40, propagate=False)
assert type(error).__name__ == "MaxDeliveriesExceeded", repr(error)
lost = once.delay().get(timeout=40, propagate=False)
assert type(lost).__name__ == "WorkerLostError", repr(lost)
assert add.delay(1, 1).get(timeout=40) == 2
"""
    with worker("t", "-c", "2", "-l", "info", cwd=home, env=env):
        run(code, cwd=home, env=env, timeout=90)
        eventually(lambda: "once" in said(home))
        with looking(rabbitmq_url) as broker:
            eventually(lambda: broker.size("celery", Place.DEAD) == 1)
            (letter,) = broker.dead().page("celery")
            assert letter.reason == "max_deliveries"
    assert (said(home).count("poison"), said(home).count("once")) == (3, 1)


def test_a_hard_limit_ends_it_once(home: Path, env: dict[str, str]) -> None:
    code = """
from t import add, stuck
error = stuck.delay().get(timeout=40, propagate=False)
assert type(error).__name__ == "TimeLimitExceeded", repr(error)
assert add.delay(1, 1).get(timeout=40) == 2
"""
    with worker("t", "-c", "1", "-l", "info", cwd=home, env=env):
        run(code, cwd=home, env=env, timeout=60)
    assert said(home) == ["stuck"]


def test_a_task_that_must_not_run_twice_ends_at_its_limit_too(home: Path, env: dict[str, str]) -> None:
    """It was acknowledged before it ran, and is sent back to be ended."""
    (home / "t.py").write_text(TASKS.replace("(time_limit=1)", "(time_limit=1, acks_late=False)"))
    code = """
from t import add, stuck
error = stuck.delay().get(timeout=40, propagate=False)
assert type(error).__name__ == "TimeLimitExceeded", repr(error)
assert add.delay(1, 1).get(timeout=40) == 2
"""
    with worker("t", "-c", "1", "-l", "info", cwd=home, env=env):
        run(code, cwd=home, env=env, timeout=60)
    assert said(home) == ["stuck"]


def test_a_server_that_restarts(home: Path, env: dict[str, str], rabbitmq_url: str) -> None:
    """What runs goes on, what it held is delivered again, and the worker consumes again soon."""
    with Proxy(rabbitmq_url) as proxy:
        env["URL"] = proxy.url
        with worker("t", "-c", "1", "-l", "info", cwd=home, env=env) as running:
            run("from t import *; slow.delay('a', 2)", cwd=home, env=env)
            eventually(lambda: "start a" in said(home))
            proxy.refuse()
            eventually(lambda: "end a" in said(home))
            running.expect("Connection to broker lost")
            proxy.heal()
            run("from t import *; assert add.delay(1, 2).get(timeout=20) == 3", cwd=home, env=env, timeout=40)
    assert said(home).count("start a") <= 2


def test_stopping_gives_everything_back(home: Path, env: dict[str, str], rabbitmq_url: str) -> None:
    code = "from t import *\nfor n in range(10): slow.delay(str(n), 30)"
    run(code, cwd=home, env=env)
    with worker("t", "-c", "2", "-l", "info", cwd=home, env=env) as running:
        eventually(lambda: len(said(home)) == 2)
        assert running.stop() == 0
    with looking(rabbitmq_url) as broker:
        eventually(lambda: broker.size("celery") == 10)


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_every_executor(pool: str, home: Path, env: dict[str, str]) -> None:
    code = """
from t import add, slow
results = [add.delay(n, 1) for n in range(100)] + [slow.delay(str(n), 0.05) for n in range(10)]
assert [r.get(timeout=40) for r in results] == [n + 1 for n in range(100)] + [str(n) for n in range(10)]
"""
    # One process alone could not end a task at a hard limit, and says so instead of starting.
    (home / "t.py").write_text(TASKS.replace("(time_limit=1)", ""))
    with worker("t", "-P", pool, "-c", "4", "-l", "info", cwd=home, env=env):
        run(code, cwd=home, env=env, timeout=60)


def test_a_task_that_keeps_the_process_busy_keeps_its_lease(home: Path, env: dict[str, str]) -> None:
    """The heartbeats go on while user code runs."""
    (home / "t.py").write_text(TASKS + "\napp.conf.broker_heartbeat = 1\n")
    with worker("t", "-c", "1", "-l", "info", cwd=home, env=env):
        run("from t import *; assert slow.delay('a', 5).get(timeout=30) == 'a'", cwd=home, env=env, timeout=40)
    assert said(home) == ["start a", "end a"]


def test_two_queues_of_which_one_is_full_of_long_tasks(home: Path, env: dict[str, str]) -> None:
    code = """
from t import *
for n in range(3): slow.apply_async((str(n), 3), queue="long")
assert [add.apply_async((n, 1), queue="short").get(timeout=20) for n in range(5)] == [n + 1 for n in range(5)]
"""
    with worker("t", "-c", "4", "-Q", "long,short", "-l", "info", cwd=home, env=env):
        run(code, cwd=home, env=env, timeout=40)


def umbel(home: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "umbel", "-A", "t", *words]
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=40, check=False)


def test_the_commands(home: Path, env: dict[str, str]) -> None:
    assert umbel(home, env, "call", "t.add", "--args", "[1, 2]").returncode == 0
    doctor = umbel(home, env, "doctor")
    assert "RabbitMQ 3" in doctor.stdout, doctor.stdout + doctor.stderr
    purged = umbel(home, env, "purge", "-f")
    assert purged.returncode == 0 and "1" in purged.stdout, purged.stdout + purged.stderr
    run("from t import *; app.send_task('no.such.task', queue='celery')", cwd=home, env=env)
    (home / "t.py").write_text(TASKS + "\napp.conf.task_unknown_backoff = None\n")
    with worker("t", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        running.expect("Received unregistered task")
    (line,) = umbel(home, env, "dead", "list", "-o", "jsonl").stdout.splitlines()
    letter = json.loads(line)
    assert (letter["task"], letter["reason"]) == ("no.such.task", "unregistered")
    assert umbel(home, env, "dead", "discard", "--all", "-y").returncode == 0
    assert umbel(home, env, "dead", "list", "-o", "jsonl").stdout == ""


def test_statedb_needs_a_store_beside_the_queues(home: Path, env: dict[str, str]) -> None:
    with worker("t", "-c", "1", "-l", "info", "-S", "state.db", cwd=home, env=env) as running:
        assert "-S state.db is not written" in running.output
    for results in ("rpc://", "disabled://"):
        refused = umbel(home, env | {"RESULTS": results}, "worker", "-S", "state.db")
        assert refused.returncode == 78 and "-S state.db: neither amqp://" in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") <= 2 and "Traceback" not in refused.stderr


def test_the_doctor_knows_the_tasks_of_other_modules(home: Path, env: dict[str, str]) -> None:
    (home / "more.py").write_text("from t import app\n@app.task(time_limit=7200)\ndef long(): ...\n")
    settings = (
        "\napp.conf.update(include=['more'], broker_transport_options={'consumer_timeout': 3600}, task_time_limit=9)"
    )
    (home / "t.py").write_text(TASKS + settings)
    doctor = umbel(home, env, "doctor", "-o", "json")
    warnings = "\n".join(each["text"] for each in json.loads(doctor.stdout)["data"] if each["level"] == "warn")
    assert "7200 s" in warnings, doctor.stdout


def test_what_may_cost_work_is_told(home: Path, env: dict[str, str]) -> None:
    """By the doctor, and by a worker that starts."""
    limit = "{'x-queue-type': 'quorum', 'x-delivery-limit': 30}"
    settings = f"\napp.conf.task_queues = {{'celery': {{'queue_arguments': {limit}}}}}\n"
    (home / "t.py").write_text(TASKS + settings)
    doctor = umbel(home, env, "doctor", "-o", "json")
    warnings = "\n".join(each["text"] for each in json.loads(doctor.stdout)["data"] if each["level"] == "warn")
    assert "the quorum queue 'celery' has a limit of 30 deliveries" in warnings
    assert "set x-dead-letter-exchange" in warnings
    with worker("t", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        running.expect("the quorum queue 'celery' has a limit of 30 deliveries")
        assert ".> storage:     RabbitMQ" in running.output
        if "RabbitMQ 3.10" in running.output:
            assert "consumer_timeout in rabbitmq.conf" in running.output and "without a time limit" in warnings


def test_no_server(home: Path, env: dict[str, str]) -> None:
    env["URL"] = "amqp://guest:secret@127.0.0.1:1//"
    sent = umbel(home, env, "call", "t.add", "--args", "[1, 2]")
    assert sent.returncode == 69
    assert "Traceback" not in sent.stderr and "secret" not in sent.stderr
