"""Why a task is not running: each answer, of real workers and a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.interfaces import Dead, Settlement
from umbel.testing.broker_base import outgoing
from umbel.why import VERDICTS, Answer, why

TASKS = """
import os
import signal
import time

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(lease_ttl=6.0, lease_heartbeat=1.0, lease_sweep=1.0, redelivery_backoff=(60, 60))
app.conf.task_unknown_backoff = (60,)


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="wait")
def wait(path):
    open(path, "w").close()
    while os.path.exists(path):
        time.sleep(0.05)


@app.task(name="limited", rate_limit="1/h")
def limited():
    return 1


@app.task(name="again", bind=True)
def again(self):
    raise self.retry(exc=OSError("gone"), countdown=600)


@app.task(name="fail")
def fail():
    raise ValueError("no such order")


@app.task(name="die")
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Site:
    """The tasks in a folder of their own, and a client that asks about them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.env = folder, url, environment(URL=url)
        self.app = Umbel("jobs", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)

    def send(self, name: str, *args: Any, **options: Any) -> str:
        return str(self.app.send_task(name, args=args, **options).id)

    def why(self, id: str) -> Answer:
        answer = why(self.app, id, timeout=5.0)
        assert answer.verdict in VERDICTS
        return answer

    def expect(self, id: str, verdict: str) -> Answer:
        """Ask until this is the answer."""
        last: list[Answer] = []

        def is_it() -> bool:
            last[:] = [self.why(id)]
            return last[0].verdict == verdict

        try:
            eventually(is_it)
        except AssertionError:
            raise AssertionError(f"not {verdict}, but {last}") from None
        return last[0]

    def worker(self, *options: str, status: int | None = 0) -> Any:
        return worker("jobs", "-l", "info", *options, cwd=self.folder, env=self.env, status=status)

    def umbel(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", "jobs", *args]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, request.getfixturevalue(f"{request.param}_url"))
    yield made
    made.app.close()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def quiet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site where no worker runs."""
    memory = f"memory://{uuid.uuid4().hex}"
    made = Site(tmp_path, memory if request.param == "memory" else request.getfixturevalue(f"{request.param}_url"))
    yield made
    made.app.close()


# -- without a worker --------------------------------------------------------------------------------------------


def test_an_id_that_nobody_knows(quiet: Site) -> None:
    answer = quiet.why("nobody-sent-me")
    assert answer.verdict == "unknown" and not answer.unseen
    assert "check the id" in answer.advice[0]


def test_nobody_reads_the_queue(quiet: Site) -> None:
    first, second = quiet.send("add", 1, 2), quiet.send("add", 1, 2)
    answer = quiet.why(second)
    assert answer.verdict == "no_worker"
    assert "number 2 of 2 in the queue 'celery', and no worker is running" in answer.text
    assert (answer.facts["position"], answer.facts["of"], answer.facts["queue"]) == (2, 2, "celery")
    assert "worker -Q celery" in answer.advice[0]
    assert quiet.why(first).facts["position"] == 1


def test_its_queue_is_paused(quiet: Site) -> None:
    id, later = quiet.send("add", 1, 2), quiet.send("add", 1, 2, countdown=3600)
    quiet.app.queues.pause("celery", "the provider is down", by="ann")
    answer = quiet.why(id)
    assert answer.verdict == "paused"
    assert "number 1 of 1 in the queue 'celery', and its queue is paused since " in answer.text
    assert "by ann (the provider is down)" in answer.text
    assert answer.advice[0] == "umbel queues resume celery"
    assert answer.facts["paused"]["by"] == "ann"
    assert quiet.why(later).verdict == "paused" and "in the schedule, due at" in quiet.why(later).text
    # That nobody would run it says more.
    quiet.app.control.revoke(id)
    assert quiet.why(id).verdict == "revoked"
    quiet.app.queues.resume("celery")
    assert quiet.why(later).verdict == "no_worker"


def test_revoked_while_it_waits(quiet: Site) -> None:
    id = quiet.send("add", 1, 2)
    quiet.app.control.revoke(id)
    assert quiet.why(id).verdict == "revoked"
    quiet.app.control.purge()
    assert quiet.why(id).verdict == "revoked"


def test_expired_while_it_waits(quiet: Site) -> None:
    id = quiet.send("add", 1, 2, expires=datetime.now(UTC) - timedelta(seconds=1))
    answer = quiet.why(id)
    assert answer.verdict == "expired" and "before anybody ran it" in answer.text


