"""A ``ConsumerStep`` in a worker of ours: it reads messages of its own beside the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kombu  # type: ignore[import-untyped]
import pytest
import redis

from support import environment, eventually, run, worker
from umbel import Umbel
from umbel.celery.bootsteps import ConsumerStep, StepParent
from umbel.celery.consuming import kombu_connection
from umbel.exceptions import ImproperlyConfigured

APP = """
from kombu import Consumer, Exchange, Queue
from umbel import Umbel
from umbel.celery.bootsteps import ConsumerStep

app = Umbel("steps", broker="{url}", backend="{results}")
queue = Queue("letters", Exchange("letters"), "new")

class Letters(ConsumerStep):
    def get_consumers(self, channel):
        return [Consumer(channel, queues=[queue], callbacks=[self.read], accept=["json"])]

    def read(self, body, message):
        print(f"read {{body}}", flush=True)
        if body == "bad":
            message.reject()
            raise ValueError("no such letter")
        message.ack()

app.steps["consumer"].add(Letters)

@app.task(name="add")
def add(x, y):
    return x + y
"""


def post(url: str, body: Any) -> None:
    with kombu.Connection(url) as connection:
        connection.Producer().publish(body, serializer="json", exchange=kombu.Exchange("letters"), routing_key="new")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_messages_and_tasks_are_read_by_one_worker(
    kind: str, tmp_path: Path, redis_url: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    (tmp_path / "steps.py").write_text(APP.format(url=url, results=redis_url))
    env = environment()
    with worker("steps", "-l", "info", "-c", "1", cwd=tmp_path, env=env) as process:
        eventually(lambda: bound(kind, url))
        post(url, "first")
        process.expect("read first")
        post(url, "bad")
        process.expect("ValueError: no such letter")
        post(url, "second")
        process.expect("read second")
        assert "3" in run("from steps import add; print(add.delay(1, 2).get(timeout=30))", cwd=tmp_path, env=env)
        lose_connections(kind, url, request)
        process.expect("The step Letters is not connected")
        post(url, "third")
        process.expect("read third")
    read = [line.rpartition("] ")[2] for line in process.lines if "] read " in line]
    assert read == [f"read {each}" for each in ("first", "bad", "second", "third")]


def bound(kind: str, url: str) -> bool:
    """Whether the queue is there: what is sent before that, nobody gets."""
    if kind == "redis":
        with redis.Redis.from_url(url) as client:
            return bool(client.exists("_kombu.binding.letters"))
    with kombu.Connection(url) as connection:
        try:
            count = kombu.Queue("letters")(connection.default_channel).queue_declare(passive=True).consumer_count
        except connection.channel_errors:
            return False
    return bool(count)


def lose_connections(kind: str, url: str, request: pytest.FixtureRequest) -> None:
    if kind == "redis":
        with redis.Redis.from_url(url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
    else:
        server = request.getfixturevalue("rabbitmq_server")
        server.evaluate('[rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()].')


def test_without_consumers_it_says_so(redis_url: str) -> None:
    app = Umbel("bare", broker=redis_url, set_as_current=False)
    step = ConsumerStep(None)
    with pytest.raises(NotImplementedError, match="missing get_consumers"):
        step.start(parent_of(app))
    step.stop(parent_of(app))


def test_other_brokers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    app = Umbel("bare", broker=f"sqlite:///{tmp_path}/q.db", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="from Redis or RabbitMQ, and the broker is sqlite:"):
        ConsumerStep(None).start(parent_of(app))
    with pytest.raises(ImproperlyConfigured, match="the connection of a step"):
        _ = parent_of(app).connection


def test_without_kombu_it_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["kombu"] = None  # as if it were not installed
from umbel import Umbel
from umbel.celery.consuming import kombu_connection
try:
    kombu_connection(Umbel("x", broker="redis://"), "the step Letters")
except Exception as error:
    print(type(error).__name__, error)
"""
    said = run(code, cwd=tmp_path, env=environment())
    assert said.startswith("ImproperlyConfigured the step Letters reads messages of its own by kombu")
    assert "pip install 'kombu[redis]'" in said


def test_the_connection_is_that_of_the_app(redis_url: str) -> None:
    app = Umbel("prefixed", broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "pre:"}
    with kombu_connection(app) as connection, connection.SimpleQueue("letters") as queue:
        queue.put("x")
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen("pre:letters") == 1


def parent_of(app: Umbel) -> StepParent:
    """What a step is given by a worker, which nothing here asks for more than its name."""

    class Named:
        hostname = "w@here"

    parent = StepParent(app, Named())
    parent.timer.stop()
    return parent
