"""Commands that look: status and report."""

from __future__ import annotations

import platform
import sys
from typing import Any

import click
import msgspec

from umbel.cli.errors import EX_UNAVAILABLE, Trouble
from umbel.cli.options import COMMA_LIST, Target, command

_LIBRARIES = ("click", "msgspec", "redis", "hiredis", "msgpack", "yaml", "celery")


@command("status")
@click.option("-t", "--timeout", type=float, default=1.0, help="Accepted as in Celery; nobody has to be waited for.")
@click.option("-d", "--destination", type=COMMA_LIST, metavar="LIST", help="Only these nodes.")
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
def status(target: Target, timeout: float, destination: list[str] | None, as_json: bool) -> None:
    """Say which workers are alive. Exit code 69 if there is none."""
    from umbel.worker.leases import PRESENCE

    app = target.load(needed=not target.broker)
    try:
        store = app.broker.store()
        if store is None:
            raise Trouble("this broker cannot tell which workers are alive", EX_UNAVAILABLE)
        found = {key.removeprefix(PRESENCE): stored.value for key, stored in store.scan(PRESENCE)}
    finally:
        app.close()
    nodes = {name: value for name, value in sorted(found.items()) if not destination or name in destination}
    if not nodes:
        raise Trouble("No nodes replied within time constraint", EX_UNAVAILABLE)
    if as_json:
        body = {name: {"ok": "pong", **msgspec.json.decode(value)} for name, value in nodes.items()}
        click.echo(msgspec.json.encode(body).decode())
        return
    for name in nodes:
        click.echo(f"->  {click.style(name, bold=True) if not target.no_color else name}: OK")
    if not target.quiet:
        click.echo(f"\n{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} online.")


@command("report")
def report(target: Target) -> None:
    """Print what a bug report needs: versions, platform and settings. Secrets are masked."""
    app = target.load(needed=False)
    click.echo(describe(app))


def describe(app: Any) -> str:
    """Return the report on an app."""
    from umbel import __version__
    from umbel.cli.transport import transport

    urls = transport(app)
    lines = [
        f"software -> umbel:{__version__} py:{platform.python_version()}",
        "            " + " ".join(_versions()),
        f"platform -> system:{platform.system()} arch:{', '.join(part for part in platform.architecture() if part)}",
        f"            kernel version:{platform.release()} imp:{platform.python_implementation()}",
        f"app      -> {app.main or 'unnamed'}",
        f"settings -> transport:{urls.scheme} results:{urls.results}",
        "",
        app.conf.humanize(),
    ]
    idle = sorted(app.conf.idle())
    if idle:
        lines += ["", "set, but without effect in this version: " + ", ".join(idle)]
    return "\n".join(lines)


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name}:{version('pyyaml' if name == 'yaml' else name)}")
        except PackageNotFoundError:
            continue
    return [*found, f"executable:{sys.executable}"]
