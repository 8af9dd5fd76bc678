"""Pausing queues of real workers: nothing starts any more, nothing is lost, and it lasts over restarts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import DEADLINE, WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Place
from umbel.testing.servers import RabbitMQServer, RedisServer
from umbel.worker.inprocess import start_worker

pytestmark = pytest.mark.timeout(180)

TASKS = """
import os, time
from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.task_queues = {"celery": {}, "work": {}}
app.conf.task_routes = {"work": {"queue": "work"}, "hold": {"queue": "work"}}

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="work", ignore_result=True)
def work(number):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{number}\\n")
    time.sleep(0.002)

@app.task(name="hold")
def hold(path):
    open(path, "w").close()
    while os.path.exists(path):
        time.sleep(0.02)
    return "held"
"""


class Site:
    """The tasks in a folder of their own, and a client of them."""

    def __init__(self, folder: Path, url: str, results: str) -> None:
        self.folder, self.log = folder, folder / "log"
        self.env = environment(URL=url, RESULTS=results, LOG=str(self.log))
        self.app = Umbel("jobs", broker=url, backend=results, set_as_current=False)
        self.app.conf.task_queues = {"celery": {}, "work": {}}
        self.app.conf.task_routes = {"work": {"queue": "work"}, "hold": {"queue": "work"}}
        (folder / "jobs.py").write_text(TASKS)

    def worker(self, *options: str, name: str = "w1@box") -> Any:
        return worker("jobs", "-l", "info", "-n", name, *options, cwd=self.folder, env=self.env)

    def send(self, first: int, last: int) -> None:
        self.app.send_many([("work", (number,)) for number in range(first, last)])

    def done(self) -> list[int]:
        """Return the numbers of those that have started, in order."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

    def others_run(self, count: int = 20) -> None:
        """Have tasks of the other queue run: whatever the workers do next, they have come to it then."""
        results = [self.app.send_task("add", (number, 1)) for number in range(count)]
        assert [result.get(timeout=DEADLINE) for result in results] == list(range(1, count + 1))

    def stands_still(self, sent: int) -> int:
        """Wait until what is not done is in the queue again, and see that nothing starts; return how many are done."""
        broker = self.app.broker

        def still() -> bool:
            before = len(self.done())
            if broker.size("work") + before != sent or broker.size("work", Place.HELD):
                return False
            # It may be so for a moment, while a process has not heard yet.
            self.others_run()
            return len(self.done()) == before

        eventually(still)
        before = len(self.done())
        self.others_run()
        assert len(self.done()) == before
        assert broker.size("work") == sent - before
        return before

    def umbel(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", "jobs", *args]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """On RabbitMQ it is kept with the results, in Redis."""
    url = request.getfixturevalue(f"{request.param}_url")
    made = Site(tmp_path, url, request.getfixturevalue("redis_url") if request.param == "rabbitmq" else url)
    yield made
    made.app.close()


@pytest.fixture
def on_redis(tmp_path: Path, redis_url: str) -> Iterator[Site]:
    made = Site(tmp_path, redis_url, redis_url)
    yield made
    made.app.close()


POOLS = [("-P", "prefork", "-c", "2"), ("-P", "threads", "-c", "4"), ("-P", "solo")]


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool[1])
def test_nothing_starts_while_it_is_paused(site: Site, pool: tuple[str, ...]) -> None:
    site.send(0, 3000)
    with site.worker(*pool) as running:
        eventually(lambda: len(site.done()) > 50)
        site.app.queues.pause("work", "the provider is down", by="ann")
        running.expect("Queue work is paused since")
        assert "by ann (the provider is down)" in running.output
        site.stands_still(3000)
        # It goes on taking messages.
        site.send(3000, 3010)
        before = site.stands_still(3010)
        assert before < 3000, "it was over before it was paused"
        site.app.queues.resume("work")
        resumed = time.monotonic()
        eventually(lambda: len(site.done()) > before, timeout=10)
        assert time.monotonic() - resumed < 5
        eventually(lambda: len(site.done()) >= 3010)
        eventually(lambda: site.app.broker.size("work", Place.HELD) == 0)
    # Nothing was lost, and nothing that went back ran twice.
    assert sorted(site.done()) == list(range(3010))


@pytest.mark.parametrize("pool", ["threads", "solo", "asyncio"])
def test_a_worker_inside_a_program_heeds_it(pool: str, request: pytest.FixtureRequest) -> None:
    name = f"memory://{request.node.name}"
    app = Umbel("inside", broker=name, backend=name, set_as_current=False)
    ran: list[int] = []
    count = 4000  # more than run in the second until it hears

    @app.task(name="work", ignore_result=True)
    def work(number: int) -> None:
        ran.append(number)
        time.sleep(0.001)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    def send(first: int, last: int) -> None:
        for number in range(first, last):
            work.apply_async((number,), queue="work")

    def here(count: int) -> bool:
        return app.broker.size("work") + len(ran) == count and not app.broker.size("work", Place.HELD)

    send(0, count)
    with start_worker(app, pool=pool, concurrency=2, queues=["celery", "work"]):
        eventually(lambda: len(ran) > 20)
        app.queues.pause("work")
        eventually(lambda: here(count))
        send(count, count + 10)
        before = len(ran)
        assert [add.delay(1, n).get(timeout=DEADLINE) for n in range(20)] == list(range(1, 21))
        assert len(ran) == before < count
        app.queues.resume("work")
        eventually(lambda: len(ran) == count + 10)
    assert sorted(ran) == list(range(count + 10))
    app.close()


def test_what_runs_goes_on(site: Site) -> None:
    path = site.folder / "open"
    with site.worker("-c", "1") as running:
        held = site.app.send_task("hold", (str(path),))
        eventually(path.exists)
        site.app.queues.pause("work")
        running.expect("Queue work is paused")
        path.unlink()
        assert held.get(timeout=DEADLINE) == "held"


def test_a_worker_that_starts_reads_it_first(site: Site) -> None:
    site.app.queues.pause("work")
    site.send(0, 20)
    for _ in range(2):
        with site.worker("-c", "2") as running:
            running.expect("Queue work is paused")
            assert site.stands_still(20) == 0
    with site.worker("-c", "2") as running:
        site.app.queues.resume("work")
        running.expect("Queue work is resumed")
        eventually(lambda: sorted(site.done()) == list(range(20)))


def test_a_process_that_is_replaced_reads_it_too(on_redis: Site) -> None:
    site = on_redis
    with site.worker("-c", "2", "--max-tasks-per-child", "5") as running:
        site.app.queues.pause("work")
        running.expect("Queue work is paused")
        site.send(0, 20)
        site.others_run(30)
        assert site.stands_still(20) == 0
        site.app.queues.resume("work")
        eventually(lambda: sorted(site.done()) == list(range(20)))


def test_every_worker_heeds_it(on_redis: Site) -> None:
    site = on_redis
    site.send(0, 3000)
    with site.worker("-c", "1") as one, site.worker("-P", "threads", "-c", "2", name="w2@box") as two:
        eventually(lambda: len(site.done()) > 50)
        site.app.queues.pause("work")
        for running in (one, two):
            running.expect("Queue work is paused")
        assert site.stands_still(3000) < 3000
        site.app.queues.resume("work")
        eventually(lambda: len(site.done()) >= 3000)
    assert sorted(site.done()) == list(range(3000))


def test_a_worker_with_nothing_left_to_read_waits(site: Site) -> None:
    with site.worker("-c", "1", "-Q", "work") as running:
        site.app.queues.pause("work")
        running.expect("Queue work is paused")
        site.send(0, 10)
        queues = site.app.control.inspect(timeout=5).active_queues()["w1@box"]
        assert [(each["name"], each.get("paused")) for each in queues] == [("work", True)]
        assert site.done() == []
        site.app.queues.resume("work")
        eventually(lambda: sorted(site.done()) == list(range(10)))
        (queue,) = site.app.control.inspect(timeout=5).active_queues()["w1@box"]
        assert "paused" not in queue


def test_reading_and_leaving_a_paused_queue(site: Site) -> None:
    control = site.app.control
    with site.worker("-c", "1", "-Q", "celery") as running:
        site.app.queues.pause("work")
        site.send(0, 5)
        control.add_consumer("work", reply=True, timeout=5)
        assert site.stands_still(5) == 0
        names = [each["name"] for each in control.inspect(timeout=5).active_queues()["w1@box"]]
        assert names == ["celery", "work"]
        control.cancel_consumer("work", reply=True, timeout=5)
        site.app.queues.resume("work")
        # Another one that is paused and resumed after it: by then it has heard of both.
        site.app.queues.pause("celery")
        running.expect("Queue celery is paused")
        site.app.queues.resume("celery")
        running.expect("Queue celery is resumed")
        assert site.stands_still(5) == 0
        control.add_consumer("work", reply=True, timeout=5)
        eventually(lambda: sorted(site.done()) == list(range(5)))


def test_it_survives_the_broker(tmp_path: Path) -> None:
    with RedisServer(appendonly=True) as server:
        site = Site(tmp_path, server.url, server.url)
        with site.worker("-c", "2") as running:
            site.app.queues.pause("work")
            running.expect("Queue work is paused")
            site.send(0, 10)
            server.restart()
            site.others_run()
            assert site.stands_still(10) == 0
            assert list(site.app.queues.paused()) == ["work"]
            site.app.queues.resume("work")
            eventually(lambda: sorted(site.done()) == list(range(10)))
        site.app.close()


def test_it_survives_rabbitmq(tmp_path: Path, redis_url: str) -> None:
    with RabbitMQServer() as server:
        site = Site(tmp_path, server.url, redis_url)
        with site.worker("-c", "2") as running:
            site.app.queues.pause("work")
            running.expect("Queue work is paused")
            site.send(0, 10)
            server.restart()
            site.others_run()
            assert site.stands_still(10) == 0
            site.app.queues.resume("work")
            eventually(lambda: sorted(site.done()) == list(range(10)))
        site.app.close()


def test_without_any_store_it_is_refused(tmp_path: Path, rabbitmq_url: str) -> None:
    site = Site(tmp_path, rabbitmq_url, "rpc://")
    with pytest.raises(ImproperlyConfigured, match=r"queues cannot be paused here.*rpc://.*redis:// or sqlite://"):
        site.app.queues.pause("work")
    assert site.app.queues.paused() == {}
    refused = site.umbel("queues", "pause", "work")
    assert refused.returncode == 78 and "queues cannot be paused here" in refused.stderr
    site.app.close()


def test_the_results_are_away_and_come_back(tmp_path: Path, rabbitmq_url: str) -> None:
    """A worker that cannot read what is paused works; it heeds it as soon as it can."""
    with RedisServer(appendonly=True) as server:
        site = Site(tmp_path, rabbitmq_url, server.url)
        site.app.queues.pause("work")
        server.stop()
        running: WorkerProcess
        with site.worker("-c", "1") as running:
            running.expect("nor which queues are paused")
            server.start()
            running.expect("Queue work is paused")
            site.send(0, 5)
            assert site.stands_still(5) == 0
        site.app.close()
