"""A worker in a thread of the program that tests it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from umbel import Umbel
from umbel.interfaces import Place
from umbel.worker.inprocess import WorkerDidNotStop, start_worker


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = Umbel("inside", broker=f"memory://{request.node.name}", backend=f"memory://{request.node.name}")
    yield made
    made.close()


@pytest.mark.parametrize("pool", ["solo", "threads", "asyncio"])
def test_tasks_run_while_the_block_runs(app: Any, pool: str) -> None:
    @app.task
    def double(x: int) -> tuple[int, str]:
        return x * 2, threading.current_thread().name

    handler = signal.getsignal(signal.SIGTERM)
    with start_worker(app, pool=pool, concurrency=2) as worker:
        assert worker.hostname.startswith("test@")
        values = [double.delay(i).get(timeout=10)[0] for i in range(10)]
        assert signal.getsignal(signal.SIGTERM) is handler
    assert values == [i * 2 for i in range(10)]
    left = double.delay(1)
    assert app.broker.size("celery") == 1
    assert left.state == "PENDING"
    assert not [thread for thread in threading.enumerate() if thread.name in ("umbel-worker", "umbel-leases")]


def test_a_task_that_does_not_end_is_an_error_and_goes_back(app: Any) -> None:
    entered, leave = threading.Event(), threading.Event()

    @app.task
    def stuck() -> None:
        entered.set()
        leave.wait(20)

    stuck.delay()
    before = time.monotonic()
    with pytest.raises(WorkerDidNotStop), start_worker(app, shutdown_timeout=0.1):
        assert entered.wait(10)
    assert time.monotonic() - before < 10
    assert (app.broker.size("celery"), app.broker.size("celery", Place.HELD)) == (1, 0)
    leave.set()


def test_an_error_of_the_block_is_the_one_that_is_raised(app: Any) -> None:
    with pytest.raises(KeyError, match="mine"), start_worker(app):
        raise KeyError("mine")
