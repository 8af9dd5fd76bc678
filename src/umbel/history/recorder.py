"""The recorder: hears the events of an app's tasks and writes them into its history.

    broker ──events──> hearing thread ──at most KEPT──> writing thread ──every WINDOW seconds──> file

It runs where nobody waits for it: in the dashboard, or in ``umbel history record``. A slow disk makes it fall behind
and at last miss events, which it counts; workers and clients never notice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import BrokerError, CeleryError, ImproperlyConfigured, OperationalError
from umbel.history.history import History
from umbel.utils.priority import give_way

logger = logging.getLogger("umbel.history")

#: Seconds that events wait for others, and how many are written in one transaction at most.
WINDOW: Final = 0.25
BATCH: Final = 1_000
#: Batches that are written before it is looked whether something is to be forgotten.
_IN_A_ROW: Final = 10
#: Events that wait at most; more are missed.
KEPT: Final = 100_000
_PRUNE_EVERY: Final = 5.0
_PRUNING: Final = 0.25
_ENABLE_EVERY: Final = 15.0
_RETRY_AFTER: Final = 2.0


class Recorded(msgspec.Struct, frozen=True):
    """What a recorder has done since it was started. ``heard_at`` is the wall time of the last event, 0.0: none."""

    written: int
    waiting: int
    missed: int
    heard_at: float
    listening: bool
    trouble: str


class Recorder:
    """Records until it is stopped. :meth:`start` and :meth:`stop` belong to one thread; the rest to any.

    :param enable: have the workers send events, those too that were started without ``-E``; None does so where the
        broker is no other machine's (SQLite, memory).
    :param hears: listen to events; without it somebody who listens already hands them to :meth:`heard`.
    """

    def __init__(self, app: Any, history: History, *, enable: bool | None = None, hears: bool = True) -> None:
        self._app = app
        self.history = history
        features = app.broker.features
        self.enables = (features.lease == "kernel" or not features.shared) if enable is None else enable
        self._hears = hears
        self._events: deque[dict[str, Any]] = deque()
        self._some = threading.Event()
        self._stopping = threading.Event()  # of those who hear and ask
        self._ending = threading.Event()  # of the one who writes, after them
        self._receiver: Any = None
        self._threads: list[threading.Thread] = []
        self._written = self._missed = 0
        self._heard_at = 0.0
        self._listening = False
        self._deaf = self._stuck = ""  # why nothing is heard, or written

    def start(self) -> None:
        """Begin to hear and to write, in two threads."""
        jobs = [(self._write, "umbel-history-write")]
        if self._hears:
            jobs.append((self._hear, "umbel-history-hear"))
        if self.enables:
            jobs.append((self._enable, "umbel-history-enable"))
        for target, name in jobs:
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop hearing, write what was heard, and end. A second call does nothing."""
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        for thread in reversed(self._threads):
            if thread is self._threads[0]:
                self._ending.set()
                self._some.set()
            thread.join(timeout)
        self._threads = []

    @property
    def status(self) -> Recorded:
        """What it has done so far."""
        return Recorded(
            self._written, len(self._events), self._missed, self._heard_at, self._listening, self._stuck or self._deaf
        )

    # -- the thread that hears -----------------------------------------------------------------------------------

    def _hear(self) -> None:
        give_way()
        while not self._stopping.is_set():
            try:
                self._listen()
            except BrokerError as error:
                self._deaf = f"events cannot be heard: {error}"
                logger.warning("%s", self._deaf)
                self._stopping.wait(_RETRY_AFTER)
            # The outer wall of the thread: what other programs send must not end it.
            except Exception:
                logger.exception("The history did not understand an event and goes on")
                self._stopping.wait(_RETRY_AFTER)
            finally:
                self._listening = False

    def _listen(self) -> None:
        receiver = self._receiver = self._app.events.Receiver(handlers={"*": self.heard})
        # Called once the receiver has subscribed: what is told from here on is heard.
        receiver.wakeup_workers = self._subscribed
        # stop() may have looked just before there was one.
        receiver.should_stop = self._stopping.is_set()
        receiver.capture(limit=None, timeout=None, wakeup=True)

    def _subscribed(self, channel: Any = None) -> None:
        self._listening, self._deaf = True, ""

    def _enable(self) -> None:
        """Have workers tell of their tasks, also those that start later."""
        while not self._stopping.is_set():
            try:
                self._app.control.enable_events()
            except CeleryError as error:
                logger.debug("Workers could not be asked for events: %s", error)
            self._stopping.wait(_ENABLE_EVERY)

    def heard(self, event: dict[str, Any]) -> None:
        """Take one event, of whatever kind, to be written soon. Never waits; from any thread."""
        if not str(event.get("type", "")).startswith("task-"):
            return
        self._heard_at = time.time()
        if len(self._events) >= KEPT:
            self._missed += 1
            return
        self._events.append(event)
        if not self._some.is_set():
            self._some.set()

    # -- the thread that writes ----------------------------------------------------------------------------------

    def _write(self) -> None:
        give_way()
        prune_at = 0.0
        while True:
            self._some.wait(_PRUNE_EVERY)
            self._some.clear()
            ending = self._ending.is_set()
            if not ending:
                self._ending.wait(WINDOW)
            try:
                self._write_some()
                if time.monotonic() >= prune_at and not ending:
                    prune_at = time.monotonic() + (0.0 if self._prune() else _PRUNE_EVERY)
                self._stuck = ""
            except (OperationalError, ImproperlyConfigured) as error:
                if not self._stuck:
                    logger.warning("%s; trying again", error)
                self._stuck = str(error)
                if ending:
                    return
                self._ending.wait(_RETRY_AFTER)
            # The outer wall of the thread: it goes on with what comes next.
            except Exception:
                logger.exception("The history could not be tidied up")
            if ending and not self._events:
                return
            if self._events:
                self._some.set()

    def _write_some(self) -> None:
        for _ in range(_IN_A_ROW):
            if not self._events:
                return
            batch = [self._events[at] for at in range(min(BATCH, len(self._events)))]
            self._record(batch)
            # Only now: what could not be written stays for the next time.
            for _ in batch:
                self._events.popleft()

    def _record(self, batch: Sequence[dict[str, Any]]) -> None:
        """Write a batch; where one event spoils it, write the others."""
        try:
            self._written += self.history.record(batch)
        except (OperationalError, ImproperlyConfigured):
            raise
        # Events come from strangers: one that nobody thought of must cost no other.
        except Exception:
            if len(batch) > 1:
                for event in batch:
                    self._record([event])
                return
            logger.exception("An event could not be recorded: %.200r", batch[0])
            self._missed += 1

    def _prune(self) -> bool:
        """Forget what is too much for a little while; say whether there is more."""
        until = time.monotonic() + _PRUNING
        while self.history.prune():
            if time.monotonic() > until:
                self._some.set()
                return True
        return False
