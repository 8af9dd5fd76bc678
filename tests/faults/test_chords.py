"""Processes are killed while chords run: each body is called, with the value of every member once and in order."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import (
    FaultSite,
    Kill,
    check_repeats,
    check_traces,
    children,
    eventually,
    kill_worker,
    left_unsettled,
    wait_for,
)
from umbel import chord, signature

pytestmark = pytest.mark.faults

CHORDS = 60
MEMBERS = 20
SECONDS = 0.01
EVERY = 0.2
WORKER_EVERY = 10  # of so many kills one is of a whole worker
TASKS = """
@app.task(bind=True, name="gathered")
def gathered(self, values):
    note("start", self)
    note("end", self)
    return values


@app.task(bind=True, name="unsteady")
def unsteady(self, number):
    note("start", self)
    time.sleep(0.02)
    note("end", self)
    return [number, os.getpid()]
"""


def make(request: pytest.FixtureRequest, stores: str, folder: Path) -> FaultSite:
    """Return a site with its messages in one store, and its results in it or in another."""
    broker, _, backend = stores.partition("+")
    urls = [request.getfixturevalue(f"{name}_url") for name in (broker, backend or broker)]
    return FaultSite(folder, *urls, tasks=TASKS)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    with make(request, request.param, tmp_path).closing() as made:
        yield made


def strike(site: FaultSite, chance: random.Random, bodies: list[Any], *, timeout: float) -> list[Kill]:
    """Kill a process of a worker every now and then, or all of it, until every body has its result."""
    present = [site.start("-c", "2") for _ in range(2)]
    kills: list[Kill] = []
    deadline = time.monotonic() + timeout
    while not all(body.ready() for body in bodies):
        assert time.monotonic() < deadline, "the chords never ended"
        time.sleep(chance.uniform(0.5, 1.5) * EVERY)
        running = [worker for worker in present if children(worker.process.pid)]
        if not running:
            continue
        victim = chance.choice(running)
        if len(kills) % WORKER_EVERY == WORKER_EVERY - 1:
            kills.append(kill_worker(victim))
            present[present.index(victim)] = site.start("-c", "2")
            continue
        gone = {pid for _, pids in kills for pid in pids}
        if alive := [pid for pid in children(victim.process.pid) if pid not in gone]:
            pid = chance.choice(alive)
            kills.append((time.monotonic_ns(), {pid}))
            os.kill(pid, signal.SIGKILL)
    for worker in present:
        # Whoever is only starting does not know yet what a signal to stop means.
        worker.expect("ready.")
    return kills


@pytest.mark.parametrize("site", ["sqlite", "redis", "redis+sqlite"], indirect=True)
def test_every_chord_ends_once(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F24. Each body has the values of its twenty members in order; in one store it is called once."""
    expected, bodies = [], []
    for at in range(CHORDS):
        numbers = range(at * MEMBERS, (at + 1) * MEMBERS)
        header = [signature("plain", args=(number, SECONDS), app=site.app) for number in numbers]
        expected.append([number * 2 for number in numbers])
        bodies.append(chord(header, signature("gathered", app=site.app), app=site.app).apply_async())
    kills = strike(site, chance, bodies, timeout=45)
    row.recovered = wait_for(bodies, 10)
    row.load, row.faults = f"{CHORDS} chords of {MEMBERS}", f"{len(kills)} kills"
    row.lost = sum(body.result != values for body, values in zip(bodies, expected, strict=True))
    row.repeats = site.duplicates()
    row.bound = left_unsettled(SECONDS) * sum(len(pids) for _, pids in kills)
    row.check()
    assert len(kills) >= 5
    attempts = site.attempts()
    # No body of any other id was called: the members, and one for each chord.
    assert len({attempt.task_id for attempt in attempts}) == CHORDS * (MEMBERS + 1)
    if site.env["RESULTS"] == site.env["URL"]:
        check_repeats(site, {pid for _, pids in kills for pid in pids})
    site.stop_all()
    check_traces(site)


POINTS = [f"{method}:{when}" for method in ("settle", "store") for when in ("before", "after")]
FAULTS = [f"{point}:{call}:kill" for point in POINTS for call in (2, 4)]
ONE_STORE = [(store, fault) for store in ("redis", "sqlite") for fault in FAULTS if fault.startswith("settle")]
TWO_STORES = [(stores, fault) for stores in ("redis+sqlite", "sqlite+redis") for fault in FAULTS]


@pytest.mark.parametrize(("site", "fault"), [*ONE_STORE, *TWO_STORES], indirect=["site"])
def test_a_member_that_runs_again_has_another_value(site: FaultSite, fault: str, row: Any) -> None:
    """F25. The body is called once, after all members, with the first value of each that was stored."""
    header = [signature("unsteady", args=(number,), app=site.app) for number in range(10)]
    body = chord(header, signature("gathered", app=site.app), app=site.app).apply_async()
    worker = site.start("-c", "2", fault=fault)
    eventually(lambda: bool(site.happened(fault)) or body.ready() or worker.process.poll() is not None)
    killed = site.happened(fault)
    assert killed, f"nobody came to {fault}"
    wait_for([body], 30)
    values = body.result
    members = [result.id for result in body.parent.results]
    stored = [site.app.AsyncResult(id).result for id in members]
    row.load, row.faults = "1 chord of 10", fault
    row.lost = int([number for number, _ in values] != list(range(10)) or values != stored)
    row.repeats, row.bound = site.duplicates(), left_unsettled(0.02)
    row.check()
    eventually(lambda: site.left() == {})
    attempts = site.attempts()
    assert sum(attempt.task_id == body.id for attempt in attempts) == 1, "the body was called twice"
    for id, (_, pid) in zip(members, values, strict=True):
        tried = [attempt for attempt in attempts if attempt.task_id == id]
        if fault.startswith("store:after") and len(tried) > 1:
            assert pid == tried[0].pid == killed, "a later value replaced the first"
        assert pid in {attempt.pid for attempt in tried if attempt.ended}
    site.stop_all()
    check_traces(site)
