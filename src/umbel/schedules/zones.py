"""Wall clocks: which instant a local time is, and where a zone's offset changes. All instants are aware, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

#: No zone has had two changes of its offset, there and back, within so short a time.
_STEP: Final = timedelta(days=6)
_SECOND: Final = timedelta(seconds=1)


def utc(moment: datetime) -> datetime:
    """Return an aware moment in UTC. Raises :exc:`ValueError` for a naive one: nobody knows which instant that is."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; give it one, for example moment.replace(tzinfo=timezone.utc)")
    return moment.astimezone(UTC)


def offset(instant: datetime, zone: tzinfo) -> timedelta:
    """Return how far the zone's wall clock is ahead of UTC at an instant."""
    return instant.astimezone(zone).utcoffset() or timedelta()


def wall(instant: datetime, zone: tzinfo) -> datetime:
    """Return what the zone's wall clock shows at an instant, as a naive datetime."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def instant_of(local: datetime, zone: tzinfo) -> datetime:
    """Return the instant at which the zone's wall clock shows a naive time.

    A time that comes twice, when clocks are set back, is the first of the two. One that does not come, when clocks are
    set forward, is the instant of the change: the first one after it that there is.
    """
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if wall(first, zone) == local:
        return first
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return next_change(before, first, zone) or first


def next_change(after: datetime, until: datetime, zone: tzinfo) -> datetime | None:
    """Return the first instant in ``(after, until]`` with another offset than ``after`` has, or None."""
    was = offset(after, zone)
    low = after
    while low < until:
        high = min(low + _STEP, until)
        if offset(high, zone) != was:
            return _narrowed(low, high, was, zone)
        low = high
    return None


def _narrowed(low: datetime, high: datetime, was: timedelta, zone: tzinfo) -> datetime:
    # Zones change on whole seconds, so the search is among these.
    low, high = low.replace(microsecond=0), high.replace(microsecond=0)
    while high - low > _SECOND:
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        if offset(middle, zone) == was:
            low = middle
        else:
            high = middle
    return high
