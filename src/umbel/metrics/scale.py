"""How many workers a backlog needs: the numbers for KEDA's ``metrics-api`` scaler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.metrics.survey import QueueLook

SCHEMA: Final = "umbel.scale/1"
#: Seconds that a task is taken to run while none was heard of.
ASSUMED: Final = 1.0
_NUMBERS: Final = ("target", "concurrency", "runtime")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What an autoscaler asks: the queues, in how many seconds they are to be empty, and tasks at once per worker."""

    queues: tuple[str, ...]
    target: float = 60.0
    concurrency: float = 1.0
    runtime: float | None = None


def question_of(query: Mapping[str, Sequence[str]], queues: Sequence[str]) -> Question:
    """Read a query string; ``queues`` are those that there are. Raises ``ValueError`` saying what is wrong with it."""
    unknown = sorted(query.keys() - {"queue", *_NUMBERS})
    if unknown:
        raise ValueError(f"unknown parameter {unknown[0]!r}; there are queue, {', '.join(_NUMBERS)}")
    wanted = tuple(dict.fromkeys(query.get("queue") or queues))
    for name in wanted:
        if name not in queues:
            raise ValueError(f"unknown queue {name!r}; there are {', '.join(queues)}")
    numbers: dict[str, float] = {}
    for name in _NUMBERS:
        for text in query.get(name, ()):
            try:
                numbers[name] = float(text)
            except ValueError:
                numbers[name] = 0.0
            if not 0 < numbers[name] < math.inf:
                raise ValueError(f"{name}={text}: give a number above 0")
    return Question(queues=wanted, **numbers)


def answer(question: Question, looks: Sequence[QueueLook], mean_run: float | None) -> dict[str, Any]:
    """Return how much there is to do, and how many workers do it in time: of a paused queue, what is held alone.

    ``mean_run`` (seconds) is how long tasks of these queues ran of late, None if that is not known.
    """
    chosen = [look for look in looks if look.name in question.queues]
    backlog = sum(look.ready for look in chosen)
    held = sum(look.unacked or 0 for look in chosen)
    oldest = [look.oldest for look in chosen if look.oldest is not None]
    seconds = question.runtime or mean_run or ASSUMED
    wanted = held + sum(look.ready for look in chosen if not look.paused)
    return {
        "schema": SCHEMA,
        "queues": list(question.queues),
        "backlog": backlog,
        "unacked": held,
        "scheduled": sum(look.scheduled or 0 for look in chosen),
        "oldest_seconds": max(oldest) if oldest else None,
        "runtime_seconds": mean_run,
        "paused": [look.name for look in chosen if look.paused],
        "desired_workers": math.ceil(wanted * seconds / (question.target * question.concurrency)),
    }
