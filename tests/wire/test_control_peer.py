"""Real Celery on the other end of remote control and events: its commands at our worker, ours at its worker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, run, worker

TASKS = """
import os, time
from {module} import {cls}
app = {cls}("peer", broker=os.environ["URL"], backend=os.environ["URL"])

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="hold")
def hold(path):
    open(path + ".started", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"

@app.task(name="fail")
def fail():
    raise ValueError("no")

@app.task(name="again", bind=True)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0.05)
    return "ok"
"""


def home(folder: Path, module: str) -> Path:
    target = folder / module
    target.mkdir()
    cls = {"celery": "Celery", "umbel": "Umbel"}[module]
    (target / "control_tasks.py").write_text(TASKS.format(module=module, cls=cls))
    return target


def command(module: str, *args: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``celery -A control_tasks ...`` or ``umbel ...`` to its end."""
    words = [sys.executable, "-W", "ignore", "-m", module, "-A", "control_tasks", *args]
    return subprocess.run(words, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=60, check=False)


def asked(module: str, *args: str, cwd: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Return the replies of an ``inspect`` or ``control`` command."""
    done = command(module, *args, "-t", "3", "-d", "w1@box", "--json", cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    return found if isinstance(found, dict) else {node: value for reply in found for node, value in reply.items()}


@contextmanager
def dumping(module: str, cwd: Path, env: Mapping[str, str]) -> Iterator[list[str]]:
    """Run ``events --dump`` while the block runs; yield its lines, which grow."""
    words = [sys.executable, "-W", "ignore", "-m", module, "-A", "control_tasks", "events", "--dump"]
    dump = WorkerProcess(words, cwd, env)
    try:
        dump.expect("starting capture")
        # It listens when it hears the heartbeat that it asks for.
        dump.expect("heartbeat")
        yield dump.lines
    finally:
        dump.stop()


@pytest.fixture(params=[("celery", "umbel"), ("umbel", "celery"), ("umbel", "umbel")], ids="-asks-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, Path, Path]:
    """Who asks, whose worker answers, and their folders."""
    asker, server = request.param
    ours = home(tmp_path, asker)
    return asker, server, ours, ours if asker == server else home(tmp_path, server)


def test_questions_and_answers(pair: tuple[str, str, Path, Path], redis_url: str, tmp_path: Path) -> None:
    asker, server, mine, his = pair
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    path = str(tmp_path / "go")
    with worker("control_tasks", "-n", "w1@box", "-c", "1", "-l", "info", cwd=his, env=env, celery=server == "celery"):
        assert asked(asker, "inspect", "ping", cwd=mine, env=env) == {"w1@box": {"ok": "pong"}}
        status = command(asker, "status", "-d", "w1@box", "-t", "3", cwd=mine, env=env)
        assert status.returncode == 0 and "w1@box: OK" in status.stdout and "1 node online." in status.stdout
        later = 'add.apply_async((1, 2), task_id="later", countdown=3600)'
        run(f"from control_tasks import add; {later}", cwd=mine, env=env)
        # What Celery's clients send goes through the queue first.
        eventually(lambda: bool(asked(asker, "inspect", "scheduled", cwd=mine, env=env)["w1@box"]))
        run(f"from control_tasks import hold; hold.apply_async(({path!r},), task_id='held')", cwd=mine, env=env)
        eventually(lambda: Path(path + ".started").exists())

        (active,) = asked(asker, "inspect", "active", cwd=mine, env=env)["w1@box"]
        assert (active["id"], active["name"], active["args"], active["kwargs"]) == ("held", "hold", [path], {})
        assert active["hostname"] == "w1@box" and active["worker_pid"] > 0 and active["time_start"] > 1e9
        assert active["delivery_info"]["routing_key"] == "celery"
        assert set(active) == {
            "id", "name", "args", "kwargs", "type", "hostname", "time_start", "acknowledged", "delivery_info",
            "worker_pid",
        }  # fmt: skip
        assert asked(asker, "inspect", "reserved", cwd=mine, env=env) == {"w1@box": []}
        (scheduled,) = asked(asker, "inspect", "scheduled", cwd=mine, env=env)["w1@box"]
        assert scheduled["request"]["id"] == "later" and scheduled["eta"] and scheduled["priority"] == 6
        query = asked(asker, "inspect", "query_task", "held", "unknown", cwd=mine, env=env)["w1@box"]
        assert query["held"][0] == "active" and query["held"][1]["name"] == "hold" and "unknown" not in query

        names = asked(asker, "inspect", "registered", cwd=mine, env=env)["w1@box"]
        assert names == ["add", "again", "fail", "hold"]
        (queue,) = asked(asker, "inspect", "active_queues", cwd=mine, env=env)["w1@box"]
        assert queue["name"] == queue["routing_key"] == queue["exchange"]["name"] == "celery"
        stats = asked(asker, "inspect", "stats", cwd=mine, env=env)["w1@box"]
        assert stats["pid"] > 0 and stats["pool"]["max-concurrency"] == 1 and len(stats["pool"]["processes"]) == 1
        assert stats["broker"]["transport"] == "redis" and int(stats["clock"]) > 0 and stats["rusage"]
        conf = asked(asker, "inspect", "conf", cwd=mine, env=env)["w1@box"]
        assert conf["broker_url"].endswith(redis_url.removeprefix("redis://"))
        assert asked(asker, "inspect", "clock", cwd=mine, env=env)["w1@box"]["clock"] > 0
        assert "transport:redis" in asked(asker, "inspect", "report", cwd=mine, env=env)["w1@box"]["ok"]
        assert asked(asker, "inspect", "memsample", cwd=mine, env=env)["w1@box"]
        assert asked(asker, "inspect", "revoked", cwd=mine, env=env) == {"w1@box": []}
        Path(path).touch()
        nobody = command(asker, "inspect", "ping", "-d", "other@box", "-t", "0.5", cwd=mine, env=env)
        assert nobody.returncode == 69 and "No nodes replied within time constraint" in nobody.stderr + nobody.stdout


def test_orders(pair: tuple[str, str, Path, Path], redis_url: str, tmp_path: Path) -> None:
    asker, server, mine, his = pair
    env = environment(URL=redis_url, C_FORCE_ROOT="1")

    def control(*args: str) -> object:
        return asked(asker, "control", *args, cwd=mine, env=env)["w1@box"]

    options = ("-n", "w1@box", "-c", "1", "-l", "info")
    with worker("control_tasks", *options, cwd=his, env=env, celery=server == "celery") as running:
        assert control("rate_limit", "add", "100/m") == {"ok": "new rate limit set successfully"}
        assert control("rate_limit", "nosuch", "1/s") == {"error": "unknown task"}
        assert control("time_limit", "add", "10", "20") == {"ok": "time limits set successfully"}
        assert control("pool_grow", "1") == {"ok": "pool will grow"}
        stats = lambda: asked(asker, "inspect", "stats", cwd=mine, env=env)["w1@box"]["pool"]  # noqa: E731
        eventually(lambda: len(stats()["processes"]) == 2)
        assert stats()["max-concurrency"] == (2 if server == "umbel" else 1)  # Celery tells what it was started with
        assert control("pool_shrink", "1") == {"ok": "pool will shrink"}
        eventually(lambda: len(stats()["processes"]) == 1)
        assert control("add_consumer", "other") == {"ok": "add consumer other"}
        code = "from control_tasks import add; assert add.apply_async((1, 2), queue='other').get(timeout=20) == 3"
        run(code, cwd=mine, env=env)
        assert control("cancel_consumer", "other") == {"ok": "no longer consuming from other"}
        names = lambda: [each["name"] for each in asked(asker, "inspect", "active_queues", cwd=mine, env=env)["w1@box"]]  # noqa: E731
        eventually(lambda: names() == ["celery"])
        assert control("enable_events") == {"ok": "task events enabled"}
        assert control("enable_events") == {"ok": "task events already enabled"}
        assert control("disable_events") == {"ok": "task events disabled"}
        assert control("pool_restart")["error"]
        assert control("autoscale", "3", "1")["error"]
        path = str(tmp_path / "never")
        run(f"from control_tasks import hold; hold.apply_async(({path!r},), task_id='doomed')", cwd=mine, env=env)
        eventually(lambda: Path(path + ".started").exists())
        control("terminate", "KILL", "doomed")
        code = """
from control_tasks import app
result = app.AsyncResult("doomed")
result.get(timeout=20, propagate=False)
print(result.state)
"""
        assert run(code, cwd=mine, env=env).split() == ["REVOKED"]
        control("revoke", "never")
        code = """
from control_tasks import add
result = add.apply_async((1, 2), task_id="never")
result.get(timeout=20, propagate=False)
print(result.state)
"""
        assert run(code, cwd=mine, env=env).split() == ["REVOKED"]
        command(asker, "control", "shutdown", "-t", "0.5", cwd=mine, env=env)
        running.expect("Got shutdown from remote")


@pytest.mark.parametrize(("asker", "server"), [("celery", "umbel"), ("umbel", "celery"), ("umbel", "umbel")])
def test_events_of_tasks(asker: str, server: str, redis_url: str, tmp_path: Path) -> None:
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    his = home(tmp_path, server)
    mine = his if asker == server else home(tmp_path, asker)
    options = ("-n", "w1@box", "-c", "1", "-E", "-l", "info")
    code = """
from control_tasks import app, add, again, fail
assert add.delay(2, 3).get(timeout=20) == 5
assert again.delay().get(timeout=20) == "ok"
fail.delay().get(timeout=20, propagate=False)
app.control.revoke("gone")
import time; time.sleep(1.5)
add.apply_async((7, 7), task_id="gone").get(timeout=20, propagate=False)
"""
    running = worker("control_tasks", *options, cwd=his, env=env, celery=server == "celery")
    with running, dumping(asker, mine, env) as lines:
        run(code, cwd=his, env=env, timeout=60)
        eventually(lambda: any("task revoked" in line for line in lines))
        text = "\n".join(lines)
    for words in (
        "task received: add(", "task started: add(", "task succeeded: add(", "args=(2, 3) kwargs={}", "result=",
        "task retried: again(", "task succeeded: again(", "task failed: fail(", "ValueError('no')",
        "task revoked:", "w1@box",
    ):  # fmt: skip
        assert words in text, words


def test_both_kinds_of_workers_answer_one_call(redis_url: str, tmp_path: Path) -> None:
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    ours, theirs = home(tmp_path, "umbel"), home(tmp_path, "celery")
    with (
        worker("control_tasks", "-n", "ours@box", "-c", "1", "-l", "info", cwd=ours, env=env),
        worker("control_tasks", "-n", "theirs@box", "-c", "1", "-l", "info", cwd=theirs, env=env, celery=True),
    ):
        code = """
from control_tasks import app
from umbel.control import flatten_reply
import redis, os
both = flatten_reply(app.control.ping(timeout=3, limit=2))
assert both == {"ours@box": {"ok": "pong"}, "theirs@box": {"ok": "pong"}}, both
one = app.control.inspect(pattern="our*", matcher="glob", timeout=3, limit=1).ping()
assert one == {"ours@box": {"ok": "pong"}}, one
assert app.control.inspect("theirs@box", timeout=3).registered() == ["add", "again", "fail", "hold"]
assert app.control.broadcast("nosuch", reply=True, timeout=3, destination=["ours@box"]) == [
    {"ours@box": {"error": "KeyError('nosuch')"}}
]
app.control.revoke("x", reply=True, timeout=3, limit=2)
assert app.control.inspect(timeout=3, limit=2).revoked() == {"ours@box": ["x"], "theirs@box": ["x"]}
left = [key for key in redis.Redis.from_url(os.environ["URL"]).keys("*reply*") if b"binding" not in key]
assert not left, left
"""
        run(code, cwd=ours, env=env, timeout=60)
        code = """
from control_tasks import app
from celery.app.control import flatten_reply
both = flatten_reply(app.control.ping(timeout=3, limit=2))
assert both == {"ours@box": {"ok": "pong"}, "theirs@box": {"ok": "pong"}}, both
"""
        run(code, cwd=theirs, env=env, timeout=60)
