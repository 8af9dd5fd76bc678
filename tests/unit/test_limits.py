"""Limits are found, and errors get into a running body from outside: only into that one, and only while it runs."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from umbel import Umbel
from umbel.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, Terminated, TimeLimitExceeded
from umbel.interfaces import Delivery, Execution
from umbel.tracing import TaskPlan
from umbel.worker.limits import Guard, LimitBook, Limiter, Limits, unenforceable
from umbel.worker.plan import make_plan

LONG = 20.0


@pytest.fixture
def app() -> Any:
    return Umbel("limits", broker="memory://", set_as_current=False)


@pytest.fixture
def main_limiter() -> Iterator[Limiter]:
    old = signal.getsignal(signal.SIGUSR1)
    yield Limiter(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, old)


def execution(task: Any = None, timelimit: Any = None) -> Execution:
    call = SimpleNamespace(id="an-id", task="t", headers={"timelimit": timelimit} if timelimit else {})
    return Execution(delivery=Delivery(tag="1", queue="q", raw=b""), call=call, task=task)


def guard_of(limiter: Limiter, soft: float = 0.0, hard: float = 0.0) -> Guard:
    return limiter.guard(execution(), Limits(soft, hard), time.monotonic(), shared=True)


def spin() -> None:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        pass


def in_thread(work: Callable[[], Any]) -> Any:
    """Run it in a thread that is not the main one; return what it returned or raised."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(work())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LONG / 2)
    assert ended, "it did not end"
    return ended[0]


# -- which limits ------------------------------------------------------------------------------------------------


def test_the_call_wins_over_the_task_and_the_task_over_the_worker(app: Any) -> None:
    @app.task(soft_time_limit=4, time_limit=8)
    def own() -> None: ...

    @app.task
    def plain() -> None: ...

    book = LimitBook(soft=10.0, hard=20.0)
    none = LimitBook(soft=None, hard=None)
    own_plan, plain_plan = TaskPlan(own), TaskPlan(plain)
    assert none.of(execution(plain_plan)) is None
    assert none.of(execution(plain_plan, [None, None])) is None
    assert book.of(execution(plain_plan)) == Limits(10.0, 20.0)
    assert book.of(execution(own_plan)) == Limits(4.0, 8.0)
    assert book.of(execution(own_plan, [6, None])) == Limits(4.0, 6.0)
    assert book.of(execution(own_plan, [6, 2])) == Limits(2.0, 6.0)
    # A soft limit behind the hard one could never be reached.
    assert book.of(execution(own_plan, [3, None])) == Limits(0.0, 3.0)


@pytest.mark.parametrize("hostile", ["soon", [None], ["x", {}], [-5, -1], 7, {"a": 1}, [[1], [2]]])
def test_a_hostile_header_means_no_limit(app: Any, hostile: Any) -> None:
    @app.task
    def plain() -> None: ...

    assert LimitBook(soft=None, hard=None).of(execution(TaskPlan(plain), hostile)) is None


def test_a_worker_of_one_process_cannot_keep_hard_limits(app: Any) -> None:
    @app.task(name="own", time_limit=8)
    def own() -> None: ...

    assert unenforceable(app, None, alone=False) == ""
    assert "own" in unenforceable(app, None, alone=True)
    assert "task_time_limit" in unenforceable(app, 3.0, alone=True)


def test_a_soft_limit_is_not_longer_than_the_hard_one(app: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="soft"):
        make_plan(app, {"time_limit": 5.0, "soft_time_limit": 6.0})
    plan = make_plan(app, {"time_limit": 5.0, "soft_time_limit": 4.0, "pool": "prefork"})
    assert (plan.time_limit, plan.soft_time_limit) == (5.0, 4.0)


# -- getting in --------------------------------------------------------------------------------------------------


def test_into_the_main_thread_by_a_signal(main_limiter: Limiter) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        guard_of(main_limiter, soft=0.05).run(lambda: time.sleep(LONG))
    with pytest.raises(TimeLimitExceeded) as caught:
        guard_of(main_limiter, hard=0.05).run(spin)
    assert caught.value.args == (0.05,)


def test_into_a_thread_by_an_exception() -> None:
    limiter = Limiter()
    assert isinstance(in_thread(lambda: guard_of(limiter, soft=0.05).run(spin)), SoftTimeLimitExceeded)
    error = in_thread(lambda: guard_of(limiter, hard=0.05).run(spin))
    assert isinstance(error, TimeLimitExceeded) and error.args == (0.05,)


