"""Entries of beat: as they are written down, as they are stored, and which of their times are sent."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from umbel import Umbel
from umbel.beat.threads import embedded
from umbel.exceptions import ImproperlyConfigured
from umbel.periodic.due import MOST, due_times, latest
from umbel.periodic.entry import Entry, entry_of
from umbel.periodic.recurrence import dump_schedule, in_words, load_schedule, parse_schedule
from umbel.periodic.table import Table, decode, encode
from umbel.schedules import BaseSchedule, base, clocked, crontab, schedstate, schedule, solar
from umbel.testing import FakeClock

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.fixture
def app(clock: FakeClock, sqlite_url: str) -> Iterator[Umbel]:
    app = Umbel("periodic", broker=sqlite_url, set_as_current=False)
    app.clock = clock

    @app.task(name="tick", shared=False)
    def tick(*args: Any) -> None: ...

    yield app
    app.close()


# -- as data and as text -----------------------------------------------------------------------------------------

ALL = [
    schedule(30),
    schedule(timedelta(days=1), relative=True),
    schedule(30, anchor=NOON, timezone="Europe/Rome"),
    crontab("*/5", "8-18", "mon-fri", 1, {1, 7}),
    crontab(0, 4, timezone="Asia/Kolkata"),
    solar("sunset", 41.9, 12.5),
    clocked(NOON),
    crontab(0) | schedule(50),
    crontab(0) & crontab(hour=3),
    crontab(0).between(NOON, NOON + timedelta(days=1)),
    crontab(0).between(end=NOON),
    crontab(0).jitter(30, "x"),
    (crontab(0) | schedule(7)).between(NOON).jitter(3),
]


@pytest.mark.parametrize("what", ALL, ids=repr)
def test_a_schedule_becomes_data_and_comes_back(what: BaseSchedule) -> None:
    data = dump_schedule(what)
    assert data is not None
    back = load_schedule(data)
    assert back == what
    assert back.next_after(NOON) == what.next_after(NOON)
    assert in_words(back) == in_words(what)


def test_a_schedule_of_ones_own_class_cannot_be_stored() -> None:
    class Moon(crontab):
        pass

    assert dump_schedule(Moon()) is None
    assert dump_schedule(Moon().jitter(3)) is None
    with pytest.raises(ImproperlyConfigured, match="which cannot be stored"):
        Entry(name="moon", task="tick", schedule=Moon()).to_dict()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("30", schedule(30)),
        ("30s", schedule(30)),
        ("every 5 minutes", schedule(300)),
        ("1.5h", schedule(5400)),
        ("Every 2 days", schedule(2 * 86400)),
        ("0 4 * * mon", crontab(0, 4, "mon")),
        ("@hourly", crontab(0)),
        ("sunset 41.9 12.5", solar("sunset", 41.9, 12.5)),
        ("2026-12-24T18:00+01:00", clocked(datetime(2026, 12, 24, 17, tzinfo=UTC))),
    ],
)
def test_what_people_write(text: str, what: BaseSchedule) -> None:
    assert parse_schedule(text) == what


@pytest.mark.parametrize("text", ["", "often", "60 * * * *", "@never", "every", "2026-12-24T18:00", "-5s", "9" * 1001])
def test_what_people_mistype(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="schedule"):
        parse_schedule(text)


# -- entries -----------------------------------------------------------------------------------------------------


def test_an_entry_of_celery(app: Umbel) -> None:
    entry = entry_of(
        "e",
        {"task": "tick", "schedule": timedelta(hours=1), "args": (1,), "options": {"queue": "q"}, "relative": True},
        app,
    )
    assert entry.schedule == schedule(3600, relative=True)
    assert (entry.args, entry.options, entry.enabled, entry.catch_up) == ((1,), {"queue": "q"}, True, "last")
    bounded = entry_of("e", {"task": "tick", "schedule": "@hourly", "start": NOON, "timezone": "Europe/Rome"}, app)
    assert bounded.schedule.next_after(NOON - timedelta(days=1)) == NOON


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"schedule": 3}, "has no 'task'"),
        ({"task": "tick"}, "has no 'schedule'"),
        ({"task": "tick", "schedule": 3, "arg": ()}, "unknown key 'arg'.*args"),
        ({"task": "tick", "schedule": 0}, "longer than 0"),
        ({"task": "tick", "schedule": [3]}, "schedule is a number"),
        ({"task": "tick", "schedule": {"evry": 3}}, "not a schedule"),
        ({"task": "tick", "schedule": 3, "catch_up": "some"}, "'last', 'skip' or 'all'"),
        ({"task": "tick", "schedule": 3, "overlap": "skip"}, "overlap is True or False"),
        ({"task": "tick", "schedule": 3, "enabled": 0}, "enabled is True or False"),
        ({"task": "tick", "schedule": 3, "deadline": float("nan")}, "deadline is a number"),
        ({"task": "tick", "schedule": 3, "deadline": 1e15}, "deadline is a number"),
        ({"task": "tick", "schedule": 3, "jitter": float("inf")}, "jitter is a number"),
        ({"task": "tick", "schedule": 3, "start": datetime(2026, 1, 1)}, "with a time zone"),
        ("tick", "is a dict"),
    ],
)
def test_an_entry_that_cannot_be(app: Umbel, said: Any, words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        entry_of("e", said, app)


# -- which times are sent ----------------------------------------------------------------------------------------


def minutely(**options: Any) -> Entry:
    return Entry(name="e", task="tick", schedule=crontab(), **options)


@pytest.mark.parametrize(
    ("catch_up", "away", "sent"),
    [
        ("last", timedelta(seconds=59), []),
        ("last", timedelta(seconds=60), [0]),
        ("last", timedelta(seconds=65), [0]),
        ("last", timedelta(minutes=5, seconds=5), [0]),
        ("last", timedelta(minutes=5, seconds=30), [0]),
        ("skip", timedelta(minutes=5, seconds=5), [0]),
        ("skip", timedelta(minutes=5, seconds=30), []),
        ("all", timedelta(minutes=3, seconds=30), [2, 1, 0]),
    ],
)
def test_what_passed_while_no_beat_ran(catch_up: Any, away: timedelta, sent: list[int]) -> None:
    now = NOON + away
    times, through = due_times(minutely(catch_up=catch_up), crontab(), NOON, now, UTC)
    last = now.replace(second=0)
    assert times == [last - timedelta(minutes=back) for back in sent]
    assert NOON <= through <= now
    # Whatever was decided is decided once.
    assert due_times(minutely(catch_up=catch_up), crontab(), through, now, UTC)[0] == []


def test_a_take_over_loses_nothing() -> None:
    entry = Entry(name="e", task="tick", schedule=schedule(1))
    times, through = due_times(entry, schedule(1, anchor=NOON), NOON, NOON + timedelta(seconds=9.5), UTC)
    assert times == [NOON + timedelta(seconds=n) for n in range(1, 10)]
    assert through == times[-1]


def test_a_deadline() -> None:
    now = NOON + timedelta(minutes=5, seconds=30)
    assert due_times(minutely(deadline=60), crontab(), NOON, now, UTC)[0] == [NOON + timedelta(minutes=5)]
    assert due_times(minutely(deadline=20), crontab(), NOON, now, UTC) == ([], NOON + timedelta(minutes=5))
    late = due_times(minutely(deadline=100, catch_up="all"), crontab(), NOON, now, UTC)[0]
    assert late == [NOON + timedelta(minutes=4), NOON + timedelta(minutes=5)]


def test_all_that_is_too_late_is_passed_over_once() -> None:
    entry, now = minutely(catch_up="all", deadline=10), NOON + timedelta(minutes=5, seconds=30)
    assert due_times(entry, crontab(), NOON, now, UTC) == ([], NOON + timedelta(minutes=5))
    hourly = crontab(0)
    assert due_times(entry, hourly, NOON, NOON + timedelta(hours=1, minutes=1), UTC) == ([], NOON + timedelta(hours=1))


@pytest.mark.parametrize("catch_up", ["last", "skip", "all"])
@pytest.mark.parametrize("late", [0, 1, 20, 21])
def test_a_schedule_that_counts_from_the_time_before(catch_up: Any, late: int) -> None:
    """As the class in the documentation does: its times lie on no grid."""
    tides, due = Tides("Bari"), NOON + timedelta(hours=6)
    entry = Entry(name="e", task="tick", schedule=tides, catch_up=catch_up)
    now = due + timedelta(seconds=late)
    sent = [] if (late, catch_up) == (21, "skip") else [due]
    assert due_times(entry, tides, NOON, now, UTC) == (sent, due)
    assert due_times(entry, tides, NOON, due - timedelta(seconds=1), UTC) == ([], NOON)
    assert due_times(entry, tides, due, now, UTC) == ([], due)


def test_a_schedule_that_does_not_go_on_is_refused() -> None:
    class Stuck(BaseSchedule):
        def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
            return NOON

    entry = Entry(name="e", task="tick", schedule=Stuck())
    with pytest.raises(ValueError, match="which is not after"):
        due_times(entry, Stuck(), NOON - timedelta(hours=1), NOON, UTC)


def test_much_is_caught_up_in_parts() -> None:
    entry, now = minutely(catch_up="all"), NOON + timedelta(days=1)
    times, through = due_times(entry, crontab(), NOON, now, UTC)
    assert (len(times), through) == (MOST, times[-1])
    assert due_times(entry, crontab(), through, now, UTC)[0][0] == through + timedelta(minutes=1)


def test_the_last_time_is_found_without_looking_at_all() -> None:
    zone = ZoneInfo("Europe/Rome")
    now = datetime(2036, 1, 1, tzinfo=UTC)
    assert latest(crontab(), NOON, now, UTC) == now
    assert latest(schedule(0.001, anchor=NOON), NOON, NOON + timedelta(seconds=0.0105), UTC) == NOON + timedelta(
        milliseconds=10
    )
    yearly = crontab(0, 0, day_of_month=24, month_of_year=12)
    assert latest(yearly, NOON, now, zone) == datetime(2035, 12, 23, 23, tzinfo=UTC)
    assert latest(yearly, NOON, NOON + timedelta(days=30), zone) is None


# -- the table ---------------------------------------------------------------------------------------------------


def test_entries_of_the_program_and_of_people(app: Umbel, clock: FakeClock) -> None:
    table = Table(app)
    app.conf.beat_schedule = {"code": {"task": "tick", "schedule": 60}}
    made = table.set("mine", task="tick", schedule="0 4 * * *", args=[Decimal("1.5")], timezone="Europe/Rome")
    assert (made.declared, made.entry.args) == (False, (Decimal("1.5"),))
    assert [(line.entry.name, line.declared) for line in table.lines()] == [("code", True), ("mine", False)]
    assert table.line("mine").entry.schedule == crontab(0, 4, timezone="Europe/Rome")
    assert not table.enable("code", False).entry.enabled
    assert table.set("code", schedule=5).entry.schedule == schedule(5)
    table.reset("code")
    assert (table.line("code").entry.enabled, table.line("code").entry.schedule) == (True, schedule(60))
    with pytest.raises(ValueError, match="declared by the program"):
        table.remove("code")
    table.remove("mine")
    with pytest.raises(KeyError, match="no entry 'mine'"):
        table.line("mine")
    with pytest.raises(KeyError, match="no entry 'nobody'"):
        table.reset("nobody")
    with pytest.raises(ImproperlyConfigured, match="has no 'task'"):
        table.set("half", schedule=5)
    assert [line.entry.name for line in table.lines()] == ["code"]


def test_an_edit_never_counts_for_the_past(app: Umbel, clock: FakeClock) -> None:
    table = Table(app)
    table.set("e", task="tick", schedule="0 * * * *", catch_up="all")
    clock.advance(7200)
    line = table.set("e", schedule="*/5 * * * *")
    assert due_times(line.entry, line.schedule, line.record.done, clock.now(), UTC)[0] == []
    table.enable("e", False)
    clock.advance(7200)
    line = table.enable("e")
    assert due_times(line.entry, line.schedule, line.record.done, clock.now(), UTC)[0] == []


def test_the_program_changes_an_entry(app: Umbel, clock: FakeClock) -> None:
    table = Table(app)
    app.conf.beat_schedule = {"code": {"task": "tick", "schedule": 3600, "catch_up": "all"}}
    table.enable("code")
    clock.advance(86400)
    app.conf.beat_schedule = {"code": {"task": "tick", "schedule": 60, "catch_up": "all"}}
    line = table.line("code")
    assert due_times(line.entry, line.schedule, line.record.done, clock.now(), UTC)[0] == []
    app.conf.beat_schedule = {}
    assert table.lines() == []


# -- schedules of a user's own -----------------------------------------------------------------------------------


class Tides(BaseSchedule):
    """Says nothing about itself, as such classes do."""

    def __init__(self, port: str, find: Any = None) -> None:
        super().__init__()
        self.port, self.find = port, find

    def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
        return moment + timedelta(hours=6)


def test_a_zone_of_an_entry_counts_for_what_is_bounded_or_put_off(app: Umbel) -> None:
    for what in (crontab(0, 4).between(NOON), crontab(0, 4).jitter(0), crontab(0, 4) | crontab(0, 4)):
        entry = entry_of("e", {"task": "tick", "schedule": what, "timezone": "Asia/Tokyo"}, app)
        assert entry.schedule.next_after(NOON) == datetime(2026, 3, 10, 19, 0, tzinfo=UTC)
        assert dump_schedule(entry.schedule) == dump_schedule(load_schedule(entry.to_dict()["schedule"]))
        assert entry.schedule.local_zone(UTC) == ZoneInfo("Asia/Tokyo")
        assert what.next_after(NOON) == datetime(2026, 3, 11, 4, 0, tzinfo=UTC), "the program's is as it was"
    stored = {"task": "tick", "schedule": "0 4 * * *", "jitter": 0.001, "end": "2090-01-01T00:00Z"}
    table = Table(app)
    table.set("late", **stored)
    due = table.set("late", timezone="Asia/Tokyo").schedule.next_after(NOON)
    assert due is not None and due.replace(microsecond=0) == datetime(2026, 3, 10, 19, 0, tzinfo=UTC)


def test_a_declared_entry_with_a_schedule_of_ones_own_is_enabled_and_changed(app: Umbel) -> None:
    app.conf.beat_schedule = {"own": {"task": "tick", "schedule": Tides("Bari")}}
    table = Table(app)
    assert not table.enable("own", False).entry.enabled
    assert not table.line("own").entry.enabled
    assert table.enable("own").entry.enabled
    line = table.set("own", args=[1], catch_up="skip")
    assert (line.entry.args, line.entry.catch_up) == ((1,), "skip") and isinstance(line.entry.schedule, Tides)
    assert table.would_be("own", args=[2]).entry.args == (2,)
    for said in ({"jitter": 3}, {"timezone": "Asia/Tokyo"}):
        with pytest.raises(ImproperlyConfigured, match="which cannot be stored"):
            table.set("own", **said)
    with pytest.raises(ImproperlyConfigured, match="which cannot be stored"):
        table.set("another", task="tick", schedule=Tides("Bari"))
    # With another schedule that can be stored all of it is kept, and taken back.
    assert isinstance(table.set("own", schedule="30s", jitter=3).entry.schedule.anchored(NOON), BaseSchedule)
    assert not table.enable("own", False).entry.enabled
    table.reset("own")
    assert isinstance(table.line("own").entry.schedule, Tides)


class BusinessHours(crontab):
    """As it is written for Celery: a crontab that says in is_due when it is not."""

    open = True

    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at) if self.open else schedstate(False, 60.0)


def test_what_a_subclass_says_in_is_due_counts(app: Umbel, clock: FakeClock) -> None:
    what = BusinessHours(minute=0)
    entry = entry_of("e", {"task": "tick", "schedule": what}, app)
    start = clock.now()
    assert entry.schedule.next_after(start) == start + timedelta(hours=1)
    clock.advance(3603)
    what.open = False
    assert due_times(entry, entry.schedule, start, clock.now(), UTC) == ([], start)
    assert entry.schedule.next_after(start) == clock.now() + timedelta(minutes=1)
    what.open = True
    for catch_up in ("last", "skip", "all"):
        kept = entry_of("e", {"task": "tick", "schedule": what, "catch_up": catch_up}, app)
        assert due_times(kept, kept.schedule, start, clock.now(), UTC) == ([clock.now()], clock.now())
        assert due_times(kept, kept.schedule, clock.now(), clock.now(), UTC) == ([], clock.now())
    for whole in (what | clocked(NOON), what.between(start)):
        what.open = False
        assert whole.asks_clock and whole.next_after(start) == clock.now() + timedelta(minutes=1)
    with pytest.raises(ImproperlyConfigured, match="jitter needs a schedule with next_after"):
        entry_of("e", {"task": "tick", "schedule": what, "jitter": 3}, app)
    assert in_words(crontab(0)) == "0 * * * *" and repr(entry.schedule) == repr(what)
    assert not crontab(0).asks_clock and crontab(0).heeded() == crontab(0)


def test_a_zone_that_a_subclass_sets_counts_for_beat(app: Umbel) -> None:
    class Zoned(crontab):
        def __init__(self, *fields: Any, tz: ZoneInfo) -> None:
            self.tz = tz
            super().__init__(*fields, app=app)

    tokyo, rome = (Zoned(0, 4, tz=ZoneInfo(name)) for name in ("Asia/Tokyo", "Europe/Rome"))
    entry, other = (entry_of("e", {"task": "tick", "schedule": what}, app) for what in (tokyo, rome))
    assert entry.schedule.next_after(NOON) == datetime(2026, 3, 10, 19, 0, tzinfo=UTC)
    assert entry.schedule.local_zone(UTC) == ZoneInfo("Asia/Tokyo")
    assert entry.fingerprint != other.fingerprint and tokyo != rome
    plain = crontab(0, 4)
    plain.tz = ZoneInfo("Asia/Tokyo")
    assert load_schedule(dump_schedule(plain) or {}).next_after(NOON) == datetime(2026, 3, 10, 19, 0, tzinfo=UTC)
    assert pickle.loads(pickle.dumps(plain)) == plain


def test_parts_that_never_meet_are_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_TRIES", 1000)
    asked: list[datetime] = []

    class Odd(schedule):
        def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
            asked.append(moment)
            return super().next_after(moment, zone=zone)

    both = crontab("1-59/2") & Odd(120)
    assert both.next_after(NOON) is None and len(asked) == 1000
    assert both.next_after(NOON + timedelta(hours=1)) is None and len(asked) == 1000
    assert both.next_after(NOON + timedelta(days=1000)) is None and len(asked) == 2000


# -- what the store has ------------------------------------------------------------------------------------------


def corrupt(app: Umbel, table: Table, name: str, **said: Any) -> None:
    """Change what the store has of an entry, as another release or another machine might have written it."""
    key = table.line(name).key
    stored = table.store.get(key)
    assert stored is not None
    record = decode(stored.value)
    if record.said is not None:
        record.said |= said
    else:
        record.changed |= said
    table.store.put(key, encode(record))


@pytest.mark.parametrize(
    "said",
    [
        {"schedule": {"crontab": "0 4 * * *", "timezone": "No/Where"}},
        {"schedule": {"moon": "full"}},
        {"of_a_later_release": 1},
        {"schedule": {"every": 1e300}},
    ],
    ids=str,
)
def test_what_the_store_has_and_cannot_be_read(
    said: dict[str, Any], app: Umbel, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table(app)
    app.conf.beat_schedule = {"code": {"task": "tick", "schedule": 60}, "good": {"task": "tick", "schedule": 60}}
    table.set("mine", task="tick", schedule=5)
    table.set("code", args=[1])
    for name in ("mine", "code"):
        corrupt(app, table, name, **said)
    with caplog.at_level(logging.ERROR, "celery.beat"):
        assert [line.entry.name for line in table.lines()] == ["good"]
        assert [line.entry.name for line in table.lines()] == ["good"]
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["code", "mine"]
    embedded(app)
    table.remove("mine")
    table.reset("code")
    assert [line.entry.name for line in table.lines()] == ["code", "good"]
    table.store.put("beat:entry:garbage", b"\xff")
    assert len(table.lines()) == 2
    table.remove("garbage")
    app.conf.beat_schedule = {"code": {"task": "tick"}}
    with pytest.raises(ImproperlyConfigured, match="has no 'schedule'"):
        table.lines()


def test_a_removed_entry_leaves_nothing(app: Umbel, clock: FakeClock) -> None:
    table = Table(app)
    table.set("mine", task="tick", schedule=5)
    clock.advance(60)
    assert app.schedules.backfill("mine", clock.now() - timedelta(seconds=5), clock.now())
    assert len(list(table.store.scan("beat:filled:"))) == 1
    table.remove("mine")
    assert not [key for key, _ in table.store.scan("beat:") if "mine" in key]


def test_a_record_from_before_apps_were_told_apart_is_gone_on_with(app: Umbel, clock: FakeClock) -> None:
    app.conf.beat_schedule = {"code": {"task": "tick", "schedule": 60}}
    table = Table(app)
    record = table.line("code").record
    table.store.put("beat:entry:code", encode(record))
    clock.advance(30)
    assert table.line("code").record == record == table.lines()[0].record
    assert table.line("code").version == 0 and table.line("code").key == "beat:of:periodic:code"


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    def entry(what: BaseSchedule) -> Entry:
        return Entry(name="e", task="tick", schedule=what)

    first, second = entry(Tides("Bari", lambda: 1)), entry(Tides("Bari", lambda: 1))
    assert first.fingerprint == second.fingerprint and "0x" not in first.fingerprint
    assert first.fingerprint != entry(Tides("Genoa", lambda: 1)).fingerprint
    assert entry(Tides("Bari") | crontab(0)).fingerprint == entry(Tides("Bari") | crontab(0)).fingerprint
