"""What a worker of many processes and a worker of one have in common: its parts, and what others may know about it."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from umbel.metrics.page import worker_page
from umbel.revoking import Revocation, RevokedTasks
from umbel.worker.audit import ChordAudit
from umbel.worker.connecting import connect
from umbel.worker.desk import Desk
from umbel.worker.health import Health
from umbel.worker.leases import LeaseKeeper
from umbel.worker.plan import WorkerPlan
from umbel.worker.remote import Remote
from umbel.worker.shared import Shared

if TYPE_CHECKING:
    from umbel.beat.threads import BeatThread


class Worker(ABC):
    """One worker, whatever it consists of. A subclass makes the desk, for that shows its own inside."""

    _desk: Desk
    _remote: Remote

    def __init__(
        self,
        app: Any,
        plan: WorkerPlan,
        url: str,
        *,
        before_start: Callable[[], None] | None = None,
        shared: Shared | None = None,
    ) -> None:
        """Prepare; nothing is started. ``url`` is for the log, masked; ``before_start`` runs once connected."""
        self._app = app
        self._plan = plan
        self._url = url
        self._before_start = before_start
        self._shared = shared or Shared()
        self._keeper: LeaseKeeper | None = None
        self._beat: BeatThread | None = None
        self._started_at = time.time()
        self._health = Health(plan.hostname, plan.health_port, lambda ready: worker_page(self._desk, ready=ready))

    @property
    def hostname(self) -> str:
        """The node name."""
        return self._plan.hostname

    @property
    def keeper(self) -> LeaseKeeper | None:
        """The keeper of the leases, while there is one."""
        return self._keeper

    @property
    def beat(self) -> BeatThread | None:
        """The beat of this worker, while there is one."""
        return self._beat

    @property
    def revoked(self) -> RevokedTasks:
        """The tasks that must not be started."""
        keeper = self._keeper
        return keeper.revoked if keeper is not None else RevokedTasks()

    @abstractmethod
    def totals(self) -> Mapping[str, int]:
        """Return how many executions of each task have ended. From any thread."""

    def describe(self) -> dict[str, Any]:
        """Return what others may know about this worker. From any thread."""
        plan = self._plan
        return {
            "hostname": plan.hostname,
            "pid": os.getpid(),
            "pool": plan.pool,
            "concurrency": self._desk.size,
            "queues": [queue.name for queue in self._desk.queues],
            "started_at": self._started_at,
            "total": dict(self.totals()),
        }

    def _open(self, stopping: threading.Event) -> LeaseKeeper | None:
        """Reach the broker, keep leases from now on and answer remote control; None if ``stopping`` is set meanwhile.

        Raises :exc:`OperationalError` if the broker cannot be reached.
        """
        broker = connect(self._app, self._plan, self._url, stopping)
        if broker is None:
            return None
        if self._before_start is not None:
            self._before_start()
        plan = self._plan
        if plan.beat:
            from umbel.beat.threads import embedded  # a worker without beat needs none of it

            self._beat = embedded(self._app, scheduler=plan.scheduler, schedule_filename=plan.schedule_filename)
        keeper = self._keeper = LeaseKeeper(
            broker,
            plan,
            backend=self._app.backend,
            presence=self.describe,
            renewed=self._renewed,
            lost=self._lost,
            revoked=self._on_revoked,
            paused=self._on_paused,
            audit=ChordAudit.make(self._app, broker, hostname=plan.hostname),
        )
        keeper.start()
        self._remote.start()
        if self._beat is not None:
            self._beat.start()
        return keeper

    def _hush(self) -> None:
        """Have beat send nothing more, so that another leads; it needs the broker for that. Returns at once."""
        if self._beat is not None:
            self._beat.stop()

    # -- what the keeper of the leases tells, in its own thread --------------------------------------------------

    @abstractmethod
    def _renewed(self, valid_until: float, ids: Collection[str]) -> None:
        """The leases of these consumers hold until then (boot-time seconds)."""

    @abstractmethod
    def _lost(self, ids: Collection[str]) -> None:
        """The leases of these consumers are over."""

    @abstractmethod
    def _on_revoked(self, revocations: Sequence[Revocation]) -> None:
        """These are new."""

    @abstractmethod
    def _on_paused(self) -> None:
        """Other queues are paused now: have :meth:`Desk.heed` done in the worker's own thread, and do not wait."""
