"""Commands about tasks: tasks list, show, why, retry, revoke."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from umbel.cli.errors import EX_FAILED, EX_NOT_FOUND, EX_PARTLY, EX_UNAVAILABLE, Trouble
from umbel.cli.messages import JsonValue
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
from umbel.exceptions import CeleryError, OperationalError

if TYPE_CHECKING:
    from umbel.history import History, TaskRow
    from umbel.history.replay import Replayed

DOCS = "docs/history.md"
_SHOWN = 50
_NO_HISTORY = "nothing was recorded yet; run `umbel dashboard` or `umbel history record` while workers send events (-E)"
_QUERY = "state:failed name:proj.* queue: worker: error: id: root: after:2h before: runtime:>5s, and words"


@click.group("tasks", epilog=f"What is recorded, and how one searches it: {DOCS}")
@global_options()
def tasks() -> None:
    """Find tasks, see why one is not running, send them once more, revoke them.

    \b
    Examples:
      umbel -A proj tasks list state:failed name:proj.mail.* after:2h
      umbel -A proj tasks why 5a1c0e9f-…
      umbel -A proj tasks retry --where 'state:failed error:SMTPError' --rate 5/s
    """


# -- looking -----------------------------------------------------------------------------------------------------


@command("list", epilog="Example: umbel -A proj tasks list state:failed name:proj.mail.* after:2h")
@click.argument("query", nargs=-1)
@click.option("--limit", type=click.IntRange(1), default=_SHOWN, metavar="N", help=f"At most so many; {_SHOWN}.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Go on: the 'next' of a list cut off.")
@output_option
def list_(target: Target, query: Sequence[str], limit: int, after: int, output: str | None) -> None:
    """List recorded tasks, the latest first. QUERY: qualifiers such as state:failed, and beginnings of words."""
    with answered(target, output, DOCS) as app, opened(app) as history:
        rows, more = _found(history, " ".join(query), after, limit)
        list_rows("umbel.tasks.list/1", [brief(row) for row in rows], _COLUMNS, output, more=more or None)
        if more and not target.quiet and not is_json(output):
            click.echo(f"There are more; --after {more} lists the next.", err=True)


@command("show", epilog="Example: umbel -A proj tasks show 5a1c0e9f-… -o json")
@click.argument("id")
@output_option
def show_(target: Target, id: str, output: str | None) -> None:
    """Show one task: its times, attempts, arguments, result, and what went wrong."""
    # With its tasks: they say what is sensitive.
    with answered(target, output, DOCS, tasks=bool(target.app_name)) as app:
        body = _full(app, id)
    if is_json(output):
        click.echo(as_json({"schema": "umbel.tasks.show/1", "data": body, "next": None}))
        return
    attempts, timeline, stored = body.pop("attempts"), body.pop("timeline"), body.pop("stored")
    show((name.replace("_", " "), value) for name, value in body.items())
    for event in timeline:
        detail = f"  {clean(event['detail'])}" if event["detail"] else ""
        click.echo(f"  {event['at']}  {clean(event['kind']):<10} {clean(event['worker'])}{detail}")
    if stored is not None:
        show([("stored result", stored)])
    for attempt in attempts:
        if attempt["traceback"]:
            click.echo(f"\nAttempt {attempt['number']} on {clean(attempt['worker'])}:")
            click.echo("\n".join(clean(line) for line in attempt["traceback"].splitlines()))


@command("why", epilog="Example: umbel -A proj tasks why 5a1c0e9f-…")
@click.argument("id")
@click.option(
    "-t",
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    metavar="SEC",
    help="For workers to answer.",
)
@output_option
def why(target: Target, id: str, timeout: float, output: str | None) -> None:
    """Say where a task is, why it does not run, and what would help. Exit code 3: nobody knows the id."""
    from umbel.history import open_history
    from umbel.why import why as explain

    with answered(target, output, DOCS) as app:
        history = open_history(app)
        try:
            answer = explain(app, id, history=history, timeout=timeout)
        finally:
            if history is not None:
                history.close()
    if is_json(output):
        data = {
            "task_id": answer.task_id,
            "verdict": answer.verdict,
            "text": answer.text,
            "advice": list(answer.advice),
            "unseen": list(answer.unseen),
            "facts": dict(answer.facts),
        }
        click.echo(as_json({"schema": "umbel.tasks.why/1", "data": data, "next": None}))
    else:
        click.echo(clean(answer.text))
        for advice in answer.advice:
            click.echo(f"  - {clean(advice)}")
        for unseen in answer.unseen:
            click.echo(f"  (not known: {clean(unseen)})")
    if answer.verdict == "unknown":
        raise click.exceptions.Exit(EX_NOT_FOUND)


# -- doing -------------------------------------------------------------------------------------------------------


def choosing(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ids, a query, and what goes with changing something."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--dry-run", is_flag=True, help=f"Print what would be {verb}, and change nothing."),
            click.option("-y", "--yes", is_flag=True, help="Do not ask."),
            click.option(
                "--limit", type=click.IntRange(1), default=10_000, metavar="N", help="At most so many; 10000."
            ),
            click.option("--where", metavar="QUERY", help=f"Those that fit: {_QUERY}."),
        ):
            function = option(function)
        return click.argument("ids", nargs=-1)(output_option(function))

    return decorate


@command("retry", epilog="Example: umbel -A proj tasks retry --where 'state:failed error:SMTPError' --rate 5/s")
@choosing("sent")
@click.option(
    "--rate", metavar="RATE", default="50/s", help="At most so many, such as 5/s or 100/m; 50/s. 0: no limit."
)
@click.option("-a", "--args", "args", type=JsonValue(list, "list"), help="Give the one task these arguments.")
@click.option("-k", "--kwargs", "kwargs", type=JsonValue(dict, "object"), help="Give it these named arguments.")
@click.option("--queue", metavar="NAME", help="Send it to this queue.")
@click.option("--countdown", type=float, metavar="SEC", help="Have it start in so many seconds.")
def retry(target: Target, output: str | None, rate: str, **chosen: Any) -> None:
    """Send tasks once more: as a new task of the same arguments, or out of the dead letters.

    Those whose arguments were not kept whole are named and left alone. Of one task --args and the like change the
    call; *** leaves something sensitive as it is, as long as its message is in the broker.
    """
    changes = {name: chosen.pop(name) for name in ("args", "kwargs", "queue", "countdown")}
    if any(value is not None for value in changes.values()):
        if len(chosen["ids"]) != 1 or chosen["where"]:
            raise click.UsageError("--args, --kwargs, --queue and --countdown are for one task: give its id")
        _retry_edited(target, chosen["ids"][0], changes, chosen["dry_run"], output)
        return
    with answered(target, output, DOCS) as app:
        ids = chosen_ids(app, "send", chosen)
        replay(target, app, ids, rate=rate, dry_run=chosen["dry_run"], output=output)


def _retry_edited(target: Target, id: str, changes: Mapping[str, Any], dry_run: bool, output: str | None) -> None:
    """Send one task once more, changed, and tell of it. Exit code 1 if it cannot be sent so."""
    from umbel.history import open_history
    from umbel.history.editing import Changes, Editor

    # With its tasks: they say which arguments they take, and what is sensitive.
    with answered(target, output, DOCS, tasks=bool(target.app_name)) as app:
        history = open_history(app)
        try:
            editor = Editor(app, history)
            original, meant = editor.original(id), Changes(**changes)
            if dry_run:
                editor.check(original, meant)
                _told(target, [{"id": id}], "It would be sent once more, changed.", output, "retry")
                return
            done = editor.send(original, meant)
        except OperationalError:
            raise
        except (TypeError, ValueError, CeleryError) as error:
            raise Trouble(f"{id} not sent: {' '.join(str(error).split())}", EX_FAILED) from error
        finally:
            if history is not None:
                history.close()
        if done.refusal:
            raise Trouble(f"{id} not sent: {done.refusal}", EX_FAILED)
        row = {"id": id, "new_id": done.new_id, "source": done.source, "refusal": None}
        _told(target, [row], "1 sent once more, changed.", output, "retry")


def replay(target: Target, app: Any, ids: Sequence[str], *, rate: str, dry_run: bool, output: str | None) -> None:
    """Send these once more and tell of each. Exit code 5 if some could not be."""
    from umbel.history import open_history
    from umbel.history.replay import Replayer
    from umbel.utils.rates import per_second

    try:
        per = per_second(rate)
    except ValueError as error:
        raise click.UsageError(f"--rate: {error}") from error
    if dry_run:
        _told(target, [{"id": id} for id in ids], f"{len(ids):,} would be sent once more.", output, "retry")
        return
    history = open_history(app)
    done: list[Replayed] = []
    try:
        for each in Replayer(app, history).all(ids, rate=per):
            done.append(each)
    except (CeleryError, KeyboardInterrupt) as error:
        _replayed(target, done, output)
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        raise Trouble(f"stopped after {len(done):,} of {len(ids):,}: {why}", EX_UNAVAILABLE) from error
    finally:
        if history is not None:
            history.close()
    refused = _replayed(target, done, output)
    if refused:
        reasons = "; ".join(dict.fromkeys(each.refusal for each in refused[:100]))
        raise Trouble(f"{len(refused):,} not sent: {reasons}", EX_PARTLY)


def _replayed(target: Target, done: Sequence[Replayed], output: str | None) -> list[Replayed]:
    """Tell what became of each; return those that were refused."""
    rows = [
        {"id": each.id, "new_id": each.new_id or None, "source": each.source or None, "refusal": each.refusal or None}
        for each in done
    ]
    refused = [each for each in done if each.refusal]
    _told(target, rows, f"{len(done) - len(refused):,} sent once more.", output, "retry")
    return refused


@command("revoke", epilog="Example: umbel -A proj tasks revoke --where 'name:proj.mail.* state:received' --yes")
@choosing("revoked")
@click.option("--terminate", is_flag=True, help="End those too that run now.")
@click.option("-s", "--signal", default=None, metavar="NAME", help="With --terminate: this signal instead of SIGTERM.")
def revoke(target: Target, output: str | None, terminate: bool, signal: str | None, **chosen: Any) -> None:
    """Tell workers not to start tasks, by id or by a query. The ids need not be recorded."""
    with answered(target, output, DOCS) as app:
        ids = chosen_ids(app, "revoke", chosen)
        rows = [{"id": id} for id in ids]
        if chosen["dry_run"]:
            _told(target, rows, f"{len(ids):,} would be revoked.", output, "revoke")
            return
        if ids:
            try:
                app.control.revoke(list(ids), terminate=terminate, signal=signal)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
        _told(target, rows, f"{len(ids):,} revoked.", output, "revoke")


def chosen_ids(app: Any, verb: str, chosen: Mapping[str, Any]) -> list[str]:
    """Return the ids that the command line means, after a question where a query chose them."""
    ids, where = list(dict.fromkeys(chosen["ids"])), chosen["where"]
    if bool(ids) == bool(where):
        raise click.UsageError(f"say which to {verb}: ids, or --where with a query, and not both")
    if ids:
        return ids
    if verb == "send":
        from umbel.history.query import not_replayed

        where = not_replayed(where)
    with opened(app) as history:
        rows, _ = _found(history, where, 0, chosen["limit"])
    found = [row.id for row in rows]
    if not chosen["dry_run"]:
        confirm(f"{verb.capitalize()} {len(found):,} tasks?", yes=chosen["yes"], count=len(found))
    return found


def _told(target: Target, rows: Sequence[Mapping[str, Any]], text: str, output: str | None, what: str) -> None:
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {"id": lambda row: row["id"]}
    if any("new_id" in row for row in rows):
        columns["new id"] = lambda row: row["new_id"] or "-"
        columns["from"] = lambda row: row["source"] or row["refusal"]
    list_rows(f"umbel.tasks.{what}/1", rows, columns, output)
    if not target.quiet and not is_json(output):
        click.echo(text, err=True)


# -- the history -------------------------------------------------------------------------------------------------


@contextmanager
def opened(app: Any) -> Iterator[History]:
    """Open the history of an app, which must be there."""
    from umbel.history import open_history

    found = open_history(app)
    if found is None:
        raise Trouble(_NO_HISTORY, EX_NOT_FOUND)
    try:
        yield found
    finally:
        found.close()


def _found(history: History, query: str, after: int, limit: int) -> tuple[list[TaskRow], int]:
    """Return the tasks that fit, and what asks for the next; pages that hold little are followed."""
    from umbel.history import BadQuery

    try:
        return history.find(query, after=after, limit=limit)
    except BadQuery as error:
        raise click.UsageError(str(error)) from error


def rows_of(history: History, query: str, limit: int) -> list[TaskRow]:
    """Return the tasks that fit, the latest first."""
    return _found(history, query, 0, limit)[0]


def brief(row: TaskRow) -> dict[str, Any]:
    """Return a task as a list shows it to programs."""
    return {
        "id": row.id,
        "name": row.name or None,
        "state": row.state,
        "queue": row.queue,
        "worker": row.worker,
        "sent_at": moment(row.sent),
        "received_at": moment(row.received),
        "started_at": moment(row.started),
        "ended_at": moment(row.ended),
        "wait": row.waited,
        "runtime": row.runtime,
        "retries": row.retries,
        "exception": row.exception,
        "error": row.fingerprint,
    }


def _latest(row: Mapping[str, Any]) -> str:
    at = row["ended_at"] or row["started_at"] or row["received_at"] or row["sent_at"]
    return at[:19] + "Z" if at else "-"


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "id": lambda row: row["id"],
    "task": lambda row: row["name"] or "-",
    "state": lambda row: row["state"],
    "at": _latest,
    "runtime": lambda row: seconds(row["runtime"]),
    "worker": lambda row: row["worker"] or "-",
    "exception": lambda row: (row["exception"] or "")[:60],
}


def _full(app: Any, id: str) -> dict[str, Any]:

    from umbel.history import open_history

    meta = stored_meta(app, id)
    history = open_history(app)
    row = history.task(id) if history is not None else None
    stored = result_of(app, meta, [row]) if meta is not None else None
    if row is None and stored is None:
        if history is not None:
            history.close()
        raise not_found(
            f"no task {id} is recorded and no result of it is stored", f"`umbel tasks why {id}` looks further"
        )
    timeline = history.timeline(id) if history is not None else ()
    attempts = history.attempts(id) if history is not None else ()
    if history is not None:
        history.close()
    known: dict[str, Any] = {"id": id, "state": stored["state"] if stored is not None else None}
    if row is not None:
        known = {
            **brief(row),
            **{name: getattr(row, name) for name in ("args", "kwargs", "result", "eta", "expires", "root", "parent")},
        }
    return {
        **known,
        "stored": stored,
        "attempts": [
            {
                "number": each.number,
                "worker": each.worker,
                "state": each.state or None,
                "received_at": moment(each.received),
                "started_at": moment(each.started),
                "ended_at": moment(each.ended),
                "runtime": each.runtime,
                "exception": each.exception,
                "traceback": each.traceback,
            }
            for each in attempts
        ],
        "timeline": [
            {"at": moment(each.at), "kind": each.kind, "worker": each.worker, "detail": each.detail}
            for each in timeline
        ],
    }


def stored_meta(app: Any, id: str) -> dict[str, Any] | None:
    """Return what is stored of a task. For :func:`result_of`: people may not see it as it is."""
    from umbel.meta import decoder

    payload = app.backend.fetch([id]).get(id) if app.backend is not None else None
    return None if payload is None else decoder(app.conf)(payload)


def result_of(app: Any, meta: Mapping[str, Any], told: Iterable[Any] = ()) -> dict[str, Any]:
    """Return a stored result as people may see it: ``***`` where the task's ``sensitive`` hides it.

    :param told: what else tells of the call, each with ``name``, ``args`` and ``kwargs``, or None: the result itself
        says its task only with ``result_extended``.
    """
    from umbel.sensitive import HIDDEN

    calls = [(meta.get("name"), meta.get("args"), meta.get("kwargs"))]
    calls += [(each.name, each.args, each.kwargs) for each in told if each is not None]
    result = meta["result"]
    if isinstance(result, BaseException):
        result = f"{type(result).__name__}: {result}"
    if _hides_result(app, calls):
        result = HIDDEN
    return {"state": meta["status"], "result": result, "done_at": meta.get("date_done")}


def _hides_result(app: Any, calls: Sequence[tuple[Any, Any, Any]]) -> bool:
    """Say whether nobody may see what a call returned; where nobody can say which call it was, none of its kind."""
    from umbel.sensitive import HIDDEN, veil_of

    def hides(task: Any) -> bool:
        veil = veil_of(task)
        return veil is not None and veil.everything

    names = {name for name, _, _ in calls if isinstance(name, str) and name}
    tasks = [task for name in names if (task := app.registry.get(name)) is not None]
    if tasks:
        return any(map(hides, tasks))
    if any(args == HIDDEN and kwargs == HIDDEN for _, args, kwargs in calls):
        # A task that is not known here: its sender said what is to be hidden.
        return True
    return not names and any(map(hides, list(app.registry.values())))


for _command in (list_, show_, why, retry, revoke):
    tasks.add_command(_command)
