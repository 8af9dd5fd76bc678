"""What happens to a schedule's local times when clocks change, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Final

from umbel.schedules.base import BaseSchedule, Bounded, Jittered, _Compound
from umbel.schedules.cron import crontab
from umbel.schedules.zones import next_change, offset, utc, wall

_MOST: Final = 6  # times that one note names
_TICK: Final = timedelta(microseconds=1)
#: How long before a time a change of the clocks may lie that has something to do with it.
_NEAR: Final = timedelta(hours=25)


def notes(what: BaseSchedule, due: datetime, *, zone: tzinfo, after: datetime | None = None) -> list[str]:
    """Return what there is to say about one time of a schedule, if clocks change at it or shortly before.

    ``after`` is the time before it; changes of the clocks up to there were told with that one.
    """
    due = utc(due)
    since = max(due - _NEAR, utc(after)) if after is not None else due - _NEAR
    found: list[str] = []
    for cron in _crontabs(what):
        local = cron.local_zone(zone)
        start = due - _NEAR
        while (change := next_change(start, due + _NEAR, local)) is not None:
            text = _about(cron, change, due, since, local)
            if text and text not in found:
                found.append(text)
            start = change
    return found


def _crontabs(what: BaseSchedule) -> Iterator[crontab]:
    """Yield the parts of a schedule that name local times."""
    if isinstance(what, crontab):
        yield what
    elif isinstance(what, Bounded | Jittered):
        yield from _crontabs(what.inner)
    elif isinstance(what, _Compound):
        for part in what.parts:
            yield from _crontabs(part)


def _about(cron: crontab, change: datetime, due: datetime, since: datetime, zone: tzinfo) -> str | None:
    before, after = offset(change - _TICK, zone), offset(change, zone)
    shows, instead = (change + before).replace(tzinfo=None), (change + after).replace(tzinfo=None)
    if after > before:
        # The clock goes from `shows` to `instead`, and what lies between does not come.
        missing = list(cron.local_times(shows, instead))
        if not missing or not since < change <= due:
            return None
        how = "left out" if cron.follows_clock else f"sent at {instead:%H:%M}"
        verb = "does" if len(missing) == 1 else "do"
        return f"{_list(missing)} {verb} not exist on {shows:%Y-%m-%d} (clocks go forward {shows:%H:%M}): {how}"
    # The clock goes back from `shows` to `instead`, and what lies between comes twice.
    local = wall(due, zone)
    if not instead <= local < shows or not change - (before - after) <= due < change + (before - after):
        return None
    if not cron.follows_clock:
        return f"{local:%H:%M} comes twice on {local:%Y-%m-%d} (clocks go back {shows:%H:%M}): sent the first time only"
    which = "first" if due < change else "second"
    return f"{local:%H:%M} comes twice on {local:%Y-%m-%d} (clocks go back {shows:%H:%M}): this is the {which} time"


def _list(times: list[datetime]) -> str:
    text = ", ".join(f"{each:%H:%M}" for each in times[:_MOST])
    return f"{text} …" if len(times) > _MOST else text
