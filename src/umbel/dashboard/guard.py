"""What every request passes before a page sees it: size, host, who asks, and whether a form is one of ours."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel.dashboard.access import Access, Person, Role, is_loopback, role_of

COOKIE: Final = "umbel_session"
#: The most bytes of a query, and of a form.
LONGEST_QUERY: Final = 8192
LONGEST_FORM: Final = 1 << 20
_MOST_FIELDS: Final = 2000
_FORM: Final = "application/x-www-form-urlencoded"
_OPEN: Final = ("/login", "/healthz", "/robots.txt")
#: What proxies say of those for whom they ask; so does all that begins with "x-forwarded-".
_PROXIED: Final = frozenset({"forwarded", "via", "x-real-ip"})

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
# A form must say where it comes from, which with "no-referrer" it would not; other sites learn nothing either way.
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Refusal(Exception):
    """A request that no page is to see."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Guard:
    """Lets through to ``inner`` what may pass; puts ``umbel.person`` and ``umbel.form`` into the scope."""

    def __init__(self, inner: ASGIApp, access: Access, error: Callable[[Scope, int, str], Response]) -> None:
        """``error`` makes the page that says why a request is refused."""
        self._inner = inner
        self._access = access
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._inner(scope, receive, send)
            return
        scope["umbel.person"] = Person(name="", role=Role.NOBODY)
        fresh: list[str] = []

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                for value in fresh:
                    headers.append("set-cookie", cookie(scope, COOKIE, value))
            await send(message)

        try:
            await self._check(scope, receive, fresh)
        except Refusal as refusal:
            await self._refuse(refusal, scope)(scope, receive, guarded)
            return
        await self._inner(scope, receive, guarded)

    def _refuse(self, refusal: Refusal, scope: Scope) -> Response:
        request = Request(scope)
        root, path = scope.get("root_path", ""), route_path(scope)
        if refusal.status == 401 and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            if self._access.accounts is not None:
                query = scope["query_string"].decode("latin-1")
                after = path + (f"?{query}" if query else "")
                return RedirectResponse(
                    str(
                        request.url.replace(scheme="", netloc="", path=f"{root}/login", query="").include_query_params(
                            next=after
                        )
                    ),
                    303,
                )
        return self._error(scope, refusal.status, refusal.text)

    async def _check(self, scope: Scope, receive: Receive, fresh: list[str]) -> None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "Only GET and POST are answered here.")
        if len(scope["query_string"]) > LONGEST_QUERY:
            raise Refusal(400, f"A query may have {LONGEST_QUERY} bytes at most.")
        if not self._access.knows_host(headers.get("host", "")):
            raise Refusal(421, "This host name is not one of this dashboard's; --allow-host adds one.")
        path = route_path(scope)
        if path.startswith("/static/"):
            return
        person, ambient = await self._person(scope, headers)
        if ambient and not person.nonce:
            # A browser's first visit: its forms need a session for their tokens, if only a nameless one.
            fresh.append(value := self._access.sessions.make())
            made = self._access.sessions.read(value)
            assert made is not None
            person = Person(name=person.name, role=person.role, nonce=made.nonce, local=person.local)
        scope["umbel.person"] = person
        if person.role < Role.VIEWER and path not in _OPEN:
            raise Refusal(401, "Sign in first.")
        if scope["method"] == "POST":
            await self._form(scope, receive, headers, person, ambient)
            if path not in ("/login", "/logout"):
                self._may_act(person)

    def _may_act(self, person: Person) -> None:
        if self._access.read_only:
            raise Refusal(403, "This dashboard is read-only.")
        if person.role < Role.OPERATOR:
            raise Refusal(403, "You may look, and change nothing.")

    # -- who asks ------------------------------------------------------------------------------------------------

    async def _person(self, scope: Scope, headers: Headers) -> tuple[Person, bool]:
        """Return who asks, and whether a browser says so by itself with every request."""
        access = self._access
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if access.accounts is not None and scheme.lower() == "bearer":
            account = access.accounts.by_token(token.strip())
            if account is None:
                raise Refusal(401, "This token is not known.")
            return Person(name=account.name, role=account.role), False
        session = access.sessions.read(Request(scope).cookies.get(COOKIE, ""))
        nonce = session.nonce if session is not None else ""
        client = (scope.get("client") or ("", 0))[0]
        if access.authorize is not None:
            given = await asyncio.to_thread(access.authorize, Request(scope))
            return Person(name="-", role=role_of(given), nonce=nonce), True
        if access.trusted_header is not None and access.trusts(client):
            name = headers.get(access.trusted_header, "").strip()
            if name:
                return Person(name=name[:200], role=access.trusted_role, nonce=nonce), True
        if access.accounts is not None:
            if session is not None and session.name:
                return session, True
            return Person(name="", role=Role.NOBODY, nonce=nonce), True
        if access.guarded:
            return Person(name="", role=Role.NOBODY, nonce=nonce), True
        if not is_loopback(client) or _is_proxied(scope, headers):
            raise Refusal(
                403,
                "Nothing is asked of those who come, so that only browsers of this machine are answered, and not "
                "through a proxy: set up --auth, or pass authorize= where it is mounted.",
            )
        return Person(name="local", role=Role.OPERATOR, nonce=nonce, local=True), True

    # -- forms ---------------------------------------------------------------------------------------------------

    async def _form(self, scope: Scope, receive: Receive, headers: Headers, person: Person, ambient: bool) -> None:
        site = headers.get("sec-fetch-site")
        if site is not None and site != "same-origin":
            raise Refusal(403, "This form comes from another site.")
        origin = headers.get("origin")
        if origin is not None and origin != "null" and not self._access.may_call(origin, headers.get("host", "")):
            raise Refusal(403, "This form comes from another site.")
        if origin == "null" and site is None:
            raise Refusal(403, "This form does not say where it comes from.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Refusal(415, f"Send a form, as {_FORM}.")
        scope["umbel.form"] = form = await _read_form(receive, headers)
        token = (form.pop("token", None) or [""])[0]
        if ambient and not self._access.sessions.fits(token, person.nonce):
            raise Refusal(403, "This form is too old, or not from here. Load the page again and repeat it.")


def _is_proxied(scope: Scope, headers: Headers) -> bool:
    """Say whether a request tells that it came through a proxy. Not all proxies do."""
    # No browser asks in HTTP/1.0, and some proxies do so where nobody told them otherwise.
    if scope.get("http_version") == "1.0":
        return True
    return any(name in _PROXIED or name.startswith("x-forwarded-") for name in headers)


async def _read_form(receive: Receive, headers: Headers) -> dict[str, list[str]]:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > LONGEST_FORM:
        raise Refusal(413, f"A form may have {LONGEST_FORM} bytes at most.")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "The form was cut off.")
        body += message.get("body", b"")
        if len(body) > LONGEST_FORM:
            raise Refusal(413, f"A form may have {LONGEST_FORM} bytes at most.")
        if not message.get("more_body", False):
            break
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError as error:
        raise Refusal(400, "This is no form.") from error


