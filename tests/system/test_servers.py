"""The private servers of the tests are private, and gone afterwards."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from support import eventually
from umbel.testing.servers import RedisServer, require


def test_a_restart_keeps_the_data_of_an_append_only_server() -> None:
    with RedisServer(appendonly=True) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        first = server.pid
        server.kill()
        assert server.pid is None
        server.start()
        assert server.pid not in (None, first)
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == b"v"


def test_without_it_a_restart_forgets() -> None:
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") is None


def test_it_is_gone_afterwards() -> None:
    with RedisServer() as server:
        pid = server.pid
        server.start()
        assert server.pid == pid
        folder = Path(server._folder.name)
        assert folder.exists()
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_missing_server_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install nothing"):
        require("no-such-server", "apt-get install nothing")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install nothing"):
        require("no-such-server", "apt-get install nothing")


# -- a test run that is killed -----------------------------------------------------------------------------------

KILLED = """
import sys, threading, time
from umbel.testing.servers import RabbitMQServer, RedisServer

def test_until_killed():
    server = RabbitMQServer() if {rabbit} else RedisServer()
    # Whatever starts it may be gone long before the run is.
    starting = threading.Thread(target=server.start)
    starting.start()
    starting.join()
    print("up", server._folder.name, flush=True, file=sys.__stdout__)
    time.sleep(120)
"""


def descendants(pid: int) -> set[int]:
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {pid}
    while more := {child for child, parent in found.items() if parent in tree} - tree:
        tree |= more
    return tree - {pid}


def gone(pid: int) -> bool:
    # Who adopts what is left may be slow to bury it.
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.parametrize(("how", "rabbit"), [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)])
def test_a_run_that_is_killed_leaves_no_server(how: signal.Signals, rabbit: bool, tmp_path: Path) -> None:
    require("rabbitmq-server" if rabbit else "redis-server", "apt-get install")
    (tmp_path / "test_killed.py").write_text(KILLED.format(rabbit=rabbit))
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "test_killed.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with run:
        assert run.stdout is not None
        said = ""
        while "up " not in (line := run.stdout.readline()):
            said += line
            assert line, said
        folder = Path(line.rpartition("up ")[2].strip())
        started = descendants(run.pid)
        assert len(started) >= (4 if rabbit else 2) and folder.exists()
        run.send_signal(how)
        run.wait(10)
    for pid in started:
        eventually(lambda pid=pid: gone(pid))  # type: ignore[misc]
    eventually(lambda: not folder.exists())
