"""S13: what a task calls sensitive is shown nowhere."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import inject, make_app, peek, task_message
from support import environment, eventually, run, worker
from umbel import Umbel
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Place
from umbel.message import decode_call, decode_envelope
from umbel.sensitive import veil_of
from umbel.worker.inprocess import start_worker

CANARY = "cAnary-s3cret"


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name)
    yield made
    made.close()


def reprs(app: Any) -> tuple[Any, Any]:
    """Return what the header of the only waiting message shows."""
    (peeked,) = peek(app)
    app.broker.purge("celery")
    call = decode_call(decode_envelope(peeked.raw))
    assert CANARY in str(call.args) + str(call.kwargs), "the task itself needs it"
    return call.headers["argsrepr"], call.headers["kwargsrepr"]


def test_s13_all_arguments_are_hidden(app: Any) -> None:
    @app.task(sensitive=True)
    def login(user: str, password: str) -> str:
        return password

    login.delay("bob", CANARY)
    assert reprs(app) == ("***", "***")
    login.apply_async((), {"user": "bob", "password": CANARY}, countdown=0, priority=3)
    assert reprs(app) == ("***", "***")
    app.send_task(login.name, ["bob", CANARY])
    assert reprs(app) == ("***", "***")
    login.s("bob").apply_async((CANARY,))
    assert reprs(app) == ("***", "***")
    login.apply_async(("bob", CANARY), argsrepr="my own")
    assert reprs(app) == ("my own", "***")


def test_s13_parameters_are_hidden_by_name_wherever_they_stand(app: Any) -> None:
    @app.task(bind=True, sensitive=("password", "token"))
    def login(self: Any, user: str, password: str, *, token: str = "") -> None:
        pass

    login.delay("bob", CANARY)
    assert reprs(app) == ("('bob', ***)", "{}")
    login.delay("bob", password=CANARY, token=CANARY)
    assert reprs(app) == ("('bob',)", "{'password': ***, 'token': ***}")
    login.apply_async(["bob", CANARY], task_id="1")
    assert reprs(app) == ("['bob', ***]", "{}")


def test_s13_the_rest_can_be_hidden_too(app: Any) -> None:
    @app.task(sensitive=["secrets", "more"])
    def keep(first: str, *secrets: str, plain: str = "", **more: str) -> None:
        pass

    keep.delay("a", CANARY, CANARY, plain="p", extra=CANARY)
    assert reprs(app) == ("('a', ***, ***)", "{'plain': 'p', 'extra': ***}")


def test_s13_a_class_and_one_name_as_a_text(app: Any) -> None:
    class Login(app.Task):  # type: ignore[misc]
        name = "classy"
        sensitive = "password"

        def run(self, user: str, password: str) -> None:
            pass

    app.register_task(Login()).delay("bob", CANARY)
    assert reprs(app) == ("('bob', ***)", "{}")


def test_s13_a_name_that_is_no_parameter_is_an_error_at_once(app: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"sensitive names 'pasword', .* user, password"):

        @app.task(sensitive=("pasword",), name="login")
        def login(user: str, password: str) -> None:
            pass

        login.delay  # noqa: B018  # a task that is made lazily is made here


def test_s13_a_change_of_mind_counts(app: Any) -> None:
    echo = app.tasks["echo"]
    assert veil_of(echo) is None
    echo.delay(CANARY)
    assert CANARY in reprs(app)[0]
    echo.sensitive = True
    echo.delay(CANARY)
    assert reprs(app) == ("***", "***")


def test_s13_a_formatter_of_ones_own_sees_no_argument_either(app: Any) -> None:
    seen: list[Any] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(str(vars(record)))

    @app.task(sensitive=True)
    def login(user: str, password: str) -> str:
        return password

    handler, root = Handler(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with start_worker(app):
            assert login.delay("bob", password=CANARY).get(timeout=20) == CANARY
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert any("succeeded" in text for text in seen)
    assert CANARY not in "".join(seen)


def test_s13_dead_letters_of_a_task_that_is_not_known_here(app: Any, sqlite_url: str) -> None:
    client = Umbel("client", broker=sqlite_url, set_as_current=False, task_unknown_backoff=(0.01,))

    @client.task(name="login", sensitive=("password",), shared=False)
    def login(user: str, password: str) -> None:
        pass

    login.delay("bob", CANARY)
    other = Umbel("other", broker=sqlite_url, set_as_current=False, task_unknown_backoff=(0.01,))
    with start_worker(other):
        eventually(lambda: other.broker.size("celery", Place.DEAD) == 1)
    (letter,) = other.dead.list()
    assert other.dead.shown(letter) == ("('bob', ***)", "{}", True)
    (letter,) = client.dead.list()
    assert client.dead.shown(letter) == (["bob", "***"], {}, True)
    assert client.dead.arguments(letter) == (("bob", CANARY), {})
    inject(app, task_message())
    client.close()
    other.close()


def test_s13_a_dead_letter_that_holds_the_calls_of_others_is_not_shown_as_it_is(sqlite_url: str) -> None:
    client = Umbel("client", broker=sqlite_url, set_as_current=False)
    other = Umbel("other", broker=sqlite_url, set_as_current=False, task_unknown_backoff=(0.01,))
    first = client.signature("first")
    login = client.signature("login", args=("bob", CANARY), immutable=True)
    first.apply_async(task_id="alone")
    first.apply_async(task_id="followed", link=login)
    first.apply_async(task_id="failed", link_error=login)
    first.clone().set(chain=[login]).apply_async(task_id="chained")
    first.apply_async(task_id="unread", serializer="yaml")
    first.apply_async(task_id="hidden", serializer="yaml", argsrepr="***")
    expected = {"alone": True, "followed": False, "failed": False, "chained": False, "unread": True, "hidden": False}
    reader = Umbel("reader", broker=sqlite_url, set_as_current=False, accept_content=["json"])
    with start_worker(other):
        # The errback of the one that failed is sent, and becomes a letter too.
        eventually(lambda: expected.keys() <= {letter.task_id for letter in reader.dead.list()})
    plain = {letter.task_id: reader.dead.is_plain(letter) for letter in reader.dead.list()}
    assert {id: plain[id] for id in expected} == expected
    for each in (client, other, reader):
        each.close()


PROGRAM = """
from umbel import Umbel
app = Umbel("shop", broker={url!r}, backend={url!r})
app.conf.update(result_extended=True, worker_send_task_events=True, task_send_sent_event=True, task_track_started=True,
                worker_max_tasks_per_child=None)

