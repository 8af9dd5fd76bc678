"""The keeper: while the main thread is in user code, settle what finished before and give back what waits behind."""

from __future__ import annotations

import logging
import threading
import time

from umbel.bell import Bell
from umbel.exceptions import LeaseLost, OperationalError
from umbel.worker.holding import Hold

logger = logging.getLogger("umbel.worker.engine")


class Keeper:
    """A thread that may use the hold only while the engine's thread is between :meth:`enter` and :meth:`leave`.

    The engine's thread owns ``lock`` except in between. ``settle_window`` and ``give_back_after`` are seconds.
    """

    def __init__(self, hold: Hold, lock: threading.Lock, *, settle_window: float, give_back_after: float) -> None:
        self._hold = hold
        self._lock = lock
        self._window = max(settle_window, 0.001)
        self._give_back_after = give_back_after
        self._since = 0.0  # when the task that runs was entered; 0 while none runs
        self._entered = 0
        self._refill = 0
        self._awake = Bell()
        self._stopping = False
        self._closed = False
        self._rest = 0.0  # seconds to wait after the broker could not be reached

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="umbel-keeper", daemon=True).start()

    def enter(self, now: float, refill: int = 0) -> None:
        """Let go of the hold: user code begins. While it runs, ``refill`` messages may be fetched for what follows."""
        self._since = now
        self._refill = refill
        self._entered += 1
        if not self._awake.is_set():
            self._awake.set()
        self._lock.release()

    def leave(self) -> None:
        """Take the hold back: user code has ended."""
        self._lock.acquire()
        self._since = 0.0

    def stop(self) -> None:
        """Give everything back at once from now on. Safe in a signal handler."""
        self._stopping = True
        self._awake.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._awake.set()

    def _run(self) -> None:
        entered = 0
        while not self._closed:
            if not self._since and self._entered == entered:
                # Nothing ran for a whole window. Sooner would wake this thread for each of many short tasks.
                self._sleep(entered)
            entered = self._entered
            time.sleep(self._window)
            if (since := self._since) and (rest := since + self._window - time.monotonic()) > 0:
                # It was entered meanwhile. A whole window more could make it twice as late.
                time.sleep(rest)
            since = self._since
            late = since and time.monotonic() - since >= self._window
            if late and (self._hold.pending or self._hold.ready or self._refill):
                self._attend()
                time.sleep(self._rest)
            elif late:
                # Nothing more can come up before this task has ended, and that may take an hour.
                self._sleep(entered)

    def _sleep(self, entered: int) -> None:
        """Wait until a task is entered after that one, or the end is announced."""
        self._awake.clear()
        # Before the clear a task may have been entered, or the end been announced.
        if self._entered == entered and not self._closed:
            self._awake.wait()

    def _attend(self) -> None:
        if not self._lock.acquire(timeout=0.001):
            return
        try:
            if not self._since:
                return
            refill, self._refill = self._refill, 0
            self._hold.take(0 if self._stopping or self._hold.ready else refill)
            self._hold.give_back_stale(0.0 if self._stopping else self._give_back_after)
            self._rest = 0.0
        except LeaseLost:
            # The engine's own next call meets it too, and ends there.
            self._hold.forget()
        except OperationalError as error:
            self._rest = min(max(self._rest * 2, 0.05), 1.0)
            logger.debug("the keeper will try again: %s", error)
        finally:
            self._lock.release()
