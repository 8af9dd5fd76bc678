"""A worker process dies before or after a settle of a chord's, at every one of them: the chord ends, and ends once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, worker
from umbel import Umbel, chord, signature
from umbel.interfaces import Place

TASKS = """
import json, os
from umbel.testing.faults import FaultyUmbel

app = FaultyUmbel("crashes", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.update(lease_ttl=3.0, lease_heartbeat=1.0, lease_sweep=1.0, redelivery_backoff=0.05)

def log(*what):
    with open(os.environ["LOG"], "a") as file:
        file.write(json.dumps([*what, os.getpid()]) + "\\n")

@app.task(name="member")
def member(x):
    return x

@app.task(name="fail")
def fail():
    raise ValueError("no")

@app.task(name="body")
def body(values, name):
    log(name, values)
    return values

@app.task(name="told")
def told(task_id, name):
    log(name, "told")
"""
POINTS = [f"settle:{when}:{call}:kill" for call in (1, 2, 3, 4, 5) for when in ("before", "after")]
SPLIT = [
    f"{method}:{when}:{call}:kill" for method in ("store", "settle") for call in (1, 3) for when in ("before", "after")
]


def end_chords(folder: Path, url: str, results: str, fault: str) -> dict[str, list[Any]]:
    """Run two chords, one of which fails in an inner one, past the fault; return what was logged by who lived on."""
    log, marks = folder / "log", folder / "marks"
    marks.mkdir()
    (folder / "crash_tasks.py").write_text(TASKS)
    env = environment(URL=url, RESULTS=results, LOG=str(log), UMBEL_FAULT=fault, UMBEL_FAULT_MARKS=str(marks))

    def sig(name: str, *args: Any) -> Any:
        return signature(name, args=args, app=app)

    def told(name: str, body: Any) -> Any:
        return body.on_error(sig("told", name))

    with Umbel("client", broker=url, backend=results, set_as_current=False) as app:
        good = chord([sig("member", n) for n in range(4)], told("good", sig("body", "good")), app=app)
        inner = chord([sig("member", 1), sig("fail")], told("inner", sig("body", "inner")), app=app)
        bad = chord([inner, sig("member", 2)], told("bad", sig("body", "bad")), app=app)
        ends = [good.apply_async(), bad.apply_async()]
        with worker("crash_tasks", "-c", "2", "-l", "info", cwd=folder, env=env):
            assert ends[0].get(timeout=40) == [0, 1, 2, 3]
            error = app.AsyncResult(ends[1].id).get(timeout=40, propagate=False)
            places = (Place.READY, Place.SCHEDULED, Place.HELD)
            eventually(lambda: not any(app.broker.size("celery", place) for place in places))
    assert type(error).__name__ == "ChordError"
    dead = {int(mark.read_text()) for mark in marks.iterdir()}
    assert dead, f"nobody came to {fault}"
    found: dict[str, list[Any]] = {}
    for name, what, pid in map(json.loads, log.read_text().splitlines()):
        if pid not in dead:
            found.setdefault(name, []).append(what)
    return found


@pytest.mark.parametrize("store", ["sqlite", "redis"])
@pytest.mark.parametrize("fault", POINTS)
def test_in_one_store_each_chord_ends_once(
    fault: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{store}_url")
    ended = end_chords(tmp_path, url, url, fault)
    # What a process that died had run counts too, if it was settled before: then nobody runs it again.
    assert {name: what[:1] for name, what in ended.items()}.items() <= {
        "good": [[0, 1, 2, 3]], "inner": ["told"], "bad": ["told"],
    }.items()  # fmt: skip
    assert all(len(what) == 1 for what in ended.values()), ended


@pytest.mark.parametrize("stores", ["redis sqlite", "rabbitmq redis"])
@pytest.mark.parametrize("fault", SPLIT)
def test_in_two_stores_each_chord_ends(fault: str, stores: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url, results = (request.getfixturevalue(f"{store}_url") for store in stores.split())
    ended = end_chords(tmp_path, url, results, fault)
    expected = {"good": [0, 1, 2, 3], "inner": "told", "bad": "told"}
    assert all(each == expected[name] for name, what in ended.items() for each in what)


TWICE = """

@app.task(name="varied")
def varied(number):
    log("ran", number)
    with open(os.environ["LOG"]) as file:
        return [number, sum(json.loads(line)[:2] == ["ran", number] for line in file)]
"""


@pytest.mark.parametrize("stores", ["redis redis", "redis sqlite", "sqlite sqlite", "rabbitmq redis"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_member_that_ran_twice_counts_once_with_its_first_value(
    when: str, stores: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """F25. It gives another value the second time; where results are apart, its part was counted the first time."""
    url, results = (request.getfixturevalue(f"{store}_url") for store in stores.split())
    marks, log = tmp_path / "marks", tmp_path / "log"
    marks.mkdir()
    (tmp_path / "crash_tasks.py").write_text(TASKS + TWICE)
    fault = f"settle:{when}:2:kill"
    env = environment(URL=url, RESULTS=results, LOG=str(log), UMBEL_FAULT=fault, UMBEL_FAULT_MARKS=str(marks))
    with Umbel("client", broker=url, backend=results, set_as_current=False) as app:
        members = [signature("varied", args=(number,), app=app) for number in range(10)]
        result = chord(members, signature("body", args=("twice",), app=app), app=app).apply_async()
        with worker("crash_tasks", "-c", "2", "-l", "info", cwd=tmp_path, env=env):
            values = app.AsyncResult(result.id).get(timeout=40)
            stored = [app.AsyncResult(member.id).get(timeout=10) for member in result.parent.results]
    assert list(marks.iterdir()), f"nobody came to {fault}"
    assert [number for number, _ in values] == list(range(10))
    assert values == stored
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ran = Counter(line[1] for line in lines if line[0] == "ran")
    if "redis" in results and len(set(stores.split())) == 2 and when == "before":
        # Counted, and then killed before the message was acknowledged.
        assert any(ran[number] > 1 and run == 1 for number, run in values), (ran, values)
    # Nobody has called the body of the chord a second time, but whoever was killed in it.
    dead = {int(mark.read_text()) for mark in marks.iterdir()}
    assert sum(line[0] == "twice" and line[-1] not in dead for line in lines) <= 1
