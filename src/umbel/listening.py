"""One connection of a process that hears of new results, and whose turn it is to read it.

Of the threads that wait, one reads the connection for all, so a lone ``get()`` costs no thread switch::

    waiting --nobody leads--> leading: reads, hands every caller what is theirs
       ^                         |
       '--something for me, or time is up: the lead goes to another who waits

Nothing is subscribed before the first caller waits. If the connection breaks it is made anew, and everything that is
waited for is read again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from umbel.exceptions import BackendGetMetaError, OperationalError
from umbel.interfaces import Clock, ResultBackend, ResultWatcher
from umbel.retry import exponential_backoff

logger = logging.getLogger("celery.result")

Items = Sequence[tuple[str, bytes]]

READ_SECONDS: Final = 1.0  # the longest single read, so that a lost wake-up costs no more than this
# A store that does not answer is waited for until the caller's own deadline, and for this long where that comes sooner:
# one that is far away must be able to answer at all.
LEAST_PATIENCE: Final = 1.0
UNREACHABLE: Final = (OperationalError, BackendGetMetaError)


class Watch(Protocol):
    """Anyone who can be told about news."""

    def post(self, items: Items) -> None:
        """Hand over news; called by whoever leads, so it must not block."""


class Wait:
    """A thread that waits."""

    __slots__ = ("event", "inbox")

    def __init__(self) -> None:
        self.inbox: deque[tuple[str, bytes]] = deque()
        self.event = threading.Event()

    def post(self, items: Items) -> None:
        """Hand over news."""
        self.inbox.extend(items)
        self.event.set()


class Listener:
    """Knows who waits for what, and lets one of them read. Safe to use from every thread of one process.

    :param patience: how many seconds the backend may be away before an impatient caller is told.
    """

    def __init__(self, backend: Callable[[], ResultBackend], clock: Clock, patience: float) -> None:
        self._backend = backend
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._watcher: ResultWatcher | None = None
        self._watches: dict[str, list[Watch]] = {}
        self._known: set[str] = set()  # what the watcher watches; only the leader uses it
        self._fresh: set[str] = set()  # to be added to the watcher
        self._stale: set[str] = set()  # to be discarded from it
        self._leader: Wait | None = None
        self._followers: dict[Wait, None] = {}
        self._failures = 0
        self._failing_since = 0.0

    def register(self, watch: Watch, task_ids: Collection[str]) -> None:
        """Tell this one about these from now on, and about what is stored already."""
        with self._lock:
            for task_id in task_ids:
                self._watches.setdefault(task_id, []).append(watch)
            # Even those it watches for others already: what it has told them it must tell this one too.
            self._fresh.update(task_ids)
            self._stale.difference_update(task_ids)
            # Whoever is in the middle of a read does not know these ids yet.
            watcher = self._watcher if self._leader is not None else None
        if watcher is not None:
            watcher.wake()

    def unregister(self, watch: Watch, task_ids: Collection[str]) -> None:
        """Undo :meth:`register` for these; those that are not registered are left alone."""
        with self._lock:
            for task_id in task_ids:
                watches = self._watches.get(task_id, [])
                if watch not in watches:
                    continue
                watches.remove(watch)
                if not watches:
                    del self._watches[task_id]
                    self._fresh.discard(task_id)
                    self._stale.add(task_id)

    def next(self, wait: Wait, until: float | None, *, deadline: float | None) -> Items:
        """Block until something has come for this caller or the moment ``until`` has passed; return what came.

        Blocks for no longer than ``deadline``, also where the backend does not answer (but see LEAST_PATIENCE). A
        caller without a deadline gets :exc:`OperationalError` once the backend has been away for too long.
        """
        try:
            while not wait.inbox:
                remaining = READ_SECONDS if until is None else min(until - self._clock.monotonic(), READ_SECONDS)
                if remaining <= 0:
                    break
                if self._take_lead(wait):
                    try:
                        self._read(wait, remaining, deadline)
                    finally:
                        self._leader = None
                else:
                    self._clock.wait(wait.event, remaining)
                    wait.event.clear()
        finally:
            self._leave(wait)
        items = []
        while wait.inbox:
            items.append(wait.inbox.popleft())
        return items

    def _take_lead(self, wait: Wait) -> bool:
        with self._lock:
            if self._leader is None:
                self._leader = wait
                self._followers.pop(wait, None)
                return True
            self._followers[wait] = None
            return False

    def _leave(self, wait: Wait) -> None:
        """Let this one go, and have another read if nobody does.

        Everybody who leaves sees to that: one who was called upon to read may find that it has what it came for.
        """
        with self._lock:
            self._followers.pop(wait, None)
            heir = next(iter(self._followers), None) if self._leader is None else None
        if heir is not None:
            heir.event.set()

    def _read(self, wait: Wait, timeout: float, deadline: float | None) -> None:
        """Read once, for everybody. Only the leader calls this."""
        try:
            items = self._receive(timeout, deadline)
        except UNREACHABLE as error:
            self.disconnect()
            self._pause(wait, error, timeout, impatient=deadline is None)
            return
        except BaseException:
            # Interrupted in the middle of a reply, the connection is of no use any more.
            self.disconnect()
            raise
        self._failures = 0
        routes: dict[Watch, list[tuple[str, bytes]]] = {}
        with self._lock:
            for task_id, payload in items:
                for watch in self._watches.get(task_id, ()):
                    routes.setdefault(watch, []).append((task_id, payload))
        for watch, own in routes.items():
            watch.post(own)

    def _receive(self, timeout: float, deadline: float | None) -> Items:
        patience = self.patience(deadline)
        watcher = self._watcher
        if watcher is None:
            watcher = self._backend().watcher()
            with self._lock:
                self._watcher = watcher
                self._fresh.update(self._watches)
                self._stale.clear()
                self._known.clear()
        if not self._fresh and not self._stale:
            return watcher.receive(timeout, patience=patience)
        with self._lock:
            fresh, stale = self._fresh, self._stale
            self._fresh, self._stale = set(), set()
        again = fresh & self._known
        stale |= again
        items: Items = ()
        if stale:
            watcher.discard(stale)
            self._known -= stale
        if again:
            # Adding what was never missed may tell nothing new; the watcher must notice first that it is gone.
            items = watcher.receive(0, patience=patience)
        if fresh:
            watcher.add(fresh)
            self._known |= fresh
        return items or watcher.receive(timeout, patience=patience)

    def patience(self, deadline: float | None) -> float | None:
        """Return for how many seconds a store may be silent that is asked on behalf of a caller with this deadline."""
        return None if deadline is None else max(deadline - self._clock.monotonic(), LEAST_PATIENCE)

    def _pause(self, wait: Wait, error: Exception, timeout: float, *, impatient: bool) -> None:
        """Wait before the next attempt, or raise if the backend has been away for too long."""
        now = self._clock.monotonic()
        self._failures += 1
        if self._failures == 1:
            self._failing_since = now
            return  # an idle connection that was closed meanwhile needs no wait and no words
        if self._failures == 2:
            logger.warning("cannot reach the result backend: %s; trying again until it is back", error)
        if impatient and now - self._failing_since >= self._patience:
            raise error
        pause = exponential_backoff(0.05, self._failures - 2, READ_SECONDS)
        self._clock.wait(wait.event, min(pause, timeout))
        wait.event.clear()

    @property
    def at_hand(self) -> bool:
        """Whether the connection is there and nobody reads it."""
        return self._watcher is not None and self._leader is None

    def disconnect(self) -> None:
        """Close the connection; the next read opens a new one."""
        with self._lock:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            with contextlib.suppress(*UNREACHABLE):
                watcher.close()

    def abandon(self) -> object:
        """Return the connection, to be kept and never used: in a forked child it is the parent's."""
        return self._watcher
