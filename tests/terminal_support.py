"""A program on a terminal of its own: type into it, and read what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from types import TracebackType

from support import DEADLINE

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z@]|[()][0-9A-Za-z]|[=>78M])|[\x0e\x0f]")
# Opening a terminal makes it the controlling one of a new session, so that Ctrl+C reaches the program.
_ENTER = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """``python -m umbel …`` on a terminal of so many rows and columns; killed at the end of its ``with``."""

    def __init__(self, *words: str, env: Mapping[str, str], rows: int = 30, columns: int = 120) -> None:
        self._own, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENTER, sys.executable, "-m", "umbel", *words],
            stdin=child,
            stdout=child,
            stderr=child,
            env=dict(env),
            start_new_session=True,
        )
        os.close(child)
        self.shown = ""

    def until(self, text: str, timeout: float = DEADLINE) -> None:
        """Wait until the text was shown; what was shown up to its end is then forgotten."""
        deadline = time.monotonic() + timeout
        while True:
            plain = _ESCAPES.sub("", self.shown)
            if text in plain:
                self.shown = plain.partition(text)[2]
                return
            assert time.monotonic() < deadline, f"no {text!r} in {plain!r}"
            if select.select([self._own], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._own, 65536).decode(errors="replace")
                except OSError as error:  # what Linux answers when the program has ended
                    raise AssertionError(f"it ended before {text!r}: {plain!r}") from error

    def shows(self, text: str, timeout: float) -> bool:
        """Do :meth:`until` and say whether it was shown in time."""
        try:
            self.until(text, timeout)
        except AssertionError:
            if self.process.poll() is not None:
                raise
            return False
        return True

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._own, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def ended(self, timeout: float = DEADLINE) -> int:
        """Wait until the program has ended and return its exit status."""
        deadline = time.monotonic() + timeout
        while (status := self.process.poll()) is None:
            assert time.monotonic() < deadline, f"it does not end: {self.shown!r}"
            # It cannot end while nobody reads.
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._own, 65536).decode(errors="replace")
                except OSError:
                    continue
        return status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._own)
