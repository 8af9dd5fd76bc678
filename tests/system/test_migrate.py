"""Moving messages: between brokers, back to Celery, and by ``celery.contrib.migrate``'s functions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from support import environment, worker
from umbel import Umbel
from umbel.cli.main import cli
from umbel.contrib import migrate
from umbel.contrib.moving import Found, Moving, for_celery, queues_of
from umbel.drivers import open_broker
from umbel.exceptions import BrokerError
from umbel.interfaces import Outgoing, Place, QueueSpec
from umbel.message import Message, decode_call, decode_envelope

CELERY_APP = """
from celery import Celery
app = Celery("back", broker="{broker}", backend="{backend}")

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="when", bind=True)
def when(self):
    import time
    return time.time()
"""


def umbel(*args: str) -> str:
    result = CliRunner().invoke(cli, args, prog_name="umbel")
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(params=["redis", "rabbitmq", "sqlite", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """Each kind of broker."""
    if request.param == "memory":
        return "memory://migrated"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def app(url: str) -> Iterator[Umbel]:
    app = Umbel("mover", broker=url, set_as_current=False)
    app.conf.task_queues = {name: {"exchange": name, "routing_key": name} for name in ("celery", "mail", "video")}
    app.broker.declare(app.queues(None))
    for spec in app.queues(None):
        for place in (Place.READY, Place.SCHEDULED):
            app.broker.purge(spec.name, place)
    yield app
    app.close()


def ids(app: Umbel, queue: str) -> list[str]:
    found = []
    for peeked in app.broker.peek(queue):
        message = peeked.message or decode_envelope(peeked.raw)
        found.append(decode_call(message).id)
    return found


# -- celery.contrib.migrate --------------------------------------------------------------------------------------------


def test_tasks_are_moved_by_a_predicate_and_the_rest_stays_in_order(app: Umbel) -> None:
    sent = [app.send_task("even" if n % 2 == 0 else "odd", (n,), {"k": n}).id for n in range(6)]
    seen = []

    def wanted(body: Any, message: Any) -> Any:
        assert body["args"] == body[0] == [body["kwargs"]["k"]] and message.headers["task"] == body["task"]
        return ("video", "video") if body["task"] == "odd" else None

    state = migrate.move(wanted, app=app, timeout=0, callback=lambda *given: seen.append(given))
    assert state.filtered == 3 and repr(state) == "^3" and state.strtotal == "6"
    assert ids(app, "celery") == sent[::2] and ids(app, "video") == sent[1::2]
    assert [body["id"] for _, body, _ in seen] == sent[1::2]


def test_tasks_are_moved_by_id_and_by_name(app: Umbel) -> None:
    sent = [app.send_task(name).id for name in ("a", "b", "c", "c")]
    assert migrate.move_task_by_id(sent[1], "mail", app=app, timeout=0).filtered == 1
    assert migrate.move_by_idmap({sent[0]: QueueSpec(name="video")}, app=app, timeout=0).filtered == 1
    assert migrate.move_by_taskmap({"c": "mail"}, app=app, timeout=0, limit=1).filtered == 1
    assert (ids(app, "celery"), ids(app, "mail"), ids(app, "video")) == ([sent[3]], [sent[1], sent[2]], [sent[0]])
    # To the queue where it is: moved once, and not again and again.
    assert migrate.move(lambda body, message: True, app=app, routing_key="celery", timeout=0.1).filtered >= 1


def test_tasks_are_moved_to_one_worker_alone(app: Umbel) -> None:
    id = app.send_task("a").id
    migrate.move_direct_by_id(id, "w1@here", app=app, timeout=0)
    assert ids(app, "celery") == [] and ids(app, "w1@here.dq2") == [id]


def test_where_nothing_is_said_nothing_is_lost(app: Umbel) -> None:
    id = app.send_task("a").id
    with pytest.raises(ValueError, match="where is a"):
        migrate.move(lambda body, message: True, app=app, timeout=0)
    with pytest.raises(ZeroDivisionError):
        migrate.move(lambda body, message: 1 / 0, app=app, timeout=0)
    assert ids(app, "celery") == [id]


def test_messages_that_nobody_can_read_stay(app: Umbel) -> None:
    strange = Message(body=b"\xff", content_type="application/x-strange", headers={"x": 1})
    unreadable = Message(body=b"\xff", content_type="application/x-strange", headers={"task": "t", "id": "4711"})
    app.broker.publish([Outgoing(message=strange, task_id="s", queue="celery", routing_key="celery")])
    app.broker.publish([Outgoing(message=unreadable, task_id="u", queue="celery", routing_key="celery")])
    bodies = []
    migrate.move(lambda body, message: bodies.append(body), app=app, timeout=0)
    assert [(body["task"], body["id"], body["args"]) for body in bodies] == [("t", "4711", None)]
    assert app.broker.size("celery") == 2


def test_tasks_go_to_another_broker(app: Umbel, url: str, tmp_path: Path) -> None:
    sent = [app.send_task("a", (n,)).id for n in range(3)]
    other = Umbel("other", broker=f"sqlite:///{tmp_path}/other.db", set_as_current=False)
    there, seen = other.urls.write, []
    state = migrate.migrate_tasks(url, there, app=app, queues="celery:fresh", limit=2, timeout=0)
    assert (state.count, repr(state)) == (2, "2/3")
    assert ids(other, "fresh") == sent[:2] and ids(app, "celery") == sent
    migrate.migrate_tasks(url, there, app=app, ack_messages=True, timeout=0, callback=lambda *given: seen.append(given))
    assert ids(other, "celery") == sent and ids(app, "celery") == [] and len(seen) == 3
    message = seen[0][2]
    migrate.migrate_task(there, seen[0][1], message, {"celery": "third"})
    assert ids(other, "third") == sent[:1]
    with pytest.raises(NotImplementedError, match="use move"):
        migrate.migrate_tasks(url, there, migrate=lambda *given: None, app=app)
    other.close()


def test_what_is_refused_is_not_taken_away(rabbitmq_url: str, tmp_path: Path) -> None:
    source = Umbel("full", broker=f"sqlite:///{tmp_path}/q.db", set_as_current=False)
    sent = [source.send_task("a").id for _ in range(2)]
    there = open_broker(rabbitmq_url)
    there.open()
    there.declare([QueueSpec(name="celery", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})])
    result = CliRunner().invoke(cli, ["migrate", source.urls.write, rabbitmq_url, "-a"])
    assert result.exit_code == 5 and "was not taken" in result.stderr and "still at the source" in result.stderr
    with pytest.raises(BrokerError, match="was not taken"):
        migrate.migrate_tasks(source.urls.write, rabbitmq_url, app=source, ack_messages=True, timeout=0)
    assert ids(source, "celery") == sent
    there.close()
    source.close()


# -- back to Celery ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_celerys_workers_take_over_what_waits_and_what_is_delayed(
    kind: str, tmp_path: Path, redis_url: str, request: pytest.FixtureRequest
) -> None:
    source = Umbel("ours", broker=request.getfixturevalue(f"{kind}_url"), backend=redis_url, set_as_current=False)
    # A worker of ours was here, so that the client uses the schedule.
    leases = source.broker.leases()
    leases.register("ours@here")
    soon = datetime.now(UTC) + timedelta(seconds=8)
    now, late, far = (
        source.send_task("add", (2, 3)),
        source.send_task("when", eta=soon),
        source.send_task("add", (1, 1), countdown=7200),
    )
    assert source.broker.size("celery", Place.SCHEDULED) == 2
    said = umbel("-q", "migrate", source.urls.write, redis_url, "-a", "--to-celery")
    assert said.startswith("3 messages moved." if kind == "sqlite" else "2 messages moved.")
    assert source.broker.size("celery", Place.SCHEDULED) == 0
    (tmp_path / "back.py").write_text(CELERY_APP.format(broker=redis_url, backend=redis_url))
    env = environment(C_FORCE_ROOT="1")
    with worker("back", "-l", "info", "-c", "1", cwd=tmp_path, env=env, celery=True) as process:
        assert now.get(timeout=30) == 5
        assert late.get(timeout=30) >= soon.timestamp() - 0.01
        process.expect(f"Task add[{far.id}] received")
        assert far.state == "PENDING"
    leases.close()
    source.close()


def test_a_copy_leaves_the_schedule_as_it_was(sqlite_url: str, redis_url: str) -> None:
    source = Umbel("ours", broker=sqlite_url, set_as_current=False)
    source.send_task("add", countdown=100)
    source.send_task("other", countdown=100)
    for _ in range(2):
        said = umbel("migrate", sqlite_url, redis_url, "--to-celery", "-T", "add")
        assert "1 messages copied." in said and "2 wait for their time" in said
    there = Umbel("there", broker=redis_url, set_as_current=False)
    assert (source.broker.size("celery", Place.SCHEDULED), there.broker.size("celery")) == (2, 2)
    source.close()
    there.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_queues_that_no_app_declares_are_moved_too(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    here = request.getfixturevalue(f"{kind}_url")
    there = f"sqlite:///{tmp_path}/there.db"
    source, other = (Umbel(name, broker=url, set_as_current=False) for name, url in (("a", here), ("b", there)))
    with closing(source), closing(other):
        sent = source.send_task("a").id
        odd = [source.send_task("a", queue="odd", priority=priority).id for priority in (0, 9)]
        source.send_task("a", queue="late", countdown=1000)
        if kind == "redis":
            import redis

            with redis.Redis.from_url(here) as client:
                # Those of other programs, in the same database.
                client.rpush("basket", "apples")
                client.rpush(b"\xff\xfe", b"\xff")
                client.rpush("reply.pidbox", '{"body": "e30=", "headers": {}, "properties": {}}')
        assert list(queues_of(here) or ()) == ["celery", "late", "odd"]
        done = umbel("migrate", here, there, "-a", "-Q", "celery:fresh")
        assert "1 messages moved." in done and "Not asked for, and left at the source: 2 in 'odd'." in done
        done = umbel("migrate", here, there, "-a")
        assert "2 messages moved." in done and "1 wait for their time" in done and "Not asked" not in done
        assert ids(other, "fresh") == [sent] and sorted(ids(other, "odd")) == sorted(odd)
        assert source.broker.size("odd") == 0


def test_rabbitmq_does_not_say_which_queues_it_has(rabbitmq_url: str, tmp_path: Path) -> None:
    there = f"sqlite:///{tmp_path}/there.db"
    assert queues_of(rabbitmq_url) is None
    assert "Looked at celery: this broker does not say which others" in umbel("migrate", rabbitmq_url, there)
    assert "Looked at" not in umbel("migrate", rabbitmq_url, there, "-Q", "celery")


def test_the_same_place_is_refused_unless_something_is_to_do_there(sqlite_url: str) -> None:
    result = CliRunner().invoke(cli, ["migrate", sqlite_url, sqlite_url, "-a"])
    assert result.exit_code == 2 and "--to-celery" in result.stderr


def test_a_message_says_itself_when_it_is_due() -> None:
    due = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    headers = {"task": "t", "id": "1", "eta": None, "umbel-signature": "x", "mine": 1}
    made = for_celery(Found(Message(body=b"[]", headers=headers), "q", "t", "1", due))
    assert made is not None
    assert made.message.headers == {"task": "t", "id": "1", "eta": due.isoformat(), "mine": 1}
    old = Message(body=b'{"task": "t", "id": "1", "args": [1], "eta": null}')
    made = for_celery(Found(old, "q", "t", "1", due))
    assert made is not None and decode_call(made.message).eta == due.isoformat()
    pickled = old.replace(content_type="application/x-python-serialize")
    assert for_celery(Found(pickled, "q", "t", "1", due)) is None
    assert for_celery(Found(pickled, "q", "t", "1")) is not None


class Counting:
    """A broker that counts what it shows."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self.shown: list[int] = []

    def peek(self, queue: str, **options: Any) -> Any:
        found = self._broker.peek(queue, **options)
        self.shown.append(len(found))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


