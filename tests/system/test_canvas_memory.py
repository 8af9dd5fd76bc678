"""Chords whose members come to grief in a worker of one process, on the store in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support import eventually
from umbel import Umbel, chord, signature
from umbel.exceptions import ChordError, Reject
from umbel.interfaces import Place
from umbel.worker.inprocess import start_worker


class Site:
    """An app with tasks, and what its bodies and errbacks were called with."""

    def __init__(self, name: str) -> None:
        self.app: Any = Umbel("canvas", broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
        self.app.conf.update(task_unknown_backoff=None, redelivery_backoff=(0.1,))
        self.bodies: list[Any] = []
        self.told: list[str] = []
        task = self.app.task
        self.add = task(name="add")(lambda x, y=0: x + y)

        @task(name="body")
        def body(values: list[Any]) -> list[Any]:
            self.bodies.append(values)
            return values

        @task(name="errback")
        def errback(request: Any, exc: BaseException, traceback: Any) -> None:
            self.told.append(type(exc).__name__)

        @task(name="fails")
        def fails() -> None:
            raise ValueError("no")

        @task(name="rejects")
        def rejects() -> None:
            raise Reject("not mine")

        @task(name="chokes", bind=True)
        def chokes(self: Any) -> None:
            raise self.retry(countdown=0, max_retries=1)

        @task(name="unspeakable")
        def unspeakable() -> object:
            return object()

        self.end = body.s().on_error(errback.s())

    def send(self, member: Any) -> Any:
        return chord([self.add.s(1), member, self.add.s(2)], self.end, app=self.app).apply_async()


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(request.node.name.translate(str.maketrans("[]", "--")))
    yield made
    made.app.close()


GRIEF = {
    "fails": "ValueError",
    "rejects": "reject",
    "chokes": "MaxRetriesExceededError",
    "unspeakable": "EncodeError",
    "nobody_knows_it": "NotRegistered",
    "expired": "TaskRevokedError",
    "revoked": "TaskRevokedError",
}


@pytest.mark.parametrize("pool", ["solo", "threads", "asyncio"])
@pytest.mark.parametrize("name", list(GRIEF))
def test_a_member_that_fails_ends_its_chord_once(site: Site, name: str, pool: str) -> None:
    members = {"expired": site.add.s(3).set(expires=-5), "revoked": site.add.s(3)}
    result = site.send(members.get(name) or signature(name, app=site.app))
    if name == "revoked":
        result.parent[1].revoke()
    with start_worker(site.app, pool=pool, concurrency=2, perform_ping_check=False):
        with pytest.raises(ChordError, match=f"Dependency .* raised {GRIEF[name]}"):
            site.app.AsyncResult(result.id).get(timeout=20)
        eventually(lambda: site.told == ["ChordError"])
        places = (Place.READY, Place.SCHEDULED, Place.HELD)
        eventually(lambda: not any(site.app.broker.size("celery", place) for place in places))
    assert (site.bodies, site.told) == ([], ["ChordError"])


def test_all_end_well(site: Site) -> None:
    with start_worker(site.app, pool="threads", concurrency=4, perform_ping_check=False):
        results = [site.send(site.add.s(n)) for n in range(20)]
        assert [result.get(timeout=20) for result in results] == [[1, n, 2] for n in range(20)]
    assert sorted(site.bodies) == [[1, n, 2] for n in range(20)]
