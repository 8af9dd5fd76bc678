"""Events and the state that is made of them; remote control's messages; rates. No server: the memory broker."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from umbel import Umbel, mailbox
from umbel.events import Event, LogicalClock, group_from
from umbel.events.snapshot import Polaroid
from umbel.events.state import State, heartbeat_expires
from umbel.exceptions import DecodeError, SecurityError
from umbel.message import Message
from umbel.utils.rates import per_second


@pytest.fixture
def app() -> Iterator[Any]:
    app = Umbel("events", broker="memory://events-test", set_as_current=False)
    yield app
    app.close()


def heard(app: Any, count: int, send: Any) -> list[dict[str, Any]]:
    """Return the events that a receiver handled of what ``send()`` sends."""
    events: list[dict[str, Any]] = []
    receiver = app.events.Receiver(handlers={"*": events.append})
    thread = threading.Thread(target=receiver.capture, kwargs={"limit": count, "timeout": 5.0, "wakeup": False})
    thread.start()
    while not app.broker._shared.listeners.get("celeryev"):
        time.sleep(0.001)
    send()
    thread.join(10)
    assert not thread.is_alive()
    return events


def test_an_event_has_a_type_and_a_time() -> None:
    event = Event("task-started", uuid="1")
    assert event["type"] == "task-started" and abs(event["timestamp"] - time.time()) < 5
    assert group_from("worker-online") == "worker"


def test_the_logical_clock_moves_past_what_it_sees() -> None:
    clock = LogicalClock()
    assert clock.forward() == 1
    assert clock.adjust(10) == 11
    assert clock.adjust(3) == 12
    assert clock.adjust("nonsense") == 13
    assert clock.adjust(10**400) == 14, "nothing that says so could be sent"


def test_what_is_sent_is_heard(app: Any) -> None:
    def send() -> None:
        with app.events.Dispatcher(hostname="me@here") as dispatcher:
            dispatcher.send("task-custom", uuid="1", note="näh")

    (event,) = heard(app, 1, send)
    assert event["type"] == "task-custom" and event["note"] == "näh" and event["hostname"] == "me@here"
    assert {"clock", "pid", "utcoffset", "timestamp", "local_received"} <= event.keys()


def test_buffered_events_come_together_and_groups_are_filtered(app: Any) -> None:
    def send() -> None:
        dispatcher = app.events.Dispatcher(hostname="me@here", buffer_group=["task"], buffer_limit=3, groups=["task"])
        dispatcher.send("worker-online")
        for number in range(3):
            dispatcher.send("task-started", uuid=str(number))

    events = heard(app, 1, send)  # one message
    assert [event["uuid"] for event in events] == ["0", "1", "2"]


def test_what_is_no_event_is_passed_over(app: Any) -> None:
    def send() -> None:
        pubsub = app.broker.pubsub()
        for body in (b"not json", b'"text"', b'{"uuid": 1}', b'[{"type": "task-started", "uuid": "7"}, 5]'):
            pubsub.publish("celeryev", Message(body=body), routing_key="task.multi")

    assert [event["uuid"] for event in heard(app, 4, send)] == ["7"]


def test_numbers_that_are_no_times_are_handed_on(app: Any) -> None:
    huge = b"1" + b"0" * 400

    def send() -> None:
        pubsub = app.broker.pubsub()
        for field in (b"timestamp", b"utcoffset", b"clock"):
            body = b'{"type": "task-started", "uuid": "7", "timestamp": 1, "utcoffset": 0.5, "clock": 1, "%b": %b}'
            pubsub.publish("celeryev", Message(body=body % (field, huge)), routing_key="task.started")

    assert [event["uuid"] for event in heard(app, 3, send)] == ["7", "7", "7"]
    assert app.events.clock.value < 100


def test_a_disabled_dispatcher_sends_nothing(app: Any) -> None:
    def send() -> None:
        dispatcher = app.events.Dispatcher(hostname="a@b", enabled=False)
        dispatcher.send("task-started", uuid="no")
        dispatcher.enable()
        dispatcher.send("task-started", uuid="yes")
        dispatcher.disable()
        dispatcher.send("task-started", uuid="no")

    assert [event["uuid"] for event in heard(app, 1, send)] == ["yes"]


def test_a_receiver_gives_up_after_its_timeout(app: Any) -> None:
    with pytest.raises(TimeoutError):
        app.events.Receiver(handlers={}).capture(timeout=0.05, wakeup=False)


# -- the state ---------------------------------------------------------------------------------------------------


def task_event(kind: str, uuid: str = "1", clock: int = 1, **fields: Any) -> dict[str, Any]:
    now = time.time()
    return Event(f"task-{kind}", uuid=uuid, hostname="w@h", clock=clock, local_received=now, pid=9, **fields)


def test_a_task_goes_from_state_to_state() -> None:
    state = State()
    state.event(task_event("sent", name="add", args="(1,)", queue="celery"))
    task, created = state.event(task_event("received", clock=2, name="add", args="(1,)"))[0]  # type: ignore[index]
    assert task.state == "RECEIVED" and not created and state.task_count == 1
    state.event(task_event("started", clock=3))
    state.event(task_event("succeeded", clock=4, result="2", runtime=0.5))
    assert task.state == "SUCCESS" and task.ready and task.runtime == 0.5 and task.name == "add"
    assert task.info(["result"]) == {"result": "2"}
    assert task.as_dict()["uuid"] == "1" and task.worker.hostname == "w@h"
    assert state.task_types() == ["add"]


def test_a_late_event_adds_what_was_missing_and_undoes_nothing() -> None:
    state = State()
    state.event(task_event("succeeded", clock=4, result="2"))
    state.event(task_event("received", clock=2, name="add", args="(1,)", result="wrong"))
    task = state.tasks["1"]
    assert (task.state, task.name, task.result) == ("SUCCESS", "add", "2")


def test_a_retried_task_runs_again() -> None:
    state = State()
    for clock, kind in enumerate(("received", "started", "retried", "received", "started")):
        state.event(task_event(kind, clock=clock, name="add"))
    assert state.tasks["1"].state == "STARTED"


def test_workers_come_and_go() -> None:
    joined: list[Any] = []
    left: list[Any] = []
    state = State(on_node_join=joined.append, on_node_leave=left.append)
    now = time.time()
    state.event(Event("worker-online", hostname="w@h", freq=2, local_received=now, clock=1, pid=3))
    state.event(Event("worker-heartbeat", hostname="w@h", freq=2, local_received=now, clock=2, active=5))
    (worker,) = state.alive_workers()
    assert worker.active == 5 and worker.id == "w@h.3" and worker.status_string == "ONLINE"
    assert worker.heartbeat_expires == heartbeat_expires(now, 2)
    state.event(Event("worker-offline", hostname="w@h", local_received=now, clock=3))
    assert not list(state.alive_workers()) and not state.workers
    assert joined == left == [worker]


def test_events_that_say_too_little_change_nothing() -> None:
    state = State()
    for event in ({"type": "task-started"}, {"type": "worker-online"}, {"type": "x"}, {}):
        assert state.event(dict(event)) is None
    assert not state.tasks and not state.workers and state.event_count == 4


def test_an_event_cannot_replace_what_belongs_to_the_class() -> None:
    state = State()
    state.event(task_event("received", name="add", info="x", event="y"))
    state.event(task_event("succeeded"))
    assert state.tasks["1"].info(["name"]) == {"name": "add"}


def test_an_event_cannot_change_how_long_a_worker_counts_as_alive() -> None:
    now = time.time()
    state = State()
    for freq in (None, "abc", float("nan"), float("inf"), 10**400, []):
        strange = {"expire_window": None, "__dict__": {}, "_fields": (), "alive": True, "freq": freq}
        state.event(Event("worker-heartbeat", hostname="w@h", local_received=now, clock=1, **strange))
        (worker,) = state.alive_workers()
        assert worker.heartbeat_expires == heartbeat_expires(now, 60) == now + 120


def test_a_subclass_may_have_fields_of_its_own() -> None:
    class Worker(State.Worker):
        _fields = (*State.Worker._fields, "color")
        color = size = None

        def paint(self) -> str:
            return str(self.color)

        @property
        def weight(self) -> Any:
            return self.size

        @weight.setter
        def weight(self, value: Any) -> None:
            self.size = value

    class Mine(State):
        pass

    Mine.Worker = Worker  # type: ignore[misc]
    state = Mine()
    told = {"color": "red", "paint": "x", "weight": 5, "rooms": 2}
    state.event(Event("worker-heartbeat", hostname="w@h", local_received=time.time(), clock=1, **told))
    worker = state.workers["w@h"]
    assert (worker.paint(), worker.weight, worker.rooms) == ("red", 5, 2)


def test_the_oldest_tasks_are_forgotten() -> None:
    state = State(max_tasks_in_memory=3)
    for number in range(5):
        state.event(task_event("received", uuid=str(number), clock=number, name="add" if number % 2 else "mul"))
    assert [id for id, _ in state.tasks_by_time()] == ["4", "3", "2"]
    assert [id for id, _ in state.tasks_by_time(limit=1, reverse=False)] == ["2"]
    assert [task.uuid for task in state.tasks_by_type["add"]] == ["3"]
    assert [id for id, _ in state.tasks_by_type("mul")] == ["4", "2"]
    assert len(state.tasks_by_worker["w@h"]) == 3
    again = pickle.loads(pickle.dumps(state))
    assert [id for id, _ in again.tasks_by_time()] == ["4", "3", "2"] and again.tasks["4"].name == "mul"
    state.clear_tasks(ready=False)
    assert not state.tasks


def test_families() -> None:
    state = State()
    state.event(task_event("received", uuid="parent", name="a", root_id="parent"))
    state.event(task_event("received", uuid="child", name="b", root_id="parent", parent_id="parent"))
    parent, child = state.tasks["parent"], state.tasks["child"]
    assert child.parent is parent and child.root is parent and parent.children == [child]


def test_a_camera_is_shown_the_state() -> None:
    seen: list[int] = []

    class Camera(Polaroid):
        clear_after = True

        def on_shutter(self, state: State) -> None:
            seen.append(len(state.tasks))

    state = State()
    state.event(task_event("received", name="add"))
    camera = Camera(state, freq=1000)
    with camera:
        camera.capture()
        camera.capture()
    assert seen == [1, 1, 1]  # a task that has not ended is not forgotten
    state.event(task_event("succeeded"))
    camera.capture()
    camera.capture()
    assert seen[3:] == [1, 0]


# -- remote control's messages -----------------------------------------------------------------------------------


def request(app: Any, body: bytes, content_type: str = "application/json") -> mailbox.Request:
    return mailbox.read_request(app, Message(body=body, content_type=content_type))


def test_a_command_is_for_whom_it_names(app: Any) -> None:
    everyone = request(app, b'{"method": "ping", "arguments": {}}')
    assert everyone.is_for("a@b") and everyone.arguments == {}
    named = request(app, b'{"method": "ping", "destination": ["a@b"]}')
    assert named.is_for("a@b") and not named.is_for("b@b")
    glob = request(app, b'{"method": "ping", "pattern": "a*", "matcher": "glob"}')
    assert glob.is_for("a@b") and not glob.is_for("b@b")
    pcre = request(app, b'{"method": "ping", "pattern": "[bc]@", "matcher": "pcre"}')
    assert pcre.is_for("b@b") and not pcre.is_for("a@b")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"method": 7}', b'{"method": "ping", "arguments": [1]}'])
def test_what_is_no_command_is_refused(app: Any, body: bytes) -> None:
    with pytest.raises(DecodeError):
        request(app, body)


def test_pickle_is_never_obeyed(app: Any) -> None:
    app.conf.accept_content = ["json", "pickle"]
    with pytest.raises(DecodeError):
        request(app, pickle.dumps({"method": "shutdown"}), "application/x-python-serialize")


def test_where_messages_are_signed_an_unsigned_command_is_refused() -> None:
    app = Umbel("signed", broker="memory://signed-control", security_key="k" * 32, set_as_current=False)
    subscription = app.broker.pubsub().subscribe("celery.pidbox")
    app.control.shutdown()
    message = subscription.receive(timeout=5)
    assert message is not None and mailbox.read_request(app, message).method == "shutdown"
    with pytest.raises(SecurityError):
        request(app, b'{"method": "shutdown"}')
    app.close()


def test_nobody_replies(app: Any) -> None:
    assert app.control.inspect(timeout=0.01).ping() is None
    assert app.control.ping(timeout=0.01) == []
    assert app.control.broadcast("ping") is None
    with pytest.raises(ValueError, match="list or a tuple"):
        app.control.broadcast("ping", destination="a@b")


def test_replies_of_two_nodes_of_one_name_are_warned_of(app: Any) -> None:
    from umbel.control import flatten_reply

    with pytest.warns(UserWarning, match="a@b"):
        assert flatten_reply([{"a@b": 1}, {"a@b": 2}]) == {"a@b": 2}


# -- rates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "found"), [("10/m", 10 / 60), ("1/h", 1 / 3600), (3, 3.0), ("", 0.0), ("0", 0.0)])
def test_rates(rate: Any, found: float) -> None:
    assert per_second(rate) == pytest.approx(found)


@pytest.mark.parametrize("rate", ["5/q", "x", "-1/s", "nan", "1/2/3"])
def test_what_is_no_rate(rate: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        per_second(rate)


def test_tokens_of_a_limited_task() -> None:
    from umbel.worker.shared import Shared

    shared = Shared()
    now = 1000.0
    assert shared.take("add", 2.0, now) == 0.0
    waits = [shared.take("add", 2.0, now) for _ in range(3)]
    assert waits == [1000.5, 1001.0, 1001.5]  # each at a moment of its own
    assert shared.take("mul", 2.0, now) == 0.0  # another task has tokens of its own
    assert [shared.take("add", 2.0, wait) for wait in waits] == [0.0, 0.0, 0.0]
    assert shared.take("add", 2.0, 5000.0) == 0.0
    # A clock that was set back stops nothing.
    assert shared.take("add", 2.0, 10.0) == 0.0


def test_no_more_than_its_rate_starts_whoever_asks() -> None:
    from umbel.worker.shared import Shared

    shared, started = Shared(), 0
    now = 0.0
    waiting = [0.0] * 50
    while now < 10.0:
        now += 0.05
        due, waiting = [at for at in waiting if at <= now], [at for at in waiting if at > now]
        for _ in due:
            moment = shared.take("add", 4.0, now)
            if moment:
                waiting.append(moment)
            else:
                started += 1
                waiting.append(now)
    assert 36 <= started <= 42
