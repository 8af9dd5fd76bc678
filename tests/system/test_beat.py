"""Beat: what is due is sent once, in order, whoever leads; beside real servers, with leaders that die."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from umbel import Umbel, chain, chord, group, signals
from umbel.beat import Beat
from umbel.beat.service import _LATER
from umbel.exceptions import BackendError, DecodeError
from umbel.interfaces import Outgoing, Place
from umbel.message import decode_envelope
from umbel.periodic.sending import Lazy
from umbel.periodic.table import ABSENCE, Table
from umbel.schedules import BaseSchedule, crontab, schedstate
from umbel.testing import FakeClock


@pytest.fixture(params=["memory", "sqlite", "redis"])
def app(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Umbel]:
    kind = request.param
    url = f"memory://{uuid.uuid4().hex}" if kind == "memory" else request.getfixturevalue(f"{kind}_url")
    app = Umbel("beats", broker=url, backend=url, set_as_current=False)
    app.clock = clock

    @app.task(name="add", shared=False)
    def add(x: int, y: int = 0) -> int:
        return x + y

    yield app
    app.close()


def sent(app: Umbel, place: Place = Place.READY) -> list[Any]:
    """The messages that wait."""
    return [decode_envelope(each.raw) for each in app.broker.peek("celery", place=place, limit=1000)]


def step(beat: Beat, clock: FakeClock, seconds: float = 0.0) -> float:
    clock.advance(seconds)
    return beat.step()


def test_an_entry_is_sent_when_it_is_due(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {
        "e": {"task": "add", "schedule": 30, "args": (1,), "kwargs": {"y": 2}, "options": {"priority": 3}},
    }
    beat = Beat(app)
    assert step(beat, clock) == 2.0  # never longer than between two signs of life
    assert sent(app) == []
    for _ in range(14):
        step(beat, clock, 2.0)
    assert sent(app) == []
    assert 1.9 < step(beat, clock, 0.0) <= 2.0
    step(beat, clock, 2.5)
    (message,) = sent(app)
    assert message.headers["task"] == "add"
    assert message.headers["celery_beat_task"] is True
    assert b'[[1], {"y": 2}' in message.body
    for _ in range(30):
        step(beat, clock, 2.0)
    assert len(sent(app)) == 3  # at 30, 60 and 90 seconds; what is sent late does not put off what follows
    record = Table(app).line("e").record
    assert (record.count, len(record.history), record.last_id) == (3, 3, record.history[-1].task_id)
    assert [fired.due - record.anchor for fired in record.history] == [30, 60, 90]


def test_two_leaders_send_once(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {"e": {"task": "add", "schedule": 10, "args": (1,)}}
    first, second = Beat(app, lease=6), Beat(app, lease=6)
    step(first, clock)
    step(second, clock)
    assert (first.leading, second.leading) == (True, False)
    clock.advance(7)
    second.step()
    assert second.leading
    # The first was stopped right after it had made sure that it leads.
    clock.advance(4)
    second.step()
    lines = [first._send_due(line, clock.now()) for line in first._lines]
    assert len(sent(app)) == 1
    assert lines[0].record.count == 1
    first.step()
    assert (first.leading, second.leading) == (False, True)


def test_a_leader_that_stops_makes_room_at_once(app: Umbel, clock: FakeClock) -> None:
    first, second = Beat(app), Beat(app)
    assert [step(first, clock), step(second, clock)] == [2.0, 2.0]
    first.stop()
    first.run()
    step(second, clock, 0.01)
    assert second.leading


def test_changes_are_seen_while_it_runs(app: Umbel, clock: FakeClock) -> None:
    beat, table = Beat(app), Table(app)
    step(beat, clock)
    table.set("mine", task="add", schedule="5s", args=[1])
    for _ in range(6):
        step(beat, clock, 2.0)
    assert len(sent(app)) == 2
    table.enable("mine", False)
    for _ in range(6):
        step(beat, clock, 2.0)
    assert len(sent(app)) == 2
    table.enable("mine")
    for _ in range(3):
        step(beat, clock, 2.0)
    assert len(sent(app)) == 3
    table.remove("mine")
    for _ in range(6):
        step(beat, clock, 2.0)
    assert len(sent(app)) == 3


def test_a_missed_time_is_made_up_for_once(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {
        name: {"task": "add", "schedule": crontab(), "args": (at,), "catch_up": name}
        for at, name in enumerate(("last", "skip", "all"))
    }
    step(Beat(app), clock)
    clock.advance(300)
    clock.advance(-(clock.time() % 60) + 45)
    after = Beat(app)
    step(after, clock)
    bodies = [message.body[:3] for message in sent(app)]
    assert bodies.count(b"[[0") == 1
    assert bodies.count(b"[[1") == 0
    assert bodies.count(b"[[2") >= 5
    before = len(bodies)
    step(after, clock)
    assert len(sent(app)) == before


def test_no_second_one_while_the_first_has_not_ended(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {"e": {"task": "add", "schedule": 10, "args": (1,), "overlap": False}}
    beat = Beat(app)
    step(beat, clock)
    for _ in range(4):
        step(beat, clock, 10.0)
    (message,) = sent(app)
    history = list(Table(app).history("e"))
    assert len(history) == 4
    assert history[0].note == f"not sent: {message.headers['id']} has not ended"
    app.store_state(app.tasks["add"], str(message.headers["id"]), "SUCCESS", 1, None)
    step(beat, clock, 10.0)
    assert len(sent(app)) == 2


def test_a_canvas_is_an_entry(app: Umbel, clock: FakeClock) -> None:
    add = app.tasks["add"]
    app.add_periodic_task(10, chain(add.s(1), add.s(2)), name="chain")
    app.add_periodic_task(10, chord([add.s(1), add.s(2)], add.si(3), app=app), name="chord")
    beat = Beat(app)
    step(beat, clock)
    step(beat, clock, 10.0)
    assert sorted(message.body[:4] for message in sent(app)) == [b"[[1]", b"[[1]", b"[[2]"]


def test_arguments_that_are_computed_when_it_is_sent(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {"e": {"task": "add", "schedule": 10, "args": (Lazy(lambda: 41),), "kwargs": {"y": 1}}}
    beat = Beat(app)
    step(beat, clock)
    step(beat, clock, 10.0)
    assert sent(app)[0].body.startswith(b'[[41], {"y": 1}')


def test_an_entry_that_cannot_be_sent_does_not_stop_the_others(
    app: Umbel, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.beat_schedule = {
        "bad": {"task": "add", "schedule": 10, "args": (object(),)},
        "good": {"task": "add", "schedule": 10, "args": (1,)},
    }
    beat = Beat(app)
    step(beat, clock)
    with caplog.at_level(logging.ERROR, "celery.beat"):
        step(beat, clock, 10.0)
        step(beat, clock, 10.0)
    assert len(sent(app)) == 2
    (line,) = {record.message.split(": TypeError")[0].split(":")[1] for record in caplog.records[:1]}
    assert line == " bad cannot be sent, and is tried again at its next time"
    assert len(caplog.records) == 2
    assert [fired.note[:8] for fired in Table(app).history("bad")] == ["not sent", "not sent"]
    assert Table(app).line("bad").record.count == 0
    Table(app).set("bad", args=[2])
    step(beat, clock, 2.0)
    step(beat, clock, 10.0)
    assert b"[[2" in {message.body[:3] for message in sent(app)}


def test_a_broker_that_is_away_is_waited_for(app: Umbel) -> None:
    # The real clock: the thread waits by it.
    away = Umbel("away", broker="redis://127.0.0.1:1/0", set_as_current=False, redis_socket_connect_timeout=0.2)
    started = threading.Event()
    beat = Beat(away, on_ready=started.set)
    seen: list[Any] = []
    signals.beat_init.connect(lambda sender, **_: seen.append(sender), weak=False, dispatch_uid="seen")
    thread = threading.Thread(target=beat.run)
    thread.start()
    assert started.wait(10)
    beat.stop()
    thread.join(10)
    signals.beat_init.disconnect(dispatch_uid="seen")
    assert not thread.is_alive()
    assert seen == [beat]
    away.close()


def test_due_times_follow_the_zone_of_the_app(app: Umbel, clock: FakeClock) -> None:
    app.conf.timezone = "Asia/Kolkata"
    noon = clock.now().astimezone(UTC).replace(hour=6, minute=30, second=0, microsecond=0)
    clock.advance((noon - timedelta(seconds=5) - clock.now()).total_seconds())
    app.conf.beat_schedule = {"noon": {"task": "add", "schedule": crontab(0, 12), "args": (1,)}}
    beat = Beat(app)
    step(beat, clock)
    step(beat, clock, 4.0)
    assert sent(app) == []
    step(beat, clock, 1.0)
    assert len(sent(app)) == 1
    assert datetime.fromtimestamp(Table(app).line("noon").record.through, UTC) == noon


# -- entries that fail -------------------------------------------------------------------------------------------


class Broken(BaseSchedule):
    """A schedule of a user's own that raises."""

    broken = True

    def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
        if self.broken:
            raise LookupError("the moon cannot be seen")
        return moment + timedelta(seconds=10)


