"""Real workers: what they do, how they end, and that nothing is lost when one of their processes dies."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.interfaces import Place

TASKS = """
import os
import signal
import time

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(lease_ttl=3.0, lease_heartbeat=1.0, lease_sweep=1.0, broker_connection_retry_on_startup=False)
app.conf.worker_shutdown_timeout = float(os.environ.get("SHUTDOWN_TIMEOUT", "25"))


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="pid")
def pid():
    return os.getpid()


@app.task(name="hold")
def hold(path, seconds):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    return "done"


@app.task(name="die_once")
def die_once(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    if len(open(path).readlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"
"""


class Site:
    """A folder with the tasks, the URL of its store, and a client of it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.env = environment(URL=url)
        self.marks = folder / "marks"
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)

    def send(self, name: str, *args: Any) -> Any:
        return self.app.send_task(name, args=args)

    @contextmanager
    def worker(self, *options: str, status: int | None = 0, **env: str) -> Iterator[WorkerProcess]:
        with worker("jobs", "-l", "info", *options, cwd=self.folder, env=self.env | env, status=status) as running:
            yield running
        assert running.process.stdout is not None
        running.process.stdout.close()

    def umbel(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", *args]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=30, check=False
        )

    def count(self, place: Place) -> int:
        return self.app.broker.size("celery", place)

    def pids(self) -> list[int]:
        """The processes that started a task that leaves its mark."""
        return [int(line) for line in self.marks.read_text().split()] if self.marks.exists() else []

    def started(self, count: int = 1) -> list[int]:
        eventually(lambda: len(self.pids()) >= count)
        return self.pids()


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "sqlite_url")
    made = Site(tmp_path, url)
    yield made
    made.app.close()


@pytest.fixture
def local(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    """The same for what does not depend on the broker."""
    made = Site(tmp_path, sqlite_url)
    yield made
    made.app.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def end(running: WorkerProcess, *numbers: int) -> int:
    for number in numbers[:-1]:
        running.process.send_signal(number)
        running.expect("shutdown (MainProcess)")
    return running.stop(numbers[-1])


# -- working -----------------------------------------------------------------------------------------------------


def test_two_processes_run_everything_and_leave_nothing(site: Site) -> None:
    results = [site.send("add", i, 1) for i in range(300)]
    with site.worker("-c", "2") as running:
        assert [result.get(timeout=20) for result in results] == list(range(1, 301))
    assert "Connected to " in running.output
    assert "celery@" in running.output and " ready." in running.output
    assert "worker: Warm shutdown (MainProcess)" in running.output
    assert [site.count(place) for place in (Place.READY, Place.HELD, Place.DEAD)] == [0, 0, 0]


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_the_other_pools(site: Site, pool: str) -> None:
    with site.worker("-P", pool, "-c", "2"):
        results = [site.send("add", i, 1) for i in range(20)]
        assert [result.get(timeout=20) for result in results] == list(range(1, 21))
    assert site.count(Place.HELD) == 0


def test_the_app_may_be_named_after_the_command(local: Site) -> None:
    command = [sys.executable, "-m", "umbel", "worker", "-A", "jobs", "-l", "info", "-c", "1", "-n", "w7@%h"]
    running = WorkerProcess(command, local.folder, local.env)
    running.expect("w7@")
    running.expect("ready.")
    status = local.umbel("status", "-A", "jobs", "-C")
    assert status.returncode == 0 and status.stdout.startswith("->  w7@"), status.stderr
    assert running.stop() == 0
    assert running.process.stdout is not None
    running.process.stdout.close()
    assert local.umbel("status", "-A", "jobs").returncode == 69


def test_a_process_is_replaced_after_so_many_tasks(local: Site) -> None:
    with local.worker("-c", "1", "--max-tasks-per-child", "2"):
        pids = [local.send("pid").get(timeout=20) for _ in range(6)]
    assert len(set(pids)) == 3


# -- stopping ----------------------------------------------------------------------------------------------------


def test_warm_lets_running_tasks_finish_and_gives_back_the_rest(site: Site) -> None:
    running_task = site.send("hold", str(site.marks), 1.0)
    with site.worker("-c", "1"):
        site.started()
        for _ in range(5):
            site.send("hold", str(site.marks), 60)
    assert running_task.get(timeout=5) == "done"
    assert (site.count(Place.READY), site.count(Place.HELD)) == (5, 0)


def test_warm_gives_back_what_does_not_finish_in_time(site: Site) -> None:
    site.send("hold", str(site.marks), 60)
    with site.worker("-c", "1", SHUTDOWN_TIMEOUT="0.5"):
        pids = site.started()
    assert (site.count(Place.READY), site.count(Place.HELD)) == (1, 0)
    assert not alive(pids[0])


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "asyncio"])
@pytest.mark.parametrize(
    ("numbers", "status"),
    [([signal.SIGQUIT], 1), ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM, signal.SIGTERM], 143)],
)
def test_cold_gives_everything_back_at_once(local: Site, pool: str, numbers: list[int], status: int) -> None:
    """F17. SIGQUIT, or a second signal to stop."""
    local.send("hold", str(local.marks), 60)
    with local.worker("-c", "1", "-P", pool, status=None) as running:
        local.started()
        assert end(running, *numbers) == status
    assert "worker: Cold shutdown (MainProcess)" in running.output
    assert (local.count(Place.READY), local.count(Place.HELD)) == (1, 0)


