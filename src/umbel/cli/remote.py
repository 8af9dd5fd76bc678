"""Commands that ask workers and steer them: inspect, control and status."""

from __future__ import annotations

import inspect as inspection
import json
from collections.abc import Callable
from pprint import pformat
from textwrap import indent
from typing import Any, Final

import click

from umbel.cli.errors import EX_UNAVAILABLE, Trouble
from umbel.cli.options import COMMA_LIST, Target, command

NOBODY = "No nodes replied within time constraint"
_PATIENCE: Final = 1.0


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("-d", "--destination", type=COMMA_LIST, metavar="LIST", help="Only these nodes."),
        click.option(
            "-t", "--timeout", type=float, help="Seconds to wait for replies; 1 unless the command needs more."
        ),
        click.option("--list", "listed", is_flag=True, help="List the commands and stop."),
        click.argument("arguments", nargs=-1),
        click.argument("name", metavar="COMMAND", required=False),
    ):
        function = option(function)
    return function


@command("inspect", epilog="Example: umbel -A proj inspect active")
@_options
def inspect(target: Target, **given: Any) -> None:
    """Ask workers what they know. Exit code 69 if nobody replies.

    COMMAND is one of those that --list shows; its arguments follow it.
    """
    _run(target, "inspect", **given)


@command("control", epilog="Example: umbel -A proj control rate_limit proj.tasks.add 10/m")
@_options
def control(target: Target, **given: Any) -> None:
    """Change workers while they run. Exit code 69 if nobody replies.

    COMMAND is one of those that --list shows; its arguments follow it.
    """
    _run(target, "control", **given)


def _run(
    target: Target,
    kind: str,
    name: str | None,
    arguments: tuple[str, ...],
    listed: bool,
    timeout: float | None,
    destination: list[str] | None,
    as_json: bool,
) -> None:
    app = target.load(needed=not (target.broker or listed))
    known = _commands(kind)
    if name is not None and name not in known and target.names_app:
        # A command of one's own is where the tasks are.
        target.load_tasks()
        known = _commands(kind)
    if listed:
        _list(kind, known)
        return
    if name is None or name not in known:
        from umbel.utils.text import did_you_mean

        what = "no command was given" if name is None else f"no such {kind} command {name!r}{did_you_mean(name, known)}"
        raise click.UsageError(f"{what}. Available {kind} commands: {', '.join(known)}")
    meta = known[name]
    try:
        body = _arguments(name, meta, list(arguments))
        if timeout is None:
            timeout = max(meta.default_timeout, _PATIENCE)
            if destination is None and timeout > _PATIENCE:
                # Nobody may be waited for that long who is not there: each reply starts the time anew.
                replies = app.control.ping(timeout=_PATIENCE)
                destination = [node for reply in replies for node in reply]
                if not destination:
                    raise Trouble(NOBODY, EX_UNAVAILABLE)
        replies = app.control.broadcast(
            name,
            arguments=body,
            destination=destination,
            timeout=timeout,
            callback=None if as_json else lambda reply: say(target, reply, body=True),
            reply=True,
        )
    finally:
        app.close()
    _conclude(target, replies, as_json, count=kind == "inspect")


def _commands(kind: str) -> dict[str, Any]:
    from umbel.worker.commands import known_commands

    return {name: meta for name, meta in sorted(known_commands().items()) if meta.type == kind and meta.visible}


def _list(kind: str, known: dict[str, Any]) -> None:
    formatter = click.HelpFormatter()
    with formatter.section(f"{kind.capitalize()} Commands"):
        formatter.write_dl(
            [(" ".join(filter(None, (name, meta.signature))), meta.help) for name, meta in known.items()]
        )
    click.echo(formatter.getvalue(), nl=False)


def _arguments(name: str, meta: Any, words: list[str]) -> dict[str, Any]:
    """Return what the words after a command mean to it."""
    found: dict[str, Any] = {}
    missing = _needed(name, meta)[len(words) :]
    if missing:
        raise click.UsageError(f"{name} needs {' and '.join(missing)}: {name} {meta.signature or ' '.join(missing)}")
    for title, kind in meta.args or ():
        if words:
            word = words.pop(0)
            try:
                found[title] = kind(word) if kind is not None else word
            except ValueError as error:
                raise click.UsageError(f"{name}: {title} cannot be {word!r}: {error}") from error
    if meta.variadic:
        found[meta.variadic] = words
    elif words:
        raise click.UsageError(f"{name} takes {meta.signature or 'no arguments'}; {' '.join(words)!r} is too much")
    return found


