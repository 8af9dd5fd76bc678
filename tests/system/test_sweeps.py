"""How often a worker looks for dead ones, and that a fleet does not do it at one moment."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

from support import eventually
from umbel import Umbel
from umbel.interfaces import Leases, Suspect
from umbel.retry import spread
from umbel.worker.inprocess import start_worker

EVERY = 0.5


def test_the_looks_of_a_fleet_spread(sqlite_url: str, monkeypatch: Any) -> None:
    """Workers that are started together soon look at different moments."""
    app = Umbel("fleet", broker=sqlite_url, backend=sqlite_url, set_as_current=False)
    app.conf.update(lease_sweep=EVERY)
    looks: dict[int, list[float]] = {}
    real = type(app.broker.leases())
    suspects = real.suspects

    def note(leases: Leases) -> Sequence[Suspect]:
        looks.setdefault(threading.get_ident(), []).append(time.monotonic())
        return suspects(leases)  # type: ignore[arg-type]

    monkeypatch.setattr(real, "suspects", note)

    def gaps() -> list[list[float]]:
        return [[b - a for a, b in itertools.pairwise(each)] for each in list(looks.values())]

    with start_worker(app, hostname="a@here"), start_worker(app, hostname="b@here"):
        # A busy machine makes the pauses longer; only chance makes one shorter than was asked for.
        eventually(lambda: len(looks) == 2 and all(any(gap < 0.97 * EVERY for gap in each) for each in gaps()))
    app.close()


def test_a_spread_pause_is_a_fifth_longer_or_shorter_at_most() -> None:
    drawn = sorted(spread(10.0) for _ in range(2000))
    assert 8.0 <= drawn[0] < 8.5 and 11.5 < drawn[-1] <= 12.0
