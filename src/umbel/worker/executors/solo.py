"""One execution at a time, in the thread that submits it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar

from umbel.interfaces import Execution, Executor, ExecutorFeatures, Outcome, Runner
from umbel.tracing import end_thread


class SoloExecutor(Executor):
    """Runs each task inline; under prefork every process has one, and the task has the main thread."""

    __slots__ = ("_done", "_run")
    features: ClassVar[ExecutorFeatures] = ExecutorFeatures(
        inline=True, soft_limits=True, hard_limits=True, terminate=True, coroutines=False
    )

    _run: Callable[[Execution], Outcome]
    _done: Callable[[Execution, Outcome], None]

    def start(self, run: Runner, done: Callable[[Execution, Outcome], None]) -> None:
        """Remember what to call."""
        self._run = run.run
        self._done = done

    def free(self) -> int:
        """Return one: whoever can ask is not inside a task."""
        return 1

    def submit(self, execution: Execution) -> None:
        """Run it; returns when it has ended."""
        self._done(execution, self._run(execution))

    def stop(self, *, timeout: float) -> Sequence[Execution]:
        """Return nothing: between two submits nothing runs."""
        if threading.current_thread() is not threading.main_thread():
            end_thread()
        return ()
