"""The form in which people write an entry of the schedules: its fields as text, and what was changed in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import click

from umbel.cli.schedules import Moment
from umbel.exceptions import DecodeError, ImproperlyConfigured, SerializationError
from umbel.jsoncodec import json_dumps, json_loads
from umbel.periodic.entry import Entry
from umbel.periodic.recurrence import dump_schedule, parse_schedule
from umbel.schedules import BaseSchedule, Bounded, Jittered, clocked, crontab, schedule, solar
from umbel.sensitive import Veil

#: What a field may be, in characters.
LONGEST: Final = 20_000
_MOST_JITTER: Final = 86_400.0
_SHAPE: Final = ("timezone", "start", "end", "jitter")
_JSON: Final = {"args": list, "kwargs": dict, "options": dict}
_NUMBERS: Final = {"jitter": _MOST_JITTER, "deadline": 1e9}
FIELDS: Final = ("task", "schedule", *_SHAPE, *_JSON, "catch_up", "deadline", "overlap")
#: The form of an entry that is not there yet.
BLANK: Final[Mapping[str, str]] = {
    **dict.fromkeys(FIELDS, ""), "args": "[]", "kwargs": "{}", "options": "{}", "catch_up": "last", "overlap": "1",
}  # fmt: skip
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


class Wrong(ValueError):
    """A field that cannot be understood; says which, and what it takes."""


def written(entry: Entry, veil: Veil | None) -> dict[str, str]:
    """Return the fields of an entry.

    ``schedule`` is empty where no text says the same. ``args`` and ``kwargs`` are missing where they are sensitive, or
    would not come back from a browser as they went.
    """
    fields = {"task": entry.task, **_shape(entry.schedule), "catch_up": entry.catch_up}
    fields["deadline"] = "" if entry.deadline is None else f"{entry.deadline:g}"
    fields["overlap"] = "1" if entry.overlap else ""
    args, kwargs = _as_text(list(entry.args)), _as_text(dict(entry.kwargs))
    if veil is None and args is not None and kwargs is not None:
        fields |= {"args": args, "kwargs": kwargs}
    options = _as_text(dict(entry.options))
    return fields if options is None else {**fields, "options": options}


def changed(form: Mapping[str, str], before: Mapping[str, str]) -> dict[str, Any]:
    """Return what a form says otherwise than before, as ``app.schedules.set`` takes it. Raises :exc:`Wrong`."""
    said: dict[str, Any] = {}
    for name in ("task", "catch_up"):
        if form[name] and form[name] != before[name]:
            said[name] = form[name]
    for name, kind in _JSON.items():
        # What was not in the form is left as it is.
        if name in before and (value := _read(name, form[name], kind)) != json_loads(before[name]):
            said[name] = value
    if form["deadline"] != before["deadline"]:
        said["deadline"] = _number("deadline", form["deadline"])
    if bool(form["overlap"]) != bool(before["overlap"]):
        said["overlap"] = bool(form["overlap"])
    return {**said, **_when(form, before)}


def _when(form: Mapping[str, str], before: Mapping[str, str]) -> dict[str, Any]:
    """Return what says when, all of it once any of it differs: a new schedule forgets bounds, zone and jitter."""
    if all(form[name] == before[name] for name in ("schedule", *_SHAPE)):
        return {}
    shape: dict[str, Any] = {"timezone": form["timezone"] or None, "jitter": _number("jitter", form["jitter"])}
    for name in ("start", "end"):
        at = moment(name, form[name])
        shape[name] = None if at is None else at.isoformat()
    if form["schedule"]:
        return {"schedule": form["schedule"], **{name: value for name, value in shape.items() if value is not None}}
    return {name: shape[name] for name in _SHAPE if form[name] != before[name]}


def words(said: Mapping[str, Any]) -> list[str] | None:
    """Return the options of ``umbel schedules set`` that say the same; None where it has none for that."""
    found = []
    for name, value in said.items():
        if value is None:
            return None
        if name == "overlap":
            found.append("--overlap" if value else "--no-overlap")
        else:
            text = json_dumps(value) if name in _JSON else f"{value:g}" if isinstance(value, float) else str(value)
            found += [f"--{name.replace('_', '-')}", text]
    return found


# -- fields as text ----------------------------------------------------------------------------------------------


def _shape(what: BaseSchedule) -> dict[str, str]:
    found, inner = dict.fromkeys(("schedule", *_SHAPE), ""), what
    while isinstance(inner, Bounded | Jittered):
        if isinstance(inner, Jittered):
            found["jitter"] = f"{inner.seconds:g}"
        else:
            found |= {name: at.isoformat() for name in ("start", "end") if (at := getattr(inner, name)) is not None}
        inner = inner.inner
    found["timezone"] = str(inner.timezone or "")
    text = _text(inner)
    if text:
        same = parse_schedule(text, timezone=inner.timezone)
        # Put off, an interval has its anchor from that.
        same = same.anchored() if found["jitter"] else same
        found["schedule"] = text if dump_schedule(same) == dump_schedule(inner) else ""
    return found


def _text(what: BaseSchedule) -> str:
    if isinstance(what, crontab):
        return what.line
    if isinstance(what, schedule):
        size, unit = next((each for each in _UNITS if what.seconds % each[0] == 0), (1, "s"))
        return f"{what.seconds / size:.6f}".rstrip("0").rstrip(".") + unit
    if isinstance(what, clocked):
        return what.clocked_time.isoformat()
    return f"{what.event} {what.lat} {what.lon}" if isinstance(what, solar) else ""


def _as_text(value: Any) -> str | None:
    try:
        text = json.dumps(json.loads(json_dumps(value)), ensure_ascii=False, indent=2)
        return text if len(text) <= LONGEST and json_loads(text) == value else None
    except (TypeError, ValueError, SerializationError):
        return None


# -- and back ----------------------------------------------------------------------------------------------------


def _read(name: str, text: str, kind: type) -> Any:
    what = "a JSON list" if kind is list else "a JSON object"
    try:
        found = json_loads(text)
    except DecodeError as error:
        raise Wrong(f"{name} is {what}: {error}") from error
    if not isinstance(found, kind):
        raise Wrong(f"{name} is {what}.")
    return found


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= _NUMBERS[name]:
        raise Wrong(f"{name} is a number of seconds, {_NUMBERS[name]:,.0f} at most.")
    return found


def moment(name: str, text: str) -> datetime | None:
    """Return a moment that a field holds, None where it is empty; without an offset it is UTC. Raises :exc:`Wrong`."""
    try:
        return Moment().convert(text, None, None) if text else None
    except click.UsageError as error:
        raise Wrong(f"{name}: {error.message}") from error


def reason(error: Exception) -> str:
    """Return why an entry was refused, in one sentence."""
    if isinstance(error, ImproperlyConfigured | Wrong):
        return " ".join(str(error).split())
    return "These times are farther away than a calendar goes."
