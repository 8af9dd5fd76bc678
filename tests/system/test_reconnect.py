"""Programs and workers whose store is away, silent or back again: nobody waits for ever, and nothing is missed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, eventually
from umbel import Umbel
from umbel.brokers.redis import link as links
from umbel.exceptions import OperationalError, PublishUnknown, TimeoutError
from umbel.result import GroupResult, ResultSet
from umbel.testing.faults import FaultyUmbel
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RedisServer
from umbel.worker import connecting
from umbel.worker.plan import make_plan

# How much longer than its deadline a call may take here: the machine may be busy. Without a deadline it would be
# the five seconds of an answer, or several times that.
SLACK = 2.5


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_url) as made:
        yield made


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes apps that are closed afterwards."""
    with contextlib.ExitStack() as closing:

        def app(url: str, results: str = "", kind: type[Umbel] = Umbel, **settings: Any) -> Any:
            made = kind("client", broker=url, backend=results or url, set_as_current=False)
            made.conf.update(settings)
            closing.callback(made.close)
            return made

        yield app


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < seconds + SLACK, f"it took {took:.1f} s and had {seconds} s"


# -- publishing --------------------------------------------------------------------------------------------------


def test_a_silent_server_costs_a_publisher_its_deadline_once(make: Any, proxy: Proxy) -> None:
    """Half-open: the connection is there and carries nothing. What is unknown is said to be, with its id."""
    app = make(proxy.url, publish_timeout=1.0)
    app.send_task("plain", (0,))
    proxy.swallow()
    endless = {"max_retries": None, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.1}
    with within(1.0), pytest.raises(PublishUnknown) as caught:
        app.send_task("plain", (1,), task_id="mine", retry_policy=endless)
    assert caught.value.task_id == "mine"
    # Nothing was sent on this connection, so nothing is unknown.
    with within(1.0), pytest.raises(OperationalError, match="safe to send again") as refused:
        app.send_task("plain", (2,), retry_policy=endless)
    assert not isinstance(refused.value, PublishUnknown)


def test_connecting_counts_too(make: Any, proxy: Proxy) -> None:
    """Each answer comes late, and no single one too late."""
    app = make(proxy.url, publish_timeout=1.0)
    proxy.delay(0.7)
    with within(1.0), pytest.raises(OperationalError):
        app.send_task("plain", (1,))


def test_a_retry_has_what_is_left(make: Any, proxy: Proxy) -> None:
    """The first attempt ends shortly before the deadline, and the second meets silence."""
    app = make(proxy.url, publish_timeout=4.0)
    app.send_task("plain", (0,))
    proxy.swallow()

    def again() -> None:
        proxy.heal()
        proxy.swallow()

    timer = threading.Timer(3.5, again)
    timer.start()
    with within(4.0), pytest.raises(PublishUnknown):
        app.send_task("plain", (1,))
    timer.join()
    assert proxy.accepted == 2, "there was no second attempt"


def test_a_call_may_have_a_deadline_of_its_own(make: Any, proxy: Proxy) -> None:
    app = make(proxy.url, publish_timeout=60.0)
    app.send_task("plain", (0,))
    proxy.swallow()
    with within(0.5), pytest.raises(PublishUnknown):
        app.send_task("plain", (1,), timeout=0.5)
    with within(0.5), pytest.raises(OperationalError):
        app.send_task("plain", (2,), timeout=0.5)
    proxy.heal()
    assert app.send_task("plain", (3,), timeout=5.0).id


def test_retries_stay_inside_the_deadline_and_go_on_until_it(make: Any, proxy: Proxy) -> None:
    app = make(proxy.url, publish_timeout=6.0)
    app.send_task("plain", (0,))
    proxy.refuse()
    timer = threading.Timer(0.5, proxy.heal)
    timer.start()
    try:
        app.send_task("plain", (1,), retry_policy={"max_retries": None, "interval_start": 0.05, "interval_step": 0})
    finally:
        timer.join()
    assert app.broker.size("celery") == 2


