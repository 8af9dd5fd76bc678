"""Schedules: fields, combinations, bounds, jitter, and Celery's interface, beside Celery itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import celery.schedules as theirs
import pytest

from umbel import Umbel
from umbel.schedules import (
    BaseSchedule,
    ParseException,
    clocked,
    crontab,
    crontab_parser,
    maybe_schedule,
    schedstate,
    schedule,
    solar,
)

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)  # a Tuesday


@pytest.fixture
def app() -> Umbel:
    return Umbel("schedules", set_as_current=False)


def times(what: BaseSchedule, start: datetime = NOON, count: int = 3, **options: Any) -> list[str]:
    return [f"{due:%m-%d %H:%M:%S}" for due in islice(what.upcoming(start, **options), count)]


def _same(moment: datetime) -> datetime:
    return moment


# -- fields ------------------------------------------------------------------------------------------------------

FIELDS = [
    ("*", 60, 0),
    ("*/15", 60, 0),
    ("*/100", 60, 0),
    ("0", 60, 0),
    ("1-5", 24, 0),
    ("8-18/2", 24, 0),
    ("22-4", 24, 0),
    ("22-4/2", 24, 0),
    ("1,3,5-7,*/20", 60, 0),
    ("mon", 7, 0),
    ("monday", 7, 0),
    ("mon,wed-fri", 7, 0),
    ("fri-mon", 7, 0),
    ("sat-sun", 7, 0),
    ("jan-mar", 12, 1),
    ("nov-feb/2", 12, 1),
    ("*/2", 12, 1),
    ("*/3", 31, 1),
    ("31", 31, 1),
]


@pytest.mark.parametrize(("spec", "most", "least"), FIELDS)
def test_a_field_means_what_it_means_to_celery(spec: str, most: int, least: int) -> None:
    assert crontab_parser(most, least).parse(spec) == theirs.crontab_parser(most, least).parse(spec)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("", ParseException, "empty part"),
        ("1,,2", ParseException, "empty part"),
        ("*/", ParseException, "empty filter"),
        ("1-5/", ParseException, "empty filter"),
        ("-3", ParseException, "negative"),
        ("*/0", ParseException, "not a number above 0"),
        ("1/5", ParseException, "needs a range"),
        ("1-5-7", ParseException, "neither"),
        ("?", ParseException, "neither"),
        ("60", ValueError, "60 > 59"),
        ("monkday", None, ""),
        ("blursday", ValueError, "blursday"),
        ("1," * 600, ParseException, "characters"),
    ],
)
def test_a_field_that_cannot_be_read(spec: str, error: type[Exception] | None, words: str) -> None:
    if error is None:
        assert crontab_parser(7).parse(spec) == {1}  # as in Celery, the first three letters decide
        return
    with pytest.raises(error, match=words):
        crontab_parser(60).parse(spec)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"minute": 60}, ValueError, "Valid range is 0-59. '60'"),
        ({"hour": {1, 24}}, ValueError, "Valid range is 0-23. '24'"),
        ({"day_of_month": [0]}, ValueError, "Valid range is 1-31"),
        ({"month_of_year": 2, "day_of_month": 30}, ValueError, "never occurs in month_of_year 2"),
        ({"minute": 1.5}, TypeError, "float"),
        ({"minute": ["1"]}, TypeError, "ints"),
        ({"minute": []}, ValueError, "at least one"),
    ],
)
def test_a_crontab_that_cannot_be(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        crontab(**fields)


def test_a_crontab_of_a_line() -> None:
    assert crontab.from_string("*/5 8-18 1 1,7 mon-fri") == crontab("*/5", "8-18", "mon-fri", 1, {1, 7})
    assert crontab.from_string("@daily") == crontab(0, 0)
    assert crontab.from_string(" 0   4 * * * ").line == "0 4 * * *"
    assert repr(crontab(0, {7, 8}, "mon")) == "<crontab: 0 7,8 * * mon (m/h/dM/MY/d)>"
    with pytest.raises(ValueError, match="has 4 words"):
        crontab.from_string("* * * *")


def test_fields_may_be_iterators() -> None:
    assert crontab(minute=iter([0, 30])).minute == {0, 30}
    assert pickle.loads(pickle.dumps(crontab(minute=iter([0, 30])))).minute == {0, 30}


# -- when --------------------------------------------------------------------------------------------------------


def test_an_interval() -> None:
    assert times(schedule(90)) == ["03-10 12:01:30", "03-10 12:03:00", "03-10 12:04:30"]
    assert times(schedule(timedelta(hours=2), relative=True), NOON.replace(minute=17)) == [
        "03-10 14:00:00",
        "03-10 16:00:00",
        "03-10 18:00:00",
    ]
    assert times(schedule(timedelta(days=1), relative=True), zone=ZoneInfo("Asia/Kolkata"), count=2) == [
        "03-10 18:30:00",
        "03-11 18:30:00",
    ]
    anchored = schedule(600, anchor=NOON.replace(minute=3))
    assert times(anchored, NOON.replace(minute=3), count=2) == ["03-10 12:13:00", "03-10 12:23:00"]
    assert times(anchored, NOON.replace(minute=12, second=59), count=1) == ["03-10 12:13:00"]
    daily = schedule(timedelta(days=1), relative=True, anchor=NOON, timezone="Europe/Rome")
    assert times(daily, datetime(2026, 3, 27, 23, tzinfo=UTC)) == ["03-28 23:00:00", "03-29 22:00:00", "03-30 22:00:00"]
    assert times(schedule(7200, relative=True).anchored(NOON.replace(minute=7)), count=1) == ["03-10 14:00:00"]
    for wrong, error in ((None, TypeError), ("5", TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="run_every"):
            schedule(wrong)  # type: ignore[arg-type]


def test_day_of_month_and_day_of_week_must_both_be_right() -> None:
    friday_13 = crontab(0, 0, day_of_week="fri", day_of_month=13)
    assert [f"{due:%Y-%m-%d}" for due in islice(friday_13.upcoming(NOON), 3)] == [
        "2026-03-13",
        "2026-11-13",
        "2027-08-13",
    ]


def test_what_comes_rarely_and_what_never_comes() -> None:
    leap_monday = crontab(0, 0, day_of_week="mon", day_of_month=29, month_of_year=2)
    assert [due.year for due in islice(leap_monday.upcoming(datetime(2072, 3, 1, tzinfo=UTC)), 2)] == [2112, 2140]
    assert list(clocked(NOON).upcoming(NOON - timedelta(days=1))) == [NOON]
    assert clocked(NOON).next_after(NOON) is None
    assert (crontab(0, 1) & crontab(0, 2)).next_after(NOON) is None


def test_either_and_both() -> None:
    either = crontab(0, 18) | crontab(30, 12) | schedule(3600)
    assert times(either, count=4) == ["03-10 12:30:00", "03-10 13:00:00", "03-10 14:00:00", "03-10 15:00:00"]
    both = crontab("*/15", "*") & crontab("*/20", "*")
    assert times(both, count=2) == ["03-10 13:00:00", "03-10 14:00:00"]
    assert times(schedule(7 * 60) & schedule(9 * 60), datetime(1970, 1, 1, tzinfo=UTC), 1) == ["01-01 01:03:00"]


def test_bounds() -> None:
    start, end = NOON + timedelta(hours=1), NOON + timedelta(hours=3)
    assert times(crontab(0).between(start, end), count=9) == ["03-10 13:00:00", "03-10 14:00:00", "03-10 15:00:00"]
    assert times(crontab(0).between(end=start), count=9) == ["03-10 13:00:00"]
    with pytest.raises(ValueError, match="cannot end"):
        crontab().between(end, start)
    with pytest.raises(ValueError, match="no time zone"):
        crontab().between(datetime(2026, 1, 1))


def test_jitter_is_the_same_for_everybody_and_loses_nothing() -> None:
    plain, moved = crontab("*/10"), crontab("*/10").jitter(1500, seed="a")
    found = list(islice(moved.upcoming(NOON), 200))
    assert found == sorted(set(found))
    assert found == list(islice(crontab("*/10").jitter(1500, seed="a").upcoming(NOON), 200))
    assert found != list(islice(crontab("*/10").jitter(1500, seed="b").upcoming(NOON), 200))
    # Each of the plain times is there once, put off: nothing is skipped where one overtakes another.
    expected = [due + moved._delay(due) for due in islice(plain.upcoming(NOON - timedelta(seconds=1500)), 230)]
    assert found == sorted(due for due in expected if due > NOON)[:200]
    assert crontab().jitter(0).next_after(NOON) == crontab().next_after(NOON)
    with pytest.raises(ValueError, match="jitter"):
        crontab().jitter(-1)


def test_a_zone_of_its_own() -> None:
    rome = crontab(0, 12, timezone="Europe/Rome")
    assert times(rome, zone=ZoneInfo("America/New_York"), count=1) == ["03-11 11:00:00"]
    assert times(crontab(0, 12), zone=ZoneInfo("America/New_York"), count=1) == ["03-10 16:00:00"]


def test_a_naive_moment_is_refused() -> None:
    for each in (crontab(), schedule(5), clocked(NOON), crontab() | schedule(5), crontab().jitter(3)):
        with pytest.raises(ValueError, match="has no time zone"):
            each.next_after(datetime(2026, 1, 1))


@pytest.mark.parametrize("make", [
    lambda: crontab("*/5", "1-3", "mon", timezone="Europe/Rome"),
    lambda: schedule(timedelta(minutes=5), anchor=NOON),
    lambda: schedule(30, relative=True),
    lambda: clocked(NOON),
    lambda: solar("sunset", 41.9, 12.5),
    lambda: crontab(0) | schedule(50),
    lambda: crontab(0) & crontab(hour=3),
    lambda: crontab(0).between(NOON).jitter(5, "x"),
])  # fmt: skip
def test_a_schedule_can_be_pickled_and_compared(make: Callable[[], BaseSchedule]) -> None:
    one, other = make(), pickle.loads(pickle.dumps(make()))
    assert one == other
    assert hash(one) == hash(other)
    assert one.next_after(NOON) == other.next_after(NOON)
    assert one != crontab(7, 7)


# -- the sun -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", sorted(theirs.solar._all_events))
@pytest.mark.parametrize(("lat", "lon"), [(41.9, 12.5), (-33.9, 151.2), (0, -78.5), (64.1, -21.9)])
def test_the_sun_is_where_it_is_for_celery(event: str, lat: float, lon: float) -> None:
    start = datetime(2026, 2, 1, tzinfo=UTC)
    for due in islice(solar(event, lat, lon).upcoming(start), 5):
        peer = theirs.solar(event, lat, lon, nowfun=partial(_same, start))
        assert abs(start + peer.remaining_estimate(start) - due) < timedelta(seconds=1)
        start = due + timedelta(minutes=2)


def test_the_sun_near_the_pole() -> None:
    # In Longyearbyen the sun sets in the middle of August for the first time since April.
    sunset = solar("sunset", 78.2, 15.6).next_after(datetime(2026, 6, 1, tzinfo=UTC))
    assert sunset is not None
    assert (sunset.month, 20 <= sunset.day <= 28) == (8, True)
    for wrong in (("noon", 0, 0), ("sunset", 91, 0), ("sunset", 0, -181)):
        with pytest.raises(ValueError, match="invalid"):
            solar(*wrong)


# -- Celery's interface ------------------------------------------------------------------------------------------


def test_is_due(app: Umbel) -> None:
    now = [NOON]
    every = crontab(minute="*/30", nowfun=lambda: now[0], app=app)
    assert every.is_due(NOON - timedelta(minutes=10)) == schedstate(True, 1800)
    assert every.is_due(NOON) == schedstate(False, 1800)
    now[0] = NOON + timedelta(minutes=31)
    assert every.is_due(NOON) == schedstate(True, 29 * 60)
    assert every.remaining_estimate(NOON) == timedelta(minutes=-1)
    assert schedule(10, nowfun=lambda: now[0], app=app).is_due(NOON) == schedstate(True, 10)
    assert schedule(7200, nowfun=lambda: now[0], app=app).is_due(NOON) == schedstate(False, 7200 - 31 * 60)


def test_a_missed_crontab_is_not_due_after_the_deadline(app: Umbel) -> None:
    late = crontab(minute=0, nowfun=lambda: NOON + timedelta(minutes=10), app=app)
    last = NOON - timedelta(hours=3)
    assert late.is_due(last).is_due
    app.conf.beat_cron_starting_deadline = 300
    assert late.is_due(last) == schedstate(False, 50 * 60)
    app.conf.beat_cron_starting_deadline = 600
    assert late.is_due(last).is_due


@pytest.mark.parametrize("line", ["*/7 * * * *", "0 */4 * * *", "15 3 * * 1-5", "0 0 1 */2 *", "30 23 13 * fri"])
def test_celery_estimates_the_same(line: str, app: Umbel) -> None:
    moment = datetime(2026, 1, 5, 1, 2, 3, tzinfo=UTC)
    for _ in range(50):
        ours = crontab.from_string(line, nowfun=partial(_same, moment), app=app)
        minute, hour, day, month, week = line.split()
        peer = theirs.crontab(minute, hour, week, day, month, nowfun=partial(_same, moment))
        assert ours.remaining_estimate(moment) == peer.remaining_estimate(moment)
        due = ours.next_after(moment)
        assert due is not None
        moment = due + timedelta(seconds=1)


def test_maybe_schedule(app: Umbel) -> None:
    assert maybe_schedule(30, app=app) == schedule(30)
    assert maybe_schedule(timedelta(days=1), relative=True) == schedule(timedelta(days=1), relative=True)
    cron = crontab()
    assert maybe_schedule(cron, app=app) is cron
    assert cron.app is app
    assert maybe_schedule(None) is None
    assert schedule(30) == timedelta(seconds=30)
    assert repr(schedule(5400)) == repr(theirs.schedule(5400)) == "<freq: 1.50 hours>"


class Doubled(schedule):
    """A schedule of a user's own: every interval twice as long as it says, from the anchor on."""

    def __init__(self, every: float, label: str) -> None:
        super().__init__(every)
        self.label = label

    def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
        due = self.anchor or moment
        while due <= moment:
            due += 2 * self.run_every
        return due


