"""Schedules: what beat sends when, what it has sent, and changing that while it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

import msgspec

from umbel.dashboard.entry_form import BLANK, FIELDS, LONGEST, Wrong, changed, moment, reason, words, written
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dashboard.week import DAYS, Week, lateness_of, week_of
from umbel.exceptions import DecodeError, EncodeError, ImproperlyConfigured
from umbel.jsoncodec import json_dumps, json_loads
from umbel.periodic.editing import Fire
from umbel.periodic.recurrence import in_words
from umbel.periodic.table import Line
from umbel.sensitive import veil_of

page = Page("schedules", "Schedules", key="s")

logger = logging.getLogger("umbel.dashboard")

_LONGEST_NAME: Final = 500
_LISTED: Final = 3  # times of each entry in the list
_SHOWN: Final = 10
_PREVIEWED: Final = 5
_LISTED_TIMES: Final = 5  # of a backfill, from its beginning and from its end


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An entry, and when it is next due."""

    line: Line
    when: str
    zone: str
    fires: Sequence[Fire] = ()
    trouble: str = ""


@page.get("/schedules")
def schedules(ask: Ask) -> Reply:
    """List the entries, by name."""
    wanted, after = ask.text("filter"), ask.text("after", most=_LONGEST_NAME)
    limit, trouble = ask.number("limit", 50, least=1, most=200), ""
    lines: Sequence[Line] = ()
    try:
        lines = ask.app.schedules.list()
    except ImproperlyConfigured as error:
        # Nowhere to keep them, or an entry that cannot be read.
        trouble = reason(error)
    found = [each for each in lines if each.entry.name > after and _fits(each, wanted.lower())]
    return ask.render(
        "schedules.html",
        rows=[_row(ask, each, _LISTED) for each in found[:limit]],
        more=found[limit - 1].entry.name if len(found) > limit else "",
        wanted=wanted,
        limit=limit,
        trouble=trouble,
        line=_line(ask),
    )


@page.get("/schedule")
def schedule(ask: Ask) -> Reply:
    """Show one entry: what it sends, when, and what it has sent."""
    line = _named(ask, ask.text("name", most=_LONGEST_NAME))
    entry, history = line.entry, ask.site.recording.history
    args, kwargs = ask.app.schedules.shown(entry)
    sent = list(reversed(line.record.history))
    known = {each.task_id: history.task(each.task_id) for each in sent if each.task_id} if history is not None else {}
    row = _row(ask, line, _SHOWN)
    return ask.render(
        "schedule.html",
        row=row,
        week=None if row.trouble else _week(ask, line),
        days=DAYS,
        lateness=lateness_of(line.record.history),
        entry=entry,
        record=line.record,
        call={"args": args, "kwargs": kwargs},
        registered=entry.task in ask.app.registry,
        sent=sent,
        known=known,
        line=_line(ask),
    )


@page.get("/schedule/new")
def new(ask: Ask) -> Reply:
    """Show the form of an entry that is to be added."""
    return _form(ask, "", BLANK, before=BLANK)


@page.get("/schedule/edit")
def edit(ask: Ask) -> Reply:
    """Show the form of an entry."""
    line = _named(ask, ask.text("name", most=_LONGEST_NAME))
    fields = _fields(ask, line)
    return _form(ask, line.entry.name, fields, before=fields, line=line)


@page.get("/schedule/backfill")
def backfill_form(ask: Ask) -> Reply:
    """Show the form that asks between which moments an entry is to be sent for each of its times."""
    line = _named(ask, ask.text("name", most=_LONGEST_NAME))
    now = ask.app.clock.now().astimezone(_zone(ask, line)).replace(second=0, microsecond=0)
    given = {"start": (now - timedelta(days=1)).isoformat(timespec="minutes"), "end": now.isoformat(timespec="minutes")}
    return _backfill(ask, line, {**given, "again": ""})


@page.post("/schedules/backfill/preview", "")
def backfill_preview(ask: Ask) -> Reply:
    """Show how often, and for which times, an entry would be sent; and the button that sends it."""
    line = _named(ask, ask.field("name", most=_LONGEST_NAME))
    given = {name: ask.optional(name, most=100).strip() for name in ("start", "end", "again")}
    try:
        span = _span(given)
        due = ask.app.schedules.missed(line.entry.name, *span, again=bool(given["again"]))
    except (ValueError, OverflowError) as error:
        return _backfill(ask, line, given, wrong=reason(error) if isinstance(error, Wrong) else str(error))
    start, end = (each.isoformat() for each in span)
    again = ["--again"] if given["again"] else []
    cli = _line(ask)("backfill", line.entry.name, "--from", start, "--to", end, *again, "--yes")
    zone = _zone(ask, line)
    return _backfill(ask, line, given, due=[each.astimezone(zone) for each in due], start=start, end=end, cli=cli)


