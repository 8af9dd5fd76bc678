"""Choosing how many processes a worker has, between ``--autoscale`` max and min."""

from __future__ import annotations

import logging
import os

from umbel.worker.desk import Desk

logger = logging.getLogger("celery.worker.autoscale")

_LOOK_EVERY = 1.0


class Autoscaler:
    """Adds processes while all are busy and messages wait, and takes away what was not needed for a while.

    ``AUTOSCALE_KEEPALIVE`` in the environment says for how many seconds (30). Used by one thread.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._next = 0.0
        self._keepalive = float(os.environ.get("AUTOSCALE_KEEPALIVE") or 30.0)
        self._needed_at = 0.0  # when all were last seen to be needed

    def tend(self, now: float) -> None:
        """Look once a second, and scale. ``now`` is monotonic seconds."""
        desk = self._desk
        if desk.autoscale is None or now < self._next:
            return
        if not self._next:
            self._needed_at = now
        self._next = now + _LOOK_EVERY
        most, least = desk.autoscale
        size, busy = desk.size, desk.busy
        if busy >= size:
            self._needed_at = now
            if size < most:
                self._grow(most - size)
        elif now - self._needed_at >= self._keepalive and least < most:
            # A process is idle for a moment between two short tasks, so that all at once are never seen to be busy.
            if self._grow(most - size) or size <= least:
                self._needed_at = now
            else:
                self._scale(max(least, busy) - size)

    def _grow(self, room: int) -> int:
        """Add a process for each message that waits, where there is room; return how many wait."""
        desk = self._desk
        names = [queue.name for queue in desk.queues if queue.name not in desk.paused]
        waiting: int = sum(desk.app.broker.size(name) for name in names)
        if waiting and room > 0:
            self._scale(min(waiting, room))
        return waiting

    def _scale(self, by: int) -> None:
        logger.info("Scaling %s %d processes.", "up" if by > 0 else "down", abs(by))
        self._desk.change(lambda: self._desk.resize(by))
