"""Signing in and out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from umbel.dashboard.access import SESSION
from umbel.dashboard.guard import COOKIE, Attempts, cookie
from umbel.dashboard.page import Ask, Desk

_LONGEST: Final = 1024
#: Seconds that somebody who signs in waits for a turn.
_PATIENCE: Final = 1.0
# Each takes 16 MiB and some 50 ms; more at once would let strangers tie up the machine.
_hashing: Final = threading.BoundedSemaphore(2)
# Who waits has one of the 40 threads that make all pages.
_waiting: Final = threading.BoundedSemaphore(8)


def signin_routes(site: Desk) -> list[Route]:
    """Return the routes of the sign-in page; none where there are no accounts."""
    attempts = Attempts()

    def form(request: Request) -> Response:
        if site.access.accounts is None:
            return RedirectResponse(Ask(request, site).url("/"), 303)
        return Ask(request, site).render("login.html", next=request.query_params.get("next", ""), wrong="")

    def enter(request: Request) -> Response:
        ask = Ask(request, site)
        accounts = site.access.accounts
        if accounts is None:
            ask.refuse(404, "There are no accounts here.")
        address = request.client.host if request.client is not None else ""
        name, password = ask.field("name", most=200), ask.field("password", most=_LONGEST)
        wanted = ask.optional("next", most=2000)
        # By the name too: behind a proxy everybody has its address, and nobody is to lock out all others.
        if not attempts.begin(address, name):
            ask.refuse(429, "Too many attempts; wait a minute.")
        with _turn() as mine:
            if not mine:
                attempts.take_back(address, name)
                ask.refuse(503, "Too many are signing in just now; try again in a moment.")
            account = accounts.by_password(name, password)
        if account is None:
            site.audit.write(*ask.who, "sign-in", outcome="refused", target=name[:100], keep=False)
            return ask.render("login.html", 403, next=wanted, wrong="This name and password do not fit.")
        attempts.take_back(address, name)
        site.audit.write(account.name, address or "-", "sign-in", outcome="signed in")
        reply = RedirectResponse(ask.url(wanted if _is_ours(wanted) else "/"), 303)
        value = site.access.sessions.make(account.name, account.role)
        reply.headers.append("set-cookie", cookie(request.scope, COOKIE, value, age=SESSION))
        return reply

    def leave(request: Request) -> Response:
        reply = RedirectResponse(Ask(request, site).url("/login"), 303)
        reply.headers.append("set-cookie", cookie(request.scope, COOKIE, "", age=0))
        return reply

    return [
        Route("/login", form, methods=["GET"]),
        Route("/login", enter, methods=["POST"]),
        Route("/logout", leave, methods=["POST"]),
    ]


@contextmanager
def _turn() -> Iterator[bool]:
    """Wait for a turn to look at a password; False where there is none soon."""
    if not _waiting.acquire(blocking=False):
        yield False
        return
    try:
        mine = _hashing.acquire(timeout=_PATIENCE)
        try:
            yield mine
        finally:
            if mine:
                _hashing.release()
    finally:
        _waiting.release()


def _is_ours(path: str) -> bool:
    """Say whether a path leads to this site; ``//evil`` and ``/\\evil`` lead elsewhere."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
