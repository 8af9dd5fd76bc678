"""Time limits and other interruptions of a running task, on the side of the process that runs it.

    soft limit   SoftTimeLimitExceeded is raised in the task, once; what it does then is its own affair
    hard limit   the supervisor kills the process at the deadline; where other tasks share the process,
                 TimeLimitExceeded is raised in the task first, and the process dies only if that does not end it
    terminate    Terminated is raised in the task

How an error gets into a task depends on where the task runs: in the main thread by a signal, in other threads by
an asynchronous exception, which Python code meets at its next step, and in a coroutine by cancelling it. All three
reach a task only when it comes back to the interpreter; a task that never does is the supervisor's to kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from umbel.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, Terminated, TimeLimitExceeded
from umbel.interfaces import Execution

if TYPE_CHECKING:
    # Most workers run no coroutine, and it would cost each of them three megabytes.
    import asyncio

logger = logging.getLogger("celery.worker.request")

#: Seconds that a task gets to end by itself after its hard limit, where killing it would hurt others.
GRACE = 0.5

SOFT_EXCEEDED = "Soft time limit (%ss) exceeded for %s[%s]"
HARD_EXCEEDED = "Hard time limit (%ss) exceeded for %s[%s]"

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_NO_LIMITS = [None, None]


class Limits(msgspec.Struct, frozen=True):
    """Seconds that one execution may take; 0.0 for no limit."""

    soft: float = 0.0
    hard: float = 0.0


class LimitBook:
    """Knows the limits of every execution: those of the call, else of the task, else of the worker."""

    __slots__ = ("_default", "_known")

    def __init__(self, *, soft: float | None, hard: float | None) -> None:
        self._default = Limits(soft or 0.0, hard or 0.0)
        self._known: dict[Any, Limits | None] = {}

    def of(self, execution: Execution) -> Limits | None:
        """Return the limits of an execution, or None for most."""
        plan = execution.task
        try:
            own = self._known[plan]
        except KeyError:
            own = self._known[plan] = self._of_task(plan.task)
        given = execution.call.headers.get("timelimit")
        if not given or given == _NO_LIMITS:
            return own
        return _limits(_seconds(given, 1), _seconds(given, 0), own or self._default)

    def _of_task(self, task: Any) -> Limits | None:
        soft, hard = own_limits(task)
        return _limits(soft, hard, self._default)


def _limits(soft: float, hard: float, default: Limits) -> Limits | None:
    soft, hard = soft or default.soft, hard or default.hard
    if hard and soft >= hard:
        # The default of one beside the other of a call: what comes later can never happen.
        soft = 0.0
    return Limits(soft, hard) if soft or hard else None


def _seconds(given: Any, at: int) -> float:
    """Read one of the two from a header, which any client may have written."""
    try:
        return max(0.0, float(given[at] or 0.0))
    except (TypeError, ValueError, LookupError):
        return 0.0


def own_limits(task: Any) -> tuple[float, float]:
    """Return the soft and the hard limit that the task itself declares, without what the settings say."""
    conf = task.app.conf
    soft, hard = task.soft_time_limit, task.time_limit
    return (
        0.0 if soft is None or soft == conf.task_soft_time_limit else float(soft),
        0.0 if hard is None or hard == conf.task_time_limit else float(hard),
    )


def unenforceable(app: Any, time_limit: float | None, *, alone: bool) -> str:
    """Say which hard limits a worker could not keep, or return an empty string. ``time_limit`` is the worker's own.

    ``alone``: the worker is one process, so nobody is there to kill a task that runs too long.
    """
    if not alone:
        return ""
    found = ["task_time_limit"] if time_limit else []
    found += sorted(name for name, task in app.tasks.items() if own_limits(task)[1])
    if not found:
        return ""
    names = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    return (
        f"a hard time limit is set ({names}), and a worker of one process cannot end a task that runs too long; use "
        "-P prefork, or -P threads or asyncio on a broker that processes can share, or soft_time_limit"
    )


def refuse_unenforceable(app: Any, time_limit: float | None, *, alone: bool) -> None:
    """Raise :exc:`ImproperlyConfigured` if :func:`unenforceable` finds something."""
    reason = unenforceable(app, time_limit, alone=alone)
    if reason:
        raise ImproperlyConfigured(reason)


class Limiter:
    """The clock of one process's limits: one thread, started with the first limit.

    :param signum: the signal that is free for interrupting the main thread; None where tasks run elsewhere.
    """

    def __init__(self, signum: int | None = None) -> None:
        self._signum = signum
        self._changed = threading.Condition()
        self._watched: set[Guard] = set()
        self._next = 0.0  # what the thread waits for; 0 for nothing
        self._thread: threading.Thread | None = None
        self._in_main: Guard | None = None
        self._to_main: tuple[BaseException, Callable[[FrameType | None], bool]] | None = None
        if signum is not None:
            signal.signal(signum, self._on_signal)

    def guard(self, execution: Execution, limits: Limits | None, started: float, *, shared: bool) -> Guard:
        """Return what stands around an execution. ``shared``: other tasks run in the same process."""
        label = (execution.call.task, execution.call.id)
        return Guard(self, label, limits, started, shared=shared)

    def interrupt_main(self, error: BaseException, wanted: Callable[[FrameType | None], bool]) -> bool:
        """Raise the error in the main thread if ``wanted``, asked there with its frame, says so; from any thread.

        Returns whether the main thread can be reached.
        """
        if self._signum is None:
            return False
        self._to_main = (error, wanted)
        self.ring_main()
        return True

    # -- for the guards ------------------------------------------------------------------------------------------

    def watch(self, guard: Guard) -> None:
        """Wake at the guard's next deadline."""
        with self._changed:
            self._watched.add(guard)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="umbel-limits", daemon=True)
                self._thread.start()
            elif not self._next or guard.next_at < self._next:
                self._changed.notify()

    def forget(self, guard: Guard) -> None:
        """Stop watching it."""
        with self._changed:
            self._watched.discard(guard)

    def enter_main(self, guard: Guard | None) -> bool:
        """Make the guard the one that the signal means; return whether this is the thread where that works."""
        if self._signum is None or threading.get_ident() != _main_ident():
            return False
        self._in_main = guard
        return True

    def ring_main(self) -> None:
        """Send the signal."""
        if self._signum is not None:
            signal.pthread_kill(_main_ident(), self._signum)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The main thread is here itself, so what it armed cannot change meanwhile.
        guard = self._in_main
        if guard is not None and (error := guard.take_wanted()) is not None:
            raise error
        if self._to_main is not None:
            (error_for_all, wanted), self._to_main = self._to_main, None
            if wanted(frame):
                raise error_for_all

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                due = [guard for guard in self._watched if guard.next_at <= now]
                if not due:
                    self._next = min((guard.next_at for guard in self._watched), default=0.0)
                    self._changed.wait(self._next - now if self._next else None)
                    continue
            for guard in due:
                guard.expire(now)
                if guard.next_at == FOREVER:
                    self.forget(guard)


