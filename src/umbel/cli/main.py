"""The ``umbel`` command. Nothing of the app, the worker or a driver is imported until a command needs it."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from typing import Any

import click

from umbel.cli.errors import EX_INTERRUPTED, trouble_of
from umbel.cli.options import Target, global_options
from umbel.exceptions import CeleryError

# Name: where it is, and its line in the help. Here and not in the commands, so that the help imports none of them.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("umbel.cli.init:init", "Write a small project to begin with."),
    "dev": ("umbel.cli.dev:dev", "Run worker, beat and dashboard together while you write code."),
    "worker": ("umbel.cli.worker:worker", "Start a worker."),
    "beat": ("umbel.cli.beat:beat", "Send what is due: the periodic tasks."),
    "call": ("umbel.cli.messages:call", "Call a task by name and print its id."),
    "result": ("umbel.cli.messages:result", "Wait for a result and print it."),
    "schedules": ("umbel.cli.schedules:schedules", "Look at periodic tasks, and change them while beat runs."),
    "tasks": ("umbel.cli.tasks:tasks", "Find tasks, see why one does not run, send them once more, revoke them."),
    "workflows": ("umbel.cli.workflows:workflows", "See chains, groups and chords as a whole; retry or cancel them."),
    "errors": ("umbel.cli.failures:errors", "See which errors tasks end with; send what failed once more."),
    "history": ("umbel.cli.history:history", "Record what happens to tasks, so that it can be searched."),
    "dead": ("umbel.cli.dead:dead", "Look at dead letters; put them back or discard them."),
    "queues": ("umbel.cli.queues:queues", "Look at queues; pause and resume them, empty them, move messages."),
    "purge": ("umbel.cli.messages:purge", "Discard the messages that wait in the queues."),
    "list": ("umbel.cli.messages:list_", "List queues and how they are bound."),
    "status": ("umbel.cli.remote:status", "Say which workers are alive."),
    "healthcheck": ("umbel.cli.probe:healthcheck", "Say whether a worker on this machine consumes; for probes."),
    "workers": ("umbel.cli.workers:workers", "See which workers are there, what they do, and where they are stuck."),
    "inspect": ("umbel.cli.remote:inspect", "Ask workers what they know."),
    "control": ("umbel.cli.remote:control", "Change workers while they run."),
    "amqp": ("umbel.cli.amqp:amqp", "Speak AMQP to RabbitMQ, in a shell or one command."),
    "graph": ("umbel.cli.graph:graph", "Draw the parts of a worker, or the workers, in Graphviz' language."),
    "events": ("umbel.cli.events:events", "Watch what workers and clients tell of their tasks."),
    "top": ("umbel.cli.top:top", "Show workers, queues and tasks in the terminal, and steer them."),
    "metrics": ("umbel.cli.metrics:metrics", "Print what is measured, or serve it to Prometheus."),
    "multi": ("umbel.cli.multi:multi", "Start several workers in the background."),
    "migrate": ("umbel.cli.migrate:migrate", "Copy or move messages to another broker."),
    "logtool": ("umbel.cli.logtool:logtool", "Say what a worker's log tells about its tasks."),
    "upgrade": ("umbel.cli.upgrade:upgrade", "Bring old names of settings up to date."),
    "dashboard": ("umbel.cli.dashboard:dashboard", "Show in a browser what workers do, and steer them."),
    "doctor": ("umbel.cli.doctor:doctor", "Find what could lose work or keep it waiting."),
    "report": ("umbel.cli.look:report", "Print what a bug report needs, secrets masked."),
    "shell": ("umbel.cli.shell:shell", "Start Python with the app and its tasks at hand."),
}

EPILOG = """\
\b
Examples:
  umbel -A proj worker -l info -c 4
  umbel worker -A proj -P asyncio -c 1000
  umbel -A proj call proj.tasks.add -a '[2, 2]'
  umbel -A proj status

\b
Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused, 5 partly done, 69 broker or worker unreachable,
75 timed out, 78 bad configuration or app, 130 interrupted, 143 terminated.
"""


class Commands(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the one that was probably meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from umbel.cli.plugins import plugin
            from umbel.utils.text import did_you_mean

            if (added := plugin(args[0])) is not None:
                return args[0], added, args[1:]
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        name, found, rest = super().resolve_command(ctx, args)
        from umbel.cli.user_options import with_user_options

        return name, with_user_options(ctx, name, found, rest), rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user can put right ends with one line and its exit code."""
        try:
            return super().invoke(ctx)
        except CeleryError as error:
            if os.environ.get("UMBEL_TRACEBACK"):
                traceback.print_exc()
            raise trouble_of(error) from error
        except KeyboardInterrupt:
            ctx.exit(EX_INTERRUPTED)


def _as_celery(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from umbel.celery import install

        install()


def _skip_checks(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        os.environ["CELERY_SKIP_CHECKS"] = "true"


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import platform

        from umbel import __version__

        click.echo(f"umbel {__version__} (Python {platform.python_version()})")
        ctx.exit()


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@global_options(top=True)
@click.option(
    "--as-celery",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    envvar="UMBEL_AS_CELERY",
    callback=_as_celery,
    help="Have the app's 'import celery' find Umbel.",
)
@click.option(
    "--skip-checks",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_skip_checks,
    help="Do not have Django check the project before a worker starts.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run tasks, and look after those who do.

    The options below may also follow the command.
    """
    ctx.ensure_object(Target)


def run_app(app: Any, args: Sequence[str] | None = None) -> int:
    """Run the command line for an app that is there already, and return the exit code; ``-A`` is not needed."""
    try:
        code = cli.main(
            args=list(args) if args is not None else None, prog_name="umbel", obj=Target(app), standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EX_INTERRUPTED
    return code if isinstance(code, int) else 0


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    # Entered by ``python -m umbel`` the program would be called __main__.py.
    cli.main(args=list(args) if args is not None else None, prog_name="umbel")
