"""Keeping the consumer ids of one worker alive, and giving back what dead consumers held.

One thread owns the broker's :class:`~umbel.interfaces.Leases`; others hand it jobs. It never gives up on a release:
what a dead process held goes back as soon as the broker can be reached again.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any

import msgspec

from umbel.exceptions import BackendError, DecodeError, LeaseLost, OperationalError
from umbel.interfaces import REQUEUE, Broker, Delivery, Leases, Settlement, Store, Suspect, Verdict
from umbel.pausing import Paused, Pauses
from umbel.queues import PRESENCE as PRESENCE  # noqa: PLC0414 - others look for it here
from umbel.retry import spread
from umbel.revoking import HeardRevocations, Revocation, Revocations, RevokedTasks
from umbel.worker.plan import WorkerPlan
from umbel.worker.slots import ASKED, RECALLED, SETTLING, Slot, boot_time

logger = logging.getLogger("celery.worker.consumer")

_RETRY_EVERY = 1.0
_EXPIRE_EVERY = 60.0
_EXPIRE_BATCH = 500
_EXPIRE_PAUSE = 0.05  # seconds between two batches, so that others write too
_REVOKED_EVERY = 1.0
_FORGET_EVERY = 600.0
_KERNEL_SWEEP = 1.0


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended, as :meth:`umbel.interfaces.Leases.release` wants to know it."""

    started: Collection[str] = ()
    verdicts: Mapping[str, Verdict] = msgspec.field(default_factory=dict)
    cause: str = ""


def _returned(at: int, tag: str) -> Settlement:
    # The tag is all that names a hold; the fence is for the order.
    return Settlement(delivery=Delivery(tag=tag, queue="", raw=b"", fence=at), how=REQUEUE)