def test_an_anchored_schedule_of_ones_own_class_stays_one() -> None:
    own = Doubled(30, "mine").anchored(NOON)
    assert type(own) is Doubled and own.label == "mine" and own.anchor == NOON
    assert times(own, NOON + timedelta(seconds=1)) == ["03-10 12:01:00", "03-10 12:02:00", "03-10 12:03:00"]
    assert Doubled(30, "mine").anchor is None, "the one that it was made from is as it was"
    assert times(Doubled(3600, "x").jitter(0), NOON, 1) == ["03-10 14:00:00"]


@pytest.mark.parametrize(
    "what",
    [
        crontab(0, 4).between(NOON),
        crontab(0, 4).jitter(0),
        crontab(0, 4).between(NOON).jitter(0),
        crontab(0, 4) | crontab(0, 4),
        crontab(0, 4) & crontab("*/30", 4),
    ],
    ids=repr,
)
def test_a_zone_reaches_the_parts_of_a_schedule(what: BaseSchedule) -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    zoned = what.zoned(tokyo)
    assert times(zoned, count=1) == ["03-10 19:00:00"] and times(what, count=1) == ["03-11 04:00:00"]
    assert zoned.local_zone(UTC) is tokyo
    assert zoned.zoned(ZoneInfo("Europe/Rome")) == zoned, "its own zone is kept"


def test_parts_in_several_zones_have_no_common_one() -> None:
    both = crontab(0, 4, timezone="Asia/Tokyo") | crontab(0, 4)
    assert both.local_zone(UTC) is UTC
    assert times(both.zoned(ZoneInfo("Europe/Rome")), count=2) == ["03-10 19:00:00", "03-11 03:00:00"]


def test_a_schedule_without_a_repr_is_told_by_what_it_was_made_of() -> None:
    class Tides(BaseSchedule):
        def __init__(self, port: str, *, late: float = 0.0) -> None:
            super().__init__()
            self.port, self.asked = port, 0

        def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
            self.asked += 1
            return moment + timedelta(hours=6)

    tides = Tides("Bari", late=3)
    said = repr(tides)
    assert said.endswith("Tides('Bari', late=3)")
    tides.next_after(NOON)
    assert repr(tides) == said == repr(tides.zoned(UTC))
    assert tides == Tides("Bari", late=3) and hash(tides) == hash(Tides("Bari", late=3))
    assert tides != Tides("Genoa", late=3)
