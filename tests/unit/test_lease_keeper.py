"""The keeper of the leases where one thing it does cannot be done."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

import pytest
from tests.support import eventually

from umbel import Umbel
from umbel.exceptions import OperationalError
from umbel.interfaces import ChordPart, ResultRecord
from umbel.worker import leases as leases_module
from umbel.worker.leases import LeaseKeeper
from umbel.worker.plan import WorkerPlan

PLAN = WorkerPlan(
    hostname="w@h", pool="prefork", concurrency=2, processes=2, queues=(), lease_ttl=30.0, lease_heartbeat=0.1
)


class Odd:
    """Leases of which one id cannot be given back."""

    def __init__(self, leases: Any, stuck: set[str], error: Exception) -> None:
        self._leases = leases
        self._stuck = stuck
        self._error = error
        self.renewed: list[set[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leases, name)

    def release(self, id: str, **options: Any) -> Any:
        if id in self._stuck:
            raise self._error
        return self._leases.release(id, **options)

    def renew(self, ids: Collection[str]) -> Any:
        self.renewed.append(set(ids))
        return self._leases.renew(ids)


class Broker:
    def __init__(self, broker: Any, leases: Odd) -> None:
        self._broker = broker
        self._leases = leases

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def leases(self) -> Odd:
        return self._leases


@pytest.mark.parametrize("error", [OperationalError("no room"), RuntimeError("a defect")])
def test_what_cannot_be_given_back_costs_nobody_a_lease(
    error: Exception, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger=leases_module.logger.name)
    app = Umbel("keeping", broker=f"memory://{request.node.name}", set_as_current=False)
    stuck: set[str] = set()
    leases = Odd(app.broker.leases(), stuck, error)
    keeper = LeaseKeeper(Broker(app.broker, leases), PLAN)  # type: ignore[arg-type]
    keeper.start()
    first, second, third = (keeper.register().result(10) for _ in range(3))
    stuck.add(first)
    keeper.release(first)
    keeper.release(second)
    eventually(lambda: second not in {suspect.id for suspect in app.broker.leases().suspects()})
    seen = len(leases.renewed)
    eventually(lambda: len(leases.renewed) >= seen + 3)
    assert leases.renewed[-1] == {third}
    assert not keeper.away
    told = [each for each in caplog.messages if "cannot be given back yet" in each]
    assert len(told) == 1 and str(error) in told[0]
    # It is tried again for as long as it takes.
    stuck.clear()
    assert keeper.close(10)
    app.close()


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_all_that_is_over_is_deleted_at_once(scheme: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db" if scheme == "sqlite" else f"memory://{request.node.name}"
    app = Umbel("expiring", broker=url, backend=url, set_as_current=False)
    backend = app.backend
    over = [ResultRecord(task_id=f"t{n}", state="SUCCESS", payload=b"{}", expires=0.01) for n in range(2100)]
    backend.store_all(over)
    backend.chord("g").add(ChordPart(group_id="g", index=0, task_id="m", state="SUCCESS", payload=b"", expires=0.01))
    time.sleep(0.02)
    keeper = LeaseKeeper(app.broker, PLAN, backend=backend)
    keeper.start()
    deadline = time.monotonic() + 30
    # It deletes what is over, so what is left to delete shrinks by itself.
    while (left := backend.expire(1)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert keeper.close(10)
    app.close()
