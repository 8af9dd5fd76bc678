"""``umbel beat`` and ``umbel worker -B``: real processes, how they start, what they say, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import WorkerProcess, environment, eventually, run, worker
from umbel import Umbel

PROJECT = """
import os
from umbel import Umbel, signals

app = Umbel("beaten", broker=os.environ["URL"], backend=os.environ.get("RESULTS", os.environ["URL"]))
app.conf.broker_connection_retry_on_startup = False
app.conf.beat_schedule = {"often": {"task": "add", "schedule": 0.5, "args": (1, 2)}}


@app.task(name="add")
def add(x, y):
    return x + y


@app.on_after_configure.connect
def more(sender, **kwargs):
    sender.add_periodic_task(0.5, add.s(3, 4), name="added")


@signals.beat_init.connect
def init(sender, **kwargs):
    print(f"INIT {type(sender).__name__}")


@signals.beat_embedded_init.connect
def embedded(sender, **kwargs):
    print(f"EMBEDDED {type(sender).__name__}")
"""


class Site:
    """A folder with a project, and the URL of its store."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.env = environment(URL=url)
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "beaten.py").write_text(PROJECT)

    def command(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "umbel", "-A", "beaten", *words],
            cwd=self.folder, env=self.env | env, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip

    @contextmanager
    def beat(self, *options: str, how: int = signal.SIGTERM, status: int = 0) -> Iterator[WorkerProcess]:
        command = [sys.executable, "-m", "umbel", "-A", "beaten", "beat", "-l", "info", *options]
        running = WorkerProcess(command, self.folder, self.env)
        try:
            running.expect("beat: Starting...")
            yield running
        except BaseException:
            running.stop(signal.SIGKILL)
            print(running.output)
            raise
        assert running.stop(how) == status, running.output

    @property
    def waiting(self) -> int:
        return self.app.broker.size("celery")


@pytest.fixture
def site(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    made = Site(tmp_path, sqlite_url)
    yield made
    made.app.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_it_sends_what_is_due_and_stops(how: int, site: Site) -> None:
    with site.beat("-s", "my-schedule", "--max-interval", "1", how=how) as running:
        running.expect("Scheduler: Sending due task often (add)")
        running.expect("Scheduler: Sending due task added (add)")
        eventually(lambda: site.waiting >= 4)
    said = running.lines
    assert said[0].startswith("celery beat v") and said[0].endswith(" is starting.")
    assert said[1] == "__    -    ... __   -        _"
    banner = [line.partition(" -> ")[0].strip() for line in said if " -> " in line]
    assert banner[:7] == ["LocalTime", ". broker", ". loader", ". scheduler", ". db", ". logfile", ". maxinterval"]
    assert "    . maxinterval -> 1.00 second (1s)" in said
    assert "-s my-schedule is not written: what was sent is kept in the broker." in said
    assert "INIT Beat" in running.output and "EMBEDDED" not in running.output
    assert "beat: Shutting down..." in running.output and "Traceback" not in running.output
    assert not (site.folder / "my-schedule").exists()


def test_a_second_one_waits_and_leads_at_once_when_the_first_ends(site: Site) -> None:
    with site.beat() as first:
        first.expect("beat: leading")
        with site.beat() as second:
            second.expect("another beat leads; waiting")
            assert "Sending" not in second.output
            assert first.stop() == 0
            second.expect("beat: leading")
            second.expect("Sending due task often")
    history = list(site.app.schedules.table.store.scan("beat:of:"))
    assert len(history) == 2


def test_detached_with_a_pidfile(site: Site) -> None:
    pidfile, logfile = site.folder / "b.pid", site.folder / "b.log"
    pidfile.write_text(f"{2**22 - 7}\n")  # of a process that has ended
    started = site.command("beat", "--detach", "--pidfile", "b.pid", "-f", "b.log", "-l", "info")
    assert started.returncode == 0, started.stderr
    assert "Stale pidfile exists - Removing it." in started.stderr
    pid = int(pidfile.read_text())
    try:
        eventually(lambda: "Sending due task often" in logfile.read_text())
        again = site.command("beat", "--pidfile", "b.pid")
        assert again.returncode == 73
        assert f"already exists. Seems we're already running? (pid: {pid}); end that process" in again.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not pidfile.exists())
    assert "beat: Shutting down..." in logfile.read_text()


def test_a_pidfile_that_cannot_be_written(site: Site) -> None:
    done = site.command("beat", "--pidfile", "nowhere/b.pid")
    assert done.returncode == 73
    assert "nowhere/b.pid: No such file or directory; give a file in a folder that is there" in done.stderr


