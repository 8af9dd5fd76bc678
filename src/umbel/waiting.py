"""Waiting for results, by threads, coroutines and callbacks.

Threads that wait take turns at one connection (:mod:`umbel.listening`). Coroutines and callbacks cannot; while there
are any, a daemon thread waits among the others on their behalf.

Payloads are decoded by whoever asked for them, so a result that cannot be read fails its own caller and nobody else.
After a fork the child starts from nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from umbel import states
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import TimeoutError
from umbel.interfaces import Clock, ResultBackend
from umbel.listening import READ_SECONDS, UNREACHABLE, Items, Listener, Wait
from umbel.meta import Meta, decode_meta

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("celery.result")

OnMessage = Callable[[Meta], Any]
Stop = Callable[[str, Meta], bool]

LINGER_SECONDS: Final = 5.0  # how long the thread stays when no coroutine waits any more
PATIENCE_SECONDS: Final = 60.0  # how long a backend may be away before those who wait without a timeout are told


class Progress:
    """What is still missing for one caller, and what has come. Used by one thread.

    ``stop`` may end the wait before everything is there; it is asked once for every final state.
    """

    __slots__ = ("_decode", "_on_message", "_seen", "_stop", "done", "pending")

    def __init__(
        self, task_ids: Iterable[str], decode: Callable[[bytes], Meta], on_message: OnMessage | None, stop: Stop | None
    ) -> None:
        self.pending = dict.fromkeys(task_ids)
        self.done: dict[str, Meta] = {}
        self._seen: dict[str, bytes] = {}
        self._decode = decode
        self._on_message = on_message
        self._stop = stop

    def take(self, items: Iterable[tuple[str, bytes]]) -> list[tuple[str, Meta]]:
        """Take news in; return those that are final now. The same news twice counts once."""
        final = []
        for task_id, payload in items:
            if task_id not in self.pending or self._seen.get(task_id) == payload:
                continue
            meta = self._decode(payload)
            meta.setdefault("task_id", task_id)
            if self._on_message is not None:
                self._on_message(meta)
            if meta["status"] not in states.READY_STATES:
                self._seen[task_id] = payload
                continue
            self._seen.pop(task_id, None)
            del self.pending[task_id]
            self.done[task_id] = meta
            final.append((task_id, meta))
            if self._stop is not None and self._stop(task_id, meta):
                self.pending.clear()
        return final


class _Served(Protocol):
    """Someone on whose behalf the daemon thread waits."""

    def post(self, items: Items) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Waiter:
    """Waits for results of one backend. Safe to use from every thread and event loop of a process, and after a fork.

    :param backend: what returns the backend of this process, so that a forked child gets its own; or a backend.
    :param decode: reads what is stored, as :func:`umbel.meta.decoder` returns it.
    """

    def __init__(
        self,
        backend: ResultBackend | Callable[[], ResultBackend],
        *,
        decode: Callable[[bytes], Meta] = decode_meta,
        clock: Clock = SYSTEM_CLOCK,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._source = backend
        self.decode = decode
        self._clock = clock
        self._patience = patience
        self._reset()
        _waiters.add(self)

    def _reset(self) -> None:
        self._listener = Listener(self._backend, self._clock, self._patience)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._thread_wait = Wait()
        self._served: dict[_Served, Collection[str]] = {}

    def _backend(self) -> ResultBackend:
        return self._source if isinstance(self._source, ResultBackend) else self._source()

    def read(self, task_ids: Iterable[str]) -> dict[str, Meta]:
        """Return what is stored now, by id, in one round trip; does not wait."""
        return {task_id: self.decode(payload) for task_id, payload in self._backend().fetch(list(task_ids)).items()}

    def wait(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        *,
        on_message: OnMessage | None = None,
        on_interval: Callable[[], Any] | None = None,
        interval: float = 0.5,
        stop: Stop | None = None,
    ) -> dict[str, Meta]:
        """Block until all of these are in a final state, or ``stop`` says so; return the final metas by id.

        Raises :exc:`TimeoutError` after ``timeout`` seconds, or a second at most if that is less and the backend does
        not answer; without a timeout, :exc:`OperationalError` if the backend stays away for a minute.

        :param on_message: called with the meta of every change that is seen, in this thread.
        :param on_interval: called about every ``interval`` seconds, in this thread; what it raises ends the wait.
        """
        progress = Progress(task_ids, self.decode, on_message, stop)
        for _ in self._follow(progress, timeout, on_interval, interval):
            pass
        return progress.done

    def iterate(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        *,
        on_message: OnMessage | None = None,
        on_interval: Callable[[], Any] | None = None,
        interval: float = 0.5,
        stop: Stop | None = None,
    ) -> Iterator[tuple[str, Meta]]:
        """Yield (task id, final meta) as they become ready; otherwise like :meth:`wait`."""
        progress = Progress(task_ids, self.decode, on_message, stop)
        for final in self._follow(progress, timeout, on_interval, interval):
            yield from final

    def _follow(
        self, progress: Progress, timeout: float | None, on_interval: Callable[[], Any] | None, interval: float
    ) -> Iterator[list[tuple[str, Meta]]]:
        pending = progress.pending
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        # One round trip tells what is there already, and the watcher's connection is not troubled for it. That of a
        # single result that is probably not there yet would be in vain: the watcher reads it again.
        lone = len(pending) == 1 and self._listener.at_hand and (timeout is None or timeout > 0)
        if pending and not lone and (final := progress.take(self._fetch(pending, deadline))):
            yield final
        if pending and (timeout is None or timeout > 0):
            yield from self._listen(progress, deadline, on_interval, interval)
        if pending:
            raise TimeoutError("The operation timed out.")

    def _listen(
        self, progress: Progress, deadline: float | None, on_interval: Callable[[], Any] | None, interval: float
    ) -> Iterator[list[tuple[str, Meta]]]:
        """Yield what becomes final until nothing is missing or the deadline has passed."""
        wait, pending, listener = Wait(), progress.pending, self._listener
        watched = set(pending)
        listener.register(wait, watched)
        try:
            while pending:
                tick = None if on_interval is None else self._clock.monotonic() + interval
                items = listener.next(wait, _earlier(deadline, tick), deadline=deadline)
                if final := progress.take(items):
                    # Before the caller gets control: it may not come back for hours.
                    listener.unregister(wait, watched.difference(pending))
                    watched.intersection_update(pending)
                    yield final
                    if listener is not self._listener:  # the caller forked, and this is the child
                        listener = self._listener
                        listener.register(wait, watched)
                elif not items:
                    if deadline is not None and self._clock.monotonic() >= deadline:
                        return
                    if on_interval is not None:
                        on_interval()
        finally:
            listener.unregister(wait, watched)

    def _fetch(self, task_ids: Iterable[str], deadline: float | None) -> Iterable[tuple[str, bytes]]:
        try:
            return self._backend().fetch(list(task_ids), timeout=self._listener.patience(deadline)).items()
        except UNREACHABLE as error:
            # The listener reads everything again as soon as it has a connection.
            logger.debug("cannot read results: %s", error)
            return ()

    async def wait_async(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        *,
        on_message: OnMessage | None = None,
        stop: Stop | None = None,
    ) -> dict[str, Meta]:
        """Like :meth:`wait`, without blocking the event loop; callbacks run in the loop's thread."""
        import asyncio

        progress = Progress(task_ids, self.decode, on_message, stop)
        if not progress.pending:
            return {}
        served = _Future(progress, asyncio.get_running_loop())
        self._serve(served, list(progress.pending))
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await served.future
        except builtins.TimeoutError:
            if limit.expired():
                raise TimeoutError("The operation timed out.") from None
            raise
        finally:
            self._dismiss(served)

    def call(
        self,
        task_ids: Iterable[str],
        callback: Callable[[dict[str, Meta]], Any],
        on_error: Callable[[BaseException], Any] | None = None,
    ) -> None:
        """Call ``callback`` with the final metas once all are there, in a thread of its own.

        ``on_error`` is called instead if the backend stays away or a result cannot be read.
        """
        progress = Progress(task_ids, self.decode, None, None)
        if progress.pending:
            self._serve(_Callback(progress, self._dismiss, callback, on_error), list(progress.pending))
        else:
            _call(callback, {})

    def close(self) -> None:
        """Close the connection; a later wait opens a new one."""
        self._listener.disconnect()

    # -- the daemon thread ---------------------------------------------------------------------------------------

    def _serve(self, served: _Served, task_ids: Collection[str]) -> None:
        with self._lock:
            self._served[served] = task_ids
            self._listener.register(served, task_ids)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="umbel-results", daemon=True)
                thread.start()
                self._thread = thread
        self._thread_wait.event.set()

    def _dismiss(self, served: _Served) -> None:
        with self._lock:
            task_ids = self._served.pop(served, ())
        self._listener.unregister(served, task_ids)

    def _run(self) -> None:
        wait = self._thread_wait
        while True:
            if self._served:
                # The outer wall of this thread: whatever a driver raises, those who wait must hear of it.
                try:
                    self._listener.next(wait, self._clock.monotonic() + READ_SECONDS, deadline=None)
                except Exception as error:
                    self._fail_all(error)
                continue
            wait.event.wait(LINGER_SECONDS)
            wait.event.clear()
            with self._lock:
                if not self._served:
                    self._thread = None
                    return

    def _fail_all(self, error: BaseException) -> None:
        for served in list(self._served):
            self._dismiss(served)
            served.fail(error)