@pytest.mark.parametrize("stay", [0, 1, 2])
@pytest.mark.parametrize("keep", [False, True])
def test_a_schedule_is_moved_part_by_part(app: Umbel, stay: int, keep: bool) -> None:
    """However many stay, each is handed over once, and no more is looked at than a few times what there is."""
    if not app.broker.features.schedule:
        pytest.skip("this broker shows no schedule")
    count, run = 700, uuid4()
    with closing(app.broker.leases()) as present:
        present.register("ours@here")
    app.broker.publish(
        [
            Outgoing(
                message=Message(body=b"[[], {}, {}]", headers={"task": "a", "id": f"{run}-{n}"}),
                task_id=f"{run}-{n}",
                queue="mail",
                routing_key="mail",
                not_before=datetime(2100, 1, 1, tzinfo=UTC),
            )
            for n in range(count)
        ]
    )
    source, there = Counting(app.broker), open_broker("memory://part-by-part")
    there.open()

    def number(found: Found) -> int:
        return int(found.id.rpartition("-")[2])

    def decide(found: Found) -> Outgoing | None:
        return found.outgoing() if number(found) % 3 >= stay else None

    moving = Moving(source, there, ["mail"], decide)  # type: ignore[arg-type]
    moved = [number(found) for found in moving.scheduled(keep=keep)]
    assert moved == [n for n in range(count) if n % 3 >= stay]
    assert there.purge("mail") == len(moved)
    left = app.broker.peek("mail", place=Place.SCHEDULED, limit=2 * count)
    assert len(left) == (count if keep else count - len(moved))
    assert sum(source.shown) <= 8 * count
    if not keep and not stay:
        assert max(source.shown) == 100
    there.close()


def test_only_what_was_shown_is_withdrawn(app: Umbel) -> None:
    if not app.broker.features.schedule:
        assert app.broker.withdraw("celery", []) == 0
        return
    with closing(app.broker.leases()) as present:
        present.register("ours@here")
    for number in range(5):
        app.send_task("a", (number,), countdown=100 + number / 1000)
    app.send_task("a", countdown=50, queue="mail")
    shown = app.broker.peek("celery", place=Place.SCHEDULED)
    assert app.broker.withdraw("celery", shown[:3]) == 3
    assert app.broker.withdraw("celery", shown) == 2
    assert app.broker.withdraw("celery", shown) == 0
    assert app.broker.size("celery", Place.SCHEDULED) == 0 and app.broker.size("mail", Place.SCHEDULED) == 1
    # What comes due afterwards is still found.
    app.send_task("a", countdown=0.05)
    leases = app.broker.leases()
    consumer = app.broker.consumer(leases.register("w"), ["celery", "mail"])
    deadline = time.monotonic() + 20
    while not consumer.reserve(1):
        assert time.monotonic() < deadline
        consumer.wait(0.1)
    consumer.close()
    leases.close()
