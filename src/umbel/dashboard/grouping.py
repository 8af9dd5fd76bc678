"""Failures that have one cause, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from umbel.dashboard.live import Failure

_SAMPLES: Final = 20


class Cause(msgspec.Struct, kw_only=True):
    """Failures of one cause. ``samples`` are the latest, the newest first; moments are seconds since the epoch."""

    id: str
    type: str
    message: str
    frame: str
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    tasks: list[str] = msgspec.field(default_factory=list)
    workers: list[str] = msgspec.field(default_factory=list)
    samples: list[Failure] = msgspec.field(default_factory=list)

    @property
    def title(self) -> str:
        """The type and the message on one line."""
        return f"{self.type}: {self.message}" if self.message else self.type


def group(failures: Iterable[Failure]) -> list[Cause]:
    """Return the causes of these failures, the one that struck last first."""
    found: dict[str, Cause] = {}
    for failure in failures:
        cause = failure.cause
        each = found.get(cause.key)
        if each is None:
            each = found[cause.key] = Cause(
                id=cause.key, type=cause.type, message=cause.message, frame=cause.frame, first=failure.at
            )
        each.count += 1
        each.first, each.last = min(each.first, failure.at), max(each.last, failure.at)
        for known, name in ((each.tasks, failure.task), (each.workers, failure.worker)):
            if name not in known:
                known.append(name)
        each.samples.insert(0, failure)
        del each.samples[_SAMPLES:]
    return sorted(found.values(), key=lambda each: each.last, reverse=True)