@page.post("/schedules/backfill", "schedules.backfill")
def backfill(ask: Ask) -> Reply:
    """Send an entry for each of its times between two moments."""
    name = ask.field("name", most=_LONGEST_NAME)
    _named(ask, name)
    try:
        start, end = _span({field: ask.optional(field, most=100) for field in ("start", "end")})
        ids = ask.app.schedules.backfill(name, start, end, again=bool(ask.optional("again")))
    except (ImproperlyConfigured, EncodeError, ValueError, TypeError, OverflowError) as error:
        ask.refuse(400, " ".join(str(error).split()))
    text = f"{name} was sent for {len(ids):,} {'time' if len(ids) == 1 else 'times'} that had passed."
    return ask.done(text, to="/schedule", target=name, count=len(ids), name=name)


@page.post("/schedules/preview", "")
def preview(ask: Ask) -> Reply:
    """Show what a form means: the times that the entry would have, and the button that saves it."""
    if not ask.may_act:
        ask.refuse(403, "Nothing may be changed here by you.")
    name, add = ask.field("name", most=_LONGEST_NAME), bool(ask.optional("new"))
    line = None if add else _named(ask, name)
    before = BLANK if line is None else _fields(ask, line)
    given = {field: ask.optional(field, most=LONGEST).strip() for field in FIELDS}
    shown: dict[str, Any] = {"given": name}
    try:
        said = changed(given, before)
        if add:
            _unused(ask, name)
        if not said:
            raise Wrong("Nothing is changed.")
        fires = ask.app.schedules.preview(name, count=_PREVIEWED, **said)
        shown |= {"fires": fires, "said": json_dumps(said), "cli": _saved_by(ask, name, said)}
    except (ImproperlyConfigured, Wrong, OverflowError) as error:
        shown["wrong"] = reason(error)
    return _form(ask, "" if add else name, given, before=before, line=line, **shown)


@page.post("/schedules/set", "schedules.set")
def save(ask: Ask) -> Reply:
    """Save what was previewed."""
    name = ask.field("name", most=_LONGEST_NAME)
    try:
        said = json_loads(ask.field("said", most=8 * LONGEST))
        if not isinstance(said, dict) or not said or not set(said) <= set(FIELDS):
            raise Wrong("That is no preview of this page.")
        if ask.optional("new"):
            _unused(ask, name)
        else:
            _named(ask, name)
        ask.app.schedules.set(name, **said)
    except (ImproperlyConfigured, DecodeError, ValueError, TypeError, OverflowError) as error:
        ask.refuse(400, reason(error) if isinstance(error, ImproperlyConfigured | Wrong) else "It cannot be saved so.")
    return ask.done(f"{name} was saved: {', '.join(said)}.", to="/schedule", name=name, target=name, count=1)


@page.post("/schedules/run", "schedules.run")
def run(ask: Ask) -> Reply:
    """Send an entry's task now."""
    sent: list[str] = []
    return _do(ask, lambda name: sent.append(ask.app.schedules.run(name).id), lambda: f"sent as {sent[0]}")


@page.post("/schedules/enable", "schedules.enable")
def enable(ask: Ask) -> Reply:
    """Have an entry sent again."""
    return _do(ask, ask.app.schedules.enable, lambda: "is sent again, from its next time on")


@page.post("/schedules/disable", "schedules.disable")
def disable(ask: Ask) -> Reply:
    """Have an entry not sent any more."""
    return _do(ask, ask.app.schedules.disable, lambda: "is not sent any more")


@page.post("/schedules/reset", "schedules.reset")
def reset(ask: Ask) -> Reply:
    """Take back what people changed of an entry that the program declares."""
    return _do(ask, ask.app.schedules.reset, lambda: "is as the program declares it again")


@page.post("/schedules/remove", "schedules.remove")
def remove(ask: Ask) -> Reply:
    """Remove an entry that no program declares."""
    return _do(ask, ask.app.schedules.remove, lambda: "was removed", gone=True)


# -- inside ------------------------------------------------------------------------------------------------------


def _do(ask: Ask, act: Callable[[str], Any], done: Callable[[], str], *, gone: bool = False) -> Reply:
    """Do something to the entry that the form names."""
    name = ask.field("name", most=_LONGEST_NAME)
    try:
        act(name)
    except KeyError:
        ask.refuse(404, "There is no such entry; somebody may have removed it.")
    except (ImproperlyConfigured, EncodeError, ValueError, TypeError) as error:
        ask.refuse(409, " ".join(str(error).split()))
    listed = gone or bool(ask.optional("listed"))
    query = {} if listed else {"name": name}
    return ask.done(f"{name} {done()}.", to="/schedules" if listed else "/schedule", target=name, count=1, **query)


