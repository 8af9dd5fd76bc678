"""An entry: what is sent when, as the program or a person says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from umbel.exceptions import ImproperlyConfigured
from umbel.periodic.recurrence import TOO_FAR, WRONG, dump_schedule, load_schedule, parse_schedule
from umbel.schedules import BaseSchedule, maybe_schedule, schedule
from umbel.utils.text import did_you_mean

#: What beside ``schedule`` says when an entry is due.
SHAPE: Final = ("relative", "timezone", "start", "end", "jitter")
CatchUp = Literal["last", "skip", "all"]
_CATCH_UPS: Final = ("last", "skip", "all")
#: The longest deadline, in seconds: moments have an end.
_LONGEST: Final = 100 * 365 * 86400
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_FIELDS: Final = (
    "task", "schedule", "args", "kwargs", "options", "relative",
    "enabled", "catch_up", "deadline", "overlap", "timezone", "start", "end", "jitter",
)  # fmt: skip


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``beat_schedule``."""

    name: str
    task: str
    schedule: BaseSchedule
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    enabled: bool = True
    catch_up: CatchUp = "last"  # what is sent of the times that passed while no beat was running
    deadline: float | None = None  # seconds after which a time is too late to be caught up
    overlap: bool = True  # whether it is sent while the one before still waits or runs

    def to_dict(self) -> dict[str, Any]:
        """Return it as data. Raises :exc:`ImproperlyConfigured` for a schedule that only code can keep."""
        described = dump_schedule(self.schedule)
        if described is None:
            raise ImproperlyConfigured(
                f"the schedule of {self.name!r} is a {type(self.schedule).__name__}, which cannot be stored; "
                "declare it in beat_schedule"
            )
        return {**self.rest(), "schedule": described}

    def rest(self) -> dict[str, Any]:
        """Return all but the schedule as data."""
        return {
            "task": self.task,
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "options": dict(self.options),
            "enabled": self.enabled,
            "catch_up": self.catch_up,
            "deadline": self.deadline,
            "overlap": self.overlap,
        }

    @property
    def fingerprint(self) -> str:
        """What tells its schedule from another one: when this changes, what was due by the old one is forgotten."""
        # A place in memory, as the repr of a function shows it, is another one in each process.
        return _ADDRESS.sub("", repr(dump_schedule(self.schedule) or self._described()))

    def _described(self) -> Any:
        zone = self.schedule.own_zone
        # A subclass that has set it as ``tz`` may not show it.
        return self.schedule if zone is None else (self.schedule, str(zone))

    def check_next(self, now: datetime, zone: tzinfo) -> None:
        """Ask the schedule for its next time. Raises :exc:`ImproperlyConfigured` where no moment can be so late."""
        try:
            self.schedule.anchored(now).next_after(now, zone=zone)
        except (OverflowError, ValueError) as error:  # the latter from a zone, near the end of the calendar
            raise ImproperlyConfigured(f"the schedule of {self.name!r} has no next time: {TOO_FAR}") from error


def entry_of(name: str, said: Mapping[str, Any], app: Any) -> Entry:
    """Return the entry that a dictionary of ``beat_schedule`` or of the store describes.

    Beside Celery's ``task``, ``schedule``, ``args``, ``kwargs``, ``options`` and ``relative`` it may have ``enabled``,
    ``catch_up``, ``deadline``, ``overlap``, and for its schedule ``timezone``, ``start``, ``end`` and ``jitter``.
    Raises :exc:`ImproperlyConfigured`.
    """
    where = f"the entry {name!r} of beat_schedule"
    if not isinstance(said, Mapping):
        raise ImproperlyConfigured(f"{where} is a dict with 'task' and 'schedule', and not {said!r}")
    for key in said:
        if key not in _FIELDS:
            raise ImproperlyConfigured(f"{where} has an unknown key {key!r}{did_you_mean(key, _FIELDS)}")
    for key in ("task", "schedule"):
        if said.get(key) is None:
            raise ImproperlyConfigured(f"{where} has no {key!r}")
    catch_up = said.get("catch_up", "last")
    if catch_up not in _CATCH_UPS:
        raise ImproperlyConfigured(f"{where}: catch_up is 'last', 'skip' or 'all', and not {catch_up!r}")
    task = said["task"]
    return Entry(
        name=name,
        task=task if isinstance(task, str) else task.name,
        schedule=_checked(said, app, where),
        args=tuple(said.get("args") or ()),
        kwargs=dict(said.get("kwargs") or {}),
        options=dict(said.get("options") or {}),
        enabled=_yes_or_no("enabled", said, where),
        catch_up=catch_up,
        deadline=_seconds(said.get("deadline"), where),
        overlap=_yes_or_no("overlap", said, where),
    )


def _yes_or_no(key: str, said: Mapping[str, Any], where: str) -> bool:
    value = said.get(key, True)
    if not isinstance(value, bool):
        raise ImproperlyConfigured(f"{where}: {key} is True or False, and not {value!r}")
    return value


def _checked(said: Mapping[str, Any], app: Any, where: str) -> BaseSchedule:
    try:
        return _schedule(said, app, where)
    except ImproperlyConfigured:
        raise
    except WRONG as error:  # KeyError for a zone that nobody knows
        raise ImproperlyConfigured(f"{where}: {error.args[0] if error.args else error}") from error


def _seconds(value: Any, where: str) -> float | None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds is None:
        return None
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds <= _LONGEST:
        raise ImproperlyConfigured(
            f"{where}: deadline is a number of seconds, at most those of 100 years, and not {value!r}"
        )
    return float(seconds)


def _schedule(said: Mapping[str, Any], app: Any, where: str) -> BaseSchedule:
    given, zone = said["schedule"], said.get("timezone")
    if isinstance(given, Mapping):
        given = load_schedule(given)
    elif isinstance(given, str):
        given = parse_schedule(given, timezone=zone)
    if isinstance(given, bool) or not isinstance(given, BaseSchedule | timedelta | int | float):
        raise ImproperlyConfigured(
            f"{where}: schedule is a number of seconds, a timedelta, a crontab or another schedule, and not {given!r}"
        )
    found: BaseSchedule = maybe_schedule(given, bool(said.get("relative")), app=app)
    found = found.heeded()
    if isinstance(found, schedule) and not found.run_every:
        raise ImproperlyConfigured(f"{where}: an interval must be longer than 0 seconds")
    if zone is not None:
        found = found.zoned(ZoneInfo(zone) if isinstance(zone, str) else zone)
    if (start := said.get("start")) is not None or said.get("end") is not None:
        found = found.between(_moment(start, where), _moment(said.get("end"), where))
    return found.jitter(float(said["jitter"]), seed=where) if said.get("jitter") else found


def _moment(value: Any, where: str) -> datetime | None:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
        raise ImproperlyConfigured(f"{where}: start and end are moments with a time zone, and not {value!r}")
    return moment
