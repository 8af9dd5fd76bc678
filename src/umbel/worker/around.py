"""The middlewares of an app around the runner of a process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from umbel.interfaces import Execution, Middleware, Outcome, Runner
from umbel.worker.runner import TaskRunner
from umbel.worker.verdicts import Condemned


def wrapped(runner: TaskRunner, middlewares: Sequence[Middleware]) -> Runner:
    """Return the runner behind the middlewares that wrap executions; without any it is the runner itself."""
    around = [each for each in middlewares if _wraps(each)]
    return _Wrapped(runner, around) if around else runner


def _wraps(middleware: Middleware) -> bool:
    kind = type(middleware)
    return kind.execute is not Middleware.execute or kind.execute_async is not Middleware.execute_async


class _Wrapped:
    """A middleware that raises ends its message as a dead letter, as an error of our own would; see the runner."""

    def __init__(self, runner: TaskRunner, around: Sequence[Middleware]) -> None:
        self._runner = runner
        self._run: Callable[[Execution], Outcome] = runner.run
        self._run_async: Callable[[Execution], Awaitable[Outcome]] = runner.run_async
        for each in reversed(around):
            self._run = partial(each.execute, call_next=self._run)
            self._run_async = partial(each.execute_async, call_next=self._run_async)

    def run(self, execution: Execution) -> Outcome:
        """Run it in this thread."""
        if type(execution) is Condemned:
            # What has its verdict is not run: its failure is told.
            return self._runner.run(execution)
        # The wall around user code, which else would end this process and the next one that gets the message.
        try:
            return self._run(execution)
        except Exception as error:
            return self._runner.hopeless(execution, error)

    async def run_async(self, execution: Execution) -> Outcome:
        """Run a coroutine task on the running loop."""
        if type(execution) is Condemned:
            return await self._runner.run_async(execution)
        try:
            return await self._run_async(execution)
        except Exception as error:
            return self._runner.hopeless(execution, error)

    def hopeless(self, execution: Execution, error: BaseException) -> Outcome:
        """End it as a dead letter."""
        return self._runner.hopeless(execution, error)
