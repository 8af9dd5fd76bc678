"""Commands about queues: queues list, show, peek, pause, resume, purge, move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from umbel.cli.errors import EX_CONFIG, EX_FAILED, EX_NOT_FOUND, Trouble
from umbel.cli.options import Target, command, global_options
from umbel.cli.output import (
    Command,
    answered,
    as_json,
    clean,
    confirm,
    is_json,
    list_rows,
    not_found,
    output_option,
    show,
)
from umbel.exceptions import ImproperlyConfigured, QueueNotFound
from umbel.interfaces import Place
from umbel.utils.text import did_you_mean, one_line

if TYPE_CHECKING:
    from umbel.pausing import Pause

DOCS = "docs/queues.md"
_PEEKED = 20
_MOVED = 1000
_ANSWER = 1.0  # seconds that workers get to answer


@click.group("queues", epilog=f"What pausing promises, and what it does not: {DOCS}")
@global_options()
def queues() -> None:
    """Look at queues; pause and resume them, empty them, move what is in them.

    \b
    Examples:
      umbel -A proj queues list
      umbel -A proj queues pause mail --reason 'the provider is down'
      umbel -A proj queues resume mail
    """


def _number(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda item: "-" if item[name] is None else str(item[name])


def _since(item: Mapping[str, Any]) -> str:
    paused = item["paused"]
    if paused is None:
        return "-"
    return f"since {paused['at'][:19]}Z" + (f": {paused['why']}" if paused["why"] else "")


_COLUMNS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "queue": lambda item: str(item["queue"]),
    "ready": _number("ready"),
    "scheduled": _number("scheduled"),
    "unacked": _number("unacked"),
    "dead": _number("dead"),
    "workers": _number("consumers"),
    "paused": _since,
}


# -- looking -----------------------------------------------------------------------------------------------------


@command(
    "list",
    short_help="List the queues that are known, how full they are, and which are paused.",
    epilog="Example: umbel -A proj queues list -o json",
)
@output_option
def list_(target: Target, output: str | None) -> None:
    """List every queue that is known: declared, routed to, read by a worker, paused, or with dead letters.

    What the broker does not tell is '-'.
    """
    with answered(target, output, DOCS) as app:
        readers, paused = _readers(app), app.queues.paused()
        names = sorted({*app.queues.known(), *(name for read in readers.values() for name in read)})
        items = [_look(app, name, readers, paused) for name in names]
    list_rows("umbel.queues.list/1", items, _COLUMNS, output)


@command(
    "show",
    short_help="Show one queue: its messages, who reads it, since when it is paused.",
    epilog="Example: umbel -A proj queues show mail",
)
@click.argument("name")
@output_option
def show_(target: Target, name: str, output: str | None) -> None:
    """Show one queue: how full it is, how it is bound, who reads it, and since when it is paused."""
    with answered(target, output, DOCS) as app:
        _known(app, name)
        readers = _readers(app)
        spec = app.router.queues.get(name)
        data = {
            **_look(app, name, readers, app.queues.paused()),
            "exchange": spec.exchange if spec is not None else None,
            "routing_key": spec.routing_key if spec is not None else None,
            "readers": sorted(node for node, read in readers.items() if name in read),
        }
    if is_json(output):
        click.echo(as_json({"schema": "umbel.queues.show/1", "data": data, "next": None}))
        return
    paused = data.pop("paused")
    show((name.replace("_", " "), value) for name, value in data.items() if name != "consumers")
    if paused is not None:
        show([("paused since", paused["at"]), ("paused by", paused["by"]), ("paused why", paused["why"])])


@command(
    "peek",
    short_help="Show the next messages of a queue, which stay there.",
    epilog="Example: umbel -A proj queues peek mail --limit 5 -o json",
)
@click.argument("name")
@click.option("--scheduled", is_flag=True, help="What waits for its time, the soonest first.")
@click.option("--limit", type=click.IntRange(1), default=_PEEKED, metavar="N", help=f"At most so many; {_PEEKED}.")
@output_option
def peek(target: Target, name: str, scheduled: bool, limit: int, output: str | None) -> None:
    """Show the next messages of a queue, which stay there. What is sensitive stays hidden.

    RabbitMQ shows a message only to whoever takes it, so there they are taken and given back, as delivered before.
    """
    from umbel.dashboard.reading import shown

    # With its tasks: they say what is sensitive.
    with answered(target, output, DOCS, tasks=target.names_app) as app:
        _known(app, name)
        place = Place.SCHEDULED if scheduled else Place.READY
        items = [_message(shown(app, each)) for each in app.broker.peek(name, place=place, limit=limit)]
    list_rows("umbel.queues.peek/1", items, _MESSAGE, output)


_MESSAGE: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "id": lambda item: str(item["id"] or "-"),
    "task": lambda item: str(item["task"] or item["trouble"]),
    "arguments": lambda item: "" if item["trouble"] else one_line(f"{item['args']} {item['kwargs']}", 80),
    "due": lambda item: str(item["due"] or "-"),
    "retries": lambda item: str(item["retries"]),
    "origin": lambda item: str(item["origin"] or "-"),
}


def _message(seen: Any) -> dict[str, Any]:
    due = seen.due.isoformat() if seen.due is not None else None
    names = ("id", "task", "args", "kwargs", "retries", "origin", "bytes", "trouble")
    return {**{name: getattr(seen, name) for name in names}, "due": due}


def _readers(app: Any) -> dict[str, list[str]]:
    """Return which workers read which queues; where the broker does not know them, as they say themselves."""
    if app.broker.store() is not None:
        found: dict[str, list[str]] = app.queues.readers()
        return found
    replies = app.control.inspect(timeout=_ANSWER).active_queues() or {}
    return {
        node: [str(each.get("name")) for each in told if isinstance(each, dict)]
        for node, told in replies.items()
        if isinstance(told, list)
    }


def _look(app: Any, name: str, readers: Mapping[str, Sequence[str]], paused: Mapping[str, Pause]) -> dict[str, Any]:
    """Return one queue as programs get it. None is what the broker does not tell."""
    broker, pause = app.broker, paused.get(name)
    # Such a broker tells of its own consumers alone, and nothing of its delays.
    blind = broker.features.lease == "connection"
    return {
        "queue": name,
        "ready": broker.size(name),
        "scheduled": None if blind else broker.size(name, Place.SCHEDULED),
        "unacked": None if blind else broker.size(name, Place.HELD),
        "dead": broker.size(name, Place.DEAD),
        "consumers": sum(name in read for read in readers.values()),
        "paused": _paused(pause) if pause is not None else None,
    }


def _paused(pause: Pause) -> dict[str, str]:
    return {"at": pause.at.isoformat(), "by": pause.by, "why": pause.why}


# -- pausing -----------------------------------------------------------------------------------------------------


def new_option(function: Command) -> Command:
    """Add ``--new``."""
    return click.option("--new", is_flag=True, help="Also a queue that nothing is known of yet.")(function)


@command(
    "pause",
    short_help="Have workers fetch nothing from queues until they are resumed.",
    epilog="Example: umbel -A proj queues pause mail --reason 'the provider is down'",
)
@click.argument("names", nargs=-1, required=True)
@click.option("-r", "--reason", default="", help="Why, for whoever wonders.")
@new_option
@output_option
def pause(target: Target, names: Sequence[str], reason: str, new: bool, output: str | None) -> None:
    """Pause queues: they take messages, and no worker of Umbel fetches from them until they are resumed.

    Workers heed it within about a second. What runs goes on; what was fetched and has not started goes back. It lasts
    over restarts of workers and broker. Celery's workers do not know of it.
    """
    with answered(target, output, DOCS) as app, _refused():
        for name in names:
            if not new:
                _known(app, name)
        done = {name: app.queues.pause(name, reason) for name in names}
    items = [{"queue": name, "paused": _paused(pause)} for name, pause in done.items()]
    if is_json(output):
        list_rows("umbel.queues.pause/1", items, {}, output)
        return
    for item in items:
        click.echo(f"{clean(str(item['queue']))} is paused {clean(_since(item))}")
    if not target.quiet:
        click.echo("Workers heed it within about a second; what runs goes on.", err=True)


@command(
    "resume", short_help="Have workers fetch from queues again.", epilog="Example: umbel -A proj queues resume mail"
)
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All queues that are paused.")
@output_option
def resume(target: Target, names: Sequence[str], everything: bool, output: str | None) -> None:
    """Resume queues: workers fetch from them again within about a second."""
    if bool(names) == everything:
        raise click.UsageError("name the queues to resume, or give --all")
    with answered(target, output, DOCS) as app, _refused():
        chosen = list(app.queues.paused()) if everything else names
        items = [{"queue": name, "resumed": app.queues.resume(name)} for name in chosen]
    if is_json(output):
        list_rows("umbel.queues.resume/1", items, {}, output)
        return
    for item in items:
        click.echo(f"{clean(str(item['queue']))} {'is resumed' if item['resumed'] else 'was not paused'}")


# -- emptying and moving -----------------------------------------------------------------------------------------


@command(
    "purge", short_help="Discard all messages of a queue.", epilog="Example: umbel -A proj queues purge mail --yes"
)
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option
def purge(target: Target, name: str, yes: bool, output: str | None) -> None:
    """Discard all messages of a queue, delayed ones included. There is no way back; dead letters stay."""
    places = (Place.READY, Place.SCHEDULED)
    with answered(target, output, DOCS) as app:
        _known(app, name)
        count = sum(app.broker.size(name, place) for place in places)
        confirm(f"Discard {count:,} messages of {clean(name)}?", yes=yes, count=count, what="messages")
        gone = sum(app.broker.purge(name, place) for place in places)
    _told(output, "purge", {"queue": name, "purged": gone}, f"{_many(gone)} of {clean(name)} discarded.")


@command(
    "move",
    short_help="Move messages from one queue to another.",
    epilog="Example: umbel -A proj queues move mail mail-later --task proj.newsletter --limit 500",
)
@click.argument("name")
@click.argument("to")
@click.option("--task", metavar="NAME", help="Only this task.")
@click.option("--limit", type=click.IntRange(1), default=_MOVED, metavar="N", help=f"At most so many; {_MOVED}.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@new_option
@output_option
def move(
    target: Target, name: str, to: str, task: str | None, limit: int, yes: bool, new: bool, output: str | None
) -> None:
    """Move messages that are ready from queue NAME to queue TO, each as it is, paused or not.

    A message is taken away only when the other queue has it. What waits for its time stays.
    """
    from umbel.contrib.migrate import move as move_messages

    if name == to:
        raise click.UsageError(f"they are in {name!r} already")
    with answered(target, output, DOCS) as app, _refused():
        _known(app, name)
        if not new:
            _known(app, to)
        count = min(app.broker.size(name), limit)
        question = f"Move up to {count:,} messages from {clean(name)} to {clean(to)}?"
        confirm(question, yes=yes, count=count, what="messages")

        def decide(body: Any, message: Any) -> str | None:
            return to if task is None or body["task"] == task else None

        moved = move_messages(decide, app=app, queues=[name], limit=limit, timeout=0.0).filtered
    data = {"queue": name, "to": to, "moved": moved}
    _told(output, "move", data, f"{_many(moved)} moved from {clean(name)} to {clean(to)}.")


def _told(output: str | None, what: str, data: Mapping[str, Any], text: str) -> None:
    if is_json(output):
        click.echo(as_json({"schema": f"umbel.queues.{what}/1", "data": data, "next": None}))
    else:
        click.echo(text)


def _many(count: int) -> str:
    return f"{count:,} {'message' if count == 1 else 'messages'}"


# -- what may be wrong -------------------------------------------------------------------------------------------


def _known(app: Any, name: str) -> None:
    """End the command with exit code 3 for a name that is nobody's: it may be a slip, and the slip would be heeded."""
    known = app.queues.known()
    # What was only ever named by a sender is known by its messages.
    if name in known or any(app.broker.size(name, place) for place in (Place.READY, Place.SCHEDULED, Place.HELD)):
        return
    near = did_you_mean(clean(name), known).removeprefix("; ")
    advice = near or "`umbel queues list` names those there are"
    raise not_found(f"nothing is known of a queue {name!r}", advice)


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ImproperlyConfigured as error:
        raise Trouble(" ".join(str(error).split()), EX_CONFIG) from error
    except QueueNotFound as error:
        raise Trouble(str(error), EX_NOT_FOUND) from error
    except ValueError as error:
        raise Trouble(str(error), EX_FAILED) from error


for _command in (list_, show_, peek, pause, resume, purge, move):
    queues.add_command(_command)
