"""Commands about periodic tasks: ``schedules list``, ``next``, ``set``, ``backfill`` and the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from umbel.cli.errors import EX_CONFIG, EX_NOT_FOUND, EX_REFUSED, Trouble
from umbel.cli.options import ParamType, Target, command, global_options
from umbel.cli.output import (
    answered,
    as_json,
    clean,
    confirm,
    is_json,
    list_rows,
    moment,
    not_found,
    output_option,
    show,
)
from umbel.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from umbel.periodic.editing import Fire
    from umbel.periodic.table import Fired, Line

DOCS = "docs/schedules.md"


class Json(ParamType):
    """A value in JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


class Moment(ParamType):
    """A moment in ISO 8601; without an offset it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return it as an aware datetime."""
        try:
            found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2030-01-31T18:00:00+01:00", param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@click.group("schedules", epilog=f"Schedules, time zones and what is caught up: {DOCS}")
@global_options()
def schedules() -> None:
    """Look at periodic tasks, and change them while beat runs.

    \b
    Examples:
      umbel -A proj schedules list
      umbel -A proj schedules next nightly -n 5
      umbel -A proj schedules set report --task proj.report --schedule '0 4 * * mon' --timezone Europe/Berlin
      umbel -A proj schedules backfill nightly --from 2030-01-01 --to 2030-01-08
    """


@contextmanager
def _opened(target: Target, output: str | None) -> Iterator[Any]:
    """Give ``app.schedules``, with all that the task modules declare; what goes wrong is told as was asked for."""
    with answered(target, output, DOCS) as app:
        try:
            if target.names_app:
                target.load_tasks()
            yield app.schedules
        except ImproperlyConfigured as error:
            raise Trouble(" ".join(str(error).split()), EX_CONFIG) from error
        except KeyError as error:
            raise Trouble(f"{error.args[0]}; 'umbel schedules list' names all", EX_NOT_FOUND) from error
        except ValueError as error:
            raise Trouble(str(error), EX_REFUSED) from error


# -- looking ---------------------------------------------------------------------------------------------------------


@command("list", epilog="Example: umbel -A proj schedules list -o json")
@output_option
def list_(target: Target, output: str | None) -> None:
    """List the periodic tasks."""
    with _opened(target, output) as found:
        items = [_brief(found, line) for line in found.list()]
        columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "name": lambda each: str(each["name"]),
            "when": lambda each: str(each["when"]),
            "task": lambda each: str(each["task"]),
            "state": lambda each: "on" if each["enabled"] else "off",
            "next": lambda each: str(each["next"] or each["trouble"] or "-"),
            "last": lambda each: str(each["last_run_at"] or "-"),
            "by": lambda each: "program" if each["declared"] else "store",
        }
        list_rows("umbel.schedules.list/1", items, columns, output)


@command("show", epilog="Example: umbel -A proj schedules show nightly")
@click.argument("name")
@output_option
def show_(target: Target, name: str, output: str | None) -> None:
    """Show one periodic task."""
    with _opened(target, output) as found:
        line = found.get(name)
        entry, record = line.entry, line.record
        args, kwargs = found.shown(entry)
        body = {
            **_brief(found, line),
            "timezone": str(entry.schedule.local_zone(found.zone)),
            "args": args,
            "kwargs": kwargs,
            "options": dict(entry.options),
            "catch_up": entry.catch_up,
            "deadline": entry.deadline,
            "overlap": entry.overlap,
            "last_id": record.last_id or None,
            "changed": sorted(record.changed),
        }
    if is_json(output):
        click.echo(as_json({"schema": "umbel.schedules.show/1", "data": body, "next": None}))
        return
    show((key.replace("_", " "), value) for key, value in body.items())


@command("next", epilog="Example: umbel -A proj schedules next nightly -n 5")
@click.argument("name", required=False)
@click.option("-n", "--count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many times.")
@click.option("--after", type=Moment(), metavar="TIME", help="After this moment, and not after now.")
@output_option
def next_(target: Target, name: str | None, count: int, after: datetime | None, output: str | None) -> None:
    """Print what is sent when, and what happens when clocks change: of one entry, or of all."""
    with _opened(target, output) as found:
        items = [_fire(fire) for fire in found.next(name, count=count, after=after)]
        columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "at": lambda each: str(each["at"]),
            "name": lambda each: str(each["name"]),
            "task": lambda each: str(each["task"]),
            "notes": lambda each: "; ".join(each["notes"]),
        }
        list_rows("umbel.schedules.next/1", items, columns, output)