class LeaseKeeper:
    """Registers, renews, releases and reaps for one worker. Every method may be called from any thread."""

    def __init__(
        self,
        broker: Broker,
        plan: WorkerPlan,
        *,
        backend: Any = None,
        presence: Callable[[], dict[str, Any]] | None = None,
        renewed: Callable[[float, Collection[str]], None] | None = None,
        lost: Callable[[Collection[str]], None] | None = None,
        revoked: Callable[[Sequence[Revocation]], None] | None = None,
        paused: Callable[[], None] | None = None,
        audit: Callable[[], None] | None = None,
    ) -> None:
        """Prepare; nothing runs until :meth:`start`.

        ``presence`` describes the worker for others to read; ``renewed`` hears the boot time until which the leases
        of these ids surely hold, ``lost`` which ids have been taken over, and ``revoked`` what was revoked since it
        was last told; ``paused`` hears that :attr:`paused` has changed; ``audit`` looks for chords that were left.
        They are called in the keeper's thread.
        """
        self._broker = broker
        self._plan = plan
        self._backend = backend
        self._presence = presence
        self._renewed = renewed
        self._lost = lost
        self._tell_revoked = revoked
        self._tell_paused = paused
        self._audit = audit
        self._pauses: Pauses | None = None
        self._revocations: Revocations | HeardRevocations | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ids: set[str] = set()
        self._to_release: dict[str, Ending] = {}
        self._kept: set[str] = set()  # those of them whose failure was told
        self._seen: dict[str, tuple[int, float]] = {}  # suspect -> its beat, and when that was first seen
        # Seconds between two looks for the dead, more or less, for a fleet may have been started at one moment. Where
        # the kernel says who is dead, looking is cheap.
        kernel = broker.features.lease == "kernel"
        self._sweep_every = min(plan.lease_sweep, _KERNEL_SWEEP) if kernel else plan.lease_sweep
        self._back_at = 0.0  # when the broker could be reached again after it could not
        self._down = False
        self._slept = boot_time() - time.monotonic()  # seconds for which this machine was suspended so far
        self._forget_at = 0.0
        self._borrowed = False  # whether revocations are in the store of the results, which may be away by itself
        self._missed = False
        #: What was revoked, where no store keeps it.
        self.heard: HeardRevocations | None = None
        self._leases: Leases | None = None
        self._store: Store | None = None
        self._next = dict.fromkeys(("renew", "sweep", "expire", "revoked"), 0.0)
        self._thread = Thread(target=self._run, name="umbel-leases", daemon=True)

    # -- for others ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and start the thread. Raises :exc:`OperationalError` if the broker cannot be reached."""
        self._leases = self._broker.leases()
        self._store = self._broker.store()
        if self._tell_revoked is not None:
            self._start_revocations()
        self._back_at = time.monotonic()
        self._thread.start()

    def _start_revocations(self) -> None:
        """Read before the first process is started: what was revoked or paused while nobody ran must not start."""
        store = self._store
        if store is None and self._backend is not None:
            store, self._borrowed = self._backend.shared_store(), True
        if store is None:
            self._revocations = self.heard = HeardRevocations()
            return
        self._revocations = Revocations(store)
        self._pauses = Pauses(store)
        if self._borrowed:
            self._look_for_news()
        else:
            self._revocations.read()
            self._read_paused()

    @property
    def paused(self) -> Paused:
        """The queues that nothing must be fetched from, as far as this worker knows."""
        return self._pauses.paused if self._pauses is not None else {}

    @property
    def revoked(self) -> RevokedTasks:
        """The tasks that must not be started, as far as this worker knows."""
        return self._revocations.revoked if self._revocations is not None else RevokedTasks()

    @property
    def away(self) -> bool:
        """Whether the broker could not be reached the last time."""
        return self._down

    def register(self) -> Future[str]:
        """Ask for a new consumer id; the future fails with :exc:`OperationalError` if there is none now."""
        future: Future[str] = Future()
        self._jobs.put(lambda: self._register(future))
        return future

    def release(
        self,
        id: str,
        started: Collection[str] = (),
        *,
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> None:
        """Give back what a stopped process held, at once if the broker can be reached, else when it can."""
        self._jobs.put(lambda: self._give_back(id, Ending(started=started, verdicts=verdicts or {}, cause=cause)))

    def look(self) -> Future[None]:
        """Look for what is revoked and paused now; the future is done when what was found has been told."""
        future: Future[None] = Future()
        self._jobs.put(lambda: self._look(future))
        return future

    def _look(self, future: Future[None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            self._look_for_news()
        finally:
            future.set_result(None)

    def recall(self, id: str, slot: Slot, queues: Sequence[str]) -> None:
        """Give back what a living process has reserved and not started, because it cannot do it itself."""
        slot.recall(ASKED)
        self._jobs.put(lambda: self._recall(id, slot, queues))

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
                    self._to_release.update(dict.fromkeys(self._ids, Ending()))
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
            now = time.monotonic()
            if (slept := boot_time() - now) > self._slept + 1.0:
                # The machine was suspended: leases went on, our timers did not.
                self._next["renew"] = 0.0
            self._slept = slept
            if now >= self._next["renew"] and not stopping:
                self._renew()
                self._next["renew"] = now + self._plan.lease_heartbeat
            # After the renewal: what cannot be given back must not cost the living their leases.
            self._release_all()
            if now >= self._next["sweep"] and not stopping:
                self._next["sweep"] = now + spread(self._sweep_every)
                self._sweep()
                if self._audit is not None:
                    self._audit()
            if now >= self._next["expire"] and not stopping:
                self._next["expire"] = now + (_EXPIRE_PAUSE if self._expire() else _EXPIRE_EVERY)
            if now >= self._next["revoked"] and not stopping:
                self._next["revoked"] = now + _REVOKED_EVERY
                self._look_for_news()
        except OperationalError as error:
            if not self._down:
                logger.warning(
                    "consumer: Connection to broker lost. Trying to re-establish the connection... (%s)", error
                )
            self._down = True
            # A renewal shows that the broker is back, and is what it is needed for.
            self._next["renew"] = 0.0
        # The wall of this thread, as above: a driver's defect must not stop the renewals.
        except Exception:
            logger.exception("The lease keeper failed and goes on")
            self._down = True
        else:
            if self._down:
                self._back_at = time.monotonic()
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

    def _give_back(self, id: str, ending: Ending) -> None:
        self._to_release[id] = ending
        self._ids.discard(id)

    def _recall(self, id: str, slot: Slot, queues: Sequence[str]) -> None:
        # From now on the process starts nothing. What it wrote just before can be read after this pause.
        time.sleep(SETTLING)
        started = {execution.tag for execution in slot.executions()}
        tags = [tag for tag in slot.batch() if tag not in started]
        try:
            if tags and id in self._ids:
                consumer = self._broker.consumer(id, queues)
                try:
                    # Those that were settled already are refused.
                    settled = consumer.settle([_returned(at, tag) for at, tag in enumerate(tags)])
                finally:
                    consumer.close()
                moved = len(tags) - len(settled.refused)
                if moved:
                    logger.info("Taking back %d unstarted message(s) of a process that is busy", moved)
        except (OperationalError, LeaseLost) as error:
            logger.warning("Unstarted messages of a busy process could not be taken back: %s", error)
        finally:
            # Also after an error: when the process comes to it, it gives back by itself what is left.
            slot.recall(RECALLED)

    def _release_all(self) -> None:
        for id, ending in list(self._to_release.items()):
            try:
                moved = self._open.release(id, started=ending.started, verdicts=ending.verdicts, cause=ending.cause)
            # A driver's defect too: the others come before it is tried again.
            except Exception as error:
                self._to_release[id] = self._to_release.pop(id)
                self._next["renew"] = 0.0
                if id not in self._kept:
                    self._kept.add(id)
                    known = isinstance(error, OperationalError)
                    logger.warning("What a process held cannot be given back yet: %s", error, exc_info=not known)
                return
            self._to_release.pop(id, None)
            self._kept.discard(id)
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
            self._renewed(before + self._plan.lease_ttl, [id for id in ids if id not in lost])
        if self._store is not None and self._presence is not None:
            value = msgspec.json.encode(self._presence())
            self._store.put(PRESENCE + self._plan.hostname, value, ttl=3 * self._plan.lease_heartbeat)

    def _sweep(self) -> None:
        """Take over from workers that are dead, or seem so for long enough.

        Seeming so takes a beat that has been there for half a lease at least; and while we have not been connected for
        a whole lease, the others may only be about to come back as we have.
        """
        now = time.monotonic()
        ttl = self._plan.lease_ttl
        seen: dict[str, tuple[int, float]] = {}
        for suspect in self._open.suspects():
            if suspect.id in self._ids:
                continue
            beat, since = self._seen.get(suspect.id, (None, now))
            twice = beat == suspect.beat
            if not twice:
                since = now
            seen[suspect.id] = suspect.beat, since
            still = max(suspect.still, now - since)
            if suspect.dead or (twice and still >= ttl / 2 and now - self._back_at >= ttl):
                self._reap(suspect)
        self._seen = seen

    def _reap(self, suspect: Suspect) -> None:
        moved = 0
        while True:
            reaped = self._open.reap(suspect)
            moved += reaped.moved
            if not reaped.left or not reaped.moved:
                break
        if moved:
            logger.warning("Restoring %d unacknowledged message(s) of %s", moved, suspect.node or suspect.id)

    def _look_for_news(self) -> None:
        try:
            self._read_revoked()
            self._read_paused()
            self._missed = False
        except OperationalError as error:
            if not self._borrowed:
                raise
            if not self._missed:
                text = (
                    "What was revoked cannot be read while the result backend is away, nor which queues are paused: %s"
                )
                logger.warning(text, error)
            self._missed = True

    def _read_revoked(self) -> None:
        revocations = self._revocations
        if revocations is None or self._tell_revoked is None:
            return
        now = time.monotonic()
        forget = bool(revocations.revoked) and now >= self._forget_at
        if forget or revocations.changed():
            self._forget_at = now + _FORGET_EVERY
            new = revocations.read()
            if new or forget:
                self._tell_revoked(new)

    def _read_paused(self) -> None:
        if self._pauses is None or self._tell_paused is None:
            return
        try:
            if self._pauses.changed():
                self._tell_paused()
        except DecodeError as error:
            logger.error("It stays as it was, because %s", error)

    def _expire(self) -> bool:
        """Delete a batch of results that are past their time; return whether more are left."""
        if self._backend is None:
            return False
        try:
            return bool(self._backend.expire(_EXPIRE_BATCH) >= _EXPIRE_BATCH)
        except (BackendError, OperationalError) as error:
            logger.warning("Old results could not be deleted: %s", error)
            return False

    def _finish(self) -> None:
        try:
            if self._store is not None and self._presence is not None:
                self._store.delete(PRESENCE + self._plan.hostname)
        except OperationalError as error:
            logger.warning("The worker could not take its leave from the broker: %s", error)
        finally:
            self._open.close()
