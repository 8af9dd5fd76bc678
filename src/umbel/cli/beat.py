"""The ``beat`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import click

from umbel.cli.daemon import caught
from umbel.cli.errors import EX_CONFIG, EX_FAILED, EX_UNAVAILABLE, Trouble
from umbel.cli.options import Target, command
from umbel.exceptions import ImproperlyConfigured, OperationalError

_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL"]
_STOPS = ("SIGTERM", "SIGINT", "SIGQUIT")
_LOOK = 0.5  # seconds between two looks whether the thread still runs


@command("beat", epilog="Example: umbel -A proj beat -l info")
@click.option("--detach", is_flag=True, default=False, help="Run in the background.")
@click.option("-s", "--schedule", metavar="FILE", help="Accepted: what was sent is kept in the broker, not in a file.")
@click.option("-S", "--scheduler", metavar="CLASS", help="A scheduler of an extension instead of Umbel's own.")
@click.option("--max-interval", type=click.IntRange(0), metavar="SEC", help="Most seconds between two looks.")
@click.option("--enable-remote-control/--no-enable-remote-control", "remote_control", default=None,
              help="Answer 'umbel inspect ping'.")  # fmt: skip
@click.option("-n", "--hostname", metavar="NAME", help="Node name for that; celerybeat@%h if not given.")
@click.option("-l", "--loglevel", default="WARNING", type=click.Choice(_LEVELS, case_sensitive=False),
              help="Logging level.")  # fmt: skip
@click.option("-f", "--logfile", metavar="FILE", help="Write the log here instead of standard error.")
@click.option("--pidfile", metavar="FILE", help="Keep the process id here. Not needed to have one beat lead.")
@click.option("--uid", help="Become this user.")
@click.option("--gid", help="Become this group.")
@click.option("--umask", help="Octal mask for new files.")
@click.option("--executable", hidden=True)
@click.argument("settings", nargs=-1, metavar="[NAME=VALUE]...")
def beat(target: Target, **options: Any) -> None:
    """Send the tasks of the schedule when they are due, until stopped by SIGTERM, SIGINT or SIGQUIT.

    Any number of beats may run: one leads, and another takes over within seconds of its end. What was sent is kept in
    the broker, so no file is needed.
    """
    click.get_current_context().exit(Starting(target, options).run())


class Starting:
    """The steps from the options to a running beat, in the order that they must have."""

    def __init__(self, target: Target, options: Mapping[str, Any]) -> None:
        self._target = target
        self._options = options
        self._app = target.load_tasks()
        _take(self._app, options["settings"])

    def run(self) -> int:
        """Run beat until it ends, and return the exit code."""
        from umbel.beat.choosing import make_beat

        app, options = self._app, self._options
        self._beat = make_beat(
            app,
            scheduler=options["scheduler"],
            schedule_filename=options["schedule"],
            max_interval=options["max_interval"],
        )
        self._refuse()
        if options["detach"]:
            from umbel.cli.daemon import detach

            code = detach()
            if code is not None:
                return code
        with ExitStack() as stack:
            self._settle_in(stack)
            stack.callback(app.close)
            return self._work(stack)

    def _refuse(self) -> None:
        """Refuse what cannot work before anything is started."""
        from umbel.cli.transport import transport

        where = transport(self._app)
        if not where.features.shared:
            raise Trouble(
                f"{where.broker} lives in one process, so what a beat of its own sends reaches nobody; use "
                "'umbel worker -B', or a broker that processes can share: sqlite:///tasks.db",
                EX_CONFIG,
            )
        # Entries that cannot be read are found now and not in the background.
        if self._ours:
            from umbel.periodic.entry import entry_of

            for name, said in (self._app.conf.beat_schedule or {}).items():
                entry_of(name, said, self._app)

    @property
    def _ours(self) -> bool:
        from umbel.beat.service import Beat

        return isinstance(self._beat, Beat)

    def _settle_in(self, stack: ExitStack) -> None:
        """Take the place in the system that was asked for, and begin to log."""
        from umbel.beat.banner import banner, starting
        from umbel.beat.remote import beat_nodename
        from umbel.cli.daemon import detached, drop_privileges, pidfile
        from umbel.utils.log import setup_logging

        app, options = self._app, self._options
        self._node = beat_nodename(options["hostname"]) if self._answers else None
        if options["uid"] or options["gid"] or options["umask"]:
            drop_privileges(options["uid"], options["gid"], options["umask"])
        stack.enter_context(pidfile(options["pidfile"]))
        if not self._target.quiet:
            level = options["loglevel"].upper()
            click.echo(starting())
            click.echo(banner(app, self._beat, logfile=options["logfile"], loglevel=level, node=self._node))
            if options["schedule"] and self._ours:
                click.echo(f"-s {options['schedule']} is not written: what was sent is kept in the broker.")
            sys.stdout.flush()
        try:
            color = False if self._target.no_color else None
            setup_logging(app.conf, options["loglevel"], options["logfile"], color, self._node)
        except OSError as error:
            raise Trouble(f"--logfile {options['logfile']}: {error.strerror}", EX_CONFIG) from error
        # Logging gives a record its process name only where this module is loaded.
        import multiprocessing  # noqa: F401

        detached()

    @property
    def _answers(self) -> bool:
        asked = self._options["remote_control"]
        return bool(self._app.conf.beat_enable_remote_control if asked is None else asked)

    def _work(self, stack: ExitStack) -> int:
        from umbel.beat.remote import BeatRemote
        from umbel.beat.threads import BeatThread

        self._reach()
        thread = BeatThread(self._app, self._beat)
        with caught(_STOPS, _stopper(thread)):
            thread.start()
            if self._node is not None:
                remote = BeatRemote(self._app, self._beat, self._node)
                stack.callback(remote.close)
                remote.start()
            # In short waits: a handler runs between two of them at the latest.
            while not thread.join(_LOOK):
                pass
        if isinstance(thread.error, ImproperlyConfigured | OperationalError):
            sys.stderr = sys.__stderr__
            raise thread.error
        return EX_FAILED if thread.error is not None else 0

    def _reach(self) -> None:
        """Connect at once where nobody wants beat to wait for the broker."""
        conf = self._app.conf
        retry = conf.broker_connection_retry_on_startup
        if conf.broker_connection_retry if retry is None else retry:
            return
        try:
            self._app.broker.open()
        except OperationalError as error:
            sys.stderr = sys.__stderr__
            raise Trouble(f"cannot reach the broker: {' '.join(str(error).split())}", EX_UNAVAILABLE) from error


def _take(app: Any, words: tuple[str, ...]) -> None:
    """Take settings from the command line, as Celery's beat does: ``beat_max_loop_interval=1``."""
    for word in words:
        if "=" not in word:
            raise click.UsageError(f"{word!r} is neither an option nor NAME=VALUE")
    if words:
        app.config_from_cmdline(words)


def _stopper(thread: Any) -> Callable[[int, Any], None]:
    """Return what stops the thread at the first signal, and ends the process at the second."""
    asked: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if asked:
            raise SystemExit(128 + number)
        asked.append(number)
        # The main thread only waits for the other one, so it holds none of the locks that this takes.
        thread.stop()

    return on_signal
