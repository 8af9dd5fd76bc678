"""Commands about workers: workers list, show, ping, stacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import click

from umbel.cli.errors import EX_FAILED, EX_PARTLY, EX_UNAVAILABLE, Trouble
from umbel.cli.options import Target, command, global_options
from umbel.cli.output import (
    Command,
    answered,
    as_json,
    clean,
    is_json,
    list_rows,
    moment,
    not_found,
    output_option,
    seconds,
    show,
)
from umbel.cli.remote import NOBODY, registered_workers
from umbel.utils.text import did_you_mean

DOCS = "docs/monitoring.md"
_SILENT: Final = "{name} is registered, and did not answer: remote control may be off there, or the machine is busy"


def timeout_option(function: Command) -> Command:
    """Add ``-t``."""
    return click.option(
        "-t", "--timeout", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, metavar="SEC",
        help="For workers to answer.",
    )(function)  # fmt: skip


@click.group("workers", epilog=f"What workers tell of themselves: {DOCS}")
@global_options()
def workers() -> None:
    """See which workers are there, what they do, and where they are stuck.

    \b
    Examples:
      umbel -A proj workers list
      umbel -A proj workers show w1@box
      umbel -A proj workers ping && echo alive
      umbel -A proj workers stacks w1@box
    """


_COLUMNS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "name": lambda item: str(item["name"]),
    "state": lambda item: str(item["state"]),
    "system": lambda item: item["system"] or "-",
    "pool": lambda item: item["pool"] or "-",
    "running": lambda item: _of(item["running"], item["concurrency"]),
    "started": lambda item: _or_dash(item["started"]),
    "up": lambda item: seconds(item["uptime"]),
    "queues": lambda item: ", ".join(item["queues"]) or "-",
}


@command("list", epilog="Example: umbel -A proj workers list -o json")
@timeout_option
@output_option
def list_(target: Target, timeout: float, output: str | None) -> None:
    """List the workers that answer, and those that are registered. Exit code 69 if there is none.

    One that is registered and does not answer is 'silent'.
    """
    with answered(target, output, DOCS) as app:
        registered = registered_workers(app)
        told = _ask(app, None, timeout, "stats", "active", "active_queues")
        names = sorted({*registered, *(name for replies in told.values() for name in replies)})
        if not names:
            raise Trouble(NOBODY, EX_UNAVAILABLE)
        items = [_brief(name, registered, told) for name in names]
        list_rows("umbel.workers.list/1", items, _COLUMNS, output)


@command("show", epilog="Example: umbel -A proj workers show w1@box")
@click.argument("name")
@timeout_option
@output_option
def show_(target: Target, name: str, timeout: float, output: str | None) -> None:
    """Show one worker: its processes, what it runs, reads and knows. Exit code 3: nobody has that name.

    Exit code 69: it is registered and does not answer.
    """
    with answered(target, output, DOCS) as app:
        registered = registered_workers(app)
        told = _ask(app, [name], timeout, "stats", "active", "reserved", "active_queues", "registered")
        if name not in told["stats"]:
            raise _absent(app, name, registered, timeout)
        stats, running = told["stats"][name], told["active"].get(name)
        pool = _mapping(stats.get("pool"))
        data = {
            **_brief(name, registered, told),
            "processes": _list(pool.get("processes")),
            "tasks_per_child": pool.get("max-tasks-per-child"),
            "reserved": len(_list(told["reserved"].get(name))),
            "memory": _memory(stats),
            "tasks": [_running(each) for each in _list(running) if isinstance(each, dict)],
            "started_by_task": _mapping(stats.get("total")),
            "registered": [str(each) for each in _list(told["registered"].get(name))],
        }
    if is_json(output):
        click.echo(as_json({"schema": "umbel.workers.show/1", "data": data, "next": None}))
        return
    tasks, known, started = data.pop("tasks"), data.pop("registered"), data.pop("started_by_task")
    data.update(queues=", ".join(data["queues"]), processes=", ".join(map(str, data["processes"])))
    show((key.replace("_", " "), value) for key, value in data.items())
    _section("Runs", [f"{each['name']}[{each['id']}]  since {each['since']}  in {each['pid']}" for each in tasks])
    _section("Has started", [f"{count}  {task}" for task, count in sorted(started.items())])
    _section("Knows", known)


@command("ping", epilog="Example: umbel -A proj workers ping w1@box")
@click.argument("names", nargs=-1)
@timeout_option
@output_option
def ping(target: Target, names: Sequence[str], timeout: float, output: str | None) -> None:
    """Say which workers answer, and how soon: those of the NAMES, or all.

    Exit code 69 if none answers, and 5 if some of the NAMES do not.
    """
    with answered(target, output, DOCS) as app:
        started = time.monotonic()
        items: list[dict[str, Any]] = []

        def heard(reply: Mapping[str, Any]) -> None:
            items.extend({"name": node, "seconds": round(time.monotonic() - started, 4)} for node in reply)

        app.control.ping(destination=list(names) or None, timeout=timeout, callback=heard)
        silent = sorted({*names} - {each["name"] for each in items})
        columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "name": lambda item: str(item["name"]),
            "answered after": lambda item: seconds(item["seconds"]),
        }
        if items:
            list_rows("umbel.workers.ping/1", items, columns, output)
        if silent or not items:
            said = f"no answer within {timeout:g} s from {', '.join(map(clean, silent))}" if silent else NOBODY
            raise Trouble(said, EX_PARTLY if items else EX_UNAVAILABLE)


@command("stacks", epilog="Example: umbel -A proj workers stacks w1@box")
@click.argument("name")
@timeout_option
@output_option
def stacks(target: Target, name: str, timeout: float, output: str | None) -> None:
    """Print what each process of a worker runs, and where each of its threads is.

    One that is stuck in C code cannot say it; all of them also write it to the worker's log, and that one too.
    """
    with answered(target, output, DOCS) as app:
        replies = app.control.broadcast("stacks", destination=[name], reply=True, timeout=timeout)
        found = _mapping(next((reply[name] for reply in replies or () if name in reply), None))
        if not found:
            raise _absent(app, name, registered_workers(app), timeout)
        if "error" in found:
            said = clean(str(found["error"]))
            if said == "KeyError('stacks')":
                said = "a worker of Celery's takes no such order; kill -USR1 its process, and look into its log"
            raise Trouble(f"{clean(name)}: {said}", EX_FAILED)
    if is_json(output):
        click.echo(as_json({"schema": "umbel.workers.stacks/1", "data": {"name": name, **found}, "next": None}))
        return
    for process in map(_mapping, _list(found.get("processes"))):
        runs = [_mapping(each) for each in _list(process.get("running"))]
        click.echo(f"process {clean(str(process.get('pid')))}:" + ("" if runs else " runs nothing"))
        for each in runs:
            since = each.get("seconds")
            for_long = seconds(since if isinstance(since, int | float) else None)
            click.echo(f"  {clean(str(each.get('name')))}[{clean(str(each.get('id')))}] for {for_long}")
        threads = [_mapping(each) for each in _list(process.get("threads"))]
        for thread in threads:
            click.echo(f"  thread {clean(str(thread.get('name')))}:")
            click.echo("\n".join("  " + clean(line) for line in str(thread.get("stack")).rstrip().splitlines()))
        if not threads:
            click.echo("  It does not say where its threads are; the worker's log does.")


# -- asking ------------------------------------------------------------------------------------------------------------


def _ask(app: Any, destination: list[str] | None, timeout: float, *questions: str) -> dict[str, dict[str, Any]]:
    """Return what the workers reply to each question, all asked at once."""

    def ask(question: str) -> dict[str, Any]:
        arguments = {"safe": True} if question == "active" else {}
        replies = app.control.broadcast(question, arguments, destination, reply=True, timeout=timeout)
        return {node: value for reply in replies or () for node, value in reply.items()}

    with ThreadPoolExecutor(len(questions)) as threads:
        return dict(zip(questions, threads.map(ask, questions), strict=True))


def _absent(app: Any, name: str, registered: Collection[str], timeout: float) -> Trouble:
    """Return the trouble with a worker that has not answered."""
    if name in registered:
        return Trouble(_SILENT.format(name=clean(name)), EX_UNAVAILABLE)
    names = {*registered, *(node for reply in app.control.ping(timeout=timeout) or () for node in reply)}
    if name in names:
        return Trouble(f"{clean(name)} did not answer that in time; -t waits longer", EX_UNAVAILABLE)
    if not names:
        return Trouble(NOBODY, EX_UNAVAILABLE)
    hint = f"'umbel workers list' names those there are{did_you_mean(name, names)}"
    return not_found(f"no worker is called {name!r}", hint)


# What workers reply is believed as little as any other message.


def _brief(name: str, registered: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    about, stats = _mapping(registered.get(name)), _mapping(told["stats"].get(name))
    pool, total, uptime = _mapping(stats.get("pool")), _mapping(stats.get("total")), stats.get("uptime")
    implementation = str(pool.get("implementation") or "")
    read = told["active_queues"].get(name)
    queues = [each.get("name") for each in _list(read) if isinstance(each, dict)] or _list(about.get("queues"))
    running = told["active"].get(name)
    return {
        "name": name,
        "state": "online" if any(name in replies for replies in told.values()) else "silent",
        "system": _system(implementation, registered=name in registered),
        "pid": _whole(stats.get("pid")) or _whole(about.get("pid")),
        "pool": implementation.removesuffix(":TaskPool").rpartition("." if ":TaskPool" in implementation else ":")[2],
        "concurrency": _whole(pool.get("max-concurrency")),
        "running": len(running) if isinstance(running, list) else None,
        "started": sum(count for count in total.values() if type(count) is int) if stats else None,
        "uptime": float(uptime) if isinstance(uptime, int | float) else None,
        "queues": sorted(map(str, queues)),
    }


def _system(implementation: str, *, registered: bool) -> str | None:
    if implementation.startswith("umbel.") or (registered and not implementation):
        return "umbel"
    return "celery" if implementation else None


def _running(task: Mapping[str, Any]) -> dict[str, Any]:
    since = task.get("time_start")
    return {
        "id": str(task.get("id") or ""),
        "name": str(task.get("name") or ""),
        "since": moment(since) if isinstance(since, int | float) else None,
        "pid": _whole(task.get("worker_pid")),
    }


def _memory(stats: Mapping[str, Any]) -> int | None:
    """Return the most bytes that the process which answers has used."""
    most = _whole(_mapping(stats.get("rusage")).get("maxrss"))
    return None if most is None else most * 1024


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


# -- printing ----------------------------------------------------------------------------------------------------------


def _of(running: int | None, most: int | None) -> str:
    return "-" if running is None else f"{running}/{'?' if most is None else most}"


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


def _section(title: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo(f"\n{title}:")
        for line in lines:
            click.echo(f"  {clean(line)}")


for _command in (list_, show_, ping, stacks):
    workers.add_command(_command)