def test_at_a_gate(quiet: Site) -> None:
    quiet.app.broker.publish([outgoing(queue="celery", task_id="gated", gate="one-by-one")])
    answer = quiet.why("gated")
    assert (answer.verdict, answer.facts["gate"]) == ("gate", "one-by-one")


def test_a_dead_letter(quiet: Site) -> None:
    id = quiet.send("add", 1, 2)
    with _Held(quiet, id) as (consumer, delivery):
        consumer.settle([Settlement(delivery=delivery, how=Dead("rejected", "the order is no order"))])
        answer = quiet.why(id)
    assert (answer.verdict, answer.facts["reason"]) == ("dead", "rejected")
    assert "The order is no order." in answer.text
    assert any(f"dead requeue {id}" in advice for advice in answer.advice)


def test_held_by_somebody_who_does_not_answer(quiet: Site) -> None:
    id = quiet.send("add", 1, 2)
    with _Held(quiet, id):
        answer = why(quiet.app, id, timeout=0.2)
    assert (answer.verdict, answer.facts["node"]) == ("held", "silent@box")
    assert answer.unseen


def test_what_only_speaks_of_a_task_is_not_it(quiet: Site) -> None:
    quiet.send("add", "the-id-in-question", 2)
    assert quiet.why("the-id-in-question").verdict == "unknown"


class _Held:
    """Holds the first message of the queue, as a worker does that nobody can reach."""

    def __init__(self, site: Site, id: str) -> None:
        self._leases = site.app.broker.leases()
        self._id = self._leases.register("silent@box")
        self._consumer = site.app.broker.consumer(self._id, ["celery"])

    def __enter__(self) -> Any:
        (delivery,) = self._consumer.reserve(1)
        return self._consumer, delivery

    def __exit__(self, *error: object) -> None:
        self._consumer.close()
        self._leases.release(self._id)
        self._leases.close()


# -- with workers ------------------------------------------------------------------------------------------------


def test_a_life_from_the_queue_to_the_end(site: Site) -> None:
    mark = site.folder / "mark"
    running, behind = site.send("wait", str(mark)), site.send("add", 1, 2)
    later = site.send("add", 1, 2, countdown=3600)
    with site.worker("-c", "1", "-n", "w1@box"):
        eventually(mark.exists)
        answer = site.expect(running, "running")
        assert answer.facts["node"] == "w1@box" and answer.facts["pid"] and "since" in answer.facts
        assert f"tasks revoke {running} --terminate" in answer.advice[0]
        waiting = site.why(behind)
        assert waiting.verdict in ("queued", "reserved"), waiting
        answer = site.why(later)
        assert answer.verdict == "scheduled" and "as its sender asked" in answer.text
        due = datetime.fromisoformat(answer.facts["eta"]) - datetime.now(UTC)
        assert timedelta(minutes=55) < due < timedelta(minutes=61)
        other = site.send("add", 1, 2, queue="nobody-reads-me")
        answer = site.why(other)
        if site.url.startswith("sqlite"):
            assert answer.verdict == "no_worker"
        mark.unlink()
        assert "SUCCESS" in site.expect(behind, "finished").text
        assert site.expect(running, "finished").facts["state"] == "SUCCESS"


def test_a_queue_that_no_worker_reads(site: Site) -> None:
    site.app.conf.task_queues = None
    site.app.conf.task_default_queue = "mail"
    id = site.send("add", 1, 2)
    with site.worker("-c", "1", "-n", "w1@box", "-Q", "stock"):
        answer = site.expect(id, "no_worker")
        assert "w1@box reads stock" in answer.text
        assert answer.facts["readers"] == {"w1@box": ["stock"]}
        assert any("add_consumer mail" in advice for advice in answer.advice)


def test_put_off_for_a_rate_a_retry_or_an_unknown_name(site: Site) -> None:
    first, second = site.send("limited"), site.send("limited")
    again, strange = site.send("again"), site.send("nobody.knows.me")
    failing = site.send("fail")
    with site.worker("-c", "1", "-n", "w1@box"):
        site.expect(first, "finished")
        answer = site.expect(second, "rate_limited")
        assert "1/h" in answer.text and answer.facts["rate_limit"] == "1/h"
        answer = site.expect(again, "retrying")
        assert answer.facts["retries"] == 1
        answer = site.expect(strange, "unregistered")
        assert "'nobody.knows.me'" in answer.text
        answer = site.expect(failing, "finished")
        assert "FAILURE: ValueError: no such order" in answer.text


