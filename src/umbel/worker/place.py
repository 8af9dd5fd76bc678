"""Room for one worker process, and what the supervisor knows about the process that is in it."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future

from umbel.interfaces import Verdict
from umbel.retry import exponential_backoff
from umbel.worker.process import Command, News, Stack, decode_news, encode_line
from umbel.worker.slots import Slot, Started

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
        self.asked_at = 0.0  # boot-time seconds at which the id was asked for
        self.consumer: str | None = None
        self.number = 0
        self.pid = 0
        self.sock: socket.socket | None = None
        self.ready = False
        self.reason = ""
        self.stop_sent = False
        self.dormant = False  # its process is to end, and no other to come, until the pool grows again
        self.killed = False
        self.verdicts: dict[str, Verdict] = {}
        self.doomed: dict[str, Verdict] = {}
        self.counted: set[str] = set()
        self.seen: tuple[int, int] = (0, 0)
        self.moved_at = 0.0
        self.recalled = 0
        self.obeyed = 0  # the number of the last question that was answered
        self.stacks: Sequence[Stack] = ()  # and what it said of its threads, if it was asked that
        self.totals: dict[str, int] = {}
        self._buffer = b""
        self._unsent = bytearray()
        self._started_at = 0.0

    @property
    def empty(self) -> bool:
        """Whether no process is here and none is on its way."""
        return self.consumer is None and self.registering is None

    def running(self) -> list[Started]:
        """Return what the process runs, or ran when it died."""
        return self.slot.running()

    def occupy(self, consumer: str, number: int, sock: socket.socket) -> None:
        """Note the process that is being started here."""
        sock.setblocking(False)
        self.consumer, self.number, self.sock = consumer, number, sock
        self._started_at = self.moved_at = time.monotonic()

    def stands_still(self, running: Sequence[Started], now: float) -> float:
        """Return for how many seconds no task has begun or ended here; 0.0 while nothing runs."""
        seen = (max((each.token for each in running), default=0), self.slot.processed())
        if seen != self.seen or not running:
            self.seen, self.moved_at = seen, now
        return now - self.moved_at

    def vacate(self) -> None:
        """Forget the process that was here."""
        if self.sock is not None:
            self.sock.close()
        self.consumer, self.sock, self.pid, self._buffer = None, None, 0, b""
        self._unsent.clear()
        self.ready, self.reason, self.totals = False, "", {}
        self.stop_sent = self.killed = False
        self.verdicts, self.doomed, self.counted, self.recalled = {}, {}, set(), 0

    def lived_badly(self) -> bool:
        """Whether the process ended before it was of any use."""
        if not self.ready:
            return True
        busy = bool(self.running()) or self.slot.processed() > 0
        return not busy and not self.reason and time.monotonic() - self._started_at < _SHORT_LIFE

    def start_at_once(self) -> None:
        """Let the next process start now."""
        self.failures, self.due = 0, 0.0

    def start_later(self) -> None:
        """Let the next process wait, twice as long with each failure in a row."""
        self.due = time.monotonic() + exponential_backoff(_BACKOFF_FIRST, self.failures, _BACKOFF_MAX)
        self.failures += 1

    def send(self, command: Command) -> None:
        """Tell the process something, if it still listens; what it does not read yet, :meth:`flush` sends later."""
        if self.sock is not None:
            self._unsent += encode_line(command)
            self.flush()

    def flush(self) -> None:
        """Send what could not be sent before. Never waits: a process that C code holds reads nothing meanwhile."""
        try:
            while self._unsent and self.sock is not None:
                del self._unsent[: self.sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            # It has ended.
            self._unsent.clear()

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
