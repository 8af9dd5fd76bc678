"""``umbel healthcheck`` as one of the commands, for the help and for options before its name.

Without any of these ``__main__`` runs :mod:`umbel.cli.healthcheck` at once, which does not import click.
"""

from __future__ import annotations

import click

from umbel.cli.healthcheck import main
from umbel.cli.options import Target


@click.command("healthcheck", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def healthcheck(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Say whether a worker on this machine consumes."""
    quiet = ["-q"] if ctx.find_root().ensure_object(Target).quiet else []
    ctx.exit(main([*quiet, *words]))
