"""Commands about workflows: workflows list, show, graph, retry, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from umbel.cli.options import Target, command, global_options
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
    seconds,
    show,
)
from umbel.cli.tasks import opened, replay

if TYPE_CHECKING:
    from umbel.history import History, Member, Workflow
    from umbel.history.shape import Node, Shape

DOCS = "docs/canvas.md"
_SHOWN = 50


@click.group("workflows", epilog=f"What belongs together, and how one sees it: {DOCS}")
@global_options()
def workflows() -> None:
    """See chains, groups and chords as a whole; send once more what failed of one, cancel the rest.

    \b
    Examples:
      umbel -A proj workflows list state:failed after:2h
      umbel -A proj workflows show 5a1c0e9f-…
      umbel -A proj workflows graph 5a1c0e9f-… --format mermaid
    """


@command("list", epilog="Example: umbel -A proj workflows list name:proj.import.* after:2h")
@click.argument("query", nargs=-1)
@click.option("--limit", type=click.IntRange(1, 500), default=_SHOWN, metavar="N", help=f"At most so many; {_SHOWN}.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Go on: the 'next' of a list cut off.")
@output_option
def list_(target: Target, query: Sequence[str], limit: int, after: int, output: str | None) -> None:
    """List recorded workflows, the latest first. QUERY says what a task of it must be, as of 'tasks list'."""
    from umbel.history import BadQuery

    with answered(target, output, DOCS) as app, opened(app) as history:
        try:
            page = history.workflows(" ".join(query), after=after, limit=limit)
        except BadQuery as error:
            raise click.UsageError(str(error)) from error
        rows = [_brief(each) for each in page.workflows]
        list_rows("umbel.workflows.list/1", rows, _COLUMNS, output, more=page.next or None)
        if not target.quiet and not is_json(output):
            if page.next:
                click.echo(f"There are more; --after {page.next} lists the next.", err=True)
            if page.cut:
                click.echo("More tasks fit than are looked at: older workflows may be missing.", err=True)


@command("show", epilog="Example: umbel -A proj workflows show 5a1c0e9f-… -o json")
@click.argument("id")
@output_option
def show_(target: Target, id: str, output: str | None) -> None:
    """Show one workflow and its tasks. ID is its own, or that of any task of it."""
    from umbel.cli.workflow_text import ascii_lines
    from umbel.history.shape import shape_of

    with answered(target, output, DOCS) as app, opened(app) as history:
        found, members = _found(history, id)
    shape = shape_of(members)
    body = _brief(found)
    if is_json(output):
        body["tasks"] = [_task(member) for member in members]
        click.echo(as_json({"schema": "umbel.workflows.show/1", "data": body, "next": None}))
        return
    body["duration"] = seconds(body["duration"])
    body["states"] = _counts(body)
    show((name.replace("_", " "), value) for name, value in body.items())
    click.echo()
    for line in ascii_lines(shape):
        click.echo(line)


@command("graph", epilog="Example: umbel -A proj workflows graph 5a1c0e9f-… --format dot | dot -Tsvg > workflow.svg")
@click.argument("id")
@click.option(
    "--format",
    "form",
    type=click.Choice(["ascii", "dot", "mermaid"]),
    default="ascii",
    help="For a terminal, for Graphviz, or for Mermaid; ascii.",
)
@output_option
def graph(target: Target, id: str, form: str, output: str | None) -> None:
    """Draw one workflow. A group of more than 30 is one node; '*' is the critical path."""
    from umbel.cli.workflow_text import ascii_lines, dot_lines, mermaid_lines
    from umbel.history.shape import shape_of

    with answered(target, output, DOCS) as app, opened(app) as history:
        shape = shape_of(_found(history, id)[1])
    if is_json(output):
        click.echo(as_json({"schema": "umbel.workflows.graph/1", "data": _drawn(shape), "next": None}))
        return
    for line in {"ascii": ascii_lines, "dot": dot_lines, "mermaid": mermaid_lines}[form](shape):
        click.echo(line)


@command("retry", epilog="Example: umbel -A proj workflows retry 5a1c0e9f-… --rate 5/s")
@click.argument("id")
@click.option("--rate", metavar="RATE", default="50/s", help="At most so many, such as 5/s or 100/m; 50/s.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and change nothing.")
@output_option
def retry(target: Target, id: str, rate: str, yes: bool, dry_run: bool, output: str | None) -> None:
    """Send the failed tasks of a workflow once more, where nothing failed below them.

    As new tasks of the same arguments, or out of the dead letters. What waits for them goes on only where a dead
    letter was put back.
    """
    from umbel.history.workflows import failed_leaves

    with answered(target, output, DOCS) as app:
        with opened(app) as history:
            ids = failed_leaves(_found(history, id)[1])
        if not dry_run:
            confirm(f"Send {len(ids):,} tasks once more?", yes=yes, count=len(ids))
        replay(target, app, ids, rate=rate, dry_run=dry_run, output=output)


@command("cancel", epilog="Example: umbel -A proj workflows cancel 5a1c0e9f-… --terminate")
@click.argument("id")
@click.option("--terminate", is_flag=True, help="End those too that run now.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Print what would be revoked, and change nothing.")
@output_option
def cancel(target: Target, id: str, terminate: bool, yes: bool, dry_run: bool, output: str | None) -> None:
    """Revoke what has not ended of a workflow, and the steps behind it."""
    from umbel.history.workflows import unfinished

    with answered(target, output, DOCS) as app:
        with opened(app) as history:
            ids = unfinished(_found(history, id)[1])
        if not dry_run:
            confirm(f"Revoke {len(ids):,} tasks?", yes=yes, count=len(ids))
            if ids:
                app.control.revoke(ids, terminate=terminate)
        rows = [{"id": each} for each in ids]
        list_rows("umbel.workflows.cancel/1", rows, {"id": lambda row: row["id"]}, output)
        if not target.quiet and not is_json(output):
            click.echo(f"{len(ids):,} {'would be ' if dry_run else ''}revoked.", err=True)


# -- as it is printed --------------------------------------------------------------------------------------------


def _found(history: History, id: str) -> tuple[Workflow, Sequence[Member]]:
    found = history.workflow(id)
    if found is None:
        raise not_found(f"no workflow {id} is recorded", "a task without relatives is none; see `umbel tasks show`")
    return found, history.members(found)


def _brief(found: Workflow) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name or None,
        "total": found.total,
        "states": dict(found.states),
        "ended": found.ended,
        "began_at": moment(found.first),
        "latest_at": moment(found.latest),
        "duration": found.duration(time.time()),
    }


def _counts(row: Mapping[str, Any]) -> str:
    from umbel.history.shape import progress

    return progress(row["states"])


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "id": lambda row: row["id"],
    "first task": lambda row: clean(row["name"] or "-"),
    "done": _counts,
    "began": lambda row: row["began_at"][:19] + "Z",
    "took": lambda row: seconds(row["duration"]),
}


def _task(member: Member) -> dict[str, Any]:
    return {
        "id": member.id,
        "name": member.name or None,
        "state": member.state,
        "parent": member.parent,
        "group": member.group_id,
        "sent_at": moment(member.sent),
        "started_at": moment(member.started),
        "ended_at": moment(member.ended),
        "runtime": member.runtime,
        "retries": member.retries,
    }


def _drawn(shape: Shape) -> dict[str, Any]:
    return {"nodes": [_node(node) for node in shape.nodes], "edges": [list(edge) for edge in shape.edges]}


def _node(node: Node) -> dict[str, Any]:
    return {
        "kind": node.kind,
        "id": node.id,
        "name": node.name or None,
        "states": dict(node.states),
        "label": node.label,
        "waits": node.waits or None,
        "started_at": moment(node.started),
        "ended_at": None if node.running else moment(node.ended),
        "critical": node.critical,
    }


for _command in (list_, show_, graph, retry, cancel):
    workflows.add_command(_command)
