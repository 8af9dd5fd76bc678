"""Commands about errors, grouped by what they have in common: errors list, show, retry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import click

from umbel.cli.options import Target, command, global_options
from umbel.cli.output import (
    Past,
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
from umbel.cli.tasks import DOCS, opened, replay, rows_of


@click.group("errors", epilog=f"What makes two failures the same error: {DOCS}")
@global_options()
def errors() -> None:
    """See which errors tasks end with, grouped, and send what failed once more.

    \b
    Examples:
      umbel -A proj errors list --since 1h
      umbel -A proj errors show 3f9a
      umbel -A proj errors retry 3f9a --rate 5/s
    """


def _brief(group: Any) -> dict[str, Any]:
    return {
        "error": group.fingerprint,
        "type": group.type,
        "message": group.message,
        "frame": group.frame,
        "count": group.count,
        "first_at": moment(group.first),
        "latest_at": moment(group.latest),
        "task": group.name or None,
        "task_id": group.task,
    }


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "error": lambda row: row["error"],
    "count": lambda row: f"{row['count']}",
    "latest": lambda row: row["latest_at"][:19] + "Z",
    "type": lambda row: row["type"],
    "message": lambda row: row["message"][:60],
    "where": lambda row: row["frame"],
    "task": lambda row: row["task"] or "-",
}


@command("list", epilog="Example: umbel -A proj errors list --since 1h")
@click.option("--since", type=Past(), metavar="TIME", help="Seen since: a time, or an age such as 2h.")
@click.option("--limit", type=click.IntRange(1), default=50, metavar="N", help="At most so many; 50.")
@output_option
def list_(target: Target, since: datetime | None, limit: int, output: str | None) -> None:
    """List the errors of tasks, the latest first."""
    with answered(target, output, DOCS) as app, opened(app) as history:
        found = history.errors(since=since.timestamp() if since is not None else 0.0, limit=limit)
        list_rows("umbel.errors.list/1", [_brief(group) for group in found], _COLUMNS, output)


@command("show", epilog="Example: umbel -A proj errors show 3f9a")
@click.argument("error")
@output_option
def show_(target: Target, error: str, output: str | None) -> None:
    """Show one error with its latest traceback. ERROR is its word from the list, or the beginning of it."""
    with answered(target, output, DOCS) as app, opened(app) as history:
        group = history.error(error)
        if group is None:
            raise not_found(f"no error, or more than one, begins with {error!r}", "`umbel errors list` names them")
        body = {**_brief(group), "exception": group.exception, "traceback": group.traceback}
    if is_json(output):
        click.echo(as_json({"schema": "umbel.errors.show/1", "data": body, "next": None}))
        return
    traceback = body.pop("traceback")
    show((name.replace("_", " "), value) for name, value in body.items())
    if traceback:
        click.echo("\n" + "\n".join(clean(line) for line in traceback.splitlines()))


@command("retry", epilog="Example: umbel -A proj errors retry 3f9a --rate 5/s --limit 10")
@click.argument("error")
@click.option("--rate", metavar="RATE", default="10/s", help="At most so many, such as 5/s or 100/m; 10/s.")
@click.option("--limit", type=click.IntRange(1), default=10_000, metavar="N", help="At most so many; 10000.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and change nothing.")
@output_option
def retry(target: Target, error: str, rate: str, limit: int, yes: bool, dry_run: bool, output: str | None) -> None:
    """Send the tasks that failed with one error once more, not faster than --rate. Try a few first: --limit 3.

    Those in whose place another was sent already are left out.
    """
    from umbel.history.query import not_replayed

    with answered(target, output, DOCS) as app:
        with opened(app) as history:
            group = history.error(error)
            if group is None:
                raise not_found(f"no error, or more than one, begins with {error!r}", "`umbel errors list` names them")
            wanted = f"state:failed error:{group.fingerprint}"
            ids = [row.id for row in rows_of(history, not_replayed(wanted), limit)]
        if not dry_run:
            confirm(f"Send {len(ids):,} tasks once more?", yes=yes, count=len(ids))
        replay(target, app, ids, rate=rate, dry_run=dry_run, output=output)


for _command in (list_, show_, retry):
    errors.add_command(_command)
