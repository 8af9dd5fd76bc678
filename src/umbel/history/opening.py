"""Which file is the history of an app."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote

from umbel.drivers import default_url, split
from umbel.history.history import History


def history_path(app: Any) -> str:
    """Return where the history of an app is, whether it is there or not.

    The setting ``history_file``; else beside an SQLite broker's own file; else where an app without a broker has its
    queues: ``$UMBEL_HOME``, ``.umbel`` beside the project, or the user's state folder. So it is the same for the
    dashboard and the command line, from whichever folder they are started.
    """
    if given := app.conf.history_file:
        return os.path.abspath(os.path.expanduser(str(given)))
    url = split(app.urls.read)[0]
    if not url.startswith("sqlite:///"):
        url = default_url(app.main, app.module_file)
    path = unquote(url.partition(":///")[2].partition("?")[0])
    return os.path.abspath(path.removesuffix(".db") + ".history.db")


def open_history(app: Any, *, create: bool = False) -> History | None:
    """Return the history of an app; None where nothing was ever recorded, unless it is to be made.

    Raises as :class:`History` does.
    """
    path = history_path(app)
    if not create and not os.path.exists(path):
        return None
    conf = app.conf
    return History(path, app=app, max_tasks=int(conf.history_max_tasks or 0), max_age=_seconds(conf.history_max_age))


def _seconds(value: Any) -> float:
    return float(value.total_seconds() if hasattr(value, "total_seconds") else value or 0.0)
