"""The dashboard with real workers: what it shows is so, and its buttons do what they say."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import umbel.dashboard
from dashboard_support import Visitor, served
from hostile import make_app
from support import DEADLINE, WorkerProcess, environment, eventually, worker
from umbel.dashboard.access import Access
from umbel.dashboard.live import Live
from umbel.dashboard.serving import Server
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Dead, Place, Settlement
from umbel.loading import find_app

pytestmark = pytest.mark.timeout(180)

SHOP = """
import time
from umbel import Umbel
app = Umbel("shop", broker={url!r}, backend={url!r}, task_create_missing_queues=True)

@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y

@app.task(name="fail")
def fail(order: int) -> None:
    raise ValueError(f"order {{order}} was refused")

@app.task(name="nap")
def nap(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
"""


class Shop:
    """An app in a module, a worker of it, and its dashboard."""

    def __init__(self, app: Any, server: Server, process: WorkerProcess) -> None:
        self.app = app
        self.server = server
        self.process = process
        self.visitor = Visitor(server.url)

    def get(self, path: str) -> str:
        answer = self.visitor.get(path)
        assert answer.status == 200, answer.text
        return answer.text

    def act(self, page: str, path: str, **form: Any) -> str:
        """Press a button of a page, and return the page that it leads to."""
        shown = self.visitor.get(page)
        answer = self.visitor.post(path, {"token": shown.token, **form})
        assert answer.status == 303, (answer.status, answer.text)
        return self.visitor.get(answer.headers["location"]).text


def module(tmp_path: Path, url: str) -> tuple[Any, dict[str, str]]:
    name = f"shop_{tmp_path.name.replace('-', '_').replace('[', '_').replace(']', '_')}"
    (tmp_path / f"{name}.py").write_text(SHOP.format(url=url))
    sys.path.insert(0, str(tmp_path))
    try:
        from umbel import Umbel

        return find_app(name, Umbel), {"name": name}
    finally:
        sys.path.remove(str(tmp_path))


@pytest.fixture
def shop(tmp_path: Path, redis_url: str) -> Iterator[Shop]:
    app, names = module(tmp_path, redis_url)
    with (
        served(app) as server,
        worker(
            names["name"], "-l", "info", "-c", "2", "-n", "w1@box", "-E", cwd=tmp_path, env=environment(), status=None
        ) as process,
    ):
        eventually(lambda: "w1@box" in server.site.live.alive)
        yield Shop(app, server, process)
    app.close()


def test_it_shows_what_workers_do(shop: Shop) -> None:
    app, live = shop.app, shop.server.site.live
    assert [app.send_task("add", args=[n, 1]).get(timeout=DEADLINE) for n in range(5)] == [1, 2, 3, 4, 5]
    for order in (7, 8):
        app.send_task("fail", args=[order])
    eventually(lambda: live.rates.total("failed") == 2)
    assert live.rates.total("succeeded") == 5
    assert live.hears_tasks
    front = shop.get("/")
    assert "w1@box" in front and "ValueError: order &lt;n&gt; was refused" in front
    listed = shop.get("/errors")
    assert listed.count("/error?id=") == 1, "two failures of one cause are one row"
    detail = shop.get("/error?id=" + listed.partition("/error?id=")[2].partition('"')[0])
    assert "order 7 was refused" in detail and "order 8 was refused" in detail and "Traceback" in detail
    app.send_task("nap", args=[60])
    eventually(lambda: "nap" in shop.get("/worker?name=w1%40box").partition("Running now")[2].partition("Queues")[0])
    page = shop.get("/worker?name=w1%40box")
    assert "add" in page and "Pool: prefork" in page
    assert ", in nap" in shop.get("/worker/stacks?name=w1%40box")
    eventually(lambda: live.tick()["running"] == 1)
    app.conf.task_routes = {"film.*": {"queue": "film"}}
    app.send_task("film.cut", queue="film")
    eventually(lambda: "Nobody reads film, where messages wait." in shop.get("/"))
    first = next(iter(each for each in app.control.inspect().active()["w1@box"]))
    shop.act("/worker?name=w1%40box", "/workers/terminate", worker="w1@box", id=first["id"])
    eventually(lambda: app.control.inspect().active()["w1@box"] == [])


def test_orders_to_workers(shop: Shop) -> None:
    here = "/worker?name=w1%40box"
    assert "pool will grow" in shop.act(here, "/workers/grow", worker="w1@box", n="1")
    eventually(lambda: len(shop.app.control.inspect().stats()["w1@box"]["pool"]["processes"]) == 3)
    assert "pool will shrink" in shop.act(here, "/workers/shrink", worker="w1@box", n="2")
    eventually(lambda: len(shop.app.control.inspect().stats()["w1@box"]["pool"]["processes"]) == 1)
    assert "add consumer video" in shop.act(here, "/queues/read", worker="w1@box", queue="video")
    eventually(lambda: any(q["name"] == "video" for q in shop.app.control.inspect().active_queues()["w1@box"]))
    assert "no longer consuming from video" in shop.act(here, "/queues/leave", worker="w1@box", queue="video")
    limited = shop.act(here, "/workers/rate", worker="w1@box", task="add", rate="5/m")
    assert "new rate limit set successfully" in limited
    assert "time limits set successfully" in shop.act(here, "/workers/limits", worker="w1@box", task="add", soft="5")
    assert "disabled" in shop.act("/workers", "/workers/events", off="1")
    assert "task events enabled" in shop.act("/workers", "/workers/events")
    token = shop.visitor.get(here).token
    wrong = shop.visitor.post("/workers/rate", {"token": token, "worker": "w1@box", "task": "none", "rate": "1/s"})
    assert wrong.status == 409 and "unknown task" in wrong.text
    nobody = shop.visitor.post("/workers/grow", {"token": token, "worker": "nobody@box", "n": "1"})
    assert nobody.status == 504
    shop.act(here, "/workers/shutdown", worker="w1@box")
    assert shop.process.process.wait(DEADLINE) == 0
    eventually(lambda: "w1@box" not in shop.server.site.live.alive)
    audit = shop.get("/audit")
    for action in ("workers.grow", "workers.shrink", "queues.read", "workers.rate-limit", "workers.shutdown"):
        assert action in audit


def test_a_dead_letter_is_edited_and_runs(shop: Shop) -> None:
    app = shop.app
    sent = app.send_task("add", args=[1])
    other = app.send_task("add", args=["a", "b", "c"])
    eventually(lambda: len(app.dead.list()) == 2)
    letter = next(each for each in app.dead.list() if each.task_id == sent.id)
    assert "wrong_signature" in shop.get("/dead?task=ad*")
    assert "No message is dead" in shop.get("/dead?task=other")
    page = f"/dead/letter?id={letter.id.replace(':', '%3A')}"
    token = shop.visitor.get(page).token
    for args, kwargs, said in (
        ("[1", "{}", "not JSON"),
        ("{}", "{}", "JSON list"),
        ("[1]", "{}", "does not take"),
        ("[1, 2]", "[]", "JSON object"),
    ):
        refused = shop.visitor.post("/dead/edit", {"token": token, "id": letter.id, "args": args, "kwargs": kwargs})
        assert refused.status == 400 and said in refused.text, said
    assert len(app.dead.list()) == 2
    shop.act(page, "/dead/edit", id=letter.id, args="[20]", kwargs='{"y": 22}')
    # A result object keeps the failure that it has seen.
    eventually(lambda: app.AsyncResult(sent.id).state == "SUCCESS")
    assert app.AsyncResult(sent.id).get(timeout=DEADLINE) == 42
    gone = shop.visitor.post("/dead/edit", {"token": token, "id": letter.id, "args": "[1]", "kwargs": "{}"})
    assert gone.status == 404
    left = app.dead.get(other.id)
    assert left is not None
    assert "1 dead letter discarded." in shop.act("/dead", "/dead/discard", id=left.id)
    assert app.dead.list() == []


def test_letters_are_changed_by_filter(shop: Shop) -> None:
    app = shop.app
    for number in range(3):
        app.send_task("add", args=[number])
    app.send_task("fail", args=[1, 2])
    eventually(lambda: len(app.dead.list()) == 4)
    assert shop.visitor.post("/dead/discard", {"token": shop.visitor.get("/dead").token}).status == 400
    assert "No message is dead" in shop.get("/dead?task=add&reason=expired")
    assert "0 dead letters discarded" in shop.act("/dead", "/dead/discard", all="1", task="add", reason="expired")
    assert "0 dead letters discarded" in shop.act("/dead", "/dead/discard", all="1", older="1h")
    done = shop.act("/dead?task=add", "/dead/discard", all="1", task="add", reason="wrong_signature")
    assert "3 dead letters discarded." in done
    assert [each.task for each in app.dead.list()] == ["fail"]
    shop.act("/dead", "/dead/requeue", all="1")
    # It dies again: nothing has changed about it.
    eventually(lambda: len(app.dead.list()) == 1)


def test_messages_are_looked_at_moved_and_purged(sqlite_url: str, tmp_path: Path) -> None:
    app, _ = module(tmp_path, sqlite_url)
    for number in range(5):
        app.send_task("add" if number % 2 else "nap", args=[number], queue="celery")
    app.send_task("add", args=["later"], countdown=3600, queue="celery")
    with served(app) as server:
        shop = Shop(app, server, None)  # type: ignore[arg-type]
        page = shop.get("/queue?name=celery")
        assert page.count('class="wide mono"') == 5 and "umbel -A shop purge -Q celery" in page
        assert "later" in shop.get("/queue?name=celery&place=scheduled")
        moved = shop.act("/queue?name=celery", "/queues/move", queue="celery", to="other", task="add", limit="10")
        assert "2 messages moved to other." in moved
        assert (app.broker.size("celery"), app.broker.size("other")) == (3, 2)
        shop.act("/queue?name=celery", "/queues/move", queue="celery", to="other", limit="1")
        assert (app.broker.size("celery"), app.broker.size("other")) == (2, 3)
        assert "3 messages were discarded." in shop.act("/queue?name=celery", "/queues/purge", queue="celery")
        assert app.broker.size("celery") == app.broker.size("celery", Place.SCHEDULED) == 0
        assert app.broker.size("other") == 3
    app.close()


def test_queues_are_paused_and_resumed(sqlite_url: str, tmp_path: Path) -> None:
    app, _ = module(tmp_path, sqlite_url)
    for number in range(3):
        app.send_task("add", args=[number, 1], queue="celery")
    with served(app) as server:
        shop = Shop(app, server, None)  # type: ignore[arg-type]
        page = shop.get("/queue?name=celery")
        assert "umbel -A shop queues pause celery --reason WHY" in page and ">paused<" not in page
        done = shop.act("/queue?name=celery", "/queues/pause", queue="celery", reason="<b>down</b>")
        assert "celery is paused, because &lt;b&gt;down&lt;/b&gt;." in done and ">paused<" in done
        assert "umbel -A shop queues resume celery" in done and "No worker fetches from it." in done
        assert app.queues.paused()["celery"].why == "<b>down</b>"
        eventually(lambda: ">paused<" in shop.get("/queues"))
        eventually(lambda: "3 messages wait in celery, which is paused." in shop.get("/"))
        audit = shop.get("/audit")
        assert "queues.pause" in audit and "celery" in audit
        assert "celery is resumed." in shop.act("/queue?name=celery", "/queues/resume", queue="celery")
        assert app.queues.paused() == {}
        assert "was not paused" in shop.act("/queue?name=celery", "/queues/resume", queue="celery")
        token = shop.visitor.get("/queues").token
        long = {"token": token, "queue": "celery", "reason": "x" * 300}
        assert shop.visitor.post("/queues/pause", long).status == 400
        assert shop.visitor.post("/queues/pause", {"queue": "celery"}).status == 403
        assert app.queues.paused() == {}
    with served(app, Access(hosts=(), read_only=True)) as server:
        visitor = Visitor(server.url)
        page = visitor.get("/queue?name=celery")
        assert "/queues/pause" not in page.text
        assert visitor.post("/queues/pause", {"queue": "celery"}).status == 403
    app.close()


def test_where_nothing_keeps_it_no_queue_is_paused(tmp_path: Path, rabbitmq_url: str) -> None:
    from umbel import Umbel

    app = Umbel("shop", broker=rabbitmq_url, set_as_current=False)
    with served(app) as server:
        visitor = Visitor(server.url)
        token = visitor.get("/queue?name=celery").token
        refused = visitor.post("/queues/pause", {"token": token, "queue": "celery"})
        assert refused.status == 409 and "queues cannot be paused here" in refused.text
    app.close()


def test_to_look_at_a_page_takes_no_message_on_rabbitmq(rabbitmq_url: str) -> None:
    from umbel import Umbel

    app, reader = (Umbel("shop", broker=rabbitmq_url, set_as_current=False) for _ in range(2))
    for number in range(3):
        app.send_task("add", args=[number, 1], queue="celery")
    with served(app) as server:
        visitor = Visitor(server.url)
        for _ in range(5):
            page = visitor.get("/queue?name=celery")
            assert page.status == 200 and "data-refresh" in page.text and "takes and gives back" not in page.text
            assert 'class="wide mono"' not in page.text and "umbel -A shop queues peek celery --limit N" in page.text
            assert visitor.get("/queue?name=celery&place=scheduled").status == 200
    # Of what it gave back itself a process knows that it means nothing, so another one reads.
    leases = reader.broker.leases()
    consumer = reader.broker.consumer(leases.register("w1@box"), ["celery"])
    taken: list[Any] = []
    eventually(lambda: taken.extend(consumer.reserve(10)) or len(taken) == 3)
    assert [(each.count, each.redelivered) for each in taken] == [(1, False)] * 3
    consumer.close()
    leases.close()
    app.close()
    reader.close()


def test_on_rabbitmq_an_operator_looks_once(rabbitmq_url: str) -> None:
    from umbel import Umbel

    app = Umbel("shop", broker=rabbitmq_url, set_as_current=False)
    for number in range(3):
        app.send_task("add", args=[number, 1], queue="celery")
    with served(app) as server:
        visitor = Visitor(server.url)
        form = {"token": visitor.get("/queue?name=celery").token, "queue": "celery"}
        looked = visitor.post("/queues/look", {**form, "limit": "2"})
        assert looked.status == 200 and looked.text.count('class="wide mono"') == 2
        assert "data-refresh" not in looked.text, "it would look again"
        assert "they were taken and given back" in looked.text
        for limit in ("0", "201", "x", "٣"):
            assert visitor.post("/queues/look", {**form, "limit": limit}).status == 400, limit
        entry = server.site.audit.entries()[-1]
        assert (entry.action, entry.target, entry.count) == ("queues.look", "celery", 2)
        eventually(lambda: app.broker.size("celery") == 3)
    with served(app, Access(hosts=(), read_only=True)) as server:
        visitor = Visitor(server.url)
        page = visitor.get("/queue?name=celery")
        assert page.status == 200 and "/queues/look" not in page.text
        assert visitor.post("/queues/look", {"queue": "celery", "limit": "2"}).status == 403
    app.close()


def test_letters_that_are_gone_are_not_searched(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = module(tmp_path, sqlite_url)
    for number in range(120):
        app.send_task("add", args=[number], queue="celery")
    leases = app.broker.leases()
    consumer = app.broker.consumer(leases.register("w1@box"), ["celery"])
    while held := consumer.reserve(100):
        consumer.settle([Settlement(delivery=each, how=Dead("rejected", "", "")) for each in held])
    consumer.close()
    leases.close()
    letters = app.dead.list()
    assert len(letters) == 120
    gone = app.dead.discard(*letters[10:60])
    store = type(app.broker.dead())
    asked: list[str] = []
    page_of = store.page

    def page(self: Any, queue: str, **how: Any) -> Any:
        asked.append(queue)
        return page_of(self, queue, **how)

    with served(app) as server:
        visitor = Visitor(server.url)
        token = visitor.get("/dead").token
        monkeypatch.setattr(store, "page", page)
        done = visitor.post("/dead/requeue", {"token": token, "id": [each.id for each in gone]})
        assert done.status == 303 and len(asked) <= 3, asked
        assert "0 dead letters put back; 50 were gone" in visitor.get("/workers").text
        some = [letters[5].id, gone[0].id, letters[80].id]
        assert visitor.post("/dead/requeue", {"token": token, "id": some}).status == 303
        assert "2 dead letters put back; 1 were gone" in visitor.get("/workers").text
        asked.clear()
        assert visitor.get(f"/dead/letter?id={gone[0].id}").status == 404
        assert len(asked) == 1
    assert app.broker.size("celery") == 2
    app.close()


def test_the_command_serves_and_ends(tmp_path: Path, sqlite_url: str) -> None:
    _, names = module(tmp_path, sqlite_url)
    command = [sys.executable, "-m", "umbel", "-A", names["name"], "dashboard", "-p", "0", "--prefix", "/ops/umbel/"]
    process = WorkerProcess(command, tmp_path, environment())
    try:
        process.expect("The dashboard is at ")
        url = next(line for line in process.lines if "http://" in line).split()[4]
        visitor = Visitor(url)
        assert visitor.root == "/ops/umbel"
        page = visitor.get("/")
        assert page.status == 200
        assert 'href="/ops/umbel/queues"' in page.text and "umbel -A" in page.text
        assert all(path.startswith("/ops/umbel") for path in _links(page.text))
        assert visitor.get("/static/umbel.css").status == 200
        # A proxy may take the prefix away, and it is put in front of links all the same.
        visitor.root = ""
        assert 'href="/ops/umbel/queues"' in visitor.get("/").text
        link = http.client.HTTPConnection(*visitor.place, timeout=20)
        link.request("GET", "/live", headers={"host": visitor.host})
        stream = link.getresponse()
        assert stream.readline() == b"event: tick\n"
        tick = json.loads(stream.readline().removeprefix(b"data: "))
        assert tick["workers"] == 0 and tick["problem"] == ""
        assert process.stop(signal.SIGTERM) == 0, process.output
        link.close()
    finally:
        process.stop(signal.SIGKILL)


def _links(text: str) -> list[str]:
    import re

    return [each for each in re.findall(r'(?:href|src|action|data-live)="([^"]*)"', text) if not each.startswith("#")]


def test_a_port_that_is_taken_ends_with_69(tmp_path: Path, sqlite_url: str) -> None:
    app, names = module(tmp_path, sqlite_url)
    with served(app) as server:
        port = str(Visitor(server.url).place[1])
        command = [sys.executable, "-m", "umbel", "-A", names["name"], "dashboard", "-p", port]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 69
    assert "Traceback" not in ended.stderr and port in ended.stderr


@contextmanager
def mounted(site: Any) -> Iterator[str]:
    """Serve a dashboard inside another application while the block runs; yield its address."""
    import threading

    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    around = Starlette(routes=[Mount("/ops/tasks", site)])
    server = uvicorn.Server(uvicorn.Config(around, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/ops/tasks"
    finally:
        server.should_exit = True
        thread.join(20)
        site.close()


def test_it_is_mounted_in_another_application() -> None:
    app = make_app("mounted")

    def who(request: Any) -> str | None:
        role: str | None = request.headers.get("x-role")
        return role

    with mounted(umbel.dashboard.app(app, authorize=who)) as url:
        assert Visitor(url).get("/").status == 401
        viewer = Visitor(url, **{"x-role": "viewer", "host": "shop.example.org"})
        page = viewer.get("/")
        assert page.status == 200 and 'href="/ops/tasks/queues"' in page.text
        operator = Visitor(url, **{"x-role": "operator"})
        app.send_task("echo", queue="celery")
        token = operator.get("/queue?name=celery").token
        assert viewer.post("/queues/purge", {"token": token, "queue": "celery"}).status == 403
        done = operator.post("/queues/purge", {"token": token, "queue": "celery"})
        assert done.status == 303 and done.headers["location"].startswith("/ops/tasks/queue?")


SECRET = "a secret of 26 characters."


@pytest.mark.parametrize(
    ("key", "first", "second", "status"),
    [
        (None, SECRET, SECRET, 303),
        (None, SECRET, SECRET.encode(), 303),
        (SECRET, None, None, 303),
        (None, SECRET, SECRET[::-1], 403),
        (None, None, None, 403),
    ],
)
def test_processes_with_one_secret_take_each_others_forms(
    key: str | None, first: str | None, second: str | bytes | None, status: int
) -> None:
    app = make_app("one-secret")
    one, two = (umbel.dashboard.app(app, authorize=lambda _: "operator", secret=each) for each in (first, second))
    # It is read when it is needed.
    app.conf.security_key = key
    with mounted(one) as here, mounted(two) as there:
        visitor, same = Visitor(here), Visitor(there)
        token = visitor.get("/queue?name=celery").token
        same.cookies = dict(visitor.cookies)
        assert same.post("/queues/purge", {"token": token, "queue": "celery"}).status == status


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="16 bytes"):
        umbel.dashboard.app(make_app("short"), authorize=lambda _: "viewer", secret="short")


def test_a_broker_that_is_away_is_a_page_and_not_a_crash(redis_server: Any) -> None:
    from umbel import Umbel

    app = Umbel("away", broker="redis://127.0.0.1:1/0", broker_connection_timeout=0.2)
    with served(app) as server:
        visitor = Visitor(server.url)
        eventually(lambda: "cannot be reached" in visitor.get("/").text)
        assert visitor.get("/queue?name=celery").status == 503
        assert visitor.get("/doctor").status == 200
    app.close()


def test_a_rate_without_events_comes_from_heartbeats() -> None:
    live = Live(make_app("heartbeats"))
    now = time.time()
    for processed in (100, 160, 150, 180):
        live.event(
            {"type": "worker-heartbeat", "hostname": "w", "timestamp": now, "local_received": now, "clock": 1,
             "processed": processed, "freq": 2}
        )  # fmt: skip
    assert live.rates.total("processed") == 90, "a worker that started anew counts from there"
    assert not live.hears_tasks
    assert Access().guarded is False
