"""A worker inside one process: ``-P solo``, ``memory://``, and :func:`start_worker` in a test.

The engine runs in the thread that calls :meth:`InProcessWorker.run`; the lease keeper is a thread beside it. No
process is forked, so a task that brings the process down brings the worker down.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec

from umbel import signals
from umbel.bell import Bell
from umbel.exceptions import CeleryError, OperationalError, Terminated
from umbel.revoking import Revocation
from umbel.worker.base import Worker
from umbel.worker.desk import InProcessDesk
from umbel.worker.door import Door
from umbel.worker.engine import Engine
from umbel.worker.executors import make_executor
from umbel.worker.health import Seen, Watch
from umbel.worker.leases import LeaseKeeper
from umbel.worker.limits import Limiter, unenforceable
from umbel.worker.orders import Obedience, Orders
from umbel.worker.plan import WorkerPlan, make_plan
from umbel.worker.process import dump_stacks
from umbel.worker.remote import Remote
from umbel.worker.reporting import Reporter
from umbel.worker.runner import TaskRunner
from umbel.worker.shutdown import RELEASE_TIME, SHUTDOWN_SIGNALS, Shutdown
from umbel.worker.slots import LOST, SlotTable, boot_time

logger = logging.getLogger("celery.worker")

_RETRY_REGISTER = 1.0
_KILL_GRACE = 0.5


class InProcessWorker(Worker):
    """A whole worker in this process. ``run`` blocks; ``stop`` may be called from any thread and from a handler."""

    def __init__(
        self,
        app: Any,
        plan: WorkerPlan,
        url: str,
        *,
        before_start: Callable[[], None] | None = None,
        probed: bool = True,
    ) -> None:
        """Prepare; nothing is started. ``probed`` says whether probes can ask how this worker is."""
        super().__init__(app, plan, url, before_start=before_start)
        self._engine: Engine | None = None
        self._consumer_id: str | None = None
        self._stopping = Bell()
        self._stop_by: float | None = None
        self._slot = SlotTable(1, plan.slot_capacity)[0]
        self._desk = InProcessDesk(app, plan, self._shared, self, self._slot)
        self._remote = Remote(self._desk)
        self._reporter = Reporter(app, plan.hostname, self._shared)
        self._obedience: Obedience | None = None
        self._totals: Counter[str] = Counter()
        self._watch = Watch(self._health, self._look) if probed else None
        self.ready = threading.Event()

    def run(self) -> bool:
        """Work until stopped; return whether everything was given back or finished.

        Raises :exc:`OperationalError` if the broker cannot be reached at the start.
        """
        if self._watch is not None:
            self._watch.start()
        try:
            return self._run()
        finally:
            self.unwatch()

    def _run(self) -> bool:
        keeper = self._open(self._stopping)
        if keeper is None:
            return True
        # Before the first message: it must not fetch what is paused.
        self._on_paused()
        signals.worker_process_init.send(sender=self._plan.hostname)
        try:
            while not self._stopping.is_set():
                self._serve(keeper)
        finally:
            self._hush()
            self._reporter.close()
            self._remote.close()
            if self._beat is not None:
                self._beat.join()
            clean = self.give_back()
            signals.worker_process_shutdown.send(sender=self._plan.hostname, pid=os.getpid(), exitcode=0)
            signals.worker_shutdown.send(sender=self)
        return clean

    def stop(self, timeout: float | None = None) -> None:
        """Stop reserving and end when what runs has ended, or after ``timeout`` seconds. A later call can hasten."""
        if timeout is not None:
            until = time.monotonic() + timeout
            self._stop_by = until if self._stop_by is None else min(until, self._stop_by)
        self._stopping.set()
        self._hush()
        engine = self._engine
        if engine is not None:
            engine.stop(timeout)

    def give_back(self) -> bool:
        """Give back whatever this worker still holds; return whether that was done. A second call does nothing."""
        keeper, self._keeper = self._keeper, None
        return keeper is None or keeper.close(RELEASE_TIME)

    def unwatch(self) -> None:
        """Tell probes nothing more: this worker ends. A second call does nothing."""
        if self._watch is not None:
            self._watch.close()

    def totals(self) -> Counter[str]:
        """Return how many executions of each task have ended."""
        engine = self._engine
        return self._totals + Counter(dict(engine.totals) if engine is not None else {})

    def _look(self) -> None:
        keeper = self._keeper
        seen = Seen(index=0, slot=self._slot, ready=self.ready.is_set())
        self._health.look([seen], away=keeper is not None and keeper.away, stopping=self._stopping.is_set())

    def _serve(self, keeper: LeaseKeeper) -> None:
        """Run one engine on one consumer id until it ends."""
        plan = self._plan
        consumer_id = self._register(keeper)
        if consumer_id is None:
            return
        orders = self._desk.orders
        queues = [queue.name for queue in plan.queues] if orders.queues is None else orders.queues
        consumer = self._app.broker.consumer(consumer_id, queues)
        executor = make_executor(plan.pool, orders.concurrency or plan.concurrency)
        runner = TaskRunner(self._app, hostname=plan.hostname)
        in_main = threading.current_thread() is threading.main_thread()
        engine = Engine(
            self._app,
            consumer=consumer,
            executor=executor,
            runner=runner,
            # There is no process to replace: what these are for would not be gained.
            options=msgspec.structs.replace(plan.engine_options(), max_tasks=None, max_memory=None, supervised=False),
            slot=self._slot,
            # SIGUSR1 is for the stacks here. In a test's thread there is no signal to be had.
            limiter=Limiter(signal.SIGUSR2 if executor.features.inline and in_main else None),
            door=Door(runner, self._shared),
        )
        engine.door.revoke(keeper.revoked)
        obedience = Obedience(self._app, engine, self._reporter)

        def take() -> None:
            obedience.take(orders, first=True)
            self._obedience = obedience
            # Those that came meanwhile.
            obedience.take(self._desk.orders)

        self._desk.change(take)
        self._engine = engine
        if self._stopping.is_set():
            # Asked between the registration and now, when there was no engine to tell.
            engine.stop(None if self._stop_by is None else max(0.0, self._stop_by - time.monotonic()))
        elif not self.ready.is_set():
            logger.info("%s ready.", plan.hostname)
            self.ready.set()
            signals.worker_ready.send(sender=self)
        try:
            engine.run()
        finally:
            self._engine = self._obedience = None
            self._totals = self._totals + Counter(engine.totals)
            keeper.release(consumer_id)
            consumer.close()

    def _renewed(self, valid_until: float, ids: Collection[str]) -> None:
        if self._consumer_id in ids:
            self._slot.renewed(valid_until)

    def _lost(self, ids: Collection[str]) -> None:
        self._slot.renewed(LOST)

    def _on_revoked(self, revocations: Sequence[Revocation]) -> None:
        keeper, engine = self._keeper, self._engine
        if keeper is None or engine is None:
            return
        engine.door.revoke(keeper.revoked)
        for revocation in revocations:
            if revocation.terminate:
                self.terminate(revocation.ids, int(getattr(signal, revocation.signal, signal.SIGTERM)))

    def _on_paused(self) -> None:
        self._desk.change(self._desk.heed)

    @property
    def consumer_id(self) -> str | None:
        """The id under which messages are held now."""
        return self._consumer_id

    def obey(self, orders: Orders) -> None:
        """Carry out orders of remote control; what starts later reads them from the desk."""
        obedience = self._obedience
        if obedience is not None:
            obedience.take(orders)

    def terminate(self, ids: Collection[str], signum: int) -> None:
        """End these tasks if they run here."""
        engine = self._engine
        if engine is None:
            return
        for id in ids:
            engine.interrupt(id, Terminated(signum))

    def _register(self, keeper: LeaseKeeper) -> str | None:
        while not self._stopping.is_set():
            self._consumer_id = None
            self._slot.clear()
            self._slot.renewed(boot_time() + self._plan.lease_ttl)
            try:
                self._consumer_id = keeper.register().result()
                return self._consumer_id
            except OperationalError as error:
                logger.error("No consumer can be registered while the broker is away: %s", error)
                self._stopping.wait(_RETRY_REGISTER)
        return None


def run_worker(app: Any, plan: WorkerPlan, url: str, *, before_start: Callable[[], None] | None = None) -> int:
    """Run a worker in this process, under its signals, and return the exit code. Called in the main thread."""
    worker = InProcessWorker(app, plan, url, before_start=before_start)
    shutdown = Shutdown(plan)
    with _signals() as received:
        guard = threading.Thread(target=_guard, args=(worker, shutdown, received), name="umbel-signals", daemon=True)
        guard.start()
        try:
            clean = worker.run()
        finally:
            app.close()
    guard.join()
    return shutdown.ended(clean)


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Turn the worker's signals into bytes on a socket while the block runs; it is closed at the end."""
    received, sender = socket.socketpair()
    sender.setblocking(False)
    old = {number: signal.getsignal(number) for number in (*SHUTDOWN_SIGNALS, signal.SIGUSR1)}
    for number in old:
        signal.signal(number, lambda *_: None)
    # Not by a handler in Python: those run in the main thread only, which may be in a task that does not return to
    # the interpreter, and the kernel may have given the signal to another thread.
    old_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield received
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        sender.close()


