"""From a call to a message: options, moments, families, signals, and what happens when the broker is away."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from umbel import AsyncResult, Umbel, signals
from umbel import asyncio as off_loop
from umbel.context import Context
from umbel.exceptions import (
    AlwaysEagerIgnored,
    BrokerError,
    EncodeError,
    OperationalError,
    PublishUnknown,
    QueueNotFound,
)
from umbel.interfaces import QUEUED, Middleware, Outgoing, Published, PublishStatus
from umbel.message import decode_call
from umbel.publishing import build
from umbel.testing import FakeClock

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Catch(Middleware):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []

    def publish(self, batch: Sequence[Outgoing], call_next: Any) -> Sequence[Published]:
        self.sent += batch
        return [QUEUED] * len(batch)

    @property
    def last(self) -> Outgoing:
        return self.sent[-1]

    @property
    def headers(self) -> dict[str, Any]:
        return self.last.message.headers


@pytest.fixture
def app(clock: FakeClock) -> Iterator[Umbel]:
    app = Umbel("shop", broker="memory://publishing", backend="memory://publishing")
    app.clock = clock
    yield app
    app.close()


@pytest.fixture
def catch(app: Umbel) -> Catch:
    catch = Catch()
    app.middlewares.append(catch)
    return catch


@pytest.fixture
def add(app: Umbel) -> Any:
    @app.task(name="tests.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def test_a_plain_call_is_celerys_message(app: Umbel, catch: Catch, add: Any) -> None:
    result = add.delay(2, y=3)
    assert isinstance(result, AsyncResult)
    assert catch.headers == {
        "lang": "py",
        "task": "tests.add",
        "id": result.id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": result.id,
        "parent_id": None,
        "argsrepr": "(2,)",
        "kwargsrepr": "{'y': 3}",
        "origin": catch.headers["origin"],
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = catch.last.message.properties
    assert properties["correlation_id"] == result.id
    assert properties["reply_to"] == app.thread_oid
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "celery"}
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert json.loads(catch.last.message.body) == [[2], {"y": 3}, embed]


def test_build_is_pure_and_agrees_with_sending(app: Umbel, catch: Catch, add: Any) -> None:
    outgoing = build(app, "tests.add", (1, 2), {}, {"task_id": "tid", "priority": 4})
    assert catch.sent == []
    add.apply_async((1, 2), task_id="tid", priority=4)
    assert catch.last.message.headers == outgoing.message.headers
    assert catch.last.message.body == outgoing.message.body
    assert (catch.last.priority, catch.last.queue) == (outgoing.priority, outgoing.queue) == (4, "celery")


def test_two_calls_share_nothing_that_a_receiver_could_change(catch: Catch, add: Any) -> None:
    add.delay(1)
    catch.headers["stamps"]["x"] = 1
    catch.headers["timelimit"][0] = 5
    catch.last.message.properties["x"] = 1
    add.delay(1)
    assert (catch.headers["stamps"], catch.headers["timelimit"]) == ({}, [None, None])
    assert "x" not in catch.last.message.properties


class TestArguments:
    @pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})])
    def test_that_do_not_fit_are_refused_at_the_call(self, catch: Catch, add: Any, args: Any, kwargs: Any) -> None:
        with pytest.raises(TypeError, match=r"add\(\)"):
            add.delay(*args, **kwargs)
        assert catch.sent == []

    def test_are_not_checked_without_typing(self, app: Umbel, catch: Catch) -> None:
        app.task(name="tests.loose", typing=False)(lambda x: x).delay()
        assert catch.headers["task"] == "tests.loose"

    def test_of_a_bound_task_leave_out_self(self, app: Umbel, catch: Catch) -> None:
        @app.task(bind=True, name="tests.bound")
        def bound(self: Any, x: int, *, key: int) -> None: ...

        bound.delay(1, key=2)
        with pytest.raises(TypeError, match="key"):
            bound.delay(1)  # type: ignore[call-arg]

    def test_that_cannot_be_carried_are_named(self, catch: Catch, add: Any) -> None:
        with pytest.raises(EncodeError, match=r"tests\.add.*argument 1"):
            add.delay(object())


class TestMoments:
    def test_countdown(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), countdown=90)
        assert catch.last.not_before == NOW + timedelta(seconds=90)
        assert catch.headers["eta"] == "2026-01-01T12:01:30+00:00"

    def test_the_order_of_what_send_task_takes_is_celerys(self, app: Umbel, catch: Catch) -> None:
        app.send_task("tests.add", (1,), {}, 90)
        assert catch.headers["eta"] == "2026-01-01T12:01:30+00:00"
        sent = app.send_task("tests.add", (1,), {}, None, NOW, uuid.UUID(int=7))
        assert sent.id == catch.last.task_id == catch.headers["id"] == str(uuid.UUID(int=7))
        assert catch.headers["eta"] == NOW.isoformat()

    @pytest.mark.parametrize("task_id", [17, b"x", ("x",)])
    def test_an_id_is_text(self, app: Umbel, catch: Catch, add: Any, task_id: Any) -> None:
        for send in (add.apply_async, lambda **options: app.send_task("far.away", **options), add.s().apply_async):
            with pytest.raises(ValueError, match=r"task_id must be text or a uuid.UUID, not .*str\(\)"):
                send(args=(1,), task_id=task_id)
        assert catch.sent == []

    def test_eta_keeps_its_offset_and_a_naive_one_is_utc(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), eta=datetime.fromisoformat("2026-01-02T08:00:00+08:00"))
        assert catch.last.not_before == datetime(2026, 1, 2, tzinfo=UTC)
        add.apply_async((1,), eta=datetime(2026, 1, 2))
        assert catch.headers["eta"] == "2026-01-02T00:00:00+00:00"
        add.apply_async((1,), eta="2026-01-02T00:00:00")
        assert catch.last.not_before == datetime(2026, 1, 2, tzinfo=UTC)

    def test_a_naive_eta_without_utc_is_in_the_apps_zone(self, app: Umbel, catch: Catch, add: Any) -> None:
        app.conf.update(enable_utc=False, timezone="Asia/Shanghai")
        add.apply_async((1,), eta=datetime(2026, 1, 2, 8))
        assert catch.last.not_before == datetime(2026, 1, 2, tzinfo=UTC)

    def test_expires_as_a_number_or_a_moment(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), expires=60)
        assert catch.headers["expires"] == "2026-01-01T12:01:00+00:00"
        assert catch.last.message.properties["expiration"] == "60000"
        add.apply_async((1,), expires=NOW + timedelta(minutes=2))
        assert catch.headers["expires"] == "2026-01-01T12:02:00+00:00"

    def test_expired_already_warns_and_is_sent(self, catch: Catch, add: Any, caplog: pytest.LogCaptureFixture) -> None:
        add.apply_async((1,), expires=-5)
        assert "expired already" in caplog.text
        assert catch.headers["expires"] == "2026-01-01T11:59:55+00:00"
        assert catch.last.message.properties["expiration"] == "0"

    def test_the_class_may_say_it_and_the_caller_may_take_it_away(self, app: Umbel, catch: Catch) -> None:
        task = app.task(name="tests.exp", expires=60)(lambda: 1)
        task.delay()
        assert catch.headers["expires"] == "2026-01-01T12:01:00+00:00"
        task.apply_async(expires=None)
        assert catch.headers["expires"] is None

    @pytest.mark.parametrize("options", [{"eta": "soon"}, {"eta": 5}, {"countdown": "x"}, {"expires": 1e20}])
    def test_that_are_none_are_refused(self, add: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="eta|countdown|expires"):
            add.apply_async((1,), **options)


class TestOptions:
    def test_time_limits(self, app: Umbel, catch: Catch, add: Any) -> None:
        add.apply_async((1,), time_limit=20, soft_time_limit=10)
        assert catch.headers["timelimit"] == [20, 10]
        with pytest.raises(ValueError, match="soft_time_limit"):
            add.apply_async((1,), time_limit=10, soft_time_limit=20)
        wrong = app.task(name="tests.limits", time_limit=1, soft_time_limit=2)(lambda: 1)
        with pytest.raises(ValueError, match="soft_time_limit"):
            wrong.delay()

    def test_settings_attributes_and_options_in_turn(self, app: Umbel, catch: Catch, add: Any) -> None:
        app.conf.task_default_priority = 1
        add.delay(1)
        assert catch.last.priority == 1
        add.priority = 2
        add.delay(1)
        assert catch.last.priority == 2
        add.apply_async((1,), priority=3)
        assert catch.last.priority == catch.last.message.properties["priority"] == 3

    def test_user_headers_and_unknown_options(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), headers={"tenant": "a"}, app_id="web", shadow="other", reply_to="me")
        assert (catch.headers["tenant"], catch.headers["shadow"]) == ("a", "other")
        assert catch.last.message.properties["app_id"] == "web"
        assert catch.last.message.properties["reply_to"] == "me"

    @pytest.mark.parametrize("options", [{"unique": "report:7", "unique_ttl": 60}, {"unique_ttl": 60}, {"gate": "g"}])
    def test_what_no_worker_would_free_is_refused(self, catch: Catch, add: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not available.*leave the option out"):
            add.apply_async((1,), **options)
        add.apply_async((1,), unique=None, gate=None)
        assert catch.last.unique is catch.last.gate is None

    def test_stamps(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), stamped_headers=["trace"], trace="t1")
        assert catch.headers["stamped_headers"] == ["trace"]
        assert catch.headers["stamps"] == {"trace": "t1"}
        assert "trace" not in catch.last.message.properties

    def test_callbacks_are_celerys_dictionaries(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), link=add.s(5), link_error=[add.si(6), add.s(7)])
        embed = json.loads(catch.last.message.body)[2]
        assert embed["callbacks"] == [
            {
                "task": "tests.add",
                "args": [5],
                "kwargs": {},
                "options": {},
                "subtask_type": None,
                "immutable": False,
            }
        ]
        assert [each["immutable"] for each in embed["errbacks"]] == [True, False]

    def test_serializer_and_compression(self, catch: Catch, add: Any) -> None:
        add.apply_async((1,), serializer="yaml", compression="gzip")
        message = catch.last.message
        assert (message.content_type, message.headers["compression"]) == ("application/x-yaml", "application/x-gzip")
        assert list(decode_call(message, ["yaml"]).args) == [1]

    def test_ignored_results_say_so(self, app: Umbel, catch: Catch, add: Any) -> None:
        result = add.apply_async((1,), ignore_result=True)
        assert result.ignored
        assert catch.headers["ignore_result"] is True
        add.ignore_result = True
        assert add.delay(1).ignored
        assert not add.apply_async((1,), ignore_result=False).ignored
        app.send_task("far.away")
        assert catch.headers["ignore_result"] is None

    def test_a_registered_name_takes_the_tasks_options(self, app: Umbel, catch: Catch) -> None:
        app.task(name="tests.slow", queue="slow", expires=60)(lambda: 1)
        app.send_task("tests.slow")
        assert (catch.last.queue, catch.last.message.properties["expiration"]) == ("slow", "60000")

    def test_send_task_ignores_eager_with_a_warning(self, app: Umbel, catch: Catch) -> None:
        app.conf.task_always_eager = True
        with pytest.warns(AlwaysEagerIgnored):
            app.send_task("tests.x")
        assert len(catch.sent) == 1

    def test_shadow_name_of_the_class(self, app: Umbel, catch: Catch) -> None:
        @app.task(name="tests.shadow", shadow_name=lambda self, args, kwargs, options: f"shadow of {args[0]}")
        def task(x: int) -> None: ...

        task.delay(4)
        assert catch.headers["shadow"] == "shadow of 4"


class TestFamily:
    def test_a_task_sent_by_a_task_knows_its_parent(self, app: Umbel, catch: Catch, add: Any) -> None:
        app.conf.task_inherit_parent_priority = True
        parent = app.task(name="tests.parent")(lambda: 1)
        parent.push_request(Context(id="p", root_id="r", called_directly=False, delivery_info={"priority": 6}))
        result = add.delay(1)
        assert (catch.headers["root_id"], catch.headers["parent_id"]) == ("r", "p")
        assert catch.last.priority == 6
        assert parent.request.children == [result]
        add.apply_async((1,), priority=2, add_to_parent=False)
        assert catch.last.priority == 2
        assert parent.request.children == [result]
        parent.pop_request()
        add.delay(1)
        assert catch.headers["parent_id"] is None

    def test_threads_have_their_own_reply_address(self, app: Umbel) -> None:
        mine, others = app.thread_oid, []
        thread = threading.Thread(target=lambda: others.append(app.thread_oid))
        thread.start()
        thread.join()
        assert app.thread_oid == mine
        assert others != [mine]


class TestSignals:
    def test_receivers_may_change_headers_and_arguments(self, catch: Catch, add: Any) -> None:
        def before(sender: Any, body: Any, headers: dict[str, Any], properties: Any, **_: Any) -> None:
            headers["trace"] = sender
            body[1]["y"] = 9
            properties["app_id"] = "x"

        after: list[Any] = []

        def done(sender: Any, headers: Any, routing_key: str, **_: Any) -> None:
            after.append((sender, headers["trace"], routing_key))

        signals.before_task_publish.connect(before)
        signals.after_task_publish.connect(done)
        try:
            add.delay(1, y=2)
        finally:
            signals.before_task_publish.disconnect(before)
            signals.after_task_publish.disconnect(done)
        assert catch.headers["trace"] == "tests.add"
        assert json.loads(catch.last.message.body)[1] == {"y": 9}
        assert catch.last.message.properties["app_id"] == "x"
        assert after == [("tests.add", "tests.add", "celery")]


class Failing:
    """A broker that answers what the test says."""

    def __init__(self, app: Umbel, *answers: Any) -> None:
        self.features = app.broker.features
        self.answers = list(answers)
        self.ids: list[str] = []

    def publish(
        self, batch: Sequence[Outgoing], *, transaction: object = None, timeout: float | None = None
    ) -> Sequence[Published]:
        self.ids.append(batch[0].task_id)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(batch)

    def close(self) -> None: ...


class TestBrokerAway:
    def use(self, app: Umbel, *answers: Any) -> Failing:
        broker = Failing(app, *answers)
        app._broker = broker  # type: ignore[assignment]
        return broker

    def test_it_tries_again_with_the_same_id(self, app: Umbel, add: Any) -> None:
        broker = self.use(app, OperationalError("refused"), QUEUED)
        result = add.delay(1)
        assert broker.ids == [result.id, result.id]

    def test_it_gives_up_and_names_the_broker_without_its_password(self, app: Umbel, add: Any) -> None:
        self.use(app, *[OperationalError("refused")] * 9)
        app.conf.broker_url = "redis://me:secret@far:6379/1"
        app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}
        with pytest.raises(OperationalError, match=r"far:6379.*refused.*safe to send again") as caught:
            add.delay(1)
        assert "secret" not in str(caught.value)
        assert not isinstance(caught.value, PublishUnknown)

    def test_it_does_not_try_again_when_told(self, app: Umbel, add: Any) -> None:
        broker = self.use(app, OperationalError("refused"), QUEUED)
        with pytest.raises(OperationalError):
            add.apply_async((1,), retry=False)
        assert len(broker.ids) == 1

    def test_it_starts_no_attempt_after_the_timeout(self, app: Umbel, add: Any) -> None:
        broker = self.use(app, *[OperationalError("refused")] * 9)
        with pytest.raises(OperationalError):
            add.apply_async((1,), retry_policy={"max_retries": None, "interval_start": 5, "interval_max": 5})
        assert len(broker.ids) == 1

    def test_a_doubtful_publish_stays_doubtful(self, app: Umbel, add: Any) -> None:
        self.use(app, PublishUnknown("x", "broken pipe"), *[OperationalError("refused")] * 9)
        with pytest.raises(PublishUnknown) as caught:
            add.apply_async((1,), task_id="mine", retry_policy={"max_retries": 1, "interval_start": 0})
        assert caught.value.task_id == "mine"

    def test_a_refusal_is_an_error_and_a_duplicate_is_not(self, app: Umbel, add: Any) -> None:
        self.use(app, Published(PublishStatus.REFUSED, "queue is full"), Published(PublishStatus.DUPLICATE, "mine"))
        with pytest.raises(BrokerError, match="queue is full"):
            add.delay(1)
        assert add.apply_async((1,), task_id="mine").id == "mine"

    def test_those_behind_a_refused_one_are_told_of(self, app: Umbel, add: Any) -> None:
        class Some(Failing):
            def publish(self, batch: Any, *, transaction: object = None, timeout: float | None = None) -> Any:
                return [QUEUED if number else Published(PublishStatus.REFUSED, "full") for number in range(len(batch))]

        app._broker = Some(app)  # type: ignore[assignment]
        told: list[str] = []

        def receive(headers: Any, **_: Any) -> None:
            told.append(headers["id"])

        signals.after_task_publish.connect(receive)
        try:
            with pytest.raises(BrokerError, match="task a .*full"):
                app.send_many([add.s(1).set(task_id=each) for each in "abc"])
        finally:
            signals.after_task_publish.disconnect(receive)
        assert told == ["b", "c"]

    def test_an_undeclared_queue_is_refused_before_anything_is_sent(self, app: Umbel, catch: Catch, add: Any) -> None:
        app.conf.task_create_missing_queues = False
        with pytest.raises(QueueNotFound, match=r"'nope'.*celery"):
            add.apply_async((1,), queue="nope")
        assert catch.sent == []


class TestAsync:
    def test_the_loop_is_not_blocked_and_the_family_is_kept(self, app: Umbel, add: Any) -> None:
        loop_thread = threading.get_ident()
        threads: list[int] = []

        class Where(Middleware):
            def publish(self, batch: Any, call_next: Any) -> Any:
                threads.append(threading.get_ident())
                return call_next(batch)

        app.middlewares.append(Where())

        async def main() -> Any:
            return await asyncio.gather(add.adelay(1), add.aapply_async((2,), queue="slow"))

        results = asyncio.run(main())
        assert loop_thread not in threads
        assert app.broker.size("celery") == app.broker.size("slow") == 1
        assert all(isinstance(result, AsyncResult) for result in results)

    def test_the_time_that_a_call_waits_for_a_thread_counts(self, app: Umbel, clock: FakeClock, add: Any) -> None:
        """A broker that is away for as long as it is waited for, and more calls than threads."""
        asked: list[float] = []

        class Away(Failing):
            def publish(self, batch: Any, *, transaction: object = None, timeout: float | None = None) -> Any:
                assert timeout is not None and begun.wait(10)
                asked.append(timeout)
                clock.advance(timeout)
                raise OperationalError("away")

        app._broker = Away(app)  # type: ignore[assignment]
        app.conf.publish_timeout = 0.2
        begun = threading.Event()

        async def begin() -> None:
            begun.set()

        async def main() -> list[Any]:
            calls = (add.adelay, add.s().adelay, app.signature("not.known").adelay, (add.s() | add.s()).adelay)
            sent = [call(1) for _ in range(10) for call in calls]
            return await asyncio.gather(*sent, begin(), return_exceptions=True)

        *errors, _ = asyncio.run(main())
        assert len(asked) <= off_loop.THREADS
        assert {type(error) for error in errors} == {OperationalError}
        assert all("safe to send again" in str(error) for error in errors)

    def test_a_call_that_has_waited_has_what_is_left(
        self, app: Umbel, clock: FakeClock, add: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[Any] = []
        publish = app.broker.publish

        def noting(batch: Any, *, timeout: float | None = None) -> Any:
            given.append(timeout)
            return publish(batch, timeout=timeout)

        async def late(call: Any) -> Any:
            clock.advance(waits)
            return call()

        monkeypatch.setattr(app.broker, "publish", noting)
        monkeypatch.setattr(off_loop, "run", late)

        async def main() -> None:
            await add.adelay(1)
            await add.s(1).adelay()
            await add.aapply_async((1,), timeout=5)
            await add.s(1).set(timeout=5).aapply_async()
            await app.signature("not.known").adelay()

        waits = 0.0
        asyncio.run(main())
        waits = 0.5
        asyncio.run(main())
        assert given == [2.0, 2.0, 5, 5, 2.0, 1.5, 1.5, 4.5, 4.5, 1.5]
        waits = 2.0
        with pytest.raises(OperationalError, match=r"within 2 s.*Nothing was queued"):
            asyncio.run(add.adelay(1))

    def test_arguments_are_checked_at_once(self, add: Any) -> None:
        async def main() -> None:
            with pytest.raises(TypeError):
                await add.adelay()

        asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_connections_of_its_own(app: Umbel, add: Any) -> None:
    broker, oid = app.broker, app.thread_oid
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        fresh = app._broker is None and app.thread_oid != oid and app.broker is not broker
        os.write(write, b"y" if fresh else b"n")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"y"
    os.close(read)
    os.close(write)
    assert app.broker is broker
