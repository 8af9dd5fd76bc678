"""What every schedule can, say when it is next due and answer as Celery's do, and schedules made of schedules."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple, Self
from zoneinfo import ZoneInfo

from umbel.current import get_current_app
from umbel.schedules.zones import utc

#: How many times of each part :class:`Both` compares before it says that they never meet.
_TRIES: Final = 100_000
_TICK: Final = timedelta(microseconds=1)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class schedstate(NamedTuple):
    """Whether a schedule is due, and the seconds until it is due the next time."""

    is_due: bool
    next: float


class BaseSchedule:
    """When something recurs.

    :meth:`next_after` is the whole of it, and what a subclass has; it depends on its arguments alone. The rest is
    Celery's interface, which asks the clock and the app.
    """

    _tz: tzinfo | None = None
    #: What it was made with: it tells one schedule of a user's own class from another, whatever happens to it later.
    _given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make one, and remember of what."""
        made = super().__new__(cls)
        made._given = (args, kwargs)
        return made

    def __init__(
        self,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
        *,
        timezone: tzinfo | str | None = None,
    ) -> None:
        """``timezone`` is the zone in which local times are meant, if it is another one than the app's."""
        self.nowfun = nowfun
        self.timezone = ZoneInfo(timezone) if isinstance(timezone, str) else timezone
        self._app = app

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the first instant after an aware moment at which this is due, in UTC; None if there is none.

        ``zone`` is that of local times, unless the schedule has its own. A class that was written for Celery, and has
        ``remaining_estimate`` or ``is_due`` instead, is asked these.
        """
        if not self.asks_clock:
            raise NotImplementedError(f"{type(self).__qualname__} has no next_after, which says when it is due")
        return _asked(self, utc(moment))

    @property
    def asks_clock(self) -> bool:
        """Whether its times depend on when one asks: a class written for Celery says in ``is_due`` when it is due."""
        kind = type(self)
        return min(_place(kind, "is_due"), _place(kind, "remaining_estimate")) < _place(kind, "next_after")

    def heeded(self) -> BaseSchedule:
        """Return this schedule as beat asks it: what a subclass says in ``is_due`` counts, as it does in Celery."""
        inherits = type(self).next_after is not BaseSchedule.next_after
        return Asking(self) if self.asks_clock and inherits else self

    def upcoming(self, moment: datetime, *, zone: tzinfo = UTC) -> Iterator[datetime]:
        """Yield the instants after a moment, one by one; without end, if the schedule has none."""
        due: datetime | None = utc(moment)
        while due is not None and (due := self.next_after(due, zone=zone)) is not None:
            yield due

    def local_zone(self, zone: tzinfo) -> tzinfo:
        """Return this schedule's own zone, or the given one."""
        return self.own_zone or zone

    @property
    def own_zone(self) -> tzinfo | None:
        """The zone that it has itself, by ``timezone`` or by what a subclass has set as ``tz``; None without."""
        return self._tz or self.timezone

    def zoned(self, zone: tzinfo) -> BaseSchedule:
        """Return this schedule with its local times meant in this zone, unless it has a zone already."""
        return self if self.own_zone is not None else self._with(timezone=zone)

    def anchored(self, at: datetime = EPOCH) -> BaseSchedule:
        """Return this schedule so that its times do not depend on when one asks; most do not anyway.

        An interval is then counted from ``at``, unless it has an anchor already.
        """
        return self

    def _with(self, **changes: Any) -> Self:
        """Return a copy, of the same class, with other attributes. Nothing of a user's class is called."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
        return made

    # -- putting together ----------------------------------------------------------------------------------------

    def __or__(self, other: BaseSchedule) -> BaseSchedule:
        """Return a schedule that is due whenever one of the two is."""
        return Either(self, other) if isinstance(other, BaseSchedule) else NotImplemented

    def __and__(self, other: BaseSchedule) -> BaseSchedule:
        """Return a schedule that is due only when both are, at the same instant."""
        return Both(self, other) if isinstance(other, BaseSchedule) else NotImplemented

    def between(self, start: datetime | None = None, end: datetime | None = None) -> Bounded:
        """Return this schedule without what is before ``start`` or after ``end``, both aware."""
        return Bounded(self, start, end)

    def jitter(self, seconds: float, seed: str = "") -> Jittered:
        """Return this schedule with each time put off by up to so many seconds, so that not all comes at once.

        By how much follows from the time and the seed: whoever computes it gets the same.
        """
        return Jittered(self, seconds, seed)

    # -- Celery's interface --------------------------------------------------------------------------------------

    @property
    def app(self) -> Any:
        """The app whose clock and time zone count; without one given, the current app."""
        return self._app or get_current_app()

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def tz(self) -> tzinfo:
        """The zone in which local times are meant."""
        zone: tzinfo = self.own_zone or self.app.timezone
        return zone

    # Subclasses written for Celery set it, before they call ``__init__``.
    @tz.setter
    def tz(self, zone: tzinfo | None) -> None:
        self._tz = zone

    @property
    def utc_enabled(self) -> bool:
        """The app's ``enable_utc``."""
        return bool(self.app.conf.enable_utc)

    def now(self) -> datetime:
        """Return the present moment by ``nowfun`` or the app."""
        moment: datetime = (self.nowfun or self.app.now)()
        return moment

    def maybe_make_aware(self, moment: datetime, naive_as_utc: bool = True) -> datetime:
        """Return a moment with a zone: a naive one is in UTC, or in the schedule's zone without ``naive_as_utc``."""
        if moment.tzinfo is not None:
            return moment
        return moment.replace(tzinfo=UTC).astimezone(self.tz) if naive_as_utc else moment.replace(tzinfo=self.tz)

    def to_local(self, moment: datetime) -> datetime:
        """Return a moment as this machine's clock shows it, if ``enable_utc`` is off."""
        return moment if self.utc_enabled else moment.astimezone()

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return how long it is until the first time after ``last_run_at``; negative if that has passed."""
        due = self.next_after(self.maybe_make_aware(last_run_at), zone=self.tz)
        return timedelta.max if due is None else due - self._aware_now()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Say whether a time has come since ``last_run_at``, and the seconds until the next one."""
        left = self.remaining_estimate(last_run_at).total_seconds()
        if left > 0:
            return schedstate(False, left)
        return schedstate(True, max(self.remaining_estimate(self._aware_now()).total_seconds(), 0.0))

    def _aware_now(self) -> datetime:
        return self.maybe_make_aware(self.now())

    def present(self) -> datetime:
        """Return the present moment by its own clock, in UTC: what a class that was written for Celery goes by."""
        return utc(self._aware_now())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseSchedule):
            return NotImplemented
        return type(other) is type(self) and other._said() == self._said()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        args, kwargs = self._given
        given = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
        return f"{type(self).__qualname__}({', '.join(given)})"

    def _said(self) -> tuple[Any, ...]:
        """Return what tells this schedule from another of its class."""
        return (self.nowfun, self.own_zone, self._given)


