"""A worker in a thread of the program that tests it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import eventually
from umbel import Umbel
from umbel.contrib.testing.worker import start_worker as start_celerys
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Place
from umbel.testing.servers import free_port
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


@pytest.mark.parametrize("start", [start_worker, start_celerys])
def test_settings_that_contradict_each_other_are_refused(app: Any, start: Any) -> None:
    app.conf.lease_ttl = 2 * app.conf.lease_heartbeat
    with pytest.raises(ImproperlyConfigured, match="lease_ttl"), start(app, perform_ping_check=False):
        pytest.fail("a worker with these settings would lose its leases")


def test_a_port_for_probes_is_served(app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_RUN_DIR", str(tmp_path))
    port = free_port()

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with start_worker(app, health_port=str(port)):
        eventually(ready)
    assert not ready()
    with start_worker(app):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_coroutine_that_was_not_cancelled_by_its_worker_has_failed(app: Any) -> None:
    """It waits for something that somebody else has cancelled, or that ends the program: hooks hear of it as usual."""
    told: list[str] = []

    @app.task(name="cancelled", on_failure=lambda self, error, *_: told.append(type(error).__name__))
    async def cancelled() -> None:
        inner = asyncio.create_task(asyncio.sleep(20))
        await asyncio.sleep(0)
        inner.cancel()
        await inner

    @app.task(name="exits", on_failure=lambda self, error, *_: told.append(type(error).__name__))
    async def exits() -> None:
        async def child() -> None:
            sys.exit(3)

        await asyncio.gather(child())

    @app.task(name="well")
    async def well() -> str:
        return "well"

    with start_worker(app, pool="asyncio", concurrency=1):
        for task, name in ((cancelled, "CancelledError"), (exits, "SystemExit")):
            result = task.delay()
            result.get(timeout=20, propagate=False)
            assert result.state == "FAILURE" and name in repr(result.result)
        assert well.delay().get(timeout=20) == "well"
    assert told == ["CancelledError", "SystemExit"]


@pytest.mark.parametrize("pool", ["solo", "threads", "asyncio"])
@pytest.mark.parametrize("hook", ["on_success", "after_return"])
def test_a_hook_that_would_end_the_program_changes_no_outcome(app: Any, pool: str, hook: str) -> None:
    @app.task(name="hooked", **{hook: lambda self, *_: sys.exit(1)})
    def hooked() -> int:
        return 5

    with start_worker(app, pool=pool, concurrency=1):
        assert [hooked.delay().get(timeout=20) for _ in range(2)] == [5, 5]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_the_loop_of_a_thread_ends_with_it(app: Any, pool: str) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @app.task
    async def seen() -> None:
        loops.append(asyncio.get_running_loop())

    with start_worker(app, pool=pool, concurrency=1):
        for _ in range(2):
            seen.delay().get(timeout=10)
    assert loops[0] is loops[1], "it is kept for the thread"
    eventually(loops[0].is_closed)
