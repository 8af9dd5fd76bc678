"""One worker process: what runs in a child that the zygote forked.

It talks with the supervisor in lines of JSON on one socket: :class:`Stop` and :class:`Stacks` come down,
:class:`Ready`, :class:`Report` and :class:`Ended` go up. Nothing that matters for correctness travels here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from umbel import signals
from umbel.exceptions import OperationalError, Terminated
from umbel.revoking import HeardRevocations, Revocation, Revocations, shared_store
from umbel.utils.log import set_process_name, setup_logging
from umbel.worker.door import Door
from umbel.worker.engine import Engine
from umbel.worker.executors import make_executor
from umbel.worker.limits import Limiter
from umbel.worker.orders import Obedience, Orders
from umbel.worker.plan import WorkerPlan
from umbel.worker.reporting import Reporter
from umbel.worker.runner import TaskRunner
from umbel.worker.shared import Shared
from umbel.worker.slots import SlotTable

logger = logging.getLogger("celery.pool")

EX_UNAVAILABLE = 69
_REPORT_EVERY = 1.0
#: A signal that no program uses, where there are such; it is for the stacks of a process that is stuck.
DUMP_SIGNAL: int | None = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else None


class Start(msgspec.Struct, frozen=True):
    """What a child is told when it is forked: its place, how many came before it, and its consumer id.

    ``revoked`` says that there are revocations to read before the first task; ``told`` are those that no store keeps.
    """

    place: int
    number: int
    consumer: str
    revoked: bool = False
    orders: Orders = Orders()
    told: Sequence[Revocation] = ()


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Stop reserving and end when what runs has ended, or after ``timeout`` seconds."""

    timeout: float | None = None


class Stacks(msgspec.Struct, tag=True, frozen=True):
    """Write the stack of every thread to the log."""


class Revoked(msgspec.Struct, tag=True, frozen=True):
    """Read the revocations again: they changed. ``told`` are new ones that no store keeps."""

    told: Sequence[Revocation] = ()


class Terminate(msgspec.Struct, tag=True, frozen=True):
    """Raise :exc:`Terminated` in this task, if it runs here."""

    id: str
    signum: int


class Ask(msgspec.Struct, tag=True, frozen=True):
    """Say :class:`Obeyed` when all that was said before this is done; with ``stacks``, also where each thread is."""

    number: int
    stacks: bool = False