def _place(kind: type[BaseSchedule], name: str) -> int:
    """Return how far up in the order of a class the method is defined that counts; 0: by the class itself."""
    return next(at for at, each in enumerate(kind.__mro__) if name in vars(each))


def _asked(what: BaseSchedule, moment: datetime) -> datetime | None:
    """Return when a schedule is due after a moment, by what it says in Celery's way and by its own clock."""
    kind, pure = type(what), _place(type(what), "next_after")
    now = what._aware_now()
    left: timedelta | None = None
    if _place(kind, "remaining_estimate") < pure:
        left = what.remaining_estimate(moment)
    # It alone knows whether, and the other one since when.
    if _place(kind, "is_due") < pure and (left is None or left <= timedelta()):
        due, following = what.is_due(moment)
        if not due and following is None:
            return None
        if not due:
            left = timedelta(seconds=following)
        elif left is None:
            left = timedelta()
    assert left is not None
    found = utc(now + left)
    return found if found > moment else None


class Asking(BaseSchedule):
    """A crontab, an interval or the like whose subclass says in ``is_due`` when it is due, as Celery's beat asks."""

    def __init__(self, inner: BaseSchedule) -> None:
        super().__init__()
        self.inner = inner

    @property
    def asks_clock(self) -> bool:
        """True: that is what it is for."""
        return True

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return when the inner schedule says that it is due: now, if it has been due since the moment."""
        return _asked(self.inner, utc(moment))

    def present(self) -> datetime:
        """Return the present moment by the inner schedule."""
        return self.inner.present()

    def anchored(self, at: datetime = EPOCH) -> BaseSchedule:
        """Return it with the inner schedule anchored."""
        return self._with(inner=self.inner.anchored(at))

    @property
    def own_zone(self) -> tzinfo | None:
        """The inner schedule's own zone."""
        return self.inner.own_zone

    def zoned(self, zone: tzinfo) -> BaseSchedule:
        """Return it with the inner schedule's local times meant in this zone, unless that has one already."""
        return self._with(inner=self.inner.zoned(zone))

    def __repr__(self) -> str:
        return repr(self.inner)

    def _said(self) -> tuple[Any, ...]:
        return (self.inner,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner,)

    __hash__ = BaseSchedule.__hash__