def test_an_idle_connection_that_died_silently_costs_no_task(
    make: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall forgot it: the server is asked before a message is entrusted to a connection that lay idle."""
    monkeypatch.setattr(links, "DOUBTED", 0.2)
    app = make(proxy.url)
    app.send_task("plain", (0,))
    proxy.swallow()
    proxy.heal(reset=False)
    time.sleep(0.3)
    app.send_task("plain", (1,), retry=False)
    assert app.broker.size("celery") == 2


@pytest.mark.parametrize("store", ["redis", "sqlite"])
def test_a_repeated_id_is_one_task(
    make: Any, store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = request.getfixturevalue(f"{store}_url")
    monkeypatch.setenv("UMBEL_FAULT", "publish:after:1:error,publish:after:4:error")
    monkeypatch.delenv("UMBEL_FAULT_MARKS", raising=False)
    app = make(url, kind=FaultyUmbel)
    with pytest.raises(PublishUnknown) as caught:
        app.send_task("plain", (1,), task_id="mine", retry=False)
    assert caught.value.task_id == "mine"
    assert app.send_task("plain", (1,), task_id="mine").id == "mine"
    assert app.send_task("plain", (1,), task_id="mine", retry=False).id == "mine"
    # The retries do the same by themselves, and the caller hears of nothing.
    assert app.send_task("plain", (2,), task_id="other").id == "other"
    assert app.broker.size("celery") == 2


def test_a_file_that_is_locked_costs_a_publisher_its_deadline(make: Any, sqlite_url: str, sqlite_path: Path) -> None:
    """Also where many threads wait for it: none of them waits for all before it."""
    app = make(sqlite_url, publish_timeout=1.0)
    app.send_task("plain", (0,))
    errors: list[BaseException] = []

    def publish(number: int) -> None:
        try:
            app.send_task("plain", (number,))
        except OperationalError as error:
            errors.append(error)

    with contextlib.closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        with within(2.0):  # our own lock is had at once, the file's is not: each has a second for both
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        other.execute("ROLLBACK")
    assert len(errors) == 8 and not any(isinstance(error, PublishUnknown) for error in errors)
    app.send_task("plain", (9,))
    assert app.broker.size("celery") == 2


def test_a_name_that_is_not_resolved_in_time(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver of the system knows no deadline, so it is waited for and not called."""
    real, asked, over = socket.getaddrinfo, [], threading.Event()

    def silent(host: Any, *args: Any, **options: Any) -> Any:
        if host == "far.example" and not options.get("flags"):
            asked.append(host)
            over.wait(20)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    app = make("redis://far.example:6379/0", publish_timeout=0.5)
    try:
        with within(0.5), pytest.raises(OperationalError, match="far.example"):
            app.send_task("plain", (1,))
        with within(0.5), pytest.raises(OperationalError, match="far.example"):
            app.send_task("plain", (1,))
        assert asked == ["far.example"], "one question at a time is enough"
    finally:
        over.set()


# -- waiting for results -----------------------------------------------------------------------------------------


def waits(app: Umbel, ids: list[str], timeout: float) -> dict[str, Callable[[], Any]]:
    """The ways to wait for these results."""

    def result(index: int) -> Any:
        return app.AsyncResult(ids[index])

    async def coroutine() -> Any:
        async with asyncio.timeout(timeout):
            return await result(0)

    def called_back() -> Any:
        over, seen = threading.Event(), []
        result(0).then(lambda done: (seen.append(done.result), over.set()))
        if not over.wait(timeout):
            raise TimeoutError
        return seen[0]

    everything = [app.AsyncResult(id) for id in ids]
    return {
        "get": lambda: result(0).get(timeout=timeout),
        "coroutine": lambda: asyncio.run(coroutine()),
        "callback": called_back,
        "set": lambda: ResultSet(everything, app=app).get(timeout=timeout),
        "group": lambda: GroupResult("g", everything, app=app).get(timeout=timeout),
        "native": lambda: dict(GroupResult("g", everything, app=app).iter_native(timeout=timeout)),
    }


@pytest.mark.parametrize(
    ("way", "when"),
    [("get", "from the start"), ("get", "refused"), ("native", "from the start")]
    + [(way, "while it waits") for way in ("get", "coroutine", "set", "group", "native")],
)
def test_whoever_has_a_timeout_is_back_in_time(make: Any, proxy: Proxy, way: str, when: str) -> None:
    app = make(proxy.url)
    timer = threading.Timer(0.5, proxy.swallow)
    if when == "from the start":
        proxy.swallow()
    elif when == "refused":
        proxy.refuse()
    else:
        timer.start()
    try:
        with within(1.5), pytest.raises((TimeoutError, asyncio.TimeoutError)):
            waits(app, ["a", "b"], 1.5)[way]()
    finally:
        timer.cancel()


@pytest.mark.parametrize("how", ["reset", "half-open", "for ever", "refused"])
def test_a_result_that_came_during_an_outage_is_seen(make: Any, proxy: Proxy, redis_url: str, how: str) -> None:
    """By threads, coroutines and callbacks that share one connection, and by each of them."""
    app, worker = make(proxy.url), make(redis_url)
    answers: dict[str, Any] = {}

    def wait(way: str, call: Callable[[], Any]) -> None:
        try:
            answers[way] = call()
        except Exception as error:
            answers[way] = error

    ways = waits(app, ["a", "b"], 40)
    threads = [threading.Thread(target=wait, args=each) for each in ways.items()]
    for thread in threads:
        thread.start()
    eventually(lambda: proxy.connections > 0)
    time.sleep(0.3)
    {"reset": proxy.reset, "refused": proxy.refuse}.get(how, proxy.swallow)()

    class Ended:
        name, backend = "plain", worker.backend

    for id, value in (("a", 1), ("b", 2)):
        worker.store_state(Ended, id, "SUCCESS", value, None)
    time.sleep(1.0)
    proxy.heal(reset=how != "for ever")
    for thread in threads:
        thread.join(40)
    native = answers.pop("native")
    assert {id: meta["result"] for id, meta in native.items()} == {"a": 1, "b": 2}
    assert answers == {"get": 1, "coroutine": 1, "callback": 1, "set": [1, 2], "group": [1, 2]}


def test_a_result_is_seen_although_its_message_is_lost(make: Any, redis_url: str) -> None:
    """What a channel says is a hint: a result that nobody announces is read all the same."""
    app = make(redis_url)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(app.AsyncResult("quiet").get(timeout=20)))
    thread.start()
    eventually(lambda: app.waiter._listener.at_hand or app.waiter._listener._leader is not None)
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.set("celery-task-meta-quiet", '{"status": "SUCCESS", "result": 5, "task_id": "quiet"}')
    thread.join(20)
    assert answers == [5]


