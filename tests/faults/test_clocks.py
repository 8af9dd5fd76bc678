"""F18. Workers whose clocks are wrong by hours, or run too fast: only the store's clock counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, worker
from umbel import Umbel

LIBRARIES = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
if not LIBRARIES and not os.environ.get("CI"):
    pytest.skip("libfaketime is missing: apt-get install libfaketime", allow_module_level=True)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

TASKS = """
import os
import select
import time

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(lease_ttl=3.0, lease_heartbeat=1.0, lease_sweep=1.0)


@app.task(bind=True)
def note(self, seconds):
    # On the monotonic clock, which nobody has changed.
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{self.request.id} {time.monotonic()} {self.request.hostname} {time.time()}\\n")
    select.select([], [], [], seconds)  # libfaketime does not know what sleep() calls
    return self.request.id
"""


@pytest.fixture
def app(redis_url: str) -> Iterator[Umbel]:
    app = Umbel("jobs", broker=redis_url, backend=redis_url, set_as_current=False)
    yield app
    app.close()


def test_wrong_clocks(app: Umbel, redis_url: str, tmp_path: Path, row: Any) -> None:
    (tmp_path / "jobs.py").write_text(TASKS)
    notes = tmp_path / "notes"
    env = environment(URL=redis_url, NOTES=str(notes))
    wrong = {"LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    clocks = {
        "right": {},
        "ahead": {"FAKETIME": "+2h"},
        "behind": {"FAKETIME": "-2h"},
        "fast": {"FAKETIME": "+0 x1.05"},
    }
    with ExitStack() as stack:
        for name, clock in clocks.items():
            around = {**env, **(wrong | clock if clock else {})}
            options = ("-n", f"{name}@box", "-c", "2", "-l", "info")
            stack.enter_context(worker("jobs", *options, cwd=tmp_path, env=around))
        # Long for the lease, one for each process; then those that are due later, and short ones all the while.
        long = [app.send_task("jobs.note", args=[8.0]) for _ in range(8)]
        eventually(lambda: notes.exists() and len(notes.read_text().splitlines()) == 8)
        sent = app.clock.monotonic()
        later = [app.send_task("jobs.note", args=[0.0], countdown=2.0 + number / 20) for number in range(100)]
        short = [app.send_task("jobs.note", args=[0.0]) for _ in range(100)]
        for result in (*long, *later, *short):
            assert result.get(timeout=60) == result.id
    lines = [line.split() for line in notes.read_text().splitlines()]
    began = {id: float(moment) for id, moment, _, _ in lines}
    assert set(Counter(id for id, *_ in lines).values()) == {1}
    early = [number for number, each in enumerate(later) if began[each.id] < sent + 2.0 + number / 20 - 0.01]
    assert early == []
    told = {name: float(moment) for _, _, name, moment in lines}
    assert told["ahead@box"] - told["behind@box"] > 3 * 3600, "the clocks were wrong"
    row.load, row.faults, row.bound = "208 tasks, 4 workers", "clocks 2 h ahead, 2 h behind, 5 % fast", 0
