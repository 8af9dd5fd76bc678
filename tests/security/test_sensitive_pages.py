"""S13 on the page of one task, in ``umbel tasks show`` and in ``umbel top``: nothing sensitive is in them."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from dashboard_support import Visitor, served
from hostile import inject, task_message
from support import DEADLINE
from umbel import Umbel, chain, chord
from umbel.cli.tasks import _full
from umbel.dashboard.serving import Server
from umbel.message import decode_call, decode_envelope
from umbel.serialization import dumps
from umbel.top.source import Source
from umbel.worker.inprocess import start_worker

CANARY = "4111-cAnary-1111"


def make(url: str, *, knows: bool) -> Umbel:
    """Return an app with tasks that hide something, or one on the same stores that does not know them."""
    app = Umbel("shop" if knows else "other", broker=url, backend=url, set_as_current=False)
    app.task(name="prepare", shared=False)(lambda order: order)
    if knows:

        @app.task(name="charge", sensitive=("card",), shared=False)
        def charge(card: str, note: str = "") -> None: ...

        @app.task(name="mint", sensitive=True, shared=False)
        def mint(seed: str = "") -> str:
            return CANARY

    return app


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Umbel]:
    with make(sqlite_url, knows=True) as app:
        yield app


@contextmanager
def looking(app: Umbel) -> Iterator[tuple[Server, Visitor]]:
    with served(app) as server:
        yield server, Visitor(server.url)


def page(visitor: Visitor, id: str) -> str:
    answer = visitor.get(f"/task?id={id}")
    assert answer.status == 200, answer.text
    return html.unescape(answer.text)


def test_s13_a_message_of_a_task_that_is_not_known_here_keeps_what_its_sender_hides(
    shop: Umbel, sqlite_url: str
) -> None:
    by_name = shop.tasks["charge"].apply_async((), {"card": CANARY, "note": "seen"})
    by_place = shop.tasks["charge"].apply_async((CANARY,), {"note": "seen"})
    with make(sqlite_url, knows=False) as other, looking(other) as (_, visitor):
        for sent in (by_name, by_place):
            found = page(visitor, sent.id)
            assert "The message as it is" in found and "***" in found and "seen" in found
            assert CANARY not in found


def test_s13_a_message_shows_no_arguments_of_the_tasks_that_follow(shop: Umbel) -> None:
    prepare, charge = shop.tasks["prepare"], shop.tasks["charge"]
    secret = charge.si(CANARY)
    waiting = [
        chain(prepare.s(17), secret.clone()).apply_async().parent,
        prepare.apply_async((17,), link=secret.clone()),
        prepare.apply_async((17,), link_error=secret.clone()),
        chord([prepare.s(17)], secret.clone()).apply_async().parent[0],
    ]
    for peeked in shop.broker.peek("celery"):
        assert CANARY in str(decode_call(decode_envelope(peeked.raw))), "the worker needs it"
    with looking(shop) as (_, visitor):
        for role, sent in zip(("then", "callback", "errback", "chord"), waiting, strict=True):
            found = page(visitor, sent.id)
            assert f"{role}: charge" in found and "17" in found
            assert CANARY not in found


def test_s13_a_message_of_protocol_1_or_that_cannot_be_read_is_not_shown_as_it_is(shop: Umbel) -> None:
    old = {"task": "charge", "id": "old", "args": [CANARY], "kwargs": {}}
    message = task_message(dumps(old)[2])
    message.headers.clear()
    message.headers["id"] = "old"
    inject(shop, message)
    inject(shop, task_message(CANARY.encode(), id="unread", task="charge"))
    with looking(shop) as (_, visitor):
        for id in ("old", "unread"):
            assert CANARY not in page(visitor, id)


def test_what_has_nothing_to_hide_is_shown_as_it_is(shop: Umbel) -> None:
    sent = shop.tasks["prepare"].delay(17)
    with looking(shop) as (_, visitor):
        assert '[[17], {}, {"callbacks": null' in page(visitor, sent.id)


def result_of_mint(shop: Umbel) -> str:
    with start_worker(shop):
        sent = shop.tasks["mint"].delay(CANARY)
        assert sent.get(timeout=DEADLINE) == CANARY
    stored = shop.backend.fetch([sent.id])[sent.id]
    assert CANARY.encode() in stored and b'"mint"' not in stored
    return str(sent.id)


def told(id: str, name: str, args: str, kwargs: str) -> list[dict[str, Any]]:
    about = {"uuid": id, "hostname": "w@box", "name": name, "args": args, "kwargs": kwargs}
    return [
        {"type": "task-received", "timestamp": 1.9e9, **about},
        {"type": "task-succeeded", "timestamp": 2e9, **about},
    ]


@pytest.mark.parametrize("knows", [True, False])
def test_s13_the_result_of_a_task_that_hides_everything_is_not_shown(shop: Umbel, sqlite_url: str, knows: bool) -> None:
    id = result_of_mint(shop)
    with make(sqlite_url, knows=knows) as app, looking(app) as (server, visitor):
        if knows:
            assert CANARY not in page(visitor, id), "nobody told which task it was, and one of them hides its results"
        server.site.recording.history.record(told(id, "mint", "***", "***"))
        found = page(visitor, id)
        assert "***" in found and CANARY not in found
        shown = _full(app, id)
        assert shown["stored"] == {**shown["stored"], "result": "***"} and CANARY not in str(shown)
        source = Source(app)
        source.recording.start()
        try:
            about = source.about(id)
            assert about.stored is not None and about.stored["result"] == "***" and CANARY not in str(about)
        finally:
            source.stop()


def test_other_results_are_shown(shop: Umbel, sqlite_url: str) -> None:
    with start_worker(shop):
        sent = shop.tasks["prepare"].delay("an ordinary value")
        assert sent.get(timeout=DEADLINE) == "an ordinary value"
    with make(sqlite_url, knows=False) as other, looking(other) as (_, visitor):
        assert "an ordinary value" in page(visitor, sent.id), "no task of this app hides its results"
    with looking(shop) as (server, visitor):
        server.site.recording.history.record(told(sent.id, "prepare", "('an ordinary value',)", "{}"))
        assert "an ordinary value" in page(visitor, sent.id)
