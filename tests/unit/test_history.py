"""The history's file: what events become, what is found again and how fast, what is forgotten, what is hidden."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import eventually

from umbel import Umbel
from umbel.exceptions import ImproperlyConfigured
from umbel.history import BadQuery, Counts, History, Query, open_history, parse
from umbel.history.fingerprint import fingerprint_of, normalised
from umbel.history.keeping import MOST_HAPPENINGS
from umbel.history.recorder import Recorder
from umbel.history.redaction import masked
from umbel.history.rows import LOST

START = 1_900_000_000.0
TRACEBACK = (
    'Traceback (most recent call last):\n  File "/srv/shop/orders.py", line {line}, in pay\n    x()\nValueError: no'
)


def told(kind: str, id: str, at: float, **fields: Any) -> dict[str, Any]:
    """An event of a task as a worker sends it."""
    return {"type": f"task-{kind}", "uuid": id, "timestamp": at, "hostname": "w1@box", **fields}


class Wall:
    """The recorder's clock."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def history(tmp_path: Path, wall: Wall) -> Iterator[History]:
    kept = History(str(tmp_path / "shop.history.db"), now=wall)
    yield kept
    kept.close()


def life(id: str, at: float = START, name: str = "shop.pay") -> list[dict[str, Any]]:
    return [
        told("sent", id, at, name=name, args="(17, 'eva')", kwargs="{}", queue="mail", hostname="gen1@web"),
        told("received", id, at + 1, name=name, args="(17, 'eva')", kwargs="{}", retries=0, root_id=id),
        told("started", id, at + 2),
        told("succeeded", id, at + 5, result="'paid'", runtime=2.5),
    ]


def test_a_whole_life(history: History) -> None:
    assert history.record(life("a")) == 4
    row = history.task("a")
    assert row is not None
    assert (row.name, row.state, row.queue, row.worker, row.client) == (
        "shop.pay", "SUCCESS", "mail", "w1@box", "gen1@web",
    )  # fmt: skip
    assert (row.sent, row.received, row.started, row.ended) == (START, START + 1, START + 2, START + 5)
    assert (row.args, row.result, row.runtime, row.waited, row.ready) == ("(17, 'eva')", "'paid'", 2.5, 2.0, True)
    assert [each.kind for each in history.timeline("a")] == ["sent", "received", "started", "succeeded"]
    (attempt,) = history.attempts("a")
    assert (attempt.state, attempt.runtime, attempt.started) == ("SUCCESS", 2.5, START + 2)
    assert history.task("nobody's") is None and history.timeline("nobody's") == []


def test_a_worker_may_be_faster_than_the_word_of_the_sender(history: History) -> None:
    events = life("a")
    events[0]["timestamp"] = START + 1.5
    history.record([*events, told("sent", "a", START + 60, hostname="w1@box")])
    assert [each.kind for each in history.timeline("a")] == ["sent", "received", "started", "succeeded", "sent"]


def test_an_event_that_comes_twice_is_one(history: History) -> None:
    events = life("a")
    history.record(events)
    assert history.record(events) == 0
    failure = told("failed", "b", START, exception="ValueError('x')", name="shop.pay")
    assert history.record([failure, failure]) == 1
    assert [group.count for group in history.errors()] == [1]
    assert len(history.timeline("a")) == 4


@pytest.mark.parametrize("seed", range(8))
def test_the_order_in_which_events_come_does_not_matter(history: History, seed: int) -> None:
    events = life("a")
    random.Random(seed).shuffle(events)
    for event in events:
        history.record([event])
    row = history.task("a")
    assert row is not None
    assert (row.state, row.name, row.result, row.runtime) == ("SUCCESS", "shop.pay", "'paid'", 2.5)
    assert (row.sent, row.received, row.started, row.ended) == (START, START + 1, START + 2, START + 5)


