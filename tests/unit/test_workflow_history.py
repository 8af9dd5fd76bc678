"""Which tasks the history puts together, in whatever order it hears of them; how workflows are found and forgotten."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.events.ahead import MOST, steps_ahead
from umbel.history import History, Workflow, kinship, workflows
from umbel.history.kinship import ahead_text

START = 1_900_000_000.0


def told(kind: str, id: str, at: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {"type": f"task-{kind}", "uuid": id, "timestamp": START + at, "hostname": "w1@box", **fields}


def received(id: str, root: str, at: float = 0.0, **fields: Any) -> dict[str, Any]:
    return told("received", id, at, root_id=root, name=f"n.{id}", args="(1,)", kwargs="{}", **fields)


def opened(path: Path, **options: Any) -> History:
    return History(str(path), now=lambda: START, **options)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    kept = opened(tmp_path / "shop.history.db")
    yield kept
    kept.close()


def known(history: History, id: str) -> Workflow:
    found = history.workflow(id)
    assert found is not None
    return found


BODY = {"id": "body", "name": "n.body", "group": "g"}
#: A chord of two chains and a task, sent by a client: each chain has a root of its own, as Celery does it.
CHORD = [
    received("a1", "a1", 0.0, ahead=[{"id": "a2", "name": "n.a2", "group": "g"}, BODY]),
    received("b1", "b1", 0.1, ahead=[{"id": "b2", "name": "n.b2", "group": "g"}, BODY]),
    received("c", "c", 0.2, group_id="g", ahead=[BODY]),
    received("a2", "a1", 1.0, parent_id="a1", group_id="g", ahead=[BODY]),
    received("b2", "b1", 1.1, parent_id="b1", group_id="g", ahead=[BODY]),
    received("body", "b1", 2.0, parent_id="b2"),
    received("child", "b1", 3.0, parent_id="body"),
    # Strangers.
    received("alone", "alone", 0.5),
    received("x", "x", 0.6),
    received("y", "x", 0.7, parent_id="x"),
]


@given(st.permutations(CHORD), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_the_same_tasks_belong_together_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]], batch: int
) -> None:
    history = opened(tmp_path_factory.mktemp("kin") / "h.db")
    try:
        for at in range(0, len(events), batch):
            history.record(events[at : at + batch])
        for ids in (("a1", "b1", "c", "a2", "b2", "body", "child"), ("x", "y")):
            found = {id: known(history, id).number for id in ids}
            assert len(set(found.values())) == 1, found
        assert history.workflow("alone") is None
        (first, second) = sorted(history.workflows().workflows, key=lambda each: -each.total)
        assert (first.total, second.total) == (7, 2)
        assert (first.first, first.latest) == (START, START + 3.0)
    finally:
        history.close()


def test_a_list_is_read_in_pages_and_searched(history: History) -> None:
    for number in range(25):
        state = {"runtime": 1.0} if number % 5 else {"exception": "ValueError('no')"}
        kind = "succeeded" if number % 5 else "failed"
        history.record([
            received(f"r{number}", f"r{number}", number),
            received(f"c{number}", f"r{number}", number, parent_id=f"r{number}"),
            told(kind, f"c{number}", number + 5.0, **state),
            told("succeeded", f"r{number}", number + 1.0, runtime=0.5),
        ])  # fmt: skip
    seen = []
    after = 0
    while True:
        page = history.workflows(after=after, limit=10)
        seen += page.workflows
        if not (after := page.next):
            break
    assert [each.id for each in seen] == [f"r{number}" for number in reversed(range(25))]
    assert seen[0].name == "n.r24" and seen[0].states == {"SUCCESS": 2} and seen[0].duration(0.0) == 5.0
    failed = history.workflows("state:failed", limit=3)
    assert [each.id for each in failed.workflows] == ["r20", "r15", "r10"] and not failed.cut
    assert [each.id for each in history.workflows("state:failed", after=failed.next).workflows] == ["r5", "r0"]
    assert [each.id for each in history.workflows("name:n.c7").workflows] == ["r7"]
    assert [row.id for row in history.tasks("workflow:r7").tasks] == ["c7", "r7"]
    assert [row.id for row in history.tasks("workflow:c7 state:success").tasks] == ["c7", "r7"]
    assert history.tasks("workflow:nobody").tasks == []


def test_a_group_is_searched_in_its_workflow(history: History) -> None:
    history.record(CHORD)
    assert {row.id for row in history.tasks("workflow:g group:g").tasks} == {"c", "a2", "b2"}
    assert known(history, "g").id == "g"


def test_no_page_reads_the_table(history: History) -> None:
    history.record(CHORD)
    connection = sqlite3.connect(history.path)
    try:
        for statement, values in (
            (workflows._PAGE, (9, 9)), (workflows._COUNTS, ("[1]",)), (workflows._MEMBERS, (1, 9)),
            (workflows._BY_TASK, ("c",)), (workflows._BY_KEY, ("g",)), (kinship._KIN, ("[]",)),
            (kinship._ROOTS, ("[]",)), (kinship._EMPTY, ("[1]",)),
        ):  # fmt: skip
            plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values))
            assert "SCAN tasks" not in plan and "SCAN kin" not in plan, plan
    finally:
        connection.close()


def test_a_workflow_is_forgotten_with_its_last_task(tmp_path: Path) -> None:
    history = opened(tmp_path / "h.db", max_tasks=2)
    try:
        history.record(CHORD)
        while history.prune():
            pass
        (left,) = history.workflows().workflows
        assert left.id == "x" and history.workflow("g") is None
    finally:
        history.close()


def test_a_history_of_schema_1_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    history = opened(path)
    history.record([event for event in CHORD if "ahead" not in event and "group_id" not in event])
    history.close()
    connection = sqlite3.connect(path)
    for statement in (
        "DROP INDEX tasks_workflow", "DROP TABLE kin", "DROP TABLE workflows", "ALTER TABLE tasks DROP COLUMN workflow",
        "ALTER TABLE tasks DROP COLUMN replay", "ALTER TABLE tasks DROP COLUMN ahead",
        "ALTER TABLE tasks DROP COLUMN group_id", "PRAGMA user_version = 1",
    ):  # fmt: skip
        connection.execute(statement)
    connection.commit()
    connection.close()
    history = opened(path)
    try:
        assert known(history, "y").total == 2 and history.workflow("alone") is None
        history.record([received("z", "x", 9.0, parent_id="y"), *CHORD])
        assert known(history, "x").total == 3 and known(history, "g").total == 7
    finally:
        history.close()


def test_what_strangers_say_comes_next() -> None:
    for nonsense in (None, 5, "x", {}, [5, None, "x", {"id": 5}, {"id": ""}, {"id": "x" * 300}, {"name": "x"}]):
        assert ahead_text(nonsense) is None
    text = ahead_text([{"id": "\ud800", "name": 5, "group": []}, *({"id": str(n)} for n in range(99))])
    assert text is not None and len(json.loads(text)) <= 20 and json.loads(text)[0] == {"id": "?", "name": "5"}
    odd = [5, None, {"options": 5}, {"options": {"task_id": 5}}, {"subtask_type": "chain", "kwargs": {"tasks": 5}}]
    assert steps_ahead(odd, 5) == [] and steps_ahead("x", "x") == []
    endless: dict[str, Any] = {"task": "t", "options": {"task_id": "1"}}
    endless["options"]["chord"] = endless
    assert len(steps_ahead(None, endless)) == MOST


def test_the_steps_of_a_message() -> None:
    def step(name: str, **options: Any) -> dict[str, Any]:
        return {"task": name, "options": {"task_id": name, **options}, "kwargs": {}, "subtask_type": None}

    header = {**step("g"), "subtask_type": "group", "kwargs": {"tasks": [step("a"), step("b")]}}
    chord = {"task": "celery.chord", "subtask_type": "chord", "kwargs": {"header": header, "body": step("sum")}}
    assert [(each["id"], each["name"]) for each in steps_ahead([step("last"), chord, step("next")], None)] == [
        ("next", "next"), ("g", "group of 2"), ("sum", "sum"), ("last", "last"),
    ]  # fmt: skip
    assert steps_ahead([step("end", group_id="g", chord=step("sum"))], None) == [
        {"id": "end", "name": "end", "group": "g"}, {"id": "sum", "name": "sum"},
    ]  # fmt: skip
