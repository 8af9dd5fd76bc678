"""The event by which consumers inside one process wake each other."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue


class Bell(threading.Event):
    """An event that a signal handler may set, even while the same thread waits for it or clears it.

    The lock inside the standard one is not reentrant; a simple queue's put is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rings: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Ring."""
        if self._rings.empty():
            self._rings.put(None)

    def is_set(self) -> bool:
        """Say whether it rang."""
        return not self._rings.empty()

    def clear(self) -> None:
        """Forget that it rang."""
        try:
            while True:
                self._rings.get_nowait()
        except Empty:
            return

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it rings or the timeout (seconds) has passed; return whether it rang."""
        try:
            self._rings.get(timeout=None if timeout is None else max(timeout, 0.0))
        except Empty:
            return False
        self._rings.put(None)
        return True
