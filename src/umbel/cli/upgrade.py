"""The ``upgrade`` command: old names of settings in a file become new ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

from umbel.cli.errors import EX_CONFIG, Trouble
from umbel.cli.options import Target, command, global_options


@click.group("upgrade")
@global_options()
def upgrade() -> None:
    """Bring a project's files up to date."""


@command("settings", short_help="Rename old settings in a file.")
@click.argument("filename", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--django", is_flag=True, help="Keep them upper-case with CELERY_ in front, for Django's settings.")
@click.option("--compat", is_flag=True, help="The same.")
@click.option("--no-backup", is_flag=True, help="Keep no copy with .orig behind its name.")
def settings(target: Target, filename: Path, django: bool, compat: bool, no_backup: bool) -> None:
    """Replace the names that settings had before Celery 4, such as CELERYD_CONCURRENCY, by today's."""
    try:
        old = filename.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Trouble(f"{filename}: {error}", EX_CONFIG) from error
    new = renamed(old, upper=django or compat)
    if new == old:
        click.echo("Does not seem to require any changes :-)")
        return
    if not no_backup:
        shutil.copy2(filename, f"{filename}.orig")
        click.echo(f"writing backup to {filename}.orig...", err=True)
    filename.write_text(new, encoding="utf-8")
    click.echo("Changes to your setting have been made!")


def renamed(text: str, *, upper: bool) -> str:
    """Return the text with the old names of settings replaced, as whole words.

    >>> renamed("CELERYD_CONCURRENCY = 4", upper=False), renamed("CELERYD_CONCURRENCY = 4", upper=True)
    ('worker_concurrency = 4', 'CELERY_WORKER_CONCURRENCY = 4')
    """
    from umbel.setting_names import canonical

    def new(match: re.Match[str]) -> str:
        # BROKER_URL and the like are also what other programs call their variables, but not in this file.
        found = canonical(match.group())
        if found is None:
            return match.group()
        return f"CELERY_{found.upper()}" if upper else found

    return re.sub(r"\b[A-Z][A-Z0-9_]+\b", new, text)


upgrade.add_command(settings)
