"""Workers whose processes are not forked: each is a fresh interpreter that imports the app."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, worker
from umbel import Umbel
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Place
from umbel.worker.plan import make_plan
from umbel.worker.spawner import Bootstrap
from umbel.worker.supervisor import Supervisor

TASKS = """
import os
import signal
import sys
import threading
import time

from umbel import Umbel, signals

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(lease_ttl=3.0, lease_heartbeat=1.0, lease_sweep=1.0, worker_pool_start_method="spawn")

if os.environ.get("BROKEN") and os.path.exists(os.environ["BROKEN"]):
    raise RuntimeError("not in a second process")

# What a fork would lose, and the reason not to fork: this thread is in every process.
threading.Thread(target=threading.Event().wait, name="of-the-app", daemon=True).start()


@signals.worker_init.connect(weak=False)
def open_in_the_supervisor(**_):
    os.set_inheritable(os.open("secret", os.O_CREAT | os.O_RDWR), True)


@app.task
def add(x, y):
    return x + y


@app.task
def about():
    names = [thread.name for thread in threading.enumerate()]
    return os.getpid(), os.getppid(), "of-the-app" in names, sys.argv[1:]


@app.task
def hold(path, seconds):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    return "done"


@app.task
def die_once(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    if len(open(path).readlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@app.task(rate_limit="100/s")
def limited():
    return "let through"
"""


class Site:
    """A folder with the tasks, and a client."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.env = environment(URL=url)
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)
        (folder / "more.py").write_text("from jobs import app\n@app.task\ndef extra(): return 'included'\n")

    def send(self, name: str, *args: Any) -> Any:
        return self.app.send_task(name, args=args)

    def worker(self, *options: str, status: int | None = 0, **env: str) -> Any:
        return worker("jobs", "-l", "info", *options, cwd=self.folder, env=self.env | env, status=status)


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "sqlite_url")
    made = Site(tmp_path, url)
    yield made
    made.app.close()


