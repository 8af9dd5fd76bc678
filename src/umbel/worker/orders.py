"""The order sheet: what each process of a worker is told at its start, and again whenever it changes."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from umbel.worker.door import rates_of
from umbel.worker.engine import Engine

logger = logging.getLogger("celery.worker.control")


class Orders(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What differs from the plan by now. Sent whole, so that the latest one says everything."""

    events: bool = False  # whether task events are sent
    pid: int = 0  # of the supervisor, in whose name they are sent
    queues: Sequence[str] | None = None  # None: those of the plan
    rates: Mapping[str, str | float | None] = {}  # task -> rate limit
    limits: Mapping[str, tuple[float | None, float | None]] = {}  # task -> soft and hard time limit in seconds
    concurrency: int | None = None  # of each process; None: that of the plan
    modules: Sequence[str] = ()  # to import before the first task
    reload: bool = False  # those of them that are imported already are imported anew


class Obedience:
    """Carries out orders in one process. ``reporter`` sends its events. Used by one thread at a time."""

    def __init__(self, app: Any, engine: Engine, reporter: Any) -> None:
        self._app = app
        self._engine = engine
        self._reporter = reporter
        self._orders = Orders()
        self._engine.door.limit(rates_of(app, {}))

    def take(self, orders: Orders, *, first: bool = False) -> None:
        """Do what is new in these; ``first`` says that the engine has not started."""
        old, self._orders = self._orders, orders
        engine = self._engine
        if first:
            load(orders.modules, reload=orders.reload)
        if orders.rates != old.rates or first:
            engine.door.limit(rates_of(self._app, orders.rates))
        if orders.limits != old.limits:
            set_limits(self._app, orders.limits)
            engine.forget_limits()
        if orders.queues is not None and orders.queues != old.queues and not first:
            engine.watch(orders.queues)
        if orders.concurrency is not None and orders.concurrency != old.concurrency:
            engine.resize(orders.concurrency)
        self._reporter.report(orders.events, pid=orders.pid)


def set_limits(app: Any, limits: Mapping[str, tuple[float | None, float | None]]) -> None:
    """Give tasks other time limits; those that are not known here are passed over."""
    for name, (soft, hard) in limits.items():
        task = app.tasks.get(name)
        if task is not None:
            task.soft_time_limit, task.time_limit = soft, hard


def load(modules: Sequence[str], *, reload: bool) -> None:
    """Import modules that a restart of the pool named. One that cannot be imported is told of and left out."""
    for name in modules:
        # The outer wall around a user's module.
        try:
            if reload and name in sys.modules:
                importlib.reload(sys.modules[name])
            else:
                importlib.import_module(name)
        except Exception:
            logger.exception("Module %s cannot be imported", name)