class _Future:
    """A coroutine that waits."""

    def __init__(self, progress: Progress, loop: asyncio.AbstractEventLoop) -> None:
        self._progress = progress
        self._loop = loop
        self.future: asyncio.Future[dict[str, Meta]] = self._loop.create_future()

    def post(self, items: Items) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the coroutine gone with it
            self._loop.call_soon_threadsafe(self._take, items)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._fail, error)

    def _take(self, items: Items) -> None:
        if self.future.done():
            return
        # What decoding or a callback raises belongs to the coroutine that waits, not to the loop.
        try:
            self._progress.take(items)
        except Exception as error:
            self.future.set_exception(error)
            return
        if not self._progress.pending:
            self.future.set_result(self._progress.done)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Callback:
    """A function to be called, in a thread of its own so that a slow one delays nobody's result."""

    def __init__(
        self,
        progress: Progress,
        dismiss: Callable[[_Served], None],
        callback: Callable[[dict[str, Meta]], Any],
        on_error: Callable[[BaseException], Any] | None,
    ) -> None:
        self._progress = progress
        self._dismiss = dismiss
        self._callback = callback
        self._on_error = on_error
        self._lock = threading.Lock()  # the lead may change hands between two posts

    def post(self, items: Items) -> None:
        with self._lock:
            if not self._progress.pending:
                return
            # A result that cannot be read is told to whoever asked for it, not to whoever leads.
            try:
                self._progress.take(items)
            except Exception as error:
                self._progress.pending.clear()
                failure: BaseException | None = error
            else:
                failure = None
            if self._progress.pending:
                return
        self._dismiss(self)
        if failure is None:
            _call(self._callback, self._progress.done)
        else:
            self.fail(failure)

    def fail(self, error: BaseException) -> None:
        if self._on_error is not None:
            _call(self._on_error, error)


def _call(function: Callable[[Any], Any], argument: Any) -> None:
    def guarded() -> None:
        # The outer wall around a user's callback.
        try:
            function(argument)
        except Exception:
            logger.exception("Result callback %r raised", function)

    threading.Thread(target=guarded, name="umbel-result-callback", daemon=True).start()


def _earlier(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


# -- other backends, and forks -----------------------------------------------------------------------------------

_waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()
_others: dict[int, Waiter] = {}
_left_behind: list[object] = []


def waiter_for(backend: ResultBackend, decode: Callable[[bytes], Meta] = decode_meta) -> Waiter:
    """Return the waiter of a backend that is not the app's own; the same one every time."""
    waiter = _others.get(id(backend))
    if waiter is None:
        waiter = _others.setdefault(id(backend), Waiter(backend, decode=decode))
    return waiter


def _after_fork() -> None:
    for waiter in list(_waiters):
        # Kept for ever: closing it, even by the garbage collector, could end the connection that the parent uses.
        _left_behind.append(waiter._listener.abandon())
        waiter._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
