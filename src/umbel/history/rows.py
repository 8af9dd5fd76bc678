"""What the history keeps of a task, as values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from umbel import states

#: How a happening ends an attempt, by its kind.
ENDS: Final = {
    "succeeded": states.SUCCESS,
    "failed": states.FAILURE,
    "retried": states.RETRY,
    "revoked": states.REVOKED,
    "rejected": states.REJECTED,
}
#: The state of an attempt whose worker told of no end before the task was delivered again.
LOST: Final = "LOST"
_CONFIRMING: Final = 5.0


class TaskRow(msgspec.Struct, kw_only=True):
    """One task as it was heard of. Moments are seconds since the epoch; what was not told is None.

    ``number`` grows with every task and is never used again. ``exception`` and ``fingerprint`` are those of the latest
    failure or retry, until the task has succeeded. ``ahead`` is what follows the task, as JSON, and ``workflow`` the
    number of the workflow that it is a part of. ``replay`` is the id of the task that was sent in its place.
    """

    number: int
    id: str
    name: str
    state: str
    at: float
    heard: float
    told: int = 0
    queue: str | None = None
    worker: str | None = None
    client: str | None = None
    args: str | None = None
    kwargs: str | None = None
    result: str | None = None
    exception: str | None = None
    fingerprint: str | None = None
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    runtime: float | None = None
    retries: int | None = None
    eta: str | None = None
    expires: str | None = None
    root: str | None = None
    parent: str | None = None
    group_id: str | None = None
    ahead: str | None = None
    workflow: int | None = None
    replay: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it has ended."""
        return self.state in states.READY_STATES

    @property
    def waited(self) -> float | None:
        """Seconds between the sending, or the receiving where nobody told of that, and the latest start."""
        since = self.sent if self.sent is not None else self.received
        return None if since is None or self.started is None else max(0.0, self.started - since)


COLUMNS: Final = TaskRow.__struct_fields__


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was told of a task: ``kind`` is ``sent``, ``received``, ``started``, ``succeeded`` and so on."""

    at: float
    kind: str
    worker: str
    detail: str | None = None  # the exception, the result, or what else belongs to the kind
    traceback: str | None = None
    runtime: float | None = None


class Attempt(msgspec.Struct, kw_only=True):
    """One run of a task, from its delivery to its end. ``state`` is empty while it goes on."""

    number: int
    worker: str
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    state: str = ""
    runtime: float | None = None
    exception: str | None = None
    traceback: str | None = None


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failures that look alike: the type, what of the message does not vary, and where it was raised.

    ``count`` counts every failure and retry, also of tasks that are forgotten by now; ``task``, ``exception`` and
    ``traceback`` are of the latest.
    """

    fingerprint: str
    type: str
    message: str
    frame: str
    count: int
    first: float
    latest: float
    task: str
    name: str
    exception: str
    traceback: str | None = None


class TaskPage(msgspec.Struct, frozen=True):
    """A part of a list, the latest first; ``next`` asks for what follows, 0: that was all.

    Where much had to be looked through to find little it may hold fewer than were asked for, and none at all.
    """

    tasks: Sequence[TaskRow]
    next: int = 0


def told_in_order(happenings: list[Happening]) -> list[Happening]:
    """Put the first sending first: a client says so when the broker has confirmed, and a worker may be faster."""
    for at, each in enumerate(happenings):
        if each.kind == "sent":
            if each.at - happenings[0].at < _CONFIRMING:
                happenings.insert(0, happenings.pop(at))
            break
    return happenings


def attempts_of(happenings: Iterable[Happening]) -> list[Attempt]:
    """Return the runs that these happenings, in the order of time, tell of."""
    found: list[Attempt] = []
    for each in happenings:
        now = found[-1] if found and not found[-1].state else None
        if each.kind == "sent":
            continue
        if each.kind == "received" or (each.kind == "started" and (now is None or now.started is not None)):
            if now is not None:
                now.state = LOST
            now = Attempt(number=len(found) + 1, worker=each.worker)
            found.append(now)
        if now is None:
            # The end of something whose beginning nobody heard.
            if each.kind not in ENDS:
                continue
            now = Attempt(number=len(found) + 1, worker=each.worker)
            found.append(now)
        _learn(now, each)
    return found


def _learn(attempt: Attempt, each: Happening) -> None:
    if each.kind == "received":
        attempt.received = each.at
    elif each.kind == "started":
        attempt.started, attempt.worker = each.at, each.worker
    elif each.kind in ENDS:
        attempt.state, attempt.ended, attempt.runtime = ENDS[each.kind], each.at, each.runtime
        if each.kind in ("failed", "retried"):
            attempt.exception, attempt.traceback = each.detail, each.traceback
        if attempt.runtime is None and attempt.started is not None:
            attempt.runtime = max(0.0, each.at - attempt.started)


def as_row(values: Sequence[Any]) -> TaskRow:
    """Return the row of a task from its columns, in the order of :data:`COLUMNS`."""
    return TaskRow(**dict(zip(COLUMNS, values, strict=True)))
