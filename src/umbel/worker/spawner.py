"""Children without a fork: a fresh interpreter for each, which imports the app by itself.

For apps and platforms that cannot fork (``worker_pool_start_method="spawn"``). :class:`Spawner` has the face of
:class:`~umbel.worker.zygote.Zygote`, and no zygote stands behind it::

    supervisor ──command line, descriptors──> child: python -c "... umbel.worker.spawned ..."
               ──Bootstrap, first thing on its socket──>
               <──its end, seen by a thread that waits for it──

A bootstrap is JSON, and names modules that the worker's own command line and settings named; no pickle is read. What
signal handlers such as ``worker_init`` did in the supervisor does not exist in a child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from umbel.exceptions import ImproperlyConfigured
from umbel.worker.plan import WorkerPlan
from umbel.worker.shared import SIZE, Shared
from umbel.worker.slots import SlotTable
from umbel.worker.zygote import STOP_SIGNALS, Event, Exited, Forked, ForkFailed

LENGTH = struct.Struct("!I")
_PACKAGES = str(Path(__file__).resolve().parents[2])


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a fresh interpreter gets the app: what the command line said, and where modules are looked for."""

    app: str
    config: str | None = None
    include: Sequence[str] = ()
    as_celery: bool = False
    color: bool | None = None
    path: Sequence[str] = ()
    argv: Sequence[str] = ()


class Descriptors(msgspec.Struct, frozen=True):
    """What a child inherits besides its socket: the memory of the slots, that of the rest, and a lock."""

    slots: int
    shared: int
    lock: int


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """All that a child is told. ``start`` is the :class:`~umbel.worker.process.Start` that a forked child gets too."""

    parent: int
    recipe: Recipe
    plan: WorkerPlan
    places: int  # for how many processes there are slots
    descriptors: Descriptors
    start: msgspec.Raw


def _memory(size: int) -> int:
    """Return a descriptor of so many bytes of zeros in a file without a name, which each process can map."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("umbel")
    else:
        descriptor, path = tempfile.mkstemp(prefix="umbel-memory-")
        os.unlink(path)
    os.truncate(descriptor, size)
    return descriptor


class Spawner:
    """Starts children and tells how they end. Used by one thread; :meth:`fork` and :meth:`kill` only ask.

    ``slots`` and ``shared`` are the memory that its children see.
    """

    def __init__(self, recipe: Recipe | None, plan: WorkerPlan, places: int) -> None:
        """Prepare, with slots for so many ``places``. Raises :exc:`ImproperlyConfigured` without a recipe."""
        if recipe is None:
            raise ImproperlyConfigured(
                "worker_pool_start_method is spawn, and a fresh process has to find the app by a name: start the "
                "worker with umbel -A module worker"
            )
        self._recipe = msgspec.structs.replace(recipe, path=list(sys.path), argv=list(sys.argv))
        self._plan = plan
        self._places = places
        memory = _memory(SlotTable.bytes(places, plan.slot_capacity)), _memory(SIZE)
        self.slots = SlotTable(places, plan.slot_capacity, memory[0])
        self.shared = Shared(memory[1])
        self._descriptors = Descriptors(*memory, self.shared.lock)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._waiting: list[threading.Thread] = []
        self._events: deque[Event] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return self._wake_read.fileno()

    def fork(self, key: int, payload: bytes) -> socket.socket:
        """Start a child and return this side of its socket. Called in the main thread, to whose life it is tied."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = self._spawn(theirs.fileno())
            except OSError as error:
                self._tell(ForkFailed(key, str(error)))
                return ours
        self._children[child.pid] = child
        self._tell(Forked(key, child.pid))
        waiting = threading.Thread(target=self._wait, args=(child,), name=f"umbel-child-{child.pid}", daemon=True)
        self._waiting = [each for each in self._waiting if each.is_alive()] + [waiting]
        waiting.start()
        bootstrap = Bootstrap(
            parent=os.getpid(),
            recipe=self._recipe,
            plan=self._plan,
            places=self._places,
            descriptors=self._descriptors,
            start=msgspec.Raw(payload),
        )
        data = msgspec.json.encode(bootstrap)
        # One that is dead already is told of by the thread that waits for it.
        with contextlib.suppress(OSError):
            ours.sendall(LENGTH.pack(len(data)) + data)
        return ours

    def _spawn(self, sock: int) -> subprocess.Popen[bytes]:
        code = f"import sys; sys.path.insert(0, {_PACKAGES!r}); from umbel.worker.spawned import main; main({sock})"
        # A terminal sends its signals to the whole group: until the child says what they mean, they wait.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[sock, *msgspec.structs.astuple(self._descriptors)],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        self._tell(Exited(child.pid, code))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0")

    def kill(self, pid: int, signum: int) -> None:
        """Signal a child; nothing happens if it has ended."""
        child = self._children.get(pid)
        if child is not None:
            child.send_signal(signum)

    def events(self) -> list[Event]:
        """Return what has happened since the last call; never waits."""
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        found = [self._events.popleft() for _ in range(len(self._events))]
        for event in found:
            if isinstance(event, Exited):
                del self._children[event.pid]
        return found

    def close(self) -> None:
        """End any child that is left. A second call does nothing."""
        for child in self._children.values():
            child.kill()
        for waiting in self._waiting:
            waiting.join()
        self._children.clear()
        self._waiting.clear()
        if self.fileno() >= 0:
            os.close(self._descriptors.slots)
            os.close(self._descriptors.shared)
        self._wake_read.close()
        self._wake_write.close()