def test_attempts_with_their_own_tracebacks(history: History) -> None:
    history.record(
        [
            told("received", "a", START, name="shop.pay"),
            told("started", "a", START + 1),
            told("retried", "a", START + 2, exception="OSError('gone')", traceback="first"),
            told("received", "a", START + 9, retries=1),
            told("started", "a", START + 10, hostname="w2@box"),
            told("received", "a", START + 30, retries=1),
            told("started", "a", START + 31),
            told("failed", "a", START + 32, exception="ValueError('x')", traceback="last"),
        ]
    )
    first, lost, last = history.attempts("a")
    assert (first.state, first.exception, first.traceback, first.runtime) == ("RETRY", "OSError('gone')", "first", 1.0)
    assert (lost.state, lost.worker, lost.ended) == (LOST, "w2@box", None)
    assert (last.number, last.state, last.traceback) == (3, "FAILURE", "last")
    row = history.task("a")
    assert row is not None and (row.state, row.retries, row.exception) == ("FAILURE", 1, "ValueError('x')")


def test_a_failed_task_that_is_run_again_is_no_failure_any_more(history: History) -> None:
    history.record([told("failed", "a", START, exception="ValueError('x')", name="shop.pay")])
    history.record([told("received", "a", START + 60), told("started", "a", START + 61)])
    row = history.task("a")
    assert row is not None and (row.state, row.ended, row.ready) == ("STARTED", None, False)
    history.record([told("succeeded", "a", START + 62, result="1")])
    row = history.task("a")
    assert row is not None and (row.state, row.exception, row.fingerprint) == ("SUCCESS", None, None)


def test_a_task_retried_for_ever_does_not_fill_the_file(history: History) -> None:
    for number in range(MOST_HAPPENINGS + 50):
        history.record([told("retried", "a", START + number, exception=f"OSError({number})")])
    kept = history.timeline("a")
    assert len(kept) == MOST_HAPPENINGS
    assert kept[-1].detail == f"OSError({MOST_HAPPENINGS + 49})"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "task-sent"},
        {"type": "task-sent", "uuid": 5, "timestamp": 1.0, "hostname": "w"},
        {"type": "task-sent", "uuid": "x" * 300, "timestamp": 1.0, "hostname": "w"},
        {"type": "task-sent", "uuid": "a", "timestamp": "soon", "hostname": "w"},
        {"type": "worker-online", "uuid": "a", "timestamp": 1.0, "hostname": "w"},
        {"type": "task-sent", "uuid": "a", "timestamp": 1.0, "hostname": None},
    ],
)
def test_what_is_no_event_of_a_task_is_left_out(history: History, event: dict[str, Any]) -> None:
    assert history.record([event, *life("good")]) == 4
    assert [row.id for row in history.tasks().tasks] == ["good"]


def test_odd_fields_do_no_harm(history: History) -> None:
    odd = told("failed", "a", START, name=["no", "text"], args={"x": 1}, exception=17, runtime="long", retries="many")
    assert history.record([odd]) == 1
    row = history.task("a")
    assert row is not None and (row.args, row.exception, row.retries) == ("{'x': 1}", "17", None)


@pytest.mark.parametrize(
    "fields",
    [
        {"args": "\ud800", "kwargs": ["\udfff"], "name": "\ud800", "queue": "\ud800", "root_id": {"\ud800": 1}},
        {"uuid": "\ud800x", "hostname": "\ud800"},
        {"retries": 10**40, "runtime": 10**400, "eta": 10**40},
        {"retries": -5, "runtime": float("nan"), "exception": "\ud800", "traceback": "\ud800"},
        {"type": "task-\ud800", "queue": ["x"]},
        {"type": "task-" + "x" * 5000},
        {"name": "a\x00b", "args": "\x00"},
    ],
)
def test_hostile_fields_cost_no_other_event(history: History, fields: dict[str, Any]) -> None:
    odd = {**told("failed", "odd", START, name="shop.pay"), **fields}
    history.record([odd, *life("good")])
    row = history.task("good")
    assert row is not None and row.state == "SUCCESS"
    assert len(history.tasks().tasks) == 2 and history.errors() is not None


@pytest.mark.parametrize("at", [float("inf"), float("nan"), 10**400, -1e300, True])
def test_no_moment_is_out_of_this_world(history: History, at: Any) -> None:
    history.record([told("received", "odd", at), *life("good")])
    assert history.task("good") is not None
    assert history.tasks("after:1h").tasks[0].id == "good"


# -- finding -----------------------------------------------------------------------------------------------------


def ids(history: History, query: str, **options: Any) -> list[str]:
    return [row.id for row in history.tasks(query, **options).tasks]


