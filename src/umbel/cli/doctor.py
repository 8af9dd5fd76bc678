"""``umbel doctor``: what could lose work or keep it waiting, found before it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import click
import msgspec

from umbel.cli.errors import EX_FAILED, EX_UNAVAILABLE
from umbel.cli.options import Target, command
from umbel.cli.output import answered
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Place, Survives


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    level: str  # ok, warn or fail
    text: str
    advice: list[str] = []


DOCS = "docs/getting-started.md"
_PATIENCE: Final = 1.0  # seconds for workers to answer
_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@command("doctor")
@click.option("--strict", is_flag=True, help="A warning ends with exit code 1 too.")
@click.option("-o", "--output", type=click.Choice(["plain", "json"]), default="plain", help="How to print.")
def doctor(target: Target, strict: bool, output: str) -> None:
    """Check the settings, the stores and the workers. Exit code 0 if all is well, 1 or 69 if something is not.

    \b
    Examples:
      umbel -A proj doctor
      umbel -A proj doctor --strict -o json      in a pipeline
    """
    # With its tasks: how long they may take is a part of what is looked at.
    with answered(target, output, DOCS, tasks=target.names_app) as app:
        found = list(examine(app))
    if output == "json":
        body = {"schema": "umbel.doctor/1", "data": msgspec.to_builtins(found)}
        click.echo(json.dumps(body, indent=2))
    else:
        for finding in found:
            _print(finding, coloured=not target.no_color and sys.stdout.isatty())
    levels = {finding.level for finding in found}
    if any(finding.level == "fail" and finding.check in ("broker", "backend") for finding in found):
        sys.exit(EX_UNAVAILABLE)
    if "fail" in levels or (strict and "warn" in levels):
        sys.exit(EX_FAILED)


def _print(finding: Finding, *, coloured: bool) -> None:
    mark, colour = _MARKS[finding.level]
    shown = click.style(f"{mark:<4}", fg=colour) if coloured else f"{mark:<4}"
    click.echo(f"{shown}  {finding.check:<10} {finding.text}")
    for line in finding.advice:
        click.echo(f"{'':<17}-> {line}")


def examine(app: Any) -> Iterator[Finding]:
    """Yield what there is to say about an app, its stores and its workers. Changes nothing."""
    yield from _settings(app)
    reachable = yield from _broker(app)
    yield from _results(app, reachable)
    if reachable:
        yield from _workers(app)
        yield from _dead(app)


def _settings(app: Any) -> Iterator[Finding]:
    from umbel import settings

    try:
        settings.check(app.conf)
    except ImproperlyConfigured as error:
        yield Finding(check="settings", level="fail", text=" ".join(str(error).split()))
    else:
        yield Finding(check="settings", level="ok", text="valid")
    idle = sorted(app.conf.idle())
    if idle:
        yield Finding(check="settings", level="warn", text=f"set, and without effect here: {', '.join(idle)}")
    if {"pickle", "application/x-python-serialize"} & set(app.conf.accept_content):
        yield Finding(
            check="security",
            level="warn",
            text="accept_content has pickle: whoever can write to the broker can run code here",
            advice=["send JSON, and sign messages (security_key) while pickle is still needed"],
        )


def _plain_password(url: str) -> str | None:
    """Return the host that a password of this URL is sent to without TLS, unless it is this machine."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "amqp", "pyamqp") or not parts.password:
        return None
    host = parts.hostname or "localhost"
    return None if host in ("localhost", "::1") or host.startswith("127.") else host


