"""The dashboard's tasks: searched, explained, sent once more and revoked, with a real worker."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dashboard_support import Server, Visitor, served
from support import environment, eventually, worker
from umbel import Umbel
from umbel.dashboard.pages.tasks import progress_of
from umbel.loading import find_app

TASKS = """
import os
import time

from umbel import Umbel

app = Umbel("{name}", broker="{url}", backend="{url}")
app.conf.task_send_sent_event = True


@app.task(name="fail")
def fail(order):
    if not os.path.exists("{folder}/paid"):
        raise ValueError(f"no money for order {{order}}")
    return order


@app.task(name="climb", bind=True)
def climb(self, path):
    self.update_state(state="PROGRESS", meta={{"done": 3, "total": 8, "text": "up <b>there</b>"}})
    while os.path.exists(path):
        time.sleep(0.05)


@app.task(name="login", sensitive=["password"])
def login(user, password):
    return user
"""


class Shop:
    def __init__(self, app: Any, server: Server, folder: Path, name: str) -> None:
        self.app, self.server, self.folder, self.name = app, server, folder, name
        self.visitor = Visitor(server.url)

    def get(self, path: str, status: int = 200) -> str:
        answer = self.visitor.get(path)
        assert answer.status == status, answer.text
        return html.unescape(answer.text)

    def act(self, path: str, status: int = 303, **form: Any) -> str:
        answer = self.visitor.post(path, {"token": self.visitor.get("/tasks").token, **form})
        assert answer.status == status, (answer.status, answer.text)
        return answer.text if status != 303 else html.unescape(self.visitor.get(answer.headers["location"]).text)

    def worker(self) -> Any:
        return worker(self.name, "-l", "info", "-c", "1", "-n", "w1@box", "-E", cwd=self.folder, env=environment())


@pytest.fixture
def shop(tmp_path: Path, sqlite_url: str) -> Iterator[Shop]:
    name = f"site_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TASKS.format(name=name, url=sqlite_url, folder=tmp_path))
    sys.path.insert(0, str(tmp_path))
    try:
        app = find_app(name, Umbel)
    finally:
        sys.path.remove(str(tmp_path))
    with served(app) as server:
        teller = app.events.Dispatcher(hostname="probe@box")

        def listens() -> bool:
            # Events are for those who listen: what is sent before that is not recorded.
            teller.send("worker-heartbeat")
            return "probe@box" in server.site.live.state.workers

        eventually(listens)
        yield Shop(app, server, tmp_path, name)
    app.close()


def recorded(shop: Shop, query: str, count: int) -> None:
    eventually(lambda: len(shop.server.site.recording.history.tasks(query).tasks) == count)


def test_search_and_replay(shop: Shop) -> None:
    assert "Nothing was recorded yet" in shop.get("/tasks")
    with shop.worker():
        failed = [shop.app.send_task("fail", [order]) for order in (1, 2, 3)]
        recorded(shop, "state:failed", 3)
        page = shop.get("/tasks?q=state%3Afailed")
        assert all(f"/task?id={each.id}" in page for each in failed)
        assert "ValueError('no money for order 2')" in page
        assert "umbel -A shop tasks retry --where state:failed --rate 10/s --yes" in page
        assert "No recorded task fits." in shop.get("/tasks?q=nothing-like-it")
        assert "did you mean 'state'?" in shop.get("/tasks?q=staet%3Afailed", 400)
        (shop.folder / "paid").touch()
        assert "Sending 1 task once more" in shop.act("/tasks/retry", id=failed[0].id)
        eventually(lambda: shop.server.site.recording.replay.ended == "done")
        recorded(shop, "state:success", 1)
        # Not the one in whose place another was sent.
        assert "Sending 2 tasks once more" in shop.act("/tasks/retry", all="1", q="state:failed", rate="50/s")
        recorded(shop, "state:success", 3)
        eventually(lambda: shop.server.site.recording.replay.ended == "done")
        assert "Sent once more: 2 of 2" in shop.get("/tasks")
        assert "nothing fits" not in shop.act("/tasks/retry", 400)
        assert "is no rate" in shop.act("/tasks/retry", 400, id="x", rate="fast")
        actions = (
            [line.action for line in shop.server.site.audit.lines()] if hasattr(shop.server.site.audit, "lines") else []
        )
        assert not actions or "tasks.retry" in actions


def test_one_task_with_its_attempts_and_why(shop: Shop) -> None:
    waiting = shop.app.send_task("fail", [17])
    page = shop.get(f"/task?id={waiting.id}")
    assert "number 1 of 1 in the queue 'celery', and no worker is running" in page
    assert "Why it is not running" in page and f"umbel -A shop tasks why {waiting.id}" in page
    assert '"task": "fail"' in page and "[[17], {}" in page
    mark = shop.folder / "mark"
    mark.touch()
    with shop.worker():
        recorded(shop, "state:failed", 1)
        page = shop.get(f"/task?id={waiting.id}")
        assert "Traceback of attempt 1" in page and "ValueError: no money for order 17" in page
        assert "Why it is not running" not in page and "Where is it now?" in page
        assert "It has ended" in shop.get(f"/task?id={waiting.id}&why=1")
        running = shop.app.send_task("climb", [str(mark)])
        eventually(lambda: "3 of 8" in shop.get(f"/task?id={running.id}"))
        answer = shop.visitor.get(f"/task?id={running.id}")
        assert '<progress value="3.0" max="8.0"' in answer.text and "up &lt;b&gt;there&lt;/b&gt;" in answer.text
        eventually(lambda: "on w1@box in process" in shop.get(f"/task?id={running.id}&why=1"))
        mark.unlink()
    shop.get("/task?id=nobody-knows-me", 404)


def test_revoking_what_waits(shop: Shop) -> None:
    waiting = [shop.app.send_task("fail", [order]) for order in range(2)]
    recorded(shop, "name:fail", 2)
    assert "2 tasks revoked." in shop.act("/tasks/revoke", all="1", q="name:fail")
    assert "It was revoked" in shop.get(f"/task?id={waiting[0].id}")


def test_hostile_names_are_text_and_hidden_arguments_stay_hidden(shop: Shop) -> None:
    hostile = "<script>alert(1)</script>"
    history = shop.server.site.recording.history
    fields = ("uuid", "hostname", "name", "args", "kwargs", "exception", "traceback", "queue")
    history.record(
        [{"type": "task-failed", "timestamp": 1.9e9, "root_id": hostile + "x", **dict.fromkeys(fields, hostile)}]
    )
    for path in ("/tasks", f"/tasks?q={quote(hostile)}", f"/task?id={quote(hostile)}"):
        answer = shop.visitor.get(path)
        assert answer.status == 200 and "<script>alert" not in answer.text and "&lt;script&gt;alert" in answer.text
    secret = shop.app.send_task("login", ["eva", "hunter2"])
    page = shop.visitor.get(f"/task?id={secret.id}").text
    assert "hunter2" not in page and "The message as it is" in page


def test_what_is_progress_and_what_is_not() -> None:
    assert progress_of({"state": "PROGRESS", "result": {"current": 2, "total": 4}}) == (2.0, 4.0, "")
    for result in (None, 5, {"current": 2}, {"done": "x", "total": 4}, {"done": 1, "total": 0}):
        assert progress_of({"state": "PROGRESS", "result": result}) is None
    assert progress_of({"state": "SUCCESS", "result": {"current": 2, "total": 4}}) is None
