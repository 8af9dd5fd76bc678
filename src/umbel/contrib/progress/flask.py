"""Progress bars in a Flask program.

::

    from umbel.contrib.progress.flask import Progress

    progress = Progress(flask_app, celery)  # or Progress(celery=celery) and progress.init_app(flask_app)

and in a template, ``result`` being what ``delay`` returned or a task id::

    {{ umbel_progress_script() }}
    {{ umbel_progress(result, label="Resizing") }}

Browsers ask once a second. A stream holds a thread of the server for as long as a task takes, so there is none unless
``streams`` says how many a process may have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from flask import Blueprint, Flask, Response, current_app, url_for
from markupsafe import Markup, escape

from umbel.contrib import progress as common
from umbel.current import app_or_default
from umbel.exceptions import CeleryError

__all__ = ["Progress"]

_KEY: Final = "umbel_progress"
_LONGEST: Final = 300.0  # seconds after which a browser connects anew
_HEARTBEAT: Final = 10.0
_EVERY: Final = 0.5


class Progress:
    """Serves ``/progress/`` of a Flask program.

    Task ids are signed with the program's ``SECRET_KEY``; those of ``SECRET_KEY_FALLBACKS`` are accepted too.

    :param celery: the app whose tasks are shown; None takes the current one.
    :param streams: how many streams of events a process may hold open at once.
    :param max_age: seconds for which an address is good.
    """

    def __init__(
        self,
        app: Flask | None = None,
        celery: Any = None,
        *,
        url_prefix: str = "/progress",
        streams: int = 0,
        max_age: float = common.DAY,
    ) -> None:
        self._celery = celery
        self._prefix = url_prefix
        self._streams = streams
        self._max_age = max_age
        self._room = threading.BoundedSemaphore(streams) if streams else None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the addresses and the functions for templates."""
        routes = Blueprint(_KEY, __name__, url_prefix=self._prefix)
        routes.add_url_rule("/progress.js", "script", self._script)
        routes.add_url_rule("/<token>", "look", self._look)
        if self._room is not None:
            routes.add_url_rule("/<token>/events", "events", self._events)
        app.register_blueprint(routes)
        app.extensions[_KEY] = self
        app.jinja_env.globals["umbel_progress"] = self.element
        app.jinja_env.globals["umbel_progress_script"] = self.script

    def url(self, task: Any) -> str:
        """Return the address at which a browser asks how far the task is. ``task`` is a result or an id."""
        return url_for(f"{_KEY}.look", token=self._signer().sign(common.id_of(task)))

    def element(self, task: Any, label: str | None = None) -> Markup:
        """Return the tag of the task's progress bar."""
        src = self.url(task)
        return Markup(common.element(src, f"{src}/events" if self._room is not None else None, label))

    def script(self) -> Markup:
        """Return the tag that loads ``<umbel-progress>``; once on a page."""
        return Markup('<script type="module" src="{}"></script>').format(escape(url_for(f"{_KEY}.script")))

    def _signer(self) -> common.Signer:
        config = current_app.config
        if not config.get("SECRET_KEY"):
            raise RuntimeError("progress: set SECRET_KEY of the Flask program; task ids are signed with it")
        secrets = [config["SECRET_KEY"], *(config.get("SECRET_KEY_FALLBACKS") or ())]
        return common.Signer(secrets, self._max_age)

    def _script(self) -> Response:
        return Response(common.script(), mimetype="text/javascript", headers=common.SCRIPT_HEADERS)

    def _look(self, token: str) -> Response:
        try:
            found = common.look(app_or_default(self._celery), self._signer().read(token))
        except common.BadToken as error:
            return _refused(str(error), error.status)
        except CeleryError:
            return _refused("The results cannot be reached.", 503)
        return Response(common.as_json(found), mimetype="application/json", headers=common.HEADERS)

    def _events(self, token: str) -> Response:
        assert self._room is not None
        try:
            task_id = self._signer().read(token)
        except common.BadToken as error:
            return _refused(str(error), error.status)
        if not self._room.acquire(blocking=False):
            return _refused("Too many are watching; ask instead.", 503)
        stream = _Stream(app_or_default(self._celery), task_id, self._room)
        response = Response(stream, mimetype="text/event-stream", headers={**common.HEADERS, "x-accel-buffering": "no"})
        # Also called where the browser is gone before the first byte.
        response.call_on_close(stream.close)
        return response


def _refused(text: str, status: int) -> Response:
    return Response(common.refusal(text), status, mimetype="application/json", headers=common.HEADERS)


class _Stream:
    """The events of one task for one browser. Ends with the task, with the browser, or after a while."""

    def __init__(self, app: Any, task_id: str, room: threading.BoundedSemaphore) -> None:
        self._app = app
        self._id = task_id
        self._room = room
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[str]:
        started = said_at = time.monotonic()
        told = None
        try:
            while not self._closed.is_set() and time.monotonic() - started < _LONGEST:
                found = common.look(self._app, self._id)
                if found != told:
                    told, said_at = found, time.monotonic()
                    yield f"data: {common.as_json(found)}\n\n"
                elif time.monotonic() - said_at > _HEARTBEAT:
                    # Written so that a browser that is gone is noticed.
                    said_at = time.monotonic()
                    yield ": still here\n\n"
                if found.ready:
                    return
                self._closed.wait(_EVERY)
        except CeleryError:
            # The browser connects anew, and asks if that fails.
            return

    def close(self) -> None:
        """Give the place to another; a second call does nothing."""
        if not self._closed.is_set():
            self._closed.set()
            self._room.release()
