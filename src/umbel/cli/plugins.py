"""Commands that packages for Celery bring, such as ``flower``: entry points of the group ``celery.commands``."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from umbel import aliased
from umbel.cli.errors import EX_CONFIG, Trouble


def plugin(name: str) -> click.Command | None:
    """Return an installed package's command, or None where none is called so.

    Ends the command line with exit code 78 where it cannot be used: without the alias it would find no Celery, or
    another one than this.
    """
    for found in entry_points(group="celery.commands"):
        if found.name != name:
            continue
        if not aliased.active:
            raise Trouble(f"{name!r} was written for Celery: run it as umbel --as-celery {name}", EX_CONFIG)
        # The wall around a package's modules: at import they may raise anything.
        try:
            command = found.load()
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise Trouble(f"the command {name!r} cannot be imported from {found.value}: {why}", EX_CONFIG) from error
        if isinstance(command, click.Command):
            return command
        raise Trouble(f"{found.value}, of which {name!r} is to be, is no command but {command!r}", EX_CONFIG)
    return None
