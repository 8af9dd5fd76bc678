"""Flower as it is published, on real Celery and on the alias, watching and steering a worker over Redis.

What is checked of our worker is checked of Celery's too, so that it is Flower's behaviour and not ours.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

import peers
from support import WorkerProcess, environment, eventually, worker
from umbel.celery import switch_path

# Programs of others start slowly on a busy machine.
pytestmark = pytest.mark.timeout(240)

PROGRAMS = Path(__file__).resolve().parent / "programs"
NODE = "w1@box"
#: Flower on, and a worker of.
PAIRS = [("celery", "umbel"), ("umbel", "umbel"), ("celery", "celery")]


class Flower:
    """A running Flower, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, *, post: Mapping[str, Any] | None = None, body: Any = None) -> tuple[int, str]:
        """Return the status and the text of an answer; ``post`` is a form, ``body`` goes as JSON."""
        data = json.dumps(body).encode() if body is not None else urlencode(post).encode() if post is not None else None
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data=data), timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def get(self, path: str) -> Any:
        """Return an answer in JSON."""
        status, text = self.ask(path)
        assert status == 200, (path, status, text)
        return json.loads(text)

    def page(self, path: str) -> str:
        """Return a page for people."""
        status, text = self.ask(path)
        assert status == 200, (path, status, text)
        return text

    def order(self, path: str, **form: Any) -> str:
        """Give an order that is obeyed, and return what Flower says to it."""
        status, text = self.ask(path, post=form)
        assert status == 200, (path, status, text)
        return str(json.loads(text)["message"])

    def send(self, task: str, *args: Any, how: str = "async-apply", **options: Any) -> Any:
        """Have Flower send a task, and return its answer."""
        status, text = self.ask(f"/api/task/{how}/{task}", body={"args": args, **options})
        assert status == 200, (task, status, text)
        return json.loads(text)

    def worker(self) -> Any:
        """Return what the worker tells now."""
        return self.get(f"/api/workers?refresh=1&workername={NODE}")[NODE]

    def task(self, task_id: str) -> Any:
        """Return what Flower has seen of a task, or nothing."""
        status, text = self.ask(f"/api/task/info/{task_id}")
        return json.loads(text) if status == 200 else {}

    def until(self, task_id: str, state: str) -> Any:
        """Return what Flower has seen of a task as soon as it is in this state."""
        eventually(lambda: self.task(task_id).get("state") == state)
        return self.task(task_id)


@contextmanager
def flower(on: str, env: Mapping[str, str]) -> Iterator[Flower]:
    """Run Flower with Celery, or with the alias where no Celery is."""
    at = peers.python("celery57") if on == "celery" else peers.python("")
    env = {**env, "FLOWER_UNAUTHENTICATED_API": "1"}
    options = ("--port=0", "--address=127.0.0.1", "--inspect-timeout=2000")
    running = WorkerProcess([at, "-m", "celery", "-A", "watched", "flower", *options], PROGRAMS, env)
    try:
        running.expect("Visit me at")
        running.expect("Registered tasks")
        found = re.search(r"Visit me at (http://\S+)", running.output)
        assert found
        yield Flower(found[1])
        assert "Traceback" not in running.output, running.output
    except BaseException:
        print(running.output)
        raise
    finally:
        running.stop()


@pytest.fixture(params=PAIRS, ids=["flower_on_{}-worker_of_{}".format(*pair) for pair in PAIRS])
def watched(request: pytest.FixtureRequest, redis_url: str) -> Iterator[tuple[Flower, WorkerProcess]]:
    """A Flower and the worker that it watches, which was not told to send events."""
    on, of = request.param
    env = environment(BROKER=redis_url, BACKEND=redis_url, C_FORCE_ROOT="1", PYTHONDONTWRITEBYTECODE="1")
    alias = {**env, "PYTHONPATH": switch_path()}
    at = peers.python("celery57") if of == "celery" else sys.executable
    theirs = env if of == "celery" else alias
    options = ("-n", NODE, "-c", "2", "-l", "info")
    with (
        worker("watched", *options, cwd=PROGRAMS, env=theirs, celery=True, python=at) as running,
        flower(on, env if on == "celery" else alias) as seen,
    ):
        eventually(lambda: NODE in seen.get("/api/workers?refresh=1"))
        eventually(lambda: seen.get("/api/workers?status=1") == {NODE: True})
        yield seen, running
        print(running.output)  # pytest shows it if the test failed


