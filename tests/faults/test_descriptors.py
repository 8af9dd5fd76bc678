"""F34. A process that runs tasks has no connection but its own, and listens nowhere."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, run, worker
from umbel import Umbel

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]

TASKS = """
import os
import socket

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.worker_pool_start_method = os.environ["START"]
if "OPEN" in os.environ:
    opened = socket.create_connection(("127.0.0.1", int(os.environ["OPEN"])))


@app.task
def sockets():
    names = (os.path.join("/proc/self/fd", entry) for entry in os.listdir("/proc/self/fd"))
    return os.getpid(), os.getppid(), [os.readlink(name) for name in names if os.path.exists(name)]
"""


def inodes(links: list[str]) -> set[str]:
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}


def of_process(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    return inodes([os.readlink(each) for each in folder.iterdir() if each.is_symlink()])


def tcp(state: str | None = None) -> set[str]:
    """The inodes of this machine's TCP sockets, of those in a state (0A: listening)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[9] for row in rows if state in (None, row[3])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(TASKS)
    return tmp_path


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_process_has_its_own_connections_only(start: str, folder: Path, redis_url: str, row: Any) -> None:
    env = environment(URL=redis_url, START=start)
    options = ("-c", "2", "-l", "info", "--health-port", "0")
    app = Umbel("jobs", broker=redis_url, backend=redis_url, set_as_current=False)
    seen: dict[int, set[str]] = {}
    with worker("jobs", *options, cwd=folder, env=env) as running:

        def both() -> bool:
            pid, _, links = app.send_task("jobs.sockets").get(timeout=20)
            seen[pid] = inodes(links)
            return len(seen) == 2

        eventually(both)
        supervisor = of_process(running.process.pid)
        assert supervisor & tcp("0A"), "the supervisor listens for probes"
        connections, listening = tcp(), tcp("0A")
        (first, ours), (second, others) = seen.items()
        for mine in (ours, others):
            assert not mine & listening
            assert mine & connections, "it talks with the broker"
        assert not ours & others & connections, (first, second)
        assert not (ours | others) & supervisor & connections
    app.close()
    row.load, row.faults = "2 processes", f"start method {start}"


def test_what_the_app_opened_is_named_in_one_warning(folder: Path, redis_url: str, row: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        env = environment(URL=redis_url, START="fork", OPEN=str(port))
        with worker("jobs", "-c", "2", "-l", "info", cwd=folder, env=env) as running:
            code = "from jobs import sockets; sockets.delay().get(timeout=20)"
            run(code, cwd=folder, env=env)
            warnings = [line for line in running.lines if "opened connections while it was imported" in line]
        assert len(warnings) == 1 and f"127.0.0.1:{port}" in warnings[0]
    row.load, row.faults = "1 task", "a socket that was opened at import"