def test_it_answers_ping(site: Site) -> None:
    with site.beat("--enable-remote-control", "-n", "clock@here") as running:
        running.expect(". remote control -> clock@here")
        running.expect("Sending due task often")
        done = site.command("inspect", "ping", "-j", "-t", "5", "-d", "clock@here")
        assert done.returncode == 0 and '{"clock@here": {"ok": "pong"}}' in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "env", "status", "said"),
    [
        ((), {"URL": "memory://"}, 78, "use 'umbel worker -B', or a broker that processes can share"),
        ((), {"URL": "redis://127.0.0.1:1/0"}, 69, "cannot reach the broker"),
        (("-S", "nowhere:Scheduler"), {}, 78, "the scheduler 'nowhere:Scheduler' cannot be imported"),
        (("-S", "collections:Counter"), {}, 78, "is no celery.beat.Scheduler of Umbel's"),
        (("beat_max_loop_interval",), {}, 2, "neither an option nor NAME=VALUE"),
        (('beat_schedule={"bad": {"task": "add"}}',), {}, 78, "the entry 'bad' of beat_schedule has no 'schedule'"),
    ],
)
def test_what_cannot_work_is_refused(
    words: tuple[str, ...], env: dict[str, str], status: int, said: str, site: Site
) -> None:
    done = site.command("beat", *words, **env)
    assert done.returncode == status and said in done.stderr, done.stdout + done.stderr


def test_settings_on_the_command_line(site: Site) -> None:
    with site.beat("beat_max_loop_interval=0.25") as running:
        running.expect("(0.25s)")


CELERYS = """
import beaten
from umbel.celery.beats import Scheduler
from umbel.celery.shelved import PersistentScheduler

class Mine(PersistentScheduler):
    def tick(self, *args, **kwargs):
        print("TICK", flush=True)
        return super().tick(*args, **kwargs)
"""


def test_a_scheduler_of_celerys_kind(site: Site) -> None:
    (site.folder / "mine.py").write_text(CELERYS)
    with site.beat("-S", "mine:Mine", "-s", "kept", "--max-interval", "1") as running:
        running.expect(". scheduler -> mine.Mine")
        running.expect(". db -> kept")
        running.expect("TICK")
        running.expect("Scheduler: Sending due task often (add)")
    assert "INIT Service" in running.output and list(site.folder.glob("kept*"))
    with worker("beaten", "-P", "solo", "-B", "--scheduler", "mine:Mine", "-s", "kept", "-l", "info",
                cwd=site.folder, env=site.env) as running:  # fmt: skip
        running.expect("TICK")
        running.expect("EMBEDDED Extension")
        running.expect("succeeded in")


@pytest.mark.parametrize("kind", ["sqlite", "redis", "memory"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_a_worker_runs_beat_too(pool: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if (pool, kind) == ("prefork", "memory"):
        pytest.skip("memory:// lives in one process")
    url = "memory://" if kind == "memory" else request.getfixturevalue(f"{kind}_url")
    site = Site(tmp_path, url)
    options = ("-l", "info", "-P", pool, *(() if pool == "solo" else ("-c", "2")))
    with worker("beaten", "-B", *options, cwd=site.folder, env=site.env) as running:
        running.expect("EMBEDDED Beat")
        running.expect("Scheduler: Sending due task often (add)")
        eventually(lambda: running.output.count("succeeded in") >= 4)
    said = running.output
    assert said.index("Warm shutdown") < said.index("beat: Shutting down...") and "Traceback" not in said
    site.app.close()


EMBEDDED = """
import time
import beaten
from umbel.celery.beat_service import EmbeddedService
from umbel.celery.beats import Scheduler
service = EmbeddedService(beaten.app, scheduler_cls=Scheduler)
service.start()
deadline = time.monotonic() + 20
while beaten.app.broker.size("celery") < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
assert beaten.app.broker.size("celery") >= 2 and service.is_alive()
service.stop()
service.join(20)
print("ended with", service.exitcode)
"""


def test_a_service_in_a_process_of_its_own(site: Site) -> None:
    said = run(EMBEDDED, cwd=site.folder, env=site.env)
    assert "ended with 0" in said
    assert site.waiting >= 2


def test_rabbitmq_needs_a_place_for_what_was_sent(tmp_path: Path, rabbitmq_url: str, sqlite_url: str) -> None:
    site = Site(tmp_path, rabbitmq_url)
    for words in (("beat",), ("worker", "-B", "-c", "1")):
        done = site.command(*words, RESULTS="rpc://")
        assert done.returncode == 78 and "set result_backend to one of these" in done.stderr, done.stdout + done.stderr
    site.env["RESULTS"] = sqlite_url
    with worker("beaten", "-l", "info", "-c", "1", cwd=site.folder, env=site.env) as running, site.beat() as beat:
        beat.expect("Scheduler: Sending due task often (add)")
        running.expect("succeeded in")
    site.app.close()


def test_a_worker_whose_beat_cannot_run_does_not_start(site: Site) -> None:
    done = site.command("worker", "-B", "-c", "1", "--scheduler", "nowhere:S")
    assert done.returncode == 78 and "the scheduler 'nowhere:S' cannot be imported" in done.stderr, done.stderr
