"""Reaching the broker when a worker starts."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from umbel.exceptions import OperationalError
from umbel.interfaces import Broker
from umbel.worker.plan import WorkerPlan

logger = logging.getLogger("celery.worker.consumer")

_STEP = 2.0
_LONGEST = 32.0
_LOOK_EVERY = 2.0  # between two attempts that are told of, so that a server that is back is not left waiting


def connect(app: Any, plan: WorkerPlan, url: str, stopping: threading.Event) -> Broker | None:
    """Return the app's broker, opened, with the worker's queues declared; None if ``stopping`` is set meanwhile.

    Tries again as the settings say, and then raises :exc:`OperationalError`. ``url`` is for the log, masked.
    """
    conf = app.conf
    retry = conf.broker_connection_retry_on_startup
    if retry is None:
        retry = conf.broker_connection_retry
    most = conf.broker_connection_max_retries or 0
    attempt = 0
    while not stopping.is_set():
        try:
            broker = _reach(app, plan)
        except OperationalError as error:
            attempt += 1
            if not retry or (most and attempt > most):
                raise
            pause = min(_STEP * attempt, _LONGEST)
            tries = f"({attempt}/{most})" if most else f"({attempt})"
            text = "consumer: Cannot connect to %s: %s.\nTrying again in %.2f seconds... %s\n"
            logger.error(text, url, error, pause, tries)
            found = _look_for(app, plan, stopping, pause)
            if found is None:
                continue
            broker = found
        logger.info("Connected to %s", url)
        return broker
    return None


def _reach(app: Any, plan: WorkerPlan) -> Broker:
    broker: Broker = app.broker
    broker.open()
    broker.declare(plan.queues)
    return broker


def _look_for(app: Any, plan: WorkerPlan, stopping: threading.Event, seconds: float) -> Broker | None:
    """Wait for so long, looking quietly whether the broker is back; return it, or None."""
    until = time.monotonic() + seconds
    while not stopping.wait(max(0.0, min(_LOOK_EVERY, until - time.monotonic()))) and time.monotonic() < until:
        try:
            return _reach(app, plan)
        except OperationalError:
            pass
    return None
