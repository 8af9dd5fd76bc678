"""Results as messages to whoever called."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from umbel import Umbel
from umbel.backends.rabbitmq_rpc import RpcBackend
from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import parse_url
from umbel.brokers.rabbitmq.link import Link
from umbel.exceptions import ImproperlyConfigured, OperationalError
from umbel.interfaces import Outgoing, ResultRecord, ResultWatcher
from umbel.message import Message
from umbel.testing.broker_base import until
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RabbitMQServer
from umbel.worker.inprocess import start_worker


class Ends:
    """Makes the ends of one server, which are closed after the test."""

    def __init__(self, url: str, stack: contextlib.ExitStack) -> None:
        self.url = url
        self._stack = stack

    def backend(self, url: str = "", **options: Any) -> RpcBackend:
        backend = RpcBackend("rpc://", options={"broker_url": url or self.url, **options})
        self._stack.callback(backend.close)
        backend.open()
        return backend


@pytest.fixture
def ends(rabbitmq_url: str) -> Iterator[Ends]:
    with contextlib.ExitStack() as stack:
        yield Ends(rabbitmq_url, stack)


def record(task_id: str, state: str = "SUCCESS", result: str = "1", reply_to: str = "me") -> ResultRecord:
    payload = b'{"task_id": "%s", "status": "%s", "result": %s}' % (task_id.encode(), state.encode(), result.encode())
    return ResultRecord(task_id=task_id, state=state, payload=payload, reply_to=reply_to)


def collect(watcher: ResultWatcher, count: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def enough() -> bool:
        found.update(watcher.receive(0.2))
        return len(found) == count

    until(enough)
    return found


def test_a_result_reaches_its_caller_and_nobody_else(ends: Ends) -> None:
    worker, caller, other = ends.backend(), ends.backend(), ends.backend()
    caller.expect("me")
    caller.expect("me")
    other.expect("somebody")
    assert worker.store(record("t"))
    until(lambda: set(caller.fetch(["t", "u"])) == {"t"})
    assert caller.fetch(["t"])["t"] == record("t").payload
    assert (dict(other.fetch(["t"])), dict(worker.fetch(["t"]))) == ({}, {})


def test_nobody_is_there(ends: Ends) -> None:
    worker = ends.backend()
    assert not worker.store(record("t", reply_to="gone"))
    assert not worker.store(record("t", reply_to=""))


def test_a_caller_that_went_leaves_nothing_behind(ends: Ends) -> None:
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    caller.close()
    until(lambda: not worker.store(record("t")))


def test_states_come_in_order_and_a_final_one_stays(ends: Ends) -> None:
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    for each in (record("t", "STARTED"), record("t", "SUCCESS"), record("t", "FAILURE"), record("t", "STARTED")):
        worker.store(each)
    worker.store(record("last"))
    until(lambda: "last" in caller.fetch(["last"]))
    assert caller.fetch(["t"])["t"] == record("t").payload


def test_watchers_hear_of_what_comes_and_of_what_is_there(ends: Ends) -> None:
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    worker.store(record("early"))
    until(lambda: "early" in caller.fetch(["early"]))
    watcher, other = caller.watcher(), caller.watcher()
    watcher.add(["early", "late", "never"])
    other.add(["late"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(collect, watcher, 2)
        worker.store(record("late"))
        assert set(waiting.result(20)) == {"early", "late"}
    assert set(collect(other, 1)) == {"late"}
    other.discard(["late"])
    worker.store(record("late"))
    assert list(other.receive(0.05)) == []
    other.close()


def test_wake_ends_a_wait(ends: Ends) -> None:
    watcher = ends.backend().watcher()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watcher.receive, 60.0)
        watcher.wake()
        assert list(waiting.result(10)) == []


def test_forget(ends: Ends) -> None:
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    worker.store(record("t"))
    until(lambda: "t" in caller.fetch(["t"]))
    caller.forget(["t", "nobody"])
    assert dict(caller.fetch(["t"])) == {}


def test_it_receives_again_after_a_lost_connection(ends: Ends) -> None:
    worker = ends.backend()
    with Proxy(ends.url) as proxy:
        caller = ends.backend(proxy.url)
        caller.expect("me")
        proxy.reset()
        until(lambda: worker.store(record("t")) and "t" in caller.fetch(["t"]), timeout=20)


def deleted(url: str, queue: str) -> None:
    """Have the server delete a queue, as its administrator does."""
    link = Link(parse_url(url, {}), name="another client")
    channel = link.channel()
    channel.call(frames.QUEUE_DELETE, (0, queue, False, False, False), frames.QUEUE_DELETE_OK)
    link.close()


def test_it_receives_again_after_its_queue_was_deleted(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    caller.expect("also me")
    deleted(ends.url, "me")
    until(lambda: worker.store(record("t")) and "t" in caller.fetch(["t"]))
    assert "The queue of results me was deleted" in caplog.text
    assert worker.store(record("u", reply_to="also me"))
    until(lambda: "u" in caller.fetch(["u"]))


def test_what_nobody_has_read_waits_for_whoever_does(ends: Ends) -> None:
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    ids = [f"t{number}" for number in range(20_000)]
    for first in range(0, len(ids), 2000):
        assert worker.store_all([record(id) for id in ids[first : first + 2000]]) == 2000
    until(lambda: caller._has(ids[-1]), timeout=15)
    watcher = caller.watcher()
    watcher.add(ids)
    assert len(watcher.receive(1.0)) == len(ids)
    # And for whoever asks again.
    assert len(caller.fetch(ids)) == len(ids)


def test_the_memory_for_results_has_a_bound(
    ends: Ends, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umbel.backends.rabbitmq_rpc.KEPT", 4000)
    monkeypatch.setattr("umbel.backends.rabbitmq_rpc.KEPT_READ", 2000)
    worker, caller = ends.backend(), ends.backend()
    caller.expect("me")
    ids = [f"t{number}" for number in range(10)]
    for id in ids:
        worker.store(record(id))
    until(lambda: caller._has("t9"))
    assert [id for id in ids if caller._has(id)] == ids[-7:]
    assert "the oldest are dropped" in caplog.text
    # What was read makes room without harm to what was not.
    assert list(caller.fetch(ids[:8])) == ids[3:8]
    assert [id for id in ids if caller._has(id)] == ids[-5:]
    caller.forget(ids)
    assert (caller._found._size, caller._read._size) == (0, 0)


def test_what_messages_cannot_do_is_refused_by_name(ends: Ends) -> None:
    backend = ends.backend()
    for ask in (
        lambda: backend.chord("g"),
        lambda: backend.save_group("g", b"", expires=None),
        lambda: backend.fetch_group("g"),
    ):
        with pytest.raises(NotImplementedError, match="rpc://"):
            ask()
    backend.forget_group("g")
    assert (backend.location(), backend.expire()) == (None, 0)


def test_it_needs_rabbitmq() -> None:
    for url in ("redis://", "", None):
        with pytest.raises(ImproperlyConfigured, match="needs a RabbitMQ broker"):
            RpcBackend("rpc://", options={"broker_url": url})
    assert RpcBackend("rpc://me@host/v", options={"broker_url": "redis://"}).location() is None


def test_no_server(ends: Ends) -> None:
    backend = ends.backend("amqp://guest:guest@127.0.0.1:1//")
    with pytest.raises(OperationalError):
        backend.expect("me")
    with pytest.raises(OperationalError):
        backend.store(record("t"))


def test_an_app(rabbitmq_url: str) -> None:
    app = Umbel("rpc", broker=rabbitmq_url, backend="rpc://", set_as_current=False)

    @app.task(bind=True)
    def add(self: Any, x: int, y: int) -> int:
        self.update_state(state="PROGRESS", meta={"x": x})
        return x + y

    caller = Umbel("caller", broker=rabbitmq_url, backend="rpc://", set_as_current=False)
    try:
        with start_worker(app, pool="threads"):
            seen: list[int] = []

            def call(number: int) -> None:
                result = caller.send_task(add.name, (number, 1))
                seen.append(result.get(timeout=20, on_message=None))

            threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(seen) == [1, 2, 3, 4, 5]
    finally:
        caller.close()
        app.close()


def test_threads_that_come_and_go_have_one_queue(rabbitmq_url: str, rabbitmq_server: RabbitMQServer) -> None:
    app = Umbel("caller", broker=rabbitmq_url, backend="rpc://", set_as_current=False)
    try:
        sent: list[Any] = []
        for _ in range(25):
            pair = [threading.Thread(target=lambda: sent.append(app.send_task("add", (1, 2)))) for _ in range(2)]
            for thread in pair:
                thread.start()
            for thread in pair:
                thread.join()
        assert len(sent) == 50
        # The other is that of the tasks.
        assert rabbitmq_server.evaluate("length(rabbit_amqqueue:list()).").strip() == "2"
        backend = app.backend
        assert backend is not None
        backend.store(record(sent[7].id, result="3", reply_to=app.thread_oid))
        assert sent[7].get(timeout=20) == 3
    finally:
        app.close()


def test_the_caller_hears_of_what_never_ran(rabbitmq_url: str) -> None:
    """Later steps of a chain that failed, and a message that describes no task."""
    app = Umbel("rpc", broker=rabbitmq_url, backend="rpc://", set_as_current=False)

    @app.task
    def fail() -> None:
        raise ValueError("no")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    try:
        with start_worker(app, pool="threads"):
            last = (fail.s() | add.s(1) | add.s(2)).apply_async()
            assert isinstance(last.get(timeout=20, propagate=False), ValueError)
            backend = app.backend
            assert backend is not None
            backend.expect("me")
            message = Message(body=b"no JSON", headers={"task": add.name, "id": "bad"}, properties={"reply_to": "me"})
            app.broker.publish([Outgoing(message=message, task_id="bad", queue="celery")])
            until(lambda: b"FAILURE" in backend.fetch(["bad"]).get("bad", b""))
    finally:
        app.close()
