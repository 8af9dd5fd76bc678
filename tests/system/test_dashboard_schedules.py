"""The dashboard's page of schedules: what it shows is what beat will do, and its buttons do what they say."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from dashboard_support import Answer, Visitor, served
from umbel import Umbel
from umbel.dashboard.access import Access, hash_password, read_accounts
from umbel.exceptions import ImproperlyConfigured
from umbel.periodic.table import Fired, encode, fired
from umbel.schedules import BaseSchedule, crontab, schedule, solar

pytestmark = pytest.mark.timeout(180)

HOSTILE = "<script>alert(1)</script>\"'{{7*191}} --all"


class Broken(BaseSchedule):
    """A schedule of a user's own that fails."""

    def next_after(self, moment: datetime, *, zone: Any = UTC) -> datetime | None:
        raise ZeroDivisionError("of my own")


class Desk:
    """An app with entries, and somebody at its dashboard."""

    def __init__(self, app: Any, url: str) -> None:
        self.app = app
        self.visitor = Visitor(url)

    def get(self, path: str) -> str:
        answer = self.visitor.get(path)
        assert answer.status == 200, answer.text
        return answer.text

    def post(self, path: str, **form: Any) -> Answer:
        return self.visitor.post(path, {"token": self.visitor.get("/schedule/new").token, **form})

    def act(self, path: str, **form: Any) -> str:
        """Send a form, and return the page that it leads to."""
        answer = self.post(path, **form)
        assert answer.status == 303, (answer.status, answer.text)
        return self.visitor.get(answer.headers["location"]).text

    def form(self, page: str, form: str = "/schedules/preview") -> dict[str, str]:
        """Return the fields of a form as a browser would send them."""
        part = next(each for each in page.split("<form ") if f'action="{form}"' in each).partition("</form>")[0]
        found = {}
        for tag in re.findall(r"<input [^>]*>", part):
            said = dict(re.findall(r'([a-z]+)="([^"]*)"', tag))
            if said.get("type") != "checkbox" or " checked" in tag:
                found[said["name"]] = html.unescape(said["value"])
        for name, value in re.findall(r'<textarea name="([a-z]+)"[^>]*>([^<]*)</textarea>', part):
            found[name] = html.unescape(value).replace("\n", "\r\n")
        if chosen := re.search(r'<option value="([a-z]+)" selected', part):
            found["catch_up"] = chosen[1]
        return found

    def edit(self, name: str, **fields: str) -> tuple[str, str]:
        """Change fields of an entry's form, look at the preview and save it; return both pages."""
        form = self.form(self.visitor.get(f"/schedule/edit?name={name}").text)
        answer = self.visitor.post("/schedules/preview", {**form, **fields})
        assert answer.status == 200, answer.text
        return answer.text, self.act("/schedules/set", **self.form(answer.text, "/schedules/set"))


def make_app(url: str) -> Any:
    app = Umbel("shop", broker=url, backend=url, timezone="Europe/Berlin")

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="pay", sensitive=("card",))
    def pay(card: str) -> None:
        """Nothing."""

    app.conf.beat_schedule = {
        "nightly": {"task": "add", "schedule": crontab(minute=30, hour=2), "args": (1, 2), "catch_up": "skip"},
        "fees": {"task": "pay", "schedule": 3600, "kwargs": {"card": "4111-1111"}},
        "either": {"task": "add", "schedule": crontab(hour=4, minute=0) | schedule(timedelta(hours=5))},
    }
    return app