@pytest.fixture
def shop(history: History, wall: Wall) -> History:
    history.record(life("pay-1"))
    wall.now += 3600
    history.record(
        [
            told("received", "mail-1", START, name="shop.mail", args="('eva@example.com',)", kwargs="{'tries': 3}"),
            told("failed", "mail-1", START + 9, exception="SMTPError('no route 17')", hostname="w2@box"),
            told("received", "mail-2", START, name="shop.mail", args="('bob@example.com',)", root_id="pay-1"),
            told("started", "mail-2", START + 1, hostname="w2@box"),
            told("received", "stock", START, name="stock.count", parent_id="pay-1", retries=2),
        ]
    )
    return history


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["stock", "mail-2", "mail-1", "pay-1"]),
        ("state:failed", ["mail-1"]),
        ("state:SUCCESS", ["pay-1"]),
        ("name:shop.mail", ["mail-2", "mail-1"]),
        ("name:shop.*", ["mail-2", "mail-1", "pay-1"]),
        ("name:shop.* state:running", ["mail-2"]),
        ("worker:w2@box", ["mail-2", "mail-1"]),
        ("queue:mail", ["pay-1"]),
        ("error:SMTPError", ["mail-1"]),
        ("error:smtperror name:shop.pay", []),
        ("id:mail", ["mail-2", "mail-1"]),
        ("id:mail-2", ["mail-2"]),
        ("root:pay-1", ["mail-2", "pay-1"]),
        ("parent:pay-1", ["stock"]),
        ("after:30m", ["stock", "mail-2", "mail-1"]),
        ("before:30m", ["pay-1"]),
        ("after:1d before:30m", ["pay-1"]),
        ("after:2031-01-01", []),
        ("runtime:>2s", ["pay-1"]),
        ("runtime:<2s", []),
        ("retries:>1", ["stock"]),
        ("eva", ["mail-1", "pay-1"]),
        ("ev exam", ["mail-1"]),
        ("smtper", ["mail-1"]),
        ("eva state:failed", ["mail-1"]),
        ("nothing-like-it", []),
        ("--", ["stock", "mail-2", "mail-1", "pay-1"]),
        ("'no route'", ["mail-1"]),
    ],
)
def test_each_way_to_ask(shop: History, query: str, expected: list[str]) -> None:
    assert ids(shop, query) == expected


@pytest.mark.parametrize(
    "query",
    [
        "staet:failed",
        "after:soon",
        "runtime:>long",
        "state:failed state:ready",
        "x" * 1001,
        " ".join("abcdefghijklmnopqrstu"),
    ],
)
def test_what_cannot_be_understood_is_said(history: History, query: str) -> None:
    with pytest.raises(BadQuery) as caught:
        history.tasks(query)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "query", ['"', "' OR 1=1 --", "name:'; DROP TABLE tasks", "*", '"*" ( NEAR', "id:%", "a\x00b", "^x -y"]
)
def test_no_query_is_a_statement(shop: History, query: str) -> None:
    shop.tasks(query)
    assert len(shop.tasks().tasks) == 4


def test_pages_follow_each_other(history: History) -> None:
    for number in range(25):
        history.record([told("received", f"id-{number:02}", START + number, name="a" if number % 2 else "b")])
    seen: list[str] = []
    after = 0
    while True:
        page = history.tasks("name:a", after=after, limit=5)
        seen += [row.id for row in page.tasks]
        if not (after := page.next):
            break
    assert seen == [f"id-{number:02}" for number in range(23, 0, -2)]
    assert parse("", now=0.0) == Query() and Query().everything


def test_relatives_counts_and_runtimes(shop: History) -> None:
    assert [row.id for row in shop.relatives("pay-1")] == ["stock"]
    counts = shop.counts()
    assert counts.states == {"RECEIVED": 1, "STARTED": 1, "FAILURE": 1, "SUCCESS": 1}
    assert counts.names == {"shop.mail": 2, "shop.pay": 1, "stock.count": 1}
    assert shop.counts(names=False) == Counts(states=counts.states, names={})
    assert shop.runtimes("shop.pay") == [2.5]


# -- errors ------------------------------------------------------------------------------------------------------


