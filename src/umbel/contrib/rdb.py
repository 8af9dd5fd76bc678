"""A debugger in a task, reached over a socket: ``from umbel.contrib import rdb; rdb.set_trace()``.

The worker prints the port, from ``CELERY_RDB_PORT`` (6900) upwards, on ``CELERY_RDB_HOST`` (127.0.0.1); connect with
``telnet`` or ``nc``. Whoever connects can run anything there: never let the port out of the machine.
"""

from __future__ import annotations

import os
import socket
import sys
from multiprocessing import current_process
from pdb import Pdb
from types import FrameType
from typing import Any, TextIO

CELERY_RDB_HOST: str = os.environ.get("CELERY_RDB_HOST") or "127.0.0.1"
DEFAULT_PORT: int = 6899
CELERY_RDB_PORT: int = int(os.environ.get("CELERY_RDB_PORT") or DEFAULT_PORT + 1)

_TRIES = 100
_current: list[Rdb] = []


class Rdb(Pdb):
    """A debugger whose user sits at the other end of a socket. It waits for one to connect when it is made."""

    def __init__(
        self, host: str = CELERY_RDB_HOST, port: int = CELERY_RDB_PORT, out: TextIO | None = None, **more: Any
    ) -> None:
        self._out = out or sys.__stderr__
        self._listening, self.port = _listen(host, port)
        self._say(f"Remote Debugger:{self.port}: Please telnet into {host} {self.port}. Type `exit` to go on.")
        client, address = self._listening.accept()
        # Not one file for both: writing to such a one drops what was read ahead.
        self._input, self._output = client.makefile("r"), client.makefile("w", buffering=1)
        client.close()
        self._say(f"Remote Debugger:{self.port}: In session with {address}")
        super().__init__(stdin=self._input, stdout=self._output)
        self.use_rawinput = False
        self.prompt = "(Rdb) "

    def _say(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text + "\n")
            self._out.flush()

    def close(self) -> None:
        """End the session."""
        if self in _current:
            _current.remove(self)
        for each in (self._input, self._output, self._listening):
            each.close()

    def do_continue(self, arg: str) -> bool | None:
        """Go on with the task."""
        self.set_continue()
        self.close()
        return True

    do_c = do_cont = do_continue

    def do_quit(self, arg: str) -> bool | None:
        """Go on with the task: a task is not ended by who looks at it."""
        return self.do_continue(arg)

    do_q = do_exit = do_quit


def _listen(host: str, port: int) -> tuple[socket.socket, int]:
    # Processes of one worker begin at different ports.
    first = port + (getattr(current_process(), "_identity", None) or (1,))[-1] - 1
    for wanted in range(first, first + _TRIES):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, wanted))
        except OSError:
            sock.close()
            continue
        sock.listen(1)
        return sock, wanted
    raise OSError(f"no free port for the debugger from {first} on; set CELERY_RDB_PORT")


def debugger() -> Rdb:
    """Return the debugger of this process; a new one waits until somebody connects."""
    if not _current:
        _current.append(Rdb())
    return _current[0]


def set_trace(frame: FrameType | None = None) -> None:
    """Stop here, and wait for somebody to connect."""
    debugger().set_trace(frame or sys._getframe().f_back)