def test_into_a_coroutine_as_the_error_itself() -> None:
    cleaned: list[str] = []

    async def body() -> str:
        try:
            async with asyncio.timeout(LONG):
                await asyncio.sleep(LONG)
        except SoftTimeLimitExceeded:
            cleaned.append("yes")
            async with asyncio.timeout(LONG):
                await asyncio.sleep(0)  # cancelled no more
        return "done"

    assert asyncio.run(guard_of(Limiter(), soft=0.05).run_async(body())) == "done"
    assert cleaned == ["yes"]


def test_a_hard_limit_ends_a_coroutine_that_has_used_its_soft_one() -> None:
    async def body() -> None:
        try:
            await asyncio.sleep(LONG)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(LONG)

    with pytest.raises(TimeLimitExceeded):
        asyncio.run(guard_of(Limiter(), soft=0.05, hard=0.2).run_async(body()))


def test_a_cancellation_by_someone_else_stays_one() -> None:
    async def main() -> None:
        task = asyncio.create_task(guard_of(Limiter(), soft=LONG).run_async(asyncio.sleep(LONG)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_the_task_may_clean_up_and_return(main_limiter: Limiter) -> None:
    def body() -> str:
        try:
            time.sleep(LONG)
        except SoftTimeLimitExceeded:
            return "cleaned"
        return "slept"

    assert guard_of(main_limiter, soft=0.05).run(body) == "cleaned"


def test_terminated_from_another_thread(main_limiter: Limiter) -> None:
    for limiter in (main_limiter, Limiter()):
        guard = guard_of(limiter)

        def terminate(guard: Guard = guard) -> None:
            while not guard.interrupt(Terminated(15)):
                time.sleep(0.001)

        asking = threading.Thread(target=terminate)
        asking.start()
        with pytest.raises(Terminated) as caught:
            guard.run(spin)
        assert caught.value.args == (15,)
        asking.join()
        assert not guard.interrupt(Terminated(15))


class _Asked(Limiter):
    """Somebody asks for an end of the task at the worst moments: while its guard begins to be watched, and after."""

    asking: threading.Thread | None = None
    watched = forgotten = False

    def watch(self, guard: Guard) -> None:
        self.asking = threading.Thread(target=guard.interrupt, args=(Terminated(15),))
        self.asking.start()
        # It either returns, having sent the error, or waits until that may arrive.
        self.asking.join(0.05)
        super().watch(guard)
        self.watched = True

    def forget(self, guard: Guard) -> None:
        guard._wanted = Terminated(15)
        self.ring_main()
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            pass
        super().forget(guard)
        self.forgotten = True


@pytest.mark.parametrize("where", ["main", "thread"])
def test_nothing_arrives_in_the_guard_itself(where: str) -> None:
    """There it could leave a lock taken, on which the limits of all later tasks would hang."""
    old = signal.getsignal(signal.SIGUSR1)
    limiter = _Asked(signal.SIGUSR1 if where == "main" else None)
    try:
        guard = guard_of(limiter, soft=LONG)
        if where == "main":
            with pytest.raises(Terminated):
                guard.run(spin)
        else:
            assert isinstance(in_thread(lambda: guard.run(spin)), Terminated)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert limiter.watched and limiter.forgotten
    assert limiter.asking is not None
    limiter.asking.join(LONG)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_nothing_arrives_after_the_body(main_limiter: Limiter, where: str) -> None:
    """However close the end of the body and the deadline are: an error belongs to the body, or there is none."""
    limiter = main_limiter if where == "main" else Limiter()

    def once(at: float) -> int:
        guard = guard_of(limiter, soft=at)

        def body() -> None:
            deadline = time.monotonic() + 0.015
            while time.monotonic() < deadline:
                pass

        try:
            guard.run(body)
        except SoftTimeLimitExceeded:
            return 1
        return 0

    def many() -> int:
        hit = 0
        for number in range(100):
            hit += once(0.005 + (number % 25) * 0.0005)
            deadline = time.monotonic() + 0.002
            while time.monotonic() < deadline:
                pass  # an error that came late would be raised here
        return hit

    hit = many() if where == "main" else in_thread(many)
    assert hit


def test_a_coroutine_under_a_synchronous_executor(app: Any, main_limiter: Limiter) -> None:
    from umbel.context import Context
    from umbel.tracing import Attempt

    @app.task
    async def wait(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except SoftTimeLimitExceeded:
            return "cleaned"
        return "slept"

    plan = TaskPlan(wait)
    for seconds, value in ((LONG, "cleaned"), (0.0, "slept")):
        context = Context(id="1", is_eager=True)
        traced = Attempt(app, plan, context, (seconds,), {}, guard_of(main_limiter, soft=0.1)).run()
        assert traced.result == value
