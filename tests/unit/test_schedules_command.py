"""``app.schedules`` and ``umbel schedules``: looking at periodic tasks, changing them, what clocks do to them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

from umbel import Umbel
from umbel.cli.main import cli
from umbel.exceptions import ImproperlyConfigured
from umbel.message import decode_envelope
from umbel.periodic.sending import task_id_at
from umbel.schedules import BaseSchedule, clocked, crontab, schedule
from umbel.schedules.notes import notes

BERLIN = ZoneInfo("Europe/Berlin")


class Broken(BaseSchedule):
    """A schedule of a user's own that fails."""

    def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
        raise ZeroDivisionError("of my own")


@pytest.fixture(params=["sqlite", "redis"])
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Umbel]:
    url = request.getfixturevalue(f"{request.param}_url")
    app = Umbel("planned", broker=url, backend=url, set_as_current=False, timezone="Europe/Berlin")

    @app.task(name="add", shared=False)
    def add(x: int, y: int = 0) -> int:
        return x + y

    app.conf.beat_schedule = {
        "night": {"task": "add", "schedule": crontab(minute=30, hour=2), "args": (1,)},
        "hourly": {"task": "add", "schedule": crontab(minute=0), "args": (2,), "kwargs": {"y": 3}},
    }
    module = ModuleType("planned_module")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planned_module", module)
    yield app
    app.close()


def umbel(*words: str, status: int = 0, input: str | None = None) -> Result:
    done = CliRunner().invoke(cli, ["-A", "planned_module", "schedules", *words], input=input, prog_name="umbel")
    assert done.exit_code == status, (done.output, done.exception)
    return done


def data(*words: str) -> Any:
    said = json.loads(umbel(*words, "-o", "json").stdout)
    assert said["schema"] == f"umbel.schedules.{words[0]}/1"
    return said["data"]


def waiting(app: Umbel) -> list[Any]:
    return [decode_envelope(each.raw) for each in app.broker.peek("celery", limit=1000)]


def test_what_there_is(app: Umbel) -> None:
    first, second = data("list")
    assert (first["name"], first["task"], first["when"], first["enabled"], first["declared"]) == (
        "hourly", "add", "0 * * * *", True, True,
    )  # fmt: skip
    assert second["next"].endswith(("T02:30:00+01:00", "T02:30:00+02:00"))
    assert umbel("list", "-o", "plain").stdout.splitlines()[0].split("\t")[:4] == ["hourly", "0 * * * *", "add", "on"]
    assert data("show", "hourly")["kwargs"] == {"y": 3} and data("show", "hourly")["timezone"] == "Europe/Berlin"
    assert "args:" in umbel("show", "night").stdout
    missing = umbel("show", "nihgt", "-o", "json", status=3)
    assert json.loads(missing.stderr)["error"]["message"].startswith("there is no entry 'nihgt'")


def test_one_entry_that_fails_does_not_hide_the_others(app: Umbel) -> None:
    app.conf.beat_schedule = {**app.conf.beat_schedule, "mine": {"task": "add", "schedule": Broken()}}
    listed = {each["name"]: (each["next"] is not None, each["trouble"]) for each in data("list")}
    assert listed == {
        "hourly": (True, None), "mine": (False, "ZeroDivisionError: of my own"), "night": (True, None)
    }  # fmt: skip
    assert "ZeroDivisionError: of my own" in umbel("list").stdout
    assert data("show", "mine")["trouble"] == "ZeroDivisionError: of my own"


def test_s13_what_a_task_hides_is_not_shown(app: Umbel) -> None:
    app.tasks["add"].sensitive = ("y",)
    assert (data("show", "hourly")["args"], data("show", "hourly")["kwargs"]) == ([2], {"y": "***"})


def test_what_comes_next_and_what_clocks_do(app: Umbel) -> None:
    found = data("next", "night", "-n", "2", "--after", "2027-03-27T12:00+01:00")
    assert [each["at"] for each in found] == ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
    assert found[0]["notes"] == ["02:30 does not exist on 2027-03-28 (clocks go forward 02:00): sent at 03:00"]
    assert found[1]["notes"] == []
    both = data("next", "-n", "3", "--after", "2027-10-31T01:30+02:00")
    assert [(each["name"], each["at"][11:]) for each in both] == [
        ("hourly", "02:00:00+02:00"), ("night", "02:30:00+02:00"), ("hourly", "02:00:00+01:00"),
    ]  # fmt: skip
    assert [each["notes"][0].rpartition(": ")[2] for each in both] == [
        "this is the first time", "sent the first time only", "this is the second time",
    ]  # fmt: skip
    app.schedules.disable("hourly")
    assert {each["name"] for each in data("next")} == {"night"}