def _broker(app: Any) -> Generator[Finding, None, bool]:
    from umbel.cli.transport import longest, transport

    where = transport(app)
    for url in {url for urls in (app.urls.read, app.urls.write, app.urls.backend) if urls for url in urls.split(";")}:
        if (host := _plain_password(url)) is not None:
            yield Finding(
                check="security",
                level="warn",
                text=f"the password for {host} goes over the network as it is",
                advice=["use rediss:// (amqps://), or a tunnel"],
            )
    try:
        kept = app.broker.durability()
    except (OperationalError, BrokerError) as error:
        yield Finding(check="broker", level="fail", text=f"{where.broker}: {' '.join(str(error).split())}")
        return False
    yield Finding(check="broker", level="ok", text=f"{where.broker} answers")
    level = "warn" if kept.survives is Survives.NOTHING or kept.advice else "ok"
    if app.conf.durability == "strict" and kept.survives < Survives.POWER_LOSS:
        level = "fail"
    yield Finding(check="durability", level=level, text=kept.text, advice=list(kept.advice))
    for text in app.broker.advice(app.queues(None), longest=longest(app)):
        yield Finding(check="queues", level="warn", text=text)
    return True


def _results(app: Any, reachable: bool) -> Iterator[Finding]:
    from umbel.cli.transport import transport

    backend, where = app.backend, transport(app)
    if backend is None:
        yield Finding(check="results", level="ok", text="not kept (no result_backend)")
        return
    try:
        backend.open()
        together = reachable and app.broker.bind_results(backend.location())
    except (OperationalError, BrokerError) as error:
        yield Finding(check="backend", level="fail", text=f"{where.results}: {' '.join(str(error).split())}")
        return
    if together:
        text = "in the broker's own store: a result and its acknowledgement are one step"
        yield Finding(check="results", level="ok", text=text)
    elif reachable:
        yield Finding(
            check="results",
            level="ok",
            text=f"{where.results} is another store: a crash between result and acknowledgement repeats the task",
        )


def _workers(app: Any) -> Iterator[Finding]:
    store = app.broker.store()
    nodes, served = _asked(app) if store is None else _registered(store)
    if not nodes:
        # One may be there and have remote control disabled.
        text = "none is alive: nothing will run" if store is not None else "none answers: it may be that nothing runs"
        yield Finding(check="workers", level="warn", text=text, advice=["umbel worker"])
    else:
        yield Finding(check="workers", level="ok", text=f"{len(nodes)} alive: {', '.join(sorted(nodes))}")
    paused = app.queues.paused()
    for queue in app.queues.known():
        waiting = app.broker.size(queue)
        if waiting and queue in paused:
            pause = paused[queue]
            yield Finding(
                check="queues",
                level="warn",
                text=f"{queue!r} is paused since {pause.at:%Y-%m-%d %H:%M} by {pause.by}, and {waiting} messages wait",
                advice=[f"umbel queues resume {queue}"],
            )
        elif waiting and nodes and served and queue not in served:
            yield Finding(
                check="queues",
                level="warn",
                text=f"{waiting} messages wait in {queue!r}, and no worker consumes it",
                advice=[f"umbel worker -Q {queue}"],
            )


def _registered(store: Any) -> tuple[list[str], set[str]]:
    """Return the workers that keep themselves registered, and the queues that they read."""
    from umbel.worker.leases import PRESENCE

    nodes, served = [], set()
    for key, stored in store.scan(PRESENCE):
        about = msgspec.json.decode(stored.value)
        nodes.append(key.removeprefix(PRESENCE))
        served.update(about.get("queues", ()))
    return nodes, served


def _asked(app: Any) -> tuple[list[str], set[str]]:
    """Return the same of those that answer, where the broker keeps no register."""
    found = app.control.inspect(timeout=_PATIENCE).active_queues() or {}
    lists = (queues for queues in found.values() if isinstance(queues, list))
    return list(found), {str(each.get("name")) for queues in lists for each in queues if isinstance(each, dict)}


def _dead(app: Any) -> Iterator[Finding]:
    counts = {queue: count for queue in app.queues.known() if (count := app.broker.size(queue, Place.DEAD))}
    if counts:
        text = ", ".join(f"{count} from {queue!r}" for queue, count in counts.items())
        yield Finding(check="dead", level="warn", text=f"dead letters: {text}", advice=["umbel dead list"])
