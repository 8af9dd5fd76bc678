"""RabbitMQ with results in Redis: processes, connections and queues that go away under load."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fault_support import (
    FaultSite,
    Kill,
    at_once,
    check_repeats,
    check_traces,
    children,
    eventually,
    kill_worker,
    left_unsettled,
    send_many,
    wait_for,
)
from support import WorkerProcess
from umbel import Umbel, chord
from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import parse_url
from umbel.brokers.rabbitmq.link import Link
from umbel.exceptions import BrokerError, OperationalError, PublishUnknown
from umbel.interfaces import Peeked
from umbel.message import decode_envelope
from umbel.testing.proxy import Proxy
from umbel.testing.servers import RabbitMQServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

GATHER = """

@app.task(bind=True, name="gather")
def gather(self, values):
    note("start", self)
    note("end", self)
    return sorted(values)
"""
QUORUM = """
app.conf.task_queues = {
    "celery": {"queue_arguments": {
        "x-queue-type": "quorum", "x-delivery-limit": 5,
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "graveyard",
    }},
}
"""


def beats(seconds: float) -> str:
    """Source that sets the heartbeat of the connections."""
    return f"\napp.conf.broker_heartbeat = {seconds}\n"


@contextmanager
def made(folder: Path, rabbitmq_url: str, redis_url: str, tasks: str = "", **env: str) -> Iterator[FaultSite]:
    with FaultSite(folder, rabbitmq_url, redis_url, tasks=tasks, **env).closing() as site:
        yield site


@pytest.fixture
def site(rabbitmq_url: str, redis_url: str, tmp_path: Path) -> Iterator[FaultSite]:
    """The client speaks with the server itself."""
    with made(tmp_path, rabbitmq_url, redis_url) as site:
        yield site


@pytest.fixture
def proxy(rabbitmq_url: str) -> Iterator[Proxy]:
    with Proxy(rabbitmq_url) as made:
        yield made


@pytest.fixture
def link(rabbitmq_url: str) -> Iterator[Link]:
    """A connection of a client that is none of ours."""
    link = Link(parse_url(rabbitmq_url, {}), name="another client")
    yield link
    link.close()


def started(site: FaultSite, *options: str, **env: str) -> WorkerProcess:
    running = site.start(*(options or ("-c", "2")), **env)
    running.expect("ready.")
    return running


def in_bulk(site: FaultSite, count: int, seconds: float) -> list[Any]:
    return at_once(site, [("plain", number, seconds) for number in range(count)])


def check(site: FaultSite, row: Any, results: list[Any]) -> None:
    """Fill the row once everything has ended, and check the promise; stop the workers and look at what they said."""
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats = site.duplicates()
    row.check()
    site.stop_all()
    check_traces(site)


def headers(peeked: Peeked) -> Mapping[str, Any]:
    """Return the headers of a message that was looked at."""
    return (peeked.message or decode_envelope(peeked.raw)).headers


# -- processes ---------------------------------------------------------------------------------------------------


def test_killed_children(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F01. What a killed process ran starts again elsewhere, and nothing else does."""
    running = started(site, "-c", "4")
    results, kills = in_bulk(site, 2500, 0.008), []
    while len(kills) < 15 and not all(result.ready() for result in results[-20:]):
        time.sleep(0.2)
        if pids := children(running.process.pid):
            kills.append((time.monotonic_ns(), {victim := chance.choice(pids)}))
            os.kill(victim, signal.SIGKILL)
    wait_for(results, 50)
    row.load, row.faults = "2500 tasks, 4 processes", f"{len(kills)} children killed"
    row.bound, row.recovered = len(kills) * left_unsettled(0.008), site.recovery(kills)
    check_repeats(site, {pid for _, pids in kills for pid in pids})
    check(site, row, results)
    assert kills


