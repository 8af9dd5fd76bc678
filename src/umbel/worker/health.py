"""Whether a worker is alive and consuming, for probes: a small file, and a port if one was asked for.

The supervisor tells :class:`Health` once a second how things are; in a worker of one process a :class:`Watch` does.
What was said last, and when, is all that a probe is told: a supervisor that hangs grows old, and an old word is as bad
as a bad one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from umbel.exceptions import ImproperlyConfigured
from umbel.metrics.text import CONTENT_TYPE
from umbel.worker.slots import Slot

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

#: Seconds after which a worker that has said nothing counts as dead.
STALE: Final = 15.0
_WRITE_EVERY: Final = 2.0
_LOOK_EVERY: Final = 1.0
_QUIET: Final = 6.0  # an idle process looks for work every second


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is: ``problems`` say why it does not consume."""

    node: str
    pid: int
    problems: Sequence[str] = ()
    processes: int = 0
    running: int = 0


class Process(Protocol):
    """A process that is looked at: a place of the supervisor, or :class:`Seen`."""

    @property
    def index(self) -> int:
        """Its number, from 0."""

    @property
    def slot(self) -> Slot:
        """What it does."""

    @property
    def ready(self) -> bool:
        """Whether it has begun to look for work."""


class Seen(msgspec.Struct, frozen=True):
    """A process that is the whole worker."""

    index: int
    slot: Slot
    ready: bool


def run_folder() -> Path:
    """Return where workers of this user leave their files: ``$UMBEL_RUN_DIR``, the session's, or one in /tmp."""
    if given := os.environ.get("UMBEL_RUN_DIR"):
        return Path(given)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "umbel"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"umbel-{user}"


def heartbeat_file(node: str) -> Path:
    """Return the file of one worker."""
    return run_folder() / f"{node.replace('/', '_')}.health"


class Health:
    """Keeps the last word of one worker. :meth:`say` is for the supervisor's loop, the rest for its start and end."""

    def __init__(self, node: str, address: str | None = None, page: Callable[[bool], str] | None = None) -> None:
        """``address`` is the port, or host and port, of the probes; None for no port. Opens nothing.

        ``page`` makes what ``/metrics`` answers, from whether the worker consumes; it is called in any thread.
        """
        self.page = page
        self._file = heartbeat_file(node)
        self._address = parse_address(address) if address else None
        self._last = Condition(node=node, pid=os.getpid(), problems=("starting",))
        self._said_at = time.monotonic()
        self._write_at = 0.0
        self._written: Condition | None = None
        self._server: ThreadingHTTPServer | None = None
        self._look_at = 0.0
        self._processed: dict[int, int] = {}
        self._moved_at: dict[int, float] = {}

    def start(self) -> None:
        """Open the port. Starts a thread, so call it after the fork."""
        if self._address is not None:
            self._server = _serve(self, self._address)

    @property
    def port(self) -> int | None:
        """The port that is open."""
        return self._server.server_address[1] if self._server is not None else None

    def look(self, processes: Sequence[Process], *, away: bool, stopping: bool) -> None:
        """Look at the processes and say what was seen. Cheap to call often: it looks once a second."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY
        problems = ["it is stopping"] if stopping else []
        if away:
            problems.append("the broker is away")
        running = 0
        for process in processes:
            busy = len(process.slot.running()) if process.ready else 0
            running += busy
            if not stopping and (trouble := self._trouble(process, busy, now)):
                problems.append(f"process {process.index + 1} {trouble}")
        node, many = self._last.node, len(processes)
        self.say(Condition(node=node, pid=os.getpid(), problems=problems, processes=many, running=running))

    def _trouble(self, process: Process, busy: int, now: float) -> str:
        if not process.ready:
            return "is being started"
        processed = process.slot.processed()
        if busy or processed != self._processed.get(process.index):
            # What runs may take as long as it likes; time limits and stuck_after are there to end it.
            self._processed[process.index], self._moved_at[process.index] = processed, now
            return ""
        quiet = now - max(process.slot.beat_at, self._moved_at.get(process.index, now))
        return f"has not looked for work for {quiet:.0f} s" if quiet > _QUIET else ""

    def say(self, condition: Condition) -> None:
        """Say how things are now. Called about once a second."""
        now = time.monotonic()
        self._last, self._said_at = condition, now
        changed = self._written is None or condition.problems != self._written.problems
        if changed or now >= self._write_at:
            self._write_at = now + _WRITE_EVERY
            self._written = condition
            self._write(condition)

    def verdict(self) -> tuple[bool, Condition]:
        """Return whether the supervisor has said anything lately, and what."""
        return time.monotonic() - self._said_at < STALE, self._last

    def close(self) -> None:
        """Close the port and take the file away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        with contextlib.suppress(OSError):
            self._file.unlink()

    def _write(self, condition: Condition) -> None:
        # A probe must never stop a worker, so a folder that cannot be written only means that there is no file.
        with contextlib.suppress(OSError):
            _own(self._file.parent)
            fresh = self._file.with_suffix(".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode({"at": time.time(), **msgspec.to_builtins(condition)}))
            fresh.replace(self._file)


class Watch:
    """Has ``look`` called once a second in a thread of its own, while a worker of one process works in another.

    A task that does not let go of the interpreter stops this thread too, and probes get no answer.
    """

    def __init__(self, health: Health, look: Callable[[], None]) -> None:
        self._health = health
        self._look = look
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="umbel-watch", daemon=True)

    def start(self) -> None:
        """Open the port and begin. Raises :exc:`ImproperlyConfigured` if the port cannot be had."""
        self._health.start()
        self._thread.start()

    def close(self) -> None:
        """End, and take away the port and the file. A second call does nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._health.close()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY):
            self._look()


def _own(folder: Path) -> None:
    """Make the folder; ``OSError`` if it is somebody else's, who could then say that we are well."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"{folder} can be written by others")


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``PORT`` or ``HOST:PORT``; a port alone is on this machine only."""
    host, _, port = str(text).rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ImproperlyConfigured(f"--health-port {text}: give a port, or host and port such as 0.0.0.0:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def _serve(health: Health, address: tuple[str, int]) -> ThreadingHTTPServer:
    import socket
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        server_version = "umbel"
        sys_version = ""
        timeout = 5.0

        def do_GET(self) -> None:
            alive, condition = health.verdict()
            if self.path == "/livez":
                self._answer(alive, condition)
            elif self.path == "/readyz":
                self._answer(alive and not condition.problems, condition)
            elif self.path == "/metrics" and health.page is not None:
                self._send(200, CONTENT_TYPE, health.page(alive and not condition.problems).encode())
            else:
                self.send_error(404, explain="There are /livez, /readyz and /metrics.")

        def _answer(self, well: bool, condition: Condition) -> None:
            body = json.dumps({"ok": well, **msgspec.to_builtins(condition)}).encode()
            self._send(200 if well else 503, "application/json", body)

        def _send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: probes come every few seconds."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

    try:
        server = Server(address, Handler)
    except OSError as error:
        raise ImproperlyConfigured(f"--health-port {address[0]}:{address[1]}: {error.strerror}") from error
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.5}, name="umbel-health", daemon=True
    ).start()
    return server
