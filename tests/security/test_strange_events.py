"""Events that anybody may have sent: none of them keeps the dashboard or the terminal from showing how things are."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from dashboard_support import Visitor, served
from hostile import make_app
from umbel import Umbel
from umbel.dashboard.live import Live
from umbel.dashboard.serving import Server
from umbel.events.dumper import Dumper
from umbel.events.screen import CursesMonitor, _time_of, row
from umbel.events.state import State
from umbel.exceptions import EncodeError, OperationalError
from umbel.interfaces import Place
from umbel.top.source import Source

#: As in the tests of metrics, and what cannot be written or is too long for a name.
NONSENSE: tuple[Any, ...] = (
    None, [], {}, "x", float("nan"), float("inf"), -1, 10**400, True, "\udcff", "q" * 400, [10**400, "\udcff"], 1e20,
)  # fmt: skip
OF_WORKER = (
    "hostname", "timestamp", "local_received", "freq", "active", "processed", "loadavg", "pid", "clock", "sw_ident",
    "sw_ver", "sw_sys", "utcoffset", "__dict__", "__class__", "_fields", "_kept", "expire_window", "heartbeats",
    "alive", "event", "update", "status_string", "heartbeat_expires", "id", "\udcff",
)  # fmt: skip
OF_TASK = (
    "uuid", "hostname", "timestamp", "local_received", "name", "args", "kwargs", "queue", "exchange", "routing_key",
    "exception", "traceback", "result", "runtime", "retries", "eta", "expires", "root_id", "parent_id", "clock",
    "worker", "state", "client", "info", "_info_fields", "_fields", "merge_rules", "cluster_state", "__dict__", "root",
)  # fmt: skip
TASK_KINDS = ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "custom")


def strange() -> Iterator[dict[str, Any]]:
    """Yield events in which one field makes no sense, and some in which none does."""
    for value in NONSENSE:
        about = {"hostname": "w1@box", "timestamp": time.time(), "local_received": time.time(), "clock": 1, "freq": 2}
        for kind in ("online", "heartbeat", "offline", "party"):
            for field in OF_WORKER:
                yield {"type": f"worker-{kind}", **about, field: value}
            yield {"type": f"worker-{kind}", **dict.fromkeys(OF_WORKER, value), "hostname": "w1@box"}
        for kind in TASK_KINDS:
            for field in OF_TASK:
                yield {"type": f"task-{kind}", "uuid": "1", "name": "echo", **about, field: value}
            yield {"type": f"task-{kind}", **dict.fromkeys(OF_TASK, value), "uuid": "2", "hostname": "w1@box"}
        yield {"type": value}


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Any:
    return make_app(request.node.name)


def pages_of(server: Server) -> list[str]:
    return sorted({page.path for page in server.site.pages if page.title is not None} | {"/live/series"})


def test_no_event_disables_a_page(app: Any) -> None:
    app.send_task("echo", queue="good")
    with served(app) as server:
        live, visitor = server.site.live, Visitor(server.url)
        live.event({"type": "task-sent", "uuid": "0", "hostname": "c@box", "timestamp": time.time(), "queue": "good"})
        for event in strange():
            live.event(event)
        live.event(
            {"type": "worker-heartbeat", "hostname": "w\udcff@box", "timestamp": 1, "local_received": time.time()}
        )
        live.sample()
        assert {each.name: each.ready for each in live.queues}["good"] == 1
        assert all(len(each.name) <= 255 for each in live.queues)
        tick = live.tick()
        assert tick["problem"] == "" and tick["running"] == 0
        for path in pages_of(server):
            assert visitor.get(path).status == 200, path
        for path in ("/task?id=1", "/queue?name=good", "/worker?name=w1%40box"):
            assert visitor.get(path).status in (200, 404), path
        listed = visitor.get("/workers")
        assert "w\\udcff@box" in html.unescape(listed.text)
        assert visitor.get("/worker?name=w%5Cudcff%40box").status == 200


def test_a_name_that_its_broker_refuses_hides_no_other_queue(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app.send_task("echo", queue="good")
    size = app.broker.size

    def picky(queue: str, place: Place = Place.READY) -> int:
        if queue == "bad":
            raise EncodeError("no such name can be carried")
        if queue == "worse":
            raise ValueError("nor this one")
        return int(size(queue, place))

    monkeypatch.setattr(app.broker, "size", picky)
    live = Live(app)
    for queue in ("bad", "good", "worse"):
        live.event({"type": "task-sent", "uuid": "0", "hostname": "c@box", "timestamp": time.time(), "queue": queue})
    for _ in range(2):
        live.sample()
        assert {each.name for each in live.queues} >= {"good"} and not live.rates.total("failed")
    assert live._sent_to == {"good"}
    monkeypatch.setattr(app.broker, "size", lambda queue, place=Place.READY: picky("bad"))
    with pytest.raises(EncodeError):
        live.sample()

    def away(queue: str, place: Place = Place.READY) -> int:
        raise OperationalError("away")

    monkeypatch.setattr(app.broker, "size", away)
    with pytest.raises(OperationalError):
        live.sample()


def test_names_of_strangers_push_no_queue_of_the_app_aside(app: Any) -> None:
    live = Live(app)
    for number in range(300):
        live.event(
            {"type": "task-sent", "uuid": "0", "hostname": "c", "timestamp": time.time(), "queue": f"!{number:03}"}
        )
    live.sample()
    assert len(live.queues) == 200 and "celery" in {each.name for each in live.queues}


def test_what_is_kept_of_workers_is_bounded(app: Any) -> None:
    live = Live(app)
    for number in range(1100):
        name = f"w{number}@box"
        live.event(
            {
                "type": "worker-heartbeat",
                "hostname": name,
                "timestamp": 1.0,
                "local_received": time.time(),
                "processed": 1,
            }
        )
    assert len(live._processed) == len(live.state.workers) == 1000


def test_what_workers_keep_in_the_store_is_read_as_far_as_it_makes_sense(app: Any) -> None:
    from umbel.worker.leases import PRESENCE

    store = app.broker.store()
    for number, value in enumerate(
        (b"no json", b"5", b'{"queues": 5}', b'{"queues": [5, "good", ""], "pid": 7}', b"\xff")
    ):
        store.put(f"{PRESENCE}w{number}@box", value)
    live = Live(app)
    live.sample()
    assert live.presence["w3@box"]["queues"] == ["good"] and live.presence["w2@box"]["queues"] == []
    assert len(live.presence) == 5 and "good" in {each.name for each in live.queues}


def test_no_event_ends_what_the_terminal_shows(app: Any, sqlite_url: str) -> None:
    state, out = State(), io.StringIO()
    dumper, monitor = Dumper(out), CursesMonitor(state, None)
    for event in strange():
        state.event(event)
        dumper.on_event(event)
        for task in [task for _, task in state.tasks_by_time()]:
            row(
                80,
                task.uuid,
                task.name or "",
                task.worker.hostname if task.worker else "",
                _time_of(task.timestamp),
                "",
            )
            assert task.state.isupper() and isinstance(task.info(extra=["name"]), dict)
            assert task.parent is None or task.parent.uuid == task.parent_id
        monitor._look()
        assert all(isinstance(worker.heartbeat_expires, float) for worker in state.alive_workers())
        repr(list(state.workers.values()))
    assert state.task_types() == sorted(state.task_types())
    assert out.getvalue().encode() and "\x1b" not in out.getvalue()
    unkept = Umbel("unkept", broker=sqlite_url, set_as_current=False, history_file="/proc/nowhere/kept.db")
    source = Source(unkept)
    source.recording.start()
    try:
        for event in strange():
            source.live.event(event)
        assert source.frame().tasks
    finally:
        source.stop()
        unkept.close()


def test_the_names_of_tasks_that_were_heard_of_are_bounded() -> None:
    state = State(max_tasks_in_memory=3)
    for number in range(9):
        state.event({"type": "task-received", "uuid": "1", "name": f"t{number}", "hostname": "w", "timestamp": 1.0})
    assert state.task_types() == ["t6", "t7", "t8"]
