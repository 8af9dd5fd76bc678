"""At these minutes, hours and days.

When clocks change
------------------
A crontab whose minute or hour begins with ``*`` follows the clock: it is due in every minute that the wall clock
shows, so twice in the hour that comes twice, and not in the hour that is left out. Any other names times of the day,
and is due once for each: at the first of two equal times, and, for a time that is left out, at the instant of the
change. These are the rules of Debian's cron.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from umbel.schedules.base import BaseSchedule, schedstate
from umbel.schedules.fields import Cronspec, expand
from umbel.schedules.zones import instant_of, next_change, offset, utc, wall

_MINUTE: Final = timedelta(minutes=1)
_LONGEST_MONTHS: Final = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
#: February 29 is a given day of the week again after at most 40 years.
_YEARS: Final = 41

_SHORTHANDS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class crontab(BaseSchedule):
    """Due in each minute that all five fields allow.

    A field is a number, a text as in crontab files (see :mod:`umbel.schedules.fields`) or an iterable of numbers.
    Sunday is 0. As in Celery, and unlike cron, day of month *and* day of week must both be right.
    """

    def __init__(
        self,
        minute: Cronspec = "*",
        hour: Cronspec = "*",
        day_of_week: Cronspec = "*",
        day_of_month: Cronspec = "*",
        month_of_year: Cronspec = "*",
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
        *,
        timezone: tzinfo | str | None = None,
    ) -> None:
        """Raises :exc:`ParseException <umbel.schedules.ParseException>`, :exc:`TypeError` and :exc:`ValueError`, the
        last also for a day that none of the months has."""
        super().__init__(nowfun, app, timezone=timezone)
        given = (minute, hour, day_of_week, day_of_month, month_of_year)
        # An iterator can be read once only.
        minute, hour, day_of_week, day_of_month, month_of_year = (_kept(field) for field in given)
        self._orig_minute, self._orig_hour, self._orig_day_of_week = minute, hour, day_of_week
        self._orig_day_of_month, self._orig_month_of_year = day_of_month, month_of_year
        self.minute, self.hour, self.day_of_week = expand(minute, 60), expand(hour, 24), expand(day_of_week, 7)
        self.day_of_month, self.month_of_year = expand(day_of_month, 31, 1), expand(month_of_year, 12, 1)
        self._follows = any(isinstance(field, str) and field.startswith("*") for field in (minute, hour))
        self._minutes, self._hours = sorted(self.minute), sorted(self.hour)
        self._days, self._months = sorted(self.day_of_month), sorted(self.month_of_year)
        if not any(day <= _LONGEST_MONTHS[month] for month in self._months for day in self._days):
            raise ValueError(
                f"Invalid crontab: day_of_month {day_of_month!r} never occurs in month_of_year {month_of_year!r}."
            )

    @classmethod
    def from_string(cls, crontab: str, **options: Any) -> crontab:
        """Return the schedule of a line in a crontab file: minute, hour, day of month, month, day of week.

        ``@hourly``, ``@daily``, ``@weekly``, ``@monthly`` and ``@yearly`` are known too. Raises :exc:`ValueError` if
        it does not have five words.
        """
        words = _SHORTHANDS.get(crontab.strip().lower(), crontab).split()
        if len(words) != 5:
            raise ValueError(
                f"{crontab!r} has {len(words)} words, and a crontab has five: "
                "minute, hour, day of month, month, day of week"
            )
        minute, hour, day_of_month, month_of_year, day_of_week = words
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, **options)

    # -- when ----------------------------------------------------------------------------------------------------

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the first minute after a moment that all fields allow."""
        moment, zone = utc(moment), self.local_zone(zone)
        return self._by_the_clock(moment, zone) if self._follows else self._once_each(moment, zone)

    def _by_the_clock(self, moment: datetime, zone: tzinfo) -> datetime | None:
        """Look through one stretch of time after the other, in each of which the clock is not changed."""
        start = moment.replace(second=0, microsecond=0) + _MINUTE
        while (local := self._next_local(wall(start, zone), inclusive=True)) is not None:
            due = local.replace(tzinfo=UTC) - offset(start, zone)
            change = next_change(start, due, zone)
            if change is None:
                return due
            # A change lies on a full minute by the clock that follows it.
            start = change
        return None

    def _once_each(self, moment: datetime, zone: tzinfo) -> datetime | None:
        local: datetime | None = wall(moment, zone)
        while local is not None and (local := self._next_local(local)) is not None:
            # In an hour that comes for the second time, what was due in the first is over.
            if (due := instant_of(local, zone)) > moment:
                return due
        return None

    def _next_local(self, local: datetime, *, inclusive: bool = False) -> datetime | None:
        """Return the first full minute that the fields allow, after a naive time or with ``inclusive`` at it."""
        start = local.replace(second=0, microsecond=0)
        if not inclusive or start < local:
            start += _MINUTE
        if self._allows(start):
            if (minute := _first(self._minutes, start.minute)) is not None and start.hour in self.hour:
                return start.replace(minute=minute)
            if (hour := _first(self._hours, start.hour + 1)) is not None:
                return start.replace(hour=hour, minute=self._minutes[0])
        day = self._next_day(start)
        return None if day is None else day.replace(hour=self._hours[0], minute=self._minutes[0])

    def _next_day(self, day: datetime) -> datetime | None:
        """Return midnight of the first allowed day after a day."""
        for year in range(day.year, min(day.year + _YEARS, 9999)):
            same_year = year == day.year
            for month in self._months[bisect_left(self._months, day.month) if same_year else 0 :]:
                longest = monthrange(year, month)[1]
                same_month = same_year and month == day.month
                for number in self._days[bisect_right(self._days, day.day) if same_month else 0 :]:
                    if number <= longest and datetime(year, month, number).isoweekday() % 7 in self.day_of_week:
                        return datetime(year, month, number)
        return None

    def _allows(self, day: datetime) -> bool:
        return (
            day.month in self.month_of_year
            and day.day in self.day_of_month
            and day.isoweekday() % 7 in self.day_of_week
        )

    @property
    def follows_clock(self) -> bool:
        """Whether it is due whenever the clock shows such a time, and not once for each."""
        return self._follows

    def local_times(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Yield the naive local times in ``[start, end)`` that the fields allow, whether or not a clock shows them."""
        local = self._next_local(start, inclusive=True)
        while local is not None and local < end:
            yield local
            local = self._next_local(local)

    # -- Celery's interface --------------------------------------------------------------------------------------

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Say whether a time has come since ``last_run_at``, and the seconds until the next one.

        What came longer ago than ``beat_cron_starting_deadline`` is not due any more.
        """
        state = super().is_due(last_run_at)
        deadline = self.app.conf.beat_cron_starting_deadline
        if not state.is_due or deadline is None:
            return state
        since = self._aware_now().astimezone(UTC) - timedelta(seconds=deadline, microseconds=1)
        return schedstate(self.remaining_estimate(since).total_seconds() <= 0, state.next)

    def __repr__(self) -> str:
        return f"<crontab: {self.line} (m/h/dM/MY/d)>"

    @property
    def line(self) -> str:
        """The schedule as a line of a crontab file."""
        fields = (self._orig_minute, self._orig_hour, self._orig_day_of_month, self._orig_month_of_year)
        return " ".join(map(_text, (*fields, self._orig_day_of_week)))

    def _said(self) -> tuple[Any, ...]:
        # "0-23" and "*" are the same hours, and different when clocks change.
        values = (self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year)
        return (*map(frozenset, values), self._follows, self.nowfun, self.own_zone)

    def __reduce__(self) -> tuple[Any, ...]:
        days = (self._orig_day_of_week, self._orig_day_of_month, self._orig_month_of_year)
        fields = (self._orig_minute, self._orig_hour, *days)
        return _made, (type(self), fields, {"nowfun": self.nowfun, "timezone": self.own_zone})


def _made(cls: type[crontab], fields: tuple[Any, ...], options: dict[str, Any]) -> crontab:
    return cls(*fields, **options)


def _kept(field: Any) -> Any:
    if field is None:
        return "*"
    return field if isinstance(field, int | str | set | frozenset | Sequence) else list(field)


def _text(field: Cronspec) -> str:
    return str(field) if isinstance(field, int | str) else ",".join(map(str, sorted(field)))


def _first(values: Sequence[int], at_least: int) -> int | None:
    index = bisect_left(values, at_least)
    return values[index] if index < len(values) else None