def _needed(name: str, meta: Any) -> list[str]:
    """Return the arguments that a command cannot do without: its signature has them in <>, or its function no default.

    What a command of the user's own takes is known here only as far as that says it.
    """
    from umbel.worker.control import Panel

    titles = [title for title, _ in meta.args or ()]
    parameters = inspection.signature(Panel.data[name]).parameters
    bare = [title in parameters and parameters[title].default is inspection.Parameter.empty for title in titles]
    without_default = len(bare) - bare[::-1].index(True) if True in bare else 0
    return titles[: max(without_default, (meta.signature or "").count("<"))]


@command("status")
@click.option("-t", "--timeout", type=float, default=1.0, help="Seconds to wait for replies.")
@click.option("-d", "--destination", type=COMMA_LIST, metavar="LIST", help="Only these nodes.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
def status(target: Target, timeout: float, destination: list[str] | None, as_json: bool) -> None:
    """Say which workers are alive. Exit code 69 if there is none."""
    app = target.load(needed=not target.broker)
    try:
        replies = app.control.broadcast(
            "ping",
            destination=destination,
            timeout=timeout,
            reply=True,
            callback=None if as_json else lambda reply: say(target, reply),
        )
        registered = registered_workers(app, destination)
    finally:
        app.close()
    heard = {node: value for reply in replies for node, value in reply.items()}
    silent = [{node: {"ok": "pong"}} for node in registered if node not in heard]
    for reply in silent if not as_json else ():
        say(target, reply)
    found = [{node: {**value, **registered.get(node, {})}} for node, value in heard.items()]
    found += [{node: {"ok": "pong", **registered[node]}} for reply in silent for node in reply]
    _conclude(target, found, as_json, count=True)


def registered_workers(app: Any, destination: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return our workers that keep themselves registered; they live, also where remote control is disabled."""
    store = app.broker.store()
    if store is None:
        return {}
    from umbel.worker.leases import PRESENCE

    found = {key.removeprefix(PRESENCE): json.loads(stored.value) for key, stored in store.scan(PRESENCE)}
    return {name: found[name] for name in sorted(found) if not destination or name in destination}


def say(target: Target, reply: dict[str, Any], *, body: bool = False) -> None:
    """Print one node's reply, with what it said if so wished."""
    for node, value in reply.items():
        word, text = pretty(value)
        title = node if target.no_color else click.style(node, fg="cyan", bold=True)
        arrow = "" if target.quiet else "->  "
        click.echo(f"{arrow}{title}: {word}")
        if body and text:
            click.echo(indent(text, "    "))


def pretty(value: Any) -> tuple[str, str]:
    """Return OK or ERROR, and what was replied as a text for people."""
    if isinstance(value, list):
        return "OK", "\n".join(f"* {item}" for item in value) if value else "- empty -"
    if isinstance(value, dict) and ("ok" in value or "error" in value):
        word = "OK" if "ok" in value else "ERROR"
        return word, indent(pretty(value["ok" if word == "OK" else "error"])[1], "    ")
    if isinstance(value, dict):
        return "OK", json.dumps(value, sort_keys=True, indent=4, default=repr)
    return "OK", value if isinstance(value, str) else pformat(value)


def _conclude(target: Target, replies: Any, as_json: bool, *, count: bool) -> None:
    if not replies:
        raise Trouble(NOBODY, EX_UNAVAILABLE)
    from umbel.inspecting import flatten_reply

    nodes = flatten_reply(replies)
    if as_json:
        from umbel.jsoncodec import json_dumps

        # As Celery prints them: one mapping of what was asked, a list of what was ordered.
        click.echo(json_dumps(nodes if count else replies))
    elif count and not target.quiet:
        click.echo(f"\n{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} online.")
