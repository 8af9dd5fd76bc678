"""``umbel dev``: worker, beat and dashboard of an app in one terminal, started anew when its code changes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from umbel.cli.daemon import caught
from umbel.cli.errors import EX_CONFIG, EX_UNAVAILABLE, Trouble
from umbel.cli.options import Target, command, own_command
from umbel.worker.zygote import c_library, die_with_parent

DOCS = "docs/getting-started.md"
_PORT: Final = 5555
_HOST: Final = "127.0.0.1"
_LOOK: Final = 0.3  # seconds between two looks at the files
_WARM: Final = 10.0  # seconds for running tasks to end; then they are put back
_COLD: Final = 5.0
_NOT_OURS: Final = ("__pycache__", "node_modules")
_STOPS: Final = ("SIGINT", "SIGTERM", "SIGHUP")

Seen = dict[str, tuple[int, int]]


@command("dev", epilog=f"From nothing to a task that runs: {DOCS}")
@click.argument("worker_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER OPTIONS]")
@click.option("-l", "--loglevel", default="INFO", show_default=True, help="How much the worker logs.")
@click.option("-p", "--port", type=click.IntRange(0, 65535), help="The dashboard's port; 5555, or a free one.")
@click.option("--no-reload", is_flag=True, help="Do not look at the files.")
@click.option("--open", "browse", is_flag=True, help="Show the dashboard in a browser.")
def dev(target: Target, **given: Any) -> None:
    """Run worker, beat and dashboard together, and start them anew when a Python file below this folder changes.

    For the machine that you write code on. Ctrl+C ends all: running tasks have ten seconds, then they go back to their
    queue.

    \b
    Examples:
      umbel -A shop dev
      umbel -A shop dev --open -- -c 2 -Q mail
    """
    _refuse(target)
    common = [*own_command(), "-A", str(target.app_name)]
    common += ["--config", target.config] if target.config else []
    common += ["-C"] if target.no_color else []
    children = [Child("worker", [*common, "worker", "-B", "-E", "-l", given["loglevel"], *given["worker_options"]])]
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        _say("no dashboard: pip install 'umbel[dashboard]'")
    else:
        words = [*common, "dashboard", "--host", _HOST, "-p", str(_free(given["port"]))]
        # It tells its address once; starting it anew changes nothing about that.
        first = [*words, "--open"] if given["browse"] else words
        children.append(Child("dashboard", first, again=[*words, "-q"]))
    watched = None if given["no_reload"] else Path.cwd()
    if watched is not None:
        _say(f"reloading when a Python file below {watched} changes; Ctrl+C ends all")
    Together(children, watched).run()


class Child:
    """One process of ours, with all that it starts. In a session of its own: Ctrl+C reaches us alone.

    When this process is killed, the kernel kills that one (on Linux).
    """

    def __init__(self, name: str, words: Sequence[str], *, again: Sequence[str] | None = None) -> None:
        self.name = name
        self._words = words
        self._again = again or words
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, for the first time or anew. In the main thread: the kernel ties its life to that."""
        parent, libc = os.getpid(), c_library()
        self._process = subprocess.Popen(
            self._words,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            # One call of the kernel, so that no other thread can have locked what it needs.
            preexec_fn=lambda: die_with_parent(parent, libc),  # noqa: PLW1509
        )
        self._words = self._again

    def ended(self) -> int | None:
        """Return the exit code of a process that ended by itself, once."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            self._process = None
        return code

    def ask(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def gone(self, until: float) -> bool:
        """Wait until that moment of the monotonic clock at most, and say whether it has ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        return True

    def kill(self) -> None:
        """End it and what it started, at once."""
        if self._process is not None:
            # It leads its session, so its number is that of the group, as long as it was not waited for.
            if self._process.poll() is None and hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None


class Together:
    """Runs the children until a signal comes, and starts them anew after a change."""

    def __init__(self, children: Sequence[Child], watched: Path | None) -> None:
        self._children = children
        self._watched = watched
        self._asked = 0

    def run(self) -> None:
        """Return once all have ended."""
        with caught(_STOPS, self._on_signal):
            try:
                self._run()
            finally:
                self._stop()

    def _run(self) -> None:
        seen = self._look()
        for child in self._children:
            child.start()
        while not self._asked:
            time.sleep(_LOOK)
            for child in self._children:
                if (code := child.ended()) is not None:
                    _say(f"the {child.name} has ended with exit code {code}; change a file, or press Ctrl+C")
            now = self._look()
            if now == seen:
                continue
            # An editor, or a change of the branch, may not be through yet.
            while not self._asked and (later := self._settled(now)) != now:
                now = later
            if self._asked:
                return
            _say(f"{_changed(seen, now)} changed: starting anew")
            seen = now
            self._stop()
            for child in self._children if not self._asked else ():
                child.start()

    def _look(self) -> Seen:
        return look(self._watched) if self._watched is not None else {}

    def _settled(self, before: Seen) -> Seen:
        time.sleep(_LOOK)
        return self._look()

    def _stop(self) -> None:
        """End all: first as their tasks want it, then as we do. A second Ctrl+C ends them at once."""
        asked = self._asked
        for number, patience in ((signal.SIGTERM, _WARM), (getattr(signal, "SIGQUIT", signal.SIGTERM), _COLD)):
            for child in self._children:
                child.ask(number)
            until = time.monotonic() + patience
            while time.monotonic() < until and self._asked <= max(asked, 1):
                if all(child.gone(time.monotonic() + 0.05) for child in self._children):
                    return
        for child in self._children:
            child.kill()

    def _on_signal(self, number: int, frame: Any) -> None:
        self._asked += 1


def look(folder: Path) -> Seen:
    """Return the Python files below a folder with what changes when they do; not those of virtual environments."""
    found: Seen = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [
            each
            for each in folders
            if each not in _NOT_OURS
            and not each.startswith(".")
            and not os.path.exists(os.path.join(place, each, "pyvenv.cfg"))
        ]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(place, name)
                try:
                    stat = os.stat(path)
                except OSError:
                    continue  # deleted between the two
                found[path] = (stat.st_mtime_ns, stat.st_size)
    return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    if not names:
        return "nothing in the end"
    first = os.path.relpath(names[0])
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _refuse(target: Target) -> None:
    """End with a message where the processes could not work together. Opens nothing."""
    from umbel.cli.transport import transport

    if not target.app_name:
        raise Trouble("no app was given; say where it is: -A module, or -A module:attribute", EX_CONFIG)
    where = transport(target.load())
    if not where.features.shared:
        raise Trouble(
            f"{where.broker} lives in one process, and 'umbel dev' starts several; use a broker that processes can "
            "share: sqlite:///tasks.db",
            EX_CONFIG,
        )


def _free(port: int | None) -> int:
    """Return the port that was asked for, or else 5555 or another one that is free."""
    for wanted in (port,) if port is not None else (_PORT, 0):
        with socket.socket() as probe:
            # As the server will: a connection that has just ended does not take the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, wanted))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
        if port is None and found != _PORT:
            _say(f"port {_PORT} is taken; the dashboard uses {found}")
        return found
    raise Trouble(f"the dashboard cannot listen on {_HOST} port {port}; -p names another port", EX_UNAVAILABLE)


def _say(text: str) -> None:
    click.echo(f"umbel dev: {text}", err=True)