def _guard(worker: InProcessWorker, shutdown: Shutdown, received: socket.socket) -> None:
    """Turn signals into stops, and end the process when what runs does not."""
    with received:
        while True:
            left = shutdown.left(time.monotonic())
            readable, _, _ = select.select([received], [], [], None if left is None else left + _KILL_GRACE)
            if not readable:
                # The task that runs cannot be ended without its process. What it held must go back first, for
                # afterwards nobody is there to do it; until the next line it may run twice for some milliseconds.
                worker.give_back()
                worker.unwatch()
                logging.shutdown()
                os._exit(shutdown.exit_code)
            numbers = received.recv(4096)
            if not numbers:
                return
            for number in numbers:
                if number == signal.SIGUSR1:
                    dump_stacks()
                elif number in SHUTDOWN_SIGNALS:
                    shutdown.on_signal(number)
                    shutdown.advance()
                    worker.stop(shutdown.left(time.monotonic()))


class WorkerDidNotStop(CeleryError):
    """Raised by :func:`start_worker` when a task still ran at the end of the block; it was given back."""


@contextlib.contextmanager
def start_worker(
    app: Any,
    concurrency: int = 1,
    pool: str = "solo",
    loglevel: str | int = "WARNING",
    logfile: str | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    **options: Any,
) -> Iterator[InProcessWorker]:
    """Run a worker in a thread of this process while the block runs: for tests. No signal handler is touched.

    ``options`` are those of the ``worker`` command. What the command does to logging is not done;
    ``perform_ping_check`` is accepted, for the worker consumes before the block is entered in any case.

    :param shutdown_timeout: seconds that a running task gets at the end; then :exc:`WorkerDidNotStop` is raised.
    """
    app.finalize()
    plan = make_plan(app, {"concurrency": concurrency, "pool": pool, "hostname": "test@%h", **options})
    unkept = unenforceable(app, plan.time_limit, alone=True)
    if unkept:
        # A test is no reason to change the tasks; the command refuses to start.
        logger.warning("This worker cannot keep everything: %s", unkept)
    # Without a port nobody will ask, and the file would be that of every test at once.
    worker = InProcessWorker(app, plan, "the broker of the test", probed=plan.health_port is not None)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            worker.run()
        # The wall of the thread; it is raised again where the block can see it.
        except BaseException as error:
            failures.append(error)
            worker.ready.set()

    thread = threading.Thread(target=work, name="umbel-worker", daemon=True)
    thread.start()
    if not worker.ready.wait(ping_task_timeout):
        worker.stop(0)
        raise OperationalError(f"the worker was not ready after {ping_task_timeout} s")
    if failures:
        raise failures[0]
    try:
        yield worker
    finally:
        worker.stop(shutdown_timeout)
        thread.join(shutdown_timeout + 1.0)
        if thread.is_alive():
            worker.give_back()
            raise WorkerDidNotStop(f"a task still ran {shutdown_timeout} s after the end of the block")
    if failures:
        raise failures[0]
