"""The week of a periodic task, hour by hour, and how late its latest sendings were: what two small drawings show."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

import msgspec

from umbel.periodic.table import Fired, Line
from umbel.schedules import BaseSchedule

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: Times of one hour that are counted; more look no different.
MOST: Final = 12
_SHADES: Final = (1, 2, 4, 8)  # the first shade that is darker begins after so many
_PATIENCE: Final = 1.0  # seconds for looking at a schedule of a user's own
_HOUR: Final = timedelta(hours=1)
_TICK: Final = timedelta(microseconds=1)
_WIDTH: Final = 240
_HEIGHT: Final = 40

Coming = tuple[tuple[int, ...], ...]


class Cell(msgspec.Struct, frozen=True):
    """One hour of the week: how many times are to come in the next seven days, and how many of the latest were."""

    coming: int
    sent: int

    @property
    def shade(self) -> int:
        """How dark it is, from 0 to 5."""
        return sum(self.coming > each for each in (0, *_SHADES))

    @property
    def text(self) -> str:
        """What it says."""
        more = f"{MOST} or more" if self.coming >= MOST else str(self.coming)
        return f"{more} to come" + (f", {self.sent} sent lately" if self.sent else "")


class Week(msgspec.Struct, frozen=True, kw_only=True):
    """Seven days of 24 hours; ``cut``: it took too long to look at all of the coming ones."""

    days: Sequence[Sequence[Cell]]
    cut: bool

    @property
    def text(self) -> str:
        """What it shows, in a sentence."""
        cells = [cell for day in self.days for cell in day]
        hours, sent = sum(cell.coming > 0 for cell in cells), sum(cell.sent for cell in cells)
        return f"Of the 168 hours of the week {hours} have a time to come; {sent} of the latest sendings are marked"

    @property
    def lines(self) -> Sequence[tuple[str, str]]:
        """Return each day that has something, and what: ``("Mon", "02: 1 to come; 03–05: 2 to come")``."""
        return [(name, text) for name, day in zip(DAYS, self.days, strict=True) if (text := _in_words(day))]


class Bar(msgspec.Struct, frozen=True):
    """One sending as a bar of a drawing."""

    x: float
    y: float
    width: float
    height: float
    fired: Fired
    late: float  # seconds


class Lateness(msgspec.Struct, frozen=True, kw_only=True):
    """How late the latest sendings were, the oldest first, in seconds."""

    bars: Sequence[Bar]
    most: float
    median: float
    width: int = _WIDTH
    height: int = _HEIGHT


def week_of(line: Line, zone: tzinfo, now: datetime) -> Week:
    """Return the week of an entry in its own zone; ``zone`` is that of entries without one.

    What a schedule of a user's own raises comes through.
    """
    what, shown = line.schedule, line.schedule.local_zone(zone)
    hour = now.astimezone(shown).replace(minute=0, second=0, microsecond=0).astimezone(UTC)
    key = (line.entry.name, line.entry.fingerprint, line.record.anchor, hour, str(zone))
    coming, cut = _coming(_Asked(key, what, zone)) if line.entry.enabled else (((0,) * 24,) * 7, False)
    sent = [[0] * 24 for _ in DAYS]
    for fired in line.record.history:
        if fired.task_id:
            local = datetime.fromtimestamp(fired.at, shown)
            sent[local.weekday()][local.hour] += 1
    days = [[Cell(*both) for both in zip(*each, strict=True)] for each in zip(coming, sent, strict=True)]
    return Week(days=days, cut=cut)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A schedule and the hour from which on it is looked at; two are the same by their key."""

    key: tuple[str, str, float, datetime, str]
    what: BaseSchedule = dataclasses.field(compare=False)
    zone: tzinfo = dataclasses.field(compare=False)


# A page that is looked at is made every few seconds, and this changes once an hour.
@functools.lru_cache(maxsize=64)
def _coming(asked: _Asked) -> tuple[Coming, bool]:
    """Count the times of seven days from an hour on, by weekday and hour; say whether that was cut off."""
    found = [[0] * 24 for _ in DAYS]
    start, until = asked.key[3], time.monotonic() + _PATIENCE
    shown = asked.what.local_zone(asked.zone)
    end = start + timedelta(days=7)
    while start < end and time.monotonic() < until:
        due, left = asked.what.next_after(start - _TICK, zone=asked.zone), MOST
        while due is not None and due < start + _HOUR and left:
            local = due.astimezone(shown)
            found[local.weekday()][local.hour] = min(found[local.weekday()][local.hour] + 1, MOST)
            due, left = asked.what.next_after(due, zone=asked.zone), left - 1
        # On to the hour of the next one: most schedules have few.
        start = end if due is None else start + max(_HOUR, (due - start) // _HOUR * _HOUR)
    return tuple(map(tuple, found)), start < end


def _in_words(day: Sequence[Cell]) -> str:
    parts, first = [], 0
    for hour in range(1, 25):
        if hour < 24 and day[hour] == day[first]:
            continue
        if day[first].coming or day[first].sent:
            span = f"{first:02}" if hour - 1 == first else f"{first:02}–{hour - 1:02}"
            parts.append(f"{span}: {day[first].text}")
        first = hour
    return "; ".join(parts)


def lateness_of(history: Sequence[Fired]) -> Lateness | None:
    """Return how late the sendings of a history were that beat made; None where there are none."""
    sent = [each for each in history if each.task_id and not each.note]
    if not sent:
        return None
    late = [max(each.at - each.due, 0.0) for each in sent]
    most, step = max(late), _WIDTH / max(len(sent), 10)
    bars = []
    for at, (each, seconds) in enumerate(zip(sent, late, strict=True)):
        # One that was in time shows as a line on the ground.
        height = 2 + (_HEIGHT - 2) * seconds / most if most > 0 else 2.0
        bars.append(
            Bar(round(at * step, 1), round(_HEIGHT - height, 1), round(step - 2, 1), round(height, 1), each, seconds)
        )
    return Lateness(bars=bars, most=most, median=statistics.median(late))