# -- a worker and its broker -------------------------------------------------------------------------------------


@pytest.fixture
def down(tmp_path: Path) -> Iterator[tuple[RedisServer, FaultSite]]:
    """A server that is not started yet, and a place for workers of it."""
    server = RedisServer()
    with FaultSite(tmp_path, server.url, LEASE_TTL="6").closing() as site:
        try:
            yield server, site
        finally:
            site.app.close()
            server.close()


def test_a_worker_starts_before_its_broker(down: tuple[RedisServer, FaultSite]) -> None:
    server, site = down
    running = site.start("-c", "1")
    running.expect(f"consumer: Cannot connect to {server.url}: ")
    running.expect("Trying again in 2.00 seconds... (1/100)")
    running.expect("Trying again in 4.00 seconds... (2/100)")
    server.start()
    running.expect(f"Connected to {server.url}", timeout=15)
    running.expect("ready.")
    assert site.send("plain", 4).get(timeout=20) == 8
    site.stop_all()


def test_a_long_pause_is_not_waited_for(make: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """What the log calls the next attempt may be half a minute ahead; a broker that is back is found before."""
    monkeypatch.setattr(connecting, "_STEP", 30.0)
    server = RedisServer()
    app = make(server.url)
    found: list[Any] = []
    stopping = threading.Event()
    plan = make_plan(app, {"concurrency": 1})
    thread = threading.Thread(target=lambda: found.append(connecting.connect(app, plan, server.url, stopping)))
    thread.start()
    try:
        eventually(lambda: "Trying again in 30.00 seconds" in caplog.text)
        server.start()
        thread.join(10)
        assert found == [app.broker]
    finally:
        stopping.set()
        thread.join()
        server.close()


def test_the_result_backend_may_come_later(redis_url: str, tmp_path: Path) -> None:
    """What ends meanwhile is kept until its result can be stored, and its body runs once."""
    with RedisServer() as results:
        results.stop()
        with FaultSite(tmp_path, redis_url, results.url, LEASE_TTL="6").closing() as site:
            running = site.start("-c", "1")
            running.expect("ready.")
            sent = [site.send("plain", number) for number in range(20)]
            running.expect("Trying again in")
            results.start()
            assert [result.get(timeout=20) for result in sent] == [2 * number for number in range(20)]
            assert site.duplicates() == 0
            assert "exited with" not in running.output
            site.stop_all()


@pytest.mark.parametrize("how", ["silent", "refused"])
def test_a_worker_that_waits_for_its_broker_ends_in_time(tmp_path: Path, how: str) -> None:
    """A broker that accepts and says nothing is the worst of those that are away."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        if how == "refused":
            listening.close()
        with FaultSite(tmp_path, url).closing() as site:
            running = site.start("-c", "1")
            running.expect("Cannot connect to" if how == "refused" else "[config]")
            time.sleep(0.5)
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(15) == 0, running.output


def test_a_fork_in_the_middle_of_an_outage(make: Any, proxy: Proxy) -> None:
    """A child does not inherit a wait, and has a connection of its own."""
    app = make(proxy.url)
    with pytest.raises(TimeoutError):
        app.AsyncResult("a").get(timeout=0.1)
    proxy.refuse()
    with pytest.raises(TimeoutError):
        app.AsyncResult("a").get(timeout=0.1)
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            try:
                app.AsyncResult("a").get(timeout=0.5)
            except TimeoutError:
                status = 0
        os._exit(status)
    deadline = time.monotonic() + 15
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child waits for ever")
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, 500),
        ({"appendonly": "yes", "appendfsync": "everysec"}, 500),
        ({"appendonly": "no", "save": "3600 1 300 100 60 10000"}, 0),
    ],
    ids=["always", "everysec", "snapshots"],
)
def test_what_a_killed_redis_keeps(make: Any, settings: dict[str, str], kept: int) -> None:
    """The process alone is killed; what a power cut takes is up to its disk."""
    with RedisServer(settings=settings) as server:
        app = make(server.url)
        app.send_many([("plain", (number,)) for number in range(500)])
        assert app.broker.size("celery") == 500
        server.kill()
        server.start()
        with contextlib.suppress(OperationalError):  # the first to notice
            app.broker.size("celery")
        assert app.broker.size("celery") == kept


def test_memory_is_gone_with_its_process(make: Any) -> None:
    code = (
        "from umbel import Umbel; app = Umbel('one', broker='memory://shared'); "
        "app.send_task('plain'); print(app.broker.size('celery'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "1\n"
    assert make("memory://shared").broker.size("celery") == 0
