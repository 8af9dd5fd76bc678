"""Probes of a real worker: they follow what it really does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, worker
from umbel.testing.servers import RedisServer, free_port

APP = """
import os, time
from umbel import Umbel
app = Umbel("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])

@app.task
def nap(seconds): time.sleep(seconds)

if "SLOW_RECEIVER" in os.environ:
    from umbel.signals import task_received
    @task_received.connect(weak=False)
    def receive(**_): time.sleep(float(os.environ["SLOW_RECEIVER"]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as running:
        yield running


def readiness(port: int) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def healthcheck(env: dict[str, str], *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "umbel", "healthcheck", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, done.stdout + done.stderr


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except (OSError, IndexError, ValueError):
                continue
    return found


def test_probes_follow_the_broker_and_the_processes(folder: Path, server: RedisServer) -> None:
    port = free_port()
    env = environment(BROKER=server.url, UMBEL_RUN_DIR=str(folder / "run"))
    with worker("shop", "-c", "2", "-l", "info", "--health-port", str(port), cwd=folder, env=env) as running:
        eventually(lambda: readiness(port)[0] == 200)
        assert healthcheck(env)[0] == 0
        server.kill()
        eventually(lambda: readiness(port)[0] == 503)
        assert "the broker is away" in readiness(port)[1]["problems"]
        eventually(lambda: healthcheck(env)[0] == 1)
        assert healthcheck(env, "--live")[0] == 0
        server.start()
        eventually(lambda: readiness(port)[0] == 200)

        (zygote,) = children_of(running.process.pid)
        stopped = children_of(zygote)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            eventually(lambda: readiness(port)[0] == 503)
            (problem,) = readiness(port)[1]["problems"]
            assert "has not looked for work for" in problem
        finally:
            os.kill(stopped, signal.SIGCONT)
        eventually(lambda: readiness(port)[0] == 200)
    assert healthcheck(env)[0] == 69


def test_a_long_task_is_no_problem(folder: Path, sqlite_url: str) -> None:
    port = free_port()
    env = environment(BROKER=sqlite_url, UMBEL_RUN_DIR=str(folder / "run"))
    with worker("shop", "-c", "1", "-l", "info", "--health-port", str(port), cwd=folder, env=env) as running:
        code = "import shop; shop.nap.delay(9)"
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)
        running.expect("received")
        eventually(lambda: readiness(port)[1]["running"] == 1)
        seen = set()
        eventually(lambda: seen.add(readiness(port)[0]) or "succeeded" in running.output)  # type: ignore[func-returns-value]
        assert seen == {200}


def test_a_port_that_is_taken_ends_the_worker(folder: Path, sqlite_url: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "umbel", "-A", "shop", "worker", "--health-port", str(port)]
        env = environment(BROKER=sqlite_url)
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 78
    assert f"--health-port 127.0.0.1:{port}: Address already in use" in done.stderr


@pytest.mark.parametrize("pool", ["solo", "threads", "asyncio"])
def test_a_worker_of_one_process_answers_probes(pool: str, folder: Path) -> None:
    port = free_port()
    env = environment(BROKER="memory://", UMBEL_RUN_DIR=str(folder / "run"))
    with worker("shop", "-P", pool, "-c", "2", "-l", "info", "--health-port", str(port), cwd=folder, env=env):
        eventually(lambda: readiness(port)[0] == 200)
        assert readiness(port)[1]["processes"] == 1
        eventually(lambda: healthcheck(env)[0] == 0)
    assert healthcheck(env)[0] == 69


def test_probes_of_a_solo_worker_follow_the_broker_and_its_work(folder: Path, server: RedisServer) -> None:
    port = free_port()
    env = environment(BROKER=server.url, UMBEL_RUN_DIR=str(folder / "run"), SLOW_RECEIVER="9")
    options = ("-P", "solo", "-l", "info", "--health-port", str(port))
    send = [sys.executable, "-c", "import shop; shop.nap.delay(9)"]
    with worker("shop", *options, cwd=folder, env=env) as running:
        eventually(lambda: readiness(port)[0] == 200)
        server.kill()
        eventually(lambda: "the broker is away" in readiness(port)[1]["problems"])
        assert healthcheck(env, "--live")[0] == 0
        server.start()
        eventually(lambda: readiness(port)[0] == 200)

        # User code in the engine's own thread: nothing runs, and nothing is looked for.
        subprocess.run(send, cwd=folder, env=env, check=True)
        eventually(lambda: "has not looked for work for" in str(readiness(port)[1]["problems"]))
        # The task itself may take its time.
        eventually(lambda: readiness(port)[1]["running"] == 1)
        seen = set()
        eventually(lambda: seen.add(readiness(port)[0]) or "succeeded" in running.output)  # type: ignore[func-returns-value]
        assert seen == {200}


def test_a_solo_worker_that_is_ended_at_its_deadline_takes_its_file_away(folder: Path, sqlite_url: str) -> None:
    env = environment(BROKER=sqlite_url, UMBEL_RUN_DIR=str(folder / "run"))
    with worker("shop", "-P", "solo", "-l", "info", cwd=folder, env=env, status=1) as running:
        subprocess.run([sys.executable, "-c", "import shop; shop.nap.delay(60)"], cwd=folder, env=env, check=True)
        running.expect("received")
        eventually(lambda: healthcheck(env)[0] == 0)
        running.stop(signal.SIGQUIT)
    assert healthcheck(env)[0] == 69
