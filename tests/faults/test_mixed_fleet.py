"""Celery's worker and ours on one queue, fed by both clients, and one worker of each kind killed in the middle.

``UMBEL_MIXED_TASKS`` says how many tasks (2,000), and a chord of ten comes with each twenty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import eventually
from mixed_support import MEMBERS, VISIBILITY, Fleet

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

TASKS = int(os.environ.get("UMBEL_MIXED_TASKS") or 2000)
CHORDS = TASKS // 20
SECONDS = 0.005
#: What each killed process had begun, and what it had ended but not yet acknowledged: Celery's four and its children's
#: two, ours two in a process.
BOUND = 2 * (4 + 2)


@pytest.fixture(params=["redis", "rabbitmq"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    results = request.getfixturevalue("redis_url")
    url = request.getfixturevalue(f"{request.param}_url")
    with Fleet(tmp_path, url, results).closing() as made:
        yield made


def test_a_worker_of_each_kind_is_killed(fleet: Fleet, row: Any) -> None:
    sent = [fleet.send(module, TASKS // 2, CHORDS // 2, SECONDS) for module in ("celery", "umbel")]
    total = TASKS + CHORDS * (MEMBERS + 1)
    # Celery's first: it is slow to start, and ours might have done all by then.
    victims = [fleet.start(module) for module in ("celery", "umbel")]
    for part, (module, victim) in enumerate(zip(("umbel", "celery"), reversed(victims), strict=True), 1):
        eventually(lambda part=part: fleet.ended() >= part * total // 4, timeout=60)  # type: ignore[misc]
        fleet.kill(victim)
        fleet.start(module)
    lost, repeats = fleet.check(sent, timeout=60 + 3 * VISIBILITY)
    row.load = f"{TASKS} tasks, {CHORDS} chords of {MEMBERS}, both clients, 2 + 2 processes"
    row.faults = "1 worker of ours and 1 of Celery's killed and replaced"
    row.lost, row.repeats, row.bound = lost, repeats, BOUND
    row.recovered = fleet.recovery()
    row.check()
    fleet.stop()