def test_notes() -> None:
    def at(text: str, what: Any, after: str | None = None) -> list[str]:
        moment = None if after is None else datetime.fromisoformat(after)
        return notes(what, datetime.fromisoformat(text), zone=BERLIN, after=moment)

    often = crontab(minute="*/20", hour="1-3")
    assert at("2027-03-28T03:00+02:00", often, "2027-03-28T01:40+01:00") == [
        "02:00, 02:20, 02:40 do not exist on 2027-03-28 (clocks go forward 02:00): left out"
    ]
    assert at("2027-03-28T03:20+02:00", often, "2027-03-28T03:00+02:00") == []
    assert at("2027-10-31T02:20+01:00", often, "2027-10-31T02:00+01:00")[0].endswith("this is the second time")
    assert at("2027-10-31T03:00+01:00", often, "2027-10-31T02:40+01:00") == []
    for plain in (schedule(60), clocked(datetime(2027, 3, 28, 1, tzinfo=UTC)), crontab(hour=12, minute=0)):
        assert at("2027-03-28T03:00+02:00", plain) == []
    tokyo = crontab(minute=30, hour=2, timezone="Asia/Tokyo")
    assert at("2027-03-28T03:00+02:00", tokyo) == []
    fixed = crontab(minute=30, hour=2)
    for around in (fixed | schedule(86400), fixed.between(), fixed.jitter(1.0)):
        assert len(at("2027-03-28T03:00+02:00", around, "2027-03-27T02:30+01:00")) == 1


def test_changes(app: Umbel) -> None:
    umbel("set", "mine", "--task", "add", "--schedule", "0 4 * * mon", "--timezone", "Asia/Tokyo", "-a", "[5]")
    shown = data("show", "mine")
    assert (shown["declared"], shown["args"], shown["timezone"]) == (False, [5], "Asia/Tokyo")
    assert "mine disabled" in umbel("disable", "mine").stderr
    assert data("show", "mine")["enabled"] is False and data("show", "mine")["next"] is None
    assert "mine enabled; next at" in umbel("enable", "mine").stderr
    umbel("remove", "mine")
    assert [each["name"] for each in data("list")] == ["hourly", "night"]
    # Of what the program declares.
    umbel("set", "night", "--jitter", "60", "--deadline", "30", "--no-overlap", "--catch-up", "all")
    shown = data("show", "night")
    assert (shown["when"], shown["changed"]) == (
        "30 2 * * *, up to 60 s later", ["catch_up", "deadline", "overlap", "schedule"]
    )  # fmt: skip
    umbel("set", "night", "--jitter", "5")
    assert data("show", "night")["when"] == "30 2 * * *, up to 5 s later"
    umbel("reset", "night")
    assert data("show", "night")["when"] == "30 2 * * *" and data("show", "night")["changed"] == []
    assert "is declared by the program" in umbel("remove", "night", status=4).stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("set", "x"), 2, "say what to set"),
        (("set", "x", "--task", "add"), 78, "has no 'schedule'"),
        (("set", "x", "--task", "add", "--schedule", "sometimes"), 78, "'sometimes' is not a schedule"),
        (("set", "x", "--task", "add", "--schedule", "5s", "--timezone", "No/Where"), 78, "No/Where"),
        (("set", "x", "--task", "add", "--schedule", "999999999d"), 78, "has no next time"),
        (("set", "x", "--task", "add", "--schedule", "9999999999d"), 78, "is not a schedule"),
        (("set", "x", "--task", "add", "--schedule", "a-b-c * * * *"), 78, "is not a schedule"),
        (("set", "x", "--task", "add", "--schedule", "5s", "--jitter", "inf"), 78, "jitter is a number"),
        (("set", "x", "--task", "add", "--schedule", "5s", "--jitter", "1e15"), 78, "has no next time"),
        (("set", "x", "--task", "add", "--schedule", "5s", "--deadline", "nan"), 78, "deadline is a number"),
        (("set", "x", "--task", "add", "--schedule", "5s", "--deadline", "1e15"), 78, "deadline is a number"),
        (("set", "x", "-a", "{}"), 2, "--args is a list in JSON"),
        (("set", "x", "-a", "{"), 2, "is not JSON"),
        (("enable", "x"), 3, "there is no entry 'x'"),
        (("reset", "x"), 3, "there is no entry 'x'"),
        (("remove", "x"), 3, "there is no entry 'x'"),
        (("run", "x"), 3, "there is no entry 'x'"),
        (("history", "x"), 3, "there is no entry 'x'"),
        (("backfill", "night", "--from", "2020-01-01", "--to", "2999-01-01"), 4, "has not come yet"),
        (("backfill", "hourly", "--from", "2020-01-01", "--to", "2021-01-01"), 4, "more than 1000 times"),
        (("next", "night", "--after", "soon"), 2, "'soon' is not a time"),
    ],
)
def test_what_is_wrong_is_said(words: tuple[str, ...], status: int, said: str, app: Umbel) -> None:
    assert said in umbel(*words, status=status).stderr


