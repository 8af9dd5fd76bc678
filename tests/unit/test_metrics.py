"""What becomes of an event, a backlog and a name, before anybody scrapes it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metrics_support import Counted
from umbel import Umbel
from umbel.brokers.memory import MemoryBroker
from umbel.exceptions import ImproperlyConfigured, OperationalError
from umbel.interfaces import Place
from umbel.metrics import tally as tallying
from umbel.metrics.exporter import Exporter
from umbel.metrics.labels import OTHER, Labels
from umbel.metrics.page import worker_page
from umbel.metrics.scale import answer, question_of
from umbel.metrics.survey import QueueLook, Survey
from umbel.metrics.text import family

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def app() -> Iterator[Umbel]:
    app = Umbel(
        "shop", broker="memory://", task_queues={"celery": {}, "mail": {"exchange": "post", "routing_key": "m"}}
    )
    app.task(name="shop.add")(lambda x: x)
    with app:
        # Other tests of this process have left theirs.
        for place in (Place.READY, Place.SCHEDULED):
            app.broker.purge("celery", place)
        yield app


def test_a_task_is_counted_from_its_sending_to_its_end() -> None:
    seen = Counted()
    seen.tell("task-sent", 100.0, name="shop.add", queue="mail", hostname="gen7@web")
    seen.tell("task-received", 101.0, name="shop.add")
    seen.tell("task-started", 103.0)
    seen.tell("task-succeeded", 105.0, runtime=1.5)
    for state in ("sent", "received", "started", "succeeded"):
        assert seen.value("umbel_tasks_total", name="shop.add", queue="mail", state=state) == 1
    assert seen.value("umbel_task_wait_seconds_sum", name="shop.add", queue="mail") == 3
    assert seen.value("umbel_task_prefetch_seconds_sum", name="shop.add", queue="mail") == 2
    assert seen.value("umbel_task_run_seconds_sum", name="shop.add", queue="mail") == 1.5
    assert seen.tally.mean_run(["mail"]) == 1.5
    assert seen.tally.mean_run(["celery"]) is None


def test_a_wait_begins_when_the_task_is_due() -> None:
    seen = Counted()
    seen.tell("task-sent", 100.0, name="shop.add", queue="celery", eta="1970-01-01T00:10:00+00:00")
    seen.tell("task-started", 601.0)
    assert seen.value("umbel_task_wait_seconds_sum", name="shop.add", queue="celery") == 1
    assert seen.tally.sent_at("1") == 600


@pytest.mark.parametrize("told_late", [True, False])
def test_the_run_of_what_fails_is_measured_and_a_retry_waits_anew(told_late: bool) -> None:
    seen = Counted()
    again = ("task-sent", 14.0, {"name": "shop.add", "queue": "celery"})
    seen.tell("task-sent", 10.0, name="shop.add", queue="celery")
    seen.tell("task-started", 12.0)
    # The event of the second message is sent by itself, and may overtake that of the attempt that asked for it.
    if not told_late:
        seen.tell(again[0], again[1], **again[2])
    seen.tell("task-retried", 14.5)
    if told_late:
        seen.tell(again[0], again[1], **again[2])
    seen.tell("task-started", 15.0)
    seen.tell("task-failed", 18.0, exception="ValueError('no')")
    assert seen.value("umbel_task_run_seconds_sum", name="shop.add", queue="celery") == 2.5 + 3
    assert seen.value("umbel_task_wait_seconds_sum", name="shop.add", queue="celery") == 2 + 1


def test_the_queue_of_a_worker_s_event_is_found_by_its_routing_key() -> None:
    seen = Counted()
    seen.tell("task-received", name="shop.add", exchange="post", routing_key="m")
    assert seen.value("umbel_tasks_total", name="shop.add", queue="mail", state="received") == 1


def test_what_never_ends_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallying, "KEPT", 100)
    seen = Counted()
    for number in range(1000):
        seen.tell("task-sent", float(number), name="shop.add", queue="celery", uuid=f"u{number}")
    assert len(seen.tally._seen) == 100
    assert (seen.tally.sent_at("u899"), seen.tally.sent_at("u900")) == (None, 900)


def test_what_makes_no_sense_in_an_event_is_not_said() -> None:
    seen = Counted()
    for nonsense in (None, [], {}, "x", float("nan"), float("inf"), -1, 10**400, True):
        for name in ("task-sent", "task-received", "task-started", "task-succeeded", "task-failed", "worker-heartbeat"):
            seen.tally.event(
                {"type": name, "uuid": nonsense, "name": nonsense, "queue": nonsense, "timestamp": nonsense}
                | {"hostname": nonsense, "runtime": nonsense, "eta": nonsense, "exception": nonsense}
                | {"exchange": nonsense, "active": nonsense, "freq": nonsense}
            )
    seen.tally.event({"type": "task-party", "uuid": "1"})
    seen.tally.event({})
    assert seen.value("umbel_tasks_total", name=OTHER, queue=OTHER, state="sent") is not None
    assert seen.value("umbel_tasks_total", name=OTHER, queue=OTHER, state="party") is None


def test_names_may_be_learned_but_only_some() -> None:
    labels = Labels(["a"], limit=2)
    assert [labels.learn(name) for name in ("a", "b", "c", "d", "x\ny", "", None, "e" * 999)] == [
        "a", "b", "c", OTHER, OTHER, OTHER, OTHER, OTHER,
    ]  # fmt: skip
    labels.forget("b")
    assert labels.of("b") == OTHER and labels.learn("d") == "d"


@pytest.mark.parametrize(
    ("kind", "name", "labels"),
    [
        (
            "celery-exporter",
            "celery_task_succeeded_total",
            {"name": "shop.add", "hostname": "box", "queue_name": "mail"},
        ),
        ("celery-exporter", "celery_task_runtime_count", {"name": "shop.add", "hostname": "box", "queue_name": "mail"}),
        (
            "celery-exporter",
            "celery_task_sent_total",
            {"name": "shop.add", "hostname": "generic", "queue_name": "mail"},
        ),
        ("flower", "flower_events_total", {"worker": "w1@box", "type": "task-succeeded", "task": "shop.add"}),
        ("flower", "flower_task_runtime_seconds_count", {"worker": "w1@box", "task": "shop.add"}),
    ],
)
def test_other_programs_names(kind: str, name: str, labels: dict[str, str]) -> None:
    seen = Counted(kind)
    seen.tell("task-sent", 1.0, name="shop.add", queue="mail", hostname="gen1@web")
    seen.tell("task-received", 2.0, name="shop.add")
    seen.tell("task-started", 3.0)
    seen.tell("task-succeeded", 4.0, runtime=1.0)
    assert seen.value(name, **labels) == 1


def test_the_series_of_a_worker_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Counted("flower")
    seen.tell("worker-heartbeat", active=3, freq=2.0)
    seen.tell("task-received", 2.0, name="shop.add")
    (node,) = seen.tally.nodes()
    assert node.up and node.active == 3
    labels = {"worker": "w1@box", "type": "task-received", "task": "shop.add"}
    assert seen.value("flower_events_total", **labels) == 1
    node.heard_at = time.monotonic() - tallying.FORGOTTEN - 1
    assert seen.tally.nodes() == []
    assert seen.value("flower_events_total", **labels) == 1, "its tasks are heard of"
    monkeypatch.setattr(tallying, "FORGOTTEN", -1.0)
    assert seen.tally.nodes() == []
    assert seen.value("flower_events_total", **labels) is None


def test_workers_that_send_no_heartbeats_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Counted("flower")
    for number in range(1200):
        seen.tell("task-started", name="shop.add", hostname=f"w{number}@box")
    labels = {"worker": "new@box", "type": "task-started", "task": "shop.add"}
    seen.tell("task-started", name="shop.add", hostname="new@box")
    assert seen.value("flower_events_total", **labels) is None
    with monkeypatch.context() as later:
        later.setattr(tallying, "FORGOTTEN", -1.0)
        seen.tally.nodes()
    seen.tell("task-started", name="shop.add", hostname="new@box")
    assert seen.value("flower_events_total", **labels) == 1


def test_a_series_stays_as_long_as_one_worker_of_its_host_does() -> None:
    seen = Counted("celery-exporter")
    for worker in ("w1@box", "w2@box"):
        seen.tell("task-started", name="shop.add", queue="mail", hostname=worker)
    labels = {"name": "shop.add", "hostname": "box", "queue_name": "mail"}
    seen.names.forget("w1@box")
    assert seen.value("celery_task_started_total", **labels) == 2
    seen.names.forget("w2@box")
    assert seen.value("celery_task_started_total", **labels) is None


def test_a_silent_worker_is_down_and_one_that_left_is_not_missed(app: Umbel) -> None:
    seen = Counted()
    seen.names.attach(seen.tally, Survey(app, ["celery"], seen.tally.sent_at))
    seen.tell("worker-heartbeat", active=2, freq=2.0)
    assert seen.value("umbel_worker_up", worker="w1@box") == 1
    assert seen.value("umbel_worker_running", worker="w1@box") == 2
    seen.tally.nodes()[0].heard_at -= tallying.SILENT + 1
    assert seen.value("umbel_worker_up", worker="w1@box") == 0
    assert seen.value("umbel_worker_running", worker="w1@box") is None
    seen.tell("worker-offline")
    assert seen.value("umbel_worker_up", worker="w1@box") is None


# -- the broker --------------------------------------------------------------------------------------------------


def test_a_queue_that_does_not_move_grows_old(app: Umbel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.metrics.survey.FRESH", 0.0)
    sent: dict[str, float] = {}
    survey = Survey(app, ["celery"], sent.get)
    assert survey.look() == [
        QueueLook(name="celery", ready=0, unacked=0, scheduled=0, dead=0, oldest=0.0),
    ]
    first = app.send_task("shop.add", (1,))
    app.send_task("shop.add", (1,))
    app.send_task("shop.add", (1,), countdown=60)
    (look,) = survey.look() or ()
    assert (look.ready, look.scheduled) == (2, 1)
    time.sleep(0.05)
    (look,) = survey.look() or ()
    assert look.oldest is not None and 0.05 <= look.oldest < 30
    sent[first.id] = time.time() - 100
    (look,) = survey.look() or ()
    assert look.oldest is not None and 100 <= look.oldest < 130


def test_a_broker_that_is_away_leaves_a_gap(app: Umbel, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = Exporter(app)
    assert b"umbel_broker_up 1.0" in exporter.page()[1]
    assert b'umbel_queue_ready{queue="celery"} 0.0' in exporter.page()[1]

    def away(*_: Any) -> int:
        raise OperationalError("away")

    monkeypatch.setattr("umbel.metrics.survey.FRESH", 0.0)
    monkeypatch.setattr(MemoryBroker, "size", away)
    page = exporter.page()[1]
    assert b"umbel_broker_up 0.0" in page and b"umbel_queue_ready{" not in page
    assert exporter.scale({}) is None


def test_many_scrapes_are_one_look(app: Umbel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.metrics.survey.FRESH", 1000.0)
    exporter = Exporter(app)
    exporter.page()
    app.send_task("shop.add", (1,))
    assert b'umbel_queue_ready{queue="celery"} 0.0' in exporter.page()[1]


def test_a_set_of_names_that_does_not_exist(app: Umbel) -> None:
    with pytest.raises(ImproperlyConfigured, match="did you mean 'flower'"):
        Exporter(app, sets=("flowers",))


def test_the_format_is_what_the_scraper_asks_for(app: Umbel) -> None:
    exporter = Exporter(app)
    assert exporter.page("text/plain")[0].startswith("text/plain")
    kind, page = exporter.page("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text") and page.endswith(b"# EOF\n")


# -- autoscalers -------------------------------------------------------------------------------------------------

LOOKS = [
    QueueLook(name="a", ready=100, unacked=20, scheduled=3, dead=0, oldest=7.0),
    QueueLook(name="b", ready=1, unacked=None, scheduled=None, dead=0, oldest=None),
]


@pytest.mark.parametrize(
    ("query", "mean", "wanted"),
    [
        ({"queue": ["a"], "target": ["60"]}, 3.0, 6),  # 120 tasks of 3 s in a minute
        ({"queue": ["a"], "target": ["60"], "concurrency": ["4"]}, 3.0, 2),
        ({"queue": ["a"], "target": ["60"]}, None, 2),
        ({"queue": ["a"], "target": ["60"], "runtime": ["30"]}, 3.0, 60),
        ({"queue": ["b"], "target": ["3600"]}, 0.1, 1),  # as long as anything waits
        ({}, 1.0, 3),
    ],
)
def test_how_many_workers_a_backlog_needs(query: dict[str, list[str]], mean: float | None, wanted: int) -> None:
    assert answer(question_of(query, ["a", "b"]), LOOKS, mean)["desired_workers"] == wanted


def test_nothing_to_do_needs_nobody() -> None:
    idle = [QueueLook(name="a", ready=0, unacked=0, scheduled=9, dead=0, oldest=0.0)]
    found = answer(question_of({}, ["a"]), idle, 5.0)
    assert (found["desired_workers"], found["backlog"], found["scheduled"]) == (0, 0, 9)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"queue": ["c"]}, "unknown queue 'c'; there are a, b"),
        ({"target": ["0"]}, "target=0"),
        ({"target": ["soon"]}, "target=soon"),
        ({"runtime": ["nan"]}, "runtime=nan"),
        ({"concurrency": ["inf"]}, "concurrency=inf"),
        ({"goal": ["1"]}, "unknown parameter 'goal'"),
    ],
)
def test_a_bad_question_says_what_is_wrong(query: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        question_of(query, ["a", "b"])


# -- what is shipped ---------------------------------------------------------------------------------------------


def test_label_values_cannot_break_the_text_format() -> None:
    text = family("m", "gauge", "Doc.", [({"a": 'x"\n\\\ud800'}, 1)])
    assert text.splitlines()[2:] == ['m{a="x\\"\\n\\\\\\\\ud800"} 1']


def test_the_alert_of_a_missing_exporter_looks_for_what_no_worker_serves(app: Umbel) -> None:
    rules = (ROOT / "deploy/prometheus/umbel.rules.yml").read_text()
    (name,) = re.findall(r"absent\((\w+)\)", rules)
    assert f"\n{name} ".encode() in Exporter(app).page()[1]
    desk = SimpleNamespace(
        hostname="w@box", app=app, size=1, started_at=0.0, keeper=None, holders=list, totals=lambda: {"shop.add": 1}
    )
    page = worker_page(desk, ready=True)
    assert "umbel_build_info" in page and not re.search(rf"^{name}\b", page, re.MULTILINE)


def test_the_board_is_what_grafana_imports() -> None:
    board = json.loads((ROOT / "deploy/grafana/umbel.json").read_text())
    assert board["schemaVersion"] >= 39 and board["uid"] and board["title"] == "Umbel"
    names = {variable["name"] for variable in board["templating"]["list"]}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} and panel["targets"]
        for target in panel["targets"]:
            used = {word.strip('"') for word in target["expr"].split("$")[1:]}
            assert all(any(word.startswith((name, "__rate_interval")) for name in names) for word in used)
