"""Every so many seconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from umbel.schedules.base import EPOCH, BaseSchedule, schedstate
from umbel.schedules.zones import instant_of, utc, wall
from umbel.utils.time import humanize_seconds


class schedule(BaseSchedule):
    """Due every ``run_every`` (seconds or a timedelta) after the last time.

    ``relative`` rounds each time down to the resolution of the interval, in the local zone: with an interval of some
    hours to the full hour, of some days to midnight. ``anchor``, an aware moment, makes the times those that lie a
    whole number of intervals from it, whenever anything ran.
    """

    def __init__(
        self,
        run_every: float | timedelta | None = None,
        relative: bool = False,
        nowfun: Callable[[], datetime] | None = None,
        app: Any = None,
        *,
        anchor: datetime | None = None,
        timezone: tzinfo | str | None = None,
    ) -> None:
        """Raises :exc:`TypeError` without an interval, and :exc:`ValueError` for a negative one."""
        super().__init__(nowfun, app, timezone=timezone)
        if not isinstance(run_every, timedelta | int | float) or isinstance(run_every, bool):
            raise TypeError(f"run_every is a number of seconds or a timedelta, and not {run_every!r}")
        self.run_every = run_every if isinstance(run_every, timedelta) else timedelta(seconds=run_every)
        if self.run_every < timedelta():
            raise ValueError(f"run_every must not be negative: {run_every!r}")
        self.relative = relative
        self.anchor = None if anchor is None else utc(anchor)

    def next_after(self, moment: datetime, *, zone: tzinfo = UTC) -> datetime | None:
        """Return the moment plus the interval; with ``relative`` rounded down, with an anchor the next multiple."""
        moment, zone = utc(moment), self.local_zone(zone)
        if self.anchor is not None and self.run_every:
            return self._on_grid(moment, self.anchor, zone)
        due = moment + self.run_every
        if not self.relative:
            return due
        rounded = instant_of(self._rounded(due, zone), zone)
        # Rounding down may meet the moment itself, and that is not after it.
        return rounded if rounded > moment else due

    def _on_grid(self, moment: datetime, anchor: datetime, zone: tzinfo) -> datetime:
        every = self.run_every
        if not self.relative:
            return anchor + ((moment - anchor) // every + 1) * every
        # By the wall clock: at midnight stays at midnight when clocks change.
        first = self._rounded(anchor, zone)
        local = first + ((wall(moment, zone) - first) // every) * every
        while (due := instant_of(local, zone)) <= moment:
            local += every
        return due

    def _rounded(self, moment: datetime, zone: tzinfo) -> datetime:
        """Return what the wall clock shows, rounded down to the resolution of the interval."""
        local, every = wall(moment, zone).replace(microsecond=0), self.run_every
        if every >= timedelta(days=1):
            return local.replace(hour=0, minute=0, second=0)
        if every >= timedelta(hours=1):
            return local.replace(minute=0, second=0)
        return local.replace(second=0) if every >= timedelta(minutes=1) else local

    def anchored(self, at: datetime = EPOCH) -> schedule:
        """Return this schedule with an anchor: due at the same instants for whoever asks.

        A subclass stays what it is; its own ``next_after`` may heed the anchor, or not.
        """
        return self if self.anchor is not None else self._with(anchor=utc(at))

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Say whether the interval has passed since ``last_run_at``, and the seconds until it has the next time."""
        state = super().is_due(last_run_at)
        return schedstate(True, self.seconds) if state.is_due and not self.relative and not self.anchor else state

    @property
    def seconds(self) -> float:
        """The interval in seconds."""
        return self.run_every.total_seconds()

    @property
    def human_seconds(self) -> str:
        """The interval in words."""
        return humanize_seconds(self.seconds)

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, schedule):
            return self._said() == other._said()
        return self.run_every == other

    def __hash__(self) -> int:
        return hash(self.run_every)

    def _said(self) -> tuple[Any, ...]:
        return (self.run_every, self.relative, self.anchor, self.own_zone)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"anchor": self.anchor, "timezone": self.own_zone}
        return _made, (type(self), self.run_every, self.relative, self.nowfun, state)


def _made(cls: type[schedule], run_every: timedelta, relative: bool, nowfun: Any, state: dict[str, Any]) -> schedule:
    return cls(run_every, relative, nowfun, **state)


def maybe_schedule(s: Any, relative: bool = False, app: Any = None) -> Any:
    """Return a number of seconds or a timedelta as a :class:`schedule`, anything else as it is with the app set."""
    if isinstance(s, timedelta | int | float) and not isinstance(s, bool):
        return schedule(s, relative, app=app)
    if s is not None:
        s.app = app
    return s