# -- dying -------------------------------------------------------------------------------------------------------


def test_a_killed_process_is_replaced_and_its_task_runs_again(site: Site) -> None:
    with site.worker("-c", "2") as running:
        result = site.send("die_once", str(site.marks))
        assert result.get(timeout=20) == "survived"
        running.expect("exited with 'signal 9 (SIGKILL)'")
        first, second = site.pids()
        assert first != second
        assert [site.send("add", i, 0).get(timeout=20) for i in range(5)] == list(range(5))
    assert (site.count(Place.READY), site.count(Place.HELD)) == (0, 0)


def test_no_process_outlives_the_supervisor_and_its_work_is_taken_over(site: Site) -> None:
    result = site.send("hold", str(site.marks), 1.5)
    with site.worker("-c", "2", status=None) as running:
        pids = site.started()
        running.process.kill()
        running.process.wait(10)
        eventually(lambda: not alive(pids[0]), timeout=5)
    with site.worker("-c", "1") as second:
        assert result.get(timeout=25) == "done"
        second.expect("Restoring 1 unacknowledged message(s)")
    assert len(site.pids()) == 2


def test_when_the_zygote_dies_the_worker_ends_and_gives_back(local: Site) -> None:
    local.send("hold", str(local.marks), 60)
    with local.worker("-c", "1", status=None) as running:
        child = local.started()[0]
        with open(f"/proc/{child}/stat", encoding="ascii") as stat:
            zygote = int(stat.read().rpartition(")")[2].split()[1])
        os.kill(zygote, signal.SIGKILL)
        assert running.process.wait(20) == 1
    assert (local.count(Place.READY), local.count(Place.HELD)) == (1, 0)


# -- around it ---------------------------------------------------------------------------------------------------


def test_it_can_run_in_the_background(local: Site) -> None:
    options = ("-l", "info", "-c", "1", "-D", "--pidfile", "%n.pid".replace("%n", "w"), "-f", "%n.log", "-n", "w@box")
    started = local.umbel("-A", "jobs", "worker", *options)
    assert started.returncode == 0, started.stderr
    pid = int((local.folder / "w.pid").read_text())
    log = local.folder / "w.log"
    eventually(lambda: log.exists() and "w@box ready." in log.read_text())
    assert local.send("add", 1, 2).get(timeout=20) == 3
    again = local.umbel("-A", "jobs", "worker", *options)
    assert again.returncode == 73 and f"(pid: {pid})" in again.stderr
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not alive(pid))
    assert not (local.folder / "w.pid").exists()
    text = log.read_text()
    assert "succeeded in" in text and "ForkPoolWorker-1]" in text and "worker: Warm shutdown (MainProcess)" in text


def test_in_the_background_it_keeps_its_pidfile_though_standard_input_is_closed(local: Site) -> None:
    """The lock on the file goes with its descriptor, which must not have the number of the terminal's."""
    from umbel.cli.daemon import _locked

    command = f"exec {shlex.quote(sys.executable)} -m umbel -A jobs worker -P solo -D --pidfile w.pid -f w.log <&-"
    started = subprocess.run(
        ["sh", "-c", command], cwd=local.folder, env=local.env, capture_output=True, text=True, timeout=30, check=False
    )
    assert started.returncode == 0, started.stderr
    file = local.folder / "w.pid"
    pid = int(file.read_text())
    try:
        assert _locked(str(file))
    finally:
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid))


def test_statedb_is_taken_and_writes_no_file(local: Site) -> None:
    with local.worker("-c", "1", "-S", "state.db") as running:
        assert "-S state.db is not written: what is revoked is kept in a store." in running.output
    assert not list(local.folder.glob("state*"))


def test_stacks_are_dumped(local: Site) -> None:
    local.send("hold", str(local.marks), 3)
    with local.worker("-c", "1") as running:
        local.started()
        running.process.send_signal(signal.SIGUSR1)
        running.expect("in hold")
        running.expect("supervisor.py")


def test_a_broker_that_cannot_be_reached_is_69(tmp_path: Path) -> None:
    site = Site(tmp_path, "redis://127.0.0.1:1/0")
    done = site.umbel("-A", "jobs", "worker", "-c", "1")
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1].startswith("Error: cannot reach redis://127.0.0.1:1/0")


def test_an_app_that_cannot_be_imported_is_78_without_a_traceback(local: Site) -> None:
    (local.folder / "jobs.py").write_text("import nothing_of_that_name\n")
    done = local.umbel("-A", "jobs", "worker")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1 and "nothing_of_that_name" in done.stderr
