"""Commands about dead letters: dead list, show, requeue, discard."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any

import click

from umbel.cli.errors import EX_NOT_FOUND, EX_PARTLY, EX_REFUSED, EX_UNAVAILABLE, Trouble
from umbel.cli.options import COMMA_LIST, ParamType, Target, command, global_options
from umbel.exceptions import OperationalError

if TYPE_CHECKING:
    from umbel.dead import DeadLetter

DOCS = "docs/dead-letters.md"
_SHOWN = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_COLUMNS = ("id", "died", "task", "task id", "reason", "crashes")


class Past(ParamType):
    """A moment in ISO 8601 (without an offset it is UTC), or how long ago: 90s, 15m, 2h, 7d, 4w."""

    name = "time or age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return it as an aware datetime."""
        if isinstance(value, datetime):
            return value
        found = _AGO.fullmatch(value.strip())
        try:
            if found is not None:
                return datetime.now(UTC) - timedelta(seconds=float(found[1]) * _UNITS[found[2]])
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither an age such as 2h nor a time such as 2030-01-31T18:00:00+00:00", param, ctx
            )
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class JsonTrouble(Trouble):
    """A :class:`Trouble` for programs: one JSON object on standard error."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message, trouble.exit_code)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the object."""
        message, _, hint = self.message.partition("; ")
        error = {"code": self.exit_code, "message": message, "hint": hint or None, "docs": DOCS}
        click.echo(json.dumps({"error": error}), file=file, err=file is None)


Command = Callable[..., Any]


def output_option(function: Command) -> Command:
    """Add ``-o``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "plain", "json", "jsonl"]),
        help="How to print; on a terminal a table, else plain: lines with tabs.",
    )(function)


def filters(function: Command) -> Command:
    """Add the options that choose letters."""
    for option in (
        click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most so many; 0: all."),
        click.option("--older-than", type=Past(), metavar="TIME", help="Died before: a time, or an age such as 7d."),
        click.option("--since", type=Past(), metavar="TIME", help="Died since: a time, or an age such as 2h."),
        click.option("--reason", help="Died of this, for example max_deliveries."),
        click.option("--task", metavar="NAME", help="Of this task; proj.mail.* is every name that begins so."),
        click.option("-Q", "--queue", type=COMMA_LIST, metavar="LIST", help="Only these queues."),
    ):
        function = option(function)
    return function


def choosing(verb: str) -> Callable[[Command], Command]:
    """Add ids, filters and what goes with changing something."""

    def decorate(function: Command) -> Command:
        for option in (
            click.option("--dry-run", is_flag=True, help=f"Print what would be {verb}, and change nothing."),
            click.option("-y", "--yes", is_flag=True, help="Do not ask."),
            click.option("--all", "everything", is_flag=True, help="All dead letters."),
        ):
            function = option(function)
        return click.argument("ids", nargs=-1)(filters(output_option(function)))

    return decorate


@click.group("dead", epilog=f"Why messages die, and what helps: {DOCS}")
@global_options()
def dead() -> None:
    """Look at dead letters: messages that no worker will run again. Put them back, or discard them.

    \b
    Examples:
      umbel -A proj dead list --since 2h --task 'proj.mail.*'
      umbel -A proj dead show 1fe2a1c0-…
      umbel -A proj dead requeue --reason unregistered --yes
    """


@contextmanager
def _opened(target: Target, output: str | None) -> Iterator[Any]:
    """Give the app; what goes wrong is told in the way that was asked for."""
    app = target.load(needed=not target.broker)
    try:
        yield app
    except OperationalError as error:
        if output not in ("json", "jsonl"):
            raise
        raise JsonTrouble(Trouble(" ".join(str(error).split()), EX_UNAVAILABLE)) from error
    except Trouble as trouble:
        if output not in ("json", "jsonl"):
            raise
        raise JsonTrouble(trouble) from trouble
    finally:
        app.close()


@command("list", epilog="Example: umbel -A proj dead list --since 2h --task 'proj.mail.*'")
@filters
@output_option
@click.option("--after", default="", metavar="ID", help="Go on behind this letter: the 'next' of a list cut off.")
def list_(target: Target, after: str, output: str | None, limit: int | None, **chosen: Any) -> None:
    """List dead letters, the latest of each queue first; 100 unless --limit says otherwise."""
    with _opened(target, output) as app:
        wanted = _SHOWN if limit is None else limit or None
        # One more tells whether there are more.
        letters = app.dead.list(**_filters(chosen), after=after, limit=None if wanted is None else wanted + 1)
        shown = letters[:wanted]
        more = shown[-1].id if len(shown) < len(letters) else None
        _print(shown, output, "list", more)
        if more is not None and not target.quiet and output not in ("json", "jsonl"):
            click.echo(f"There are more; --limit 0 lists all, --after {more} the next.", err=True)


@command("show", epilog="Example: umbel -A proj dead show 1fe2a1c0-… -o json")
@click.argument("id")
@output_option
def show(target: Target, id: str, output: str | None) -> None:
    """Show one dead letter: ID is the id of its task, or the letter's own from the list, such as mail:17."""
    with _opened(target, output) as app:
        letter = app.dead.get(id)
        if letter is None:
            raise _missing(id)
        body = _full(app, letter)
    if output in ("json", "jsonl"):
        click.echo(_json({"schema": "umbel.dead.show/1", "data": body, "next": None}))
        return
    traceback, crashes = body.pop("traceback"), body.pop("crashes")
    body.pop("raw")
    for name, value in body.items():
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
            click.echo(f"{name.replace('_', ' ') + ':':<11}{clean(text)}")
    for number, crash in enumerate(crashes, 1):
        cause = clean(crash["cause"] or "unknown")
        click.echo(f"crash {number}:   {crash['at']}  {clean(crash['consumer'])}  {cause}")
    if traceback:
        click.echo("\n" + "\n".join(clean(line) for line in traceback.splitlines()))


