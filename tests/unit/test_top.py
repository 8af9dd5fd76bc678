"""``umbel top`` without its screen: what is told in words, what replies and events mean, and the command line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from umbel import Umbel
from umbel.cli.main import cli
from umbel.cli.options import Target
from umbel.cli.top import command_line
from umbel.dashboard.live import Depth
from umbel.dashboard.roll import Seen
from umbel.dashboard.verdict import Note, Verdict
from umbel.history import Attempt, Happening, TaskRow
from umbel.top.crew import Made, Running, made_of, running_of
from umbel.top.flow import Flow
from umbel.top.source import About, Crewed, Frame, Item, Queue, Source
from umbel.top.telling import Line, heading, queue_cells, task_cells, telling, worker_cells
from umbel.why import Answer

TICK = {
    "waiting": 1200, "scheduled": 3, "done": 4.25, "failed": 0.0, "workers": 1, "lost": 2, "dead": 1, "problem": "",
}  # fmt: skip


def texts(lines: Sequence[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def frame(**given: Any) -> Frame:
    base: dict[str, Any] = {"tick": TICK, "running": 7, "workers": (), "queues": (), "tasks": ()}
    return Frame(**{**base, "verdict": Verdict("ok", "All is well."), **given})


def row(**given: Any) -> TaskRow:
    return TaskRow(**{"number": 1, "id": "4711", "name": "pay", "state": "SUCCESS", "at": 0.0, "heard": 0.0, **given})


def test_the_header_is_a_sentence_and_numbers() -> None:
    first, second = texts(heading(frame(), app="proj", paused=False))
    assert first == "● All is well.   proj"
    assert second == (
        "1,200 waiting · 3 scheduled · 7 running · 4.3/s finished · 0/s failed · 1 worker alive · 2 lost · 1 dead"
    )


def test_the_header_says_what_is_wrong_in_words_and_that_it_stands_still() -> None:
    bad = frame(
        verdict=Verdict("fail", "The broker cannot be reached.", [Note("w1 fell silent.")]),
        tick={**TICK, "problem": "no route\x1b[2J"},
    )
    first, _, third = texts(heading(bad, app="proj", paused=True))
    assert first.startswith("■ The broker cannot be reached.") and "PAUSED" in first
    assert third == r"no route\x1b[2J w1 fell silent."


def test_a_worker_shows_how_many_of_its_slots_are_busy() -> None:
    seen = Seen(name="w1@box", alive=True, processed=1234, load=(0.5, 1.0, 2.0))
    assert [text for text, _ in worker_cells(Crewed(seen=seen, made=Made("prefork", 4), busy=3))] == [
        "w1@box", "online", "3/4", "1,234", "0.50", "prefork",
    ]  # fmt: skip
    lost = Crewed(seen=Seen(name="w\x1b@box", alive=False), made=Made("", None), busy=3)
    assert [text for text, _ in worker_cells(lost)] == [r"w\x1b@box", "lost", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("paused", "readers", "ready", "state"),
    [(True, 0, 5, "paused"), (False, 0, 5, "unread"), (False, 0, 0, ""), (False, 2, 5, ""), (False, None, 5, "")],
)
def test_a_queue_says_when_nobody_takes_from_it(paused: bool, readers: int | None, ready: int, state: str) -> None:
    queue = Queue(depth=Depth(name="post", ready=ready), paused=paused, readers=readers, into=1.5, out=None)
    cells = [text for text, _ in queue_cells(queue)]
    known = "–" if readers is None else str(readers)
    assert cells == ["post", state, str(ready), "0", known, "1.5", "–", "0"]


def test_what_runs_is_timed_up_to_now_and_a_long_name_keeps_its_end() -> None:
    running = Item(id="4711", name="proj." + "a" * 60 + ".pay", state="RECEIVED", since=time.time() - 75)
    state, name, took, *_ = (text for text, _ in task_cells(running))
    assert state == "STARTED" and took.startswith("1m 1")
    assert len(name) == 44 and name.startswith("…a") and name.endswith(".pay")
    ended = Item(id="4711", name="", state="SUCCESS", runtime=0.25, worker="w1@box", at=0.0)
    assert [text for text, _ in task_cells(ended)] == ["SUCCESS", "–", "250 ms", "w1@box", "01-01 00:00:00", "4711"]


def test_a_task_is_told_from_why_to_its_timeline() -> None:
    told = [
        Happening(at=10.0, kind="sent", worker="client@box", detail="post"),
        Happening(at=10.5, kind="failed", worker="w1@box", detail="ValueError('no\x1b[2J money')"),
    ]
    about = About(
        id="4711",
        line="umbel -A proj tasks why 4711",
        row=row(
            state="FAILURE", args="(17,)", kwargs="{}", queue="post", exception="ValueError('no money')", retries=2
        ),
        stored={"state": "FAILURE", "result": "ValueError: no money", "done_at": None},
        answer=Answer(task_id="4711", verdict="dead", text="It is dead.", advice=["bury it"], unseen=["the rest"]),
        timeline=told,
        attempts=[Attempt(number=1, worker="w1@box", traceback="Traceback\n  \x1b[5mline")],
        troubles=["the result is gone"],
    )
    lines = texts(list(telling(about)))
    assert lines[:2] == ["pay", "FAILURE"]
    assert lines[2:7] == [
        "", "why? It is dead.", "  → bury it", "  (not known: the rest)", "  $ umbel -A proj tasks why 4711",
    ]  # fmt: skip
    assert "args     (17,)" in lines and not any(line.startswith("kwargs") for line in lines)
    assert "error    ValueError: no money" in lines and "retries  2" in lines
    assert r"  \x1b[5mline" in lines
    assert any(r"no\x1b[2J money" in line and "+500 ms" in line for line in lines)
    assert lines[-1] == "not known: the result is gone"


def test_of_a_task_that_only_its_worker_told_of_the_arguments_are_seen() -> None:
    running = Running(id="4711", name="wait", worker="w1@box", since=1.0, args="(1,)", kwargs="{'a': 2}")
    lines = texts(list(telling(About(id="4711", line="", running=running))))
    assert lines[:2] == ["wait", "PENDING"]
    assert "args     (1,)" in lines and "kwargs   {'a': 2}" in lines


def test_replies_are_believed_no_further_than_they_make_sense() -> None:
    assert made_of({"pool": {"implementation": "umbel.worker:threads", "max-concurrency": 8}}) == Made("threads", 8)
    celery = {"pool": {"implementation": "celery.concurrency.prefork:TaskPool", "max-concurrency": 2}}
    assert made_of(celery) == Made("prefork", 2)
    assert made_of({"pool": ["?"]}) == Made("", None)
    strange = running_of("w1@box", {"id": 4, "time_start": "soon", "args": None})
    assert strange == Running(id="4", name="", worker="w1@box", since=None, args="", kwargs="")


def test_rates_are_counted_by_queue_and_unknown_where_nobody_told(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Umbel("rated", broker="memory://", set_as_current=False)
    flow = Flow(app)
    now = time.time()
    for number in range(30):
        flow.heard({"type": "task-sent", "uuid": f"{number}", "queue": "post", "hostname": "c", "timestamp": now})
    flow.heard({"type": "task-started", "uuid": "1", "hostname": "w", "timestamp": now})
    flow.heard({"type": "task-sent", "uuid": "x", "queue": ["?"], "hostname": "c", "timestamp": "?"})
    # The bucket that is being filled does not count yet.
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert flow.per_second("post") == (1.0, pytest.approx(1 / 30))
    assert flow.per_second("celery") == (None, None)
    app.close()


def test_where_no_history_can_be_kept_events_alone_are_shown(sqlite_url: str) -> None:
    app = Umbel("unkept", broker=sqlite_url, set_as_current=False)
    app.conf.history_file = "/proc/nowhere/kept.db"
    source = Source(app)
    source.recording.start()
    source.live.event({"type": "task-received", "uuid": "1", "name": "add", "hostname": "w1@box", "timestamp": 1.0})
    found = source.frame()
    assert [(item.id, item.name, item.state) for item in found.tasks] == [("1", "add", "RECEIVED")]
    assert found.wrong.startswith("Nothing is recorded, so there is no filter: ")
    assert source.frame("state:failed").tasks == []
    assert source.about("1").troubles == [] and "Not sent: neither" in source.retry("1").text
    source.stop()
    app.close()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"app_name": "proj"}, ["umbel", "-A", "proj"]),
        ({"broker": "redis://:hush@h/0"}, ["umbel", "-b", "redis://:**@h/0"]),
        ({"app_name": "proj", "config": "conf"}, ["umbel", "-A", "proj", "--config", "conf"]),
        ({}, ["umbel", "-A", "shop"]),
    ],
)
def test_command_lines_reach_the_same_app_and_show_no_password(given: dict[str, str], line: list[str]) -> None:
    target = Target()
    for name, value in given.items():
        setattr(target, name, value)
    app = Umbel("shop", broker="memory://", set_as_current=False)
    assert command_line(target, app) == line
    app.close()


def test_it_needs_a_terminal(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["-b", f"sqlite:///{tmp_path}/q.db", "top", "--every", "2"])
    assert result.exit_code == 2 and "umbel events --dump" in result.stderr
    assert CliRunner().invoke(cli, ["top", "--every", "0"]).exit_code == 2