@command("history", epilog="Example: umbel -A proj schedules history nightly")
@click.argument("name")
@output_option
def history(target: Target, name: str, output: str | None) -> None:
    """List the latest sendings of a periodic task, the newest first."""
    with _opened(target, output) as found:
        items = [_fired(each) for each in found.history(name)]
        columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "due": lambda each: str(each["due"]),
            "sent": lambda each: str(each["sent"]),
            "task id": lambda each: str(each["task_id"] or "-"),
            "note": lambda each: str(each["note"] or ""),
        }
        list_rows("umbel.schedules.history/1", items, columns, output)


def _brief(found: Any, line: Line) -> dict[str, Any]:
    from umbel.periodic.recurrence import in_words

    entry, record = line.entry, line.record
    coming, error = found.glance(line, count=1)
    return {
        "name": entry.name,
        "task": entry.task,
        "when": in_words(entry.schedule),
        "enabled": entry.enabled,
        "declared": line.declared,
        "next": coming[0].at.isoformat(timespec="seconds") if coming else None,
        "trouble": None if error is None else f"{type(error).__name__}: {' '.join(str(error).split())}",
        "last_run_at": moment(record.last_run_at),
        "count": record.count,
    }


def _fire(fire: Fire) -> dict[str, Any]:
    at = fire.at.isoformat(timespec="seconds")
    return {"name": fire.name, "task": fire.task, "at": at, "notes": list(fire.notes)}


def _fired(each: Fired) -> dict[str, Any]:
    said = {"task_id": each.task_id or None, "note": each.note or None}
    return {"due": moment(each.due), "sent": moment(each.at), **said}


# -- changing --------------------------------------------------------------------------------------------------------


@command("run", epilog="Example: umbel -A proj schedules run nightly")
@click.argument("name")
@output_option
def run(target: Target, name: str, output: str | None) -> None:
    """Send a periodic task now, and print its id."""
    with _opened(target, output) as found:
        result = found.run(name)
    body = {"schema": "umbel.schedules.run/1", "data": {"name": name, "task_id": result.id}, "next": None}
    click.echo(as_json(body) if is_json(output) else result.id)


@command("enable", epilog="Example: umbel -A proj schedules enable nightly")
@click.argument("names", nargs=-1, required=True)
@output_option
def enable(target: Target, names: tuple[str, ...], output: str | None) -> None:
    """Have periodic tasks sent again, each from its next time on."""
    with _opened(target, output) as found:
        _changed(target, "enable", [_brief(found, found.enable(name)) for name in names], output)


@command("disable", epilog="Example: umbel -A proj schedules disable nightly")
@click.argument("names", nargs=-1, required=True)
@output_option
def disable(target: Target, names: tuple[str, ...], output: str | None) -> None:
    """Have periodic tasks not sent any more."""
    with _opened(target, output) as found:
        _changed(target, "disable", [_brief(found, found.disable(name)) for name in names], output)


@command("set", epilog="Example: umbel -A proj schedules set report --task proj.report --schedule '0 4 * * mon'")
@click.argument("name")
@click.option("--task", metavar="TASK", help="The task's name.")
@click.option("--schedule", metavar="WHEN", help="30s, '5 minutes', '0 4 * * mon', @daily, or one time in ISO 8601.")
@click.option("--timezone", metavar="ZONE", help="Where local times are meant, for example Europe/Berlin.")
@click.option("--start", type=Moment(), metavar="TIME", help="Not before.")
@click.option("--end", type=Moment(), metavar="TIME", help="Not after.")
@click.option("--jitter", type=click.FloatRange(0), metavar="SEC", help="Put each time off by up to so many seconds.")
@click.option("-a", "--args", type=Json(), metavar="JSON", help="The arguments: a list.")
@click.option("-k", "--kwargs", type=Json(), metavar="JSON", help="The keyword arguments: an object.")
@click.option("--options", type=Json(), metavar="JSON", help='As for apply_async: {"queue": "fast"}.')
@click.option("--catch-up", type=click.Choice(["last", "skip", "all"]), help="What is sent of times that were missed.")
@click.option("--deadline", type=click.FloatRange(0), metavar="SEC", help="A missed time older than this is left out.")
@click.option("--overlap/--no-overlap", default=None, help="Whether it is sent while the one before has not ended.")
@click.option("--enabled/--disabled", default=None, help="Whether it is sent at all.")
@click.option("--elsewhere", is_flag=True, help="The task is one that only other programs know.")
@output_option
def set_(target: Target, name: str, output: str | None, elsewhere: bool, **said: Any) -> None:
    """Add a periodic task, or change some of one. What has passed is not sent.

    A new schedule says all about when: give zone, bounds and jitter with it again. Of a task that the program declares
    the change lasts until 'reset'.
    """
    given = {key: value for key, value in said.items() if value is not None}
    for key in ("start", "end"):
        if key in given:
            given[key] = given[key].isoformat()
    for key, kind in (("args", list), ("kwargs", dict), ("options", dict)):
        if key in given and not isinstance(given[key], kind):
            what = "a list" if kind is list else "an object"
            raise click.UsageError(f"--{key} is {what} in JSON, and not {given[key]!r}")
    if not given:
        raise click.UsageError("say what to set: --schedule, --task, --args, …")
    with _opened(target, output) as found:
        if target.app_name and "task" in given and not elsewhere:
            _check_task(target.app, given["task"])
        _changed(target, "set", [_brief(found, found.set(name, **given))], output)


