"""What every executor must do, as tests. Subclass :class:`ExecutorContract` and return yours from ``make``.

    class TestMine(ExecutorContract):
        size = 4

        def make(self) -> Executor:
            return MyExecutor(4)

Skips depend on ``features`` alone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from umbel import states
from umbel.exceptions import PoolFull
from umbel.interfaces import Delivery, Execution, Executor, Outcome, Settlement

PATIENCE = 10.0


class Body:
    """Stands where the worker has the task's plan: what to run, and whether it is a coroutine."""

    def __init__(self, fun: Callable[[], Any]) -> None:
        self.fun = fun
        self.is_coroutine = inspect.iscoroutinefunction(fun)


class LetThrough(SystemExit):
    """Raised by a body: leaves the runner, as a SystemExit of a middleware or a receiver does."""


class BodyRunner:
    """Runs bodies as the worker's runner runs tasks: it never raises for what they do, but for what it lets through."""

    def run(self, execution: Execution) -> Outcome:
        """Run it in this thread."""
        try:
            value = execution.task.fun()
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        except LetThrough:
            raise
        except BaseException:  # user code ends here, as in the worker's own runner
            return _outcome(execution, states.FAILURE)
        return _outcome(execution, states.SUCCESS)

    async def run_async(self, execution: Execution) -> Outcome:
        """Run a coroutine body on the running loop."""
        try:
            await execution.task.fun()
        except (LetThrough, asyncio.CancelledError):
            raise
        except BaseException:  # user code ends here, as in the worker's own runner
            return _outcome(execution, states.FAILURE)
        return _outcome(execution, states.SUCCESS)

    def hopeless(self, execution: Execution, error: BaseException) -> Outcome:
        """End what an error has left that went through."""
        return _outcome(execution, states.FAILURE)


def _outcome(execution: Execution, state: str) -> Outcome:
    return Outcome(state=state, settlement=Settlement(delivery=execution.delivery))


