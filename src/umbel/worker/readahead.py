"""How far a process may read ahead: as many messages as ten milliseconds of work need."""

from __future__ import annotations

WORK_AHEAD = 0.010
MOST = 256
FORGET_AFTER = 1000


class ReadAhead:
    """Learns how long each task name takes and says how many messages to reserve next.

    No-ops are read 256 at a time and minute-long tasks one at a time. A name that was never seen counts as slow:
    until it has run once, what is read behind it could wait for it.
    """

    __slots__ = ("_limit", "_seen", "_times")

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._times: dict[str, float] = {}
        self._seen = 0

    def want(self) -> int:
        """Return how many messages to reserve in the next trip."""
        slowest = max(self._times.values(), default=WORK_AHEAD)
        wanted = MOST if slowest * MOST <= WORK_AHEAD else max(1, int(WORK_AHEAD / slowest))
        return wanted if self._limit is None else max(1, min(wanted, self._limit))

    def saw(self, name: str, runtime: float) -> None:
        """Learn from one run (seconds). Slower counts at once, faster little by little."""
        known = self._times.get(name)
        self._times[name] = runtime if known is None or runtime >= known else known * 0.8 + runtime * 0.2
        self._seen += 1
        if self._seen >= FORGET_AFTER:
            # A slow task that nobody sends any more must not keep the others single-file for ever.
            self._seen = 0
            self._times = {name: self._times[name]}

    def slow(self, name: str) -> bool:
        """Say whether a task is known, or must be feared, to take longer than what is read ahead at once."""
        return self._times.get(name, FORGET_AFTER) > WORK_AHEAD