def test_killed_workers(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F02. All processes of a worker die with it, and the server gives what they held to others at once."""
    workers = [started(site) for _ in range(2)]
    results, kills = in_bulk(site, 1500, 0.006), list[Kill]()
    for _ in range(3):
        time.sleep(chance.uniform(0.3, 0.8))
        victim = workers.pop(0)
        kills.append(kill_worker(victim))
        workers.append(started(site))
    wait_for(results, 50)
    row.load, row.faults = "1500 tasks, 2 x 2 processes", f"{len(kills)} workers killed"
    row.bound, row.recovered = len(kills) * 2 * left_unsettled(0.006), site.recovery(kills)
    check_repeats(site, {pid for _, pids in kills for pid in pids})
    check(site, row, results)


def test_stopped_while_it_works(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F16. SIGTERM at any moment: exit 0, what ran may finish, and the next worker does the rest, each task once."""
    results = in_bulk(site, 900, 0.01)
    slowest = 0.0
    for _ in range(5):
        running = started(site)
        time.sleep(chance.uniform(0.0, 0.6))
        stopping = time.monotonic()
        assert running.stop(timeout=25) == 0, running.output
        slowest = max(slowest, time.monotonic() - stopping)
    started(site)
    row.recovered = wait_for(results, 50)
    row.load, row.faults, row.bound = "900 tasks, 2 processes", f"5 stops, the slowest {slowest:.1f} s", 0
    check(site, row, results)


@pytest.mark.parametrize("how", ["twice", "quit", "away"])
def test_stopped_in_a_hurry(site: FaultSite, proxy: Proxy, how: str, row: Any) -> None:
    """F17. A second SIGTERM, a SIGQUIT, or a broker that is away: it ends in time, and what it held comes back."""
    running = started(site, URL=proxy.url)
    results = [site.send("plain", number, 3.0) for number in range(6)]
    eventually(lambda: len(site.attempts()) == 2)
    if how == "away":
        proxy.refuse()
    stopping = time.monotonic()
    running.process.send_signal(signal.SIGQUIT if how == "quit" else signal.SIGTERM)
    if how == "twice":
        running.expect("Warm shutdown")
        running.process.send_signal(signal.SIGTERM)
    running.process.wait(30)
    took = time.monotonic() - stopping
    proxy.heal()
    started(site)
    row.recovered = wait_for(results, 50)
    row.load, row.faults, row.bound = "6 tasks of 3 s, 2 processes", f"SIGTERM ({how}), {took:.1f} s", 2
    row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
    row.repeats = site.duplicates()
    row.check()
    assert took < 20


# -- the lease ---------------------------------------------------------------------------------------------------


def test_a_task_longer_than_many_heartbeats(tmp_path: Path, rabbitmq_url: str, redis_url: str, row: Any) -> None:
    """F03. How long a task runs does not matter: heartbeats are sent beside it."""
    with made(tmp_path, rabbitmq_url, redis_url, beats(1)) as site:
        started(site)
        long = site.send("plain", 0, 8.0)
        results = [long, *(site.send("plain", number) for number in range(1, 200))]
        wait_for(results, 40)
        row.load, row.faults, row.bound = "1 task of 8 s, 199 short", "heartbeat of 1 s", 0
        check(site, row, results)


@pytest.mark.parametrize("seconds", [1, 7])
def test_a_task_that_keeps_the_lock(seconds: int, tmp_path: Path, rabbitmq_url: str, redis_url: str, row: Any) -> None:
    """F09. Python's lock held for less than two heartbeats harms nothing; for longer, its task may run again.

    After ``max_deliveries`` of that it is a dead letter, and what it returned first stays its result.
    """
    with made(tmp_path, rabbitmq_url, redis_url, beats(2) + "app.conf.max_deliveries = 2\n") as site:
        started(site)
        held = site.app.send_task("hold_gil", args=(seconds,))
        results = [site.send("plain", number) for number in range(100)]
        wait_for([held, *results], 60)
        eventually(lambda: site.left() in ({}, {"dead": 1}))
        assert held.result == "done"
        row.load, row.faults = "100 tasks", f"the lock held for {seconds} s, heartbeat of 2 s"
        row.bound = 0 if seconds < 2 else 1
        row.lost = sum(result.result != number * 2 for number, result in enumerate(results))
        row.repeats = site.duplicates()
        row.check()


def test_the_server_loses_patience(
    site: FaultSite, rabbitmq_server: RabbitMQServer, row: Any, request: pytest.FixtureRequest
) -> None:
    """F20. The server's consumer_timeout closes the channel of one process: the worker lives, the others go on."""
    hasty = {"consumer_timeout": 1500, "channel_tick_interval": 500}
    patient = {"consumer_timeout": 1_800_000, "channel_tick_interval": 60_000}
    request.addfinalizer(lambda: set_env(rabbitmq_server, patient))
    set_env(rabbitmq_server, hasty)
    running = started(site)
    results = [site.send("plain", 0, 5.0)]
    eventually(lambda: bool(site.attempts()))
    results += [site.send("plain", number, 0.01) for number in range(1, 200)]
    running.expect("timed out")
    set_env(rabbitmq_server, patient)
    row.recovered = wait_for(results, 50)
    row.load, row.faults = "1 task of 5 s, 199 short", "consumer_timeout of 1.5 s"
    # Both processes may have had the long one before the server was told to be patient again. Then it comes once more,
    # a second later, although its result is there: it must be over before the worker is stopped.
    row.bound = 2
    busy_at = time.monotonic()

    def over() -> bool:
        nonlocal busy_at
        if site.left() or not all(attempt.ended for attempt in site.attempts()):
            busy_at = time.monotonic()
        return time.monotonic() - busy_at > 4.0

    eventually(over, timeout=40)
    assert {attempt.task_id for attempts in site.repeats().values() for attempt in attempts} <= {results[0].id}
    assert running.process.poll() is None
    check(site, row, results)


def set_env(server: RabbitMQServer, values: dict[str, int]) -> None:
    server.evaluate(
        "".join(f"application:set_env(rabbit, {name}, {value}), " for name, value in values.items()) + "ok."
    )


# -- connections -------------------------------------------------------------------------------------------------


def test_resets_all_the_time(site: FaultSite, proxy: Proxy, row: Any) -> None:
    """F11. All connections of a worker end with a reset again and again: nothing is lost, and it never falls silent."""
    started(site, URL=proxy.url)
    results, resets, rounds = [], 0, 0
    for number in range(400):
        results.append(site.send("plain", number, 0.004))
        if number % 40 == 20:
            time.sleep(0.3)
            resets, rounds = resets + proxy.reset(), rounds + 1
    row.recovered = wait_for(results, 50)
    row.load, row.faults = "400 tasks, 2 processes", f"{resets} resets"
    # Each process may have had one running, and those that had ended within the settle window.
    row.bound = rounds * 2 * left_unsettled(0.004)
    check(site, row, results)


def test_half_open_connections(tmp_path: Path, rabbitmq_url: str, redis_url: str, proxy: Proxy, row: Any) -> None:
    """F14. A connection that stays and carries nothing is found by its missing heartbeats."""
    with made(tmp_path, rabbitmq_url, redis_url, beats(1)) as site:
        started(site, URL=proxy.url)
        wait_for(send_many(site, 20, 0.0), 20)
        proxy.swallow()
        results = send_many(site, 50, 0.0)
        time.sleep(3.0)
        proxy.heal(reset=False)
        row.recovered = wait_for(results, 40)
        row.load, row.faults, row.bound = "70 tasks", "3 s half-open", 2
        check(site, row, results)


def test_a_publish_whose_confirmation_is_lost(rabbitmq_url: str, redis_url: str, proxy: Proxy, row: Any) -> None:
    """F12. The caller is told that nobody knows; RabbitMQ recognises no repeats, so sending again may double it."""
    producer = Umbel("producer", broker=proxy.url, backend=redis_url, set_as_current=False)
    unknown = []
    try:
        for number in range(100):
            if number % 20 == 10:
                proxy.drop_reply(b"plain")
            try:
                producer.send_task("plain", args=(number,), task_id=f"id-{number}", retry=False)
            except PublishUnknown as error:
                unknown.append(error.task_id)
                producer.send_task("plain", args=(number,), task_id=f"id-{number}", retry=False)
        ids = Counter(headers(peeked)["id"] for peeked in producer.broker.peek("celery", limit=200))
    finally:
        producer.close()
    row.load, row.faults = "100 publishes", f"{proxy.dropped} confirmations lost"
    row.lost = 100 - len(ids)
    row.repeats, row.bound = ids.total() - len(ids), len(unknown)
    row.check()
    assert len(unknown) == proxy.dropped == 5
    assert {id for id, count in ids.items() if count > 1} <= set(unknown)


@pytest.mark.parametrize("why", ["queue", "exchange", "size", "memory"])
def test_a_publish_that_cannot_be(
    why: str, rabbitmq_url: str, redis_url: str, rabbitmq_server: RabbitMQServer, link: Link, row: Any
) -> None:
    """F13. Each raises where it is called; nothing is silently accepted, and the next one is taken."""
    producer = Umbel("producer", broker=rabbitmq_url, backend=redis_url, set_as_current=False)
    producer.conf.task_queues = {"celery": {"exchange": "jobs", "exchange_type": "topic", "routing_key": "job.#"}}
    producer.conf.publish_timeout = 1.0
    alarm = "({resource_limit, memory, node()}"
    try:
        if why == "size":
            set_env(rabbitmq_server, {"max_message_size": 100_000})
        producer.send_task("plain", args=("1",), routing_key="job.1")
        if why == "memory":
            rabbitmq_server.evaluate("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).")
        options: dict[str, dict[str, Any]] = {
            "queue": {"routing_key": "nobody"},
            "exchange": {"exchange": "nowhere", "routing_key": "x"},
            "size": {"args": ("x" * 200_000,), "routing_key": "job.2"},
            "memory": {"routing_key": "job.2"},
        }
        words = {
            "queue": "no queue takes what goes to exchange 'jobs' with key 'nobody'",
            "exchange": "there is no exchange 'nowhere'",
            "size": "larger than configured max size",
            "memory": "takes no messages now|did not confirm",
        }
        for _ in range(2):
            with pytest.raises(BrokerError, match=words[why]) as caught:
                producer.send_task("plain", retry=False, **({"args": ("2",)} | options[why]))
            # Trying again would not help, and the error says so by its class.
            assert isinstance(caught.value, OperationalError) is (why == "memory")
    finally:
        set_env(rabbitmq_server, {"max_message_size": 134_217_728})
        rabbitmq_server.evaluate(f"rabbit_alarm:clear_alarm{alarm}).")
    try:
        until = time.monotonic() + 10
        while True:
            try:
                producer.send_task("plain", args=("3",), routing_key="job.3", retry=False)
                break
            except OperationalError:
                assert time.monotonic() < until, "it is not taken although the alarm is over"
        # What nobody knew about may have been taken after all; what was refused was not.
        found = [headers(peeked)["argsrepr"] for peeked in producer.broker.peek("celery")]
        assert [each for each in found if "2" not in each] == ["('1',)", "('3',)"]
        assert why == "memory" or len(found) == 2
    finally:
        producer.close()
    row.load, row.faults, row.lost, row.repeats, row.bound = "4 publishes", why, 0, len(found) - 2, 2
    row.check()


# -- queues ------------------------------------------------------------------------------------------------------


def test_a_quorum_queue_with_a_limit(
    tmp_path: Path, rabbitmq_url: str, redis_url: str, proxy: Proxy, link: Link, row: Any
) -> None:
    """F39. Its limit counts deliveries that never ran. With a dead-letter exchange nothing vanishes all the same."""
    channel = link.channel()
    channel.call(frames.QUEUE_DECLARE, frames.declare_queue("graveyard"), frames.QUEUE_DECLARE_OK)
    with made(tmp_path, rabbitmq_url, redis_url, QUORUM) as site:
        site.app.conf.task_queues = {"celery": {"queue_arguments": quorum_arguments()}}
        started(site, URL=proxy.url)
        results = send_many(site, 50, 0.05)
        for _ in range(10):
            time.sleep(0.15)
            proxy.reset()
        broker = site.app.broker

        def buried() -> set[str]:
            kept = [*broker.peek("graveyard", limit=100), *broker.dead().page("celery")]
            return {str(headers(each)["id"]) for each in kept}

        ids = {result.id for result in results}
        eventually(lambda: {each.task_id for each in site.attempts() if each.ended} | buried() >= ids, timeout=50)
        row.load, row.faults = "50 tasks, 2 processes", "10 resets, limit of 5 deliveries"
        row.lost = len(ids - {each.task_id for each in site.attempts() if each.ended} - buried())
        row.repeats, row.bound = site.duplicates(), 10 * 2 * left_unsettled(0.05)
        row.check()


def quorum_arguments() -> dict[str, Any]:
    scope: dict[str, Any] = {"app": type("App", (), {"conf": type("Conf", (), {})()})()}
    exec(QUORUM, scope)
    arguments: dict[str, Any] = scope["app"].conf.task_queues["celery"]["queue_arguments"]
    return arguments


def test_a_queue_that_is_deleted(site: FaultSite, link: Link, row: Any) -> None:
    """F40. The server ends the consumers: the worker declares the queue again and consumes, or says why not."""
    running = started(site)
    wait_for(send_many(site, 50, 0.0), 20)
    channel, slowest = link.channel(), 0.0
    for number in range(3):
        channel.call(frames.QUEUE_DELETE, (0, "celery", False, False, False), frames.QUEUE_DELETE_OK)
        sent = time.monotonic()
        assert site.send("plain", number, 0.0).get(timeout=20) == number * 2
        slowest = max(slowest, time.monotonic() - sent)
    results = send_many(site, 50, 0.0)
    wait_for(results, 20)
    row.load, row.faults, row.recovered, row.bound = "103 tasks, 2 processes", "3 queues deleted", slowest, 0
    assert running.process.poll() is None
    check(site, row, results)


# -- later, and together -----------------------------------------------------------------------------------------


def test_delays_over_restarts(site: FaultSite, row: Any) -> None:
    """F21. Delayed tasks wait in the server: never early, each once, whatever happens to the workers."""
    began = time.time()
    due = {site.app.send_task("plain", args=(n,), countdown=(n % 8) + 1).id: began + (n % 8) + 1 for n in range(120)}
    for _ in range(2):
        running = started(site)
        time.sleep(1.5)
        assert running.stop(timeout=25) == 0
    started(site)
    results = [site.app.AsyncResult(id) for id in due]
    wait_for(results, 50)
    now, monotonic = time.time(), time.monotonic_ns()
    late = [now - (monotonic - each.started_at) / 1e9 - due[each.task_id] for each in site.attempts()]
    assert min(late) >= 0.0, "a task was early"
    row.load, row.faults, row.recovered, row.bound = "120 tasks, 1 to 8 s", "2 restarts", max(late), 0
    check(site, row, results)


def test_chords_and_kills(tmp_path: Path, rabbitmq_url: str, redis_url: str, chance: random.Random, row: Any) -> None:
    """F24. Messages and results are in two stores: every body is called at least once, with all values."""
    with made(tmp_path, rabbitmq_url, redis_url, GATHER) as site:
        running = started(site, "-c", "3")
        members = [[site.app.signature("plain", args=(n, 0.01)) for n in range(10)] for _ in range(20)]
        results = [chord(header)(site.app.signature("gather")) for header in members]
        kills = []
        while len(kills) < 10 and not all(result.ready() for result in results):
            time.sleep(0.2)
            if pids := children(running.process.pid):
                kills.append((time.monotonic_ns(), {victim := chance.choice(pids)}))
                os.kill(victim, signal.SIGKILL)
        wait_for(results, 50)
        row.load, row.faults = "20 chords of 10, 3 processes", f"{len(kills)} children killed"
        row.lost = sum(result.result != [2 * n for n in range(10)] for result in results)
        # Of each kill: what it ran, what it had not settled, and the body of a chord that it had just completed.
        row.repeats, row.bound = site.duplicates(), len(kills) * (left_unsettled(0.01) + 1)
        row.check()
        assert kills
        site.stop_all()
