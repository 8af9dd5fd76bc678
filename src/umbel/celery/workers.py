"""``celery.worker`` and ``celery.apps.worker``: a worker that a program runs itself, and its requests."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any, NoReturn

from umbel.celery.deprecations import CDeprecationWarning
from umbel.context import Context
from umbel.current import app_or_default
from umbel.drivers import mask
from umbel.worker.inprocess import InProcessWorker, run_worker
from umbel.worker.plan import make_plan
from umbel.worker.supervisor import Supervisor


class WorkController:
    """A worker with the options of the ``worker`` command: ``app.Worker(concurrency=2, loglevel="INFO").start()``.

    In the main thread it runs as the command does, under its signals; in another thread it is a worker of this one
    process. It sets up no logging.
    """

    def __init__(self, app: Any = None, hostname: str | None = None, **options: Any) -> None:
        self.app = app_or_default(app)
        self.app.finalize()
        for name in ("include", "imports"):
            for module in options.pop(name, None) or ():
                __import__(module)
        self.options = {"hostname": hostname, **options}
        self.exitcode: int | None = None
        self._worker: InProcessWorker | None = None
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main and options.get("pool") in (None, "prefork", "processes"):
            self.options["pool"] = "solo"
        self.plan = make_plan(self.app, self.options)
        self.hostname = self.plan.hostname

    def start(self) -> None:
        """Run until stopped; then :attr:`exitcode` says how it ended."""
        url = mask(self.app.urls.read)
        if threading.current_thread() is not threading.main_thread():
            self._worker = InProcessWorker(self.app, self.plan, url)
            self.exitcode = 0 if self._worker.run() else 1
        elif self.plan.pool == "solo" or not self.app.make_broker().features.shared:
            self.exitcode = run_worker(self.app, self.plan, url)
        else:
            self.exitcode = Supervisor(self.app, self.plan, url).run()

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """End a worker that runs in another thread, once its tasks have ended."""
        if self._worker is not None:
            self._worker.stop()

    terminate = stop


class Worker(WorkController):
    """A worker as the command line runs it."""


def safe_say(msg: str, f: Any = None) -> None:
    """Print to the real standard error."""
    stream = f or sys.__stderr__
    if stream is not None:
        stream.write(f"\n{msg}\n")
        stream.flush()


class Request(Context):
    """In Celery, a message on its way through a worker. In Umbel that is the task's own request.

    A subclass given as ``Task.Request`` is accepted, and its hooks are called by nobody.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        warnings.warn(
            CDeprecationWarning(
                f"{cls.__module__}.{cls.__qualname__}: Umbel's worker calls no hooks of a Request; use on_failure, "
                "on_retry and on_success of the task, or the signals task_received, task_failure and task_revoked"
            ),
            stacklevel=2,
        )


def create_request_cls(base: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the class of a task's requests."""
    return base


def default(task: Any, app: Any, consumer: Any, **kwargs: Any) -> NoReturn:
    """Refuse: how a message becomes a running task is the worker's own."""
    raise NotImplementedError("Umbel's worker has no strategies; use the signals task_received and task_prerun")
