"""The ``report`` command."""

from __future__ import annotations

import platform
import sys
from typing import Any

import click

from umbel.cli.options import Target, command

_LIBRARIES = ("click", "msgspec", "redis", "hiredis", "msgpack", "yaml", "celery")


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
