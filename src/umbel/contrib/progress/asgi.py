"""Progress bars in an ASGI program: Starlette, FastAPI, Litestar, or none of them.

::

    from umbel.contrib.progress.asgi import Progress

    progress = Progress(celery, secret=SECRET, prefix="/progress")
    web.mount("/progress", progress)  # Starlette's and FastAPI's way

and in a page, ``result`` being what ``delay`` returned or a task id::

    progress.script() + progress.element(result, label="Resizing")

A browser listens to a stream of events and asks once a second where it cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from umbel import asyncio as off_loop
from umbel.contrib import progress as common
from umbel.current import app_or_default
from umbel.exceptions import CeleryError
from umbel.progress import Progress as Known

__all__ = ["Progress"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LONGEST: Final = 3600.0  # seconds after which a browser connects anew
_HEARTBEAT: Final = 15.0
_LEAST: Final = 0.1  # between two events
_PATIENCE: Final = 20.0  # after which a browser that reads nothing is let go


class Progress:
    """An ASGI application that answers below one path.

    :param celery: the app whose tasks are shown; None takes the current one.
    :param secret: what task ids are signed with; of several the first signs and all are accepted.
    :param prefix: where it is mounted, as browsers see it.
    :param streams: how many streams of events a process may hold open at once.
    :param max_age: seconds for which an address is good.
    """

    def __init__(
        self,
        celery: Any = None,
        *,
        secret: str | bytes | Iterable[str | bytes],
        prefix: str = "/progress",
        streams: int = 200,
        max_age: float = common.DAY,
    ) -> None:
        self._celery = celery
        self._signer = common.Signer(common.secrets_of(secret), max_age)
        self._prefix = prefix.rstrip("/")
        self._most = streams
        self._open = 0

    def url(self, task: Any) -> str:
        """Return the address at which a browser asks how far the task is. ``task`` is a result or an id."""
        return f"{self._prefix}/{self._signer.sign(common.id_of(task))}"

    def element(self, task: Any, label: str | None = None) -> str:
        """Return the tag of the task's progress bar."""
        src = self.url(task)
        return common.element(src, f"{src}/events" if self._most else None, label)

    def script(self) -> str:
        """Return the tag that loads ``<umbel-progress>``; once on a page."""
        return f'<script type="module" src="{self._prefix}/progress.js"></script>'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"progress: {scope['type']} is not served, only http")
        path, root = scope["path"], scope.get("root_path", "").rstrip("/")
        # Mounted, some frameworks cut off the path they are mounted at and some leave it.
        for before in (root, self._prefix):
            if before and path.startswith(f"{before}/"):
                path = path[len(before) :]
                break
        token, _, rest = path.strip("/").partition("/")
        if scope["method"] not in ("GET", "HEAD"):
            await _refuse(send, 405, "Only GET is answered.")
        elif token == "progress.js" and not rest:
            await _answer(send, 200, "text/javascript; charset=utf-8", common.script(), common.SCRIPT_HEADERS)
        elif not token or rest not in ("", "events"):
            await _refuse(send, 404, "There is nothing here.")
        else:
            try:
                await self._tell(self._signer.read(token), rest == "events" and scope["method"] == "GET", receive, send)
            except common.BadToken as error:
                await _refuse(send, error.status, str(error))

    async def _tell(self, task_id: str, as_events: bool, receive: Receive, send: Send) -> None:
        if as_events and self._open >= self._most:
            await _refuse(send, 503, "Too many are watching; ask instead.")
            return
        app = app_or_default(self._celery)
        # Before the first wait, so that the limit holds.
        self._open += as_events
        try:
            try:
                found = await off_loop.run(lambda: common.look(app, task_id))
            except CeleryError:
                await _refuse(send, 503, "The results cannot be reached.")
                return
            if as_events:
                await _stream(app, task_id, found, receive, send)
            else:
                await _answer(send, 200, "application/json", common.as_json(found).encode(), common.HEADERS)
        finally:
            self._open -= as_events


async def _refuse(send: Send, status: int, text: str) -> None:
    await _answer(send, status, "application/json", common.refusal(text).encode(), common.HEADERS)


async def _answer(send: Send, status: int, kind: str, body: bytes, headers: Mapping[str, str]) -> None:
    await _start(send, status, {"content-type": kind, "content-length": str(len(body)), **headers})
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _stream(app: Any, task_id: str, found: Known, receive: Receive, send: Send) -> None:
    """Send what is known and then what is new, until the task has ended, the browser is gone, or for an hour."""
    news = _News(found)
    gone = asyncio.ensure_future(_gone(receive))
    heard = asyncio.ensure_future(news.hear(app, task_id))
    kind = {"content-type": "text/event-stream", "x-accel-buffering": "no"}
    try:
        await _start(send, 200, {**kind, **common.HEADERS})
        until = time.monotonic() + _LONGEST
        while not gone.done() and time.monotonic() < until:
            body = f"data: {common.as_json(news.last)}\n\n" if news.fresh.is_set() else ": still here\n\n"
            news.fresh.clear()
            ended = news.last.ready
            async with asyncio.timeout(_PATIENCE):
                await send({"type": "http.response.body", "body": body.encode(), "more_body": True})
            if ended or (heard.done() and not news.fresh.is_set()):
                break
            waiting = asyncio.ensure_future(news.fresh.wait())
            await asyncio.wait({gone, heard, waiting}, timeout=_HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await asyncio.wait({gone}, timeout=_LEAST)
        if not gone.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (TimeoutError, OSError):
        pass
    finally:
        gone.cancel()
        heard.cancel()


class _News:
    """The last that was heard of one task; used on the event loop."""

    def __init__(self, known: Known) -> None:
        self.last = known
        self.fresh = asyncio.Event()
        self.fresh.set()

    async def hear(self, app: Any, task_id: str) -> None:
        """Listen until the task has ended or the results cannot be reached."""

        def take(meta: Any) -> None:
            found = common.of_meta(meta)
            if found != self.last:
                self.last = found
                self.fresh.set()

        # The stream then ends too, and the browser connects anew.
        with contextlib.suppress(CeleryError):
            await app.waiter.wait_async([task_id], on_message=take)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
