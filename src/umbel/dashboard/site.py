"""The dashboard as one ASGI application: its pages, their templates, the static files, and what they share."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import logging
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from umbel import __version__
from umbel.dashboard.access import Access, Person, Role
from umbel.dashboard.asking import Asking
from umbel.dashboard.audit import Audit
from umbel.dashboard.guard import Guard
from umbel.dashboard.live import Live
from umbel.dashboard.page import Ask, Page
from umbel.dashboard.recording import Recording
from umbel.dashboard.showing import FILTERS, spark
from umbel.dashboard.signin import signin_routes
from umbel.dashboard.stream import Streams
from umbel.exceptions import BrokerError, OperationalError

#: The modules of the pages, in the order of the menu.
PAGES: Final = (
    "umbel.dashboard.pages.overview",
    "umbel.dashboard.pages.tasks",
    "umbel.dashboard.pages.workflows",
    "umbel.dashboard.pages.queues",
    "umbel.dashboard.pages.workers",
    "umbel.dashboard.pages.schedules",
    "umbel.dashboard.pages.errors",
    "umbel.dashboard.pages.dead",
    "umbel.dashboard.pages.doctor",
    "umbel.dashboard.pages.audit",
)

logger = logging.getLogger("umbel.dashboard")

_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
_FOR_EVER: Final = "public, max-age=31536000, immutable"


class Static:
    """One file that browsers may keep, because its address changes with it."""

    def __init__(self, content: bytes, kind: str) -> None:
        self.packed = gzip.compress(content, mtime=0)
        self.content = content
        self.kind = kind
        self.version = hashlib.sha256(content).hexdigest()[:12]


class Site:
    """One dashboard. Starts its threads with the first request, or with the server around it."""

    def __init__(self, umbel: Any, access: Access, *, name: str | None = None, prefix: str = "") -> None:
        """Make the dashboard of an app.

        :param name: what ``-A`` would say.
        :param prefix: the path that it is found under where nothing is around it that says so; a proxy may take it
            away from requests, or leave it.
        """
        self.umbel = umbel
        self.access = access
        self._prefix = prefix
        self.name = name or umbel.main or "proj"
        self.live = Live(umbel)
        self.recording = Recording(umbel, self.live)
        self.audit = Audit(umbel)
        self.asking = Asking(umbel)
        self.streams = Streams(self.live)
        self.pages: list[Page] = [importlib.import_module(module).page for module in PAGES]
        self.static = dict(_static_files())
        self._env = self._environment()
        inner = Starlette(
            routes=self._routes(),
            exception_handlers={
                HTTPException: self._http_error,
                OperationalError: self._away,
                BrokerError: self._away,
                Exception: self._crash,
            },
            lifespan=self._lifespan,
        )
        self._guarded = Guard(inner, access, self.error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            # Mounted in another application, nobody tells us that it starts.
            self.recording.start()
            self.live.start()
            if self._prefix and not scope.get("root_path"):
                path = scope["path"]
                inside = path == self._prefix or path.startswith(self._prefix + "/")
                scope = {**scope, "root_path": self._prefix, "path": path if inside else self._prefix + path}
        await self._guarded(scope, receive, send)

    def close(self) -> None:
        """End the threads and the streams. A second call does nothing."""
        self.streams.close()
        self.live.stop()
        self.recording.stop()

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.recording.start()
        self.live.start()
        try:
            yield
        finally:
            self.close()

    def _routes(self) -> list[Route]:
        routes = [
            Route("/static/{name:path}", self._static, methods=["GET"]),
            Route("/healthz", lambda request: PlainTextResponse("ok\n"), methods=["GET"]),
            Route("/robots.txt", lambda request: PlainTextResponse("User-agent: *\nDisallow: /\n"), methods=["GET"]),
            Route("/live", self.streams.stream, methods=["GET"]),
            Route("/live/series", self._series, methods=["GET"]),
            *signin_routes(self),
        ]
        for page in self.pages:
            routes += page.routes(self)
        return routes

    # -- what pages use ------------------------------------------------------------------------------------------

    def command(self, *words: str) -> str:
        """Return the command line that does what a button does."""
        return shlex.join(["umbel", "-A", self.name, *words])

    def control(self, node: str, *words: str) -> str:
        """Return the command line that gives an order to one worker."""
        return self.command("control", *words, "-d", node)

    def render(self, template: str, ask: Ask, values: Mapping[str, Any]) -> str:
        """Return a page as HTML."""
        return self._env.get_template(template).render({"ask": ask, "site": self, "url": ask.url, **values})

    def asset(self, name: str) -> str:
        """Return the path of a static file, with its version."""
        return f"/static/{name}?v={self.static[name].version}"

    def error(self, scope: Scope, status: int, text: str) -> Response:
        """Return a page that says why a request was not answered."""
        request = Request(scope)
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"error": {"code": status, "message": text}}, status)
        scope.setdefault("umbel.person", Person(name="", role=Role.NOBODY))
        ask = Ask(request, self)
        return HTMLResponse(self.render("error.html", ask, {"status": status, "text": text, "flash": ""}), status)

    # -- inside --------------------------------------------------------------------------------------------------

    def _environment(self) -> jinja2.Environment:
        env = jinja2.Environment(
            loader=jinja2.PackageLoader("umbel.dashboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        env.filters.update(FILTERS)
        env.globals.update(spark=spark, now=lambda: datetime.now(UTC), version=__version__)
        return env

    def _static(self, request: Request) -> Response:
        found = self.static.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "There is no such file.")
        headers = {"etag": f'"{found.version}"', "cache-control": _FOR_EVER, "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(found.packed, media_type=found.kind, headers=headers)
        return Response(found.content, media_type=found.kind, headers=headers)

    def _series(self, request: Request) -> Response:
        return Response(json.dumps(self.live.series()), media_type="application/json")

    def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = error.detail if error.detail != "Not Found" else "There is no such page."
        return self.error(request.scope, error.status_code, text)

    def _away(self, request: Request, error: Exception) -> Response:
        return self.error(request.scope, 503, f"The broker cannot be reached: {' '.join(str(error).split())[:500]}")

    def _crash(self, request: Request, error: Exception) -> Response:
        # Starlette logs it with its traceback; what it says is not for everybody who may look.
        return self.error(request.scope, 500, "The dashboard failed here; its log says why.")


def _static_files() -> list[tuple[str, Static]]:
    found = []

    def walk(folder: Traversable, prefix: str) -> None:
        for each in folder.iterdir():
            if each.is_dir():
                walk(each, f"{prefix}{each.name}/")
            elif (kind := _TYPES.get("." + each.name.rpartition(".")[2])) is not None:
                found.append((prefix + each.name, Static(each.read_bytes(), kind)))

    walk(files("umbel.dashboard") / "static", "")
    return found
