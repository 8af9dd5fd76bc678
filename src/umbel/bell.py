"""An event that a signal handler may set."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue


class Bell(threading.Event):
    """An event that a signal handler may set, even while the same thread waits for it, sets it or clears it.

    The lock inside the standard one is not reentrant: a signal that comes while the thread holds it, for a moment at
    the beginning and the end of every wait, would stop the thread for ever. A simple queue's put is reentrant.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rung = False
        self._rings: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Ring."""
        if not self._rung:
            self._rung = True
            self._rings.put(None)

    def is_set(self) -> bool:
        """Say whether it rang."""
        return self._rung

    def clear(self) -> None:
        """Forget that it rang."""
        # First: who rings from here on is either drained, and known by the flag, or rings the next wait.
        self._rung = False
        try:
            while True:
                self._rings.get_nowait()
        except Empty:
            return

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it rings or the timeout (seconds) has passed; return whether it rang."""
        if self._rung:
            return True
        try:
            self._rings.get(timeout=None if timeout is None else max(timeout, 0.0))
        except Empty:
            return self._rung
        # For whoever else waits.
        self._rings.put(None)
        return True
