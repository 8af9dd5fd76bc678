"""The history of real workers: recorded, searched, shown, and sent once more, on each broker and in the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.cli.errors import Trouble
from umbel.cli.options import Target
from umbel.cli.tasks import replay
from umbel.exceptions import OperationalError, QueueNotFound
from umbel.history import History, Recorder, open_history
from umbel.history.replay import REPLAY_OF, Replayer
from umbel.interfaces import ResultRecord
from umbel.message import decode_envelope

TASKS = """
import os

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.history_file = os.environ["KEPT"]
app.conf.update(task_send_sent_event=True, task_dead_letter_exhausted=True, lease_sweep=1.0)


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="pay", bind=True, max_retries=1, default_retry_delay=0)
def pay(self, order):
    if os.path.exists("paid"):
        return "paid"
    try:
        raise ValueError(f"no money for order {order}")
    except ValueError as error:
        raise self.retry(exc=error)


@app.task(name="fail")
def fail(order, note=None):
    if not os.path.exists("paid"):
        raise KeyError(f"order {order}")
    return order


@app.task(name="login", sensitive=["password"])
def login(user, password):
    return user
"""


class Site:
    """The tasks in a folder of their own, and a client of them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.env = environment(URL=url, UMBEL_HOME=str(folder / "home"))
        (folder / "jobs.py").write_text(TASKS)
        self.app = Umbel("jobs", broker=url, backend=url, set_as_current=False, task_send_sent_event=True)
        self.app.conf.history_file = str(folder / "kept.db")
        self.env["KEPT"] = str(folder / "kept.db")

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(name, args=args, **options)

    def worker(self, *options: str) -> Any:
        return worker("jobs", "-l", "info", "-c", "1", "-n", "w1@box", *options, cwd=self.folder, env=self.env)

    def umbel(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", "jobs", *args]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self.umbel(*args, "-o", "json").stdout)

    @contextmanager
    def recorder(self, **options: Any) -> Iterator[History]:
        history = open_history(self.app, create=True)
        assert history is not None
        recorder = Recorder(self.app, history, **options)
        recorder.start()
        try:
            eventually(lambda: recorder.status.listening)
            yield history
        finally:
            recorder.stop()
            history.close()


@pytest.fixture(params=["sqlite", "redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = request.getfixturevalue(f"{request.param}_url")
    made = Site(tmp_path, url)
    if request.param == "rabbitmq":
        results = f"sqlite:///{tmp_path}/results.db"
        made.env["UMBEL_RESULT_BACKEND"] = results
        made.app.close()
        made.app = Umbel("jobs", broker=url, backend=results, set_as_current=False, task_send_sent_event=True)
        made.app.conf.history_file = made.env["KEPT"]
    yield made
    made.app.close()


@pytest.fixture
def local(sqlite_url: str, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, sqlite_url)
    yield made
    made.app.close()


def ended(history: History, *ids: str) -> bool:
    rows = [history.task(id) for id in ids]
    return all(row is not None and row.ready for row in rows)


def test_what_workers_do_is_recorded(site: Site) -> None:
    with site.recorder() as history, site.worker("-E"):
        good, bad = site.send("add", 2, 3), site.send("pay", 17)
        eventually(lambda: ended(history, good.id, bad.id))
        row = history.task(good.id)
        assert row is not None
        assert (row.name, row.state, row.result, row.worker, row.queue) == ("add", "SUCCESS", "5", "w1@box", "celery")
        assert row.args == "(2, 3)" and row.sent and row.received and row.started and row.ended
        assert [each.kind for each in history.timeline(good.id)] == ["sent", "received", "started", "succeeded"]
        first, last = history.attempts(bad.id)
        assert (first.state, last.state) == ("RETRY", "FAILURE")
        assert last.traceback is not None and "no money for order 17" in last.traceback
        (group,) = history.errors()
        assert (group.type, group.count, group.message) == ("ValueError", 2, "no money for order <n>")
        assert [row.id for row in history.tasks("state:failed order").tasks] == [bad.id]


def test_a_recorder_makes_workers_talk_where_the_broker_is_sqlite(local: Site) -> None:
    with local.worker(), local.recorder() as history:
        # The worker may hear of it a moment after this: until then it says nothing of what it does.
        def recorded() -> bool:
            local.send("add", 1, 1).get(timeout=20)
            return bool(history.tasks("state:success").tasks)

        eventually(recorded)


def test_what_is_sensitive_is_not_on_the_disk(local: Site) -> None:
    with local.recorder() as history, local.worker("-E"):
        # This client knows the task by its name alone.
        sent = local.send("login", "eva", "hunter2")
        eventually(lambda: ended(history, sent.id))
    # The one who said "sent" did not know; without the app's tasks only what the worker says is veiled.
    timeline = local.umbel("tasks", "show", sent.id).stdout
    assert "***" in local.json("tasks", "list")["data"][0].get("args", "***") and sent.id in timeline


def test_history_record_knows_what_is_sensitive(local: Site) -> None:
    command = [sys.executable, "-m", "umbel", "-A", "jobs", "history", "record"]
    recording = WorkerProcess(command, local.folder, local.env)
    recording.expect("ready.")
    kept = open_history(local.app, create=True)
    assert kept is not None
    with local.worker("-E"):
        local.send("login", "eva", "hunter2").get(timeout=20)
        eventually(lambda: bool(kept.tasks("state:success").tasks))
    assert recording.stop(signal.SIGTERM) == 0, recording.output
    recording.expect("events recorded")
    (row,) = kept.tasks().tasks
    assert (row.name, row.args, row.result) == ("login", "***", "'eva'")
    kept.close()
    assert b"hunter2" not in Path(kept.path).read_bytes()


def test_the_terminal_lists_shows_and_counts(local: Site) -> None:
    said = local.umbel("tasks", "list", code=3)
    assert "umbel history record" in said.stderr
    with local.recorder() as history, local.worker("-E"):
        good, bad = local.send("add", 2, 3), local.send("pay", 17)
        eventually(lambda: ended(history, good.id, bad.id))
    listed = local.json("tasks", "list")
    assert listed["schema"] == "umbel.tasks.list/1" and listed["next"] is None
    assert {row["id"]: row["state"] for row in listed["data"]} == {good.id: "SUCCESS", bad.id: "FAILURE"}
    page = local.json("tasks", "list", "--limit", "1")
    (rest,) = local.json("tasks", "list", "--after", str(page["next"]))["data"]
    assert {page["data"][0]["id"], rest["id"]} == {good.id, bad.id}
    lines = local.umbel("tasks", "list", "state:failed", "name:pa*").stdout.splitlines()
    assert len(lines) == 1 and lines[0].split("\t")[:3] == [bad.id, "pay", "FAILURE"]
    assert "did you mean 'state'?" in local.umbel("tasks", "list", "staet:failed", code=2).stderr
    body = local.json("tasks", "show", bad.id)["data"]
    assert [each["state"] for each in body["attempts"]] == ["RETRY", "FAILURE"]
    assert body["stored"]["result"] == "ValueError: no money for order 17"
    text = local.umbel("tasks", "show", bad.id).stdout
    assert "Attempt 2 on w1@box:" in text and "ValueError: no money for order 17" in text
    assert "tasks why" in local.umbel("tasks", "show", "nobody", code=3).stderr
    (group,) = local.json("errors", "list", "--since", "1h")["data"]
    assert (group["type"], group["count"], group["task"]) == ("ValueError", 2, "pay")
    assert "Traceback" in local.umbel("errors", "show", group["error"][:5]).stdout
    local.umbel("errors", "show", "zz", code=3)
    status = local.json("history", "status")["data"]
    assert status["tasks"] == 2 and status["states"] == {"SUCCESS": 1, "FAILURE": 1}
    assert "2 tasks forgotten" in local.umbel("history", "prune", "--max-age", "0.000001").stderr
    assert local.json("tasks", "list")["data"] == []


def test_what_failed_is_sent_once_more(site: Site) -> None:
    with site.recorder() as history, site.worker("-E"):
        # One dies with a letter, the others just fail.
        pay, fail = site.send("pay", 17), [site.send("fail", order, kwargs={"note": "x"}) for order in (1, 2)]
        eventually(lambda: ended(history, pay.id, *(each.id for each in fail)))
        (site.folder / "paid").touch()
        dry = site.json("tasks", "retry", "--where", "state:failed", "--dry-run")
        assert {row["id"] for row in dry["data"]} == {pay.id, fail[0].id, fail[1].id}
        assert "--yes" in site.umbel("tasks", "retry", "--where", "state:failed", code=4).stderr
        done = site.json("tasks", "retry", "--where", "state:failed", "--yes", "--rate", "20/s")["data"]
        sources = {row["id"]: (row["source"], row["new_id"]) for row in done}
        assert sources[pay.id] == ("dead letter", pay.id)
        news = [sources[each.id] for each in fail]
        assert [source for source, _ in news] == ["events", "events"]
        eventually(lambda: ended(history, *(id for _, id in news)))
        assert sorted(site.app.AsyncResult(id).get(timeout=20) for _, id in news) == [1, 2]
        row = history.task(news[0][1])
        assert row is not None and row.kwargs == "{'note': 'x'}"
        eventually(lambda: (found := history.task(pay.id)) is not None and found.state == "SUCCESS")


def test_a_group_of_errors_is_sent_once_more(local: Site) -> None:
    with local.recorder() as history, local.worker("-E"):
        failed = [local.send("fail", order) for order in range(4)]
        eventually(lambda: ended(history, *(each.id for each in failed)))
        (local.folder / "paid").touch()
        (group,) = local.json("errors", "list")["data"]
        done = local.json("errors", "retry", group["error"], "--limit", "3", "--yes")["data"]
        assert len(done) == 3
        eventually(lambda: ended(history, *(row["new_id"] for row in done)))
        # Those three are not sent a second time.
        rest = local.json("errors", "retry", group["error"], "--yes")["data"]
        assert {row["id"] for row in [*done, *rest]} == {each.id for each in failed} and len(rest) == 1
        again = local.json("tasks", "retry", "--where", "state:failed replayed:yes", "--limit", "1", "--yes")["data"]
        assert len(again) == 1
    first = local.app.AsyncResult(done[0]["new_id"]).get(timeout=20)
    assert first in range(4)


def test_what_was_not_kept_whole_is_not_sent(local: Site) -> None:
    history = open_history(local.app, create=True)
    assert history is not None
    texts = {
        "cut": "('" + "x" * 20 + "...',)",
        "hidden": "('eva', ***)",
        "object": "(<Order 17>,)",
        "odd": "17",
        "path": r"('C:\new',)",
        "bytes": "(['x', b'ff00'],)",
        "none": None,
    }
    for id, text in texts.items():
        event = {
            "type": "task-received",
            "uuid": id,
            "timestamp": 1.9e9,
            "hostname": "w",
            "name": "add",
            "kwargs": "{}",
        }
        history.record([{**event, "args": text} if text is not None else event])
    replayer = Replayer(local.app, history)
    for id, word in (("cut", "too long"), ("hidden", "sensitive"), ("object", "plain values"), ("odd", "not readable"),
                     ("path", "backslash"), ("bytes", "hold bytes"), ("none", "nobody told"),
                     ("unknown", "neither")):  # fmt: skip
        done = replayer.one(id)
        assert not done.new_id and word in done.refusal, (id, done)
    assert local.app.broker.size("celery") == 0
    history.close()
    assert "too long" in local.umbel("tasks", "retry", "cut", "hidden", code=5).stderr


def test_what_was_sent_before_it_broke_off_is_told(local: Site) -> None:
    """The queue of the third is nobody's, and at the fourth the broker is away."""
    history = open_history(local.app, create=True)
    assert history is not None
    for number in range(5):
        history.record([{"type": "task-received", "uuid": f"id-{number}", "timestamp": 1.9e9, "hostname": "w",
                         "name": "add", "args": f"({number}, 2)", "kwargs": "{}"}])  # fmt: skip
    sent: list[str] = []

    def send_task(name: str, args: Any, **options: Any) -> Any:
        if args[0] == 2:
            raise QueueNotFound("no queue of this name")
        if args[0] == 3:
            raise OperationalError("away")
        sent.append(name)
        return Umbel.send_task(local.app, name, args=args, **options)

    local.app.send_task = send_task  # type: ignore[method-assign]
    told: list[Any] = []
    with pytest.raises(OperationalError):
        told.extend(Replayer(local.app, history).all([f"id-{number}" for number in range(5)]))
    assert [row.id for row in history.tasks("replayed:yes").tasks] == ["id-1", "id-0"] and len(sent) == 2
    target = Target()
    target.quiet = True
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(Trouble, match="stopped after 3 of 5: away"):
        replay(target, local.app, [f"id-{number}" for number in range(5)], rate="0", dry_run=False, output="json")
    rows = json.loads(out.getvalue())["data"]
    assert [bool(row["new_id"]) for row in rows] == [True, True, False]
    assert "no queue of this name" in rows[2]["refusal"]
    history.close()


def test_a_stored_routing_key_is_no_queue(local: Site) -> None:
    local.app.conf.result_extended = True
    history = open_history(local.app, create=True)
    assert history is not None
    history.record([{"type": "task-sent", "uuid": "id-1", "timestamp": 1.9e9, "hostname": "w", "name": "add",
                     "args": "(1, 2)", "kwargs": "{}", "queue": "eu"}])  # fmt: skip
    meta = {"status": "FAILURE", "result": None, "task_id": "id-1", "name": "add", "args": [1, 2], "kwargs": {},
            "queue": "order.eu.bill"}  # fmt: skip
    local.app.backend.store(
        ResultRecord(task_id="id-1", state="FAILURE", payload=json.dumps(meta).encode(), expires=60)
    )
    done = Replayer(local.app, history).one("id-1")
    assert done.source == "result"
    assert (local.app.broker.size("eu"), local.app.broker.size("order.eu.bill")) == (1, 0)
    history.close()


def test_replay_keeps_to_its_rate_and_names_its_origin(local: Site) -> None:
    history = open_history(local.app, create=True)
    assert history is not None
    for number in range(5):
        history.record([{"type": "task-received", "uuid": f"id-{number}", "timestamp": 1.9e9, "hostname": "w",
                         "name": "add", "args": "(1, 2)", "kwargs": "{}"}])  # fmt: skip
    began = time.monotonic()
    for done in Replayer(local.app, history).all([f"id-{number}" for number in range(5)], rate=10.0):
        assert done.source == "events"
    assert time.monotonic() - began >= 0.4
    origins = [decode_envelope(seen.raw).headers[REPLAY_OF] for seen in local.app.broker.peek("celery")]
    assert origins == [f"id-{number}" for number in range(5)]
    history.close()


def test_revoking_by_a_query(local: Site) -> None:
    with local.recorder() as history:
        sent = [local.send("add", 1, 2) for _ in range(3)]
        eventually(lambda: len(history.tasks().tasks) == 3)
    assert "--yes" in local.umbel("tasks", "revoke", "--where", "name:add", code=4).stderr
    done = local.json("tasks", "revoke", "--where", "name:add", "--yes")
    assert {row["id"] for row in done["data"]} == {each.id for each in sent}
    assert "was revoked" in local.umbel("tasks", "why", sent[0].id).stdout
    assert "not both" in local.umbel("tasks", "revoke", "x", "--where", "name:add", code=2).stderr


def test_the_recorder_goes_on_when_the_file_cannot_be_written(local: Site) -> None:
    history = open_history(local.app, create=True)
    assert history is not None
    recorder = Recorder(local.app, history, enable=False, hears=False)
    recorder.start()
    blocker = sqlite3.connect(history.path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    event = {"type": "task-received", "uuid": "a", "timestamp": 1.9e9, "hostname": "w", "name": "add"}
    recorder.heard(event)
    recorder.heard({"type": "worker-heartbeat"})
    eventually(lambda: bool(recorder.status.trouble))
    assert recorder.status.waiting == 1 and recorder.status.written == 0
    blocker.execute("ROLLBACK")
    blocker.close()
    eventually(lambda: recorder.status.written == 1)
    recorder.heard({**event, "uuid": "b"})
    recorder.stop()
    recorder.stop()
    assert [row.id for row in history.tasks().tasks] == ["b", "a"]
    history.close()