def _check_task(app: Any, task: str) -> None:
    """End with exit code 3 where an app has tasks, and none of that name: beat would send it to nobody."""
    from umbel.utils.text import did_you_mean

    own = sorted(name for name in app.tasks if not name.startswith("celery."))
    if own and task not in app.tasks:
        hint = did_you_mean(task, own) or f"; it has {', '.join(own[:10])}{' …' if len(own) > 10 else ''}"
        raise not_found(f"this app has no task {task!r}", f"--elsewhere sets it all the same{hint}")


@command("reset", epilog="Example: umbel -A proj schedules reset nightly")
@click.argument("names", nargs=-1, required=True)
@output_option
def reset(target: Target, names: tuple[str, ...], output: str | None) -> None:
    """Take back what was changed of periodic tasks that the program declares."""
    with _opened(target, output) as found:
        _changed(target, "reset", [_brief(found, found.reset(name)) for name in names], output)


@command("remove", epilog="Example: umbel -A proj schedules remove report")
@click.argument("names", nargs=-1, required=True)
@output_option
def remove(target: Target, names: tuple[str, ...], output: str | None) -> None:
    """Remove periodic tasks that the program does not declare."""
    with _opened(target, output) as found:
        for name in names:
            found.remove(name)
        _changed(target, "remove", [{"name": name} for name in names], output)


@command("backfill", epilog="Example: umbel -A proj schedules backfill nightly --from 2030-01-01 --to 2030-01-08")
@click.argument("name")
@click.option("--from", "start", type=Moment(), required=True, metavar="TIME", help="The first moment.")
@click.option("--to", "end", type=Moment(), required=True, metavar="TIME", help="The last moment; it must have passed.")
@click.option("--most", type=click.IntRange(1), default=1000, show_default=True, help="Refuse more times than this.")
@click.option("--again", is_flag=True, help="Also those that were sent before.")
@click.option("--dry-run", is_flag=True, help="Print the times, and send nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option
def backfill(target: Target, name: str, output: str | None, dry_run: bool, yes: bool, **said: Any) -> None:
    """Send a periodic task for each of its times between two moments.

    Each time has one task id, whoever sends it; what was sent before is left out.
    """
    with _opened(target, output) as found:
        due = found.missed(name, **said)
        if dry_run:
            items = [{"name": name, "at": each.isoformat(timespec="seconds")} for each in due]
            list_rows("umbel.schedules.backfill/1", items, {"at": lambda each: str(each["at"])}, output)
            return
        confirm(f"Send {name!r} {len(due):,} times?", yes=yes, count=len(due))
        ids = found.backfill(name, **said)
    items = [{"name": name, "task_id": id} for id in ids]
    list_rows("umbel.schedules.backfill/1", items, {"task id": lambda each: str(each["task_id"])}, output)
    if not target.quiet and not is_json(output):
        click.echo(f"{len(ids)} {'task' if len(ids) == 1 else 'tasks'} sent.", err=True)


def _changed(target: Target, verb: str, items: list[dict[str, Any]], output: str | None) -> None:
    """Say what was changed."""
    if output == "json":
        click.echo(as_json({"schema": f"umbel.schedules.{verb}/1", "data": items, "next": None}))
    elif output == "jsonl":
        for item in items:
            click.echo(as_json(item))
    elif not target.quiet:
        done = {"set": "set", "reset": "reset"}.get(verb, f"{verb}d")
        for item in items:
            following = f"; next at {item['next']}" if item.get("next") else ""
            click.echo(f"{clean(item['name'])} {done}{following}", err=True)


for _command in (list_, show_, next_, history, run, enable, disable, set_, reset, remove, backfill):
    schedules.add_command(_command)
