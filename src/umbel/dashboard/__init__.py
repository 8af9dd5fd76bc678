"""The dashboard: a web page that shows what the workers of an app do, and lets people steer them.

``umbel dashboard`` serves it; ``umbel.dashboard.app(app)`` is the same as an ASGI application, to be mounted elsewhere.

A page is one module in ``pages/`` with a :class:`~umbel.dashboard.page.Page`, and templates beside the others. Its
module is named in :data:`umbel.dashboard.site.PAGES`; that is all. What a page may rely on::

    from umbel.dashboard.page import Ask, Page, Reply

    page = Page("tasks", "Tasks", key="t")     # name, title in the menu (None: not there), key after "g"

    @page.get("/tasks")                        # views are plain functions, run in a thread: they may block
    def tasks(ask: Ask) -> Reply:
        shown = ask.number("limit", 50, most=200)         # 400 for what is not a number, or too much
        name = ask.text("name", most=200)                 # "" where it is not given; 400 where it is too long
        return ask.render("tasks.html", rows=..., name=name)

    @page.post("/tasks/revoke", "tasks.revoke")           # operators only: page, guard and audit log see to that
    def revoke(ask: Ask) -> Reply:
        task_id = ask.field("id")                         # of the form, required; ask.fields("id") are all of them
        ask.app.control.revoke(task_id)
        return ask.done("Revoked.", to="/tasks", target=task_id, count=1)

``ask`` has ``app`` (the Umbel app), ``site`` (with ``live``, ``audit``, ``command``), ``person`` (``name``, ``role``),
``may_act`` (whether buttons are to be shown), ``url(path, **query)`` and ``refuse(status, text)``, which raises. What
names a thing (an id, a queue, a worker) goes into the query or the form and never into the path: it may hold any
character. A view that raises :exc:`~umbel.exceptions.OperationalError` becomes the page "the broker is away".

A template extends ``base.html``, sets ``title`` and fills the block ``main``; ``{% import "parts.html" as parts with
context %}`` gives it the macros. ``parts.action(path, label, line, fields, question, danger)`` is a button that opens
a question, the command line that does the same (``site.command("purge", "-Q", name)``), and the form with its token;
used with ``call`` it holds more inputs. ``parts.chosen`` is one inside a form around a table. ``parts.when(moment)``,
``parts.state("FAILURE")``, ``parts.mark("ok")``, ``parts.cli(line)`` and ``parts.empty(text)`` are what they say;
filters are in ``showing.py``. There is no inline script or style: the policy forbids both, and a test looks. With the
block ``attributes`` filled with ``data-refresh`` a page is fetched anew and merged every three seconds while it is
seen; what has ``data-keep`` is left alone.

What is to be shown live goes through ``site.live`` (:class:`umbel.dashboard.live.Live`), which has the one event
receiver of the process; ``site.live.listeners`` takes functions that are called with each event.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from umbel.dashboard.site import Site

__all__ = ["app"]

_PURPOSE: Final = b"umbel dashboard"
_SHORTEST: Final = 16


def app(
    app: Any,
    *,
    authorize: Callable[[Any], str | None] | None = None,
    hosts: Sequence[str] | None = None,
    read_only: bool = False,
    name: str | None = None,
    secret: str | bytes | None = None,
) -> Site:
    """Return the dashboard of an app as an ASGI application, to be mounted under any path.

    :param authorize: called with each request (Starlette's), from a thread; returns ``"viewer"``, ``"operator"``, or
        None to refuse. Without it only this machine's own browsers are answered, and not through a proxy.
    :param hosts: the host names that it answers to; None leaves that to the application around it where there is an
        ``authorize``.
    :param read_only: nobody may change anything.
    :param name: what the app is called in command lines (``-A``).
    :param secret: the same 16 bytes or more in all processes of a server that has several, so that each takes the
        forms of the others' pages; without it the app's ``security_key`` serves for that, where it is set.

    Raises :exc:`ImproperlyConfigured` for a short secret, and for ``hosts`` of other machines without ``authorize``.
    """
    from umbel.dashboard.access import Access
    from umbel.dashboard.site import Site
    from umbel.exceptions import ImproperlyConfigured

    if secret is not None and len(secret) < _SHORTEST:
        raise ImproperlyConfigured(f"the dashboard's secret is too short: it needs {_SHORTEST} bytes or more")
    access = Access(
        authorize=authorize,
        hosts=None if hosts is None else tuple(hosts),
        read_only=read_only,
        key=lambda: _key(app, secret),
    )
    if access.foreign and not access.guarded:
        raise ImproperlyConfigured(
            f"hosts names {', '.join(access.foreign)}, and without authorize nothing is asked of those who come; pass "
            "authorize="
        )
    return Site(app, access, name=name)


def _key(app: Any, secret: str | bytes | None) -> bytes | None:
    """Return the key of cookies and forms that all processes know, or None."""
    from umbel.signing import keyring_of

    if secret is not None:
        return hmac.digest(secret.encode() if isinstance(secret, str) else secret, _PURPOSE, "sha256")
    keys = keyring_of(app.conf)
    return keys.derived(_PURPOSE) if keys is not None else None
