"""``umbel top``: a screen in the terminal that shows what workers do."""

from __future__ import annotations

import os
from typing import Any

import click

from umbel.cli.errors import EX_CONFIG, Trouble
from umbel.cli.events import on_terminal
from umbel.cli.options import Target, command

DOCS = "docs/top.md"
_MISSING = "the screen needs packages that are not installed: pip install 'umbel[top]'"
_NO_TERMINAL = (
    "the screen needs a terminal; elsewhere `umbel status` says who is alive, and `umbel events --dump` prints events"
)


@command("top", epilog=f"What is seen, and the keys: {DOCS}")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Draw anew so often.",
)
def top(target: Target, every: float) -> None:
    """Show workers, queues and tasks in the terminal; retry and revoke tasks.

    \b
    Examples:
      umbel -A proj top
      umbel -b redis://localhost/0 top --every 5
    """
    if not on_terminal():
        raise click.UsageError(_NO_TERMINAL)
    try:
        from umbel.top.screen import show
    except ModuleNotFoundError as error:
        raise Trouble(f"{_MISSING} ({error})", EX_CONFIG) from error
    from umbel.top.source import Source

    # With its tasks: they say what is sensitive.
    app = target.load_tasks() if target.names_app or not target.broker else target.load(needed=False)
    if target.no_color:
        os.environ["NO_COLOR"] = "1"
    try:
        # The broker must be there at the start; later it is waited for.
        app.broker.open()
        source = Source(app, command_line(target, app), every=every)
        source.start()
        try:
            status = show(source, name=target.app_name or str(app.main or ""), every=every)
        finally:
            source.stop()
    finally:
        app.close()
    if status:
        raise click.exceptions.Exit(status)


def command_line(target: Target, app: Any) -> list[str]:
    """Return how the command line reaches this app, without passwords."""
    from umbel.drivers import mask

    words = ["umbel"]
    if target.app_name or not target.broker:
        words += ["-A", target.app_name or str(app.main or "proj")]
    if target.broker:
        words += ["-b", mask(target.broker)]
    if target.config:
        words += ["--config", target.config]
    return words