class _Compound(BaseSchedule):
    """Parts, and a word between them."""

    word = ""

    def __init__(self, *parts: BaseSchedule) -> None:
        super().__init__()
        flat: list[BaseSchedule] = []
        for part in parts:
            flat += part.parts if isinstance(part, _Compound) and type(part) is type(self) else [part]
        # An interval that counts from what was last would depend on the other parts.
        self.parts: list[BaseSchedule] = [part.heeded().anchored() for part in flat]

    @property
    def asks_clock(self) -> bool:
        """Whether the times of a part depend on when one asks."""
        return any(part.asks_clock for part in self.parts)

    def present(self) -> datetime:
        """Return the latest present moment of its parts."""
        return max(part.present() for part in self.parts)

    def zoned(self, zone: tzinfo) -> BaseSchedule:
        """Return it with the local times of each part meant in this zone, unless the part has one already."""
        return self._with(parts=[part.zoned(zone) for part in self.parts])

    def local_zone(self, zone: tzinfo) -> tzinfo:
        """Return the zone of all its parts; the given one, if they differ."""
        found = {part.local_zone(zone) for part in self.parts}
        return found.pop() if len(found) == 1 else zone

    def __repr__(self) -> str:
        return f"({self.word.join(map(repr, self.parts))})"

    def _said(self) -> tuple[Any, ...]:
        return tuple(self.parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self.parts)

    __hash__ = BaseSchedule.__hash__


class Either(_Compound):
    """Due whenever one of its parts is. Intervals in it count from 1970, unless they have an anchor."""

    word = " | "

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the first of the parts' next times."""
        found = [due for part in self.parts if (due := part.next_after(moment, zone=zone)) is not None]
        return min(found, default=None)


class Both(_Compound):
    """Due when all its parts are, at the same instant. Intervals in it count from 1970, unless they have an anchor."""

    word = " & "
    #: A long search that found nothing: of which parts, in which zone, from when and until when.
    _nothing: tuple[list[BaseSchedule], tzinfo, datetime, datetime] | None = None

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the first time that all parts share; None also if they do not meet in a very long time."""
        moment = reached = utc(moment)
        if self._nothing is not None:
            # Beat asks every two seconds, and such a search takes one.
            parts, before, since, until = self._nothing
            if parts is self.parts and before == zone and since <= moment <= since + (until - since) / 2:
                return None
        for _ in range(_TRIES):
            found = [part.next_after(reached, zone=zone) for part in self.parts]
            times = [due for due in found if due is not None]
            if len(times) < len(found):
                return None
            latest = max(times)
            if latest == min(times):
                return latest
            # Nothing before the latest is shared by all.
            reached = latest - _TICK
        if not self.asks_clock:
            self._nothing = (self.parts, zone, moment, reached)
        return None


class Bounded(BaseSchedule):
    """A schedule between two moments, both included; either may be None."""

    def __init__(self, inner: BaseSchedule, start: datetime | None = None, end: datetime | None = None) -> None:
        """Raises :exc:`ValueError` for a naive moment, and if the end is before the start."""
        super().__init__()
        self.inner = inner.heeded()
        self.start = None if start is None else utc(start)
        self.end = None if end is None else utc(end)
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"a schedule cannot end at {end} before it starts at {start}")

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the inner schedule's next time that is not outside the bounds."""
        moment = utc(moment)
        if self.start is not None and moment < self.start:
            moment = self.start - _TICK
        due = self.inner.next_after(moment, zone=zone)
        return None if due is None or (self.end is not None and due > self.end) else due

    @property
    def asks_clock(self) -> bool:
        """Whether the inner schedule's times depend on when one asks."""
        return self.inner.asks_clock

    def present(self) -> datetime:
        """Return the present moment by the inner schedule."""
        return self.inner.present()

    def zoned(self, zone: tzinfo) -> BaseSchedule:
        """Return it with the inner schedule's local times meant in this zone, unless that has one already."""
        return self._with(inner=self.inner.zoned(zone))

    def local_zone(self, zone: tzinfo) -> tzinfo:
        """Return the zone in which the inner schedule's local times are meant."""
        return self.inner.local_zone(zone)

    def __repr__(self) -> str:
        return f"<{self.inner!r} from {self.start or 'ever'} to {self.end or 'ever'}>"

    def _said(self) -> tuple[Any, ...]:
        return (self.inner, self.start, self.end)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner, self.start, self.end)


