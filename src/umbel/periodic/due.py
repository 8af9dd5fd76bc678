"""Which times of a schedule have come, and which of those are still worth sending."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Final

from umbel.periodic.entry import Entry
from umbel.schedules import BaseSchedule

#: A time that passed no longer ago than this was not missed: another beat may have had to take over.
TAKE_OVER: Final = timedelta(seconds=20)
#: How many times of one entry are sent in one go; the rest follows at once.
MOST: Final = 100
_TICK: Final = timedelta(microseconds=1)


def due_times(
    entry: Entry, what: BaseSchedule, through: datetime, now: datetime, zone: tzinfo
) -> tuple[list[datetime], datetime]:
    """Return the times of an entry to be sent now, in order, and the moment through which all is then done with.

    ``what`` is the entry's schedule with its anchor, and ``through`` the moment up to which it was done before. If any
    time has come since then, the second of what is returned is later than ``through``. What a schedule of a user's own
    raises comes through.
    """
    # From where it was left: the times of such a schedule may depend on that, and not lie on a grid.
    first = _next(what, through, now, zone)
    if first is None or first > now:
        return [], through
    since = _worth_sending_after(entry, first, now)
    if since is None:
        return _from(first, what, now, zone)
    due = _next(what, since, now, zone)
    if due is not None and due <= now:
        return _from(due, what, now, zone)
    missed = first if what.asks_clock else (latest(what, through, since, zone) or first)
    late = entry.deadline is not None and now - missed > timedelta(seconds=entry.deadline)
    return ([missed] if entry.catch_up == "last" and not late else []), missed


def _worth_sending_after(entry: Entry, first: datetime, now: datetime) -> datetime | None:
    """Return the moment up to which all was missed; None if nothing was, or if all that was missed is to be sent."""
    if entry.catch_up != "all":
        return None if now - first <= TAKE_OVER else now - TAKE_OVER
    if entry.deadline is None:
        return None
    earliest = now - timedelta(seconds=entry.deadline)
    return None if first >= earliest else earliest - _TICK


def _from(first: datetime, what: BaseSchedule, now: datetime, zone: tzinfo) -> tuple[list[datetime], datetime]:
    found: list[datetime] = []
    due: datetime | None = first
    while due is not None and due <= now and len(found) < MOST:
        found.append(due)
        due = _next(what, due, now, zone)
    return found, found[-1]


def _next(what: BaseSchedule, moment: datetime, now: datetime, zone: tzinfo) -> datetime | None:
    """Return the first time after a moment. Raises :exc:`ValueError` for one that is not after it."""
    due = what.next_after(moment, zone=zone)
    if due is None:
        return None
    if what.asks_clock:
        # It has looked at the clock a little later than the caller, and means that it is due now.
        due = now if now < due <= what.present() else due
        return due if due > moment else None
    if due <= moment:
        raise ValueError(f"next_after of {what!r} returned {due}, which is not after {moment}")
    return due


def latest(what: BaseSchedule, after: datetime, until: datetime, zone: tzinfo) -> datetime | None:
    """Return the last time in ``(after, until]``, or None; without looking at all those before it."""
    span = timedelta(minutes=1)
    while True:
        start = max(after, until - span)
        due = _next(what, start, until, zone)
        if due is not None and due <= until:
            break
        if start == after:
            return None
        span *= 4
    while True:
        following = _next(what, due, until, zone)
        if following is None or following > until:
            return due
        due = following
