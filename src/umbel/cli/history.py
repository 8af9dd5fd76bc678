"""Commands about the history itself: history record, status, prune."""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from umbel.bell import Bell
from umbel.cli.options import Target, command, global_options
from umbel.cli.output import answered, as_json, is_json, output_option, show
from umbel.cli.tasks import DOCS, opened

_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL"]


@click.group("history", epilog=f"What is recorded, where, and for how long: {DOCS}")
@global_options()
def history() -> None:
    """Record what happens to tasks, so that it can be searched later. The dashboard records too."""


@command("record", epilog="Example: umbel -A proj history record --enable-events")
@click.option(
    "--enable-events/--no-enable-events",
    default=None,
    help="Have workers send events without -E. Without the option: where the broker is SQLite.",
)
@click.option("--pidfile", metavar="FILE", help="Keep the process id here.")
@click.option(
    "-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), default="INFO", help="Logging level."
)
@click.option("-f", "--logfile", metavar="FILE", help="Write the log here instead of standard error.")
def record(target: Target, enable_events: bool | None, pidfile: str | None, **options: Any) -> None:
    """Record until stopped (Ctrl-C, SIGTERM). What is sensitive is taken out before it is written."""
    from umbel.cli.daemon import pidfile as kept_pidfile
    from umbel.history import Recorder, open_history
    from umbel.utils.log import setup_logging

    # With its tasks: they say what is sensitive.
    app = target.load_tasks()
    setup_logging(app.conf, options["loglevel"], options["logfile"], False if target.no_color else None, "history")
    kept = open_history(app, create=True)
    assert kept is not None
    stopping = Bell()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with kept_pidfile(pidfile):
        app.broker.open()
        recorder = Recorder(app, kept, enable=enable_events)
        recorder.start()
        if not target.quiet:
            click.echo(f"history: recording into {kept.path} (pid {os.getpid()}), ready.", err=True)
        try:
            while not stopping.wait(1.0):
                pass
        finally:
            recorder.stop()
            kept.close()
            app.close()
    done = recorder.status
    if not target.quiet:
        missed = f", {done.missed:,} missed" if done.missed else ""
        click.echo(f"history: {done.written:,} events recorded{missed}.", err=True)


@command("status", epilog="Example: umbel -A proj history status -o json")
@output_option
def status(target: Target, output: str | None) -> None:
    """Say where the history is and how many tasks it knows."""
    with answered(target, output, DOCS) as app, opened(app) as kept:
        counts = kept.counts()
        data = {
            "path": kept.path,
            "bytes": os.path.getsize(kept.path),
            "tasks": sum(counts.states.values()),
            "states": dict(counts.states),
            "max_tasks": kept.max_tasks,
            "max_age": kept.max_age,
        }
    if is_json(output):
        click.echo(as_json({"schema": "umbel.history.status/1", "data": data, "next": None}))
    else:
        show((name.replace("_", " "), value) for name, value in data.items())


@command("prune", epilog="Example: umbel -A proj history prune --max-age 86400")
@click.option(
    "--max-tasks", type=click.IntRange(0), metavar="N", help="Keep so many; 0: all. The setting if not given."
)
@click.option("--max-age", type=click.FloatRange(0), metavar="SEC", help="Keep those heard of since; 0: all.")
def prune(target: Target, max_tasks: int | None, max_age: float | None) -> None:
    """Forget the oldest tasks now. A recorder does so by itself."""
    with answered(target, None, DOCS) as app, opened(app) as kept:
        kept.max_tasks = kept.max_tasks if max_tasks is None else max_tasks
        kept.max_age = kept.max_age if max_age is None else max_age
        gone = 0
        while step := kept.prune():
            gone += step
    if not target.quiet:
        click.echo(f"{gone:,} tasks forgotten.", err=True)


for _command in (record, status, prune):
    history.add_command(_command)
