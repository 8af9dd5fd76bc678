"""Tasks: how they are declared, called, retried and run eagerly."""

from __future__ import annotations

import abc
import asyncio
import builtins
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from umbel import Task, Umbel, current_task, states
from umbel.context import Context
from umbel.current import get_current_worker_task
from umbel.exceptions import (
    CeleryWarning,
    DuplicateTaskNameWarning,
    EncodeError,
    Ignore,
    MaxRetriesExceededError,
    NotRegistered,
    Reject,
    Retry,
)
from umbel.message import Call, decode_call
from umbel.meta import decode_meta
from umbel.testing import FakeClock


@pytest.fixture
def app(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Umbel]:
    url = f"memory://{request.node.name}"
    app = Umbel("shop", broker=url, backend=url)
    app.clock = clock
    yield app
    app.close()


class TestCalling:
    def test_a_task_is_still_a_function(self, app: Umbel) -> None:
        @app.task
        def add(x: int, y: int) -> int:
            """Add."""
            return x + y

        assert add(2, y=3) == 5
        assert add.__doc__ == "Add."
        assert add.__name__ == "add"
        assert add.run(1, 1) == 2

    def test_a_direct_call_has_a_request_of_its_own(self, app: Umbel) -> None:
        @app.task(bind=True)
        def look(self: Any, x: int) -> Any:
            assert current_task.name == self.name
            assert get_current_worker_task() is None
            return self.request.args, self.request.called_directly

        assert look(1) == ((1,), True)
        assert look.request.args is None
        assert not bool(current_task)

    def test_a_direct_call_of_a_coroutine_has_a_request_while_it_runs(self, app: Umbel) -> None:
        @app.task(bind=True)
        async def look(self: Any, x: int) -> Any:
            await asyncio.sleep(0)
            return self.request.args

        async def both() -> Any:
            return await asyncio.gather(look(1), look(2))

        assert asyncio.run(both()) == [(1,), (2,)]

    def test_a_task_in_a_class_body_gets_itself(self, app: Umbel) -> None:
        class Tasks:
            @app.task(bind=True)
            def add(self: Any, x: int) -> Any:
                return self.name, x

        assert Tasks.add(2) == (Tasks.add.name, 2)
        assert Tasks().add is Tasks.add

    def test_requests_nest(self, app: Umbel) -> None:
        task = app.task(name="tests.nest")(lambda: 1)
        task.push_request(id="outer", called_directly=False)
        task.push_request(Context(id="inner"))
        assert task.request.id == "inner"
        assert [request.id for request in task.request_stack.stack] == ["outer", "inner"]
        assert get_current_worker_task() is task
        task.pop_request()
        assert task.request.id == "outer"
        task.pop_request()
        assert task.request.id is None

    def test_a_workers_call_through_a_custom_call_pushes_nothing_new(self, app: Umbel) -> None:
        class Wrapping(Task[..., Any]):
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return super().__call__(*args, **kwargs)

        @app.task(base=Wrapping, bind=True)
        def look(self: Any, again: bool) -> Any:
            inner = self(False) if again else None
            return self.request.id, inner

        look.push_request(Context(id="attempt", called_directly=False))
        assert look(True) == ("attempt", (None, None))
        look.pop_request()

    def test_pydantic_is_refused_clearly(self, app: Umbel) -> None:
        with pytest.raises(NotImplementedError, match="pydantic"):
            app.task(pydantic=True)(lambda: 1)


class TestAttributes:
    def test_none_means_as_configured_and_false_means_false(self, app: Umbel) -> None:
        class Base(app.Task):  # type: ignore[name-defined, misc]
            abstract = True
            ignore_result = None
            acks_late = False

        task = app.task(base=Base, name="tests.base", track_started=None)(lambda: 1)
        app.conf.task_ignore_result = True
        assert task.ignore_result is True
        assert task.acks_late is False
        assert task.track_started is False

    def test_annotations_change_attributes_and_wrap_methods(self, app: Umbel) -> None:
        seen: list[Any] = []

        def noting(original: Any) -> Any:
            def on_success(self: Any, *args: Any) -> None:
                seen.append(args[0])
                original(self, *args)

            return on_success

        app.conf.task_annotations = {"*": {"rate_limit": "9/s"}, "tests.ann": {"time_limit": 7, "@on_success": noting}}
        task = app.task(name="tests.ann")(lambda: 1)
        app.finalize()
        assert (task.rate_limit, task.time_limit) == ("9/s", 7)
        task.apply()
        assert seen == [1]

    def test_options_of_the_decorator_are_attributes(self, app: Umbel) -> None:
        task: Any = app.task(name="tests.opt", queue="slow", max_retries=None, colour="red")(lambda: 1)
        assert (task.queue, task.max_retries, task.colour) == ("slow", None, "red")


