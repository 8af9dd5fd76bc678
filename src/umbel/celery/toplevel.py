"""What is in ``celery`` and ``celery.app`` itself and nowhere else."""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

from umbel.current import app_or_default, current_app, get_current_app
from umbel.loading import find_app as _find_app
from umbel.registry import qualname
from umbel.settings import censor
from umbel.utils import log as _log


def bugreport(app: Any = None) -> str:
    """Return what a bug report needs, secrets hidden."""
    return str(app_or_default(app).bugreport())


def maybe_patch_concurrency(
    argv: Any = None, short_opts: Any = None, long_opts: Any = None, patches: Any = None
) -> None:
    """Do nothing: Umbel patches no other library."""


class _Registry:
    """``celery.registry``: the current app's tasks."""

    @property
    def tasks(self) -> Any:
        """The tasks by name."""
        return get_current_app().tasks


registry = _Registry()


class _Execute:
    """``celery.execute``: the oldest way to send a task."""

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """Send a task by its name."""
        return current_app.send_task(*args, **kwargs)


execute = _Execute()


class _Messaging:
    """``celery.messaging``: connections of the current app."""

    def establish_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Return a connection of the current app."""
        return current_app.connection()

    def with_connection(self, fun: Any) -> Any:
        """Refuse: no function of ours takes a connection."""
        raise NotImplementedError("open a connection with app.connection_for_write()")


messaging = _Messaging()


class _Log:
    """``celery.log``: logging of the current app."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current_app.log, name)


log = _Log()


class AppPickler:
    """Not there: an app pickles by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("pickle the app itself; subclasses define __reduce__")


def appstr(app: Any) -> str:
    """Return an app in words: its name and id."""
    return f"{app.main or '__main__'}:{id(app):#x}"


def find_app(app: Any, symbol_by_name: Any = None, imp: Any = None) -> Any:
    """Return the app that ``-A`` means by this name."""
    from umbel.app import Umbel

    return _find_app(app, Umbel) if isinstance(app, str) else app


def filter_hidden_settings(conf: Any) -> Any:
    """Return settings with secrets hidden."""
    return censor(dict(conf))


def detect_settings(conf: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the settings: Umbel reads old names and new ones alike."""
    return conf


def app_has_custom(app: Any, attr: str) -> bool:
    """Say whether an app's class overrides a method."""
    from umbel.app import Umbel

    return getattr(type(app), attr, None) is not getattr(Umbel, attr, None)


def task_callable_qualname(task: Any) -> str:
    """Return the full name of a task's function."""
    return qualname(getattr(task, "__wrapped__", None) or task.run)


def current_process() -> Any:
    """Return this process."""
    return multiprocessing.current_process()


def current_process_index(base: int = 1) -> int | None:
    """Return the number of this worker process, counted from ``base``."""
    from umbel.utils.nodenames import process_index

    index = process_index()
    return index - 1 + base if index else None


def get_multiprocessing_logger() -> logging.Logger:
    """Return the logger of worker processes."""
    return _log.worker_logger


def reset_multiprocessing_logger() -> None:
    """Do nothing: there is no other one."""
