"""Putting signatures together: what is read when, what stays as it was, what is refused, what a worker makes of it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from umbel import AsyncResult, Umbel, chain, chord, chunks, group, signature, xmap
from umbel.canvas import StampingVisitor
from umbel.contrib.abortable import ABORTED, AbortableAsyncResult, AbortableTask
from umbel.exceptions import ChordError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Ack, Delivery, Execution, Outgoing, Place, Settlement
from umbel.lazylist import LazyList
from umbel.message import Call, decode_call, decode_envelope, encode_envelope
from umbel.meta import decode_meta
from umbel.outbox import BATCH
from umbel.result import GroupResult
from umbel.worker.records import Contribution, leaves
from umbel.worker.runner import TaskRunner


@pytest.fixture
def app() -> Iterator[Umbel]:
    url = f"memory://{uuid.uuid4().hex}"
    made = Umbel("canvas", broker=url, backend=url)

    @made.task(name="add", shared=False)
    def add(x: Any, y: Any = 0) -> Any:
        return x + y

    @made.task(name="xsum", shared=False)
    def xsum(values: Any) -> Any:
        return sum(values)

    @made.task(name="fail", shared=False)
    def fail(*args: Any) -> Any:
        raise ValueError("no")

    yield made
    made.close()


@pytest.fixture
def add(app: Umbel) -> Any:
    return app.tasks["add"]


@pytest.fixture
def xsum(app: Umbel) -> Any:
    return app.tasks["xsum"]


def waiting(app: Umbel) -> list[Call]:
    """The calls in the queue."""
    return [decode_call(decode_envelope(peeked.raw)) for peeked in app.broker.peek("celery", limit=10_000)]


class TestLazyLists:
    def numbers(self, seen: list[int], count: int = 5) -> Iterator[int]:
        for number in range(count):
            seen.append(number)
            yield number

    def test_it_reads_what_is_asked_for(self) -> None:
        seen: list[int] = []
        lazy = LazyList(self.numbers(seen))
        assert seen == []
        assert lazy and seen == [0]
        assert lazy[1] == 1 and seen == [0, 1]
        assert lazy.has(3) and not lazy.has(6)
        assert seen == [0, 1, 2, 3, 4]

    def test_it_is_read_once(self) -> None:
        seen: list[int] = []
        lazy = LazyList(self.numbers(seen))
        assert list(zip(lazy, lazy, strict=True)) == [(n, n) for n in range(5)]
        assert (len(lazy), lazy == [0, 1, 2, 3, 4], lazy[-1], lazy[1:3]) == (5, True, 4, [1, 2])
        assert seen == [0, 1, 2, 3, 4]

    def test_looking_at_it_reads_nothing(self) -> None:
        seen: list[int] = []
        lazy = LazyList(self.numbers(seen))
        assert repr(lazy) == "[...]"
        assert lazy[0] == 0
        assert repr(lazy) == "[0, ...]" and seen == [0]

    def test_it_is_carried_whole(self) -> None:
        assert json.dumps(LazyList(iter("ab")).__json__()) == '["a", "b"]'
        assert pickle.loads(pickle.dumps(LazyList(iter("ab")))) == ["a", "b"]
        assert copy.deepcopy(LazyList(iter("ab"))) == ["a", "b"]

    def test_it_can_be_changed(self) -> None:
        lazy = LazyList(iter("abc"))
        lazy[0] = "x"
        del lazy[1]
        lazy.insert(0, "y")
        assert lazy == ["y", "x", "c"]


class TestSignatures:
    def test_joining_changes_nothing(self, add: Any, xsum: Any) -> None:
        parts = [add.s(1), add.s(1) | add.s(2), group(add.s(1), add.s(2)), chord([add.s(1)], xsum.s())]
        for left in parts:
            for right in parts:
                before = json.dumps([left, right])
                assert (left | right) is not left
                assert json.dumps([left, right]) == before

    def test_chain_of_signatures_is_what_joining_them_gives(self, add: Any, xsum: Any) -> None:
        steps = [add.s(1), group(add.s(2), add.s(3)), xsum.s(), group(add.s(4), add.s(5)), xsum.s(), add.s(6)]
        joined = steps[0]
        for step in steps[1:]:
            joined |= step
        assert json.dumps(chain(*steps)) == json.dumps(joined)
        assert isinstance(joined, chain) and isinstance(chain(*steps), chain)

    def test_a_chain_of_a_thousand_is_made_and_sent(self, app: Umbel, add: Any) -> None:
        result = chain(*(add.s(1) for _ in range(1000))).delay(0)
        (call,) = waiting(app)
        assert call.chain is not None and len(call.chain) == 999
        assert len(result.as_list()) == 1000

    @pytest.mark.parametrize("make", [lambda a, s: a | "x", lambda a, s: chain(a, "x"), lambda a, s: chord("x", s)])
    def test_what_is_no_signature_is_refused(self, make: Callable[..., Any], add: Any, xsum: Any) -> None:
        with pytest.raises(TypeError):
            make(add.s(1), xsum.s())
        with pytest.raises(TypeError, match="made of signatures"):
            group(add.s(1), 5)

    def test_a_dictionary_becomes_what_it_was(self, app: Umbel, add: Any, xsum: Any) -> None:
        canvas = chain(add.s(1), group(add.s(2), add.s(3) | add.s(4)), xsum.s(), app=app).set(priority=3)
        again = signature(json.loads(json.dumps(canvas)), app=app)
        assert json.dumps(again) == json.dumps(canvas)
        assert type(again) is chain and type(pickle.loads(pickle.dumps(canvas))) is chain

    def test_words(self, add: Any, xsum: Any) -> None:
        assert repr(add.s(1, y=2) | add.s(3)) == "add(1, y=2) | add(3)"
        assert repr(group(add.s(1))) == "group([add(1)])" and repr(group([])) == "group(<empty>)"
        assert repr(chord([add.s(1)], xsum.s())) == "%xsum()([add(1)])"
        assert repr(chain()).endswith(": empty>")
        assert repr(add.map([1, 2])) == "[add(x) for x in [1, 2]]"
        assert add.s(1).reprcall(2, y=3) == "add(2, 1, y=3)"

    def test_links_in_all_forms(self, add: Any) -> None:
        sig = add.s(1)
        callback, errback = add.s(2), add.s(3)
        assert sig.link(callback) is callback and sig.on_error(errback) is sig
        sig.link(callback)
        callback.link(add.s(4))
        assert [each["args"] for each in sig.flatten_links()] == [(1,), (2,), (4,)]
        assert sig.options["link_error"] == [errback]
        other = add.s(1).set(link=add.s(2))
        other.extend_list_option("link", [add.s(3), add.s(4)])
        assert [each["args"] for each in other.options["link"]] == [(2,), (3,), (4,)]

    def test_freezing_again_keeps_the_ids(self, add: Any, xsum: Any) -> None:
        for canvas in (add.s(1) | add.s(2), group(add.s(1), add.s(2)), chord([add.s(1)], xsum.s())):
            first, second = canvas.freeze(), canvas.freeze()
            assert first == second and first.id == second.id

    def test_an_empty_chain_cannot_be_frozen(self) -> None:
        with pytest.raises(ValueError, match="empty chain"):
            chain().freeze()
        assert chain().apply_async() is None

    def test_a_chord_needs_a_body(self, add: Any) -> None:
        with pytest.raises(TypeError, match="needs a body"):
            chord([add.s(1)]).apply_async()

    def test_a_task_twice_in_its_own_past_is_refused(self, add: Any, xsum: Any) -> None:
        shared = add.s(1)
        shared.freeze("same")
        with pytest.raises(RuntimeError, match="twice"):
            chord([add.s(0)], chain(shared, xsum.s(), shared, app=add.app)).freeze()

    def test_errbacks_of_a_header_by_the_setting(self, app: Umbel, add: Any, xsum: Any) -> None:
        with pytest.warns(PendingDeprecationWarning, match="task_allow_error_cb_on_chord_header"):
            canvas = chord([add.s(1)], xsum.s()).on_error(add.s(9))
        assert "link_error" not in canvas.tasks[0].options and len(canvas.body.options["link_error"]) == 1
        app.conf.task_allow_error_cb_on_chord_header = True
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            canvas = chord([add.s(1)], xsum.s()).on_error(add.s(9))
        assert len(canvas.tasks[0].options["link_error"]) == len(canvas.body.options["link_error"]) == 1


class TestSending:
    def test_a_generator_is_read_a_batch_at_a_time(self, app: Umbel, add: Any) -> None:
        sent_at: list[int] = []

        def members() -> Iterator[Any]:
            for number in range(2 * BATCH + 10):
                sent_at.append(app.broker.size("celery"))
                yield add.s(number)

        canvas = group(members())
        assert sent_at == []
        result = canvas.apply_async()
        assert len(result) == 2 * BATCH + 10 == app.broker.size("celery")
        # One is read ahead, and the batch goes before the next one is taken over.
        assert sent_at[BATCH] == 0 and sent_at[BATCH + 2] == BATCH and sent_at[-1] == 2 * BATCH

    def test_the_size_of_a_chord_is_known_before_its_last_member_is_sent(
        self, app: Umbel, add: Any, xsum: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began: list[tuple[int, int]] = []
        begin = type(app.backend.chord("g")).begin  # type: ignore[union-attr]

        def watched(self: Any, size: int, *, expires: float | None) -> None:
            began.append((size, app.broker.size("celery")))
            begin(self, size, expires=expires)

        monkeypatch.setattr(type(app.backend.chord("g")), "begin", watched)  # type: ignore[union-attr]
        chord((add.s(n) for n in range(BATCH + 1)), xsum.s()).apply_async()
        assert began == [(BATCH + 1, 0)]
        assert app.broker.size("celery") == BATCH + 1

    def test_a_chord_without_a_backend_is_refused_before_anything_is_sent(self) -> None:
        with Umbel("none", broker=f"memory://{uuid.uuid4().hex}", set_as_current=False) as app:
            sig = app.signature("add", args=(1,))
            for canvas in (chord([sig], sig, app=app), sig | group(sig, sig, app=app) | sig):
                with pytest.raises(NotImplementedError, match="result_backend"):
                    canvas.apply_async()
            assert app.broker.size("celery") == 0
            group(sig, sig, app=app).apply_async()
            assert app.broker.size("celery") == 2

    def test_what_cannot_be_serialized_is_said_at_the_caller(self, app: Umbel, add: Any, xsum: Any) -> None:
        for canvas in (
            group(add.s(1), add.s(object())),
            add.s(1) | add.s(object()),
            chord([add.s(1)], xsum.s(object())),
        ):
            with pytest.raises(Exception, match="object"):
                canvas.apply_async()
        assert app.broker.size("celery") == 0

    def test_an_error_says_how_much_was_sent(self, app: Umbel, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        publish = app.publish

        def once(outgoings: Any, **options: Any) -> Any:
            if app.broker.size("celery"):
                raise OperationalError("away")
            return publish(outgoings, **options)

        monkeypatch.setattr(app, "publish", once)
        with pytest.raises(OperationalError) as caught:
            group(add.s(n) for n in range(2 * BATCH)).apply_async()
        assert caught.value.__notes__ == [f"{BATCH} tasks of this canvas were sent before"]

    def test_a_class_with_an_apply_async_of_its_own_is_asked(self, app: Umbel) -> None:
        asked: list[Any] = []

        class Once(app.Task):  # type: ignore[name-defined,misc]
            def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
                asked.append(args)
                return super().apply_async(args, kwargs, **options)

        mine = app.task(name="mine", shared=False, base=Once)(lambda *args: None)
        group(mine.s(1), mine.s(2)).apply_async()
        (mine.s(3) | mine.s(4)).apply_async()
        assert asked == [(1,), (2,), (3,)]

    def test_a_chain_that_is_sent_twice_is_two_calls(self, app: Umbel, add: Any, xsum: Any) -> None:
        for number, canvas in enumerate((
            chain([add.s(1, 2)]), add.s(1) | add.s(2), add.s(1) | group(add.s(2), add.s(3)),
            add.s(1) | group(add.s(2), add.s(3)) | xsum.s(),
        ), 1):  # fmt: skip
            first, second = canvas.delay(), canvas.delay()
            assert first.id != second.id
            assert app.broker.size("celery") == 2 * number
        frozen = add.s(1) | add.s(2)
        assert frozen.freeze().id == frozen.delay().id == frozen.delay().id

    def test_send_many_asks_a_class_with_an_apply_async_of_its_own(self, app: Umbel, add: Any) -> None:
        asked: list[Any] = []

        class Once(app.Task):  # type: ignore[name-defined,misc]
            def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
                asked.append(args)
                return super().apply_async(args, kwargs, **options)

        mine = app.task(name="mine", shared=False, base=Once)(lambda *args: None)
        results = app.send_many([mine.s(1), (mine, (2,)), ("mine", (3,)), add.s(4)])
        assert asked == [(1,), (2,), (3,)]
        assert len({result.id for result in results}) == 4 == app.broker.size("celery")

        async def send() -> None:
            await mine.adelay(5)
            await mine.s(6).adelay()

        asyncio.run(send())
        assert asked[3:] == [(5,), (6,)]

    def test_a_task_with_results_of_its_own_gives_them_everywhere(self, app: Umbel, add: Any) -> None:
        class Mine(AsyncResult[Any]): ...

        class Task(app.Task):  # type: ignore[name-defined,misc]
            def AsyncResult(self, task_id: str) -> Any:
                return Mine(task_id, app=self.app)

        mine = app.task(name="mine", shared=False, base=Task)(lambda *args: None)

        async def send() -> Any:
            return await mine.adelay()

        found = [
            mine.delay(), mine.apply_async(countdown=9), mine.s().delay(), *app.send_many([mine, mine.s(), "mine"]),
            *group(mine.s(), mine.s()).delay(), (add.s(1) | mine.s()).delay(), chain([mine.s()]).delay(),
            chord([mine.s()], mine.s()).delay(), asyncio.run(send()),
        ]  # fmt: skip
        assert [type(result) for result in found] == [Mine] * len(found)
        assert type(mine.apply_async(result_cls=AbortableAsyncResult)) is AbortableAsyncResult
        assert not isinstance(add.delay(1), Mine)

    def test_ids_that_are_uuids_are_text_everywhere(self, app: Umbel, add: Any, xsum: Any) -> None:
        def send(*signatures: Any) -> Any:
            return [sig.set(task_id=uuid.uuid4()).apply_async() for sig in signatures]

        alone, chained, grouped, chorded = send(
            add.s(1), add.s(1) | add.s(2), group(add.s(1), add.s(2)), chord([add.s(1)], xsum.s())
        )
        assert {type(each.id) for each in (alone, chained, grouped, chorded)} == {str}
        assert add.apply((1,), task_id=uuid.UUID(int=1)).id == str(uuid.UUID(int=1))
        for call in waiting(app):
            assert isinstance(call.id, str) and isinstance(call.headers["group"], str | None)
        with pytest.raises(ValueError, match="task_id must be text"):
            add.s(1).set(task_id=17).freeze()

    def test_send_many_takes_canvases(self, app: Umbel, add: Any, xsum: Any) -> None:
        results = app.send_many([add.s(1), add.s(1) | add.s(2), group(add.s(1), add.s(2))])
        assert [type(result).__name__ for result in results] == ["AsyncResult", "AsyncResult", "GroupResult"]
        assert app.broker.size("celery") == 4

    def test_a_coroutine_sends_without_blocking(self, app: Umbel, add: Any, xsum: Any) -> None:
        async def send() -> list[Any]:
            return [
                await add.s(1).adelay(2),
                await (add.s(1) | add.s(2)).adelay(3),
                await chord([add.s(1)], xsum.s()).aapply_async(priority=3),
            ]

        assert all(result.id for result in asyncio.run(send()))
        assert [len(call.chain or ()) for call in waiting(app)] == [0, 1, 0]

    def test_routes_of_maps_are_those_of_the_task(self, app: Umbel, add: Any) -> None:
        app.conf.task_routes = {"add": {"queue": "sums"}}
        add.map([1]).apply_async()
        add.chunks([(1, 2)], 1).apply_async()
        assert app.broker.size("sums") == 2
        assert isinstance(add.map([1]), xmap) and isinstance(add.chunks([], 1), chunks)

    def test_children_of_what_a_task_sends(self, app: Umbel, add: Any) -> None:
        canvases = [group(add.s(1), add.s(2)), add.s(1) | add.s(2), chord([add.s(1)], add.s(2))]

        @app.task(name="parent", shared=False, bind=True)
        def parent(self: Any) -> list[str]:
            for canvas in canvases:
                canvas.apply_async()
            return [type(child).__name__ for child in self.request.children]

        assert parent.apply().get() == ["GroupResult", "AsyncResult", "GroupResult"]

    def test_saved_and_restored(self, app: Umbel, add: Any) -> None:
        result = group(add.s(1), add.s(2) | group(add.s(3), add.s(4))).apply_async()
        result.save()
        again = GroupResult.restore(result.id, app=app)
        assert again == result and again.as_tuple() == result.as_tuple()
        result.delete()
        assert GroupResult.restore(result.id, app=app) is None


class TestStamps:
    def test_the_order_of_a_visit(self, add: Any, xsum: Any) -> None:
        seen: list[str] = []

        class Visitor(StampingVisitor):
            def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
                seen.append(f"signature {sig.task}")
                return {}

            def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
                seen.append("chain")
                return {}

            def on_chain_end(self, chain: Any, **headers: Any) -> None:
                seen.append("end of chain")

            def on_chord_header_start(self, sig: Any, **headers: Any) -> dict[str, Any]:
                seen.append("header")
                return super().on_chord_header_start(sig, **headers)

            def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
                seen.append("group")
                return {}

            def on_group_end(self, group: Any, **headers: Any) -> None:
                seen.append("end of group")

            def on_chord_body(self, sig: Any, **headers: Any) -> dict[str, Any]:
                seen.append("body")
                return {}

        chain(add.s(1), group(add.s(2), add.s(3)), xsum.s()).stamp(Visitor())
        assert seen == [
            "chain", "signature add", "header", "group", "signature add", "signature add", "end of group", "body",
            "signature xsum", "end of chain",
        ]  # fmt: skip

    def test_a_lazy_group_is_stamped_as_it_is_read(self, app: Umbel, add: Any) -> None:
        read: list[int] = []

        def members() -> Iterator[Any]:
            for number in range(3):
                read.append(number)
                yield add.s(number)

        canvas = group(members())
        canvas.stamp(trace="t")
        assert read == []
        canvas.apply_async()
        assert [call.headers["stamps"] for call in waiting(app)] == [{"trace": "t"}] * 3

    def test_a_stamp_cannot_be_changed_by_a_call(self, app: Umbel, add: Any) -> None:
        sig = add.s(1)
        sig.stamp(trace="first")
        sig.apply_async(trace="second")
        (call,) = waiting(app)
        assert call.headers["stamps"] == {"trace": "first"}


class TestReplacing:
    def test_a_member_of_a_chord_replaces_nothing(self, app: Umbel, add: Any) -> None:
        @app.task(name="mine", shared=False, bind=True)
        def mine(self: Any) -> Any:
            return self.replace(add.s(1).set(chord=add.s(2)))

        with pytest.raises(ImproperlyConfigured, match="chord"):
            mine.apply(throw=True)

    def test_eager_callbacks_come_once(self, app: Umbel, add: Any) -> None:
        told: list[Any] = []

        @app.task(name="tell", shared=False)
        def tell(value: Any) -> None:
            told.append(value)

        @app.task(name="mine", shared=False, bind=True)
        def mine(self: Any) -> Any:
            return self.replace(add.s(1, 2))

        assert mine.apply(link=tell.s()).get() == 3
        assert told == [3]

    def test_nothing_is_sent_before_the_attempt_is_settled(self, app: Umbel, add: Any) -> None:
        @app.task(name="mine", shared=False, bind=True)
        def mine(self: Any) -> Any:
            return self.replace(group(add.s(1), add.s(2)))

        mine.delay()
        settlement = run_next(app)
        assert app.broker.size("celery", Place.READY) == 0
        calls = [decode_call(outgoing.message) for outgoing in settlement.publish]
        assert [call.task for call in calls] == ["add", "add"] and settlement.result is None


class TestAbortable:
    def test_a_task_sees_that_it_was_asked(self, app: Umbel) -> None:
        @app.task(name="patient", shared=False, bind=True, base=AbortableTask)
        def patient(self: Any) -> bool:
            return bool(self.is_aborted())

        result = patient.delay()
        assert isinstance(result, AbortableAsyncResult) and not result.is_aborted()
        assert isinstance(patient.s().freeze(), AbortableAsyncResult)
        result.abort()
        assert result.is_aborted() and result.state == ABORTED and not result.ready()
        settlement = run_next(app)
        assert settlement.result is not None
        assert decode_meta(settlement.result.payload)["result"] is True
        assert patient.is_aborted() is False


# -- what a worker makes of it -----------------------------------------------------------------------------------


def run_next(app: Umbel, verdict: Any = None) -> Settlement:
    """Take the first message of the queue and return how it ends."""
    consumer = app.broker.consumer(app.broker.leases().register("n@h"), ["celery"])
    (delivery,) = consumer.reserve(1)
    delivery = Delivery(tag=delivery.tag, queue="celery", raw=delivery.raw, verdict=verdict)
    runner = TaskRunner(app, hostname="n@h")
    admitted = runner.admit(delivery, 0.0)
    ended = runner.run(admitted).settlement if isinstance(admitted, Execution) else admitted
    consumer.settle([Settlement(delivery=delivery, how=Ack())])
    return ended


def test_a_plain_task_carries_nothing_of_chords(app: Umbel, add: Any) -> None:
    add.delay(1)
    settlement = run_next(app)
    assert (settlement.chord, settlement.parts, settlement.results, settlement.publish) == (None, (), (), ())


def test_a_member_brings_its_part(app: Umbel, add: Any, xsum: Any) -> None:
    result = chord([add.s(1), add.s(2)], xsum.s()).apply_async()
    part = run_next(app).chord
    assert isinstance(part, Contribution)
    assert (part.group_id, part.index, part.task_id) == (result.parent.id, 0, result.parent[0].id)
    assert json.loads(part.payload) == [1, result.parent[0].id, "SUCCESS", 1]


def test_a_failure_fells_what_comes_after_it(app: Umbel, add: Any, xsum: Any) -> None:
    fail = app.tasks["fail"]
    inner = chain(fail.s(), add.s(1), group(add.s(2), add.s(3)), app=app)
    result = chord([inner, add.s(4)], xsum.s()).apply_async()
    settlement = run_next(app)
    states = {record.task_id: record.state for record in settlement.results}
    members = result.parent[0].results
    assert set(states.values()) == {"FAILURE"} and {member.id for member in members} <= set(states)
    assert settlement.chord is not None
    parts = [*settlement.parts, settlement.chord]
    assert {part.task_id for part in parts} == {member.id for member in members}
    assert {part.group_id for part in parts} == {result.parent.id}
    assert {part.state for part in parts} == {"FAILURE"}


def test_the_tasks_of_a_signature(add: Any, xsum: Any) -> None:
    canvas = chain(add.s(1), chord([add.s(2), add.s(3)], xsum.s() | add.s(4)), group(add.s(5), add.s(6)), app=add.app)
    found = [(task["args"], in_header) for task, in_header in leaves(canvas)]
    assert found == [
        ((1,), False), ((2,), True), ((3,), True), ((), False), ((4,), False), ((5,), False), ((6,), False),
    ]  # fmt: skip


def test_a_worker_without_a_backend_says_why_a_chord_ends_there(caplog: pytest.LogCaptureFixture) -> None:
    with Umbel("none", broker=f"memory://{uuid.uuid4().hex}", set_as_current=False) as app:
        app.task(name="add", shared=False)(lambda x: x)
        app.send_task("add", (1,), group_id="g", group_index=0, chord={"task": "body"})
        assert run_next(app).chord is None
    assert "no result backend" in caplog.text


def test_a_body_that_cannot_be_called_fails_with_the_reason(app: Umbel, add: Any) -> None:
    runner = TaskRunner(app, hostname="n@h")
    chord([add.s(1)], app.signature("body", queue="nowhere")).set(task_create_missing_queues=False)
    app.conf.task_create_missing_queues = False
    body = {"task": "body", "args": [], "kwargs": {}, "options": {"task_id": "b", "queue": "nowhere"}}
    app.backend.chord("g").begin(1, expires=None)  # type: ignore[union-attr]
    app.send_task("add", (1,), group_id="g", group_index=0, chord=body)
    settlement = run_next(app)
    assert settlement.chord is not None
    app.backend.chord("g").add(settlement.chord)  # type: ignore[union-attr]
    following = runner.complete(settlement)
    (record,) = following.results
    error = decode_meta(record.payload)["result"]
    assert record.task_id == "b" and isinstance(error, ChordError) and "nowhere" in str(error)


def test_a_retry_keeps_the_place_in_the_chord(app: Umbel, add: Any, xsum: Any) -> None:
    @app.task(name="again", shared=False, bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=0)

    chord([again.s()], xsum.s()).apply_async()
    (first,) = waiting(app)
    settlement = run_next(app)
    (outgoing,) = settlement.publish
    second = decode_call(outgoing.message)
    assert (second.chord, second.headers["group"], second.headers["group_index"]) == (
        first.chord, first.headers["group"], first.headers["group_index"]
    )  # fmt: skip
    assert settlement.chord is None


@pytest.mark.parametrize(("inherits", "expected"), [(True, [5, 7]), (False, [0, 7])])
def test_priorities_of_what_follows(app: Umbel, add: Any, inherits: bool, expected: list[int]) -> None:
    app.conf.task_inherit_parent_priority = inherits
    add.apply_async((1,), priority=5, link=[add.s(2), add.s(3).set(priority=7)])
    assert [outgoing.priority for outgoing in run_next(app).publish] == expected


def test_the_family_of_what_follows(app: Umbel, add: Any) -> None:
    result = (add.s(1) | add.s(2)).apply_async()
    (outgoing,) = run_next(app).publish
    headers = outgoing.message.headers
    assert (headers["parent_id"], headers["root_id"]) == (result.parent.id, result.parent.id)


def test_what_follows_is_announced(app: Umbel, add: Any) -> None:
    from umbel import signals

    told: list[tuple[str, Any]] = []

    def before(sender: Any = None, headers: Any = None, **kwargs: Any) -> None:
        headers["trace"] = "t"
        told.append(("before", sender))

    def after(sender: Any = None, **kwargs: Any) -> None:
        told.append(("after", sender))

    add.apply_async((1,), link=add.s(2))
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        (outgoing,) = run_next(app).publish
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert isinstance(outgoing, Outgoing) and outgoing.message.headers["trace"] == "t"
    assert told == [("before", "add"), ("after", "add")]
    assert decode_envelope(encode_envelope(outgoing.message)).headers["trace"] == "t"