class Jittered(BaseSchedule):
    """A schedule whose times are put off by between none and so many seconds."""

    def __init__(self, inner: BaseSchedule, seconds: float, seed: str = "") -> None:
        """Raises :exc:`ValueError` for less than no seconds, and for a schedule that says in ``is_due`` when it is due:
        what is put off from the moment at which one asks never comes."""
        super().__init__()
        if not 0 <= seconds < math.inf:
            raise ValueError(f"jitter is a number of seconds, at least 0, and not {seconds!r}")
        if inner.asks_clock:
            raise ValueError(f"jitter needs a schedule with next_after, and {inner!r} says in is_due when it is due")
        self.inner = inner.anchored()
        self.seconds = float(seconds)
        self.seed = seed

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the first time after a moment when all are put off."""
        moment = utc(moment)
        best: datetime | None = None
        due = self.inner.next_after(moment - timedelta(seconds=self.seconds), zone=zone)
        # An earlier one may be put off beyond a later one, so the first is not always the first.
        while due is not None and (best is None or due < best):
            late = due + self._delay(due)
            if late > moment and (best is None or late < best):
                best = late
            due = self.inner.next_after(due, zone=zone)
        return best

    def _delay(self, due: datetime) -> timedelta:
        digest = hashlib.blake2b(f"{self.seed}\0{due.isoformat()}".encode(), digest_size=8).digest()
        return timedelta(seconds=self.seconds * int.from_bytes(digest) / 2**64)

    def zoned(self, zone: tzinfo) -> BaseSchedule:
        """Return it with the inner schedule's local times meant in this zone, unless that has one already."""
        return self._with(inner=self.inner.zoned(zone))

    def local_zone(self, zone: tzinfo) -> tzinfo:
        """Return the zone in which the inner schedule's local times are meant."""
        return self.inner.local_zone(zone)

    def __repr__(self) -> str:
        return f"<{self.inner!r} put off by up to {self.seconds:g} s>"

    def _said(self) -> tuple[Any, ...]:
        return (self.inner, self.seconds, self.seed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner, self.seconds, self.seed)


class clocked(BaseSchedule):
    """Due once, at an aware moment."""

    def __init__(self, clocked_time: datetime, nowfun: Any = None, app: Any = None) -> None:
        """Raises :exc:`ValueError` for a naive moment."""
        super().__init__(nowfun, app)
        self.clocked_time = utc(clocked_time)

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the moment, or None once it has passed."""
        return self.clocked_time if self.clocked_time > utc(moment) else None

    def __repr__(self) -> str:
        return f"<clocked: {self.clocked_time:%Y-%m-%d %H:%M:%S} UTC>"

    def _said(self) -> tuple[Any, ...]:
        return (self.clocked_time,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.clocked_time, self.nowfun)