def test_watching_and_steering(watched: tuple[Flower, WorkerProcess], tmp_path: Path) -> None:
    seen, running = watched
    running.expect("Events of group {task} enabled by remote.")
    the_worker_is_described(seen)
    sent = tasks_are_sent_and_followed(seen)
    what_runs_is_shown_and_ended(seen, tmp_path)
    the_numbers_are_right(seen, sent)
    limits_queues_and_processes_are_changed(seen)
    assert seen.order(f"/api/worker/shutdown/{NODE}") == "Shutting down!"
    running.expect("Got shutdown from remote")
    eventually(lambda: seen.get("/api/workers?status=1") == {NODE: False})


def the_worker_is_described(seen: Flower) -> None:
    described = seen.worker()
    assert {"stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf"} < set(
        described
    )
    pool = described["stats"]["pool"]
    assert pool["max-concurrency"] == 2 and len(pool["processes"]) == 2
    assert [queue["name"] for queue in described["active_queues"]] == ["celery"]
    assert described["registered"] == ["add", "again", "fail", "hold"]
    assert described["active"] == described["scheduled"] == described["reserved"] == described["revoked"] == []
    assert described["stats"]["broker"]["transport"] == "redis"
    for path in ("/", "/workers", f"/worker/{NODE}"):
        assert NODE in seen.page(path)
    assert str(described["stats"]["pid"]) in seen.page(f"/worker/{NODE}")


def tasks_are_sent_and_followed(seen: Flower) -> dict[str, str]:
    """Return the ids of one task of each kind of end."""
    applied = seen.send("add", 2, 3, how="apply", timeout=20)
    assert (applied["state"], applied["result"]) == ("SUCCESS", 5)
    sent = {
        "added": seen.send("add", 4, 5)["task-id"],
        "named": seen.send("add", 6, 7, how="send-task")["task-id"],
        "failed": seen.send("fail")["task-id"],
        "again": seen.send("again")["task-id"],
    }
    assert seen.get(f"/api/task/result/{sent['added']}?timeout=20")["result"] == 9
    assert seen.get(f"/api/task/result/{sent['named']}?timeout=20")["result"] == 13
    # Flower looks at the state first and then waits for the result, so what has not ended is PENDING with a traceback.
    eventually(lambda: seen.get(f"/api/task/result/{sent['failed']}?timeout=20")["state"] == "FAILURE")
    failure = seen.get(f"/api/task/result/{sent['failed']}?timeout=20")
    assert "ValueError" in failure["traceback"] and "no" in str(failure["result"])

    added = seen.until(sent["added"], "SUCCESS")
    assert (added["name"], added["args"], added["kwargs"], added["result"]) == ("add", "[4, 5]", "{}", "9")
    assert added["worker"] == NODE and added["retries"] == 0 and added["runtime"] > 0 and added["clock"] > 0
    assert added["received"] <= added["started"] <= added["succeeded"] == added["timestamp"]
    failed = seen.until(sent["failed"], "FAILURE")
    assert failed["exception"] == "ValueError('no')" and "Traceback" in failed["traceback"] and failed["failed"]
    again = seen.until(sent["again"], "SUCCESS")
    assert again["retries"] == 1 and again["retried"]
    assert seen.get("/api/task/types") == {"task-types": ["add", "again", "fail"]}
    found = seen.get("/api/tasks?state=FAILURE")
    assert list(found) == [sent["failed"]] and found[sent["failed"]]["worker"] == NODE
    assert set(seen.get("/api/tasks?taskname=add")) == {applied["task-id"], sent["added"], sent["named"]}
    assert "ValueError" in seen.page(f"/task/{sent['failed']}")
    assert sent["added"] in seen.page(f"/task/{sent['added']}")
    return sent


