"""Commands about messages and results: call, result, purge, list."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from umbel.cli.errors import EX_CONFIG, EX_FAILED, EX_NOT_FOUND, EX_REFUSED, EX_TIMED_OUT, Trouble
from umbel.cli.options import COMMA_LIST, ParamType, Target, command, global_options
from umbel.exceptions import TimeoutError


class JsonValue(ParamType):
    """A JSON text of one type."""

    def __init__(self, kind: type, word: str) -> None:
        self.kind = kind
        self.name = f"JSON {word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the decoded value."""
        if isinstance(value, self.kind):
            return value
        try:
            decoded = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(decoded, self.kind):
            self.fail(f"{value!r} must be a {self.name}", param, ctx)
        return decoded


class Moment(ParamType):
    """A date and time in ISO 8601; without an offset it is UTC."""

    name = "ISO-8601 time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return it as an aware datetime."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2030-01-31T18:00:00+00:00", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class MomentOrSeconds(Moment):
    """The same, or a number of seconds from now."""

    name = "seconds or ISO-8601 time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or an aware datetime."""
        try:
            return float(value)
        except (TypeError, ValueError):
            return super().convert(value, param, ctx)


@command("call", epilog="Example: umbel -A proj call proj.tasks.add -a '[2, 2]' --countdown 10")
@click.argument("name")
@click.option("-a", "--args", "args", type=JsonValue(list, "list"), default="[]", help="Positional arguments.")
@click.option("-k", "--kwargs", "kwargs", type=JsonValue(dict, "object"), default="{}", help="Named arguments.")
@click.option("--eta", type=Moment(), help="Run it at this time.")
@click.option("--countdown", type=float, help="Run it in so many seconds.")
@click.option("--expires", type=MomentOrSeconds(), help="Do not run it after this.")
@click.option("--serializer", help="How the arguments are encoded; json unless the app says otherwise.")
@click.option("--queue", help="Send it to this queue.")
@click.option("--exchange", help="Send it to this exchange.")
@click.option("--routing-key", help="With this routing key.")
def call(target: Target, name: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> None:
    """Call the task NAME and print its id."""
    app = target.load(needed=not target.broker)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        click.echo(app.send_task(name, args=args, kwargs=kwargs, **given).id)
    finally:
        app.close()


@command("result", epilog="Example: umbel -A proj result 5a1c0e9f-… --timeout 10")
@click.argument("task_id")
@click.option("-t", "--task", help="Use the result backend of this task.")
@click.option("--traceback", is_flag=True, help="Print the traceback instead of the value.")
@click.option("--timeout", type=float, help="Give up after so many seconds (exit code 75).")
@click.option("--wait", "unknown", is_flag=True, help="Wait also for an id that nobody knows yet.")
@click.option("--watch", is_flag=True, help="Meanwhile show how far the task says that it is.")
def result(
    target: Target, task_id: str, task: str | None, traceback: bool, timeout: float | None, unknown: bool, watch: bool
) -> None:
    """Wait for the result of TASK_ID and print it. A failed task ends with exit code 1.

    A task that is queued or runs is waited for. An id of which nothing is known ends with exit code 3, where the broker
    can tell: RabbitMQ cannot.
    """
    from umbel.cli.awaiting import wait

    app = target.load_tasks() if task else target.load(needed=not target.result_backend)
    try:
        if task and task not in app.tasks:
            raise Trouble(f"task {task!r} is not registered in this app", EX_NOT_FOUND)
        handle = app.tasks[task].AsyncResult(task_id) if task else app.AsyncResult(task_id)
        try:
            value = wait(target, app, handle, timeout, unknown=unknown, watch=watch)
        except NotImplementedError as error:
            if app.backend is None:
                why = "no results are kept; set result_backend, or say with --result-backend where they are"
                raise Trouble(why, EX_CONFIG) from error
            # One that sends results to their callers alone.
            raise Trouble(" ".join(str(error).split()), EX_CONFIG) from error
        except TimeoutError as error:
            raise Trouble(f"no result of {task_id} after {timeout:g} s", EX_TIMED_OUT) from error
        if traceback:
            click.echo(handle.traceback or "")
        elif handle.state != "SUCCESS":
            raise Trouble(f"{handle.state}: {type(value).__name__}: {value}", EX_FAILED)
        else:
            click.echo(value if isinstance(value, str) else repr(value))
    finally:
        app.close()


def _queues(app: Any, names: Iterable[str] | None, without: Iterable[str] | None = None) -> list[Any]:
    excluded = set(without or ())
    return [queue for queue in app.queues(list(names) if names else None) if queue.name not in excluded]


@command("purge")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("-Q", "--queues", type=COMMA_LIST, metavar="LIST", help="Only these queues.")
@click.option("-X", "--exclude-queues", type=COMMA_LIST, metavar="LIST", help="All but these.")
def purge(target: Target, force: bool, queues: list[str] | None, exclude_queues: list[str] | None) -> None:
    """Discard every message that waits in the app's queues, delayed ones included. There is no way back."""
    from umbel.interfaces import Place

    app = target.load(needed=not target.broker)
    try:
        chosen = _queues(app, queues, exclude_queues)
        names = ", ".join(queue.name for queue in chosen)
        if not force:
            _confirm(f"This discards every message in {len(chosen)} queue(s): {names}. Go on?")
        count = sum(app.broker.purge(queue.name, place) for queue in chosen for place in (Place.READY, Place.SCHEDULED))
    finally:
        app.close()
    where = "queue" if len(chosen) == 1 else "queues"
    if count:
        messages = "message" if count == 1 else "messages"
        click.echo(f"Purged {count} {messages} from {len(chosen)} known task {where}.")
    else:
        click.echo(f"No messages purged from {len(chosen)} {where}.")


def _confirm(question: str) -> None:
    import sys

    if not sys.stdin.isatty():
        raise Trouble("nobody is here to be asked; -f discards without asking", EX_REFUSED)
    if not click.confirm(question, err=True):
        raise Trouble("nothing was discarded", EX_REFUSED)


@click.group("list")
@global_options()
def list_() -> None:
    """List queues and how they are bound."""


@command("bindings", short_help="Print where each queue gets its messages from.")
def bindings(target: Target) -> None:
    """Print queue, exchange and routing key of each queue of the app."""
    app = target.load(needed=not target.broker)
    rows = [(queue.name, queue.exchange, queue.routing_key) for queue in app.queues(None)]
    click.echo(_row(("Queue", "Exchange", "Routing Key")))
    click.echo(_row(("-" * 16,) * 3))
    for row in rows:
        click.echo(_row(row))


@command("queues", short_help="Print how many messages are in each queue.")
def queues(target: Target) -> None:
    """Print how many messages are ready, delayed, held and dead in each queue that is known."""
    from umbel.interfaces import Place

    app = target.load(needed=not target.broker)
    try:
        places = (Place.READY, Place.SCHEDULED, Place.HELD, Place.DEAD)
        rows = [(name, *(str(app.broker.size(name, place)) for place in places)) for name in app.queues.known()]
    finally:
        app.close()
    click.echo(_row(("Queue", *(place.value.capitalize() for place in places)), 10))
    for row in rows:
        click.echo(_row(row, 10))


def _row(cells: Iterable[str], width: int = 28) -> str:
    first, *rest = cells
    return " ".join([f"{first:<28}", *(f"{cell:<{width}}" for cell in rest)]).rstrip()


list_.add_command(bindings)
list_.add_command(queues)