class Stack(msgspec.Struct, frozen=True):
    """Where one thread is, as a traceback shows it."""

    name: str
    stack: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The process is connected and will now reserve."""


class Report(msgspec.Struct, tag=True, frozen=True):
    """How many executions of each task ended so far, and how many run now."""

    totals: dict[str, int]
    active: int = 0


class Ended(msgspec.Struct, tag=True, frozen=True):
    """The engine has returned; ``reason`` is its own word."""

    reason: str


class Obeyed(msgspec.Struct, tag=True, frozen=True):
    """All that was said before :class:`Ask` of this number is done."""

    number: int
    stacks: Sequence[Stack] = ()


class Retire(msgspec.Struct, tag=True, frozen=True):
    """End when what runs has ended, however long that takes; another process takes this place."""

    reason: str


Command = Stop | Stacks | Revoked | Terminate | Orders | Retire | Ask
News = Ready | Report | Ended | Obeyed
_commands = msgspec.json.Decoder(Command)
_news = msgspec.json.Decoder(News)


def encode_line(frame: Command | News) -> bytes:
    """Return one line of the conversation."""
    return msgspec.json.encode(frame) + b"\n"


def decode_news(line: bytes) -> News:
    """Return what a child said in one line."""
    news: News = _news.decode(line)
    return news


class Child:
    """One worker process from its first step to its exit code. Lives in the main thread of the child."""

    def __init__(
        self, app: Any, plan: WorkerPlan, slots: SlotTable, start: Start, sock: socket.socket, shared: Shared
    ) -> None:
        self._shared = shared
        self._reporter = Reporter(app, plan.hostname, shared)
        self._obedience: Obedience | None = None
        self._orders = start.orders
        self._obeying = threading.Lock()
        self._app = app
        self._plan = plan
        self._slot = slots[start.place]
        self._start = start
        self._sock = sock
        self._engine: Engine | None = None
        self._stop_asked: Stop | None = None
        self._retire_asked: Retire | None = None
        self._reported: dict[str, int] = {}
        self._revocations: Revocations | HeardRevocations | None = None
        self._heard = HeardRevocations()
        self._heard.tell(start.told)
        self._read_revoked = start.revoked
        self._retire_at = time.monotonic() + plan.max_age if plan.max_age else float("inf")

    def run(self) -> int:
        """Work until stopped and return the exit code."""
        set_process_name(self._start.place + 1, self._plan.process_name(self._start.number))
        # Sent to a whole process group by terminals and service managers: the supervisor decides about the others.
        signal.signal(signal.SIGTERM, lambda *_: self._stop(self._plan.shutdown_timeout))
        self._own_logfile()
        register_dump()
        commands = threading.Thread(target=self._listen, name="umbel-commands", daemon=True)
        commands.start()
        signals.worker_process_init.send(sender=self._plan.hostname)
        code = 0
        try:
            reason = self._work()
            self._tell(Ended(reason))
        except OperationalError as error:
            logger.error("This process cannot reach the broker: %s", error)
            code = EX_UNAVAILABLE
        # The outermost wall of a child: whatever a driver raises must be seen in the log, and end this process alone.
        except Exception:
            logger.critical("This process ends by an error of its own", exc_info=True)
            code = 1
        signals.worker_process_shutdown.send(sender=self._plan.hostname, pid=os.getpid(), exitcode=code)
        with contextlib.suppress(OSError):
            self._app.close()
        logging.shutdown()
        return code

    def _work(self) -> str:
        app, plan = self._app, self._plan
        orders = self._start.orders
        queues = [queue.name for queue in plan.queues] if orders.queues is None else orders.queues
        consumer = app.broker.consumer(self._start.consumer, queues)
        executor = make_executor(plan.pool, orders.concurrency or plan.concurrency)
        runner = TaskRunner(app, hostname=plan.hostname)
        engine = Engine(
            app,
            consumer=consumer,
            executor=executor,
            runner=runner,
            options=plan.engine_options(),
            slot=self._slot,
            # SIGALRM belongs to the tasks, and SIGUSR1 means something to supervisors only.
            limiter=Limiter(signal.SIGUSR1 if executor.features.inline else None),
            door=Door(runner, self._shared),
        )
        self._engine = engine
        with self._obeying:
            self._obedience = Obedience(app, engine, self._reporter)
            self._obedience.take(orders, first=True)
            # Those that came meanwhile.
            self._obedience.take(self._orders)
        if self._read_revoked:
            self._read_revocations(engine)
        if self._stop_asked is not None:
            engine.stop(self._stop_asked.timeout)
        if self._retire_asked is not None:
            engine.retire(self._retire_asked.reason)
        self._tell(Ready())
        reason = engine.run()
        self._reporter.close()
        self._report()
        consumer.close()
        return reason

    def _stop(self, timeout: float | None) -> None:
        self._stop_asked = Stop(timeout)
        if self._engine is not None:
            self._engine.stop(timeout)

    def _own_logfile(self) -> None:
        name = self._plan.logfile
        if name and ("%i" in name or "%I" in name):
            plan = self._plan
            setup_logging(
                self._app.conf, plan.loglevel, name, hostname=plan.hostname, force=True, as_json=plan.log_json
            )

    # -- the thread that talks with the supervisor ---------------------------------------------------------------

    def _listen(self) -> None:
        buffer = b""
        while True:
            readable, _, _ = select.select([self._sock], [], [], _REPORT_EVERY)
            if not readable:
                self._every_second()
                continue
            try:
                data = self._sock.recv(4096)
            except OSError:
                data = b""
            if not data:
                # The supervisor is gone. Where the kernel could, it has killed this process already.
                os._exit(1)
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._obey(_commands.decode(line))

    def _obey(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._stop(command.timeout)
        elif isinstance(command, Revoked):
            self._heard.tell(command.told)
            self._read_revoked = True
            self._every_second()
        elif isinstance(command, Terminate):
            if self._engine is not None:
                self._engine.interrupt(command.id, Terminated(command.signum))
        elif isinstance(command, Retire):
            self._retire_asked = command
            if self._engine is not None:
                self._engine.retire(command.reason)
        elif isinstance(command, Orders):
            self._take(command)
        elif isinstance(command, Ask):
            self._tell(Obeyed(command.number, stacks_of_threads() if command.stacks else ()))
        else:
            dump_stacks()

    def _take(self, orders: Orders) -> None:
        with self._obeying:
            self._orders = orders
            if self._obedience is not None:
                self._obedience.take(orders)

    def _every_second(self) -> None:
        self._report()
        engine = self._engine
        if engine is None:
            return
        if time.monotonic() >= self._retire_at:
            engine.retire("max_age")
        if self._read_revoked:
            try:
                self._read_revocations(engine)
            except OperationalError as error:
                logger.warning("The revocations could not be read, and will be in a second: %s", error)

    def _read_revocations(self, engine: Engine) -> None:
        if self._revocations is None:
            store = shared_store(self._app)
            self._revocations = self._heard if store is None else Revocations(store)
        self._read_revoked = False
        try:
            self._revocations.read()
        except OperationalError:
            self._read_revoked = True
            raise
        engine.door.revoke(self._revocations.revoked)

    def _report(self) -> None:
        engine = self._engine
        if engine is None:
            return
        totals = dict(Counter(engine.totals))
        if totals != self._reported:
            self._reported = totals
            self._tell(Report(totals, len(engine.active())))

    def _tell(self, news: News) -> None:
        # The supervisor may be gone or slow; a report is worth less than the work.
        with contextlib.suppress(OSError):
            self._sock.sendall(encode_line(news))


def stacks_of_threads() -> list[Stack]:
    """Return where each thread of this process is, but for the one that asks."""
    names = {each.ident: each.name for each in threading.enumerate()}
    return [
        Stack(names.get(ident, str(ident)), "".join(traceback.format_stack(frame)))
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    ]


def dump_stacks() -> None:
    """Write the stack of every thread to the log's own stream."""
    stream = _log_stream()
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"--- stacks of process {os.getpid()} ---\n")
        stream.flush()
        faulthandler.dump_traceback(file=stream, all_threads=True)


def register_dump() -> None:
    """Have :data:`DUMP_SIGNAL` write the stacks, also while C code does not let Python run."""
    if DUMP_SIGNAL is not None:
        with contextlib.suppress(OSError, ValueError):
            faulthandler.register(DUMP_SIGNAL, file=_log_stream(), all_threads=True, chain=False)


def _log_stream() -> Any:
    for handler in logging.getLogger().handlers:
        stream = getattr(handler, "stream", None)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if stream is not None:
                stream.fileno()
                return stream
    return sys.__stderr__


def run_child(app: Any, plan: WorkerPlan, slots: SlotTable, shared: Shared, payload: bytes, sock: socket.socket) -> int:
    """Be the child that ``payload`` describes; called by the zygote right after the fork."""
    return Child(app, plan, slots, msgspec.json.decode(payload, type=Start), sock, shared).run()