class Ledger:
    """Counts the outcomes and lets a test wait for them."""

    def __init__(self) -> None:
        self.states: dict[str, list[str]] = {}
        self._changed = threading.Condition()

    def done(self, execution: Execution, outcome: Outcome) -> None:
        """Take one outcome; an executor calls this."""
        with self._changed:
            self.states.setdefault(execution.delivery.tag, []).append(outcome.state)
            self._changed.notify_all()

    def expect(self, count: int) -> None:
        """Wait until there are so many outcomes."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.states) >= count, PATIENCE), self.states


class ExecutorContract:
    """The suite. ``size`` is how many executions yours runs at once."""

    size = 1

    def make(self) -> Executor:
        """Return a new executor that was not started."""
        raise NotImplementedError

    @pytest.fixture
    def ledger(self) -> Ledger:
        """Return what counts the outcomes."""
        return Ledger()

    @pytest.fixture
    def executor(self, ledger: Ledger) -> Iterator[Executor]:
        """Return a started executor, stopped after the test."""
        executor = self.make()
        executor.start(BodyRunner(), ledger.done)
        yield executor
        executor.stop(timeout=1.0)

    def execution(self, fun: Callable[[], Any], tag: str = "1") -> Execution:
        """Return an execution of the function."""
        return Execution(delivery=Delivery(tag=tag, queue="q", raw=b""), call=None, task=Body(fun))

    def send(self, executor: Executor, executions: list[Execution], ledger: Ledger) -> None:
        """Submit all, never more than are free, and wait for the outcomes."""
        for sent, execution in enumerate(executions):
            if not executor.free():
                ledger.expect(sent + 1 - self.size)
            executor.submit(execution)
        ledger.expect(len(executions))

    def test_runs_everything_once(self, executor: Executor, ledger: Ledger) -> None:
        """Each submitted execution has exactly one outcome."""
        ran: list[int] = []
        bodies = [functools.partial(ran.append, n) for n in range(50)]
        self.send(executor, [self.execution(body, str(n)) for n, body in enumerate(bodies)], ledger)
        assert sorted(ran) == list(range(50))
        assert all(seen == [states.SUCCESS] for seen in ledger.states.values())

    def test_runs_coroutine_functions(self, executor: Executor, ledger: Ledger) -> None:
        """A coroutine task runs under every executor."""
        ran: list[str] = []

        async def body() -> None:
            await asyncio.sleep(0)
            ran.append("ran")

        self.send(executor, [self.execution(body)], ledger)
        assert ran == ["ran"]

    def test_an_error_is_an_outcome(self, executor: Executor, ledger: Ledger) -> None:
        """What user code raises does not reach the executor's caller, and the slot is usable again."""

        def body() -> None:
            raise ValueError("no")

        self.send(executor, [self.execution(body, "bad")], ledger)
        executor.submit(self.execution(lambda: None, "good"))
        ledger.expect(2)
        assert ledger.states == {"bad": [states.FAILURE], "good": [states.SUCCESS]}

    def ended_badly(self, executor: Executor, ledger: Ledger, body: Callable[[], Any]) -> None:
        """Run the body more often than slots are there, then another: each has one outcome, and every slot is free."""
        count = self.size + 1
        self.send(executor, [self.execution(body, f"bad {n}") for n in range(count)], ledger)
        executor.submit(self.execution(lambda: None, "good"))
        ledger.expect(count + 1)
        assert ledger.states.pop("good") == [states.SUCCESS]
        assert all(seen == [states.FAILURE] for seen in ledger.states.values()), ledger.states
        assert executor.free() == self.size

    def test_a_cancellation_that_the_executor_did_not_cause(self, executor: Executor, ledger: Ledger) -> None:
        """What a body waits for may have been cancelled by anybody: the body has failed, and its slot is free."""

        async def body() -> None:
            inner = asyncio.create_task(asyncio.sleep(PATIENCE))
            await asyncio.sleep(0)
            inner.cancel()
            await inner

        self.ended_badly(executor, ledger, body)

    def test_a_body_that_cancels_itself(self, executor: Executor, ledger: Ledger) -> None:
        """The same, when it is the task of the loop in which the body runs."""

        async def body() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(PATIENCE)

        self.ended_badly(executor, ledger, body)

    def test_an_exit_in_a_task_that_a_body_started(self, executor: Executor, ledger: Ledger) -> None:
        """A SystemExit there leaves the event loop; the body gets it, and what comes next runs."""

        async def child() -> None:
            sys.exit(1)

        async def body() -> None:
            await asyncio.gather(child())

        self.ended_badly(executor, ledger, body)

    def test_what_the_runner_lets_through(self, executor: Executor, ledger: Ledger) -> None:
        """Where others share the process, it ends one execution, and neither a slot nor the executor."""
        if executor.features.inline:
            pytest.skip("features.inline: it belongs to whoever submits")

        def body() -> None:
            raise LetThrough(1)

        async def coroutine() -> None:
            raise LetThrough(1)

        self.ended_badly(executor, ledger, body)
        ledger.states.clear()
        self.ended_badly(executor, ledger, coroutine)

    def test_functions_run_at_once(self, executor: Executor, ledger: Ledger) -> None:
        """``size`` of them, none waits for a thread: its time limits count already. So it is after a resize."""
        if executor.features.inline:
            pytest.skip("features.inline is true")
        for size in (self.size, self.size + 20):
            executor.resize(size)
            meeting = threading.Barrier(size)
            for n in range(size):
                executor.submit(self.execution(functools.partial(meeting.wait, PATIENCE), f"{size} {n}"))
            ledger.expect(size)
            assert all(seen == [states.SUCCESS] for seen in ledger.states.values()), ledger.states
            ledger.states.clear()

    def test_at_most_size_at_once_and_full_raises(self, executor: Executor, ledger: Ledger) -> None:
        """Submitting more than is free raises, and nothing of that execution runs."""
        if executor.features.inline:
            assert executor.free() == 1
            return
        gate, started = threading.Event(), threading.Semaphore(0)

        def body() -> None:
            started.release()
            gate.wait(PATIENCE)

        for n in range(self.size):
            executor.submit(self.execution(body, str(n)))
        for _ in range(self.size):
            assert started.acquire(timeout=PATIENCE)
        assert executor.free() == 0
        with pytest.raises(PoolFull):
            executor.submit(self.execution(body, "too many"))
        gate.set()
        ledger.expect(self.size)
        assert "too many" not in ledger.states

    def test_coroutines_overlap(self, executor: Executor, ledger: Ledger) -> None:
        """Where ``features.coroutines``, coroutine tasks run at once on one loop."""
        if not executor.features.coroutines:
            pytest.skip("features.coroutines is false")
        waiting: list[asyncio.Future[None]] = []

        async def body() -> None:
            future = asyncio.get_running_loop().create_future()
            waiting.append(future)
            if len(waiting) == self.size:
                for each in waiting:
                    each.set_result(None)
            await future

        self.send(executor, [self.execution(body, str(n)) for n in range(self.size)], ledger)

    def test_stop_waits_and_returns_what_did_not_finish(self, executor: Executor, ledger: Ledger) -> None:
        """After stop an unfinished execution has no outcome any more, whatever it does later."""
        if executor.features.inline:
            assert list(executor.stop(timeout=0)) == []
            return
        gate, started = threading.Event(), threading.Event()

        def body() -> None:
            started.set()
            gate.wait(PATIENCE)

        stuck = self.execution(body, "stuck")
        executor.submit(stuck)
        assert started.wait(PATIENCE)
        assert list(executor.stop(timeout=0.01)) == [stuck]
        gate.set()
        assert "stuck" not in ledger.states

    def test_stop_twice_and_before_start(self) -> None:
        """Stopping is always safe."""
        executor = self.make()
        assert list(executor.stop(timeout=0)) == []
        assert list(executor.stop(timeout=0)) == []
