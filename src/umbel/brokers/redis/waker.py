"""Waiting for a socket, and ending that wait from another thread."""

from __future__ import annotations

import select
import socket
from typing import Any


class Waker:
    """Ends a wait of another thread. Setting it twice is the same as once; safe in a signal handler."""

    __slots__ = ("_maybe", "_read", "_write")

    def __init__(self) -> None:
        self._maybe = False  # whether there may be something to read
        # A pair of sockets and not a pipe: Windows can only select on sockets.
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """Return what to select on."""
        return self._read.fileno()

    def set(self) -> None:
        """End the wait, or the next one."""
        self._maybe = True
        try:
            self._write.send(b"\0")
        except OSError:
            # Full: it is set already. Closed: nobody waits any more.
            pass

    def clear(self) -> bool:
        """Forget what was set and say whether it was."""
        if not self._maybe:
            return False
        # First: who sets it from here on is either read below, or seen the next time.
        self._maybe = False
        seen = False
        try:
            while self._read.recv(4096):
                seen = True
        except OSError:
            pass
        return seen

    def close(self) -> None:
        """Give up the sockets."""
        self._read.close()
        self._write.close()


def ready(files: list[Any], timeout: float) -> list[Any]:
    """Return those of the files that can be read within the timeout (seconds)."""
    timeout = max(timeout, 0.0)
    if not hasattr(select, "poll"):
        return select.select(files, [], [], timeout)[0]
    # select() knows no descriptor above 1023.
    poll = select.poll()
    by_number = {file.fileno(): file for file in files}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(timeout * 1000)]