class TestClasses:
    def test_a_class_with_name_and_run_is_registered_by_its_first_instance(self, app: Umbel) -> None:
        class Long(app.Task):  # type: ignore[name-defined, misc]
            name = "tests.Long"

            def run(self, x: int) -> int:
                return x * 2

        first, second = Long(), Long()
        assert app.tasks["tests.Long"] is first
        assert second.apply((4,)).get() == 8
        assert second.delay(2).id
        with pytest.raises(TypeError, match="missing a required argument"):
            second.delay()

    def test_a_worker_knows_a_class_that_nobody_instantiated(self, app: Umbel) -> None:
        class Quiet(app.Task):  # type: ignore[name-defined, misc]
            name = "tests.Quiet"

            def run(self) -> str:
                return "quiet"

        assert isinstance(app.tasks["tests.Quiet"], Quiet)
        assert "tests.Quiet" in app.tasks

    def test_a_class_of_another_app_stays_there(self, app: Umbel) -> None:
        other = Umbel("other", set_as_current=False)

        class Theirs(other.Task):  # type: ignore[name-defined, misc]
            name = "tests.Theirs"

            def run(self) -> None: ...

        assert "tests.Theirs" not in app.tasks
        assert Theirs().app is other

    def test_abstract_and_incomplete_classes_are_no_tasks(self, app: Umbel) -> None:
        class Base(app.Task):  # type: ignore[name-defined, misc]
            name = "tests.Base"
            abstract = True

            def run(self) -> None: ...

        class Half(app.Task, abc.ABC):  # type: ignore[name-defined, misc]
            name = "tests.Half"

            @abc.abstractmethod
            def run(self) -> None: ...

        class Needy(app.Task):  # type: ignore[name-defined, misc]
            name = "tests.Needy"

            def __init__(self, what: str) -> None:
                self.what = what

            def run(self) -> str:
                return self.what

        assert not {"tests.Base", "tests.Half", "tests.Needy"} & set(app.tasks)
        with pytest.raises(NotRegistered):
            app.tasks["tests.Base"]
        assert app.register_task(Needy("this")).apply().get() == "this"

    def test_register_task_names_it_and_replaces_with_a_warning(self, app: Umbel) -> None:
        class Nameless(Task[..., Any]):
            def run(self) -> int:
                return 1

        task = app.register_task(Nameless)
        assert task.name == f"{__name__}.Nameless"

        class Other(Task[..., Any]):
            def run(self) -> int:
                return 2

        other = Other()
        other.name = task.name
        with pytest.warns(DuplicateTaskNameWarning):
            app.register_task(other)
        assert app.tasks[task.name] is other

    def test_autoretry_of_a_class(self, app: Umbel) -> None:
        class Flaky(app.Task):  # type: ignore[name-defined, misc]
            name = "tests.Flaky"
            autoretry_for = (ValueError,)
            max_retries = 2
            tries = 0

            def run(self) -> int:
                self.tries += 1
                raise ValueError(self.tries)

        task = app.register_task(Flaky())
        assert task.apply().state == states.FAILURE
        assert task.tries == 3


def in_worker(task: Any, call: Call | None = None, **fields: Any) -> Any:
    """Run the body as a worker would, and return what it raised or returned."""
    defaults = {"id": "tid", "args": (), "kwargs": {}, "called_directly": False, "root_id": "root"}
    context = Context({**defaults, **fields})
    task.push_request(context)
    try:
        return task.run(*context.args, **context.kwargs)
    except Exception as error:
        return error
    finally:
        task.pop_request()


class TestBackend:
    """Results are kept by the app, and looked for there: a backend that a task alone has would be asked in vain."""

    def test_one_of_a_tasks_own_is_refused_with_a_warning(self, app: Umbel) -> None:
        with pytest.warns(CeleryWarning, match="task mine: its backend is not used; .* result_backend"):
            mine = app.task(name="mine", backend=object())(lambda: 1)
        assert mine.backend is app.backend
        with pytest.warns(CeleryWarning, match="task mine"):
            mine.backend = object()
        assert mine.backend is app.backend
        assert mine.AsyncResult("some id").backend is app.backend

    @pytest.mark.filterwarnings("error")
    def test_the_apps_own_is_taken(self, app: Umbel) -> None:
        mine = app.task(name="mine", backend=None)(lambda: 1)
        mine.backend = app.backend
        assert mine.backend is app.backend


