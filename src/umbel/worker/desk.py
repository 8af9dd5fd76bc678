"""What remote control may ask of a worker and do to it, the same for a worker of many processes and of one.

Questions are answered in the thread that asks, from slots, counters and the broker. Changes are made in the worker's
own thread, by :meth:`Desk.change`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from umbel.interfaces import Peeked, QueueSpec
from umbel.pausing import Paused
from umbel.revoking import Revocation, RevokedTasks, keep
from umbel.worker.leases import LeaseKeeper
from umbel.worker.orders import Orders, set_limits
from umbel.worker.place import Place
from umbel.worker.plan import GROWTH, WorkerPlan
from umbel.worker.process import Retire, Stack, stacks_of_threads
from umbel.worker.shared import Shared
from umbel.worker.slots import Slot, Started

logger = logging.getLogger("celery.worker")

#: By how many processes a worker can grow while it runs.
SPARE = 64
#: What a worker reads that has no queue, or whose queues are all paused. One for all of them: some brokers keep it.
IDLE = "umbel.idle"
_PATIENCE = 5.0
_HEARING = 0.3  # callers wait for replies for a second where they say nothing else


class Holder(msgspec.Struct, frozen=True):
    """One process: its id, its consumer, and what it runs."""

    pid: int
    consumer: str
    running: Sequence[Started]


class Desk(ABC):
    """One worker as remote control sees it."""

    def __init__(self, app: Any, plan: WorkerPlan, shared: Shared) -> None:
        self.app = app
        self.plan = plan
        self.shared = shared
        #: What it reads, with what it would read if that were not paused.
        self.queues: list[QueueSpec] = list(plan.queues)
        self.paused: Paused = {}
        self.orders = Orders(events=plan.task_events, pid=os.getpid())
        self.started_at = time.time()
        #: At most and at least so many processes, where the worker chooses by itself.
        self.autoscale = plan.autoscale

    @property
    def hostname(self) -> str:
        """The node name."""
        return self.plan.hostname

    # -- questions -----------------------------------------------------------------------------------------------

    @abstractmethod
    def holders(self) -> list[Holder]:
        """Return the processes, with what they run."""

    @abstractmethod
    def totals(self) -> Mapping[str, int]:
        """Return how many executions of each task have ended."""

    @abstractmethod
    def revoked(self) -> RevokedTasks:
        """Return what must not be started."""

    @property
    @abstractmethod
    def keeper(self) -> LeaseKeeper | None:
        """The keeper of the leases, while there is one."""

    def look(self) -> None:
        """Read what is revoked and paused now, and not only when it is time to."""
        if self.keeper is not None:
            # It looks in a second in any case.
            with contextlib.suppress(TimeoutError):
                self.keeper.look().result(1.0)

    def revoke(self, revocation: Revocation) -> None:
        """Note that these are revoked: where all workers find it, or if there is no such place, in this worker."""
        heard = self.keeper.heard if self.keeper is not None else None
        if heard is not None:
            heard.tell([revocation])
        else:
            keep(self.app, revocation)

    def held(self, consumer: str) -> Mapping[str, Peeked]:
        """Return what one process holds, by tag."""
        held: Mapping[str, Peeked] = self.app.broker.held(consumer)
        return held

    @property
    def size(self) -> int:
        """How many tasks may run at once."""
        return self.plan.total

    @property
    def busy(self) -> int:
        """How many tasks run where others may run after them."""
        return sum(len(holder.running) for holder in self.holders())

    # -- changes -------------------------------------------------------------------------------------------------

    def change(self, action: Callable[[], Any]) -> Any:
        """Do something in the worker's own thread and return what it returned, or raise what it raised."""
        return action()

    @abstractmethod
    def stacks(self) -> Mapping[int, Sequence[Stack]]:
        """Return where the threads are of each process that runs tasks, by its id."""

    @abstractmethod
    def wait_until_obeyed(self) -> None:
        """Wait until what was changed is so in every process, or for a moment."""

    @abstractmethod
    def distribute(self) -> None:
        """Hand the orders to the processes that are there; those to come get them at their start."""

    @abstractmethod
    def resize(self, by: int) -> None:
        """Let so many more tasks run at once, or fewer. Raises ``ValueError`` where that cannot be."""

    @abstractmethod
    def restart(self, modules: Sequence[str], *, reload: bool) -> None:
        """Replace every process when what it runs has ended."""

    @abstractmethod
    def terminate(self, ids: Collection[str], signum: int) -> None:
        """End these tasks if they run here."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker warmly."""

    def order(self, **changed: Any) -> None:
        """Change the orders and hand them out."""
        self.orders = msgspec.structs.replace(self.orders, **changed)
        self.distribute()

    def rescale(self, most: int | None, least: int | None) -> tuple[int, int]:
        """Change between how many processes an autoscaled worker may choose; return most and least."""
        assert self.autoscale is not None
        most, least = most or self.autoscale[0], self.autoscale[1] if least is None else least
        if not 1 <= least <= most:
            raise ValueError(f"at least 1 and at most max processes can stay, not min={least} and max={most}")
        self.autoscale = most, least
        wanted = min(max(self.size, least), most)
        if wanted != self.size:
            self.resize(wanted - self.size)
        return self.autoscale

    def limit_time(self, task: str, soft: float | None, hard: float | None) -> None:
        """Set the time limits of a task."""
        set_limits(self.app, {task: (soft, hard)})
        self.order(limits={**self.orders.limits, task: (soft, hard)})

    def watch(self, queues: Sequence[QueueSpec]) -> None:
        """Read these queues from now on, those that are paused once they are resumed. With none the worker waits."""
        self.app.broker.declare(queues)
        self.queues = list(queues)
        self._fetch()

    def heed(self) -> None:
        """Fetch nothing from what is paused by now, as the keeper has read it, and again from what was resumed."""
        before, self.paused = self.paused, self.keeper.paused if self.keeper is not None else {}
        for name in sorted(queue.name for queue in self.queues):
            pause = self.paused.get(name)
            if pause is not None and name not in before:
                text = "Queue %s is paused since %s by %s (%s): nothing is fetched from it until it is resumed."
                logger.info(text, name, pause.at.isoformat(timespec="seconds"), pause.by, pause.why or "no reason")
            elif pause is None and name in before:
                logger.info("Queue %s is resumed.", name)
        self._fetch()

    def _fetch(self) -> None:
        # A consumer reads at least one queue; to this one nobody sends.
        names = [queue.name for queue in self.queues if queue.name not in self.paused] or [IDLE]
        now = self.orders.queues
        if names != list([queue.name for queue in self.plan.queues] if now is None else now):
            self.order(queues=names)


