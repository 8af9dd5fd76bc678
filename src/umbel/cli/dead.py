"""Commands about dead letters: dead list, show, requeue, discard."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from umbel.cli.errors import EX_FAILED, EX_NOT_FOUND, EX_PARTLY, Trouble
from umbel.cli.messages import JsonValue
from umbel.cli.options import COMMA_LIST, Target, command, global_options
from umbel.cli.output import Command, Past, answered, as_json, clean, confirm, is_json, list_rows, output_option
from umbel.exceptions import EncodeError

if TYPE_CHECKING:
    from umbel.dead import DeadLetter

DOCS = "docs/dead-letters.md"
_SHOWN = 100


def _died(item: Mapping[str, Any]) -> str:
    return datetime.fromisoformat(item["died_at"]).isoformat(timespec="seconds")


_COLUMNS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "id": lambda item: str(item["id"]),
    "died": _died,
    "task": lambda item: item["task"] or "-",
    "task id": lambda item: item["task_id"] or "-",
    "reason": lambda item: str(item["reason"]),
    "crashes": lambda item: str(len(item["crashes"])),
}


def _reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the reason. What no message dies of is a usage error: nothing found would look like good news."""
    from umbel.dead import REASONS
    from umbel.utils.text import did_you_mean

    if value is not None and value not in REASONS:
        hint = did_you_mean(value, REASONS) or f"; it is one of {', '.join(sorted(REASONS))}"
        raise click.BadParameter(f"no message dies of {value!r}{hint}", ctx, param)
    return value


