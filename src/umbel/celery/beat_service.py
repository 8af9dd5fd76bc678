"""``celery.beat.Service``: what runs a scheduler of Celery's kind, in this thread, in another, or in a process."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from functools import cached_property
from typing import Any

from umbel import signals
from umbel.bell import Bell
from umbel.celery.imports import load_extension_class_names
from umbel.loading import symbol_by_name
from umbel.utils.time import humanize_seconds

logger = logging.getLogger("celery.beat")


class Service:
    """Runs a scheduler: :meth:`start` returns after :meth:`stop`."""

    scheduler_cls: Any = "umbel.celery.shelved:PersistentScheduler"

    def __init__(
        self,
        app: Any,
        max_interval: float | None = None,
        schedule_filename: str | None = None,
        scheduler_cls: Any = None,
        remote_control: bool | None = None,
        hostname: str | None = None,
    ) -> None:
        """``remote_control`` and ``hostname`` are for whoever runs it; see :mod:`umbel.beat.remote`."""
        self.app = app
        self.max_interval = max_interval or app.conf.beat_max_loop_interval
        self.scheduler_cls = scheduler_cls or self.scheduler_cls
        self.schedule_filename = schedule_filename or app.conf.beat_schedule_filename
        self.remote_control = app.conf.beat_enable_remote_control if remote_control is None else remote_control
        self.hostname = hostname
        #: When it last looked, on the monotonic clock; None before the first time.
        self.ticked_at: float | None = None
        self._is_shutdown = Bell()
        self._is_stopped = Bell()

    def start(self, embedded_process: bool = False) -> None:
        """Send what is due until stopped, then keep the schedule."""
        logger.info("beat: Starting...")
        scheduler = self.scheduler
        logger.debug("beat: Ticking with max interval->%s", humanize_seconds(scheduler.max_interval))
        signals.beat_init.send(sender=self)
        if embedded_process:
            signals.beat_embedded_init.send(sender=self)
        self.ticked_at = time.monotonic()
        try:
            while not self._is_shutdown.is_set():
                pause = scheduler.tick()
                self.ticked_at = time.monotonic()
                if pause and pause > 0.0:
                    logger.debug("beat: Waking up %s.", humanize_seconds(pause, prefix="in "))
                    self._is_shutdown.wait(pause)
                    if scheduler.should_sync():
                        scheduler._do_sync()
        except (KeyboardInterrupt, SystemExit):
            self._is_shutdown.set()
        finally:
            self.sync()

    def sync(self) -> None:
        """Keep the schedule and say that it has ended."""
        self.scheduler.close()
        self._is_stopped.set()

    def stop(self, wait: bool = False) -> None:
        """Have :meth:`start` return; with ``wait``, wait for that."""
        if not self._is_shutdown.is_set():
            logger.info("beat: Shutting down...")
        self._is_shutdown.set()
        if wait:
            self._is_stopped.wait()

    def get_scheduler(self, lazy: bool = False, extension_namespace: str = "celery.beat_schedulers") -> Any:
        """Return a new scheduler of the class, which may also be the name of an entry point such as ``django``."""
        found = self.scheduler_cls
        if isinstance(found, str):
            found = symbol_by_name(dict(load_extension_class_names(extension_namespace)).get(found, found))
        options = {"schedule_filename": self.schedule_filename, "max_interval": self.max_interval}
        return found(app=self.app, lazy=lazy, **options)

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler."""
        return self.get_scheduler()

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.app, self.max_interval, self.schedule_filename, self.scheduler_cls)
        return type(self), (*given, self.remote_control, self.hostname)


class _Threaded(threading.Thread):
    """A service in a thread."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(name="Beat", daemon=True)
        self.app = app
        self.service = Service(app, **kwargs)

    def run(self) -> None:
        self.app.set_current()
        self.service.start()

    def stop(self) -> None:
        """Stop it, and wait until it has."""
        self.service.stop(wait=True)


class _Process:
    """A service in a process of its own; to be started by a program that has no other threads."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self.service = Service(app, **kwargs)
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        context: Any = multiprocessing.get_context(method)
        self._process: Any = context.Process(target=self.run, name="Beat", daemon=True)

    def run(self) -> None:
        """Run the service: in the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.service.stop())
        self.app.set_default()
        self.app.set_current()
        self.service.start(embedded_process=True)

    def stop(self) -> None:
        """Have it end."""
        self.service.stop()
        self._process.terminate()

    def __getattr__(self, name: str) -> Any:
        if name == "_process":
            raise AttributeError(name)
        return getattr(self._process, name)


def EmbeddedService(app: Any, max_interval: float | None = None, **kwargs: Any) -> Any:
    """Return a service with ``start`` and ``stop``: a process, or with ``thread=True`` a thread."""
    kwargs.setdefault("remote_control", False)
    if kwargs.pop("thread", False):
        return _Threaded(app, max_interval=1, **kwargs)
    return _Process(app, max_interval=max_interval, **kwargs)
