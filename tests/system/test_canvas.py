"""Canvases on real workers: the same table on every store and pool, and chords whose members come to grief."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from canvas_support import play
from support import WorkerProcess, environment, eventually, worker
from umbel import Umbel, chain, chord, group, signature
from umbel.exceptions import ChordError
from umbel.interfaces import Place
from umbel.testing.servers import RedisServer


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of the table on Redis, which tests/wire compares with Celery."""
    with RedisServer() as server:
        return play(tmp_path_factory.mktemp("redis"), server.url)


WAYS = {
    "sqlite": ("sqlite", "", ("-c", "2")),
    "sqlite threads": ("sqlite", "", ("-P", "threads", "-c", "4")),
    "sqlite asyncio": ("sqlite", "", ("-P", "asyncio", "-c", "10")),
    "redis threads": ("redis", "", ("-P", "threads", "-c", "4")),
    "redis solo": ("redis", "", ("-P", "solo")),
    "sqlite with results in redis": ("sqlite", "redis", ("-c", "2")),
    "redis with results in sqlite": ("redis", "sqlite", ("-c", "2")),
    "redis with results in another database": ("redis", "redis/1", ("-c", "2")),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_store_and_pool_ends_them_alike(
    way: str, tmp_path: Path, redis_url: str, sqlite_url: str, on_redis: dict[str, Any]
) -> None:
    broker, results, options = WAYS[way]
    urls = {"sqlite": sqlite_url, "redis": redis_url, "redis/1": redis_url.rpartition("/")[0] + "/1"}
    env = {"RESULTS": urls[results]} if results else {}
    ended = play(tmp_path, urls[broker], options=options, env=env)
    # SQLite has no priorities to tell of where the message says none.
    assert {name: ended[name] for name in ended if ended[name] != on_redis[name]} == {}


# -- members that come to grief ----------------------------------------------------------------------------------

TASKS = """
import json, os, signal, time
from umbel import Umbel

app = Umbel("canvas", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.update(
    lease_ttl=3.0, lease_heartbeat=1.0, lease_sweep=1.0, redelivery_backoff=0.1,
    task_unknown_backoff=None, max_deliveries=2,
)

def log(*what):
    with open(os.environ["LOG"], "a") as file:
        file.write(json.dumps(what) + "\\n")

@app.task(name="add")
def add(x, y=0):
    log("add", x)
    return x + y

@app.task(name="xsum")
def xsum(values):
    log("body", sorted(values))
    return sum(values)

@app.task(name="told")
def told(request, exc, traceback):
    log("told", type(exc).__name__, str(exc))

@app.task(name="die_once")
def die_once(x):
    with open(os.environ["LOG"] + ".died", "a") as file:
        file.write("x")
    if os.path.getsize(os.environ["LOG"] + ".died") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

@app.task(name="poison")
def poison():
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="mortal", acks_late=False)
def mortal():
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(name="slow", time_limit=0.5)
def slow():
    time.sleep(60)

@app.task(name="hold")
def hold():
    log("holding")
    time.sleep(60)

@app.task(name="choke", bind=True)
def choke(self):
    raise self.retry(countdown=0, max_retries=1)

@app.task(name="rejects")
def rejects():
    from umbel.exceptions import Reject
    raise Reject("not mine")

@app.task(name="unspeakable", ignore_result=True)
def unspeakable():
    return object()
"""


class Site:
    """A folder with the tasks, the URL of its store, and a client of it."""

    def __init__(self, folder: Path, url: str, results: str = "") -> None:
        self.folder = folder
        self.log = folder / "log"
        self.env = environment(URL=url, RESULTS=results or url, LOG=str(self.log))
        self.app = Umbel("client", broker=url, backend=results or url, set_as_current=False)
        (folder / "canvas_tasks.py").write_text(TASKS)

    def sig(self, name: str, *args: Any, **options: Any) -> Any:
        return signature(name, args=args, app=self.app, options=options)

    @contextmanager
    def worker(self, *options: str) -> Iterator[WorkerProcess]:
        with worker("canvas_tasks", "-l", "info", *options, cwd=self.folder, env=self.env) as running:
            yield running

    def lines(self, kind: str) -> list[list[Any]]:
        """What the tasks have logged of this kind, without its name."""
        if not self.log.exists():
            return []
        return [line[1:] for line in map(json.loads, self.log.read_text().splitlines()) if line[0] == kind]

    def chord_with(self, member: Any) -> Any:
        """Send a chord of two members that end well around this one."""
        body = self.sig("xsum").on_error(self.sig("told"))
        return chord([self.sig("add", 1), member, self.sig("add", 2)], body, app=self.app)

    def left(self) -> list[int]:
        return [self.app.broker.size("celery", place) for place in (Place.READY, Place.SCHEDULED, Place.HELD)]


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = request.getfixturevalue(f"{request.param}_url")
    made = Site(tmp_path, url, request.getfixturevalue("redis_url") if request.param == "rabbitmq" else "")
    yield made
    made.app.close()


GRIEF = {
    "poison": ("MaxDeliveriesExceeded", {}),
    "mortal": ("WorkerLostError", {}),
    "slow": ("TimeLimitExceeded", {}),
    "choke": ("MaxRetriesExceededError", {}),
    "rejects": ("reject", {}),
    "unspeakable": ("EncodeError", {}),
    "nobody_knows_it": ("NotRegistered", {}),
    "add": ("TaskRevokedError", {"expires": -5}),
}


@pytest.mark.parametrize("name", list(GRIEF))
def test_a_member_that_fails_ends_its_chord_once(site: Site, name: str) -> None:
    kind, options = GRIEF[name]
    args = (3,) if name == "add" else ()
    with site.worker("-c", "2"):
        result = site.chord_with(site.sig(name, *args, **options)).apply_async()
        with pytest.raises(ChordError, match=f"Dependency .* raised {kind}"):
            site.app.AsyncResult(result.id).get(timeout=30)
        eventually(lambda: len(site.lines("told")) == 1)
        eventually(lambda: site.left() == [0, 0, 0])
    assert [line[0] for line in site.lines("told")] == ["ChordError"]
    assert site.lines("body") == []
    assert sorted(site.lines("add")) == [[1], [2]]


def test_a_member_that_expires_while_no_worker_runs(site: Site) -> None:
    """RabbitMQ would drop it at its time, and nobody would know: it is not told of the time."""
    result = site.chord_with(site.sig("add", 3, expires=0.1)).apply_async()
    steps = chain(site.sig("add", 3, expires=0.1), site.sig("add", 4), app=site.app).apply_async()
    time.sleep(0.5)
    with site.worker("-c", "2"):
        with pytest.raises(ChordError, match="TaskRevokedError"):
            site.app.AsyncResult(result.id).get(timeout=30)
        eventually(lambda: len(site.lines("told")) == 1)
        error = site.app.AsyncResult(steps.id).get(timeout=30, propagate=False)
    assert type(error).__name__ == "TaskRevokedError"
    assert (site.lines("body"), sorted(site.lines("add"))) == ([], [[1], [2]])


def test_a_member_that_is_revoked_before_it_starts(site: Site) -> None:
    result = site.chord_with(site.sig("add", 3)).apply_async()
    result.parent[1].revoke()
    with site.worker("-c", "2"):
        with pytest.raises(ChordError, match="TaskRevokedError"):
            site.app.AsyncResult(result.id).get(timeout=30)
        eventually(lambda: len(site.lines("told")) == 1)
    assert (site.lines("body"), sorted(site.lines("add"))) == ([], [[1], [2]])


def test_a_member_that_is_terminated_while_it_runs(site: Site) -> None:
    with site.worker("-c", "2"):
        result = site.chord_with(site.sig("hold")).apply_async()
        eventually(lambda: len(site.lines("holding")) == 1)
        result.parent[1].revoke(terminate=True)
        with pytest.raises(ChordError, match="TaskRevokedError"):
            site.app.AsyncResult(result.id).get(timeout=30)
        eventually(lambda: len(site.lines("told")) == 1)
    assert site.lines("body") == []


def test_a_member_whose_worker_dies_counts_once(site: Site) -> None:
    with site.worker("-c", "2"):
        result = site.chord_with(site.sig("die_once", 3)).apply_async()
        assert result.get(timeout=30) == 6
    assert site.lines("body") == [[[1, 2, 3]]]
    assert site.lines("told") == []


def test_a_chain_ends_when_its_first_task_is_lost(site: Site) -> None:
    canvas = chain(site.sig("mortal"), group(site.sig("add"), site.sig("add")), site.sig("xsum"), app=site.app)
    with site.worker("-c", "2"):
        result = canvas.apply_async()
        for id in (result.id, *(member.id for member in result.parent.results)):
            error = site.app.AsyncResult(id).get(timeout=30, propagate=False)
            assert type(error).__name__ == "WorkerLostError"


def test_many_chords_while_workers_are_killed(site: Site) -> None:
    chords = [chord([site.sig("add", n, 0) for n in range(5)], site.sig("xsum"), app=site.app) for _ in range(20)]
    with site.worker("-c", "2") as running:
        results = [each.apply_async() for each in chords]
        for _ in range(3):
            time.sleep(0.2)
            site.sig("die_once", 0).apply_async().get(timeout=30)
            (site.folder / "log.died").unlink()
        assert [result.get(timeout=30) for result in results] == [10] * 20
    assert site.lines("body") == [[[0, 1, 2, 3, 4]]] * 20
    assert running.process.returncode == 0


def test_a_large_group_and_a_large_chord(site: Site) -> None:
    with site.worker("-c", "2"):
        result = chord((site.sig("add", n) for n in range(3000)), site.sig("xsum"), app=site.app).apply_async()
        assert result.get(timeout=50) == sum(range(3000))
        many = group((site.sig("add", n) for n in range(3000)), app=site.app).apply_async()
        assert many.get(timeout=50) == list(range(3000))


def test_a_long_chain(site: Site) -> None:
    with site.worker("-c", "2"):
        steps = [site.sig("add", 1) for _ in range(300)]
        assert chain(*steps, app=site.app).apply_async((0,)).get(timeout=50) == 300