def test_run_now(app: Umbel) -> None:
    id = umbel("run", "hourly").stdout.strip()
    (message,) = waiting(app)
    assert message.headers["id"] == id and message.headers["celery_beat_task"] is True
    ((due, sent, task_id, note),) = [line.split("\t") for line in umbel("history", "hourly").stdout.splitlines()]
    assert (task_id, note) == (id, "by hand") and due == sent
    before = app.schedules.get("hourly").record
    app.schedules.run("hourly")
    assert app.schedules.get("hourly").record.through == before.through  # what is due stays due


def test_backfill_sends_each_time_once(app: Umbel) -> None:
    window = ("--from", "2026-03-29T00:30:00+01:00", "--to", "2026-03-29T05:00:00+02:00")
    times = umbel("backfill", "hourly", *window, "--dry-run").stdout.split()
    assert [each[11:16] for each in times] == ["00:00", "01:00", "02:00", "03:00"]  # in UTC; 02:00 does not exist
    assert waiting(app) == []
    assert "nobody is here" in umbel("backfill", "hourly", *window, status=4).stderr
    done = umbel("backfill", "hourly", *window, "-y")
    ids = [task_id_at(app.schedules.get("hourly").which, datetime.fromisoformat(each)) for each in times]
    assert done.stdout.split() == ids and "4 tasks sent." in done.stderr
    assert [message.headers["id"] for message in waiting(app)] == ids
    # Again, and a wider one: only what is new.
    assert umbel("backfill", "hourly", *window, "-y").stdout == ""
    wider = app.schedules.backfill(
        "hourly", datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 3, 29, 3, 59, tzinfo=UTC)
    )
    assert len(wider) == 2 and not {*wider} & {*ids}
    start = datetime(2026, 3, 29, tzinfo=UTC)
    before = len(waiting(app))
    assert app.schedules.backfill("hourly", start, start, again=True) == ids[:1]
    assert len(waiting(app)) == before + 1, "it is sent, though the broker has just seen this id"


def test_a_backfill_leaves_out_what_has_a_result(app: Umbel) -> None:
    due = datetime(2026, 3, 29, 4, tzinfo=UTC)
    app.tasks["add"].update_state(task_id_at(app.schedules.get("hourly").which, due), "SUCCESS")
    assert app.schedules.missed("hourly", due, due + timedelta(hours=1)) == [due + timedelta(hours=1)]
    with pytest.raises(ValueError, match="time zone"):
        app.schedules.backfill("hourly", datetime(2026, 1, 1), datetime(2026, 1, 2))
    with pytest.raises(ImproperlyConfigured, match="unknown key 'taks'"):
        app.schedules.set("x", taks="add", schedule=5)


def test_a_task_that_the_app_does_not_have_is_refused_unless_it_is_elsewhere(app: Umbel) -> None:
    said = ("set", "report", "--schedule", "5m", "--task")
    assert "no task 'ad'; --elsewhere sets it all the same; did you mean 'add'?" in umbel(*said, "ad", status=3).stderr
    assert "--elsewhere sets it all the same; it has add" in umbel(*said, "x.y.z", status=3).stderr
    assert all(each["name"] != "report" for each in data("list"))
    umbel(*said, "x.y.z", "--elsewhere")
    umbel("set", "report", "--jitter", "1", "--schedule", "6m")
    assert next(each for each in data("list") if each["name"] == "report")["task"] == "x.y.z"
    umbel(*said, "add")