@pytest.fixture(params=["sqlite_url", "redis_url"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    app = make_app(request.getfixturevalue(request.param))
    with served(app) as server:
        yield Desk(app, server.url)
    app.close()


def times(page: str) -> list[str]:
    """Return the moments of the next times that a page shows."""
    return re.findall(r'data-here="([^"]+)"', page)


def test_the_list_says_what_is_sent_when(desk: Desk) -> None:
    desk.app.schedules.set("stored", task="add", schedule="10s", catch_up="all")
    page = desk.get("/schedules")
    rows = {each.partition("</a>")[0]: each for each in re.split(r'<a href="/schedule\?name=\w+">', page)[1:]}
    assert list(rows) == ["either", "fees", "nightly", "stored"]
    assert "30 2 * * *" in rows["nightly"] and "Europe/Berlin" in rows["nightly"] and "skip" in rows["nightly"]
    assert ">program<" in rows["nightly"] and ">stored<" in rows["stored"]
    coming = desk.app.schedules.next("nightly", count=3)
    assert times(rows["nightly"]) == [f"{each.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" for each in coming]
    assert all(f">{each.at:%Y-%m-%d} 02:30</time>" in rows["nightly"] for each in coming)
    assert "4111" not in page
    assert list(re.findall(r"/schedule\?name=(\w+)", desk.get("/schedules?filter=NIGHT"))) == ["nightly"]
    first = desk.get("/schedules?limit=2")
    assert re.findall(r'/schedule\?name=(\w+)"', first) == ["either", "fees"] and "after=fees" in first
    assert re.findall(r'/schedule\?name=(\w+)"', desk.get("/schedules?limit=2&after=fees")) == ["nightly", "stored"]


def test_what_clocks_do_is_told(desk: Desk) -> None:
    # Hours that do not exist or come twice within the next year, in a zone that changes its clocks.
    for month, name in ((3, "spring"), (10, "autumn")):
        desk.app.schedules.set(name, task="add", schedule=f"30 2 25-31 {month} *", timezone="Europe/Berlin")
    assert "comes twice on" in desk.get("/schedule?name=autumn")
    assert re.search(r"02:30 does not exist on \d{4}-03-\d\d", desk.get("/schedule?name=spring"))


def test_run_disable_enable_and_history(desk: Desk) -> None:
    app = desk.app
    assert "umbel -A shop schedules run nightly" in desk.get("/schedule?name=nightly")
    done = desk.act("/schedules/run", name="nightly")
    (sent,) = app.schedules.history("nightly")
    assert f"nightly sent as {sent.task_id}." in done and f"/task?id={sent.task_id}" in done and "by hand" in done
    assert app.broker.size("celery") == 1
    assert "is not sent any more" in desk.act("/schedules/disable", name="nightly", listed="1")
    assert not app.schedules.get("nightly").entry.enabled
    page = desk.get("/schedule?name=nightly")
    assert times(page) == [] and "It is disabled." in page and "changed" in page
    assert "again, from its next time on" in desk.act("/schedules/enable", name="nightly")
    assert app.schedules.get("nightly").entry.enabled
    assert "as the program declares" in desk.act("/schedules/reset", name="nightly")
    assert not app.schedules.get("nightly").record.changed
    kept = desk.get("/audit")
    for action in ("run", "disable", "enable", "reset"):
        assert f"schedules.{action}" in kept


def test_an_entry_is_added_previewed_and_removed(desk: Desk) -> None:
    app = desk.app
    form = desk.form(desk.get("/schedule/new"))
    assert form["new"] == "1"
    form |= {"name": "report", "task": "add", "schedule": "0 4 * * mon", "timezone": "Asia/Tokyo", "args": "[1, 2]",
             "catch_up": "all", "deadline": "60", "jitter": "5"}  # fmt: skip
    del form["overlap"]
    answer = desk.visitor.post("/schedules/preview", form)
    assert answer.status == 200, answer.text
    with pytest.raises(KeyError):
        app.schedules.get("report")
    shown = times(answer.text)
    assert len(shown) == 5
    said = html.unescape(answer.text)
    assert (
        "umbel -A shop schedules set report --task add --catch-up all --args '[1, 2]' --deadline 60 --no-overlap "
        "--schedule '0 4 * * mon' --timezone Asia/Tokyo --jitter 5" in said
    )
    assert "report was saved" in desk.act("/schedules/set", **desk.form(answer.text, "/schedules/set"))
    entry = app.schedules.get("report").entry
    assert (entry.args, entry.catch_up, entry.deadline, entry.overlap) == ((1, 2), "all", 60.0, False)
    coming = [f"{each.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" for each in app.schedules.next("report", count=5)]
    assert coming == shown, "the preview is what comes"
    again = desk.visitor.post("/schedules/preview", form)
    assert again.status == 400 and "already" in again.text
    stale = desk.visitor.post("/schedules/set", desk.form(answer.text, "/schedules/set"))
    assert stale.status == 400 and "already" in stale.text
    assert "report was removed." in desk.act("/schedules/remove", name="report")
    assert desk.post("/schedules/remove", name="report").status == 404
    refused = desk.post("/schedules/remove", name="nightly")
    assert refused.status == 409 and "declared by the program" in refused.text
    assert "Remove" not in desk.get("/schedule?name=nightly")


def test_only_what_was_changed_is_saved(desk: Desk) -> None:
    app = desk.app
    same = desk.visitor.post("/schedules/preview", desk.form(desk.get("/schedule/edit?name=nightly")))
    assert same.status == 400 and "Nothing is changed." in same.text
    preview, page = desk.edit("nightly", schedule="0 5 * * *")
    assert "until it is reset" in preview and "changed" in page
    line = app.schedules.get("nightly")
    assert set(line.record.changed) == {"schedule"} and line.entry.schedule == crontab(minute=0, hour=5)
    desk.edit("nightly", kwargs='{"z": {"__type__": "datetime", "__value__": "2030-01-01T00:00:00+00:00"}}')
    assert app.schedules.get("nightly").entry.kwargs == {"z": datetime(2030, 1, 1, tzinfo=UTC)}
    _, page = desk.edit("nightly", end="2090-01-01")
    assert "until 2090-01-01" in page
    desk.edit("nightly", end="")
    assert app.schedules.get("nightly").entry.schedule == crontab(minute=0, hour=5)


def test_times_are_in_the_zone_of_the_entry(desk: Desk) -> None:
    said = {"task": "add", "schedule": "30 9 * * *", "timezone": "Asia/Tokyo"}
    desk.app.schedules.set("bounded", **said, end="2090-01-01T00:00:00+00:00", jitter=1.0)
    desk.app.schedules.set("plain", **said)
    for name in ("bounded", "plain"):
        page = desk.get(f"/schedule?name={name}")
        assert "in Asia/Tokyo" in page and " 09:30" in page


def test_what_no_text_says_stays_when_something_else_is_edited(desk: Desk) -> None:
    app = desk.app
    page = desk.get("/schedule/edit?name=either")
    assert desk.form(page)["schedule"] == "" and "Empty leaves it as it is" in page
    before = app.schedules.get("either").entry.schedule
    desk.edit("either", catch_up="skip")
    desk.edit("either", deadline="30")
    preview, _ = desk.edit("either", deadline="")
    assert "app.schedules.set" in html.unescape(preview), "there is no command line for that"
    entry = app.schedules.get("either").entry
    assert entry.schedule == before and entry.deadline is None and entry.catch_up == "skip"
    full_hours = schedule(3600, relative=True)
    app.schedules.set("hourly", task="add", schedule=full_hours)
    assert desk.form(desk.get("/schedule/edit?name=hourly"))["schedule"] == ""
    desk.edit("hourly", end="2090-01-01T00:00:00+00:00")
    assert app.schedules.get("hourly").entry.schedule == full_hours.between(end=datetime(2090, 1, 1, tzinfo=UTC))


def test_what_is_sensitive_is_neither_shown_nor_lost(desk: Desk) -> None:
    shown, form = desk.get("/schedule?name=fees"), desk.get("/schedule/edit?name=fees")
    assert "4111" not in shown + form and "***" in shown and "not to be edited here" in form
    preview, _ = desk.edit("fees", schedule="2h")
    assert "4111" not in preview
    assert desk.app.schedules.get("fees").entry.kwargs == {"card": "4111-1111"}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schedule", "whenever", "is not a schedule"),
        ("schedule", "0s", "longer than 0 seconds"),
        ("schedule", "9999999999999d", "calendar"),
        ("schedule", "9999999d", "calendar"),
        ("timezone", "Mars/Olympus", "Mars/Olympus"),
        ("timezone", "../../etc/passwd", "passwd"),
        ("timezone", "America", "America"),
        ("start", "soon", "not a time"),
        ("end", "1990-01-01", "Never: no such time"),
        ("jitter", "inf", "86,400 at most"),
        ("jitter", "-1", "number of seconds"),
        ("args", "{}", "a JSON list"),
        ("kwargs", "[1", "a JSON object"),
        ("deadline", "nan", "number of seconds"),
        ("catch_up", "none", "catch_up is"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(sqlite_url: str, field: str, value: str, said: str) -> None:
    app = make_app(sqlite_url)
    with served(app) as server:
        desk = Desk(app, server.url)
        form = {**desk.form(desk.get("/schedule/new")), "name": "odd", "task": "add", "schedule": "30s", field: value}
        answer = desk.visitor.post("/schedules/preview", form)
        assert said in html.unescape(answer.text), answer.text
        if "Never" not in said:
            assert answer.status == 400 and 'action="/schedules/set"' not in answer.text
            assert desk.form(answer.text)["name"] == "odd", "what was typed is kept"
        with pytest.raises(KeyError):
            app.schedules.get("odd")
    app.close()


def test_forged_forms_are_refused(desk: Desk) -> None:
    for said in ("[]", "{}", "no", '{"relative": true}', '{"name": "x"}', '{"deadline": "x"}', '{"args": 5}'):
        answer = desk.post("/schedules/set", name="nightly", said=said)
        assert answer.status == 400, (said, answer.text)
    assert desk.post("/schedules/set", name="unknown", said='{"schedule": "5s"}').status == 404
    assert desk.post("/schedules/run", name="unknown").status == 404
    assert desk.visitor.get("/schedule?name=unknown").status == 404
    assert not desk.app.schedules.get("nightly").record.changed


def test_hostile_names_are_only_names(desk: Desk) -> None:
    app = desk.app
    for name in (HOSTILE, "--all", "a/b?c=d&e#f", "é\u202e\x1b[31m"):
        app.schedules.set(name, task=HOSTILE, schedule="30s", args=[HOSTILE])
        page = desk.get("/schedules")
        assert "<script>alert" not in page and "1337" not in page
        links = [html.unescape(each) for each in re.findall(r'href="(/schedule\?name=[^"]+)"', page)]
        assert len(links) == len(app.schedules.list())
        for link in links:
            assert "<script>alert" not in desk.get(link) + desk.get(link.replace("/schedule?", "/schedule/edit?"))
        desk.act("/schedules/disable", name=name)
        assert not app.schedules.get(name).entry.enabled
    assert "schedules run -- --all" in html.unescape(desk.get("/schedule?name=--all"))


def test_a_schedule_that_fails_leaves_the_others_readable(sqlite_url: str) -> None:
    app = make_app(sqlite_url)
    app.conf.beat_schedule = {**app.conf.beat_schedule, "broken": {"task": "add", "schedule": Broken()}}
    with served(app) as server:
        desk = Desk(app, server.url)
        page = desk.get("/schedules")
        assert "ZeroDivisionError: of my own" in page and "nightly" in page
        assert "ZeroDivisionError" in desk.get("/schedule?name=broken")
    app.close()


def test_an_app_without_a_store_says_what_to_do(rabbitmq_url: str) -> None:
    app = Umbel("bare", broker=rabbitmq_url)
    with served(app) as server:
        desk = Desk(app, server.url)
        assert "set result_backend" in desk.get("/schedules")
        assert desk.visitor.get("/schedule?name=x").status == 409
    app.close()


def test_viewers_have_no_buttons(sqlite_url: str) -> None:
    app = make_app(sqlite_url)
    accounts = read_accounts(f"vic:viewer:{hash_password('correct horse')}", "accounts")
    with served(app, Access(accounts=accounts, hosts=())) as server:
        visitor = Visitor(server.url)
        assert visitor.sign_in("vic", "correct horse").status == 303
        for path in ("/schedules", "/schedule?name=nightly"):
            page = visitor.get(path)
            assert page.status == 200 and "nightly" in page.text
            assert "/schedules/" not in page.text and "/schedule/" not in page.text, path
        assert visitor.get("/schedule/new").status == visitor.get("/schedule/edit?name=nightly").status == 403
        assert visitor.get("/schedule/backfill?name=nightly").status == 403
        for verb in ("preview", "set", "run", "enable", "disable", "reset", "remove", "backfill", "backfill/preview"):
            answer = visitor.post(
                f"/schedules/{verb}", {"token": page.token, "name": "nightly", "said": '{"args": []}'}
            )
            assert answer.status == 403, verb
        assert app.schedules.history("nightly") == () and not app.schedules.get("nightly").record.changed
    app.close()


def test_the_preview_is_what_set_makes(sqlite_url: str) -> None:
    app = make_app(sqlite_url)
    cases: list[dict[str, Any]] = [
        {"schedule": "0 4 * * mon"},
        {"schedule": "30 2 * * *", "timezone": "America/New_York", "jitter": 60.0},
        {"start": "2090-01-01T00:00:00+00:00"},
        {"timezone": "Asia/Tokyo"},
        {"enabled": False},
    ]
    for name in ("nightly", "mine"):
        for said in cases:
            given = {"task": "add", "schedule": "@daily", **said} if name == "mine" else said
            shown = app.schedules.preview(name, count=8, **given)
            assert len(shown) == 8 and all(a.at < b.at for a, b in pairwise(shown))
            app.schedules.set(name, **given)
            assert list(app.schedules.next(name, count=8)) == list(shown), (name, said)
    with pytest.raises(ImproperlyConfigured, match="cannot be stored"):
        app.schedules.preview("odd", task="add", schedule=Broken())
    with pytest.raises(KeyError):
        app.schedules.get("odd")
    assert app.schedules.preview("sun", task="add", schedule=solar("sunset", 41.9, 12.5))
    app.close()


# -- the week, the lateness, and what was missed -----------------------------------------------------------------


def week(page: str) -> dict[str, str]:
    """Return what the hours of the week say that have something."""
    cells = re.findall(r"<title>((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d\d): ([^<]*)</title>", page)
    assert len(cells) == 168
    return {hour: said for hour, said in cells if said != "0 to come"}


def test_the_week_hour_by_hour(desk: Desk) -> None:
    app = desk.app
    page = desk.get("/schedule?name=nightly")
    assert week(page) == {f"{day} 02": "1 to come" for day in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")}
    assert 'aria-label="Of the 168 hours of the week 7 have a time to come; 0 of the latest sendings' in page
    assert re.findall(r"<dt>(...)</dt><dd>02: 1 to come</dd>", page) == "Mon Tue Wed Thu Fri Sat Sun".split()
    app.schedules.set("tokyo", task="add", schedule="*/20 9-10 * * mon", timezone="Asia/Tokyo", args=[1, 2])
    assert week(desk.get("/schedule?name=tokyo")) == {"Mon 09": "3 to come", "Mon 10": "3 to come"}
    assert "<dd>09–10: 3 to come</dd>" in desk.get("/schedule?name=tokyo")
    app.schedules.set("pulse", task="add", schedule="1s")
    said = week(desk.get("/schedule?name=pulse"))
    assert len(said) == 168 and set(said.values()) == {"12 or more to come"}
    app.schedules.run("tokyo")
    app.schedules.disable("tokyo")
    (here,) = week(desk.get("/schedule?name=tokyo")).items()
    assert here[1] == "0 to come, 1 sent lately"


def test_how_late_beat_was(desk: Desk) -> None:
    name, table = "nightly", desk.app.schedules.table
    assert "in the middle" not in desk.get(f"/schedule?name={name}")
    line = table.line(name)
    record = line.record
    for number, late in enumerate((0.0, 2.0, 8.0)):
        due = datetime(2030, 1, 1 + number, tzinfo=UTC)
        record = fired(record, Fired(due.timestamp(), due.timestamp() + late, f"id-{number}"), due)
    assert table.store.put(line.key, encode(record), if_version=line.version) is not None
    desk.app.schedules.run(name)  # by hand is never late
    page = desk.get(f"/schedule?name={name}")
    assert 'aria-label="How late the latest 3 sendings were: 2.0 s in the middle, 8.0 s at most"' in page
    assert re.findall(r"<title>(2030[^<]*)</title>", page) == [
        "2030-01-01 00:00:00 UTC: 0 ms late",
        "2030-01-02 00:00:00 UTC: 2.0 s late",
        "2030-01-03 00:00:00 UTC: 8.0 s late",
    ]


def test_what_was_missed_is_sent_after_a_look(desk: Desk) -> None:
    app = desk.app
    page = desk.get("/schedule?name=nightly")
    assert "/schedule/backfill?name=nightly" in page
    form = desk.form(desk.get("/schedule/backfill?name=nightly"), "/schedules/backfill/preview")
    start = datetime.fromisoformat(form["start"])
    assert str(start.utcoffset()) == str(app.clock.now().astimezone(app.timezone).utcoffset())
    given = {"name": "nightly", "start": "2024-01-01", "end": "2024-01-20T23:00+01:00"}
    shown = desk.post("/schedules/backfill/preview", **given)
    assert shown.status == 200 and "20 tasks will be sent now" in shown.text and "and 10 between" in shown.text
    assert ">2024-01-01 02:30</time>" in shown.text and ">2024-01-20 02:30</time>" in shown.text
    line = "umbel -A shop schedules backfill nightly --from 2024-01-01T00:00:00+00:00 --to 2024-01-20T23:00:00+01:00"
    assert f"{line} --yes" in shown.text and app.broker.size("celery") == 0
    done = desk.act("/schedules/backfill", **desk.form(shown.text, "/schedules/backfill"))
    assert "nightly was sent for 20 times that had passed." in done and app.broker.size("celery") == 20
    assert "schedules.backfill" in desk.get("/audit")
    again = desk.post("/schedules/backfill/preview", **given)
    assert "Nothing would be sent" in again.text
    assert "20 tasks will be sent now" in desk.post("/schedules/backfill/preview", **given, again="1").text
    for fields, said in (
        ({"end": "2200-01-01"}, "has not come yet"),
        ({"start": "2020-01-01"}, "more than 1000 times"),
        ({"start": "soon"}, "is not a time such as"),
        ({"start": ""}, "Both moments are needed"),
        ({"end": "2020-01-01"}, "before the first"),
    ):
        for path in ("/schedules/backfill/preview", "/schedules/backfill"):
            refused = desk.post(path, **{**given, **fields})
            assert refused.status == 400 and said in html.unescape(refused.text), (path, fields)
    assert desk.post("/schedules/backfill", **{**given, "name": "nothing"}).status == 404
    app.schedules.set("nightly", args=[1])
    given["start"] = "2023-12-01"
    wrong = [desk.post("/schedules/backfill", **given), desk.post("/schedules/run", name="nightly")]
    assert [each.status for each in wrong] == [400, 409] and all("add() missing" in each.text for each in wrong)
    assert desk.visitor.post("/schedules/backfill", given).status == 403, "without a token"
    assert app.broker.size("celery") == 20
