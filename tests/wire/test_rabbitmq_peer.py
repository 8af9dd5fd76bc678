"""Real Celery on the other end of one RabbitMQ, with results as messages (rpc://) and on Redis."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from support import environment, run, worker

TASKS = """
import os
from {module} import {cls}
app = {cls}("peer", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.update(accept_content=["json", "pickle", "yaml", "msgpack"], accept_unsafe=True, task_queue_max_priority=9)
if os.environ.get("QUORUM"):
    from kombu import Exchange, Queue
    exchange = Exchange("jobs", type="topic")
    app.conf.update(
        task_default_queue="jobs", task_default_exchange="jobs", task_default_exchange_type="topic",
        task_default_routing_key="jobs", task_queue_max_priority=None, worker_detect_quorum_queues=True,
        task_queues=[Queue("jobs", exchange, routing_key="jobs", queue_arguments={{"x-queue-type": "quorum"}})],
    )

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="echo", bind=True)
def echo(self, *args, **kwargs):
    return [list(args), kwargs]

@app.task(name="fail")
def fail(text):
    raise ValueError(text, 7)

@app.task(name="retried", bind=True, max_retries=5)
def retried(self, at):
    if self.request.retries < at:
        raise self.retry(countdown=1)
    return [self.request.retries, self.request.delivery_info["routing_key"]]

@app.task(name="late")
def late():
    import time
    return time.time()

@app.task(name="report", bind=True)
def report(self):
    self.update_state(state="PROGRESS", meta={{"done": 1}})
    return "done"

@app.task(name="pause", acks_late=True)
def pause(seconds):
    import time
    time.sleep(seconds)
    return seconds
"""

CLIENT = """
import datetime, decimal, json, os, time, uuid
from peer_tasks import add, echo, fail, late, report, retried
assert add.delay(2, 3).get(timeout=30) == 5
values = [1, 2.5, "näh", None, True, [1, [2]], {"k": "v"}, datetime.datetime(2026, 1, 2, 3, 4, 5),
          datetime.date(2026, 1, 2), decimal.Decimal("1.10"), uuid.UUID(int=5), b"bytes", b"\\xff\\x00"]
back, kwargs = echo.apply_async(args=values, kwargs={"user": "x", "n": 1}).get(timeout=30)
assert back == values, back
assert kwargs == {"user": "x", "n": 1}
failed = fail.delay("bad")
error = failed.get(timeout=30, propagate=False)
assert type(error) is ValueError and error.args == ("bad", 7), repr(error)
assert "ValueError" in failed.traceback and failed.state == "FAILURE"
assert retried.delay(2).get(timeout=30)[0] == 2
started = time.time()
assert late.apply_async(countdown=2).get(timeout=30) >= started + 1.9
for serializer in ("json", "pickle", "yaml", "msgpack"):
    assert add.apply_async((1, 2), serializer=serializer).get(timeout=30) == 3, serializer
assert add.apply_async((1, 2), compression="zlib").get(timeout=30) == 3
assert add.apply_async((1, 2), priority=5).get(timeout=30) == 3
assert add.apply_async((1, 2), headers={"mine": "x", "many": [1, {"deep": None}]}, expires=60).get(timeout=30) == 3
linked = add.apply_async((1, 2), link=add.s(10))
assert linked.get(timeout=30) == 3
chained = (add.s(1, 2) | add.s(4) | add.s(8)).apply_async()
assert chained.get(timeout=30) == 15
assert report.delay().get(timeout=30) == "done"
results = [add.delay(n, n) for n in range(200)]
assert [r.get(timeout=30) for r in results] == [2 * n for n in range(200)]
print(json.dumps("ok"))
"""


def write(folder: Path, module: str) -> Path:
    folder.mkdir()
    cls = {"celery": "Celery", "umbel": "Umbel"}[module]
    (folder / "peer_tasks.py").write_text(TASKS.format(module=module, cls=cls))
    return folder


PAIRS = [("celery", "umbel"), ("umbel", "celery"), ("umbel", "umbel")]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("results", ["rpc", "redis"])
@pytest.mark.parametrize(("client", "server"), PAIRS, ids=lambda side: side)
def test_client_and_worker(
    client: str, server: str, results: str, tmp_path: Path, rabbitmq_url: str, request: pytest.FixtureRequest
) -> None:
    where = "rpc://" if results == "rpc" else request.getfixturevalue("redis_url")
    env = environment(URL=rabbitmq_url, RESULTS=where, C_FORCE_ROOT="1")
    home, caller = write(tmp_path / "worker", server), write(tmp_path / "client", client)
    with worker("peer_tasks", "-l", "info", "-c", "2", cwd=home, env=env, celery=server == "celery"):
        assert json.loads(run(CLIENT, cwd=caller, env=env, timeout=90)) == "ok"


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("client", "server"), PAIRS, ids=lambda side: side)
def test_quorum_queues_and_a_topic_exchange(
    client: str, server: str, tmp_path: Path, rabbitmq_url: str, redis_url: str
) -> None:
    """Celery sends what is due later through its native delays, and so do we; each worker understands both."""
    env = environment(URL=rabbitmq_url, RESULTS=redis_url, C_FORCE_ROOT="1", QUORUM="1")
    home, caller = write(tmp_path / "worker", server), write(tmp_path / "client", client)
    with worker("peer_tasks", "-l", "info", "-c", "2", cwd=home, env=env, celery=server == "celery"):
        assert json.loads(run(CLIENT, cwd=caller, env=env, timeout=90)) == "ok"


@pytest.mark.timeout(180)
def test_both_workers_share_one_queue_and_die(tmp_path: Path, rabbitmq_url: str, redis_url: str) -> None:
    """Nothing is lost when one of each kind is killed in the middle."""
    env = environment(URL=rabbitmq_url, RESULTS=redis_url, C_FORCE_ROOT="1")
    ours, theirs = write(tmp_path / "ours", "umbel"), write(tmp_path / "theirs", "celery")
    send = """
from peer_tasks import add, pause
results = [add.delay(n, 1) for n in range(300)] + [pause.delay(0.05) for n in range(60)]
print(" ".join(r.id for r in results))
"""
    options = ("-c", "2", "-l", "info")
    ids = run(send, cwd=theirs, env=env, timeout=60) + run(send, cwd=ours, env=env, timeout=60)
    with (
        worker("peer_tasks", *options, "-n", "a@h", cwd=ours, env=env, status=None) as mine,
        worker("peer_tasks", *options, "-n", "b@h", cwd=theirs, env=env, celery=True, status=None) as his,
    ):
        mine.expect("succeeded in")
        his.expect("succeeded in")
        for victim in (mine, his):
            victim.process.send_signal(signal.SIGKILL)
        with (
            worker("peer_tasks", *options, "-n", "c@h", cwd=ours, env=env) as again,
            worker("peer_tasks", *options, "-n", "d@h", cwd=theirs, env=env, celery=True),
        ):
            code = f"""
from peer_tasks import app
values = [app.AsyncResult(id).get(timeout=60) for id in {ids.split()!r}]
assert sorted(v for v in values if v != 0.05) == sorted([n + 1 for n in range(300)] * 2)
assert values.count(0.05) == 120
"""
            run(code, cwd=ours, env=env, timeout=90)
            again.expect("succeeded in")
