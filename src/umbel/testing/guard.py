"""A process that outlives ours just long enough to end the servers that our tests started.

A test run that is killed (SIGKILL, or SIGTERM, which Python does not survive either) cleans nothing up. So the first
server brings a guard with it: it hears of each process and folder over a pipe, and when the pipe is closed, or its
parent is another one, it kills what is left and deletes the folders.

Not by the kernel's PR_SET_PDEATHSIG, for that is tied to the thread which started the server, and threads end early.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading

_LOOK_EVERY = 0.5


class Guard:
    """Our end of it. Its methods may be called from any thread; the process is started by the first that needs it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def watch(self, what: int | str) -> None:
        """End this process, or delete this folder, when we are gone."""
        self._say(f"+{what}\n")

    def forget(self, what: int | str) -> None:
        """Leave it alone from now on: it has ended, and its id may come to be another's."""
        self._say(f"-{what}\n")

    def _say(self, line: str) -> None:
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                # A session of its own: what ends our whole process group must not end it.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                self._owner = os.getpid()
            assert self._process.stdin is not None
            # A guard that was killed is a loss that the tests themselves need not feel.
            with contextlib.suppress(OSError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()

    def close(self) -> None:
        """End the guard, and what it still watches. A second call does nothing."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None and self._owner == os.getpid():
                process.communicate()


# -- the guard's own process: standard library only ----------------------------------------------------------------


def _serve(parent: int) -> None:
    watched: dict[str, int] = {}
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], _LOOK_EVERY)
        if readable:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                _note(watched, line.decode())
        elif os.getppid() != parent:
            # A process that was forked from ours may hold the pipe open for as long as it likes.
            break
    for what, descriptor in watched.items():
        if what.isdecimal():
            _kill(int(what), descriptor)
    for what in watched:
        if not what.isdecimal():
            shutil.rmtree(what, ignore_errors=True)


def _note(watched: dict[str, int], line: str) -> None:
    sign, what = line[0], line[1:]
    descriptor = watched.pop(what, -1)
    if descriptor >= 0:
        os.close(descriptor)
    if sign == "+":
        descriptor = -1
        if what.isdecimal() and hasattr(os, "pidfd_open"):
            # Names this very process, whatever becomes of its number.
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(int(what))
        watched[what] = descriptor


def _kill(pid: int, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        if descriptor >= 0:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, signal.SIG_IGN)
    _serve(int(sys.argv[1]))
