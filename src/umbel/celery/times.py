"""``celery.utils.time``: moments, intervals and time zones."""

from __future__ import annotations

import calendar
import time as _time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from umbel.retry import exponential_backoff

_RATE_UNITS: Final = {"s": (1.0, 1.0), "m": (60.0, 1.0), "h": (60.0, 60.0)}


class LocalTimezone(tzinfo):
    """The time zone of this machine."""

    def utcoffset(self, dt: datetime | None) -> timedelta:
        """Return how far local time is ahead of UTC at a local moment."""
        return self._local(dt).utcoffset() or timedelta()

    def dst(self, dt: datetime | None) -> timedelta:
        """Return how much of it is daylight saving."""
        stamp = _time.localtime(self._local(dt).timestamp())
        return timedelta(hours=1) if stamp.tm_isdst > 0 else timedelta()

    def tzname(self, dt: datetime | None) -> str:
        """Return its short name."""
        return self._local(dt).tzname() or ""

    @staticmethod
    def _local(dt: datetime | None) -> datetime:
        return (dt.replace(tzinfo=None) if dt is not None else datetime.now()).astimezone()


class _Timezone:
    """``celery.utils.time.timezone``: the zones, by name."""

    utc = UTC

    def get_timezone(self, zone: str | tzinfo) -> tzinfo:
        """Return the zone of a name; a zone as it is."""
        if isinstance(zone, str):
            return UTC if zone.upper() == "UTC" else ZoneInfo(zone)
        return zone

    def tz_or_local(self, tz: str | tzinfo | None = None) -> tzinfo:
        """Return the zone, or this machine's for None."""
        return self.local if tz is None else self.get_timezone(tz)

    def to_local(self, dt: datetime, local: tzinfo | None = None, orig: tzinfo | None = None) -> datetime:
        """Return the same moment in the local zone; without a zone it is taken as one of ``orig`` or UTC."""
        return localize(dt if dt.tzinfo else make_aware(dt, orig or UTC), self.tz_or_local(local))

    def to_system(self, dt: datetime) -> datetime:
        """Return the same moment in this machine's zone."""
        return localize(dt, self.local)

    def to_local_fallback(self, dt: datetime) -> datetime:
        """Return a moment without a zone as one of this machine's."""
        return make_aware(dt, self.local) if is_naive(dt) else localize(dt, self.local)

    @property
    def local(self) -> tzinfo:
        """This machine's zone."""
        return LocalTimezone()


timezone: Final = _Timezone()


def maybe_timedelta(delta: float | timedelta) -> timedelta:
    """Return seconds as a timedelta; a timedelta as it is."""
    return delta if isinstance(delta, timedelta) else timedelta(seconds=float(delta))


def delta_resolution(dt: datetime, delta: timedelta) -> datetime:
    """Return the moment without the parts that are finer than the interval: days, hours, minutes or seconds."""
    seconds = max(delta.total_seconds(), 0)
    kept = 3 if seconds >= 86400 else 4 if seconds >= 3600 else 5 if seconds >= 60 else 0
    return datetime(*dt.timetuple()[:kept], tzinfo=dt.tzinfo) if kept else dt  # type: ignore[misc, arg-type]


def remaining(start: datetime, ends_in: Any, now: datetime | None = None, relative: bool = False) -> timedelta:
    """Return how long it is until ``start + ends_in``; negative when that is past.

    :param relative: count from ``start`` cut to the interval's resolution.
    """
    now = now or datetime.now(UTC)
    if relative and isinstance(ends_in, timedelta):
        start = delta_resolution(start, ends_in)
    end: datetime = start + ends_in
    return end - now


def rate(r: Any) -> float:
    """Return tasks per second: of ``"100/m"``, ``"10/s"``, ``"5/h"``, a number, or nothing (0)."""
    if not r:
        return 0.0
    if not isinstance(r, str):
        return float(r)
    count, _, unit = r.partition("/")
    minutes, hours = _RATE_UNITS[unit or "s"]
    return float(count) / minutes / hours


def parse_iso8601(datestring: str) -> datetime:
    """Return the moment of an ISO 8601 text."""
    return datetime.fromisoformat(datestring)