def test_failures_that_look_alike_are_one_group(history: History) -> None:
    for number in range(5):
        exception = f"ValueError('order {number} of 0x7f{number:04x} is unknown')"
        history.record([told("failed", f"f{number}", START + number, exception=exception,
                             traceback=TRACEBACK.format(line=number), name="shop.pay")])  # fmt: skip
    history.record([told("failed", "other", START, exception="KeyError('x')", name="shop.pay")])
    common, other = history.errors()
    assert (common.type, common.count, common.frame) == ("ValueError", 5, "shop/orders.py in pay")
    assert (common.message, common.task, common.latest) == ("order <n> of <address> is unknown", "f4", START + 4)
    assert other.type == "KeyError"
    assert history.error(common.fingerprint[:6]) == common
    assert history.error("") is None and history.error("zz") is None
    assert ids(history, f"error:{common.fingerprint}") == ["f4", "f3", "f2", "f1", "f0"]


def test_fingerprints_tell_apart_what_differs() -> None:
    same = fingerprint_of("ValueError('x 1')", TRACEBACK.format(line=1))
    assert fingerprint_of("ValueError('x 2')", TRACEBACK.format(line=99)) == same
    for exception, traceback in (
        ("KeyError('x 1')", TRACEBACK.format(line=1)),
        ("ValueError('y 1')", TRACEBACK.format(line=1)),
        ("ValueError('x 1')", TRACEBACK.format(line=1).replace("pay", "ship")),
        (None, None),
    ):
        assert fingerprint_of(exception, traceback).key != same.key
    retried = (
        TRACEBACK.format(line=1) + '\n  File "/x/site-packages/umbel/retrying.py", line 9, in retry_task\n    raise'
    )
    assert fingerprint_of("ValueError('x 3')", retried) == same
    assert normalised("9f86d081884c7d65 at 12:30:01") == "<hex> at <n>"


# -- forgetting --------------------------------------------------------------------------------------------------


def test_too_many_are_forgotten_the_oldest_first(tmp_path: Path, wall: Wall) -> None:
    history = History(str(tmp_path / "h.db"), max_tasks=10, now=wall)
    history.record([told("received", f"id-{number}", START + number, name="unique") for number in range(1234)])
    while history.prune():
        pass
    assert ids(history, "unique", limit=100) == [f"id-{number}" for number in range(1233, 1223, -1)]
    assert history.timeline("id-0") == []
    with sqlite3.connect(history.path) as file:
        assert [file.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("happenings", "words")] == [
            10,
            10,
        ]
    file.close()
    history.close()


def test_the_old_is_forgotten(history: History, wall: Wall) -> None:
    history.max_age = 60.0
    history.record([told("failed", "old", START, exception="ValueError('x')", name="shop.pay")])
    wall.now += 61
    history.record([told("failed", "new", wall.now, exception="KeyError('x')", name="shop.pay")])
    assert (history.prune(), history.prune()) == (1, 0)
    assert ids(history, "") == ["new"]
    assert [group.type for group in history.errors()] == ["KeyError"]