@command("requeue", epilog="Example: umbel -A proj dead requeue --reason unregistered --yes")
@choosing("requeued")
def requeue(target: Target, output: str | None, **chosen: Any) -> None:
    """Put dead letters back at the tail of their queues, by id (of a task or a letter), by filter, or --all.

    Their crashes and pauses no longer count. The results stay until the tasks have run.
    """
    with _opened(target, output) as app:
        _change(target, app, "requeue", app.dead.requeue, output, chosen)


@command("discard", epilog="Example: umbel -A proj dead discard --older-than 30d --dry-run")
@choosing("discarded")
def discard(target: Target, output: str | None, **chosen: Any) -> None:
    """Delete dead letters by id (of a task or a letter), by filter, or --all. There is no way back."""
    with _opened(target, output) as app:
        _change(target, app, "discard", app.dead.discard, output, chosen)


def _change(
    target: Target,
    app: Any,
    verb: str,
    act: Callable[..., Sequence[DeadLetter]],
    output: str | None,
    chosen: dict[str, Any],
) -> None:
    """Choose letters, ask, and do it to them."""
    ids, yes, dry_run = chosen.pop("ids"), chosen.pop("yes"), chosen.pop("dry_run")
    letters, missing = _chosen(app, verb, ids, chosen)
    if missing and not letters:
        raise _missing(*missing)
    if not dry_run and letters and not ids and not yes:
        _confirm(verb, letters)
    done = letters if dry_run else list(act(*letters)) if letters else []
    _print(done, output, verb, None)
    count = f"{len(done)} dead {'letter' if len(done) == 1 else 'letters'}"
    if not target.quiet and output not in ("json", "jsonl"):
        click.echo(f"{count} would be {verb}{_ed(verb)}." if dry_run else f"{count} {verb}{_ed(verb)}.", err=True)
    gone = [letter.id for letter in letters if letter not in done]
    if gone or missing:
        names = ", ".join([*missing, *gone][:10])
        raise Trouble(
            f"{len(gone) + len(missing)} not {verb}{_ed(verb)}, because they are not there: {names}", EX_PARTLY
        )