@pytest.fixture
def local(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    made = Site(tmp_path, sqlite_url)
    yield made
    made.app.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_tasks_run_in_processes_of_their_own(site: Site) -> None:
    with site.worker("-c", "2", "-I", "more") as running:
        assert "2 (prefork, spawned)" in running.output
        assert "a fresh interpreter that imports the app by itself" in running.output
        assert [site.send("jobs.add", n, 1).get(timeout=20) for n in range(50)] == list(range(1, 51))
        assert site.send("more.extra").get(timeout=20) == "included"
        assert site.send("jobs.limited").get(timeout=20) == "let through"
        pid, parent, threaded, argv = site.send("jobs.about").get(timeout=20)
        assert (parent, threaded) == (running.process.pid, True) and pid != parent
        assert argv[:2] == ["-A", "jobs"]
        assert "SpawnPoolWorker-" in running.output
    assert [site.app.broker.size("celery", place) for place in Place] == [0] * 4
    assert not alive(pid)
    assert "Traceback" not in running.output


def test_a_killed_process_is_replaced_and_its_task_runs_again(site: Site) -> None:
    marks = site.folder / "marks"
    with site.worker("-c", "2") as running:
        assert site.send("jobs.die_once", str(marks)).get(timeout=30) == "survived"
        running.expect("exited with 'signal 9 (SIGKILL)'")
        first, second = pids(marks)
        assert first != second
        assert site.send("jobs.add", 1, 1).get(timeout=20) == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_warm_lets_what_runs_finish(local: Site, how: int) -> None:
    marks = local.folder / "marks"
    with local.worker("-c", "2") as running:
        held = [local.send("jobs.hold", str(marks), 2) for _ in range(2)]
        eventually(lambda: len(pids(marks)) == 2)
        # As a terminal does it: to all of them.
        for pid in pids(marks):
            os.kill(pid, how)
        assert running.stop(how) == 0
    assert [result.get(timeout=5) for result in held] == ["done"] * 2


def test_a_hard_limit_and_a_recall_reach_a_spawned_process(local: Site) -> None:
    """Both need the memory that the supervisor shares with it."""
    marks = local.folder / "marks"
    with local.worker("-c", "1", "--time-limit", "3") as running:
        local.send("jobs.add", 1, 1).get(timeout=20)
        stopped = local.send("jobs.hold", str(marks), 60)
        behind = [local.send("jobs.add", n, 1) for n in range(5)]
        assert [result.get(timeout=30) for result in behind] == [1, 2, 3, 4, 5]
        eventually(lambda: stopped.state == "FAILURE")
        running.expect("Hard time limit")


def test_no_process_outlives_its_supervisor(local: Site) -> None:
    marks = local.folder / "marks"
    with local.worker("-c", "2", status=None) as running:
        for _ in range(2):
            local.send("jobs.hold", str(marks), 60)
        eventually(lambda: len(pids(marks)) == 2)
        running.stop(signal.SIGKILL)
    for pid in pids(marks):
        eventually(lambda pid=pid: not alive(pid))  # type: ignore[misc]


def test_an_app_that_a_second_process_cannot_import_is_said_and_tried_again(local: Site) -> None:
    broken = local.folder / "broken"
    with local.worker("-c", "1", BROKEN=str(broken)) as running:
        (pid, *_) = local.send("jobs.about").get(timeout=20)
        broken.touch()
        os.kill(pid, signal.SIGKILL)
        running.expect("The app jobs cannot be imported in a process of its own")
        running.expect("not in a second process")
        broken.unlink()
        assert local.send("jobs.add", 1, 1).get(timeout=30) == 2


def test_a_signal_counts_although_no_process_lives(local: Site) -> None:
    broken = local.folder / "broken"
    with local.worker("-c", "1", status=None, BROKEN=str(broken)) as running:
        (pid, *_) = local.send("jobs.about").get(timeout=20)
        broken.touch()
        os.kill(pid, signal.SIGKILL)
        # After the first few the pauses in between are long enough to hit one.
        eventually(lambda: sum("cannot be imported" in line for line in running.lines) >= 4)
        assert running.stop(signal.SIGQUIT) == 1, "the exit code of a cold stop"
    assert "worker: Cold shutdown (MainProcess)" in running.output


def test_it_inherits_nothing_but_what_it_was_given(local: Site) -> None:

    def links(pid: int) -> list[str]:
        return [os.readlink(f"/proc/{pid}/fd/{entry}") for entry in os.listdir(f"/proc/{pid}/fd")]

    with local.worker("-c", "1") as running:
        pid, parent, *_ = local.send("jobs.about").get(timeout=20)
        assert [link for link in links(parent) if "secret" in link] and parent == running.process.pid
        found = links(pid)
    assert not [link for link in found if "secret" in link]
    assert sum("memfd" in link for link in found) == 2


def test_without_a_name_of_the_app_it_is_refused(local: Site) -> None:
    plan = make_plan(local.app, {"pool_start_method": "spawn"})
    with pytest.raises(ImproperlyConfigured, match="umbel -A module worker"):
        Supervisor(local.app, plan, "sqlite")
    with pytest.raises(ImproperlyConfigured, match="use fork, or spawn"):
        make_plan(local.app, {"pool_start_method": "forkserver"})
    command = [sys.executable, "-c", "import jobs; jobs.app.worker_main(['worker', '-c', '1'])"]
    done = subprocess.run(
        command, cwd=local.folder, env=local.env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode and "umbel -A module worker" in done.stderr, done.stderr


def test_a_bootstrap_is_json_of_plain_values() -> None:
    """S40: nothing in it could make a child run what its parent's command line did not name."""
    import msgspec

    schema = msgspec.json.schema(Bootstrap)
    kinds = {
        kind
        for definition in schema["$defs"].values()
        for field in definition["properties"].values()
        for kind in ([field.get("type")] if "type" in field else [each.get("type") for each in field.get("anyOf", [])])
    }
    assert kinds <= {"string", "integer", "number", "boolean", "null", "array", "object", None}
