"""Chords that a worker of Celery's leaves when it dies between its part and the body: one of ours completes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from support import environment, eventually, worker
from umbel import Umbel, chord, signature
from umbel.result import AsyncResult

TASKS = """
import json, os, time
from {module} import {cls}

app = {cls}("left", broker=os.environ["URL"], backend=os.environ["RESULTS"])
if {module!r} == "umbel":
    app.conf.update(lease_ttl=1.5, lease_heartbeat=0.5, lease_sweep=0.3)
elif os.environ.get("DIES"):
    # Where Celery has counted the last part and claimed the chord, and has not published the body.
    from celery.backends.redis import RedisBackend
    RedisBackend._chord_publish_claim_expires = lambda self, *args: os.kill(os.getpid(), 9)
    RedisBackend.chord_error_from_stack = lambda self, *args, **kwargs: os.kill(os.getpid(), 9)

def log(*what):
    with open(os.environ["LOG"], "a") as file:
        file.write(json.dumps(what) + "\\n")

@app.task(name="member", acks_late=bool(os.environ.get("LATE")), reject_on_worker_lost=bool(os.environ.get("LATE")))
def member(x):
    return x

@app.task(name="fail")
def fail():
    raise ValueError("no")

@app.task(name="body")
def body(values):
    log("body", values)
    return values

@app.task(name="told")
def told(task_id):
    log("told", task_id)
"""


class Site:
    """A queue for each kind of worker, a client, and what bodies and errbacks have logged."""

    def __init__(self, folder: Path, url: str, results: str) -> None:
        self.folder, self.results = folder, results
        self.env = environment(URL=url, RESULTS=results, LOG=str(folder / "log"), C_FORCE_ROOT="1")
        self.app = Umbel("client", broker=url, backend=results, set_as_current=False)
        for module, cls in (("celery", "Celery"), ("umbel", "Umbel")):
            (folder / module).mkdir()
            (folder / module / "left_tasks.py").write_text(TASKS.format(module=module, cls=cls))

    def worker(self, module: str, queue: str, **env: str) -> Any:
        options = ("-c", "1", "-l", "info", "-Q", queue, "-n", f"{module}@{queue}")
        return worker(
            "left_tasks",
            *options,
            cwd=self.folder / module,
            env=self.env | env,
            celery=module == "celery",
            status=None if env else 0,
        )

    def sig(self, name: str, *args: Any, queue: str = "ours") -> Any:
        return signature(name, args=args, app=self.app, options={"queue": queue})

    def send(self, *last: Any) -> AsyncResult[Any]:
        """Send a chord whose first members are for us, and whose last one is for Celery's worker alone."""
        end = self.sig("body").on_error(self.sig("told"))
        members = [self.sig("member", 1), self.sig("member", 2), *last]
        result: AsyncResult[Any] = chord(members, end, app=self.app).apply_async()
        return result

    def lines(self) -> list[Any]:
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def hurry(self, result: AsyncResult[Any]) -> None:
        """Have the time come at which claims end and chords are looked at."""
        base = f"celery-taskset-meta-{result.parent.id}"
        with redis.Redis.from_url(self.results) as client:
            assert client.zscore("umbel:chords", base) is not None, "no worker of ours left a note"
            client.zadd("umbel:chords", {base: 1})
            client.delete(base + ".c")

    def keys(self) -> list[str]:
        """What is left of chords in the store."""
        with redis.Redis.from_url(self.results) as client:
            left = [key.decode() for key in client.keys("celery-taskset-meta-*")]
            return sorted(key[-2:] for key in left) + [key.decode() for key in client.keys("umbel:chords")]


@pytest.fixture(params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    results = request.getfixturevalue("redis_url")
    made = Site(tmp_path, request.getfixturevalue(f"{request.param}_url"), results)
    yield made
    made.app.close()


def counted(site: Site, result: AsyncResult[Any]) -> int:
    with redis.Redis.from_url(site.results) as client:
        found: Any = client.scard(f"celery-taskset-meta-{result.parent.id}.d")
    return int(found)


def test_celery_dies_with_the_last_part(site: Site) -> None:
    with site.worker("umbel", "ours") as ours:
        result = site.send(site.sig("member", 3, queue="theirs"))
        eventually(lambda: counted(site, result) == 2)
        with site.worker("celery", "theirs", DIES="1") as theirs:
            eventually(lambda: counted(site, result) == 3)
            theirs.expect("WorkerLostError")
        assert site.lines() == []
        site.hurry(result)
        assert site.app.AsyncResult(result.id).get(timeout=20) == [1, 2, 3]
        ours.expect("was left by a worker that is gone")
    assert site.lines() == [["body", [1, 2, 3]]]
    assert site.keys() == [".c"]


def test_celery_dies_with_a_chord_that_fails(site: Site) -> None:
    with site.worker("umbel", "ours"):
        result = site.send(site.sig("fail"), site.sig("member", 3, queue="theirs"))
        eventually(lambda: counted(site, result) == 3)
        with site.worker("celery", "theirs", DIES="1") as theirs:
            theirs.expect("WorkerLostError")
        site.hurry(result)
        error = site.app.AsyncResult(result.id).get(timeout=20, propagate=False)
        eventually(lambda: site.lines() == [["told", result.id]])
    assert type(error).__name__ == "ChordError"
    assert site.lines() == [["told", result.id]]
    assert site.keys() == [".c"]


def test_its_message_comes_to_us_while_celerys_claim_holds(tmp_path: Path, rabbitmq_url: str, redis_url: str) -> None:
    """RabbitMQ gives back at once what a dead worker held; the member counts once and leaves the chord to the claim."""
    site = Site(tmp_path, rabbitmq_url, redis_url)
    with site.worker("umbel", "ours") as ours:
        result = site.send(site.sig("member", 3, queue="theirs"))
        eventually(lambda: counted(site, result) == 2)
        with site.worker("celery", "theirs", DIES="1", LATE="1") as theirs:
            eventually(lambda: counted(site, result) == 3)
            theirs.expect("WorkerLostError")
            theirs.process.kill()
        with site.worker("umbel", "theirs") as again:
            again.expect("succeeded in")
            site.hurry(result)
            assert site.app.AsyncResult(result.id).get(timeout=20) == [1, 2, 3]
        ours.expect("ready.")
    site.app.close()
    assert site.lines() == [["body", [1, 2, 3]]]


def test_celery_completes_it_by_itself(site: Site) -> None:
    """The note of a chord that Celery's worker has ended is thrown away at the next look."""
    with site.worker("umbel", "ours"), site.worker("celery", "theirs"):
        result = site.send(site.sig("member", 3, queue="theirs"))
        assert result.get(timeout=20) == [1, 2, 3]
        with redis.Redis.from_url(site.results) as client:
            if client.exists("umbel:chords"):
                base = f"celery-taskset-meta-{result.parent.id}"
                client.zadd("umbel:chords", {base: 1})
        eventually(lambda: site.keys() == [".c"])
    assert site.lines() == [["body", [1, 2, 3]]]