def what_runs_is_shown_and_ended(seen: Flower, tmp_path: Path) -> None:
    path = tmp_path / "go"
    held = seen.send("hold", str(path))["task-id"]
    eventually(lambda: Path(f"{path}.started").exists())
    (active,) = seen.worker()["active"]
    assert (active["id"], active["name"]) == (held, "hold") and str(path) in str(active["args"])
    assert active["worker_pid"] in seen.worker()["stats"]["pool"]["processes"]
    assert held in seen.page(f"/worker/{NODE}")
    eventually(
        lambda: 'flower_worker_number_of_currently_executing_tasks{worker="w1@box"} 1.0' in seen.page("/metrics")
    )
    assert seen.order(f"/api/task/revoke/{held}", terminate="true") == f"Revoked '{held}'"
    ended = seen.until(held, "REVOKED")
    assert ended["revoked"]
    assert seen.get(f"/api/task/result/{held}?timeout=20")["state"] == "REVOKED"

    early = seen.send("add", 1, 1, countdown=3600)["task-id"]
    eventually(lambda: [each["request"]["id"] for each in seen.worker()["scheduled"]] == [early])
    assert early in seen.page(f"/worker/{NODE}")
    assert seen.order(f"/api/task/revoke/{early}") == f"Revoked '{early}'"
    eventually(lambda: early in seen.worker()["revoked"])


def the_numbers_are_right(seen: Flower, sent: dict[str, str]) -> None:
    def row() -> Any:
        (found,) = seen.get("/workers?json=1")["data"]
        return found

    eventually(lambda: row()["active"] == 0 and row()["task-succeeded"] == 4)
    found = row()
    assert (found["hostname"], found["status"], found["task-failed"]) == (NODE, True, 1)
    assert len(found["loadavg"]) == 3 and found["pid"] == seen.worker()["stats"]["pid"]
    assert seen.worker()["stats"]["total"]["fail"] == 1
    metrics = seen.page("/metrics")
    assert 'flower_worker_online{worker="w1@box"} 1.0' in metrics
    assert 'flower_events_total{task="fail",type="task-failed",worker="w1@box"} 1.0' in metrics
    assert 'flower_task_runtime_seconds_count{task="add",worker="w1@box"} 3.0' in metrics
    assert seen.get("/api/queues/length") == {"active_queues": [{"name": "celery", "messages": 0}]}
    assert "celery" in seen.page("/broker")
    assert seen.page("/healthcheck") == "OK"


def limits_queues_and_processes_are_changed(seen: Flower) -> None:
    limit = seen.order("/api/task/rate-limit/add", workername=NODE, ratelimit="100/m")
    assert limit == "new rate limit set successfully"
    assert any("rate_limit=100/m" in each for each in seen.worker()["registered"])
    limit = seen.order("/api/task/timeout/add", workername=NODE, soft="30", hard="60")
    assert limit == "time limits set successfully"
    assert seen.order(f"/api/worker/pool/grow/{NODE}", n=2) == f"Growing '{NODE}' worker's pool by 2"
    processes = lambda: len(seen.worker()["stats"]["pool"]["processes"])  # noqa: E731
    eventually(lambda: processes() == 4)
    assert seen.order(f"/api/worker/pool/shrink/{NODE}", n=3) == f"Shrinking '{NODE}' worker's pool by 3"
    eventually(lambda: processes() == 1)
    for path, form in (("pool/autoscale", {"min": 1, "max": 2}), ("pool/restart", {})):
        status, text = seen.ask(f"/api/worker/{path}/{NODE}", post=form)
        assert status == 403 and "not enabled" in text, text

    assert seen.order(f"/api/worker/queue/add-consumer/{NODE}", queue="other") == "add consumer other"
    answer = seen.send("add", 20, 22, how="apply", timeout=20, queue="other")
    assert (answer["state"], answer["result"]) == ("SUCCESS", 42)
    gone = seen.order(f"/api/worker/queue/cancel-consumer/{NODE}", queue="other")
    assert gone == "no longer consuming from other"
    eventually(lambda: [queue["name"] for queue in seen.worker()["active_queues"]] == ["celery"])
    assert quote("other") not in json.dumps(seen.worker()["active_queues"])