def test_errors_are_bounded_too(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.history.history.MOST_ERRORS", 20)
    words = ["".join(chr(97 + (number // 26**place) % 26) for place in range(3)) for number in range(700)]
    history.record(
        [told("failed", f"id-{at}", START + at, exception=f"ValueError('no {word}')") for at, word in enumerate(words)]
    )
    for _ in range(3):
        history.prune()
    kept = [group.message for group in history.errors(limit=100)]
    assert len(kept) == 20 and words[-1] in kept[0]


def test_it_goes_on_in_a_new_file_when_the_old_one_is_deleted(history: History) -> None:
    history.record(life("before"))
    assert ids(history, "") == ["before"]
    os.unlink(history.path)
    assert ids(history, "") == []
    history.record(life("after"))
    assert ids(history, "") == ["after"]
    os.unlink(history.path)
    history.record(life("again"))
    assert ids(history, "") == ["again"]
    assert os.stat(history.path).st_mode & 0o777 == 0o600


def test_what_was_sent_in_place_of_a_task(history: History) -> None:
    history.record([*life("one"), *life("two")])
    history.replayed("one", "three")
    history.replayed("nobody", "four")
    assert (ids(history, "replayed:yes"), ids(history, "replayed:no")) == (["one"], ["two"])
    # What is told later leaves it as it is.
    history.record([told("failed", "one", START + 9, exception="ValueError('x')")])
    row = history.task("one")
    assert row is not None and row.replay == "three"


class Slow:
    """A history to which more comes with each batch than is written."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.pruned = 0

    def record(self, events: Any) -> int:
        assert self.recorder is not None
        for _ in events:
            self.recorder.heard({"type": "task-sent"})
        return len(events)

    def prune(self) -> int:
        self.pruned += 1
        return 0


def test_a_recorder_that_is_kept_busy_forgets_too() -> None:
    app, slow = Umbel("busy", broker="memory://busy-recorder", set_as_current=False), Slow()
    slow.recorder = Recorder(app, slow, enable=False, hears=False)  # type: ignore[arg-type]
    slow.recorder.heard({"type": "task-sent"})
    slow.recorder.start()
    eventually(lambda: slow.pruned > 0)
    slow.record = len  # type: ignore[method-assign]
    slow.recorder.stop()
    app.close()


# -- what is hidden ----------------------------------------------------------------------------------------------


def test_what_a_task_calls_sensitive_is_not_written(tmp_path: Path) -> None:
    app = Umbel("shop", broker="memory://hidden", set_as_current=False)

    @app.task(name="login", sensitive=["password"])
    def login(user: str, password: str) -> None: ...

    @app.task(name="secret", sensitive=True)
    def secret(value: str) -> str:
        return value

    app.finalize()
    history = History(str(tmp_path / "h.db"), app=app)
    history.record(
        [
            # From a client that knows the task by its name alone, and from a worker of ours.
            told("sent", "a", START, name="login", args="('eva', 'hunter2')", kwargs="{}"),
            told("sent", "b", START, name="login", args="('eva', ***)", kwargs="{}"),
            told("received", "c", START, name="secret", args="('hunter2',)", kwargs="{}"),
            told("succeeded", "c", START + 1, result="'hunter2'"),
        ]
    )
    history.close()
    assert b"hunter2" not in Path(history.path).read_bytes()
    rows = {id: history.task(id) for id in "abc"}
    assert [row.args for row in rows.values() if row is not None] == ["***", "('eva', ***)", "***"]
    history.close()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("{'db_password': 'x\\'y', 'n': 1}", "{'db_password': ***, 'n': 1}"),
        ('{"apiKey": "k1", "user": "eva"}', '{"apiKey": ***, "user": "eva"}'),
        ("connect(token=abc123, n=2)", "connect(token=***, n=2)"),
        ("{'Authorization': 'Bearer abcdefgh12345678'}", "{'Authorization': ***}"),
        ("('Bearer abcdefgh12345678',)", "('Bearer ***',)"),
        ("('redis://eva:hunter2@host/0',)", "('redis://eva:***@host/0',)"),
        ("{'secret': {'a': 1}}", "{'secret': {'a': 1}}"),
        ("('plain', 17)", "('plain', 17)"),
    ],
)
def test_what_is_named_like_a_secret_is_masked(text: str, kept: str) -> None:
    assert masked(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "a" * 20_000,
        "a." * 10_000,
        "password" * 2500,
        "password='" * 2000,
        "x://" * 5000,
        "token: " * 3000,
        "Bearer " * 3000,
    ],
)
def test_no_text_takes_long_to_look_through(text: str) -> None:
    began = time.thread_time()
    masked(text)
    assert time.thread_time() - began < 1.0


def test_long_texts_are_cut(history: History) -> None:
    history.record(
        [told("failed", "a", START, name="x", args="a" * 5000, exception="e" * 5000, traceback="t" * 50_000)]
    )
    row = history.task("a")
    assert row is not None and row.args is not None and len(row.args) == 2000 and row.args.endswith("…")
    (failed,) = history.timeline("a")
    assert failed.traceback is not None and len(failed.traceback) == 16384 and failed.traceback.startswith("…")


# -- the file ----------------------------------------------------------------------------------------------------


def test_the_file_is_for_its_owner_alone(history: History) -> None:
    history.record(life("a"))
    assert os.stat(history.path).st_mode & 0o777 == 0o600


def test_no_other_file_is_touched(tmp_path: Path) -> None:
    foreign, text, newer = tmp_path / "foreign.db", tmp_path / "text", tmp_path / "newer.db"
    with sqlite3.connect(foreign) as file:
        file.execute("CREATE TABLE t (x)")
    file.close()
    text.write_text("no database at all, whatever its length may be" * 100)
    History(str(newer)).close()
    with sqlite3.connect(newer) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    for path, said in ((foreign, "another program"), (text, "deleted"), (newer, "newer Umbel"), (tmp_path, "folder")):
        with pytest.raises(ImproperlyConfigured, match=said):
            History(str(path))


def test_two_processes_write_one_file(history: History) -> None:
    other = History(history.path)
    for number in range(20):
        (history if number % 2 else other).record(life(f"id-{number}"))
    assert len(history.tasks(limit=100).tasks) == len(other.tasks(limit=100).tasks) == 20
    other.close()


def test_a_transaction_that_fails_leaves_nothing(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    from umbel.history import keeping

    def broken(row: Any) -> str:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(keeping, "words_of", broken)
        with pytest.raises(RuntimeError):
            history.record(life("a"))
    assert history.task("a") is None and history.timeline("a") == []
    assert history.record(life("a")) == 4


def test_where_an_app_has_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    beside = Umbel("shop", broker=f"sqlite:///{tmp_path}/jobs.db?synchronous=NORMAL", set_as_current=False)
    assert open_history(beside) is None
    made = open_history(beside, create=True)
    assert made is not None and made.path == str((tmp_path / "jobs.history.db").resolve())
    assert (made.max_tasks, made.max_age) == (200_000, 14 * 86400.0)
    made.close()
    elsewhere = Umbel("shop", broker="redis://nowhere/0", history_max_tasks=5, set_as_current=False)
    home = open_history(elsewhere, create=True)
    assert home is not None and home.path == str((tmp_path / "home" / "shop.history.db").resolve())
    assert home.max_tasks == 5
    home.close()
    named = Umbel("shop", broker="redis://nowhere/0", history_file=str(tmp_path / "x.db"), set_as_current=False)
    chosen = open_history(named, create=True)
    assert chosen is not None and chosen.path == str((tmp_path / "x.db").resolve())
    chosen.close()


# -- a hundred thousand ------------------------------------------------------------------------------------------

MANY = 100_000


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    kept = History(str(tmp_path_factory.mktemp("crowd") / "h.db"))
    for first in range(0, MANY, 2000):
        events = []
        for number in range(first, first + 2000):
            id, at = f"{number:08x}-0000-4000-8000-{number:012x}", START + number
            name = f"shop.task{number % 40}"
            events.append(
                told("received", id, at, name=name, args=f"({number}, 'customer')", hostname=f"w{number % 9}@box")
            )
            if number % 50 == 0:
                events.append(
                    told("failed", id, at + 1, exception=f"ValueError('order {number}')", hostname=f"w{number % 9}@box")
                )
            else:
                events.append(told("succeeded", id, at + 1, runtime=number % 100 / 10, hostname=f"w{number % 9}@box"))
        kept.record(events)
    yield kept
    kept.close()


@pytest.mark.parametrize(
    ("query", "some"),
    [
        ("", True),
        ("state:success", True),
        ("state:failed", True),
        ("state:failed name:shop.task10", True),
        ("state:failed name:shop.task11", False),
        ("state:success name:shop.task1* worker:w3@box", True),
        ("name:shop.*", True),
        ("worker:w1@box state:failed", True),
        ("error:ValueError", True),
        ("cust", True),
        ("cust state:revoked", False),
        ("customer 99999", True),
        ("123", True),
        ("runtime:>9.8s", True),
        ("runtime:>100s", False),
        ("id:0001", True),
        ("after:1h", True),
        ("name:nothing.*", False),
    ],
)
@pytest.mark.timeout(300)
def test_each_query_looks_at_a_bounded_part(crowd: History, query: str, some: bool) -> None:
    crowd.tasks(query)
    # The processor's time and not the clock's: it is a bound of the work, whatever else this machine does.
    spent = []
    for _ in range(3):
        began = time.thread_time()
        page = crowd.tasks(query, limit=50)
        spent.append(time.thread_time() - began)
    found = len(page.tasks)
    while not found and page.next:
        page = crowd.tasks(query, after=page.next)
        found = len(page.tasks)
    assert bool(found) == some
    assert min(spent) < 0.050, f"{query}: {min(spent) * 1000:.0f} ms"
