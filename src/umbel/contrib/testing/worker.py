"""A worker in a thread of the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from umbel.current import allow_join_result
from umbel.signals import Signal
from umbel.worker.inprocess import InProcessWorker
from umbel.worker.inprocess import start_worker as _start_worker

test_worker_starting = Signal(name="test_worker_starting", providing_args={})
test_worker_started = Signal(name="test_worker_started", providing_args={"worker", "consumer"})
test_worker_stopped = Signal(name="test_worker_stopped", providing_args={"worker"})


class TestWorkController(InProcessWorker):
    """The kind of worker that :func:`start_worker` runs."""

    __test__ = False

    @property
    def app(self) -> Any:
        """The app whose tasks it runs."""
        return self._app

    def reload(self, modules: Any = None, reload: bool = False, reloader: Any = None) -> None:
        """Import further modules of tasks. Tasks that were made since the start are known without it."""
        for module in modules or ():
            self._app.loader.import_task_module(module)


_NOT_HERE = {"prefork": "solo", "processes": "solo", "gevent": "threads", "eventlet": "threads"}


@contextmanager
def start_worker(
    app: Any,
    concurrency: int = 1,
    pool: str = "solo",
    loglevel: str | int = "ERROR",
    logfile: str | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    **kwargs: Any,
) -> Iterator[TestWorkController]:
    """Run a worker in a thread of this process while the block runs. It touches no signal handler.

    :param pool: ``solo``, ``threads`` or ``asyncio``; others, which need processes, become one of these.
    :param perform_ping_check: send the task ``celery.ping`` first and wait for its answer.

    Raises ``RuntimeError`` if a task still runs ``shutdown_timeout`` seconds after the block.
    """
    from umbel.worker.inprocess import WorkerDidNotStop

    kwargs.pop("WorkController", None)
    test_worker_starting.send(sender=app)
    setup_app_for_worker(app, loglevel, logfile)
    if perform_ping_check:
        assert "celery.ping" in app.tasks, "import umbel.contrib.testing.tasks, or pass perform_ping_check=False"
    worker: TestWorkController | None = None
    try:
        with _start_worker(
            app,
            concurrency=concurrency,
            pool=_NOT_HERE.get(pool, pool),
            ping_task_timeout=ping_task_timeout,
            shutdown_timeout=shutdown_timeout,
            loglevel=loglevel,
            **kwargs,
        ) as started:
            # It is there already, and only gets what Celery's has besides.
            started.__class__ = TestWorkController
            worker = cast(TestWorkController, started)
            if perform_ping_check:
                with allow_join_result():
                    assert app.tasks["celery.ping"].delay().get(timeout=ping_task_timeout) == "pong"
            test_worker_started.send(sender=app, worker=worker, consumer=worker)
            yield worker
    except WorkerDidNotStop as error:
        raise RuntimeError(
            "Worker thread failed to exit within the allocated timeout. Consider raising `shutdown_timeout` if your "
            "tasks take longer to execute."
        ) from error
    finally:
        test_worker_stopped.send(sender=app, worker=worker)


def setup_app_for_worker(app: Any, loglevel: str | int = "ERROR", logfile: str | None = None) -> None:
    """Make the app ready: complete, current and default."""
    app.finalize()
    app.set_current()
    app.set_default()
    # What a test prints stays where it is.
    app.log.setup(loglevel, logfile, redirect_stdouts=False)
