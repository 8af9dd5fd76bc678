"""Tasks are revoked, and the workers that have heard of it are replaced before their messages come."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, check_traces, eventually, kill_worker, wait_for

pytestmark = pytest.mark.faults

TASKS = 1000
LATER = 400  # of them are scheduled
REVOKED = 200


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, request.getfixturevalue(f"{request.param}_url")).closing() as made:
        yield made


def test_revoked_tasks_never_start(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F28. Half of it is revoked before any worker runs, half while one does that is gone when they come."""
    now = [site.send("plain", number, 0.002) for number in range(TASKS - LATER)]
    # The first of them later than a worker may take to hear of what is revoked below.
    later = [site.send("plain", number, countdown=chance.uniform(8.0, 10.0)) for number in range(TASKS - LATER, TASKS)]
    sent = time.monotonic()
    early = chance.sample(now + later, REVOKED // 2)
    site.app.control.revoke([result.id for result in early])
    first = site.start("-c", "2")
    first.expect("ready.")
    left = [result for result in later if result not in early]
    late = chance.sample(left, REVOKED // 2)
    site.app.control.revoke([result.id for result in late])
    assert time.monotonic() - sent < 6.0, "the machine is too slow for this test to mean anything"
    # One dies before it can have told anyone, the next one is stopped in order.
    kill = kill_worker(first)
    second = site.start("-c", "2")
    second.expect("ready.")
    time.sleep(chance.uniform(0.0, 1.0))
    assert second.stop(timeout=20) == 0, second.output
    site.start("-c", "2")
    results = now + later
    row.recovered = wait_for(results, 40)
    revoked = {result.id for result in early + late}
    started = {attempt.task_id for attempt in site.attempts()}
    assert not revoked & started, f"{len(revoked & started)} revoked tasks have started"
    assert {result.state for result in results if result.id in revoked} == {"REVOKED"}
    row.load, row.faults = f"{TASKS} tasks, {LATER} of them later", f"{len(revoked)} revoked, 2 workers replaced"
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results) if result.id not in revoked)
    row.repeats, row.bound = site.duplicates(), 2 * len(kill[1])
    row.check()
    eventually(lambda: site.left() == {})
    site.stop_all()
    check_traces(site)
