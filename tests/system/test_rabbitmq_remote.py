"""Remote control and revoking on RabbitMQ: our commands and Celery's at our worker, with a store and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import WorkerProcess, environment, eventually, run, worker

TASKS = """
import os, time
from umbel import Umbel
app = Umbel("t", broker=os.environ["URL"], backend=os.environ.get("RESULTS") or None)
LOG = os.environ["LOG"]

def note(word):
    with open(LOG, "a") as file:
        file.write(word + "\\n")

@app.task
def add(x, y):
    return x + y

@app.task
def hold(name):
    note("start " + name)
    while not os.path.exists(LOG + ".open"):
        time.sleep(0.02)
    note("end " + name)
    return name
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "t.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def env(home: Path, rabbitmq_url: str) -> dict[str, str]:
    return environment(URL=rabbitmq_url, LOG=str(home / "log"), C_FORCE_ROOT="1")


def said(home: Path) -> list[str]:
    log = home / "log"
    return log.read_text().splitlines() if log.exists() else []


def command(program: str, home: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "ignore", "-m", program, *words]
    return subprocess.run(line, cwd=home, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_our_commands(home: Path, env: dict[str, str]) -> None:
    with worker("t", "-n", "w@here", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        pong = command("umbel", home, env, "-A", "t", "inspect", "ping", "-t", "5", "-j")
        assert json.loads(pong.stdout) == {"w@here": {"ok": "pong"}}, pong.stdout + pong.stderr
        added = command("umbel", home, env, "-A", "t", "control", "add_consumer", "other", "-t", "5")
        assert "add consumer other" in added.stdout, added.stdout + added.stderr
        run("from t import *; hold.apply_async(('a',), queue='other')", cwd=home, env=env)
        eventually(lambda: said(home) == ["start a"])
        active = command("umbel", home, env, "-A", "t", "inspect", "active", "-t", "5", "-j")
        assert [each["name"] for each in json.loads(active.stdout)["w@here"]] == ["t.hold"], active.stdout
        gone = command("umbel", home, env, "-A", "t", "control", "cancel_consumer", "other", "-t", "5")
        assert "no longer consuming from other" in gone.stdout, gone.stdout + gone.stderr
        (home / "log.open").touch()
        eventually(lambda: said(home) == ["start a", "end a"])
        status = command("umbel", home, env, "-A", "t", "status", "-t", "5")
        assert status.returncode == 0 and "w@here: OK" in status.stdout, status.stdout + status.stderr
        command("umbel", home, env, "-A", "t", "control", "shutdown")
        assert running.process.wait(30) == 0


def test_celerys_commands(home: Path, env: dict[str, str]) -> None:
    with worker("t", "-n", "w@here", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        pong = command("celery", home, env, "-b", env["URL"], "inspect", "ping", "-t", "5", "-j")
        assert json.loads(pong.stdout) == {"w@here": {"ok": "pong"}}, pong.stdout + pong.stderr
        known = command("celery", home, env, "-b", env["URL"], "inspect", "registered", "-t", "5", "-j")
        assert "t.add" in json.loads(known.stdout)["w@here"], known.stdout + known.stderr
        limited = command("celery", home, env, "-b", env["URL"], "control", "-t", "5", "rate_limit", "t.add", "10/m")
        assert "new rate limit set successfully" in limited.stdout, limited.stdout + limited.stderr
        command("celery", home, env, "-b", env["URL"], "control", "shutdown")
        assert running.process.wait(30) == 0


def held(home: Path, env: dict[str, str], running: WorkerProcess) -> None:
    """Have the worker's only process busy, and a task waiting behind it."""
    run("from t import *; hold.apply_async(('a',), task_id='a')", cwd=home, env=env)
    eventually(lambda: said(home) == ["start a"])
    run("from t import *; hold.apply_async(('b',), task_id='b')", cwd=home, env=env)


@pytest.mark.parametrize("who", ["umbel", "celery"])
def test_without_any_store_the_workers_that_run_are_told(who: str, home: Path, env: dict[str, str]) -> None:
    with worker("t", "-n", "w@here", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        held(home, env, running)
        if who == "umbel":
            run("from t import *; app.control.revoke('b')", cwd=home, env=env)
        else:
            done = command("celery", home, env, "-b", env["URL"], "control", "-t", "5", "revoke", "b")
            assert "tasks {'b'} flagged as revoked" in done.stdout, done.stdout + done.stderr
        running.expect("Tasks flagged as revoked: b")
        (home / "log.open").touch()
        running.expect("Discarding revoked task: t.hold[b]")
        # A process that is started later is told too.
        run("from t import *; app.control.revoke('c'); app.control.pool_grow(1)", cwd=home, env=env)
        running.expect("Tasks flagged as revoked: c")
        run("from t import *; [hold.apply_async(('c',), task_id='c') for _ in range(6)]", cwd=home, env=env)
        eventually(lambda: running.output.count("Discarding revoked task: t.hold[c]") == 6)
    assert said(home) == ["start a", "end a"]


def test_a_running_task_is_terminated(home: Path, env: dict[str, str]) -> None:
    with worker("t", "-n", "w@here", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        held(home, env, running)
        run("from t import *; app.control.revoke('a', terminate=True, signal='KILL')", cwd=home, env=env)
        running.expect("Terminating a (SIGKILL)")
        eventually(lambda: said(home)[-1] == "start b")
        (home / "log.open").touch()
        eventually(lambda: said(home) == ["start a", "start b", "end b"])


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_with_results_in_a_store_it_is_kept_there(
    kind: str, home: Path, env: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """A worker that starts later finds it."""
    env["RESULTS"] = request.getfixturevalue(f"{kind}_url")
    run("from t import *; hold.apply_async(('b',), task_id='b'); app.control.revoke('b')", cwd=home, env=env)
    with worker("t", "-n", "w@here", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        running.expect("Discarding revoked task: t.hold[b]")
        state = "from t import *; from umbel.result import AsyncResult; r = AsyncResult('b', app=app); "
        run(state + "r.get(timeout=20, propagate=False); assert r.state == 'REVOKED', r.state", cwd=home, env=env)
    assert said(home) == []


def test_the_store_of_the_results_is_away(home: Path, env: dict[str, str]) -> None:
    """That nothing can be revoked then must not keep the worker from working."""
    env["RESULTS"] = "redis://127.0.0.1:1/0"
    with worker("t", "-n", "w@here", "-c", "1", "-l", "info", cwd=home, env=env) as running:
        running.expect("What was revoked cannot be read while the result backend is away")
        code = "from t import *; app.send_task('t.hold', ('a',), ignore_result=True)"
        run(code, cwd=home, env=env)
        eventually(lambda: said(home) == ["start a"])
        (home / "log.open").touch()
        eventually(lambda: said(home) == ["start a", "end a"])
