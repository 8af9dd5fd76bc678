"""``umbel workers``: what the workers tell of themselves, on each kind of broker, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, run, worker

pytestmark = pytest.mark.timeout(180)

TASKS = """
import os, time
from umbel import Umbel
app = Umbel("crew", broker=os.environ["URL"], backend=os.environ.get("RESULTS") or None)

@app.task(name="hold")
def hold(path):
    open(path + ".started", "a").close()
    while not os.path.exists(path):
        time.sleep(0.01)
"""
PATIENCE = ("-t", "5")


class Crew:
    """A folder with an app, and what runs ``umbel workers`` in it."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = env
        (folder / "crew.py").write_text(TASKS)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", "crew", *words]
        return subprocess.run(
            command, cwd=self.folder, env=dict(self.env), capture_output=True, text=True, timeout=60, check=False
        )

    def ask(self, *words: str, code: int = 0) -> Any:
        """Return what a command prints as JSON."""
        done = self.run("workers", *words, "-o", "json")
        assert done.returncode == code, done.stdout + done.stderr
        said = json.loads(done.stdout)
        assert said["schema"] == f"umbel.workers.{words[0]}/1"
        return said["data"]

    def worker(self, name: str, *options: str) -> Any:
        return worker("crew", "-n", name, "-l", "info", *options, cwd=self.folder, env=self.env)


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def crew(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crew]:
    url = request.getfixturevalue(f"{request.param}_url")
    yield Crew(tmp_path, environment(URL=url, RESULTS="" if request.param == "rabbitmq" else url, C_FORCE_ROOT="1"))


@pytest.fixture
def local(tmp_path: Path, sqlite_url: str) -> Crew:
    return Crew(tmp_path, environment(URL=sqlite_url, RESULTS=sqlite_url))


def test_who_is_there_and_what_they_do(crew: Crew) -> None:
    path = str(crew.folder / "go")
    none = crew.run("workers", "list", "-o", "json")
    assert none.returncode == 69 and json.loads(none.stderr)["error"]["code"] == 69
    with crew.worker("a@box", "-c", "2"), crew.worker("b@box", "-P", "threads", "-c", "3", "-Q", "mail,video"):
        run(f"from crew import hold; hold.apply_async(({path!r},))", cwd=crew.folder, env=crew.env)
        eventually(lambda: Path(path + ".started").exists())
        a, b = crew.ask("list", *PATIENCE)
        assert (a["name"], a["state"], a["system"], a["pool"], a["concurrency"]) == (
            "a@box", "online", "umbel", "prefork", 2,
        )  # fmt: skip
        assert (a["running"], a["started"], a["queues"]) == (1, 1, ["celery"])
        assert (b["name"], b["pool"], b["running"], b["queues"]) == ("b@box", "threads", 0, ["mail", "video"])
        shown = crew.ask("show", "a@box", *PATIENCE)
        assert [(each["name"], each["pid"] in shown["processes"]) for each in shown["tasks"]] == [("hold", True)]
        assert shown["registered"] == ["hold"] and shown["started_by_task"] == {"hold": 1} and shown["memory"] > 0
        text = crew.run("workers", "show", "a@box", *PATIENCE).stdout
        assert "pool:" in text and f"hold[{shown['tasks'][0]['id']}]" in text and "Knows:\n  hold\n" in text
        plain = crew.run("workers", "list", *PATIENCE).stdout.splitlines()
        assert [line.split("\t")[:5] for line in plain] == [
            ["a@box", "online", "umbel", "prefork", "1/2"],
            ["b@box", "online", "umbel", "threads", "0/3"],
        ]
        near = crew.run("workers", "show", "c@box")
        assert near.returncode == 3 and "no worker is called 'c@box'; " in near.stderr and "did you mean" in near.stderr
        assert {each["name"] for each in crew.ask("ping", *PATIENCE)} == {"a@box", "b@box"}
        some = crew.ask("ping", "a@box", "c@box", code=5)
        assert [each["name"] for each in some] == ["a@box"] and some[0]["seconds"] >= 0
        nobody = crew.run("workers", "ping", "c@box")
        assert nobody.returncode == 69 and "from c@box" in nobody.stderr
        Path(path).touch()


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_where_a_worker_is_stuck(pool: str, local: Crew) -> None:
    path = str(local.folder / "go")
    with local.worker("a@box", "-P", pool, "-c", "1") as running:
        run(f"from crew import hold; hold.apply_async(({path!r},), task_id='stuck')", cwd=local.folder, env=local.env)
        eventually(lambda: Path(path + ".started").exists())
        found = local.ask("stacks", "a@box", *PATIENCE)
        (process,) = found["processes"]
        assert [(each["id"], each["name"]) for each in process["running"]] == [("stuck", "hold")]
        running.expect(f"--- stacks of process {process['pid']} ---")
        running.expect("crew.py")
        done = local.run("workers", "stacks", "a@box", *PATIENCE)
        assert done.returncode == 0 and "hold[stuck] for " in done.stdout
        assert "crew.py" in done.stdout and "in hold" in done.stdout, done.stdout
        assert local.run("workers", "stacks", "b@box").returncode == 3
        Path(path).touch()


def test_one_that_does_not_hear_is_silent(local: Crew) -> None:
    (local.folder / "deaf.py").write_text("from crew import app\napp.conf.worker_enable_remote_control = False\n")
    with worker("deaf", "-n", "a@box", "-l", "info", "-c", "1", cwd=local.folder, env=local.env):
        (item,) = local.ask("list")
        assert (item["state"], item["system"], item["queues"], item["running"]) == ("silent", "umbel", ["celery"], None)
        for verb in ("show", "stacks"):
            done = local.run("workers", verb, "a@box")
            assert done.returncode == 69 and "a@box is registered, and did not answer" in done.stderr
        assert local.run("workers", "ping").returncode == 69


def test_a_worker_of_celerys_is_one_too(tmp_path: Path, redis_url: str) -> None:
    crew = Crew(tmp_path, environment(URL=redis_url, RESULTS=redis_url, C_FORCE_ROOT="1"))
    text = TASKS.replace("from umbel", "from celery").replace("Umbel", "Celery")
    (tmp_path / "theirs.py").write_text(text)
    with worker("theirs", "-n", "c@box", "-l", "info", "-c", "1", cwd=tmp_path, env=crew.env, celery=True):
        (item,) = crew.ask("list", *PATIENCE)
        assert (item["name"], item["system"], item["pool"], item["queues"]) == (
            "c@box", "celery", "prefork", ["celery"],
        )  # fmt: skip
        assert crew.ask("show", "c@box", *PATIENCE)["registered"] == ["hold"]
        done = crew.run("workers", "stacks", "c@box")
        assert done.returncode == 1 and "kill -USR1 its process" in done.stderr, done.stderr


def test_a_question_that_may_take_a_minute_ends_with_the_answers(local: Crew) -> None:
    with local.worker("a@box", "-c", "1"):
        # The run of the command itself is what ends after a minute.
        done = local.run("inspect", "objgraph")
        assert done.returncode == 0 and "objgraph is not supported" in done.stdout, done.stdout + done.stderr