@app.task(name="login", sensitive=True)
def login(user, password, wait=0):
    import time
    time.sleep(wait)
    return password

@app.task(name="card", sensitive=("number",), bind=True, max_retries=1)
def card(self, owner, number, again=True):
    if again:
        raise self.retry(args=(owner, number, False), countdown=0)
    return owner

@app.task(name="doomed", sensitive=("number",), bind=True)
def doomed(self, number):
    from umbel.exceptions import Reject
    raise Reject("no", requeue=False)
"""
CLIENT = """
import json, sys, threading, time
from shop import app, login, card, doomed
canary = {canary!r}
said, events = [], []

def until(found):
    deadline = time.monotonic() + 30
    while not (got := found()):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return got

receiver = app.events.Receiver(None, handlers={{"*": events.append}})
threading.Thread(target=lambda: receiver.capture(limit=None, timeout=None), daemon=True).start()
inspect = app.control.inspect(timeout=10, limit=1)
waiting = login.delay("bob", canary, 3)
said.append(until(lambda: [each for each in (inspect.active() or {{}}).values() if each]))
login.apply_async(("bob", canary), countdown=3600)
said += [inspect.reserved(), inspect.scheduled(), inspect.query_task([waiting.id])]
results = [waiting, card.delay("bob", canary), login.delay("b", password=canary)]
stranger = type(app)("stranger", broker=app.conf.broker_url, backend=app.conf.result_backend, set_as_current=False)
results.append(stranger.send_task("card", ["bob"], {{"number": canary}}))
assert [each.get(timeout=40) for each in results] == [canary, "bob", canary, "bob"]
doomed.delay(canary)
until(app.dead.list)
for each in results:
    said.append([each.args, each.kwargs, each.name])
    stored = json.loads(app.backend.fetch([each.id])[each.id])
    del stored["result"]
    said.append(stored)
types = {{"task-sent", "task-received", "task-succeeded", "task-retried"}}
until(lambda: types <= {{event["type"] for event in events}})
said.append(list(events))
print(json.dumps(said, default=repr))
"""


def test_s13_a_whole_run_shows_the_canary_nowhere(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM.format(url=redis_url))
    env = environment()
    with worker("shop", "-c", "2", "-l", "debug", "-E", cwd=tmp_path, env=env) as running:
        said = run(CLIENT.format(canary=CANARY), cwd=tmp_path, env=env, timeout=90)
        letters = []
        for words in (["dead", "list", "-o", "json"], ["dead", "list"], ["dead", "show", "celery:{key}", "-o", "json"],
                      ["dead", "show", "celery:{key}"], ["inspect", "active", "-j"], ["report"]):  # fmt: skip
            key = json.loads(letters[0])["data"][0]["id"].partition(":")[2] if letters else ""
            command = [sys.executable, "-m", "umbel", "-A", "shop", *(word.format(key=key) for word in words)]
            done = subprocess.run(
                command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            letters.append(done.stdout + done.stderr)
    everything = said + "".join(letters) + running.output
    assert "doomed" in letters[0]
    assert "***" in letters[2]
    assert json.loads(letters[2])["data"]["raw"] is None, "it holds the arguments"
    assert '"login"' in said
    assert CANARY not in everything
