"""What has to be asked for: how workers are made and what they run now, and which queues are paused."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from umbel.dashboard.live import Live
from umbel.exceptions import CeleryError

logger = logging.getLogger("umbel.top")

#: Seconds that workers have to reply.
_PATIENCE: Final = 1.0
_MADE_EVERY: Final = 15.0
_MOST_WORKERS: Final = 200
_MOST_TASKS: Final = 500
_END_OF_TIME: Final = 2.5e11  # seconds since the epoch; a date has no later one


class Made(msgspec.Struct, frozen=True):
    """How a worker runs tasks, and how many at once."""

    pool: str
    slots: int | None


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a worker says it runs. ``since`` is in seconds since the epoch."""

    id: str
    name: str
    worker: str
    since: float | None
    args: str
    kwargs: str


class Crew:
    """Asks the workers that are alive every so many seconds, in a thread of its own. Read from any thread."""

    def __init__(self, app: Any, live: Live, *, every: float) -> None:
        self._app = app
        self._live = live
        self.every = every
        #: By worker; those that did not reply the last time are not in it.
        self.running: dict[str, list[Running]] = {}
        self.made: dict[str, Made] = {}
        self.paused: Collection[str] = ()
        #: Nobody is asked while this is set.
        self.resting = threading.Event()
        self._made_at = float("-inf")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="umbel-top-ask", daemon=True)

    def start(self) -> None:
        """Begin to ask. To be called once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. A second call does nothing."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _ask_on(self) -> None:
        while not self._stopped.is_set():
            if not self.resting.is_set():
                try:
                    self.paused = self._app.queues.paused().keys()
                    self._ask(sorted(self._live.alive)[:_MOST_WORKERS])
                except CeleryError as error:
                    self.running = {}
                    logger.debug("Workers could not be asked: %s", error)
                # The outer wall of this thread: replies come from strangers.
                except Exception:
                    logger.exception("A reply could not be read")
            self._stopped.wait(self.every)

    def _ask(self, alive: Sequence[str]) -> None:
        if not alive:
            self.running = {}
            return
        found = self._inspect(alive).active(safe=True) or {}
        self.running = {node: [running_of(node, each) for each in _dicts(told)] for node, told in found.items()}
        if time.monotonic() - self._made_at >= _MADE_EVERY or not self.made.keys() >= set(alive):
            self._made_at = time.monotonic()
            told = self._inspect(alive).stats() or {}
            self.made = {**self.made, **{node: made_of(each) for node, each in told.items() if isinstance(each, dict)}}

    def _inspect(self, nodes: Sequence[str]) -> Any:
        # Named, so that it need not wait for others once these have replied.
        return self._app.control.inspect(destination=nodes, timeout=_PATIENCE)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value[:_MOST_TASKS] if isinstance(each, dict)] if isinstance(value, list) else []


def running_of(node: str, told: dict[str, Any]) -> Running:
    """Return what a worker tells of a task that it runs, as far as it makes sense."""
    since = told.get("time_start")
    return Running(
        id=str(told.get("id") or ""),
        name=str(told.get("name") or ""),
        worker=node,
        since=moment_of(since),
        args=str(told.get("args") or ""),
        kwargs=str(told.get("kwargs") or ""),
    )


def moment_of(value: Any) -> float | None:
    """Return seconds, or seconds since the epoch, as far as they make sense."""
    return float(value) if isinstance(value, int | float) and abs(value) < _END_OF_TIME else None


def made_of(stats: dict[str, Any]) -> Made:
    """Return how a worker says that it is made, as far as it makes sense."""
    given = stats.get("pool")
    pool: dict[str, Any] = given if isinstance(given, dict) else {}
    size = pool.get("max-concurrency")
    # Ours say "umbel.worker:prefork", and Celery's "celery.concurrency.prefork:TaskPool".
    module, _, name = str(pool.get("implementation") or "").partition(":")
    kind = module.rpartition(".")[2] if name == "TaskPool" else name
    return Made(kind, size if type(size) is int else None)
