"""Private servers for tests: on a free loopback port, in a folder of their own, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pytest

_START_TIMEOUT = 10.0


def require(binary: str, install: str) -> str:
    """Return the path of a server's program; without it fail where ``CI`` is set, else skip, saying how to install."""
    path = shutil.which(binary)
    if path is None:
        reason = f"{binary} was not found; install it with: {install}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


def free_port() -> int:
    """Return a loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A redis-server of one's own. Used by one thread; ``with RedisServer() as server`` starts and stops it.

    ``appendonly`` makes it keep its data over :meth:`kill` and :meth:`restart`. Only the process that was started here
    is ever signalled.
    """

    def __init__(self, *, appendonly: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.appendonly = appendonly
        self._settings = dict(settings or {})
        self._folder = tempfile.TemporaryDirectory(prefix="umbel-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it and wait until it answers. A second call does nothing."""
        if self._process is not None:
            return
        binary = require("redis-server", "apt-get install redis-server")
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": self._folder.name,
            "save": "",
            "databases": "16",
        }
        settings["appendonly"] = "yes" if self.appendonly else "no"
        # Every write is on disk before its answer, so that a kill loses nothing that was confirmed.
        settings["appendfsync"] = "always"
        settings["logfile"] = str(Path(self._folder.name) / "redis.log")
        settings.update(self._settings)
        command = [binary, *(word for name, value in settings.items() for word in (f"--{name}", value))]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._until_answering(self._process)

    def _until_answering(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                log = Path(self._folder.name) / "redis.log"
                said = log.read_text() if log.exists() else ""
                self.stop()
                raise RuntimeError(f"redis-server did not start on port {self.port}: {said}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order (SIGTERM). A second call does nothing."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop it, if it runs, and start it again on the same port and folder."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        self._folder.cleanup()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
