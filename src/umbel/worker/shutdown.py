"""What a signal means to a worker, and until when it may go on.

    running ──TERM, INT, HUP──> warm ──2nd, QUIT──> cold
       └───────────QUIT─────────────────────────────^

Without a terminal a SIGHUP asks for a new start after the warm stop; with one it says that the terminal is closed.

Warm: nothing more is reserved, what runs may finish for ``worker_shutdown_timeout`` seconds. Cold: what runs gets
``worker_soft_shutdown_timeout`` seconds (0), then it is given back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque

from umbel import signals
from umbel.bell import Bell
from umbel.worker.plan import WorkerPlan

logger = logging.getLogger("celery.worker")

SHUTDOWN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
FOREVER = float("inf")
#: What a worker returns that is to be started anew.
EX_RESTART = -1
EX_UNAVAILABLE = 69
#: Seconds for which a worker that stops tries to give back what it held.
RELEASE_TIME = 5.0


class Shutdown:
    """Turns signals into a deadline. ``on_signal`` may be the handler; the rest belongs to one thread."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan = plan
        self._received: deque[int] = deque()
        self._others: deque[int] = deque()
        self._deadline = FOREVER
        self._remapped = os.environ.get("REMAP_SIGTERM") == "SIGQUIT"
        self.asked = Bell()
        self.how = ""
        self.exit_code = 0
        self.restart = False
        self.hastened = False
        self._terminal = sys.stdout is not None and sys.stdout.isatty()

    def on_signal(self, number: int, frame: object = None) -> None:
        """Note a signal. Does nothing else: a handler may run in the middle of anything."""
        if number in SHUTDOWN_SIGNALS:
            self._received.append(number)
            self.asked.set()
        else:
            self._others.append(number)

    def take_others(self) -> list[int]:
        """Return the signals that do not stop the worker."""
        return [self._others.popleft() for _ in range(len(self._others))]

    def advance(self) -> None:
        """Act on the signals that came; ``hastened`` says whether the deadline moved."""
        self.hastened = False
        while self._received:
            self._one(self._received.popleft())

    def ended(self, clean: bool) -> int:
        """Return the exit code of the worker; ``clean`` says that nothing is held any more."""
        if not clean:
            logger.error("The broker is away: what this worker held goes back when its leases end.")
            return self.exit_code or EX_UNAVAILABLE
        return EX_RESTART if self.restart else self.exit_code

    def left(self, now: float) -> float | None:
        """Return the seconds that running tasks still get; None is for ever."""
        return None if self._deadline == FOREVER else max(0.0, self._deadline - now)

    def kill_at(self, grace: float) -> float:
        """Return the monotonic time at which processes that are left are killed."""
        return self._deadline + grace

    def _one(self, number: int) -> None:
        cold = number == signal.SIGQUIT or (number == signal.SIGTERM and self._remapped)
        if not cold and not self.how:
            self._warm(number)
        elif self.how != "cold":
            self._cold(number, again=not cold)
        else:
            # The third time: not even the grace of a cold stop.
            self._deadline = min(self._deadline, time.monotonic())
            self.hastened = True

    def _warm(self, number: int) -> None:
        self.how = "warm"
        if number == signal.SIGHUP and not self._terminal:
            self.restart = True
            say(f"Restarting worker ({' '.join(sys.argv)})")
        if number == signal.SIGINT:
            say("\nworker: Hitting Ctrl+C again will initiate cold shutdown, terminating all running tasks!")
        self._tell("Warm", number)
        timeout = self._plan.shutdown_timeout
        self._deadline = FOREVER if timeout is None else time.monotonic() + timeout
        self.hastened = True

    def _cold(self, number: int, *, again: bool) -> None:
        self.how = "cold"
        self.restart = False
        # As a shell reports a program that the signal ended; Celery's own code for a cold stop is 1.
        self.exit_code = 128 + number if again else 1
        self._tell("Cold", number)
        self._deadline = min(self._deadline, time.monotonic() + self._plan.soft_shutdown_timeout)
        self.hastened = True

    def _tell(self, how: str, number: int) -> None:
        text = f"worker: {how} shutdown (MainProcess)"
        if not self._plan.log_json:
            say("\n" + text)
        if self._plan.logfile or self._plan.log_json:
            logger.warning("%s", text)
        signals.worker_shutting_down.send(
            sender=self._plan.hostname, sig=signal.Signals(number).name, how=how, exitcode=self.exit_code
        )


def say(text: str) -> None:
    """Tell whoever started the worker, on the real standard error."""
    stream = sys.__stderr__
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()
