"""N executions at a time, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from umbel.exceptions import PoolFull
from umbel.interfaces import Execution, Executor, ExecutorFeatures, Outcome, Runner
from umbel.tracing import end_thread


class ThreadsExecutor(Executor):
    """A fixed number of threads, started when first needed.

    ``submit``, ``free`` and ``stop`` belong to one thread. The threads are daemons: a task that never returns must
    not keep the process from exiting once its message has been given back.
    """

    __slots__ = ("_active", "_done", "_idle", "_inbox", "_lock", "_runner", "_size", "_threads")
    features: ClassVar[ExecutorFeatures] = ExecutorFeatures(
        inline=False, soft_limits=True, hard_limits=True, terminate=True, coroutines=False
    )

    _runner: Runner
    _done: Callable[[Execution, Outcome], None]

    def __init__(self, size: int) -> None:
        self._size = size
        self._inbox: queue.SimpleQueue[Execution | None] = queue.SimpleQueue()
        self._active: dict[int, Execution] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []

    def start(self, run: Runner, done: Callable[[Execution, Outcome], None]) -> None:
        """Remember what to call; threads start with the first executions."""
        self._runner = run
        self._done = done

    def free(self) -> int:
        """Return how many threads have nothing to do."""
        return self._size - len(self._active)

    def resize(self, size: int) -> None:
        """Let so many run at once; what runs goes on."""
        self._size = size

    def submit(self, execution: Execution) -> None:
        """Hand it to a thread; raises :exc:`PoolFull` when all are busy."""
        with self._lock:
            if len(self._active) >= self._size:
                raise PoolFull(f"all {self._size} threads are busy")
            self._active[id(execution)] = execution
            if len(self._threads) < len(self._active):
                thread = threading.Thread(target=self._work, name=f"umbel-task-{len(self._threads) + 1}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._inbox.put(execution)

    def _work(self) -> None:
        while (execution := self._inbox.get()) is not None:
            execution.started_at = time.monotonic()
            try:
                outcome = self._runner.run(execution)
            # The wall of the thread: without an outcome its slot would be taken for ever, and the message held.
            except BaseException as error:
                outcome = self._runner.hopeless(execution, error)
            with self._lock:
                # A stop that gave up on this execution has its message back already.
                known = self._active.pop(id(execution), None) is not None
                if not self._active:
                    self._idle.notify_all()
            if known:
                self._done(execution, outcome)
        end_thread()

    def stop(self, *, timeout: float) -> Sequence[Execution]:
        """Let the running ones finish until the timeout (seconds); return those that did not."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while self._active and (left := deadline - time.monotonic()) > 0:
                self._idle.wait(left)
            unfinished = list(self._active.values())
            self._active.clear()
        for _ in self._threads:
            self._inbox.put(None)
        return unfinished
