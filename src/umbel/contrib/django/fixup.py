"""Django: its apps' tasks are found, it is set up before a worker imports them, and its connections are looked after.

Installed by itself in every app that is made where ``DJANGO_SETTINGS_MODULE`` is set.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any, Final, Self

from umbel import signals
from umbel.exceptions import FixupWarning
from umbel.task import Task

TASK_CLASS: Final = "umbel.contrib.django.task:DjangoTask"

#: Connections that a worker process got from its parent, kept for ever: closing one would end the parent's session.
_inherited: Final[list[Any]] = []


def fixup(app: Any, env: str = "DJANGO_SETTINGS_MODULE") -> DjangoFixup | None:
    """Install the integration into an app, if the environment names Django's settings and Django is there."""
    if not os.environ.get(env):
        return None
    try:
        importlib.import_module("django")
    except ImportError:
        warnings.warn(FixupWarning(f"{env} is set, but Django is not installed"), stacklevel=2)
        return None
    return DjangoFixup(app).install()


class DjangoFixup:
    """Ties one app to Django."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def install(self) -> Self:
        """Do it: make tasks :class:`DjangoTask`, and listen to the worker."""
        # Where manage.py is, and with it the project.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        if self.app.task_cls is Task:
            self.app.task_cls = TASK_CLASS
        signals.import_modules.connect(self.on_import_modules, weak=False, dispatch_uid=(fixup, id(self)))
        signals.worker_init.connect(self.on_worker_init, weak=False, dispatch_uid=(fixup, id(self)))
        return self

    def autodiscover_tasks(self) -> list[str]:
        """Return the packages of the installed apps."""
        from django.apps import apps  # type: ignore[import-not-found, unused-ignore]

        return [config.name for config in apps.get_app_configs()]

    def on_import_modules(self, sender: Any = None, **kwargs: Any) -> None:
        """Set Django up before modules of tasks import models, and let it check the project."""
        if sender is not None and sender is not self.app:
            return
        import django  # type: ignore[import-not-found, unused-ignore]

        django.setup()
        if not (os.environ.get("SKIP_CHECKS") or os.environ.get("CELERY_SKIP_CHECKS")):
            from django.core.checks import run_checks  # type: ignore[import-not-found, unused-ignore]

            run_checks()

    def on_worker_init(self, **kwargs: Any) -> None:
        """Look after connections from now on; in a web server that is Django's own work."""
        signals.worker_process_init.connect(forget_inherited, weak=False, dispatch_uid=fixup)
        signals.task_prerun.connect(close_old, weak=False, dispatch_uid=fixup)
        signals.task_postrun.connect(close_old, weak=False, dispatch_uid=fixup)


DjangoWorkerFixup = DjangoFixup


def forget_inherited(**kwargs: Any) -> None:
    """Have this process open its own connections to databases."""
    from django.db import connections  # type: ignore[import-not-found, unused-ignore]

    for connection in connections.all():
        if connection.connection is not None:
            _inherited.append(connection.connection)
            connection.connection = None


def close_old(sender: Any = None, task: Any = None, **kwargs: Any) -> None:
    """Close connections that are broken or older than ``CONN_MAX_AGE``; not for a task that runs in its caller."""
    if task is not None and task.request.is_eager:
        return
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return  # there Django itself would refuse
    from django.db import close_old_connections  # type: ignore[import-not-found, unused-ignore]

    close_old_connections()
