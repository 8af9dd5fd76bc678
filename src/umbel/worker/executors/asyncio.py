"""Coroutine tasks on one event loop, with a few threads beside it for the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from umbel.exceptions import PoolFull
from umbel.interfaces import Execution, Executor, ExecutorFeatures, Outcome, Runner


class AsyncioExecutor(Executor):
    """One loop in a thread of its own runs up to ``size`` coroutine tasks at once.

    A task that is no coroutine runs in a small thread pool, so that it cannot stop the loop. Executions reach the
    loop in batches: one wake-up serves all that were submitted since the last.
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
    )
    features: ClassVar[ExecutorFeatures] = ExecutorFeatures(
        inline=False, soft_limits=True, hard_limits=True, terminate=True, coroutines=True
    )

    _runner: Runner
    _done: Callable[[Execution, Outcome], None]

    def __init__(self, size: int, *, threads: int | None = None) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._inbox: list[Execution] = []
        self._active: dict[int, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(threads or min(size, 16), thread_name_prefix="umbel-task")
        self._thread = threading.Thread(target=self._serve, name="umbel-loop", daemon=True)

    def start(self, run: Runner, done: Callable[[Execution, Outcome], None]) -> None:
        """Start the loop's thread."""
        self._runner = run
        self._done = done
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def free(self) -> int:
        """Return how many more could run at once."""
        return self._size - len(self._active)

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
        if execution.task.is_coroutine:
            outcome = await self._runner.run_async(execution)
        else:
            outcome = await self._loop.run_in_executor(self._pool, self._runner.run, execution)
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
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            self._loop.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return unfinished

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
