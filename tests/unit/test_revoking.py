"""Revocations are kept in the store, found by whoever looks later, and forgotten in time."""

from __future__ import annotations

from typing import Any

import pytest

from umbel import Umbel
from umbel.exceptions import TaskRevokedError
from umbel.revoking import PREFIX, Revocation, Revocations, signal_name, store_of
from umbel.testing import FakeClock
from umbel.worker.inprocess import start_worker


@pytest.fixture
def app(request: pytest.FixtureRequest, clock: FakeClock) -> Any:
    made = Umbel("revoking", broker=f"memory://{request.node.name}", set_as_current=False)
    made.clock = clock
    yield made
    made.close()


def test_what_was_revoked_is_read_once_and_remembered(app: Any) -> None:
    reader = Revocations(store_of(app))
    assert not reader.changed()
    app.control.revoke("a")
    app.control.revoke(["b", "c"], terminate=True, signal="KILL")
    assert reader.changed()
    new = reader.read()
    assert {tuple(each.ids): (each.terminate, each.signal) for each in new} == {
        ("a",): (False, "SIGTERM"),
        ("b", "c"): (True, "SIGKILL"),
    }
    assert reader.ids == {"a", "b", "c"}
    assert not reader.changed() and reader.read() == []
    assert Revocations(store_of(app)).ids == frozenset()


def test_many_ids_are_few_values(app: Any) -> None:
    app.control.revoke(str(number) for number in range(2500))
    assert len(list(store_of(app).scan(PREFIX))) == 3
    reader = Revocations(store_of(app))
    reader.read()
    assert len(reader.ids) == 2500


def test_revoking_nothing_tells_nobody(app: Any) -> None:
    app.control.revoke([])
    assert not Revocations(store_of(app)).changed()


def test_it_is_forgotten_after_a_day_or_as_told(app: Any, clock: FakeClock) -> None:
    app.control.revoke("short", expires=10)
    app.control.revoke("long")
    reader = Revocations(store_of(app))
    clock.advance(11)
    reader.read()
    assert reader.ids == {"long"}
    clock.advance(86400)
    reader.read()
    assert reader.ids == frozenset()


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"ids": 3}', b"\xff"])
def test_a_value_that_nobody_can_read_is_no_revocation(app: Any, value: bytes) -> None:
    store_of(app).put(PREFIX + "bad", value)
    app.control.revoke("good")
    reader = Revocations(store_of(app))
    assert Revocation(ids=()) in reader.read()
    assert reader.ids == {"good"}


def test_signals_are_named_as_in_celery(app: Any) -> None:
    assert [signal_name(given) for given in (None, "term", "SIGKILL", 9)] == [
        "SIGTERM",
        "SIGTERM",
        "SIGKILL",
        "SIGKILL",
    ]
    for wrong in ("SIGNONE", 4711):
        with pytest.raises(ValueError, match="no signal"):
            app.control.revoke("a", signal=wrong)
    assert not Revocations(store_of(app)).changed()


def test_a_worker_of_the_same_process(request: pytest.FixtureRequest) -> None:
    url = f"memory://{request.node.name}"
    app = Umbel("inside", broker=url, backend=url, set_as_current=False)
    ran: list[int] = []

    @app.task
    def note(x: int) -> None:
        ran.append(x)

    first = note.delay(1)
    first.revoke()
    with start_worker(app):
        note.delay(2).get(timeout=10)
        with pytest.raises(TaskRevokedError):
            first.get(timeout=10)
    assert ran == [2]
    app.close()