def maybe_iso8601(dt: datetime | str | None) -> datetime | None:
    """Return a text as the moment that it means; a moment and None as they are."""
    return datetime.fromisoformat(dt) if isinstance(dt, str) and dt else (dt or None)


def is_naive(dt: datetime) -> bool:
    """Say whether the moment has no zone."""
    return dt.tzinfo is None or dt.tzinfo.utcoffset(dt) is None


def make_aware(dt: datetime, tz: tzinfo) -> datetime:
    """Return the moment with this zone: read in it where it has none, else converted to it."""
    return dt.replace(tzinfo=tz) if is_naive(dt) else dt.astimezone(tz)


def localize(dt: datetime, tz: tzinfo) -> datetime:
    """Return the same moment in this zone."""
    return make_aware(dt, tz)


def to_utc(dt: datetime) -> datetime:
    """Return the moment in UTC."""
    return make_aware(dt, UTC)


def maybe_make_aware(dt: datetime, tz: tzinfo | None = None, naive_as_utc: bool = True) -> datetime:
    """Return a moment that has a zone as it is; one without is read as UTC and put into ``tz``.

    :param naive_as_utc: if false it is read as one of ``tz``.
    """
    if not is_naive(dt):
        return dt
    if naive_as_utc:
        dt = to_utc(dt)
    return localize(dt, UTC if tz is None else timezone.tz_or_local(tz))


class ffwd:
    """Added to a moment, it is moved to the next one that has these parts."""

    def __init__(
        self,
        year: int | None = None,
        month: int | None = None,
        weeks: int = 0,
        weekday: int | None = None,
        day: int | None = None,
        hour: int | None = None,
        minute: int | None = None,
        second: int | None = None,
        microsecond: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.year, self.month, self.weeks, self.weekday, self.day = year, month, weeks, weekday, day
        self.days = weeks * 7
        self.hour, self.minute, self.second, self.microsecond = hour, minute, second, microsecond
        self._has_time = hour is not None or minute is not None

    def _fields(self) -> dict[str, Any]:
        names = ("year", "month", "day", "hour", "minute", "second", "microsecond")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def __add__(self, other: object) -> Any:
        return self.__radd__(other)

    def __radd__(self, other: object) -> Any:
        if not isinstance(other, datetime):
            return NotImplemented
        year, month = self.year or other.year, self.month or other.month
        fields = {**self._fields(), "day": min(calendar.monthrange(year, month)[1], self.day or other.day)}
        moved = other.replace(**fields) + timedelta(days=self.days)
        if self.weekday is not None:
            moved += timedelta(days=(7 - moved.weekday() + self.weekday) % 7)
        return moved


def utcoffset(time: Any = _time, localtime: Callable[..., _time.struct_time] = _time.localtime) -> float:
    """Return how many hours UTC is ahead of this machine's time; not always a whole number."""
    return float(time.altzone if localtime().tm_isdst else time.timezone) / 3600


def adjust_timestamp(ts: float, offset: float, here: Callable[..., float] = utcoffset) -> float:
    """Return a timestamp that was made ``offset`` hours behind UTC as one of here."""
    return ts - (offset - here()) * 3600


def add_seconds_to_datetime(dt: datetime, seconds: float) -> datetime:
    """Return the moment so many seconds later, in its own zone."""
    return dt if not seconds else dt.astimezone(UTC).__add__(timedelta(seconds=seconds)).astimezone(dt.tzinfo)


def subtract_datetimes(end: datetime, start: datetime) -> timedelta:
    """Return how long it is from one moment to another, whatever the clocks of their zones do between."""
    return end.astimezone(UTC) - start.astimezone(UTC)


def maybe_s_to_ms(v: float | None) -> int | None:
    """Return seconds as milliseconds."""
    return int(float(v) * 1000.0) if v is not None else None


def get_exponential_backoff_interval(factor: int, retries: int, maximum: int, full_jitter: bool = False) -> int:
    """Return the whole seconds to wait before a retry: ``factor * 2 ** retries``, at most ``maximum``."""
    return int(exponential_backoff(factor, retries, maximum, full_jitter=full_jitter))
