"""Schedules as plain data, which a store keeps, and as text, which people write.

==================================================  =======================================================
``{"every": 30, "relative": true}``                 an interval in seconds; with ``"anchor"`` on a grid
``{"crontab": "0 4 * * 1", "timezone": "…"}``       a line of a crontab
``{"solar": ["sunset", 41.9, 12.5]}``               an event of the sun
``{"clocked": "2026-12-24T18:00:00+00:00"}``        once
``{"any": […]}``, ``{"all": […]}``                  whenever one is due; only when all are
``{"of": …, "start": "…", "end": "…"}``             between two moments
``{"of": …, "jitter": 30, "seed": "…"}``            put off by up to so many seconds
==================================================  =======================================================
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime, tzinfo
from typing import Any, Final

from umbel.exceptions import ImproperlyConfigured
from umbel.schedules import (
    BaseSchedule,
    Both,
    Bounded,
    Either,
    Jittered,
    ParseException,
    clocked,
    crontab,
    schedule,
    solar,
)

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w|)[a-z]*")
#: What the classes of schedules raise for what they do not take.
WRONG: Final = (KeyError, TypeError, ValueError, OverflowError, ParseException)
TOO_FAR: Final = "its times are farther away than a calendar goes"
#: The longest text that is read.
_LONGEST: Final = 1000


def dump_schedule(what: BaseSchedule) -> dict[str, Any] | None:
    """Return a schedule as data, or None for one of a class of the user's own, which only code can keep."""
    kind = type(what)
    if kind is schedule and isinstance(what, schedule):
        relative = {"relative": True} if what.relative else {}
        anchor = {} if what.anchor is None else {"anchor": what.anchor.isoformat()}
        return {"every": what.seconds, **relative, **anchor, **_zone(what)}
    if kind is crontab and isinstance(what, crontab):
        return {"crontab": what.line, **_zone(what)}
    if kind is solar and isinstance(what, solar):
        return {"solar": [what.event, what.lat, what.lon]}
    if kind is clocked and isinstance(what, clocked):
        return {"clocked": what.clocked_time.isoformat()}
    if isinstance(what, Either | Both):
        parts = [dump_schedule(part) for part in what.parts]
        return None if None in parts else {"any" if kind is Either else "all": parts}
    if isinstance(what, Bounded):
        inner = dump_schedule(what.inner)
        bounds = {"start": what.start, "end": what.end}
        return inner and {"of": inner, **{name: each.isoformat() for name, each in bounds.items() if each is not None}}
    if isinstance(what, Jittered):
        inner = dump_schedule(what.inner)
        return inner and {"of": inner, "jitter": what.seconds, "seed": what.seed}
    return None


def _zone(what: BaseSchedule) -> dict[str, Any]:
    return {} if what.own_zone is None else {"timezone": str(what.own_zone)}


def without(data: Mapping[str, Any], said: Collection[str]) -> dict[str, Any]:
    """Return a described schedule without what is said anew: ``timezone``, ``start``, ``end``, ``jitter``…

    >>> without({"of": {"every": 5}, "jitter": 3, "seed": "s"}, ["jitter"])
    {'every': 5}
    """
    if "of" in data:
        inner = without(data["of"], said)
        kept = {key: value for key, value in data.items() if key not in ("of", *said)}
        if "jitter" not in kept:
            kept.pop("seed", None)
        return {"of": inner, **kept} if kept else inner
    for kind in ("any", "all"):
        if kind in data:
            return {kind: [without(part, said) for part in data[kind]]}
    return {key: value for key, value in data.items() if key not in said}


def load_schedule(data: Mapping[str, Any]) -> BaseSchedule:
    """Return the schedule that :func:`dump_schedule` described. Raises :exc:`ImproperlyConfigured`."""
    try:
        return _load(dict(data))
    except WRONG as error:
        raise ImproperlyConfigured(f"not a schedule: {data!r}: {error}") from error


def _load(data: dict[str, Any]) -> BaseSchedule:
    zone = {} if data.get("timezone") is None else {"timezone": data["timezone"]}
    if "every" in data:
        anchor = data.get("anchor")
        at = None if anchor is None else datetime.fromisoformat(anchor)
        return schedule(data["every"], bool(data.get("relative")), anchor=at, **zone)
    if "crontab" in data:
        return crontab.from_string(data["crontab"], **zone)
    if "solar" in data:
        return solar(*data["solar"])
    if "clocked" in data:
        return clocked(datetime.fromisoformat(data["clocked"]))
    if "any" in data:
        return Either(*map(_load, data["any"]))
    if "all" in data:
        return Both(*map(_load, data["all"]))
    if "jitter" in data:
        return _load(data["of"]).jitter(data["jitter"], data.get("seed", ""))
    if "of" in data:
        bounds = [data.get(name) for name in ("start", "end")]
        return _load(data["of"]).between(*(each and datetime.fromisoformat(each) for each in bounds))
    raise ValueError("it has none of: every, crontab, solar, clocked, any, all, of")


def parse_schedule(text: str, *, timezone: tzinfo | str | None = None) -> BaseSchedule:
    """Return the schedule that a person wrote: ``30s``, ``every 5 minutes``, ``0 4 * * mon``, ``@daily``,
    ``sunset 41.9 12.5`` or ``2026-12-24T18:00+01:00``. Raises :exc:`ImproperlyConfigured`."""
    words = text.strip()
    if len(words) > _LONGEST:
        raise ImproperlyConfigured(f"a schedule has at most {_LONGEST} characters, and not {len(words)}")
    span = _SPAN.fullmatch(words.lower().removeprefix("every").strip())
    try:
        if span is not None:
            return schedule(float(span[1]) * _UNITS[span[2]], timezone=timezone)
        if words.startswith("@") or len(words.split()) == 5:
            return crontab.from_string(words, timezone=timezone)
        if len(words.split()) == 3:
            event, lat, lon = words.split()
            return solar(event, float(lat), float(lon))
        return clocked(datetime.fromisoformat(words))
    except WRONG as error:
        why = TOO_FAR if isinstance(error, OverflowError) else error
        raise ImproperlyConfigured(
            f"{text!r} is not a schedule ({why}); write 30s, 5 minutes, '0 4 * * mon', @daily, "
            "'sunset 41.9 12.5' or 2026-12-24T18:00+01:00"
        ) from error


def in_words(what: BaseSchedule) -> str:
    """Return a schedule as a person would write it."""
    if isinstance(what, crontab):
        return what.line
    if isinstance(what, schedule):
        return f"every {what.human_seconds}"
    if isinstance(what, clocked):
        return f"once, at {what.clocked_time:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(what, solar):
        return f"{what.event} at {what.lat}, {what.lon}"
    if isinstance(what, Either | Both):
        return (" or " if isinstance(what, Either) else " and ").join(map(in_words, what.parts))
    if isinstance(what, Jittered):
        return f"{in_words(what.inner)}, up to {what.seconds:g} s later"
    if isinstance(what, Bounded):
        ends = [f"from {what.start}" if what.start else "", f"until {what.end}" if what.end else ""]
        return ", ".join([in_words(what.inner), *filter(None, ends)])
    return repr(what)
