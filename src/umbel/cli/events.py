"""The ``events`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from umbel.cli.errors import EX_CONFIG, Trouble
from umbel.cli.options import Target, command

_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL"]


@command("events", epilog="Examples: umbel -A proj events; umbel -A proj events --dump")
@click.option("-d", "--dump", is_flag=True, help="Print each event.")
@click.option("-c", "--camera", metavar="CLASS", help="Hand the state of the cluster to this camera, module:Class.")
@click.option(
    "-F",
    "--frequency",
    "--freq",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    metavar="SEC",
    help="Seconds between two pictures.",
)
@click.option("-r", "--maxrate", metavar="RATE", help="At most so many pictures, such as 10/m.")
@click.option("--detach", is_flag=True, help="Run in the background.")
@click.option(
    "-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), default="WARNING", help="Logging level."
)
@click.option("-f", "--logfile", metavar="FILE", help="Write the log here instead of standard error.")
@click.option("--pidfile", metavar="FILE", help="Keep the process id here.")
@click.option("--uid", help="Become this user.")
@click.option("--gid", help="Become this group.")
@click.option("--umask", help="Octal mask for new files.")
@click.option("--executable", hidden=True)
def events(target: Target, dump: bool, camera: str | None, **options: Any) -> None:
    """Watch what workers and clients tell of their tasks: on a screen, or with --dump or --camera.

    Workers tell of tasks with -E, or after 'control enable_events'.
    """
    if dump and camera:
        raise click.UsageError("--dump and --camera do not go together")
    if not dump and not camera and not on_terminal():
        raise click.UsageError(
            "the screen needs a terminal; elsewhere --dump prints the events, and --camera hands them to a class"
        )
    app = target.load(needed=not target.broker)
    try:
        if camera:
            _film(app, target, camera, options)
            return
        # The broker must be there at the start; later it is waited for.
        app.broker.open()
        show = _dumping() if dump else _screen()
        show(app)
    finally:
        app.close()


def on_terminal() -> bool:
    """Say whether a screen can be shown: somebody reads, somebody types, and the terminal can move its cursor."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _dumping() -> Callable[[Any], None]:
    from umbel.events.dumper import evdump

    return evdump


def _screen() -> Callable[[Any], None]:
    try:
        from umbel.events.screen import evtop
    except ModuleNotFoundError as error:
        raise Trouble("this Python has no curses (on Windows: pip install windows-curses)", EX_CONFIG) from error
    return evtop


def _film(app: Any, target: Target, camera: str, options: dict[str, Any]) -> None:
    from umbel.events.snapshot import evcam
    from umbel.loading import symbol_by_name
    from umbel.utils.rates import per_second

    try:
        made = symbol_by_name(camera)
        per_second(options["maxrate"])
    except (ImportError, AttributeError, ValueError) as error:
        raise Trouble(f"--camera {camera}: {error}", EX_CONFIG) from error
    from umbel.cli.daemon import detach, detached, drop_privileges, pidfile

    if options["detach"] and (code := detach()) is not None:
        click.get_current_context().exit(code)
    with ExitStack() as stack:
        if options["uid"] or options["gid"] or options["umask"]:
            drop_privileges(options["uid"], options["gid"], options["umask"])
        stack.enter_context(pidfile(options["pidfile"]))
        from umbel.utils.log import setup_logging

        colors = False if target.no_color else None
        setup_logging(app.conf, options["loglevel"], options["logfile"], colors, "events")
        detached()
        evcam(app, made, freq=options["frequency"], maxrate=options["maxrate"])