def filters(function: Command) -> Command:
    """Add the options that choose letters."""
    for option in (
        click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most so many; 0: all."),
        click.option("--older-than", type=Past(), metavar="TIME", help="Died before: a time, or an age such as 7d."),
        click.option("--since", type=Past(), metavar="TIME", help="Died since: a time, or an age such as 2h."),
        click.option("--reason", callback=_reason, help="Died of this, for example max_deliveries."),
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


@command("list", epilog="Example: umbel -A proj dead list --since 2h --task 'proj.mail.*'")
@filters
@output_option
@click.option("--after", default="", metavar="ID", help="Go on behind this letter: the 'next' of a list cut off.")
def list_(target: Target, after: str, output: str | None, limit: int | None, **chosen: Any) -> None:
    """List dead letters, the latest of each queue first; 100 unless --limit says otherwise."""
    with answered(target, output, DOCS) as app:
        wanted = _SHOWN if limit is None else limit or None
        # One more tells whether there are more.
        letters = app.dead.list(**_filters(chosen), after=after, limit=None if wanted is None else wanted + 1)
        shown = letters[:wanted]
        more = shown[-1].id if len(shown) < len(letters) else None
        _print(shown, output, "list", more)
        if more is not None and not target.quiet and not is_json(output):
            click.echo(f"There are more; --limit 0 lists all, --after {more} the next.", err=True)


@command("show", epilog="Example: umbel -A proj dead show 1fe2a1c0-… -o json")
@click.argument("id")
@output_option
def show(target: Target, id: str, output: str | None) -> None:
    """Show one dead letter: ID is the id of its task, or the letter's own from the list, such as mail:17."""
    with answered(target, output, DOCS) as app:
        letter = app.dead.get(id)
        if letter is None:
            raise _missing(id)
        body = _full(app, letter)
    if is_json(output):
        click.echo(as_json({"schema": "umbel.dead.show/1", "data": body, "next": None}))
        return
    traceback, crashes = body.pop("traceback"), body.pop("crashes")
    body.pop("raw")
    for name, value in body.items():
        if value not in (None, ""):
            text = value if isinstance(value, str) else as_json(value)
            click.echo(f"{name.replace('_', ' ') + ':':<11}{clean(text)}")
    for number, crash in enumerate(crashes, 1):
        cause = clean(crash["cause"] or "unknown")
        click.echo(f"crash {number}:   {crash['at']}  {clean(crash['consumer'])}  {cause}")
    if traceback:
        click.echo("\n" + "\n".join(clean(line) for line in traceback.splitlines()))


@command("requeue", epilog="Example: umbel -A proj dead requeue --reason unregistered --yes")
@click.option("-a", "--args", "args", type=JsonValue(list, "list"), help="Give the one letter these arguments.")
@click.option("-k", "--kwargs", "kwargs", type=JsonValue(dict, "object"), help="Give it these named arguments.")
@click.option("--to", "to", metavar="QUEUE", help="Put it into this queue.")
@click.option("--countdown", type=float, metavar="SEC", help="Have it start in so many seconds.")
@choosing("requeued")
def requeue(
    target: Target,
    output: str | None,
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    to: str | None,
    countdown: float | None,
    **chosen: Any,
) -> None:
    """Put dead letters back at the tail of their queues, by id (of a task or a letter), by filter, or --all.

    Their crashes and pauses no longer count. The results stay until the tasks have run. Of one letter --args and the
    like change the call; *** leaves something sensitive as it is.
    """
    changes = {"args": args, "kwargs": kwargs, "queue": to, "countdown": countdown}
    edits = any(value is not None for value in changes.values())
    if edits and len(chosen["ids"]) != 1:
        raise click.UsageError("--args, --kwargs, --to and --countdown are for one letter: give its id")
    # With its tasks: they say which arguments they take.
    with answered(target, output, DOCS, tasks=edits and target.names_app) as app:
        act = _editing(app, changes, chosen["dry_run"]) if edits else _kept if chosen["dry_run"] else app.dead.requeue
        _change(target, app, "requeue", act, output, chosen)


def _editing(app: Any, changes: Mapping[str, Any], dry_run: bool) -> Callable[..., list[DeadLetter]]:
    """Return what puts a letter back changed; what is None stays."""

    def edit(letter: DeadLetter) -> list[DeadLetter]:
        try:
            if dry_run:
                app.dead.check_edited(letter, **changes)
                return [letter]
            there = app.dead.requeue_edited(letter, **changes)
        except (TypeError, ValueError, EncodeError) as error:
            raise Trouble(" ".join(str(error).split()), EX_FAILED) from error
        return [letter] if there else []

    return edit


@command("discard", epilog="Example: umbel -A proj dead discard --older-than 30d --dry-run")
@choosing("discarded")
def discard(target: Target, output: str | None, **chosen: Any) -> None:
    """Delete dead letters by id (of a task or a letter), by filter, or --all. There is no way back."""
    with answered(target, output, DOCS) as app:
        _change(target, app, "discard", _kept if chosen["dry_run"] else app.dead.discard, output, chosen)


def _kept(*letters: DeadLetter) -> list[DeadLetter]:
    """Do nothing to them: what a dry run does."""
    return list(letters)


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
    done = list(act(*letters)) if letters else []
    _print(done, output, verb, None)
    count = f"{len(done)} dead {'letter' if len(done) == 1 else 'letters'}"
    if not target.quiet and not is_json(output):
        click.echo(f"{count} would be {verb}{_ed(verb)}." if dry_run else f"{count} {verb}{_ed(verb)}.", err=True)
    gone = [letter.id for letter in letters if letter not in done]
    if gone or missing:
        names = ", ".join([*missing, *gone][:10])
        why = "they are not there" if all(letter.whole for letter in letters) else "they are not there, or not whole"
        raise Trouble(f"{len(gone) + len(missing)} not {verb}{_ed(verb)}, because {why}: {names}", EX_PARTLY)


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
    confirm(
        f"{verb.capitalize()} {len(letters):,} dead letters ({where})?",
        yes=False,
        count=len(letters),
        what="dead letters",
    )


def _missing(*ids: str) -> Trouble:
    return Trouble(
        f"no dead letter {', '.join(map(clean, ids))}; `umbel dead list` names those there are", EX_NOT_FOUND
    )


# -- printing ----------------------------------------------------------------------------------------------------


def _print(letters: Sequence[DeadLetter], output: str | None, what: str, more: str | None) -> None:
    list_rows(f"umbel.dead.{what}/1", [_brief(each) for each in letters], _COLUMNS, output, more=more)


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
    args, kwargs, _ = app.dead.shown(letter) or (None, None, False)
    return {
        **_brief(letter),
        "args": args,
        "kwargs": kwargs,
        "traceback": letter.traceback,
        "raw": base64.b64encode(letter.raw).decode("ascii") if app.dead.is_plain(letter) else None,
    }


for _command in (list_, show, requeue, discard):
    dead.add_command(_command)
