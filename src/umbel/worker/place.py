"""Room for one worker process, and what the supervisor knows about the process that is in it."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import Future

from umbel.retry import exponential_backoff
from umbel.worker.process import News, Stacks, Stop, decode_news, encode_line
from umbel.worker.slots import Slot

_BACKOFF_FIRST = 0.5
_BACKOFF_MAX = 30.0
_SHORT_LIFE = 1.0


class Place:
    """One place. Belongs to the supervisor's thread."""

    def __init__(self, index: int, slot: Slot) -> None:
        self.index = index
        self.slot = slot
        self.due = 0.0
        self.failures = 0
        self.registering: Future[str] | None = None
        self.consumer: str | None = None
        self.number = 0
        self.pid = 0
        self.sock: socket.socket | None = None
        self.ready = False
        self.reason = ""
        self.stop_sent = False
        self.killed = False
        self.totals: dict[str, int] = {}
        self._buffer = b""
        self._started_at = 0.0

    @property
    def empty(self) -> bool:
        """Whether no process is here and none is on its way."""
        return self.consumer is None and self.registering is None

    @property
    def running_tag(self) -> str | None:
        """The tag of the delivery that the process runs, or ran when it died."""
        return self.slot.current()[0]

    def occupy(self, consumer: str, number: int, sock: socket.socket) -> None:
        """Note the process that is being started here."""
        sock.setblocking(False)
        self.consumer, self.number, self.sock = consumer, number, sock
        self._started_at = time.monotonic()

    def vacate(self) -> None:
        """Forget the process that was here."""
        if self.sock is not None:
            self.sock.close()
        self.consumer, self.sock, self.pid, self._buffer = None, None, 0, b""
        self.ready, self.reason, self.totals = False, "", {}
        self.stop_sent = self.killed = False

    def lived_badly(self) -> bool:
        """Whether the process ended before it was of any use."""
        if not self.ready:
            return True
        busy = self.running_tag is not None or self.slot.processed() > 0
        return not busy and not self.reason and time.monotonic() - self._started_at < _SHORT_LIFE

    def start_at_once(self) -> None:
        """Let the next process start now."""
        self.failures, self.due = 0, 0.0

    def start_later(self) -> None:
        """Let the next process wait, twice as long with each failure in a row."""
        self.due = time.monotonic() + exponential_backoff(_BACKOFF_FIRST, self.failures, _BACKOFF_MAX)
        self.failures += 1

    def send(self, command: Stop | Stacks) -> None:
        """Tell the process something, if it still listens."""
        with contextlib.suppress(OSError):
            if self.sock is not None:
                self.sock.sendall(encode_line(command))

    def news(self, *, dead: bool = False) -> list[News]:
        """Return what the process said; never waits. of a ``dead`` process all that is left."""
        lines: list[bytes] = []
        while self.sock is not None:
            try:
                data = self.sock.recv(65536)
            except (BlockingIOError, ConnectionError):
                break
            *complete, self._buffer = (self._buffer + data).split(b"\n")
            lines += complete
            if not data or not dead:
                break
        return [decode_news(line) for line in lines]
