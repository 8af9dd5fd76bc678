"""A worker and a beat in threads of a program that does something else: ``app.start_background()``."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from umbel.background import Background
from umbel.beat.threads import BeatThread, embedded
from umbel.drivers import mask
from umbel.exceptions import ImproperlyConfigured, OperationalError
from umbel.worker.inprocess import InProcessWorker
from umbel.worker.limits import unenforceable
from umbel.worker.plan import WorkerPlan, make_plan

logger = logging.getLogger("celery.worker")

_GRACE: Final = 1.0  # seconds beyond a timeout, for the thread itself to end
_AT_EXIT: Final = 5.0
_LOOK_EVERY: Final = 0.01


def start(app: Any, *, worker: bool, beat: bool, timeout: float, options: Mapping[str, Any]) -> Background:
    """Start a worker, a beat or both in this process, and return when they work."""
    if not worker and not beat:
        raise ValueError("start_background(worker=False, beat=False) has nothing to start")
    if options and not worker:
        raise TypeError(f"without a worker there are no options, and {', '.join(options)} was given")
    app.import_default_modules()
    app.finalize()
    if not worker:
        app.broker.open()
        alone = embedded(app)
        alone.start()
        return _Threads(None, alone)
    plan = _plan(app, {**options, "beat": beat})
    found = _Threads(InProcessWorker(app, plan, mask(app.urls.read), probed=plan.health_port is not None), None)
    found.start(timeout)
    return found


def _plan(app: Any, options: Mapping[str, Any]) -> WorkerPlan:
    named = {"pool": "threads", "hostname": f"background-{os.getpid()}@%h", **options}
    plan = make_plan(app, named)
    if plan.forks or plan.processes > 1:
        raise ImproperlyConfigured(
            f"start_background works in this process alone, and -P {plan.pool} with {plan.processes} processes does "
            "not; use pool='threads', 'asyncio' or 'solo', or 'umbel worker' for more processes"
        )
    if unkept := unenforceable(app, plan.time_limit, alone=True):
        logger.warning("This worker cannot keep everything: %s", unkept)
    return plan


class _Threads(Background):
    """The threads of this process; a process that was forked from it has none of them, and stops nothing."""

    def __init__(self, worker: InProcessWorker | None, beat: BeatThread | None) -> None:
        self._worker = worker
        self._beat = beat
        self._pid = os.getpid()
        self._error: BaseException | None = None
        # A signal handler may stop what the thread below it is stopping already.
        self._stopping = threading.RLock()
        self._stopped: bool | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="umbel-worker", daemon=True)
        atexit.register(self.stop, _AT_EXIT)

    def start(self, timeout: float) -> None:
        """Start the worker's thread, and wait until it consumes."""
        assert self._worker is not None
        self._thread.start()
        ready = self._worker.ready.wait(timeout)
        if self._error is not None:
            atexit.unregister(self.stop)
            raise self._error
        if not ready:
            self.stop(0.0)
            raise OperationalError(f"the worker did not reach the broker within {timeout:g} s")

    def _work(self) -> None:
        assert self._worker is not None
        try:
            self._worker.run()
        # The wall of the thread: whoever started it is told, or reads it later.
        except BaseException as error:
            self._error = error
            if self._worker.ready.is_set():
                logger.critical("The worker in the background has ended: %r", error, exc_info=True)
            self._worker.ready.set()
        finally:
            self._ended = True

    @property
    def running(self) -> bool:
        """Whether all that was started still runs."""
        if os.getpid() != self._pid or self._stopped is not None:
            return False
        beat = self._beat_thread
        return (self._worker is None or self._thread.is_alive()) and (beat is None or beat.alive)

    @property
    def error(self) -> BaseException | None:
        """What ended a part of it before its time."""
        beat = self._beat_thread
        return self._error or (beat.error if beat is not None else None)

    @property
    def _beat_thread(self) -> BeatThread | None:
        return self._beat if self._worker is None else self._worker.beat

    def stop(self, timeout: float | None = 10.0) -> bool:
        """Stop, and say whether worker and beat have ended."""
        if os.getpid() != self._pid:
            # The lock and the connections are the parent's.
            return True
        if self._worker is not None and self._stopped is None:
            # Not behind the lock: it hastens the stop that another call waits for.
            self._worker.stop(timeout)
        with self._stopping:
            if self._stopped is None:
                self._stopped = self._stop(timeout)
                atexit.unregister(self.stop)
            return self._stopped

    def _stop(self, timeout: float | None) -> bool:
        beat, worker = self._beat, self._worker
        if beat is not None:
            beat.stop()
            return self._wait(lambda: not beat.alive, timeout)
        assert worker is not None
        if self._wait(lambda: self._ended, None if timeout is None else timeout + _GRACE):
            return True
        if self._stopped is not None:
            return self._stopped
        logger.warning("A task still runs after %s s; it is given back and will run again elsewhere.", timeout)
        worker.give_back()
        return False

    def _wait(self, over: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until it is over or another call has stopped everything meanwhile; return whether it is over.

        Not by joining the thread: that takes a lock, which a signal handler could find taken by the thread below it.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not (ended := over()) and self._stopped is None and (until is None or time.monotonic() < until):
            time.sleep(_LOOK_EVERY)
        return ended
