"""``celery.utils.timer2``, and the ``timer`` of a worker: functions that are called later, in a thread."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

logger = logging.getLogger("celery.worker")


def to_timestamp(d: Any, default_timezone: Any = None, time: Callable[[], float] = time.monotonic) -> float | None:
    """Return a moment as seconds of the timer's clock; a number as it is."""
    if not isinstance(d, datetime):
        return d if d is None else float(d)
    from umbel.celery.times import maybe_make_aware
    from umbel.clock import SYSTEM_CLOCK

    return (maybe_make_aware(d, default_timezone) - SYSTEM_CLOCK.now()).total_seconds() + time()


class Entry:
    """A call that is made later. ``cancel`` takes it back."""

    def __init__(self, fun: Callable[..., Any], args: Any = None, kwargs: Any = None) -> None:
        self.fun, self.args, self.kwargs = fun, args or (), kwargs or {}
        self.canceled = False
        self.every: float | None = None
        self.tref = self

    @property
    def cancelled(self) -> bool:
        """Whether it was taken back."""
        return self.canceled

    def __call__(self) -> Any:
        return self.fun(*self.args, **self.kwargs)

    def cancel(self) -> None:
        """Take it back; nothing happens if it was made already."""
        self.canceled = True


class Timer:
    """Makes calls when they are due, one after another in one thread, which is started by the first."""

    def __init__(self, *args: Any, on_error: Callable[[BaseException], Any] | None = None, **kwargs: Any) -> None:
        self._on_error = on_error
        self._heap: list[tuple[float, int, Entry]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def call_at(
        self, eta: Any, fun: Callable[..., Any], args: Any = (), kwargs: Any = None, priority: int = 0
    ) -> Entry:
        """Call a function at a moment, or at a time of the monotonic clock."""
        return self.enter_at(Entry(fun, args, kwargs), eta)

    def call_after(
        self, secs: float, fun: Callable[..., Any], args: Any = (), kwargs: Any = None, priority: int = 0
    ) -> Entry:
        """Call a function after some seconds."""
        return self.enter_after(secs, Entry(fun, args, kwargs))

    apply_after = call_after

    def call_repeatedly(
        self, secs: float, fun: Callable[..., Any], args: Any = (), kwargs: Any = None, priority: int = 0
    ) -> Entry:
        """Call a function every so many seconds until the entry is cancelled; what it raises is logged."""
        entry = Entry(fun, args, kwargs)
        entry.every = secs
        return self.enter_after(secs, entry)

    def enter_at(self, entry: Entry, eta: Any = None, priority: int = 0) -> Entry:
        """Add a call."""
        due = to_timestamp(eta) if eta is not None else time.monotonic()
        assert due is not None
        with self._changed:
            heapq.heappush(self._heap, (due, next(self._count), entry))
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="umbel-timer", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return entry

    def enter_after(self, secs: float, entry: Entry, priority: int = 0, time: Any = time.monotonic) -> Entry:
        """Add a call that is due after some seconds."""
        return self.enter_at(entry, time() + secs)

    def cancel(self, tref: Any) -> None:
        """Take a call back."""
        tref.cancel()

    def clear(self) -> None:
        """Take all calls back."""
        with self._changed:
            self._heap.clear()

    def ensure_started(self) -> None:
        """Do nothing: the thread starts with the first call."""

    def stop(self) -> None:
        """End the thread once the call that runs has ended; later calls are not made."""
        with self._changed:
            self._stopped = True
            self._heap.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._stopped:
                    return
                entry = heapq.heappop(self._heap)[2]
            if entry.canceled:
                continue
            try:
                entry()
            except Exception as error:  # the caller's own code runs here
                if self._on_error is not None:
                    self._on_error(error)
                else:
                    logger.error("Error in timer: %r", error, exc_info=True)
            if entry.every is not None and not entry.canceled and not self._stopped:
                self.enter_after(entry.every, entry)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._heap)