def _ed(verb: str) -> str:
    return "d" if verb.endswith("e") else "ed"


def _chosen(app: Any, verb: str, ids: Sequence[str], chosen: dict[str, Any]) -> tuple[list[DeadLetter], list[str]]:
    """Return the letters that the command line means, and the ids that are not there."""
    everything, limit = chosen.pop("everything"), chosen.pop("limit")
    narrowed = any(value is not None for value in chosen.values()) or limit is not None
    if ids and (everything or narrowed):
        raise click.UsageError("give ids, or filters, not both")
    if ids:
        found = {id: app.dead.get(id) for id in dict.fromkeys(ids)}
        return [letter for letter in found.values() if letter], [id for id, letter in found.items() if letter is None]
    if not everything and not narrowed:
        raise click.UsageError(f"say which to {verb}: ids, filters, or --all")
    return app.dead.list(**_filters(chosen), limit=limit or None), []


def _filters(chosen: dict[str, Any]) -> dict[str, Any]:
    given = dict(chosen)
    given["until"] = given.pop("older_than")
    return given


def _confirm(verb: str, letters: Sequence[DeadLetter]) -> None:
    queues: dict[str, int] = {}
    for letter in letters:
        queues[letter.queue] = queues.get(letter.queue, 0) + 1
    where = ", ".join(f"{count:,} of {clean(queue)}" for queue, count in queues.items())
    if not sys.stdin.isatty():
        raise Trouble(f"nobody is here to be asked about {len(letters):,} dead letters; --yes does not ask", EX_REFUSED)
    if not click.confirm(f"{verb.capitalize()} {len(letters):,} dead letters ({where})?", err=True):
        raise Trouble("nothing was changed", EX_REFUSED)


def _missing(*ids: str) -> Trouble:
    return Trouble(
        f"no dead letter {', '.join(map(clean, ids))}; `umbel dead list` names those there are", EX_NOT_FOUND
    )


# -- printing ----------------------------------------------------------------------------------------------------


def _print(letters: Sequence[DeadLetter], output: str | None, what: str, more: str | None) -> None:
    if output == "json":
        click.echo(_json({"schema": f"umbel.dead.{what}/1", "data": [_brief(each) for each in letters], "next": more}))
    elif output == "jsonl":
        for letter in letters:
            click.echo(_json(_brief(letter)))
    elif output == "plain" or (output is None and not sys.stdout.isatty()):
        for letter in letters:
            click.echo("\t".join(_cells(letter)))
    elif letters:
        rows = [_COLUMNS, *map(_cells, letters)]
        widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
        for row in rows:
            click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    died = letter.at.isoformat(timespec="seconds")
    cells = (letter.id, died, letter.task or "-", letter.task_id or "-", letter.reason, str(len(letter.crashes)))
    return tuple(map(clean, cells))


def _brief(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "queue": letter.queue,
        "task": letter.task or None,
        "task_id": letter.task_id or None,
        "reason": letter.reason,
        "detail": letter.detail,
        "died_at": letter.at.isoformat(),
        "retries": letter.retries,
        "crashes": [
            {"at": crash.at.isoformat(), "consumer": crash.consumer, "cause": crash.cause} for crash in letter.crashes
        ],
    }


def _full(app: Any, letter: DeadLetter) -> dict[str, Any]:
    arguments = app.dead.arguments(letter)
    return {
        **_brief(letter),
        "args": None if arguments is None else list(arguments[0]),
        "kwargs": None if arguments is None else arguments[1],
        "traceback": letter.traceback,
        "raw": base64.b64encode(letter.raw).decode("ascii"),
    }


def _json(value: Any) -> str:
    # Arguments may be of types that JSON has not.
    return json.dumps(value, ensure_ascii=False, default=repr)


def clean(text: str) -> str:
    """Return a stranger's text so that it cannot move the cursor of a terminal or begin a new line.

    >>> clean("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


for _command in (list_, show, requeue, discard):
    dead.add_command(_command)