FOREVER = float("inf")


def _main_ident() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


class Guard:
    """Stands around one execution and lets errors in from outside; ``interrupt`` may be called from any thread.

    Used once. Errors arrive only between the start and the end of the body: never before, never afterwards.
    """

    def __init__(
        self, limiter: Limiter, label: tuple[str, str], limits: Limits | None, started: float, *, shared: bool
    ) -> None:
        self._limiter = limiter
        self._label = label
        self._limits = limits or Limits()
        self._soft_at = started + self._limits.soft if self._limits.soft else FOREVER
        # A process of its own is killed at the deadline: nobody is hurt, and it works in every case.
        self._hard_at = started + self._limits.hard if self._limits.hard and shared else FOREVER
        self._lock = threading.Lock()
        self._send: Callable[[BaseException], None] | None = None  # how errors get in, while they may
        self._wanted: BaseException | None = None
        self._sent: BaseException | None = None

    @property
    def next_at(self) -> float:
        """Monotonic seconds of the next deadline."""
        return min(self._soft_at, self._hard_at)

    def run(self, body: Callable[[], Any]) -> Any:
        """Run the body in this thread and let errors in meanwhile."""
        try:
            self._open(self._way_in())
            return body()
        except (SoftTimeLimitExceeded, TimeLimitExceeded, Terminated) as error:
            # A thread can only be sent a class.
            if not error.args and self._sent is not None and type(self._sent) is type(error):
                error.args = self._sent.args
            self._tell(error)
            raise
        finally:
            self._close_thread()

    async def run_async(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine in this task of the loop and let errors in meanwhile."""
        import asyncio

        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel() -> None:
            if self._send is not None:
                task.cancel()

        def send(error: BaseException) -> None:
            self._wanted = error
            with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
                loop.call_soon_threadsafe(cancel)

        try:
            self._open(send)
            return await (_Raising(coroutine, self, task) if self._limits.soft else coroutine)
        except asyncio.CancelledError:
            error = self.take_wanted()
            if error is None:
                raise
            task.uncancel()
            self._tell(error)
            raise error from None
        finally:
            self._close()
            self._forget()

    def interrupt(self, error: BaseException) -> bool:
        """Raise the error in the body, if it runs; return whether that was asked for."""
        with self._lock:
            if self._send is None:
                return False
            self._sent = error
            self._send(error)
            return True

    def expire(self, now: float) -> None:
        """Do what is due. In the limiter's thread."""
        name, id = self._label
        if self._soft_at <= now:
            self._soft_at = FOREVER
            if self.interrupt(SoftTimeLimitExceeded(self._limits.soft)):
                logger.warning(SOFT_EXCEEDED, f"{self._limits.soft:g}", name, id)
        elif self._hard_at <= now:
            self._hard_at = FOREVER
            self.interrupt(TimeLimitExceeded(self._limits.hard))

    def take_wanted(self) -> BaseException | None:
        """Return the error that was to be raised, once."""
        error, self._wanted = self._wanted, None
        return error

    def _tell(self, error: BaseException) -> None:
        # Not when it is sent: a task that it does not end is killed, and whoever does that says so.
        if isinstance(error, TimeLimitExceeded) and type(error) is type(self._sent):
            logger.error(HARD_EXCEEDED, f"{self._limits.hard:g}", *self._label)

    def _way_in(self) -> Callable[[BaseException], None]:
        if self._limiter.enter_main(self):

            def by_signal(error: BaseException) -> None:
                self._wanted = error
                self._limiter.ring_main()

            return by_signal
        ident = ctypes.c_ulong(threading.get_ident())
        return lambda error: _raise_in(ident, type(error))

    def _open(self, send: Callable[[BaseException], None]) -> None:
        # The lock keeps errors out until the end: one that arrived in `watch` could leave the limiter's own lock taken.
        with self._lock:
            if self.next_at != FOREVER:
                self._limiter.watch(self)
            self._send = send

    def _close(self) -> None:
        with self._lock:
            self._send = None

    def _forget(self) -> None:
        if self._limits.soft or self._limits.hard:
            self._limiter.forget(self)

    def _close_thread(self) -> None:
        """Let nothing in any more. An error that is on its way arrives in here, and leaves with the body's outcome."""
        late: BaseException | None = None
        while True:
            try:
                self._close()
                if self._limiter.enter_main(None):
                    self._wanted = None
                else:
                    # From here on nobody raises a new one; one that was not delivered yet is taken back.
                    _set_async_exc(ctypes.c_ulong(threading.get_ident()), None)
                break
            except (SoftTimeLimitExceeded, TimeLimitExceeded, Terminated) as error:
                late = error
        # Only now: see `_open`.
        self._forget()
        if late is not None:
            raise late


class _Raising:
    """A coroutine in which the guard's error is raised where a cancellation would be."""

    def __init__(self, coroutine: Any, guard: Guard, task: asyncio.Task[Any]) -> None:
        self._inner = coroutine
        self._guard = guard
        self._task = task

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # it has all that a generator needs here

    def __iter__(self) -> _Raising:
        return self

    def __next__(self) -> Any:
        return self._inner.send(None)

    def send(self, value: Any) -> Any:
        """Go on."""
        return self._inner.send(value)

    def throw(self, error: BaseException, *rest: Any) -> Any:
        """Raise in the coroutine: the guard's error instead of a cancellation that the guard asked for."""
        import asyncio

        if isinstance(error, asyncio.CancelledError) and (wanted := self._guard.take_wanted()) is not None:
            self._task.uncancel()
            error = wanted
        return self._inner.throw(error)

    def close(self) -> None:
        """End it."""
        self._inner.close()


def _raise_in(ident: ctypes.c_ulong, error: type[BaseException]) -> None:
    _set_async_exc(ident, ctypes.py_object(error))