def route_path(scope: Scope) -> str:
    """Return the path without what the dashboard is mounted under."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and (path == root or path.startswith(root + "/")) else path


def cookie(scope: Scope, name: str, value: str, *, age: int | None = None) -> str:
    """Return a Set-Cookie header that no script reads and no other site sends."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    kept = f"; Max-Age={age}" if age is not None else ""
    return f"{name}={value}; Path={scope.get('root_path', '') or '/'}; HttpOnly; SameSite=Strict{secure}{kept}"


class Attempts:
    """Slows down those who guess passwords: so many for one name from one address. Safe to share between threads.

    An attempt counts from before its password is looked at, so that sending many at once is no way around it.
    """

    def __init__(self, *, most: int = 10, within: float = 60.0, remember: int = 10_000) -> None:
        """Allow ``most`` attempts in ``within`` seconds, and remember so many names and addresses."""
        self._most, self._within, self._remember = most, within, remember
        self._counted: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, address: str, name: str) -> bool:
        """Count an attempt and return True; False where there were too many."""
        now = time.monotonic()
        with self._lock:
            recent = [at for at in self._counted.get((address, name), ()) if now - at < self._within]
            if len(recent) >= self._most:
                return False
            self._counted[address, name] = [*recent, now]
            self._counted.move_to_end((address, name))
            while len(self._counted) > self._remember:
                self._counted.popitem(last=False)
            return True

    def take_back(self, address: str, name: str) -> None:
        """Count one attempt less: the password was right, or nobody looked at it."""
        with self._lock:
            counted = self._counted.get((address, name), [])
            if counted:
                counted.pop()
            if not counted:
                self._counted.pop((address, name), None)