class ProcessesDesk(Desk):
    """The desk of a supervisor. ``places``, ``slots`` and ``totals`` are its own; ``call`` reaches its thread."""

    def __init__(self, app: Any, plan: WorkerPlan, shared: Shared, supervisor: Any) -> None:
        super().__init__(app, plan, shared)
        self._supervisor = supervisor

    @property
    def _places(self) -> list[Place]:
        places: list[Place] = self._supervisor.places
        return places

    def holders(self) -> list[Holder]:
        """Return the processes, with what they run."""
        return [
            Holder(place.pid, place.consumer, place.running())
            for place in self._places
            if place.pid and place.consumer is not None
        ]

    def totals(self) -> Mapping[str, int]:
        """Return how many executions of each task have ended."""
        totals: Mapping[str, int] = self._supervisor.totals()
        return totals

    def revoked(self) -> RevokedTasks:
        """Return what must not be started."""
        revoked: RevokedTasks = self._supervisor.revoked
        return revoked

    @property
    def keeper(self) -> LeaseKeeper | None:
        """The keeper of the leases, while there is one."""
        keeper: LeaseKeeper | None = self._supervisor.keeper
        return keeper

    @property
    def size(self) -> int:
        """How many tasks may run at once."""
        active = sum(not place.dormant for place in self._places)
        return active * (self.orders.concurrency or self.plan.concurrency)

    @property
    def busy(self) -> int:
        """How many tasks run in the processes that are to stay."""
        return sum(len(place.running()) for place in self._places if place.pid and not place.dormant)

    def change(self, action: Callable[[], Any]) -> Any:
        """Do something in the supervisor's thread."""
        future: Future[Any] = self._supervisor.call(action)
        return future.result(_PATIENCE)

    def wait_until_obeyed(self) -> None:
        """Wait until every process has heard: what is sent after a reply must find it done."""
        self._ask()

    def _ask(self, *, stacks: bool = False) -> None:
        asked: Future[Future[None]] = self._supervisor.call(lambda: self._supervisor.ask(stacks=stacks))
        # One that is stuck in C code hears later, and starts nothing until then.
        with contextlib.suppress(TimeoutError):
            asked.result(_HEARING).result(_HEARING)

    def stacks(self) -> Mapping[int, Sequence[Stack]]:
        """Return where the threads of each process are; nothing of one that is stuck in C code."""
        self._ask(stacks=True)
        return {place.pid: place.stacks for place in self._places if place.pid}

    def distribute(self) -> None:
        """Tell every process."""
        for place in self._places:
            place.send(self.orders)

    def resize(self, by: int) -> None:
        """Add or take away processes; for threads and coroutines, change how many run at once in each."""
        if not self.plan.forks:
            self._resize_each(by)
            return
        awake = [place for place in self._places if not place.dormant]
        if by < 0:
            if len(awake) + by < 1:
                raise ValueError(f"{len(awake)} process(es) are there, so {-by} cannot go: one must be left")
            # Those that have nothing to do first; of the others the youngest.
            for place in sorted(awake, key=lambda place: (bool(place.running()), -place.index))[:-by]:
                place.dormant = True
            return
        room = self._supervisor.room
        if len(awake) + by > room:
            raise ValueError(f"this worker was started with room for {room} processes; {len(awake)} are there")
        # One that was told to end runs nothing more than what it runs: that can take hours.
        dormant = sorted((place for place in self._places if place.dormant), key=lambda place: place.stop_sent)
        ready = sum(not place.stop_sent for place in dormant)
        new = max(0, min(by - ready, room - len(self._places)))
        for place in dormant[: by - new]:
            place.dormant = False
            place.start_at_once()
        for _ in range(new):
            self._supervisor.add_place()

    def _resize_each(self, by: int) -> None:
        now = self.orders.concurrency or self.plan.concurrency
        if not 1 <= now + by <= self.plan.concurrency + GROWTH:
            raise ValueError(
                f"{now} tasks may run at once in each process, and only 1 to {self.plan.concurrency + GROWTH} can"
            )
        self.order(concurrency=now + by)

    def restart(self, modules: Sequence[str], *, reload: bool) -> None:
        """Replace every process when what it runs has ended."""
        self.orders = msgspec.structs.replace(self.orders, modules=tuple(modules), reload=reload)
        for place in self._places:
            place.send(Retire("restart"))

    def terminate(self, ids: Collection[str], signum: int) -> None:
        """End these tasks if they run here."""
        name = signal.Signals(signum).name
        self._supervisor.enforcer.revoked([Revocation(ids=list(ids), terminate=True, signal=name)])

    def stop(self) -> None:
        """End the worker warmly."""
        self._supervisor.stop()