@pytest.mark.parametrize(
    "bad",
    [{"schedule": Broken()}, {"schedule": timedelta.max}],
    ids=["raises", "overflow"],
)
def test_an_entry_that_fails_does_not_stop_the_others(
    bad: dict[str, Any], app: Umbel, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.beat_schedule = {
        "bad": {"task": "add", "args": (0,), **bad},
        "good": {"task": "add", "schedule": 10, "args": (1,)},
    }
    beat = Beat(app)
    with caplog.at_level(logging.ERROR, "celery.beat"):
        for _ in range(15):
            assert 0 < step(beat, clock, 2.0) <= 2.0
    assert sum(message.body.startswith(b"[[1]") for message in sent(app)) == 2
    assert len(caplog.records) <= 1, "it is said once"


def test_an_entry_that_failed_is_tried_again(app: Umbel, clock: FakeClock) -> None:
    what = Broken()
    app.conf.beat_schedule = {"e": {"task": "add", "schedule": what, "args": (1,)}}
    beat = Beat(app)
    step(beat, clock)
    what.broken = False
    step(beat, clock, _LATER)
    assert len(sent(app)) == 1


def unread(app: Umbel, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have reading a result raise."""

    def read(ids: Any) -> Any:
        raise error

    monkeypatch.setattr(app.waiter, "read", read)


@pytest.mark.parametrize("error", [BackendError("away"), ConnectionError("away"), TimeoutError("away")], ids=repr)
def test_results_that_are_away_hold_back_only_the_entry_that_needs_them(
    error: Exception, app: Umbel, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.beat_schedule = {
        "a": {"task": "add", "schedule": 10, "args": (1,), "overlap": False},
        "b": {"task": "add", "schedule": 10, "args": (2,)},
    }
    beat = Beat(app)
    step(beat, clock)
    step(beat, clock, 10.0)
    with monkeypatch.context() as away:
        unread(app, error, away)
        step(beat, clock, 10.0)
    assert [message.body[:4] for message in sent(app)] == [b"[[1]", b"[[2]", b"[[2]"]
    first = str(sent(app)[0].headers["id"])
    app.store_state(app.tasks["add"], first, "SUCCESS", 1, None)
    step(beat, clock, 10.0)
    record = Table(app).line("a").record
    told = [(fired.due - record.anchor, bool(fired.task_id)) for fired in record.history]
    assert told == [(10, True), (20, True), (30, False)], "what was held back is sent once it may be"


def test_a_result_that_cannot_be_read_has_ended(
    app: Umbel, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.beat_schedule = {"e": {"task": "add", "schedule": 10, "args": (1,), "overlap": False}}
    beat = Beat(app)
    unread(app, DecodeError("pickle is not accepted"), monkeypatch)
    for _ in range(3):
        step(beat, clock, 10.0)
    assert len(sent(app)) == 2 and "it counts as ended" in caplog.text


def test_a_task_whose_end_cannot_be_told_is_left_out_with_the_reason(app: Umbel, clock: FakeClock) -> None:
    add = app.tasks["add"]

    @app.task(name="silent", shared=False, ignore_result=True)
    def silent(*args: Any) -> None: ...

    entries = {
        "option": (add.s(1).set(ignore_result=True), "the result of add, which is ignored"),
        "task": (silent.s(), "the result of silent, which is ignored"),
        "chain": (chain(add.s(1), silent.s()), "the result of silent, which is ignored"),
        "group": (group([add.s(1), add.s(2)]), "make it a chord"),
        "chord": (chord([silent.s(), add.s(2)], add.s(3), app=app), ""),
        "told": (silent.s().set(ignore_result=False), ""),
        "steps": (chain(silent.s(), add.si(1)), ""),
    }
    for name, (sig, _) in entries.items():
        app.add_periodic_task(10, sig, name=name)
    app.conf.beat_schedule = {
        name: {**entry, "overlap": False} for name, entry in (app.conf.beat_schedule or {}).items()
    }
    beat = Beat(app)
    step(beat, clock)
    step(beat, clock, 10.0)
    for name, (_, reason) in entries.items():
        (fired,) = Table(app).history(name)
        assert reason in fired.note and bool(fired.task_id) == (not reason), (name, fired)
    app.conf.task_ignore_result = True
    app.conf.beat_schedule = {"elsewhere": {"task": "not.here", "schedule": 10, "overlap": False}}
    other = Beat(app)
    other.stop()
    other.owner = beat.owner
    step(other, clock)
    step(other, clock, 10.0)
    assert "the result of not.here" in next(Table(app).history("elsewhere")).note


# -- schedules that were written otherwise -----------------------------------------------------------------------


class Asked(BaseSchedule):
    """Written for Celery: it says only whether it is due, by the clock."""

    def is_due(self, last_run_at: datetime) -> Any:
        left = (last_run_at + timedelta(seconds=1) - self.now()).total_seconds()
        return schedstate(left <= 0, 1.0 if left <= 0 else left)


def test_a_schedule_that_says_only_whether_it_is_due(sqlite_url: str) -> None:
    # The real clock, which goes on between the beat's look and the schedule's.
    app = Umbel("asked", broker=sqlite_url, set_as_current=False)
    app.conf.beat_schedule = {
        name: {"task": "add", "schedule": Asked(app=app), "catch_up": name} for name in ("last", "skip", "all")
    }
    beat, until, pauses = Beat(app), time.monotonic() + 30, []
    while app.broker.size("celery") < 6 and time.monotonic() < until:
        before = app.broker.size("celery")
        pause = beat.step()
        pauses.append((pause, app.broker.size("celery") - before))
        time.sleep(pause)
    assert app.broker.size("celery") == 6, pauses
    assert all(pause > 0 for pause, number in pauses if not number)
    assert {name: Table(app).line(name).record.count for name in ("last", "skip", "all")} == {
        "last": 2, "skip": 2, "all": 2,
    }  # fmt: skip
    app.close()


def test_what_is_too_late_does_not_keep_beat_from_resting(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {
        "e": {"task": "add", "schedule": 3600, "args": (1,), "catch_up": "all", "deadline": 10},
    }
    step(Beat(app), clock)
    clock.advance(3700)
    after = Beat(app)
    step(after, clock)
    assert step(after, clock) == 2.0 and sent(app) == []
    for _ in range(10):
        clock.advance(350)
        step(after, clock)
    assert len(sent(app)) == 1


# -- several programs --------------------------------------------------------------------------------------------


def test_two_apps_on_one_store(app: Umbel, clock: FakeClock) -> None:
    other = Umbel("others", broker=app.conf.broker_url, backend=app.conf.result_backend, set_as_current=False)
    other.clock = clock
    app.conf.beat_schedule = {"same": {"task": "add", "schedule": 10, "args": (1,)}}
    other.conf.beat_schedule = {"same": {"task": "mul", "schedule": 10, "args": (2,)}}
    Table(other).set("added", task="add", schedule=10, args=[3])
    first, second, third = Beat(app), Beat(other), Beat(other)
    for _ in range(11):
        for beat in (first, second, third):
            beat.step()
        clock.advance(1.0)
    assert [beat.leading for beat in (first, second, third)] == [True, True, False]
    assert sorted(message.headers["task"] for message in sent(app)) == ["add", "add", "mul"]
    assert len({message.headers["id"] for message in sent(app)}) == 3
    assert sorted(message.body[:4] for message in sent(app)) == [b"[[1]", b"[[2]", b"[[3]"]
    # Whoever leads the one goes on with what people added, once the other has gone.
    first.stop()
    first.run()
    for _ in range(10):
        second.step()
        clock.advance(1.0)
    second.step()
    assert sorted(message.body[:4] for message in sent(app)[3:]) == [b"[[2]", b"[[3]"]
    other.close()


def test_an_entry_that_comes_back_starts_anew(app: Umbel, clock: FakeClock) -> None:
    entry = {"task": "add", "schedule": crontab(), "args": (1,)}
    releases = {
        "old": {"e": entry, "f": {"task": "add", "schedule": 86400.0}},
        "new": {"f": {"task": "add", "schedule": 86400.0}},
    }

    def run(release: str, seconds: float) -> None:
        app.conf.beat_schedule = releases[release]
        beat = Beat(app)
        beat.step()
        beat.stop()
        beat.run()
        clock.advance(seconds)

    run("old", 50.0)
    run("new", 600.0)
    # Two releases side by side: the one that is there for a while only is no other entry each time.
    run("old", 60.0)
    assert len(sent(app)) == 1
    run("new", 60.0)
    run("old", 60.0)
    assert len(sent(app)) == 2
    run("new", ABSENCE + 120.0)
    run("new", 1.0)
    run("old", 1.0)
    assert len(sent(app)) == 2, "what was due while nobody declared it is not made up for"
    run("old", 60.0)
    run("old", 60.0)
    assert len(sent(app)) == 3


@pytest.fixture
def unguarded(app: Umbel, monkeypatch: pytest.MonkeyPatch) -> Umbel:
    """An app whose broker sends without a condition and takes the same again, as RabbitMQ does."""
    app.conf.publish_dedupe = 0
    features = msgspec.structs.replace(app.broker.features, guarded=False)
    monkeypatch.setattr(type(app.broker), "features", features)
    return app


def test_a_leader_that_takes_long_to_send_stays_one(
    unguarded: Umbel, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = unguarded
    app.conf.beat_schedule = {f"e{n}": {"task": "add", "schedule": 60, "args": (n,)} for n in range(6)}
    first, second, publish = Beat(app), Beat(app), app.publish
    step(first, clock)
    step(second, clock)

    def slowly(outgoings: Sequence[Outgoing]) -> Any:
        done = publish(outgoings)
        clock.advance(3.0)
        second.step()
        return done

    monkeypatch.setattr(app, "publish", slowly)
    clock.advance(60.0)
    first.step()
    for _ in range(3):
        second.step()
        first.step()
    assert len(sent(app)) == 6 and (first.leading, second.leading) == (True, False)


def test_a_leader_that_is_not_one_any_more_sends_no_more(
    unguarded: Umbel, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = unguarded
    app.conf.beat_schedule = {f"e{n}": {"task": "add", "schedule": 60, "args": (n,)} for n in range(3)}
    first, second, publish = Beat(app), Beat(app), app.publish
    step(first, clock)

    def stopped(outgoings: Sequence[Outgoing]) -> Any:
        done = publish(outgoings)
        monkeypatch.setattr(app, "publish", publish)
        clock.advance(7.0)
        second.step()
        return done

    monkeypatch.setattr(app, "publish", stopped)
    clock.advance(60.0)
    first.step()
    assert (first.leading, second.leading) == (False, True)
    assert len(sent(app)) == 4, "what was sent while it was not noted yet, twice; the others once"
    first.step()
    assert len(sent(app)) == 4


def test_a_change_while_it_is_sent_does_not_send_it_again(
    unguarded: Umbel, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = unguarded
    app.conf.beat_schedule = {"e": {"task": "add", "schedule": 60, "args": (1,)}}
    beat, publish = Beat(app), app.publish
    step(beat, clock)
    Table(app).enable("e")
    step(beat, clock)

    def meanwhile(outgoings: Sequence[Outgoing]) -> Any:
        monkeypatch.setattr(app, "publish", publish)
        done = publish(outgoings)
        app.schedules.run("e")
        return done

    monkeypatch.setattr(app, "publish", meanwhile)
    step(beat, clock, 60.0)
    for _ in range(3):
        step(beat, clock, 1.0)
    assert len(sent(app)) == 2, "once by its schedule, and once by hand"
    record = Table(app).line("e").record
    assert [fired.note for fired in record.history] == ["by hand", ""] and record.count == 1
