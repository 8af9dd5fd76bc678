"""The notes by which a chord that was left is completed: who leaves one, who may claim it, and what is in the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from umbel import Umbel, chord
from umbel.interfaces import Place
from umbel.message import Call, decode_call, decode_envelope
from umbel.worker.audit import ChordAudit
from umbel.worker.records import Records

BASE = "celery-taskset-meta-g"


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    with Umbel("notes", broker=redis_url, backend=redis_url, set_as_current=False) as made:
        made.task(name="add")(lambda x, y=0: x + y)
        made.task(name="body")(lambda values: values)
        yield made


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def records(app: Any) -> Records:
    return Records(app, app.clock)


def add_parts(app: Any, count: int, of: int, made: Records | None = None) -> None:
    """Count some parts of a chord, as workers do that die right after."""
    made = made or records(app)
    store = app.backend.chord("g")
    store.begin(of, expires=600)
    body = dict(app.tasks["body"].s().set(task_id="the-body"))
    for index in range(count):
        call = Call(task="add", id=f"t{index}", headers={"group": "g", "group_index": index}, chord=body)
        part = made.part(call, "SUCCESS", index * 10)
        assert part is not None
        store.add(part)


def hurry(server: Any) -> None:
    """Have claims end, and the time come to look."""
    server.delete(BASE + ".c")
    for base in server.zrange("umbel:chords", 0, -1):
        server.zadd("umbel:chords", {base: 1})


def bodies(app: Any) -> list[Any]:
    peeked = app.broker.peek("celery", place=Place.READY)
    return [decode_call(decode_envelope(each.raw)) for each in peeked]


def audit(app: Any) -> None:
    run = ChordAudit.make(app, app.broker, hostname="me@here")
    assert run is not None
    run()


def test_the_first_part_of_a_process_leaves_the_note(app: Any, server: Any) -> None:
    made = records(app)
    body = dict(app.tasks["body"].s())
    parts = [made.part(Call(task="add", id=f"t{n}", headers={"group": "g"}, chord=body), "SUCCESS", 1) for n in (0, 1)]
    assert [bool(part and part.note) for part in parts] == [True, False]


def test_a_full_chord_is_completed_once(app: Any, server: Any) -> None:
    add_parts(app, 3, of=3)
    audit(app)
    assert bodies(app) == [], "it was not time to look, and the claim of whoever counted the last part holds"
    hurry(server)
    audit(app)
    hurry(server)
    audit(app)
    (body,) = bodies(app)
    assert (body.task, body.id, body.args) == ("body", "the-body", [[0, 10, 20]])
    assert server.keys("umbel:chords") == server.keys(BASE + ".[bjdst]") == []


def test_one_that_is_claimed_or_not_full_is_left_alone(app: Any, server: Any) -> None:
    add_parts(app, 2, of=3)
    hurry(server)
    audit(app)
    assert bodies(app) == []
    assert server.zscore("umbel:chords", BASE) > 1e9, "it is looked at again, later"
    add_parts(app, 3, of=3)
    hurry(server)
    server.set(BASE + ".c", "somebody's")
    audit(app)
    assert bodies(app) == []
    hurry(server)
    audit(app)
    assert len(bodies(app)) == 1


def test_a_note_that_cannot_be_read_harms_no_other(app: Any, server: Any, caplog: pytest.LogCaptureFixture) -> None:
    add_parts(app, 1, of=1)
    server.set("celery-taskset-meta-bad.b", b"{not json")
    server.set("celery-taskset-meta-bad.s", 0)
    server.zadd("umbel:chords", {"celery-taskset-meta-bad": 0})
    hurry(server)
    with caplog.at_level(logging.ERROR):
        audit(app)
    assert "Chord 'bad' cannot be completed, and is forgotten" in caplog.text
    assert len(bodies(app)) == 1
    assert server.keys("umbel:chords") == []


def test_where_messages_are_signed_there_are_no_notes(redis_url: str, server: Any) -> None:
    """Whoever can write to the store could have a worker sign a message of his."""
    with Umbel("signed", broker=redis_url, backend=redis_url, set_as_current=False) as app:
        app.conf.security_key = "k" * 32
        assert ChordAudit.make(app, app.broker, hostname="me@here") is None
        body = {"task": "body", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
        part = records(app).part(Call(task="add", id="t", headers={"group": "g"}, chord=body), "SUCCESS", 1)
        assert part is not None and part.note == b""


def test_where_no_other_kind_of_worker_counts_there_are_none(sqlite_url: str) -> None:
    with Umbel("alone", broker=sqlite_url, backend=sqlite_url, set_as_current=False) as app:
        assert ChordAudit.make(app, app.broker, hostname="me@here") is None
        body = dict(app.task(name="body")(lambda values: values).s())
        part = records(app).part(Call(task="add", id="t", headers={"group": "g"}, chord=body), "SUCCESS", 1)
        assert part is not None and part.note == b""
        assert app.backend is not None and app.backend.abandoned_chords("me") == ()


def test_a_chord_of_ours_closes_its_note(app: Any, server: Any) -> None:
    from umbel.worker.inprocess import start_worker

    with start_worker(app, perform_ping_check=False):
        result = chord([app.tasks["add"].s(n) for n in range(5)], app.tasks["body"].s(), app=app).apply_async()
        assert result.get(timeout=20) == [0, 1, 2, 3, 4]
    left = {key.decode()[-2:] for key in server.keys("celery-taskset-meta-*")}
    assert (left, server.keys("umbel:chords")) == ({".c"}, [])
