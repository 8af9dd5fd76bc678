"""Crontabs across changes of clocks: beside cronsim, and beside a scan of every single minute."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.schedules import crontab, schedule

MINUTE = timedelta(minutes=1)

# Europe and America; a half-hour change; changes at midnight; a Ramadan without summer time; none at all.
ZONES = ["Europe/Rome", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "UTC"]
# For each zone a year with two changes: Brazil has had none since 2019.
YEARS = {"America/Sao_Paulo": 2018}
LINES = [
    "* * * * *", "*/5 * * * *", "0 * * * *", "30 2 * * *", "0 2 * * *", "15,45 1-3 * * *", "*/7 2 * * *",
    "0 */3 * * *", "5 1 * * 0", "0 0 * * 0", "0 0-23 * * *", "45 1 * * *", "30 0 * * *", "10 2,3 * 3,10 *",
    "59 23 * * *", "0 12 * * 1-5", "0 0 1 * *",
]  # fmt: skip


def scan(line: str, zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Every due time in [start, end), by looking at each minute; the rules are in the docstring of the module."""
    minute, hour, day, month, week = line.split()
    cron = crontab(minute, hour, week, day, month)

    def right(local: datetime) -> bool:
        return (
            local.minute in cron.minute
            and local.hour in cron.hour
            and local.day in cron.day_of_month
            and local.month in cron.month_of_year
            and local.isoweekday() % 7 in cron.day_of_week
        )

    follows = minute.startswith("*") or hour.startswith("*")
    previous = (start - MINUTE).astimezone(zone).replace(tzinfo=None)
    seen = previous
    moment = start
    while moment < end:
        local = moment.astimezone(zone).replace(tzinfo=None, fold=0)
        if follows:
            due = right(local)
        else:
            # What lies between the two readings of the clock was left out; what is not after the latest one was there.
            left = int((local - previous) / MINUTE)
            due = local > seen and any(right(local - MINUTE * back) for back in range(max(left, 1)))
        if due:
            yield moment
        previous, seen = local, max(seen, local)
        moment += MINUTE


@pytest.mark.parametrize("name", ZONES)
@pytest.mark.parametrize("line", LINES)
def test_every_minute_around_both_changes(name: str, line: str) -> None:
    zone, year = ZoneInfo(name), YEARS.get(name, 2026)
    day = datetime(year, 1, 1, tzinfo=UTC)
    changes = [
        day + timedelta(days=n)
        for n in range(365)
        if (day + timedelta(days=n)).astimezone(zone).utcoffset()
        != (day + timedelta(days=n + 1)).astimezone(zone).utcoffset()
    ]
    assert name == "UTC" or len(changes) >= 2
    for change in changes or [day]:
        start, end = change - timedelta(days=2), change + timedelta(days=3)
        cron, found, due = crontab.from_string(line), [], start - MINUTE
        while (next_due := cron.next_after(due, zone=zone)) is not None and next_due < end:
            found.append(next_due)
            due = next_due
        assert found == list(scan(line, zone, start, end))


# cronsim steps by whole hours, and so misses times after Lord Howe's half-hour change; the scan above does not.
@pytest.mark.parametrize("name", [name for name in ZONES if name != "Australia/Lord_Howe"])
@pytest.mark.parametrize("line", LINES)
def test_a_year_beside_cronsim(name: str, line: str) -> None:
    zone = ZoneInfo(name)
    start = datetime(YEARS.get(name, 2026), 1, 1, tzinfo=UTC)
    for month in range(12):
        moment = start + timedelta(days=30 * month, seconds=17)
        peer = CronSim(line, moment.astimezone(zone))
        for _ in range(60):
            due = crontab.from_string(line).next_after(moment, zone=zone)
            assert due == next(peer).astimezone(UTC)
            moment = due


FIELD = {
    "minute": st.sets(st.integers(0, 59), min_size=1, max_size=4),
    "hour": st.one_of(st.just("*"), st.sets(st.integers(0, 23), min_size=1, max_size=4)),
    "day_of_month": st.one_of(st.just("*"), st.sets(st.integers(1, 28), min_size=1, max_size=9)),
    "day_of_week": st.one_of(st.just("*"), st.sets(st.integers(0, 6), min_size=1, max_size=3)),
}


@settings(max_examples=200, deadline=None)
@given(
    fields=st.fixed_dictionaries(FIELD),
    zone=st.sampled_from([ZoneInfo(name) for name in [*ZONES, "Pacific/Apia", "Antarctica/Troll"]]),
    moment=st.datetimes(datetime(2009, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),
)
def test_what_comes_next_comes_next_for_all_who_ask_before(
    fields: dict[str, object], zone: ZoneInfo, moment: datetime
) -> None:
    cron = crontab(**fields)  # type: ignore[arg-type]
    due = cron.next_after(moment, zone=zone)
    assert due is not None
    assert due > moment
    assert due.second == due.microsecond == 0
    # Asked from anywhere between, the answer is the same: nothing depends on when one looks.
    between = moment + (due - moment) / 3
    assert cron.next_after(between, zone=zone) == due
    assert cron.next_after(due - timedelta(microseconds=1), zone=zone) == due


@settings(max_examples=200, deadline=None)
@given(
    every=st.integers(1, 10**6),
    anchor=st.datetimes(datetime(2009, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),
    moment=st.datetimes(datetime(2009, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),
)
def test_an_anchored_interval_stays_on_its_grid(every: int, anchor: datetime, moment: datetime) -> None:
    due = schedule(every, anchor=anchor).next_after(moment)
    assert due is not None
    assert moment < due <= moment + timedelta(seconds=every)
    assert (due - anchor) % timedelta(seconds=every) == timedelta()