def _named(ask: Ask, name: str) -> Line:
    try:
        line: Line = ask.app.schedules.get(name)
        return line
    except KeyError:
        ask.refuse(404, "There is no such entry; somebody may have removed it.")
    except ImproperlyConfigured as error:
        ask.refuse(409, reason(error))


def _unused(ask: Ask, name: str) -> None:
    try:
        ask.app.schedules.get(name)
    except KeyError:
        return
    raise Wrong(f"There is an entry {name!r} already; edit that one, or choose another name.")


def _fits(line: Line, wanted: str) -> bool:
    return wanted in line.entry.name.lower() or wanted in line.entry.task.lower()


def _row(ask: Ask, line: Line, count: int) -> Row:
    entry, found = line.entry, ask.app.schedules
    trouble = ""
    fires, error = found.glance(line, count=count)
    if error is not None:
        logger.warning("The times of the schedule entry %r cannot be told", entry.name, exc_info=error)
        trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
    zone = str(entry.schedule.local_zone(found.zone))
    return Row(line=line, when=in_words(entry.schedule), zone=zone, fires=fires, trouble=trouble)


def _week(ask: Ask, line: Line) -> Week | None:
    try:
        return week_of(line, ask.app.schedules.zone, ask.app.clock.now())
    except Exception:  # As in _row; it may also fail only for times that are farther away.
        logger.warning("The week of the schedule entry %r cannot be told", line.entry.name, exc_info=True)
        return None


def _fields(ask: Ask, line: Line) -> dict[str, str]:
    return written(line.entry, veil_of(ask.app.registry.get(line.entry.task)))


def _form(ask: Ask, name: str, fields: Mapping[str, str], *, before: Mapping[str, str], **values: Any) -> Reply:
    """Show the form; with ``fires`` also what it means, with ``wrong`` why it means nothing."""
    if not ask.may_act:
        ask.refuse(403, "Nothing may be changed here by you.")
    line: Line | None = values.pop("line", None)
    told = {"given": name, "fires": None, "said": "", "cli": "", "wrong": "", **values}
    return ask.render(
        "schedule_form.html",
        status=400 if told["wrong"] else 200,
        name=name,
        fields=fields,
        editable=set(before),
        declared=line is not None and line.declared,
        when=in_words(line.entry.schedule) if line is not None else "",
        zone=str(ask.app.schedules.zone),
        known=sorted(each for each in ask.app.registry if not each.startswith("celery.")),
        **told,
    )


def _span(given: Mapping[str, str]) -> tuple[datetime, datetime]:
    """Return the two moments of a form. Raises :exc:`Wrong`."""
    start, end = moment("From", given["start"]), moment("to", given["end"])
    if start is None or end is None:
        raise Wrong("Both moments are needed, such as 2030-01-31T18:00+01:00.")
    if end < start:
        raise Wrong("The last moment lies before the first.")
    return start, end


def _zone(ask: Ask, line: Line) -> tzinfo:
    found: tzinfo = line.entry.schedule.local_zone(ask.app.schedules.zone)
    return found


def _backfill(ask: Ask, line: Line, given: Mapping[str, str], **preview: Any) -> Reply:
    """Show the form; with ``due`` also what it means, with ``wrong`` why it means nothing."""
    if not ask.may_act:
        ask.refuse(403, "Nothing may be changed here by you.")
    told = {"due": None, "start": "", "end": "", "cli": "", "wrong": "", **preview}
    return ask.render(
        "schedule_backfill.html",
        status=400 if told["wrong"] else 200,
        entry=line.entry,
        given=given,
        zone=str(_zone(ask, line)),
        listed=_LISTED_TIMES,
        **told,
    )


def _line(ask: Ask) -> Callable[..., str]:
    """Return what makes the command line of a verb and a name."""

    def made(verb: str, name: str, *more: str) -> str:
        # A name that begins with a dash is no option.
        given = [*more, "--", name] if name.startswith("-") else [name, *more]
        return ask.site.command("schedules", verb, *given)

    return made


def _saved_by(ask: Ask, name: str, said: Mapping[str, Any]) -> str:
    options = words(said)
    if options is not None:
        elsewhere = ["--elsewhere"] if "task" in said and said["task"] not in ask.app.registry else []
        return _line(ask)("set", name, *options, *elsewhere)
    return f">>> app.schedules.set({name!r}, {', '.join(f'{key}={value!r}' for key, value in said.items())})"
