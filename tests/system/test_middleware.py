"""Middlewares see everything that is sent and every task that runs, and one that fails harms nobody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from support import eventually
from umbel import Umbel, chain
from umbel.interfaces import Execution, Middleware, Outcome, Outgoing, Place, Published, PublishStatus
from umbel.worker.inprocess import start_worker


class Notes(Middleware):
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def publish(
        self, batch: Sequence[Outgoing], call_next: Callable[[Sequence[Outgoing]], Sequence[Published]]
    ) -> Sequence[Published]:
        for outgoing in batch:
            outgoing.message.headers["tenant"] = outgoing.message.headers.get("tenant", "") + self.name
            self.notes.append(f"{self.name} sends {outgoing.message.headers['task']}")
        return call_next(batch)

    def execute(self, execution: Execution, call_next: Callable[[Execution], Outcome]) -> Outcome:
        self.notes.append(f"{self.name} begins {execution.call.task}")
        outcome = call_next(execution)
        self.notes.append(f"{self.name} ends {outcome.state}")
        return outcome

    async def execute_async(
        self, execution: Execution, call_next: Callable[[Execution], Awaitable[Outcome]]
    ) -> Outcome:
        self.notes.append(f"{self.name} awaits {execution.call.task}")
        return await call_next(execution)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def app(sqlite_url: str, notes: list[str]) -> Iterator[Umbel]:
    with Umbel("shop", broker=sqlite_url, backend=sqlite_url) as app:
        app.middlewares += [Notes("a", notes), Notes("b", notes)]

        @app.task(name="add")
        def add(x: int, y: int) -> int:
            return x + y

        @app.task(name="flaky", bind=True)
        def flaky(self: Any) -> str:
            if not self.request.retries:
                raise self.retry(countdown=0)
            return str(self.request.headers["tenant"])

        @app.task(name="aio")
        async def aio() -> int:
            return 7

        yield app


def test_the_first_is_outermost_and_follow_ups_are_seen(app: Umbel, notes: list[str]) -> None:
    add = app.tasks["add"]
    with start_worker(app):
        assert chain(add.s(1, 2), add.s(3)).delay().get(timeout=30) == 6
    first = ["a begins add", "b begins add", "a sends add", "b sends add", "b ends SUCCESS", "a ends SUCCESS"]
    second = ["a begins add", "b begins add", "b ends SUCCESS", "a ends SUCCESS"]
    eventually(lambda: notes == ["a sends add", "b sends add", *first, *second])


def test_a_retry_carries_what_a_middleware_put_into_it(app: Umbel) -> None:
    with start_worker(app):
        # Sent twice, each time through both.
        assert app.tasks["flaky"].delay().get(timeout=30) == "abab"


def test_coroutines_are_wrapped_too(app: Umbel, notes: list[str]) -> None:
    with start_worker(app, pool="asyncio", concurrency=2):
        assert app.tasks["aio"].delay().get(timeout=30) == 7
    assert "a awaits aio" in notes and "b awaits aio" in notes


def test_one_that_raises_costs_its_message_and_not_the_worker(app: Umbel) -> None:
    class Broken(Middleware):
        def execute(self, execution: Execution, call_next: Callable[[Execution], Outcome]) -> Outcome:
            if execution.call.kwargs:
                raise RuntimeError("broken middleware")
            return call_next(execution)

    app.middlewares.append(Broken())
    add = app.tasks["add"]
    with start_worker(app):
        lost = add.delay(x=1, y=2)
        assert add.delay(1, 2).get(timeout=30) == 3
        with pytest.raises(RuntimeError, match="broken middleware"):
            lost.get(timeout=30)
        assert app.broker.size("celery", Place.DEAD) == 1


def test_one_that_refuses_a_retry_fails_the_task(app: Umbel) -> None:
    class Refusing(Middleware):
        def publish(
            self, batch: Sequence[Outgoing], call_next: Callable[[Sequence[Outgoing]], Sequence[Published]]
        ) -> Sequence[Published]:
            if any(outgoing.message.headers["retries"] for outgoing in batch):
                return [Published(PublishStatus.REFUSED, "no retries here")] * len(batch)
            return call_next(batch)

    app.middlewares.append(Refusing())
    with start_worker(app), pytest.raises(Exception, match="no retries here"):
        app.tasks["flaky"].delay().get(timeout=30)
