"""Remote control of real workers: what it changes, in every kind of worker and on every kind of store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, run, worker
from umbel import Umbel
from umbel.worker.control import Panel, control_command, inspect_command
from umbel.worker.inprocess import start_worker

TASKS = """
import os, time
from umbel import Umbel
from umbel.worker.control import inspect_command
app = Umbel("remote", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.worker_pool_restarts = True

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="pid")
def pid():
    return os.getpid()

@app.task(name="hold")
def hold(path):
    open(path + ".started", "a").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"

@app.task(name="spin")
def spin(path):
    open(path + ".started", "a").close()
    sum(range(10**12))  # never comes back to the interpreter

@app.task(name="limited", rate_limit="5/s")
def limited(path):
    with open(path, "a") as file:
        file.write(f"{time.time()}\\n")

@app.task(name="told", bind=True)
def told(self):
    self.send_event("task-progress", done=3)

@inspect_command(args=[("word", str)], signature="<word>")
def echo(state, word):
    \"\"\"Say it again.\"\"\"
    return {"word": word, "node": state.hostname, "tasks": len(state.app.tasks) > 3}
"""

OPTIONS = ("-n", "w1@box", "-l", "info")


@pytest.fixture(params=["redis", "sqlite"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker on one kind of store."""
    (tmp_path / "remote_tasks.py").write_text(TASKS)
    name = "redis_url" if request.param == "redis" else "sqlite_url"
    return environment(URL=request.getfixturevalue(name), C_FORCE_ROOT="1")


@pytest.fixture
def redis_env(tmp_path: Path, redis_url: str) -> dict[str, str]:
    """The same on Redis."""
    (tmp_path / "remote_tasks.py").write_text(TASKS)
    return environment(URL=redis_url, C_FORCE_ROOT="1")


