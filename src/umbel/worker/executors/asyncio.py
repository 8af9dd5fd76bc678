"""Coroutine tasks on one event loop, with threads beside it for the others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from umbel.exceptions import PoolFull
from umbel.interfaces import Execution, Executor, ExecutorFeatures, Outcome, Runner
from umbel.tracing import given_up

logger = logging.getLogger("celery.pool")


class AsyncioExecutor(Executor):
    """One loop in a thread of its own runs up to ``size`` coroutine tasks at once.

    A task that is no coroutine runs in a thread, so that it cannot stop the loop; there are as many as are needed,
    up to ``size``, for a task that waited for one would use up its time limits. Executions reach the loop in batches:
    one wake-up serves all that were submitted since the last.
    """

    __slots__ = (
        "_active",
        "_closing",
        "_done",
        "_inbox",
        "_lock",
        "_loop",
        "_pool",
        "_runner",
        "_scheduled",
        "_size",
        "_tasks",
        "_thread",
        "_threads",
    )
    features: ClassVar[ExecutorFeatures] = ExecutorFeatures(
        inline=False, soft_limits=True, hard_limits=True, terminate=True, coroutines=True
    )

    _runner: Runner
    _done: Callable[[Execution, Outcome], None]
    _loop: asyncio.AbstractEventLoop

    def __init__(self, size: int) -> None:
        self._size = self._threads = size
        self._lock = threading.Lock()
        self._inbox: list[Execution] = []
        self._active: dict[int, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closing = False
        self._pool = _pool(size)
        self._thread = threading.Thread(target=self._serve, name="umbel-loop", daemon=True)

    def start(self, run: Runner, done: Callable[[Execution, Outcome], None]) -> None:
        """Start the loop's thread."""
        self._runner = run
        self._done = done
        # Not before: one that is made only to have it imported, before a fork, must not hold descriptors.
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not (self._closing or self._loop.is_closed()):
            try:
                self._loop.run_forever()
            # The wall of the thread. A SystemExit of a task that a body has started leaves the loop on its way to
            # the body, which gets it as well; what else is on the loop has nothing to do with it.
            except BaseException as error:
                logger.error("%r left the event loop, which goes on.", error, exc_info=True)

    def free(self) -> int:
        """Return how many more could run at once."""
        return self._size - len(self._active)

    def resize(self, size: int) -> None:
        """Let so many run at once; what runs goes on."""
        if size > self._threads:
            # Nothing waits in the smaller one. Its threads end with what they run, for nobody refers to it any more.
            self._pool, self._threads = _pool(size), size
        self._size = size

    def submit(self, execution: Execution) -> None:
        """Hand it to the loop; raises :exc:`PoolFull` when ``size`` run already."""
        with self._lock:
            if len(self._active) >= self._size:
                raise PoolFull(f"all {self._size} coroutine slots are busy")
            self._active[id(execution)] = execution
            self._inbox.append(execution)
            if self._scheduled:
                return
            self._scheduled = True
        self._loop.call_soon_threadsafe(self._launch)

    def _launch(self) -> None:
        with self._lock:
            batch, self._inbox = self._inbox, []
            self._scheduled = False
        for execution in batch:
            task = self._loop.create_task(self._execute(execution))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _execute(self, execution: Execution) -> None:
        execution.started_at = time.monotonic()
        try:
            if execution.task.is_coroutine:
                outcome = await self._runner.run_async(execution)
            else:
                outcome = await self._loop.run_in_executor(self._pool, self._runner.run, execution)
        # The wall of the slot, which would be taken for ever, and the message held.
        except BaseException as error:
            if id(execution) not in self._active:
                # A stop has given it back.
                return
            outcome = self._runner.hopeless(execution, error)
        with self._lock:
            known = self._active.pop(id(execution), None) is not None
        if known:
            self._done(execution, outcome)

    def stop(self, *, timeout: float) -> Sequence[Execution]:
        """Let the running ones finish until the timeout (seconds), cancel the rest and return it."""
        deadline = time.monotonic() + timeout
        while self._active and time.monotonic() < deadline:
            time.sleep(0.005)
        with self._lock:
            unfinished = list(self._active.values())
            self._active.clear()
        if self._thread.is_alive():
            closing = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
            try:
                closing.result(timeout=1.0)
            except TimeoutError:
                # A coroutine that swallows its cancellation: the process is about to exit anyway.
                pass
            self._closing = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=1.0)
        if self._thread.ident is not None and not self._thread.is_alive():
            self._loop.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return unfinished

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks)
        given_up.update(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="umbel-task")
