"""How fast messages come into queues and leave them, by the events of clients and workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from umbel.dashboard.measures import Rates
from umbel.metrics.labels import OTHER, Labels
from umbel.metrics.tally import Tally, Told

_MOST_QUEUES: Final = 200


class Flow:
    """Counts what was sent to each queue and what was started from it. :meth:`heard` is for one thread.

    Clients tell of what they send only where ``task_send_sent_event`` is on; a queue that nobody told of has no rate.
    """

    def __init__(self, app: Any) -> None:
        specs = app.queues(None)
        led = Counter((spec.exchange, spec.routing_key) for spec in specs)
        routes = {("", spec.name): spec.name for spec in specs}
        # What leads to several queues names none of them.
        routes.update({to: spec.name for spec in specs if led[to := (spec.exchange, spec.routing_key)] == 1})
        self._queues = Labels([spec.name for spec in specs], limit=_MOST_QUEUES)
        self._tally = Tally(Labels(limit=0), self._queues, routes, [self._told])
        self._rates: dict[str, Rates] = {}
        self._known: set[tuple[str, str]] = set()

    def heard(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        self._queues.learn(event.get("queue"))
        self._tally.event(event)

    def _told(self, told: Told) -> None:
        if told.queue != OTHER and told.what in ("sent", "started"):
            self._known.add((told.queue, told.what))
            self._rates.setdefault(told.queue, Rates()).count(told.what, time.time())

    def per_second(self, queue: str) -> tuple[float | None, float | None]:
        """Return how many messages come in and leave a second; None where nobody ever told."""
        rates = self._rates.get(queue)
        if rates is None:
            return None, None
        into = rates.per_second("sent") if (queue, "sent") in self._known else None
        return into, rates.per_second("started") if (queue, "started") in self._known else None