class InProcessDesk(Desk):
    """The desk of a worker that is one process: there is nothing to resize."""

    def __init__(self, app: Any, plan: WorkerPlan, shared: Shared, worker: Any, slot: Slot) -> None:
        super().__init__(app, plan, shared)
        self._worker = worker
        self._slot = slot
        self._changing = threading.RLock()

    def change(self, action: Callable[[], Any]) -> Any:
        """Do something in this thread, when no other one changes anything."""
        with self._changing:
            return action()

    def holders(self) -> list[Holder]:
        """Return this process."""
        consumer = self._worker.consumer_id
        return [] if consumer is None else [Holder(os.getpid(), consumer, self._slot.running())]

    def totals(self) -> Mapping[str, int]:
        """Return how many executions of each task have ended."""
        totals: Counter[str] = self._worker.totals()
        return totals

    def revoked(self) -> RevokedTasks:
        """Return what must not be started."""
        revoked: RevokedTasks = self._worker.revoked
        return revoked

    @property
    def keeper(self) -> LeaseKeeper | None:
        """The keeper of the leases, while there is one."""
        keeper: LeaseKeeper | None = self._worker.keeper
        return keeper

    @property
    def size(self) -> int:
        """How many tasks may run at once."""
        return self.orders.concurrency or self.plan.concurrency

    def stacks(self) -> Mapping[int, Sequence[Stack]]:
        """Return where the threads of this process are."""
        return {os.getpid(): stacks_of_threads()}

    def wait_until_obeyed(self) -> None:
        """Return at once: there is no other process."""

    def distribute(self) -> None:
        """Carry them out."""
        self._worker.obey(self.orders)

    def resize(self, by: int) -> None:
        """Change how many run at once."""
        if self.plan.pool == "solo":
            raise ValueError("-P solo runs one task at a time")
        if not 1 <= self.size + by <= self.plan.concurrency + GROWTH:
            raise ValueError(f"{self.size} may run at once, and only 1 to {self.plan.concurrency + GROWTH} can")
        self.order(concurrency=self.size + by)

    def restart(self, modules: Sequence[str], *, reload: bool) -> None:
        """Refuse: the process is the worker."""
        raise ValueError("this worker is one process, which cannot be replaced; start it anew")

    def terminate(self, ids: Collection[str], signum: int) -> None:
        """End these tasks if they run here."""
        self._worker.terminate(ids, signum)

    def stop(self) -> None:
        """End the worker warmly."""
        self._worker.stop(self.plan.shutdown_timeout)


def slot_count(plan: WorkerPlan) -> int:
    """Return how many slots a worker needs, with those of processes that may be added: they cost nothing until used."""
    most = max(plan.processes, plan.autoscale[0] if plan.autoscale else 0)
    return most + (SPARE if plan.forks else 0)