class TestRetry:
    def test_the_next_try_travels_on_the_exception(self, app: Umbel, clock: FakeClock) -> None:
        @app.task(bind=True, name="tests.retry")
        def fails(self: Any, x: int) -> None:
            raise self.retry(countdown=30, exc=ValueError("no"))

        ended = in_worker(
            fails,
            args=(7,),
            retries=1,
            headers={"tenant": "a", "x-death": [1]},
            delivery_info={"exchange": "", "routing_key": "slow", "priority": 3},
            callbacks=[{"task": "tests.cb", "args": [], "kwargs": {}, "options": {}}],
            timelimit=[20, 10],
        )
        assert isinstance(ended, Retry)
        assert ended.humanize() == "in 30s"
        assert isinstance(ended.exc, ValueError)
        outgoing = ended.outgoing  # type: ignore[attr-defined]
        assert (outgoing.queue, outgoing.priority, outgoing.task_id) == ("slow", 3, "tid")
        assert outgoing.not_before == clock.now() + timedelta(seconds=30)
        call = decode_call(outgoing.message, ["json"])
        assert (call.id, call.retries, list(call.args)) == ("tid", 2, [7])
        headers = call.headers
        assert (headers["root_id"], headers["parent_id"], headers["timelimit"]) == ("root", None, [20, 10])
        assert headers["tenant"] == "a"
        assert "x-death" not in headers
        assert call.callbacks is not None
        assert call.callbacks[0]["task"] == "tests.cb"
        assert app.broker.size("slow") == 0

    def test_default_delay_and_new_arguments(self, app: Umbel, clock: FakeClock) -> None:
        @app.task(bind=True, name="tests.args", default_retry_delay=5)
        def fails(self: Any, a: int, b: int = 0) -> None:
            self.retry(kwargs={"b": 2})

        ended = in_worker(fails, args=(1, 1))
        assert (list(ended.sig.args), ended.sig.kwargs) == ([1, 2], {})
        assert ended.outgoing.not_before == clock.now() + timedelta(seconds=5)

    def test_positional_arguments_replace_inherited_keywords(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.args2")
        def fails(self: Any, a: int, b: int = 0, c: int = 0) -> None:
            self.retry(args=(9,), countdown=0)

        ended = in_worker(fails, kwargs={"a": 1, "c": 3})
        assert (list(ended.sig.args), ended.sig.kwargs) == ([9], {"c": 3})

    def test_over_the_limit(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.limit", max_retries=2)
        def fails(self: Any, with_exc: bool) -> None:
            self.retry(exc=KeyError("why") if with_exc else None)

        assert isinstance(in_worker(fails, args=(False,), retries=1), Retry)
        over = in_worker(fails, args=(False,), retries=2)
        assert isinstance(over, MaxRetriesExceededError)
        assert over.task_args == (False,)
        assert isinstance(in_worker(fails, args=(True,), retries=2), KeyError)

    def test_no_limit(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.forever", max_retries=None)
        def fails(self: Any) -> None:
            self.retry()

        assert isinstance(in_worker(fails, retries=1000), Retry)

    def test_outside_of_a_worker_the_reason_is_raised(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.direct")
        def fails(self: Any) -> None:
            try:
                raise ValueError("first")
            except ValueError as error:
                self.retry(exc=error)

        with pytest.raises(ValueError, match="first"):
            fails()

    def test_throw_false_leaves_the_message_to_the_settlement(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.nothrow")
        def goes_on(self: Any) -> Any:
            self.retry(throw=False, countdown=1)
            return self.request.outgoings

        (outgoing,) = in_worker(goes_on)
        assert outgoing.task_id == "tid"

    def test_autoretry_backs_off_and_obeys_exceptions_to_it(self, app: Umbel, clock: FakeClock) -> None:
        @app.task(
            name="tests.auto",
            autoretry_for=(OSError,),
            dont_autoretry_for=(FileNotFoundError,),
            retry_backoff=2,
            retry_jitter=False,
            retry_backoff_max=10,
        )
        def fails(kind: str) -> None:
            raise getattr(builtins, kind)("no")

        ended = in_worker(fails, args=("ConnectionError",), retries=1)
        assert isinstance(ended, Retry)
        assert ended.outgoing.not_before == clock.now() + timedelta(seconds=4)  # type: ignore[attr-defined]
        assert isinstance(in_worker(fails, args=("FileNotFoundError",)), FileNotFoundError)
        assert isinstance(in_worker(fails, args=("KeyError",)), KeyError)
        assert isinstance(in_worker(fails, args=("ConnectionError",), retries=3), ConnectionError)

    def test_autoretry_of_a_coroutine(self, app: Umbel) -> None:
        @app.task(name="tests.autoasync", autoretry_for=(OSError,), max_retries=1)
        async def fails() -> None:
            raise ConnectionError("no")

        assert asyncio.iscoroutinefunction(fails.run)
        assert isinstance(fails.apply().result, ConnectionError)

    def test_a_limit_asked_for_in_the_body_holds_for_the_automatic_retry(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.override", autoretry_for=(ValueError,), max_retries=9)
        def fails(self: Any) -> None:
            self.retry(exc=ValueError("no"), max_retries=0)

        assert isinstance(in_worker(fails), ValueError)
        assert isinstance(in_worker(fails, retries=5), ValueError)

    def test_ignore_and_reject_are_not_retried(self, app: Umbel) -> None:
        @app.task(name="tests.ignore", autoretry_for=(Exception,))
        def ends(ignore: bool) -> None:
            raise Ignore() if ignore else Reject()

        assert isinstance(in_worker(ends, args=(True,)), Ignore)
        assert isinstance(in_worker(ends, args=(False,)), Reject)


class TestEager:
    def test_apply_runs_hooks_retries_and_callbacks(self, app: Umbel) -> None:
        seen: list[Any] = []

        class Noting(app.Task):  # type: ignore[name-defined, misc]
            abstract = True

            def on_retry(self, exc: Any, *args: Any) -> None:
                seen.append(("retry", str(exc)))

            def on_success(self, retval: Any, *args: Any) -> None:
                seen.append(("success", retval))

        @app.task(name="tests.cb")
        def note(value: Any) -> None:
            seen.append(("callback", value))

        @app.task(base=Noting, bind=True, name="tests.eager")
        def flaky(self: Any, x: int) -> int:
            if self.request.retries < 2:
                raise self.retry(exc=ValueError("again"))
            assert self.request.is_eager
            return x

        result = flaky.apply((3,), link=note.s())
        assert (result.get(), result.state) == (3, states.SUCCESS)
        assert seen == [("retry", "again"), ("retry", "again"), ("success", 3), ("callback", 3)]

    def test_errbacks_of_both_styles(self, app: Umbel) -> None:
        seen: list[Any] = []

        @app.task(name="tests.new")
        def new(request: Any, exc: Any, traceback: Any) -> None:
            seen.append((request.id, str(exc), "boom" in traceback))

        @app.task(name="tests.old")
        def old(task_id: str) -> None:
            seen.append(task_id)

        @app.task(name="tests.bound", bind=True, autoretry_for=(OSError,))
        def bound(self: Any, task_id: str, tag: str) -> None:
            seen.append((self.name, task_id, tag))

        @app.task(name="tests.again", autoretry_for=(OSError,))
        def again(request: Any, exc: Any, traceback: Any) -> None:
            seen.append((request.id, str(exc)))

        @app.task(name="tests.boom")
        def boom() -> None:
            raise ValueError("boom")

        boom.apply(task_id="it", link_error=[new.s(), old.s(), bound.s("x"), again.s()])
        assert seen == [("it", "boom", True), "it", ("tests.bound", "it", "x"), ("it", "boom")]

    def test_errors_are_returned_or_raised(self, app: Umbel) -> None:
        @app.task(name="tests.bad")
        def bad() -> None:
            raise KeyError("k")

        result = bad.apply()
        assert (result.state, result.failed()) == (states.FAILURE, True)
        assert "KeyError" in str(result.traceback)
        with pytest.raises(KeyError):
            bad.apply(throw=True)
        app.conf.task_eager_propagates = True
        with pytest.raises(KeyError):
            bad.apply()

    def test_always_eager_makes_the_round_trip_and_never_publishes(self, app: Umbel) -> None:
        app.conf.task_always_eager = True

        @app.task(name="tests.types")
        def types(value: Any) -> str:
            return type(value).__name__

        assert types.delay((1, 2)).get() == "list"
        with pytest.raises(EncodeError):
            types.delay(object())
        assert types.apply_async(((),), task_id="mine").id == "mine"
        assert app.broker.size("celery") == 0

    def test_eager_results_are_stored_when_asked(self, app: Umbel) -> None:
        @app.task(name="tests.stored", store_eager_result=True)
        def one() -> int:
            return 1

        result = one.apply()
        assert app.backend is not None
        assert decode_meta(app.backend.fetch([result.id])[result.id])["result"] == 1

    def test_a_coroutine_task_runs_eagerly_even_inside_a_loop(self, app: Umbel) -> None:
        @app.task(name="tests.coro")
        async def double(x: int) -> int:
            await asyncio.sleep(0)
            return x * 2

        app.conf.task_always_eager = True

        async def main() -> Any:
            return double.delay(2).get(), (await double.adelay(3)).get()

        assert double.delay(4).get() == 8
        assert asyncio.run(main()) == (4, 6)

    def test_children_of_eager_tasks_know_their_parent(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.child")
        def child(self: Any) -> Any:
            return self.request.parent_id, self.request.root_id

        @app.task(name="tests.parent")
        def parent() -> Any:
            return child.apply().result

        assert parent.apply(task_id="p").get() == ("p", "p")


class TestStates:
    def test_update_state_stores_for_the_running_attempt(self, app: Umbel) -> None:
        @app.task(bind=True, name="tests.progress")
        def progress(self: Any) -> None:
            self.update_state(state="PROGRESS", meta={"done": 1})

        progress.apply(task_id="tid")
        result = progress.AsyncResult("tid")
        assert (result.state, result.info) == ("PROGRESS", {"done": 1})

    def test_a_worker_reports_its_own_way(self, app: Umbel) -> None:
        seen: list[Any] = []

        @app.task(bind=True, name="tests.report")
        def progress(self: Any) -> None:
            self.update_state(state="PROGRESS", meta=1)
            self.update_state("another", "PROGRESS", 2)

        in_worker(progress, report_state=lambda *args: seen.append(args))
        assert seen == [("tid", "PROGRESS", 1)]
        assert app.AsyncResult("another").info == 2

    def test_outside_of_a_run_an_id_is_needed(self, app: Umbel) -> None:
        task = app.task(name="tests.noid")(lambda: 1)
        with pytest.raises(ValueError, match="task_id"):
            task.update_state(state="PROGRESS")


class TestSignatures:
    def test_a_signature_is_a_plain_dictionary(self, app: Umbel) -> None:
        @app.task(name="tests.sig")
        def add(x: int, y: int) -> int:
            return x + y

        sig = add.s(1).set(queue="slow")
        assert dict(sig) == {
            "task": "tests.sig",
            "args": (1,),
            "kwargs": {},
            "options": {"queue": "slow"},
            "subtask_type": None,
            "immutable": False,
        }
        assert repr(add.s(1, y=2)) == "tests.sig(1, y=2)"
        assert add.s(2)(1) == 3
        assert sig.apply((5,)).get() == 6
        assert add.si(1, 2).apply((9,)).get() == 3

    def test_copies_are_independent(self, app: Umbel) -> None:
        sig = app.signature("tests.far", (1,), {"a": [1]}, link=[])
        copy = sig.clone((0,), {"b": 2}, queue="q")
        copy.link(app.signature("tests.cb"))
        assert (sig.args, sig.kwargs, sig.options) == ((1,), {"a": [1]}, {"link": []})
        assert (copy.args, copy.kwargs["b"], copy.options["queue"]) == ((0, 1), 2, "q")

    def test_freezing_gives_an_id_that_sending_uses(self, app: Umbel) -> None:
        sig = app.signature("tests.far")
        frozen = sig.freeze()
        assert sig.freeze().id == frozen.id == sig.id
        assert sig.apply_async().id == frozen.id

    def test_an_unknown_kind_is_refused_clearly(self, app: Umbel) -> None:
        with pytest.raises(ValueError, match="'fugue'.*register_type"):
            app.signature({"task": "celery.fugue", "subtask_type": "fugue"})


def test_a_header_cannot_change_how_the_process_treats_a_message() -> None:
    from umbel.context import Context
    from umbel.message import Call

    headers = {"is_eager": True, "outgoings": ["x"], "report_state": "x", "_children": "x", "update": 1, "mine": "kept"}
    context = Context.from_call(Call(task="t", id="i", headers=headers))
    assert context.is_eager is False
    assert context.outgoings is None
    assert context.report_state is None
    assert context.children == []
    assert callable(context.update)
    assert context.mine == "kept"
