"""The import alias: ``import celery`` finds Umbel, whether or not the real one is installed.

Four ways in, all of which must come before anything imports ``celery``::

    import umbel.celery; umbel.celery.install()        # in a program, first thing
    python -m umbel.celery manage.py runserver         # a script, or -m module, unchanged
    umbel --as-celery -A proj worker                   # the command line
    export PYTHONPATH="$(python -m umbel.celery --path)"   # everything that is started from here on

Modules and classes are Umbel's own: ``celery.Celery is umbel.Umbel``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from umbel import aliased
from umbel.exceptions import ImproperlyConfigured

__all__ = ["install", "installed", "switch_path"]

#: A folder for ``PYTHONPATH`` that holds nothing but three packages which install the alias and step aside.
_SWITCH = Path(__file__).resolve().parent / "as-celery"


def install() -> None:
    """Make ``import celery`` and all below it mean Umbel in this process. A second call does nothing.

    The real ``kombu`` and ``billiard`` are used where they are installed; else small ones of ours are. Settings that
    Umbel does not know become warnings. Raises :exc:`ImproperlyConfigured` if the real ``celery`` is imported already:
    what holds a part of it would go on using that.
    """
    if installed():
        return
    real = sys.modules.get("celery")
    if real is not None:
        raise ImproperlyConfigured(
            f"celery is imported already, from {getattr(real, '__file__', None)}; install the alias before that, or "
            'start the program with PYTHONPATH="$(python -m umbel.celery --path)"'
        )
    from umbel.celery import bridges
    from umbel.celery.finder import BridgeFinder, CeleryFinder, FallbackFinder

    # The folder's packages would hide the real kombu.
    sys.path[:] = [entry for entry in sys.path if not _is_switch(entry)]
    sys.meta_path[:0] = [CeleryFinder(), BridgeFinder()]
    sys.meta_path.append(FallbackFinder())
    aliased.active = True
    bridges.join_imported()


def installed() -> bool:
    """Say whether the alias is installed in this process."""
    return aliased.active


def switch_path() -> str:
    """Return the folder that turns the alias on for every Python that has it in ``PYTHONPATH``."""
    return str(_SWITCH)


def enter(name: str) -> None:
    """Install the alias on behalf of one of the folder's packages, and put what is meant in its place."""
    import importlib

    sys.modules.pop(name, None)
    install()
    importlib.import_module(name)


def _is_switch(entry: str) -> bool:
    return os.path.basename(entry) == _SWITCH.name and os.path.realpath(entry) == str(_SWITCH)
