"""Celery's worker and ours on one queue, fed by both clients; tests/faults kills more among ten times as much."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_support import eventually
from mixed_support import MEMBERS, Fleet

TASKS, CHORDS, SECONDS = 200, 10, 0.005


@pytest.mark.timeout(120)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_ours_is_killed_in_the_middle(broker: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue("redis_url")
    with Fleet(tmp_path, request.getfixturevalue(f"{broker}_url"), results).closing() as fleet:
        victim = fleet.start("umbel")
        fleet.start("celery")
        sent = [fleet.send(module, TASKS // 2, CHORDS // 2, SECONDS) for module in ("celery", "umbel")]
        # Ours takes part from the start, and there is something left for whoever replaces it.
        eventually(lambda: fleet.ended() >= (TASKS + CHORDS * (MEMBERS + 1)) // 8)
        fleet.kill(victim)
        fleet.start("umbel")
        lost, repeats = fleet.check(sent, timeout=60)
        assert (lost, repeats <= 4) == (0, True), (lost, repeats)
        fleet.stop()
