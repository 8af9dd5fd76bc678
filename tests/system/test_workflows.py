"""Workflows as a user sees them: real workers run chains, groups and chords; the pages and the commands show them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboard_support import Server, Visitor, served
from support import environment, eventually, worker
from umbel import Umbel, chain, chord, group
from umbel.dashboard.access import Access, hash_password, read_accounts
from umbel.loading import find_app

# Each command is a process of its own.
pytestmark = pytest.mark.timeout(300)

TASKS = """
import os
import time

from umbel import Umbel

app = Umbel("{name}", broker="{url}", backend="{url}")
app.conf.task_send_sent_event = True
app.conf.history_file = "{folder}/history.db"


@app.task(name="fetch")
def fetch(number=0):
    return number


@app.task(name="pay")
def pay(number=0):
    if not os.path.exists("{folder}/paid"):
        raise ValueError("no money")
    return number


@app.task(name="hold")
def hold():
    while not os.path.exists("{folder}/go"):
        time.sleep(0.05)


@app.task(name="report")
def report(values=None):
    return values


@app.task(name="spread")
def spread():
    for number in range(2):
        fetch.delay(number)
"""


class Shop:
    def __init__(self, app: Any, server: Server, folder: Path, name: str) -> None:
        self.app, self.server, self.folder, self.name = app, server, folder, name
        self.visitor = Visitor(server.url)
        self.task = app.tasks

    def get(self, path: str, status: int = 200) -> str:
        answer = self.visitor.get(path)
        assert answer.status == status, answer.text
        return html.unescape(answer.text)

    def act(self, path: str, **form: Any) -> str:
        answer = self.visitor.post(path, {"token": self.visitor.get("/schedule/new").token, **form})
        assert answer.status == 303, (answer.status, answer.text)
        return html.unescape(self.visitor.get(answer.headers["location"]).text)

    def worker(self) -> Any:
        return worker(self.name, "-l", "info", "-c", "2", "-n", "w1@box", "-E", cwd=self.folder, env=environment())

    def known(self, id: str, **states: int) -> None:
        """Wait until the workflow of a task has so many tasks in these states."""
        history = self.server.site.recording.history
        assert history is not None
        eventually(lambda: (found := history.workflow(id)) is not None and dict(found.states) == states)

    def umbel(self, *words: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "umbel", "-A", self.name, "workflows", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def shop(tmp_path: Path, sqlite_url: str) -> Iterator[Shop]:
    name = f"flows_{tmp_path.name}"
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


def nodes(page: str) -> list[str]:
    """Return what the nodes of the graph say, from top to bottom."""
    graph = page[page.index('class="graph"') : page.index('class="hint legend"')]
    return re.findall(r"<title>(.*?)</title>", graph)


def test_chains_groups_and_what_tasks_send(shop: Shop) -> None:
    task = shop.task
    assert "No workflow was recorded yet" in shop.get("/workflows")
    with shop.worker():
        row = chain(task["fetch"].s(1), task["fetch"].si(2), task["report"].s())()
        some = group(task["fetch"].s(number) for number in range(3))()
        many = group(task["fetch"].s(number) for number in range(35))()
        sender = task["spread"].delay()
        alone = task["fetch"].delay(9)
        shop.known(row.id, SUCCESS=3)
        shop.known(some[0].id, SUCCESS=3)
        shop.known(many[0].id, SUCCESS=35)
        shop.known(sender.id, SUCCESS=3)
        eventually(lambda: shop.server.site.recording.history.task(alone.id).ready)
    page = shop.get("/workflows")
    assert page.count("/workflow?root=") == 4 and "35/35" in page
    assert "No recorded workflow has a task that fits." in shop.get("/workflows?q=state%3Afailed")
    assert shop.get("/workflows?q=name%3Aspread").count("/workflow?root=") == 1
    assert "did you mean 'state'?" in shop.get("/workflows?q=staet%3Afailed", 400)
    first = shop.get("/workflows?limit=1")
    following = re.search(r'href="(/workflows\?[^"]*after=[^"]*)" rel="next"', first)
    assert following is not None and shop.get(following[1]).count("/workflow?root=") == 1
    page = shop.get(f"/workflow?root={row.id}")
    assert nodes(page) == [f"{name}: SUCCESS, on the critical path" for name in ("fetch", "fetch", "report")]
    assert page.count('class="edge critical"') == 2 and f"/task?id={row.id}" in page
    assert len(nodes(shop.get(f"/workflow?root={some[1].id}"))) == 3
    page = shop.get(f"/workflow?root={many.id}")
    assert nodes(page) == ["fetch ×35: 35/35, on the critical path"]
    link = re.search(r'<a href="(/tasks\?q=[^"]*)" aria-label', page)
    assert link is not None and shop.get(f"{link[1]}&limit=100").count('name="id"') == 35, "it leads to its tasks"
    assert ">workflow</a>" in shop.get(f"/task?id={row.id}")
    assert ">workflow</a>" not in shop.get(f"/task?id={alone.id}")
    assert "No workflow of this id" in shop.get(f"/workflow?root={alone.id}", 404)
    shop.get("/workflow", 404)


def test_a_chord_that_waits_is_seen_and_cancelled(shop: Shop) -> None:
    task = shop.task
    with shop.worker():
        body = chord([*(task["fetch"].si(number) for number in range(3)), task["hold"].si()])(
            task["report"].s() | task["fetch"].si(5)
        )
        held = body.parent.parent if body.parent.parent is not None else body.parent
        id = held[0].id
        shop.known(id, SUCCESS=3, STARTED=1)
        page = shop.get(f"/workflow?root={id}")
        assert "report: not sent yet, 3/4, waiting for hold" in nodes(page)
        assert "data-refresh" in page and f"umbel -A shop workflows cancel {held.id} --yes" in page
        assert "workflows retry" not in page
        assert "[.] report  3/4, waiting for hold" in shop.umbel("graph", id)
        assert "3 tasks revoked." in shop.act("/workflows/cancel", root=id), "hold, report and what follows it"
        # A worker looks for revocations now and then; what it starts before it has seen them is not stopped.
        eventually(lambda: len(shop.app.control.inspect().revoked()["w1@box"]) == 3)
        (shop.folder / "go").touch()
        shop.known(id, SUCCESS=4, REVOKED=1)
    page = shop.get(f"/workflow?root={id}")
    assert "report: REVOKED" in "".join(nodes(page)) and "workflows cancel" not in page
    assert "fetch: will not run" in nodes(page)
    assert any(each.action == "workflows.cancel" and each.count == 3 for each in shop.server.site.audit.entries())


def test_what_failed_is_sent_once_more_and_seen_beside_it(shop: Shop) -> None:
    task = shop.task
    with shop.worker():
        group([task["pay"].s(1), task["pay"].s(2), task["fetch"].s(3)])()
        history = shop.server.site.recording.history
        eventually(lambda: bool(history.workflows("state:failed").workflows))
        (found,) = history.workflows("state:failed").workflows
        shop.known(found.id, SUCCESS=1, FAILURE=2)
        page = shop.get(f"/workflow?root={found.id}")
        assert f"umbel -A shop workflows retry {found.id} --yes" in page and "2 failed tasks are sent" in page
        (shop.folder / "paid").touch()
        assert "Sending 2 failed tasks once more." in shop.act("/workflows/retry", root=found.id)
        shop.known(found.id, SUCCESS=3, FAILURE=2)
    page = shop.get(f"/workflow?root={found.id}")
    assert page.count('class="edge') == 2, "each is below the one that it repeats"
    assert "workflows retry" not in page
    assert "Nothing of it failed" in shop.act("/workflows/retry", root=found.id)


def test_the_commands(shop: Shop) -> None:
    task = shop.task
    with shop.worker():
        row = chain(task["fetch"].s(1), task["pay"].s(), task["report"].s())()
        first = row.parent.parent.id
        shop.known(first, SUCCESS=1, FAILURE=1)
    listed = json.loads(shop.umbel("list", "-o", "json"))
    assert listed["schema"] == "umbel.workflows.list/1"
    assert [(each["id"], each["name"], each["states"]) for each in listed["data"]] == [
        (first, "fetch", {"FAILURE": 1, "SUCCESS": 1})
    ]
    assert "fetch\t1/2, 1 failed\t" in shop.umbel("list")
    shown = json.loads(shop.umbel("show", first, "-o", "json"))["data"]
    assert [each["state"] for each in shown["tasks"]] == ["SUCCESS", "FAILURE"]
    assert shown["tasks"][1]["parent"] == first
    graph = shop.umbel("graph", first)
    assert [line[:10] for line in graph.splitlines()] == ["[x] fetch ", "[!] pay  F", "[.] report"]
    assert graph in shop.umbel("show", first)
    assert '"n1" -> "n2"' in shop.umbel("graph", first, "--format", "dot")
    assert "n1 -.-> n2" in shop.umbel("graph", first, "--format", "mermaid")
    drawn = json.loads(shop.umbel("graph", first, "-o", "json"))["data"]
    assert drawn["edges"] == [[0, 1], [1, 2]] and drawn["nodes"][2]["kind"] == "ahead"
    assert "no workflow nobody is recorded" in shop.umbel("show", "nobody", status=3)
    assert "did you mean" in shop.umbel("list", "staet:failed", status=2)
    assert "1 would be sent once more." in shop.umbel("retry", first, "--dry-run")
    assert "nobody is here to be asked" in shop.umbel("retry", first, status=4)
    assert "0 revoked." in shop.umbel("cancel", first, "--yes"), "report will not run, as what was before it failed"
    assert "1 sent once more." in shop.umbel("retry", first, "--yes")
    waiting = group(task["fetch"].s(number) for number in range(2))()
    shop.known(waiting[0].id, PENDING=2)
    assert shop.umbel("cancel", waiting.id, "--dry-run").split()[:2] == [each.id for each in waiting]


def test_who_may_act(shop: Shop) -> None:
    accounts = read_accounts(f"vic:viewer:{hash_password('correct horse')}", "accounts")
    history = shop.server.site.recording.history
    about = {"hostname": "w1@box", "timestamp": 1.9e9, "root_id": "a", "name": "pay"}
    history.record([{"type": "task-received", "uuid": id, **about} for id in "ab"])
    history.record([{"type": "task-failed", "uuid": "b", "exception": "ValueError('no')", **about}])
    for path in ("/workflows/retry", "/workflows/cancel"):
        assert shop.visitor.post(path, {"root": "a"}).status == 403, "no token"
    with served(shop.app, Access(accounts=accounts, hosts=())) as server:
        viewer = Visitor(server.url)
        viewer.sign_in("vic", "correct horse")
        page = viewer.get("/workflow?root=a")
        assert page.status == 200 and "Waterfall" in page.text and "/workflows/retry" not in page.text
        for path in ("/workflows/retry", "/workflows/cancel"):
            assert viewer.post(path, {"token": page.token, "root": "a"}).status == 403


def test_what_celery_tells_is_put_together_by_root(shop: Shop) -> None:
    about = {"hostname": "celery@box", "timestamp": 1.9e9, "root_id": "r", "name": "proj.add"}
    history = shop.server.site.recording.history
    history.record([
        {"type": "task-received", "uuid": "r", **about},
        {"type": "task-received", "uuid": "s", "parent_id": "r", **about},
    ])  # fmt: skip
    assert nodes(shop.get("/workflow?root=s")) == ["proj.add: RECEIVED, on the critical path"] * 2