def umbel(*args: str, cwd: Path, env: Mapping[str, str], code: int = 0) -> str:
    """Run the command and return what it printed."""
    words = [sys.executable, "-m", "umbel", "-A", "remote_tasks", *args]
    done = subprocess.run(words, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def asking(cwd: Path, env: Mapping[str, str]) -> Callable[..., Any]:
    """Return what asks the one worker, and returns its reply."""

    def ask(kind: str, *args: str) -> Any:
        replies = json.loads(umbel(kind, "-d", "w1@box", "-t", "5", "-j", *args, cwd=cwd, env=env))
        return replies["w1@box"] if isinstance(replies, dict) else replies[0]["w1@box"]

    return ask


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_every_kind_of_worker_answers(pool: str, env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, env)
    path = str(tmp_path / "go")
    with worker("remote_tasks", *OPTIONS, "-P", pool, "-c", "1", cwd=tmp_path, env=env):
        assert ask("inspect", "ping") == {"ok": "pong"}
        run(f"from remote_tasks import hold; hold.delay({path!r})", cwd=tmp_path, env=env)
        eventually(lambda: Path(path + ".started").exists())
        (active,) = ask("inspect", "active")
        assert active["name"] == "hold" and active["args"] == [path]
        assert ask("inspect", "query_task", active["id"])[active["id"]][0] == "active"
        assert ask("inspect", "reserved") == []
        stats = ask("inspect", "stats")
        assert stats["pool"]["max-concurrency"] == 1 and stats["pid"] > 0
        assert ask("control", "add_consumer", "other") == {"ok": "add consumer other"}
        Path(path).touch()
        code = "from remote_tasks import add; assert add.apply_async((1, 2), queue='other').get(timeout=20) == 3"
        run(code, cwd=tmp_path, env=env)
        assert ask("control", "cancel_consumer", "celery") == {"ok": "no longer consuming from celery"}
        assert [queue["name"] for queue in ask("inspect", "active_queues")] == ["other"]
        eventually(lambda: ask("inspect", "stats")["total"] == {"hold": 1, "add": 1})
        assert "w1@box: OK" in umbel("status", cwd=tmp_path, env=env)


def test_a_worker_whose_tasks_are_stuck_answers(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    path = str(tmp_path / "spin")
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        run(f"from remote_tasks import spin; spin.delay({path!r}, )", cwd=tmp_path, env=redis_env)
        eventually(lambda: Path(path + ".started").exists())
        (active,) = ask("inspect", "active")
        assert active["name"] == "spin"
        ask("control", "terminate", "KILL", active["id"])
        eventually(lambda: ask("inspect", "active") == [])


def test_the_pool_grows_and_shrinks(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    path = str(tmp_path / "go")
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        assert ask("control", "pool_grow", "2") == {"ok": "pool will grow"}
        code = f"from remote_tasks import hold\nfor _ in range(3): hold.delay({path!r})"
        run(code, cwd=tmp_path, env=redis_env)
        eventually(lambda: len(ask("inspect", "active")) == 3)
        assert ask("control", "pool_shrink", "2") == {"ok": "pool will shrink"}
        # What runs is not cut short.
        assert len(ask("inspect", "active")) == 3
        Path(path).touch()
        eventually(lambda: len(ask("inspect", "stats")["pool"]["processes"]) == 1)
        assert ask("control", "pool_shrink", "1")["error"]
        assert ask("control", "pool_grow", "1000")["error"]
        run("from remote_tasks import add; assert add.delay(1, 2).get(timeout=20) == 3", cwd=tmp_path, env=redis_env)


def test_threads_grow_within_their_process(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    path = str(tmp_path / "go")
    with worker("remote_tasks", *OPTIONS, "-P", "threads", "-c", "1", cwd=tmp_path, env=redis_env):
        assert ask("control", "pool_grow", "2") == {"ok": "pool will grow"}
        code = f"from remote_tasks import hold\nfor _ in range(3): hold.delay({path!r})"
        run(code, cwd=tmp_path, env=redis_env)
        eventually(lambda: len(ask("inspect", "active")) == 3)
        Path(path).touch()
        assert len(ask("inspect", "stats")["pool"]["processes"]) == 1
        assert ask("control", "pool_shrink", "3")["error"]


def test_the_pool_is_restarted(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        before = ask("inspect", "stats")["pool"]["processes"]
        assert ask("control", "pool_restart") == {"ok": "reload started"}
        eventually(lambda: bool(after := ask("inspect", "stats")["pool"]["processes"]) and after != before)
        run("from remote_tasks import add; assert add.delay(1, 2).get(timeout=20) == 3", cwd=tmp_path, env=redis_env)


def test_a_worker_scales_itself(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    path = str(tmp_path / "go")
    env = {**redis_env, "AUTOSCALE_KEEPALIVE": "1"}
    with worker("remote_tasks", *OPTIONS, "--autoscale", "3,1", cwd=tmp_path, env=env) as running:
        assert ask("inspect", "stats")["autoscaler"] == {"max": 3, "min": 1, "current": 1, "qty": 1}
        code = f"from remote_tasks import hold\nfor _ in range(5): hold.delay({path!r})"
        run(code, cwd=tmp_path, env=env)
        eventually(lambda: len(ask("inspect", "active")) == 3)
        assert "not supported with autoscale" in ask("control", "pool_grow", "1")["error"]
        Path(path).touch()
        eventually(lambda: ask("inspect", "stats")["autoscaler"]["current"] == 1)
        assert ask("control", "autoscale", "4", "2") == {"ok": "autoscale now max=4 min=2"}
        eventually(lambda: len(ask("inspect", "stats")["pool"]["processes"]) == 2)
        assert ask("control", "autoscale", "1", "3")["error"]
        assert "Scaling up" in running.output


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_limited_task_keeps_to_its_rate(pool: str, env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, env)
    path = tmp_path / "starts"
    with worker("remote_tasks", *OPTIONS, "-P", pool, "-c", "3", cwd=tmp_path, env=env):
        code = f"from remote_tasks import limited, app\napp.send_many([limited.s({str(path)!r}) for _ in range(12)])"
        run(code, cwd=tmp_path, env=env)
        # Others are not held up by those that wait.
        run("from remote_tasks import add; assert add.delay(1, 2).get(timeout=20) == 3", cwd=tmp_path, env=env)
        eventually(lambda: path.exists() and len(path.read_text().split()) == 12)
        times = sorted(float(line) for line in path.read_text().split())
        # 12 starts at 5 a second take 2.2 s at the least; no two of them are together.
        assert times[-1] - times[0] >= 2.0
        assert ask("control", "rate_limit", "limited", "0") == {"ok": "rate limit disabled successfully"}
        path.unlink()
        run(code, cwd=tmp_path, env=env)
        eventually(lambda: path.exists() and len(path.read_text().split()) == 12)
        assert ask("control", "rate_limit", "add", "1/h") == {"ok": "new rate limit set successfully"}
        code = """
from remote_tasks import add
from umbel.exceptions import TimeoutError
assert add.delay(1, 2).get(timeout=20) == 3
try:
    add.delay(1, 2).get(timeout=1)
except TimeoutError:
    print("waits")
"""
        assert run(code, cwd=tmp_path, env=env).split() == ["waits"]


def test_new_time_limits_count_for_processes_that_come_later_too(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    code = f"""
from remote_tasks import hold
from umbel.exceptions import TimeLimitExceeded
for _ in range(2):
    error = hold.delay({str(tmp_path / "never")!r}).get(timeout=20, propagate=False)
    assert isinstance(error, TimeLimitExceeded), repr(error)
"""
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        assert ask("control", "time_limit", "hold", "0", "0.5") == {"ok": "time limits set successfully"}
        run(code, cwd=tmp_path, env=redis_env)
        assert ask("control", "time_limit", "hold", "--", "-1")["error"]


def test_revoking_by_a_stamp(redis_env: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys
from remote_tasks import add, app
app.control.revoke_by_stamped_headers({"customer": ["17"]}, reply=True, timeout=5, limit=1)
for number, state in (("17", "REVOKED"), ("18", "SUCCESS")):
    result = add.apply_async((1, 2), stamped_headers=["customer"], customer=number)
    result.get(timeout=20, propagate=False)
    assert result.state == state, (number, result.state)
"""
    ask = asking(tmp_path, redis_env)
    path = str(tmp_path / "never")
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        run(code, cwd=tmp_path, env=redis_env)
        code = f"""
from remote_tasks import hold
hold.apply_async(({path!r},), stamped_headers=["customer"], customer=["19", "20"], task_id="stamped")
"""
        run(code, cwd=tmp_path, env=redis_env)
        eventually(lambda: Path(path + ".started").exists())
        code = """
from remote_tasks import app
app.control.revoke_by_stamped_headers({"customer": "20"}, terminate=True, signal="KILL")
result = app.AsyncResult("stamped")
result.get(timeout=20, propagate=False)
assert result.state == "REVOKED", result.state
"""
        run(code, cwd=tmp_path, env=redis_env)
        assert ask("inspect", "active") == []


def test_commands_of_ones_own(redis_env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, redis_env)
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        assert ask("inspect", "echo", "hello") == {"word": "hello", "node": "w1@box", "tasks": True}
        assert "echo <word>" in umbel("inspect", "--list", cwd=tmp_path, env=redis_env)
        assert "Available inspect commands" in umbel("inspect", "ehco", cwd=tmp_path, env=redis_env, code=2)


def test_nonsense_on_the_control_channel_harms_nobody(redis_env: dict[str, str], tmp_path: Path) -> None:
    code = """
from remote_tasks import app
from umbel.message import Message
pubsub = app.broker.pubsub()
for body, kind in ((b"\\xff", "application/json"), (b"[1]", "application/json"), (b'{"method": 5}', "application/json"),
                   (b"x", "application/x-python-serialize"), (b'{"method": "nosuch"}', "application/json"),
                   (b'{"method": "ping", "pattern": "[", "matcher": "pcre"}', "application/json"),
                   (b'{"method": "revoke", "arguments": {"nonsense": 1}}', "application/json")):
    pubsub.publish("celery.pidbox", Message(body=body, content_type=kind))
import redis, os
redis.Redis.from_url(os.environ["URL"]).publish("/0.celery.pidbox", b"no envelope")
assert app.control.ping(timeout=5, destination=["w1@box"]) == [{"w1@box": {"ok": "pong"}}]
"""
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env) as running:
        run(code, cwd=tmp_path, env=redis_env)
        assert "No such control command: 'nosuch'" in running.output


def test_remote_control_can_be_disabled(redis_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text("worker_enable_remote_control = False\n")
    (tmp_path / "remote_tasks.py").write_text(TASKS + "\napp.config_from_object('deaf')\n")
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=redis_env):
        assert "No nodes replied" in umbel("inspect", "ping", cwd=tmp_path, env=redis_env, code=69)
        # It is registered all the same.
        assert "w1@box: OK" in umbel("status", cwd=tmp_path, env=redis_env)


def test_events_are_sent_on_demand_and_of_ones_own(env: dict[str, str], tmp_path: Path) -> None:
    ask = asking(tmp_path, env)
    words = [sys.executable, "-m", "umbel", "-A", "remote_tasks", "events", "--dump"]
    with worker("remote_tasks", *OPTIONS, "-c", "1", cwd=tmp_path, env=env):
        dump = WorkerProcess(words, tmp_path, env)
        try:
            dump.expect("heartbeat")
            code = "from remote_tasks import {0}; {0}.delay({1}).get(timeout=20)"
            run(code.format("add", "1, 2"), cwd=tmp_path, env=env)
            assert ask("control", "enable_events") == {"ok": "task events enabled"}
            run(
                "from remote_tasks import app; app.conf.task_send_sent_event = True; " + code.format("add", "3, 4"),
                cwd=tmp_path,
                env=env,
            )
            run(code.format("told", ""), cwd=tmp_path, env=env)
            dump.expect("done=3")
            assert ask("control", "disable_events") == {"ok": "task events disabled"}
            run(code.format("add", "5, 6"), cwd=tmp_path, env=env)
            ask("control", "heartbeat")
        finally:
            dump.stop(signal.SIGINT)
        text = dump.output
    assert "args=(1, 2)" not in text and "args=(5, 6)" not in text
    assert "task sent: add(" in text and "task received: add(" in text and "task succeeded: add(" in text
    assert "args=(3, 4) kwargs={}" in text and "task progress:" in text


def test_a_worker_says_hello_and_goodbye(redis_env: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "umbel", "-A", "remote_tasks", "events", "--dump"]
    dump = WorkerProcess(words, tmp_path, redis_env)
    try:
        dump.expect("starting capture")
        with worker("remote_tasks", *OPTIONS, "--heartbeat-interval", "0.2", "-c", "1", cwd=tmp_path, env=redis_env):
            dump.expect("heartbeat")
        dump.expect("shutdown")
    finally:
        dump.stop(signal.SIGINT)
    assert "w1@box" in dump.output and "started" in dump.output and "sw_ident=py-umbel" in dump.output


def test_multi(redis_env: dict[str, str], tmp_path: Path) -> None:
    common = ("--pidfile=%n.pid", "--logfile=%n%I.log")

    def multi(*args: str, code: int = 0) -> str:
        return umbel("multi", *args, *common, cwd=tmp_path, env=redis_env, code=code)

    try:
        said = multi("start", "2", "-c", "1", "-l", "INFO", "-c:2", "2")
        assert said.count("OK") == 2 and "celery1@" in said and "celery2@" in said
        eventually(lambda: "2 nodes online" in umbel("status", cwd=tmp_path, env=redis_env))
        before = (tmp_path / "celery1.pid").read_text()
        multi("restart", "2", "-c", "1", "-l", "INFO")
        assert (tmp_path / "celery1.pid").read_text() != before
        multi("stopwait", "2")
        assert not list(tmp_path.glob("*.pid"))
        assert "DOWN" in multi("stop", "2")
        assert multi("start", "1", "-c", "nonsense", code=1).count("FAILED") == 1
    finally:
        for file in tmp_path.glob("*.pid"):
            os.kill(int(file.read_text()), signal.SIGKILL)


# -- a worker in a thread of this process ------------------------------------------------------------------------


def test_a_worker_in_a_test_is_asked_and_steered() -> None:
    app = Umbel("thread", broker="memory://remote-thread", backend="memory://remote-thread", set_as_current=False)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    events: list[dict[str, Any]] = []

    @control_command()
    def shout(state: Any, word: str) -> Any:
        return word.upper()

    @inspect_command(name="broken")
    def broken(state: Any) -> Any:
        return {1, 2} - {3} and object()

    try:
        with start_worker(app, hostname="t@here", pool="threads", concurrency=2, perform_ping_check=False):
            ask = app.control.inspect("t@here", timeout=5)
            assert ask.ping() == {"ok": "pong"}
            assert ask.registered() == ["add"]
            assert app.control.broadcast("shout", {"word": "x"}, ["t@here"], reply=True, timeout=5) == [{"t@here": "X"}]
            (reply,) = app.control.broadcast("broken", destination=["t@here"], reply=True, timeout=5) or []
            assert "error" in reply["t@here"]
            receiver = app.events.Receiver(handlers={"*": events.append})
            app.control.enable_events(reply=True, timeout=5, limit=1)
            capture = receiver.itercapture(timeout=5)
            next(capture)  # the heartbeat that it asked for
            assert add.delay(1, 2).get(timeout=5) == 3
            deadline = time.monotonic() + 10
            while "task-succeeded" not in [event["type"] for event in events] and time.monotonic() < deadline:
                next(capture)
            capture.close()
            state = app.events.State()
            for event in events:
                state.event(event)
            (task,) = state.tasks.values()
            assert (task.state, task.name, task.result, task.worker.hostname) == ("SUCCESS", "add", "3", "t@here")
            app.control.disable_events(reply=True, timeout=5, limit=1)
            assert app.control.pool_grow(1, reply=True, timeout=5, limit=1) == [{"t@here": {"ok": "pool will grow"}}]
            assert ask.stats()["pool"]["max-concurrency"] == 3
    finally:
        for name in ("shout", "broken"):
            Panel.data.pop(name), Panel.meta.pop(name)
        app.close()