def test_a_task_that_kills_its_worker(site: Site) -> None:
    id = site.send("die")
    with site.worker("-c", "1", "-n", "w1@box"):
        eventually(lambda: len(site.why(id).facts.get("crashes", ())) == 2)
        answer = site.expect(id, "redelivered")
        assert "2 times" in answer.text and "w1@box" in answer.text and "SIGKILL" in answer.text
        assert "It is tried again at" in answer.text


def test_a_worker_that_is_gone_with_what_it_held(site: Site) -> None:
    mark = site.folder / "mark"
    id = site.send("wait", str(mark))
    with site.worker("-c", "1", "-n", "w1@box", status=None) as running:
        eventually(mark.exists)
        _kill_all(running)
        answer = site.expect(id, "lost")
        assert "w1@box has it" in answer.text
    mark.unlink()


def _kill_all(running: WorkerProcess) -> None:
    """Kill the worker's supervisor and everything below it at once, as a power cut does."""
    pids = [running.process.pid]
    for pid in pids:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            children = []
        pids += map(int, children)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


# -- in the terminal ---------------------------------------------------------------------------------------------


def test_the_terminal_says_the_same(site: Site) -> None:
    id = site.send("add", 1, 2)
    said = site.umbel("tasks", "why", id)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("It is number 1 of 1 in the queue 'celery', and no worker is running.\n  - start")
    told = site.umbel("tasks", "why", id, "-o", "json")
    body = json.loads(told.stdout)
    assert body["schema"] == "umbel.tasks.why/1"
    assert (body["data"]["verdict"], body["data"]["facts"]["position"]) == ("no_worker", 1)
    nobody = site.umbel("tasks", "why", "nobody\x1b[2J", "-t", "0.2")
    assert nobody.returncode == 3 and "Nobody knows this id" in nobody.stdout and "\x1b" not in nobody.stdout


def test_rabbitmq_says_what_cannot_be_known(rabbitmq_url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, rabbitmq_url)
    site.app = Umbel("jobs", broker=rabbitmq_url, backend=f"sqlite:///{tmp_path}/results.db", set_as_current=False)
    id = site.send("add", 1, 2)
    answer = why(site.app, id, timeout=0.3)
    assert answer.verdict == "unclear" and answer.unseen
    assert "'celery': 1 waiting" in answer.text and "no worker answers" in answer.text
    site.app.close()


CELERYS = """
import os
import time

from celery import Celery

app = Celery("jobs", broker=os.environ["URL"], backend=os.environ["URL"])


@app.task(name="wait")
def wait(path):
    open(path, "w").close()
    while os.path.exists(path):
        time.sleep(0.05)


@app.task(name="add")
def add(x, y):
    return x + y
"""


def test_what_a_celery_worker_has(redis_url: str, tmp_path: Path) -> None:
    site = Site(tmp_path, redis_url)
    (tmp_path / "celerys.py").write_text(CELERYS)
    mark = tmp_path / "mark"
    options = ("-l", "info", "-c", "1", "-n", "c1@box")
    with worker("celerys", *options, cwd=tmp_path, env=site.env, celery=True, status=None):
        running = site.send("wait", str(mark))
        eventually(mark.exists)
        behind, elsewhere = site.send("add", 1, 2), site.send("add", 1, 2, queue="nobody-reads-me")
        # Celery's worker acknowledges what it starts: that is in no place any more, and it tells of it.
        assert site.expect(running, "running").facts["node"] == "c1@box"
        # What it has taken in advance is among kombu's unacknowledged messages.
        answer = site.expect(behind, "reserved")
        assert (answer.facts["node"], answer.facts["place"], answer.facts["queue"]) == ("c1@box", "held", "celery")
        site.app.conf.task_queues = None
        site.app.conf.task_default_queue = "nobody-reads-me"
        answer = site.expect(elsewhere, "no_worker")
        assert answer.facts["readers"] == {"c1@box": ["celery"]}
        mark.unlink()
        assert site.expect(behind, "finished").facts["state"] == "SUCCESS"
    site.app.close()
