"""``umbel dev``: worker, beat and dashboard in one terminal, started anew when the code changes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from dashboard_support import Visitor
from support import DEADLINE, WorkerProcess, environment, eventually
from umbel import Umbel
from umbel.cli.dev import look

pytestmark = pytest.mark.timeout(240)

SHOP = """
import time
from pathlib import Path
from umbel import Umbel
app = Umbel("shop", broker={url!r}, backend={url!r})
app.conf.beat_schedule = {{"tick": {{"task": "tick", "schedule": 0.5}}}}

@app.task(name="answer")
def answer() -> str:
    return "one"

@app.task(name="tick")
def tick() -> None:
    Path("ticked").touch()

@app.task(name="nap")
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"
"""


class Dev:
    """A project in a folder, ``umbel dev`` in it, and its app."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        self.folder = folder
        self.module = folder / "shop.py"
        self.module.write_text(SHOP.format(url=url))
        self.app: Any = Umbel("client", broker=url, backend=url)
        words = [sys.executable, "-m", "umbel", "-A", "shop", "dev", *options, "--", "-c", "1", "-P", "threads"]
        self.process = WorkerProcess(words, folder, environment(XDG_STATE_HOME=str(folder / "state")))

    def count(self, text: str) -> int:
        return self.process.output.count(text)

    def call(self, name: str, *args: Any) -> Any:
        return self.app.send_task(name, args=args)

    @property
    def url(self) -> str:
        self.process.expect("The dashboard is at ")
        return next(line for line in self.process.lines if "The dashboard is at" in line).split()[4]


@pytest.fixture
def dev(tmp_path: Path, sqlite_url: str) -> Iterator[Dev]:
    folder = tmp_path / "project"
    folder.mkdir()
    running = Dev(folder, sqlite_url, "-p", "0")
    try:
        yield running
    finally:
        running.process.stop(signal.SIGTERM, 60)
        running.app.close()


def test_all_run_and_a_change_starts_them_anew(dev: Dev) -> None:
    dev.process.expect("ready.")
    assert dev.call("answer").get(timeout=DEADLINE) == "one"
    eventually((dev.folder / "ticked").exists)
    visitor = Visitor(dev.url)
    eventually(lambda: "tick" in visitor.get("/schedules").text)
    dev.module.write_text(
        dev.module.read_text().replace('"one"', '"two"').replace('{"tick": {"task', '{"tock": {"task')
    )
    dev.process.expect("shop.py changed: starting anew")
    eventually(lambda: dev.count("ready.") == 2)
    assert dev.call("answer").get(timeout=DEADLINE) == "two"

    def listed() -> str:
        try:
            return visitor.get("/schedules").text
        except ConnectionError:
            return ""

    eventually(lambda: ">tock<" in listed())
    # What cannot be imported ends both, and the next change helps.
    whole = dev.module.read_text()
    dev.module.write_text(whole + "\n1 = 2\n")
    dev.process.expect("the worker has ended with exit code 78")
    dev.module.write_text(whole)
    eventually(lambda: dev.count("ready.") == 3)
    assert dev.call("answer").get(timeout=DEADLINE) == "two"
    assert dev.process.stop(signal.SIGINT) == 0, dev.process.output
    with pytest.raises(ConnectionError):
        visitor.get("/")
    assert not _left(dev.folder)


def test_what_runs_may_end_before_all_ends(dev: Dev) -> None:
    dev.process.expect("ready.")
    sent = dev.call("nap", 2.0)
    eventually(lambda: "received" in dev.process.output and "nap" in dev.process.output)
    assert dev.process.stop(signal.SIGINT) == 0, dev.process.output
    assert dev.app.AsyncResult(sent.id).get(timeout=5) == "rested"


def test_nothing_is_left_when_it_is_killed(dev: Dev) -> None:
    dev.process.expect("ready.")
    assert dev.url
    sent = dev.call("nap", 60.0)
    eventually(lambda: f"nap[{sent.id}] received" in dev.process.output)
    assert dev.process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert not _left(dev.folder)


def test_a_port_that_is_taken_is_told(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "shop.py").write_text(SHOP.format(url=sqlite_url))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = _dev(tmp_path, "-A", "shop", "dev", "-p", str(other.getsockname()[1]))
    assert done.returncode == 69 and "-p names another port" in done.stderr, done.stderr


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text("from umbel import Umbel\napp = Umbel('alone', broker='memory://')\n")
    done = _dev(tmp_path, "-A", "alone", "dev")
    assert done.returncode == 78 and "lives in one process" in done.stderr
    assert _dev(tmp_path, "dev").returncode == 78


def test_which_files_are_looked_at(tmp_path: Path) -> None:
    for name in ("a.py", "pkg/b.py", "pkg/c.txt", ".git/d.py", "venv/lib/e.py", "pkg/__pycache__/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "venv/pyvenv.cfg").touch()
    before = look(tmp_path)
    assert sorted(Path(each).name for each in before) == ["a.py", "b.py"]
    (tmp_path / "pkg/b.py").write_text("x = 12\n")
    after = look(tmp_path)
    assert before != after and before[str(tmp_path / "a.py")] == after[str(tmp_path / "a.py")]


def _dev(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "umbel", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def _left(folder: Path) -> list[str]:
    """Return the processes that still run in a folder."""
    found = []
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = []
        for each in Path("/proc").glob("[0-9]*/cwd"):
            try:
                found += [each.parent.name] if each.resolve() == folder.resolve() else []
            except OSError:
                continue
        if not found:
            break
        time.sleep(0.1)
    return found
