"""``umbel doctor``: what could lose work or keep it waiting, found before it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from typing import Any

import click
import msgspec

from umbel.cli.errors import EX_FAILED, EX_UNAVAILABLE
from umbel.cli.options import Target, command
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Place, Survives


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    level: str  # ok, warn or fail
    text: str
    advice: list[str] = []


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
    app = target.load(needed=not target.broker)
    try:
        found = list(examine(app))
    finally:
        app.close()
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


def _broker(app: Any) -> Generator[Finding, None, bool]:
    from umbel.cli.transport import transport

    where = transport(app)
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
    from umbel.worker.leases import PRESENCE

    store = app.broker.store()
    if store is None:
        return
    served: set[str] = set()
    nodes = []
    for key, stored in store.scan(PRESENCE):
        about = msgspec.json.decode(stored.value)
        nodes.append(key.removeprefix(PRESENCE))
        served.update(about.get("queues", ()))
    if not nodes:
        yield Finding(check="workers", level="warn", text="none is alive: nothing will run", advice=["umbel worker"])
    else:
        yield Finding(check="workers", level="ok", text=f"{len(nodes)} alive: {', '.join(sorted(nodes))}")
    for queue in sorted(app.router.queues):
        waiting = app.broker.size(queue)
        if waiting and nodes and served and queue not in served:
            yield Finding(
                check="queues",
                level="warn",
                text=f"{waiting} messages wait in {queue!r}, and no worker consumes it",
                advice=[f"umbel worker -Q {queue}"],
            )


def _dead(app: Any) -> Iterator[Finding]:
    counts = {queue: count for queue in sorted(app.router.queues) if (count := app.broker.size(queue, Place.DEAD))}
    if counts:
        text = ", ".join(f"{count} from {queue!r}" for queue, count in counts.items())
        yield Finding(check="dead", level="warn", text=f"dead letters: {text}", advice=["umbel dead list"])
