"""S5: which tasks the links, chains and chords inside a message may run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hostile import admit, inject, make_app, peek, refusal, runs, task_message
from support import eventually
from umbel import chain, chord, group
from umbel.interfaces import Execution, Place
from umbel.publishing import build
from umbel.worker.inprocess import start_worker

ALLOWED = ["echo", "mail.*"]
EVIL = {"task": "fail", "args": ["x"], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}
GOOD = {**EVIL, "task": "echo"}


@pytest.fixture(params=[{}, {"security_key": "k" * 32}], ids=["unsigned", "signed"])
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name, task_allow_from_message=ALLOWED, **request.param)
    for name in ("mail.send", "mailing"):
        made.task(name=name)(lambda *args: list(args))
    yield made
    made.close()


def wrapped(sig: Any) -> dict[str, Any]:
    """Return every place inside a signature in which another one may be."""
    return {
        "link": {**GOOD, "options": {"link": [sig]}},
        "errback": {**GOOD, "options": {"link_error": sig}},
        "step": {**GOOD, "options": {"chain": [GOOD, sig]}},
        "chord": {**GOOD, "options": {"chord": sig}},
        "group": {**GOOD, "task": "celery.group", "kwargs": {"tasks": [GOOD, sig]}, "subtask_type": "group"},
        "chain": {**GOOD, "task": "celery.chain", "kwargs": {"tasks": [sig]}, "subtask_type": "chain"},
        "header": {**GOOD, "task": "celery.chord", "kwargs": {"header": [sig], "body": GOOD}, "subtask_type": "chord"},
        "body": {**GOOD, "task": "celery.chord", "kwargs": {"header": {"kwargs": {"tasks": [GOOD]}}, "body": sig}},
        "map": {**GOOD, "task": "celery.map", "kwargs": {"task": sig, "it": [1]}},
        "map by place": {**GOOD, "task": "celery.starmap", "args": [sig, [1]]},
        "unlock": {**GOOD, "task": "celery.chord_unlock", "kwargs": {"group_id": "x", "callback": sig}},
        "deep": {**GOOD, "options": {"link": [{**GOOD, "options": {"chain": [{**GOOD, "options": {"link": sig}}]}}]}},
    }


PLACES = list(wrapped(EVIL))


def with_inside(app: Any, **embed: Any) -> Any:
    """Return a message of the app, signed where it signs, with these things inside."""
    options = {"callbacks": "link", "errbacks": "link_error", "chain": "chain", "chord": "chord"}
    return build(app, "echo", (), {}, {options[name]: value for name, value in embed.items()}).message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("embed", ["callbacks", "errbacks", "chain", "chord"])
def test_s5_a_task_that_is_not_in_the_list_is_found_wherever_it_is(app: Any, embed: str, place: str) -> None:
    one = embed == "chord"
    for sig, may in (
        (EVIL, False),
        (GOOD, True),
        ({**EVIL, "task": "mail.send"}, True),
        ({**EVIL, "task": "mailing"}, False),
    ):
        inside = wrapped(sig)[place]
        message = with_inside(app, **{embed: inside if one else [inside]})
        if may:
            assert runs(app, message)
        else:
            assert refusal(app, message) == "not_allowed"


def test_s5_the_message_itself_may_ask_for_any_task_but_not_carry_one(app: Any) -> None:
    assert runs(app, build(app, "fail", ("x",), {}, {}).message)
    for args, kwargs in (((EVIL, [1]), {}), ((), {"task": EVIL, "it": [1]})):
        assert refusal(app, build(app, "celery.map", args, kwargs, {}).message) == "not_allowed"
    # What looks like a signature and is an argument is an argument.
    assert runs(app, build(app, "celery.map", (), {"task": GOOD, "it": [EVIL]}, {}).message)
    assert runs(app, build(app, "echo", (EVIL,), {"task": EVIL}, {}).message)


def test_s5_a_refused_message_is_kept_runs_nothing_and_says_so(app: Any) -> None:
    sent = app.send_task("echo", [1], link=app.tasks["fail"].si("x"))
    with start_worker(app):
        error = sent.get(timeout=20, propagate=False)
        assert app.send_task("echo", [2], link=app.tasks["echo"].si(3)).get(timeout=20) == [[2], {}]
    assert "would run 'fail', which task_allow_from_message does not name" in str(error)
    (letter,) = app.dead.list()
    assert (letter.reason, letter.task) == ("not_allowed", "echo")
    app.conf.task_allow_from_message = None
    assert app.dead.requeue(letter)
    with start_worker(app):
        eventually(lambda: not peek(app))


def test_s5_canvases_of_tasks_in_the_list_run(app: Any) -> None:
    echo, send = app.tasks["echo"], app.tasks["mail.send"]
    with start_worker(app):
        assert chain(echo.s(1), send.s(2)).delay().get(timeout=20) == [[[1], {}], 2]
        assert chord(group(send.s(1), send.s(2)), echo.s()).delay().get(timeout=20) == [[[[1], [2]]], {}]
        assert send.map([1, 2]).delay().get(timeout=20) == [[1], [2]]
    assert peek(app, Place.DEAD) == []


def test_s5_with_signing_who_has_no_key_gets_nothing_in(request: pytest.FixtureRequest) -> None:
    app = make_app(request.node.name, task_allow_from_message=ALLOWED, security_key="k" * 32)
    message = task_message(json.dumps([[], {}, {"callbacks": [GOOD]}]).encode())
    assert refusal(app, message) == "bad_signature"
    message = with_inside(app, callbacks=[GOOD])
    message.body = message.body.replace(b'"echo"', b'"fail"')
    assert refusal(app, message) == "bad_signature"


def test_s5_an_empty_list_allows_nothing_and_none_allows_all(request: pytest.FixtureRequest) -> None:
    message = task_message(json.dumps([[], {}, {"callbacks": [GOOD]}]).encode())
    assert refusal(make_app(f"{request.node.name}1", task_allow_from_message=[]), message) == "not_allowed"
    assert runs(make_app(f"{request.node.name}2"), message)


@pytest.mark.parametrize(
    "odd", [None, 1, "x", [], {}, [[]], {"task": None}, {"options": 1}, {"kwargs": [1], "task": 5}]
)
def test_s5_what_is_no_signature_breaks_nothing(odd: Any) -> None:
    app = make_app("odd", task_allow_from_message=ALLOWED)
    inside = {**GOOD, "options": {"link": odd, "chain": odd, "chord": odd}}
    for embed in ({"callbacks": [inside]}, {"chord": inside}, {"callbacks": [{**GOOD, "options": odd}]}):
        admit(app, task_message(json.dumps([[], {}, embed]).encode()))
    inject(app, task_message(id="5"))
    assert isinstance(admit(app, task_message()), Execution)
