"""The supervisor: starts worker processes, keeps their leases, replaces the dead, and ends all of it in order.

It runs no task. Each place for a process goes round::

    empty ──due──> registering ──id──> forking ──pid──> running ──exit──> empty (due now, or later after a bad start)
                       │                                   │
                  broker away: later              its work is released at once

Stopping is warm (what runs may finish until a deadline) or cold (now); either way the processes that are left are
killed first and what they held is given back afterwards, so that nothing can run twice and nothing stays in flight.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import selectors
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from umbel import signals
from umbel.exceptions import OperationalError
from umbel.interfaces import Verdict
from umbel.revoking import Revocation
from umbel.worker.base import Worker
from umbel.worker.desk import ProcessesDesk, slot_count
from umbel.worker.enforcer import Enforcer
from umbel.worker.executors import make_executor
from umbel.worker.place import Place
from umbel.worker.plan import WorkerPlan
from umbel.worker.process import (
    Ask,
    Ended,
    News,
    Obeyed,
    Ready,
    Report,
    Revoked,
    Stacks,
    Start,
    Stop,
    dump_stacks,
    run_child,
)
from umbel.worker.remote import Remote
from umbel.worker.shutdown import RELEASE_TIME, SHUTDOWN_SIGNALS, Shutdown
from umbel.worker.slots import LOST, SlotTable, boot_time
from umbel.worker.spawner import Recipe, Spawner
from umbel.worker.verdicts import cause_of_death, lost_verdict
from umbel.worker.zygote import Exited, Forked, ForkFailed, Zygote, ZygoteLost, open_connections

logger = logging.getLogger("celery.worker")
pool_logger = logging.getLogger("celery.pool")

EX_OK = 0
EX_FAILURE = 1

_KILL_GRACE = 0.5


class Supervisor(Worker):
    """Runs one worker of several processes. Used by the main thread, whose signals it takes over."""

    def __init__(
        self,
        app: Any,
        plan: WorkerPlan,
        url: str,
        *,
        before_start: Callable[[], None] | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """Prepare; nothing is started. ``recipe`` says how a process that is spawned gets the app.

        Raises :exc:`ImproperlyConfigured` if processes are to be spawned and nobody can say that.
        """
        places = slot_count(plan)
        spawner = self._spawner = Spawner(recipe, plan, places) if plan.start_method == "spawn" else None
        super().__init__(app, plan, url, before_start=before_start, shared=spawner.shared if spawner else None)
        self._slots = spawner.slots if spawner else SlotTable(places, plan.slot_capacity)
        self.places = [Place(index, self._slots[index]) for index in range(plan.processes)]
        self._desk = ProcessesDesk(app, plan, self._shared, self)
        self._remote = Remote(self._desk)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._asked = 0
        self._questions: list[tuple[int, Future[None]]] = []
        self._shutdown = Shutdown(plan)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._numbers = 0
        self._said_ready = False
        self._finished_totals: Counter[str] = Counter()
        self._zygote: Zygote | Spawner | None = None
        self.enforcer = Enforcer(app, plan, kill=self._kill, recall=self._recall)
        self._revoked: deque[Sequence[Revocation]] = deque()

    def run(self) -> int:
        """Run until stopped and return the exit code. Called once, before any thread or connection exists."""
        if self._spawner is not None:
            pool_logger.info("Each process is spawned: a fresh interpreter that imports the app by itself.")
        zygote = self._zygote = self._spawner or self._forker()
        self._health.start()
        with self._signals():
            code, clean = EX_FAILURE, True
            try:
                code = self._run(zygote)
            except ZygoteLost as error:
                logger.critical("%s. The worker ends; what its processes held goes back.", error)
                for place in self.places:
                    self._leave(place, started=[each.tag for each in place.running()], cause="its zygote ended")
            finally:
                self._hush()
                self._remote.close()
                zygote.close()
                if self._beat is not None:
                    self._beat.join()
                clean = self._keeper is None or self._keeper.close(RELEASE_TIME)
                signals.worker_shutdown.send(sender=self)
                self._health.close()
                self._app.close()
            return code or self._shutdown.ended(clean)

    def _forker(self) -> Zygote:
        _warn_of_leaks()
        # What the children need is imported here, once for all of them.
        make_executor(self._plan.pool, self._plan.concurrency)
        if any(inspect.iscoroutinefunction(inspect.unwrap(task.run)) for task in self._app.tasks.values()):
            importlib.import_module("asyncio")
        return Zygote.start(self._child)

    def _child(self, payload: bytes, sock: socket.socket) -> int:
        return run_child(self._app, self._plan, self._slots, self._shared, payload, sock)

    @property
    def room(self) -> int:
        """For how many processes there is room."""
        return len(self._slots)

    def add_place(self) -> None:
        """Make room for one more process, which is then started. In the supervisor's thread."""
        self.places.append(Place(len(self.places), self._slots[len(self.places)]))

    def call(self, action: Callable[[], Any]) -> Future[Any]:
        """Have something done in the supervisor's thread. From any other thread."""
        future: Future[Any] = Future()
        self._calls.append((action, future))
        self._wake(None)
        return future

    def ask(self, *, stacks: bool = False) -> Future[None]:
        """Return what is done when every process has done all it was told so far. In the supervisor's thread.

        With ``stacks`` the processes also say where their threads are: :attr:`Place.stacks`.
        """
        self._asked += 1
        for place in self.places:
            place.stacks = ()
            place.send(Ask(self._asked, stacks))
        answered: Future[None] = Future()
        self._questions.append((self._asked, answered))
        self._answer()
        return answered

    def _answer(self) -> None:
        slowest = min((place.obeyed for place in self.places if place.sock is not None), default=self._asked)
        while self._questions and self._questions[0][0] <= slowest:
            self._questions.pop(0)[1].set_result(None)

    def stop(self) -> None:
        """Stop warmly, as a SIGTERM would. From any thread."""
        self._shutdown.on_signal(signal.SIGTERM)
        self._wake(None)

    def _run(self, zygote: Zygote | Spawner) -> int:
        keeper = self._open(self._shutdown.asked)
        if keeper is None:
            self._shutdown.advance()
            return self._shutdown.exit_code
        # Before the first process: it must not fetch what is paused.
        self._desk.heed()
        self._selector.register(zygote, selectors.EVENT_READ, self._on_zygote)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        while not (self._shutdown.asked.is_set() and all(place.empty for place in self.places)):
            self._shutdown.advance()
            if self._shutdown.asked.is_set():
                self._hush()
            for place in self.places:
                self._tend(place)
            self.enforcer.tend(self.places)
            awake = [place for place in self.places if not place.dormant]
            self._health.look(awake, away=keeper.away, stopping=self._shutdown.asked.is_set())
            for key, _ in self._selector.select(self._patience()):
                key.data()
        # What ended the loop may not have been acted on yet: where no process lives, the first signal does.
        self._shutdown.advance()
        return self._shutdown.exit_code

    def totals(self) -> Counter[str]:
        """Return how many executions of each task have ended."""
        totals = self._finished_totals.copy()
        for place in self.places:
            totals.update(place.totals)
        return totals

    # -- places --------------------------------------------------------------------------------------------------

    def _tend(self, place: Place) -> None:
        """Do what this place needs next."""
        now = time.monotonic()
        place.flush()
        if place.registering is not None and place.registering.done():
            self._registered(place)
        if self._shutdown.asked.is_set():
            self._stop(place, now)
        elif place.dormant:
            if place.sock is not None and not place.stop_sent:
                place.stop_sent = True
                place.send(Stop())
        elif place.empty and place.due <= now:
            assert self._keeper is not None
            place.asked_at = boot_time()
            place.registering = self._keeper.register()
            place.registering.add_done_callback(self._wake)

    def _registered(self, place: Place) -> None:
        future, place.registering = place.registering, None
        assert future is not None and self._zygote is not None and self._keeper is not None
        try:
            consumer = future.result()
        except OperationalError as error:
            pool_logger.error("No process can be started while the broker is away: %s", error)
            place.start_later()
            return
        if self._shutdown.asked.is_set():
            self._keeper.release(consumer)
            return
        self._numbers += 1
        place.slot.clear()
        place.slot.renewed(place.asked_at + self._plan.lease_ttl)
        signals.worker_before_create_process.send(sender=self)
        revoked = bool(self._keeper.revoked)
        orders = self._desk.orders
        heard = self._keeper.heard
        order = Start(
            place=place.index,
            number=self._numbers,
            consumer=consumer,
            revoked=revoked,
            orders=orders,
            told=heard.all() if heard is not None else (),
        )
        sock = self._zygote.fork(place.index, msgspec.json.encode(order))
        place.occupy(consumer, self._numbers, sock)
        place.obeyed = self._asked
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._on_news(place))

    def _stop(self, place: Place, now: float) -> None:
        if place.sock is None:
            return
        timeout = self._shutdown.left(now)
        if not place.stop_sent or self._shutdown.hastened:
            place.stop_sent = True
            place.send(Stop(timeout))
        if place.pid and timeout is not None and now > self._shutdown.kill_at(_KILL_GRACE):
            self._kill(place, signal.SIGKILL)

    def _kill(self, place: Place, number: int) -> None:
        assert self._zygote is not None
        place.killed = place.killed or number == signal.SIGKILL
        self._zygote.kill(place.pid, number)

    def _recall(self, place: Place) -> None:
        assert self._keeper is not None and place.consumer is not None
        self._keeper.recall(place.consumer, place.slot, [queue.name for queue in self._desk.queues])

    def _patience(self) -> float:
        """Return how long the loop may wait."""
        now = time.monotonic()
        if self._shutdown.asked.is_set():
            return min(self.enforcer.patience(now), max(0.02, self._shutdown.kill_at(_KILL_GRACE) - now))
        due = [place.due - now for place in self.places if place.empty and not place.dormant]
        return max(0.0, min([self.enforcer.patience(now), *due]))

    # -- events --------------------------------------------------------------------------------------------------

    def _on_wake(self) -> None:
        self._wake_read.recv(4096)
        # Before the calls: one of them may ask whether every process knows.
        while self._revoked:
            revocations = self._revoked.popleft()
            self.enforcer.revoked(revocations)
            told = revocations if self._keeper is not None and self._keeper.heard is not None else ()
            for place in self.places:
                place.send(Revoked(told))
        while self._calls:
            self._carry_out(*self._calls.popleft())
        for number in self._shutdown.take_others():
            if number == signal.SIGUSR1:
                dump_stacks()
                for place in self.places:
                    place.send(Stacks())

    def _carry_out(self, action: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        # Whatever it is, it belongs to whoever asked for it.
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    def _on_zygote(self) -> None:
        assert self._zygote is not None
        for event in self._zygote.events():
            if isinstance(event, Forked):
                self.places[event.key].pid = event.pid
            elif isinstance(event, ForkFailed):
                self._on_fork_failed(self.places[event.key], event.reason)
            else:
                self._on_exit(event)

    def _on_fork_failed(self, place: Place, reason: str) -> None:
        pool_logger.error("A process cannot be started: %s", reason)
        self._leave(place)
        place.start_later()

    def _on_exit(self, event: Exited) -> None:
        place = next((place for place in self.places if place.pid == event.pid), None)
        if place is None:
            return
        self._on_news(place, dead=True)
        bad = place.lived_badly()
        cause = cause_of_death(event.code)
        # One that ended in order has said so: a task can end its process with any status.
        in_order = event.code == 0 and (bool(place.reason) or not place.running())
        crashed = not in_order and not place.killed
        started, verdicts = set(place.counted), dict(place.verdicts)
        if crashed:
            name = self._plan.process_name(place.number)
            pool_logger.error("Process '%s' pid:%d exited with '%s'", name, event.pid, cause)
            # Only a crash counts as a delivery: what still ran when we stopped it did nothing wrong.
            for each in place.running():
                verdict = place.doomed.get(each.tag) or lost_verdict(self._app, each.task, cause)
                if verdict is not None:
                    verdicts[each.tag] = verdict
                else:
                    started.add(each.tag)
        self._leave(place, started=started, verdicts=verdicts, cause=cause)
        if bad and crashed:
            place.start_later()
        else:
            place.start_at_once()

    def _leave(
        self,
        place: Place,
        *,
        started: Collection[str] = (),
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> None:
        if place.sock is not None:
            self._selector.unregister(place.sock)
        if place.consumer is not None and self._keeper is not None:
            self._keeper.release(place.consumer, started, verdicts=verdicts, cause=cause)
        # Replaced, never changed: the keeper's thread reads it.
        self._finished_totals = self._finished_totals + Counter(place.totals)
        place.vacate()
        self._answer()

    def _on_news(self, place: Place, *, dead: bool = False) -> None:
        for news in place.news(dead=dead):
            self._hear(place, news)

    def _hear(self, place: Place, news: News) -> None:
        if isinstance(news, Ready):
            place.ready, place.failures = True, 0
            if not self._said_ready and all(place.ready for place in self.places):
                self._said_ready = True
                logger.info("%s ready.", self._plan.hostname)
                signals.worker_ready.send(sender=self)
        elif isinstance(news, Report):
            place.totals = news.totals
        elif isinstance(news, Ended):
            place.reason = news.reason
        elif isinstance(news, Obeyed):
            place.obeyed, place.stacks = news.number, news.stacks
            self._answer()

    # -- the rest ------------------------------------------------------------------------------------------------

    def _wake(self, _: object) -> None:
        # A full buffer wakes as well as one more byte.
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

    def _renewed(self, valid_until: float, ids: Collection[str]) -> None:
        for place in self.places:
            if place.consumer in ids:
                place.slot.renewed(valid_until)

    def _lost(self, ids: Collection[str]) -> None:
        for place in self.places:
            if place.consumer in ids:
                # Long over: the process starts nothing more, and makes room for one with a new id.
                place.slot.renewed(LOST)

    def _on_revoked(self, revocations: Sequence[Revocation]) -> None:
        self._revoked.append(revocations)
        self._wake(None)

    def _on_paused(self) -> None:
        self.call(self._desk.heed)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        self._wake_write.setblocking(False)
        old = {number: signal.getsignal(number) for number in (*SHUTDOWN_SIGNALS, signal.SIGUSR1)}
        for number, handler in old.items():
            if handler != signal.SIG_IGN or number != signal.SIGHUP:
                signal.signal(number, self._shutdown.on_signal)
        old_fd = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)
            self._selector.close()
            self._wake_read.close()
            self._wake_write.close()


def _warn_of_leaks() -> None:
    """Name what the processes would share, and corrupt, or what they would miss."""
    found = open_connections()
    if found:
        text = "The app opened connections while it was imported (%s); every process would share them. "
        logger.warning(text + "Open them on first use, or in worker_process_init.", ", ".join(found))
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        logger.warning("The app started threads while it was imported (%s); no process will have them.", names)
