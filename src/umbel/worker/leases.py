"""Keeping the consumer ids of one worker alive, and giving back what dead consumers held.

One thread owns the broker's :class:`~umbel.interfaces.Leases`; others hand it jobs. It never gives up on a release:
what a dead process held goes back as soon as the broker can be reached again.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from threading import Thread
from typing import Any

import msgspec

from umbel.exceptions import BackendError, OperationalError
from umbel.interfaces import Broker, Leases, Store, Suspect
from umbel.worker.plan import WorkerPlan
from umbel.worker.slots import boot_time

logger = logging.getLogger("celery.worker.consumer")

PRESENCE = "worker:"
_RETRY_EVERY = 1.0
_EXPIRE_EVERY = 60.0


class LeaseKeeper:
    """Registers, renews, releases and reaps for one worker. Every method may be called from any thread."""

    def __init__(
        self,
        broker: Broker,
        plan: WorkerPlan,
        *,
        backend: Any = None,
        presence: Callable[[], dict[str, Any]] | None = None,
        renewed: Callable[[float], None] | None = None,
        lost: Callable[[Collection[str]], None] | None = None,
    ) -> None:
        """Prepare; nothing runs until :meth:`start`.

        ``presence`` describes the worker for others to read; ``renewed`` hears the boot time until which all leases
        surely hold, and ``lost`` which ids have been taken over. Both are called in the keeper's thread.
        """
        self._broker = broker
        self._plan = plan
        self._backend = backend
        self._presence = presence
        self._renewed = renewed
        self._lost = lost
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ids: set[str] = set()
        self._to_release: dict[str, Collection[str]] = {}
        self._seen: dict[str, int] = {}
        self._down = False
        self._leases: Leases | None = None
        self._store: Store | None = None
        self._next = dict.fromkeys(("renew", "sweep", "expire"), 0.0)
        self._thread = Thread(target=self._run, name="umbel-leases", daemon=True)

    # -- for others ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and start the thread. Raises :exc:`OperationalError` if the broker cannot be reached."""
        self._leases = self._broker.leases()
        self._store = self._broker.store()
        self._thread.start()

    def register(self) -> Future[str]:
        """Ask for a new consumer id; the future fails with :exc:`OperationalError` if there is none now."""
        future: Future[str] = Future()
        self._jobs.put(lambda: self._register(future))
        return future

    def release(self, id: str, started: Collection[str] = ()) -> None:
        """Give back what a stopped process held, at once if the broker can be reached, else when it can."""
        self._jobs.put(lambda: self._give_back(id, started))

    def close(self, timeout: float) -> bool:
        """Release every id that is left and stop; return whether all of it was done within the timeout (seconds)."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(timeout)
        return not self._thread.is_alive() and not self._to_release and not self._ids

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        stop_by = None
        while stop_by is None or (self._to_release and time.monotonic() < stop_by):
            try:
                job = self._jobs.get(timeout=self._pause())
                if job is None:
                    stop_by = time.monotonic() + self._plan.lease_ttl
                    self._to_release.update(dict.fromkeys(self._ids, ()))
                else:
                    job()
            except queue.Empty:
                pass
            # The wall of this thread: without it the leases of healthy processes would end in silence.
            except Exception:
                logger.exception("The lease keeper failed at a job and goes on")
            self._work(stopping=stop_by is not None)
        self._finish()

    def _pause(self) -> float:
        if self._down or self._to_release:
            return _RETRY_EVERY
        return max(0.0, min(self._next.values()) - time.monotonic())

    def _work(self, *, stopping: bool) -> None:
        try:
            self._release_all()
            now = time.monotonic()
            if now >= self._next["renew"] and not stopping:
                self._renew()
                self._next["renew"] = now + self._plan.lease_heartbeat
            if now >= self._next["sweep"] and not stopping:
                self._next["sweep"] = now + self._plan.lease_sweep
                self._sweep()
            if now >= self._next["expire"] and not stopping:
                self._next["expire"] = now + _EXPIRE_EVERY
                self._expire()
        except OperationalError as error:
            if not self._down:
                logger.warning(
                    "consumer: Connection to broker lost. Trying to re-establish the connection... (%s)", error
                )
            self._down = True
        # The wall of this thread, as above: a driver's defect must not stop the renewals.
        except Exception:
            logger.exception("The lease keeper failed and goes on")
            self._down = True
        else:
            if self._down:
                logger.info("consumer: The connection to the broker is back")
            self._down = False

    @property
    def _open(self) -> Leases:
        assert self._leases is not None, "start() comes first"
        return self._leases

    def _register(self, future: Future[str]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            id = self._open.register(self._plan.hostname)
        # Whatever it is, it belongs to whoever waits for the id.
        except Exception as error:
            future.set_exception(error)
            return
        self._ids.add(id)
        future.set_result(id)

    def _give_back(self, id: str, started: Collection[str]) -> None:
        self._to_release[id] = started
        self._ids.discard(id)

    def _release_all(self) -> None:
        for id, started in list(self._to_release.items()):
            moved = self._open.release(id, started=started)
            self._to_release.pop(id, None)
            self._ids.discard(id)
            if moved:
                logger.warning("Restoring %d unacknowledged message(s)", moved)

    def _renew(self) -> None:
        before = boot_time()
        ids = sorted(self._ids)
        lost = self._open.renew(ids) if ids else ()
        if lost:
            self._ids.difference_update(lost)
            logger.error("The lease of %d process(es) was lost; what they hold runs elsewhere.", len(lost))
            if self._lost is not None:
                self._lost(lost)
        if self._renewed is not None:
            self._renewed(before + self._plan.lease_ttl)
        if self._store is not None and self._presence is not None:
            value = msgspec.json.encode(self._presence())
            self._store.put(PRESENCE + self._plan.hostname, value, ttl=3 * self._plan.lease_heartbeat)

    def _sweep(self) -> None:
        """Take over from workers whose beat has not changed since the last sweep."""
        suspects = [suspect for suspect in self._open.suspects() if suspect.id not in self._ids]
        for suspect in suspects:
            if self._seen.get(suspect.id) == suspect.beat:
                self._reap(suspect)
        self._seen = {suspect.id: suspect.beat for suspect in suspects}

    def _reap(self, suspect: Suspect) -> None:
        moved = 0
        while True:
            reaped = self._open.reap(suspect)
            moved += reaped.moved
            if not reaped.left or not reaped.moved:
                break
        if moved:
            logger.warning("Restoring %d unacknowledged message(s) of %s", moved, suspect.node or suspect.id)

    def _expire(self) -> None:
        if self._backend is None:
            return
        try:
            self._backend.expire()
        except BackendError as error:
            logger.warning("Old results could not be deleted: %s", error)

    def _finish(self) -> None:
        try:
            if self._store is not None and self._presence is not None:
                self._store.delete(PRESENCE + self._plan.hostname)
            self._open.close()
        except OperationalError as error:
            logger.warning("The worker could not take its leave from the broker: %s", error)
