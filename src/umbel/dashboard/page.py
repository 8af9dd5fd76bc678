"""What a page of the dashboard is made of: its routes, and the request as a view sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from umbel.dashboard.access import Access, Person, Role
from umbel.dashboard.asking import Asking
from umbel.dashboard.audit import Audit
from umbel.dashboard.guard import cookie, route_path
from umbel.dashboard.live import Live
from umbel.dashboard.recording import Recording

Reply = Response
View = Callable[["Ask"], Response]

#: The cookie that carries a sentence to the page after an action.
FLASH: Final = "umbel_flash"
_MOST_TEXT: Final = 200


class Desk(Protocol):
    """What the dashboard gives to its pages: :class:`umbel.dashboard.site.Site`."""

    umbel: Any  # the app
    access: Access
    live: Live
    recording: Recording
    audit: Audit
    asking: Asking
    name: str  # of the app, as -A takes it

    def command(self, *words: str) -> str:
        """Return the command line that does what a button does."""

    def control(self, node: str, *words: str) -> str:
        """Return the command line that gives an order to one worker."""

    def render(self, template: str, ask: Ask, values: Mapping[str, Any]) -> str:
        """Return a page as HTML."""


class Ask:
    """One request. Views read from it what was asked, and make their reply with it."""

    def __init__(self, request: Request, site: Desk) -> None:
        self.request = request
        self.site = site
        self.app: Any = site.umbel
        self.person: Person = request.scope["umbel.person"]
        self.form: dict[str, list[str]] = request.scope.get("umbel.form", {})
        self.outcome: tuple[str, str, int | None] = ("", "", None)
        self._ids = 0

    @property
    def may_act(self) -> bool:
        """Whether whoever asks may change something."""
        return self.person.role >= Role.OPERATOR and not self.site.access.read_only

    @property
    def token(self) -> str:
        """What a form must carry to be heeded."""
        return self.site.access.sessions.token(self.person.nonce)

    @property
    def path(self) -> str:
        """The path of the request, without the prefix."""
        return route_path(self.request.scope) or "/"

    @property
    def who(self) -> tuple[str, str]:
        """Whoever asks, and the address that it comes from, for the audit log."""
        client = self.request.client
        return self.person.name or "-", client.host if client is not None else "-"

    @property
    def theme(self) -> str:
        """``light`` or ``dark`` where the browser was told so, else empty: what the system says."""
        found = self.request.cookies.get("umbel_theme", "")
        return found if found in ("light", "dark") else ""

    def next_id(self) -> str:
        """Return a name for an element, another each time; the same ones each time the page is made."""
        self._ids += 1
        return f"part-{self._ids}"

    # -- what was asked ------------------------------------------------------------------------------------------

    def text(self, name: str, *, most: int = _MOST_TEXT) -> str:
        """Return a parameter of the query, empty where it was not given. 400 where it is longer than ``most``."""
        found = self.request.query_params.get(name, "").strip()
        if len(found) > most:
            self.refuse(400, f"{name} may have {most} characters at most.")
        return found

    def number(self, name: str, default: int, *, least: int = 0, most: int) -> int:
        """Return a parameter of the query as a number. 400 where it is none, or outside of its bounds."""
        found = self.request.query_params.get(name, "").strip()
        if not found:
            return default
        if not (found.isascii() and found.isdecimal()) or len(found) > 9 or not least <= int(found) <= most:
            self.refuse(400, f"{name} must be a number from {least} to {most}.")
        return int(found)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """Return a parameter of the query that is one of these words, the first where it was not given."""
        found = self.text(name) or allowed[0]
        if found not in allowed:
            self.refuse(400, f"{name} must be one of: {', '.join(allowed)}.")
        return found

    def field(self, name: str, *, most: int = 4096) -> str:
        """Return a field of the form. 400 where it is missing, empty or too long."""
        found = (self.form.get(name) or [""])[0]
        if not found or len(found) > most:
            self.refuse(400, f"The form needs the field {name}, of {most} characters at most.")
        return found

    def optional(self, name: str, *, most: int = 4096) -> str:
        """Return a field of the form, empty where it is missing."""
        return self.field(name, most=most) if self.form.get(name, [""])[0] else ""

    def fields(self, name: str, *, most: int = 1000) -> list[str]:
        """Return all fields of this name. 400 where there are more than ``most``."""
        found = self.form.get(name, [])
        if len(found) > most:
            self.refuse(400, f"{len(found)} times {name}; {most} is the most at once.")
        return found

    # -- the reply -----------------------------------------------------------------------------------------------

    def url(self, path: str, **query: Any) -> str:
        """Return the address of a path of this dashboard, wherever it is mounted."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        tail = f"?{urlencode(given, doseq=True, errors='backslashreplace')}" if given else ""
        return f"{self.request.scope.get('root_path', '')}{path}{tail}"

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page."""
        flash = self.site.access.sessions.unseal(self.request.cookies.get(FLASH, ""))
        text = self.site.render(template, self, {"flash": flash, **values})
        # Halves of characters come from strangers, and UTF-8 has none.
        reply = HTMLResponse(text.encode("utf-8", "backslashreplace"), status)
        if FLASH in self.request.cookies:
            reply.headers.append("set-cookie", cookie(self.request.scope, FLASH, "", age=0))
        return reply

    def done(self, text: str, *, to: str, target: str = "", count: int | None = None, **query: Any) -> Response:
        """Lead the browser on after an action, and tell there what was done.

        ``target`` and ``count`` say in the audit log to what it was done, and to how many.
        """
        self.outcome = (text, target, count)
        reply = RedirectResponse(self.url(to, **query), 303)
        sealed = self.site.access.sessions.seal(text[:500].encode("utf-8", "backslashreplace").decode("utf-8"))
        reply.headers.append("set-cookie", cookie(self.request.scope, FLASH, sealed, age=60))
        return reply

    def refuse(self, status: int, text: str) -> NoReturn:
        """End the request with a page that says why."""
        raise HTTPException(status, text)


class Page:
    """A part of the dashboard: what its menu shows, and its views."""

    def __init__(self, name: str, title: str | None, *, path: str | None = None, key: str = "") -> None:
        """Name it.

        :param title: what the menu says; None where it is not in the menu.
        :param path: where the menu leads; ``/name`` if not given.
        :param key: the key that leads there, pressed after ``g``.
        """
        self.name = name
        self.title = title
        self.path = path if path is not None else f"/{name}"
        self.key = key
        self._views: list[tuple[str, str, View, str]] = []

    def is_at(self, path: str) -> bool:
        """Say whether a path is one of this page's."""
        return any(path == known for _, known, _, _ in self._views)

    def get(self, path: str) -> Callable[[View], View]:
        """Add a view that shows something and changes nothing."""

        def add(view: View) -> View:
            self._views.append(("GET", path, view, ""))
            return view

        return add

    def post(self, path: str, action: str) -> Callable[[View], View]:
        """Add a view that changes something; ``action`` is its name in the audit log. Operators only.

        Empty is the name of what only shows something that a form holds, and is not written down.
        """

        def add(view: View) -> View:
            self._views.append(("POST", path, view, action))
            return view

        return add

    def routes(self, site: Desk) -> list[Route]:
        """Return the routes of one dashboard."""
        return [
            Route(path, functools.partial(_serve, site, view, action), methods=[method])
            for method, path, view, action in self._views
        ]


def _serve(site: Desk, view: View, action: str, request: Request) -> Response:
    """Run a view in the thread it was given; what it changes is written down, also when that fails."""
    ask = Ask(request, site)
    if not action:
        return view(ask)
    if not ask.may_act:
        # The guard has seen to that before; whoever adds a route should not have to rely on it.
        ask.refuse(403, "Nothing may be changed here by you.")
    try:
        reply = view(ask)
    except HTTPException as error:
        site.audit.write(*ask.who, action, outcome=f"refused: {error.detail}")
        raise
    except Exception as error:
        site.audit.write(*ask.who, action, outcome=f"failed: {type(error).__name__}")
        raise
    text, target, count = ask.outcome
    site.audit.write(*ask.who, action, outcome=text or "done", target=target, count=count)
    return reply
