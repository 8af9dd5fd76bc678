"""The door before the user's code: what may not start now, because it was revoked or its task is limited."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from umbel.interfaces import Delay, Execution, Settlement
from umbel.revoking import RevokedTasks
from umbel.utils.rates import per_second
from umbel.worker.revoked import discarded
from umbel.worker.shared import Shared
from umbel.worker.verdicts import Condemned

logger = logging.getLogger("celery.worker.strategy")


class Door:
    """Belongs to one engine. ``watched`` says whether there is anything to ask :meth:`stop` about.

    The setters may be called from any thread: what they set is replaced, never changed.
    """

    def __init__(self, runner: Any, shared: Shared | None = None, rates: Mapping[str, float] | None = None) -> None:
        """``rates`` are starts per second by the name of the task."""
        self._runner = runner
        self._shared = shared
        self._revoked = RevokedTasks()
        self._rates: Mapping[str, float] = rates or {}
        self.watched = bool(self._rates)

    def revoke(self, revoked: RevokedTasks) -> None:
        """Let none of these pass."""
        self._revoked = revoked
        self.watched = bool(revoked or self._rates)

    def limit(self, rates: Mapping[str, float]) -> None:
        """Let these tasks pass so many times a second, and all others always."""
        self._rates = rates
        self.watched = bool(self._revoked or rates)

    def stop(self, execution: Execution) -> Settlement | None:
        """Return the ending of an execution that may not start, or None if it may."""
        call = execution.call
        if self._revoked and self._revoked.meets(call.id, call.headers.get("stamps")):
            return discarded(self._runner, execution)
        rate = self._rates.get(call.task)
        # What a verdict has ended only has to be told of.
        if not rate or self._shared is None or type(execution) is Condemned:
            return None
        moment = self._shared.take(call.task, rate, time.time())
        if not moment:
            return None
        logger.debug("Task %s[%s] waits for its rate limit", call.task, call.id)
        return Settlement(delivery=execution.delivery, how=Delay(datetime.fromtimestamp(moment, UTC)))


def rates_of(app: Any, changed: Mapping[str, Any]) -> dict[str, float]:
    """Return how often each limited task may start in a second: as its class says, or as was ``changed`` since.

    A rate that cannot be read is no limit, and is told of once.
    """
    if app.conf.worker_disable_rate_limits:
        return {}
    found = {}
    for name, task in app.tasks.items():
        given = changed.get(name, task.rate_limit)
        if not given:
            continue
        try:
            rate = per_second(given)
        except ValueError as error:
            logger.error("Task %s has no rate limit: %s", name, error)
            continue
        if rate:
            found[name] = rate
    return found
