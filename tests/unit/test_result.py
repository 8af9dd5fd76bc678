from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from umbel import current, states
from umbel.backends.memory import MemoryBackend
from umbel.exceptions import IncompleteStream, TaskRevokedError, TimeoutError
from umbel.interfaces import ResultRecord
from umbel.meta import decoder, encode_meta
from umbel.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    ResultSet,
    Waiter,
    allow_join_result,
    denied_join_result,
    result_from_tuple,
)


class App:
    """As much of an app as results need."""

    def __init__(self, *, backend: bool = True) -> None:
        self.conf = SimpleNamespace(
            result_serializer="json",
            result_compression=None,
            result_accept_content=None,
            accept_content=["json"],
            result_expires=86400,
            task_always_eager=False,
            task_store_eager_result=False,
            task_remote_tracebacks=False,
        )
        self.backend: Any = MemoryBackend(f"memory://{uuid.uuid4().hex}") if backend else None
        self.waiter = Waiter(lambda: self.backend, decode=decoder(self.conf))
        self.AsyncResult: type[AsyncResult[Any]] = type("AsyncResult", (AsyncResult,), {"app": self})
        self.GroupResult: type[GroupResult[Any]] = type("GroupResult", (GroupResult,), {"app": self})
        self.ResultSet: type[ResultSet[Any]] = type("ResultSet", (ResultSet,), {"app": self})

    def store(self, task_id: str, result: Any = None, state: str = states.SUCCESS, **fields: Any) -> None:
        payload = encode_meta(task_id, state, result, **fields)
        self.backend.store(ResultRecord(task_id=task_id, state=state, payload=payload))

    def fail(self, task_id: str, error: Exception | None = None, **fields: Any) -> None:
        self.store(task_id, error or KeyError("lost"), states.FAILURE, **fields)


@pytest.fixture
def app() -> App:
    return App()


def later(*actions: Callable[[], None]) -> dict[str, Any]:
    """Return options of ``get`` under which these happen while it waits."""
    left = list(actions)
    return {"interval": 0.001, "on_interval": lambda: left.pop(0)() if left else None, "timeout": 10}


# -- one task ----------------------------------------------------------------------------------------------------


def test_an_unknown_task_is_pending(app: App) -> None:
    result = app.AsyncResult("a")
    assert (result.state, result.status, result.result, result.info) == ("PENDING", "PENDING", None, None)
    assert not result.ready()
    assert not result.exists()
    assert result.traceback is result.children is result.date_done is result.name is None


def test_what_is_stored_can_be_read(app: App) -> None:
    request = SimpleNamespace(
        task="add", args=[1], kwargs={}, hostname="w1", retries=2, delivery_info={"routing_key": "q"}
    )
    moment = datetime(2026, 11, 21, 12, tzinfo=UTC)
    children = [(("c", None), None), (("g", None), [(("m", None), None)])]
    app.store("a", 5, date_done=moment, children=children, request=request, extended=True)
    result = app.AsyncResult("a")
    assert result.successful()
    assert result.ready()
    assert not result.failed()
    assert result.exists()
    assert (result.result, result.date_done) == (5, moment)
    assert (result.name, result.args, result.kwargs) == ("add", [1], {})
    assert (result.worker, result.retries, result.queue) == ("w1", 2, "q")
    child, group = result.children
    assert child == app.AsyncResult("c")
    assert isinstance(group, GroupResult)
    assert group.results == ["m"]


def test_a_final_state_is_read_once(app: App) -> None:
    app.store("a", 5)
    result = app.AsyncResult("a")
    assert result.get() == 5
    app.backend.forget(["a"])
    assert result.get() == 5
    assert result.state == "SUCCESS"
    result.forget()
    assert result.state == "PENDING"


def test_get_waits(app: App) -> None:
    result = app.AsyncResult("a")
    assert result.get(**later(lambda: app.store("a", {"pid": 1}, "STARTED"), lambda: app.store("a", "done"))) == "done"


def test_get_raises_what_the_task_raised(app: App) -> None:
    app.fail("a", ValueError("bad", 3), traceback="Traceback (most recent call last): ...")
    result = app.AsyncResult("a")
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            result.get()
        assert caught.value.args == ("bad", 3)
        assert not hasattr(caught.value, "__notes__")
    assert isinstance(result.get(propagate=False), ValueError)
    assert result.failed()
    assert result.traceback.startswith("Traceback")
    app.conf.task_remote_tracebacks = True
    with pytest.raises(ValueError) as caught:
        result.maybe_throw()
    assert caught.value.__notes__ == [result.traceback]


def test_what_a_member_raised_has_its_traceback_too(app: App) -> None:
    app.conf.task_remote_tracebacks = True
    text = "Traceback (most recent call last): ..."

    def fresh() -> list[Any]:
        """A set and a group whose member failed, and one before which a task failed."""
        ids = [uuid.uuid4().hex for _ in range(3)]
        for task_id in ids:
            app.fail(task_id, ValueError("bad"), traceback=text)
        later = app.GroupResult("g", [app.AsyncResult(uuid.uuid4().hex)], parent=app.AsyncResult(ids[2]))
        return [app.ResultSet([app.AsyncResult(ids[0])]), app.GroupResult("g", [app.AsyncResult(ids[1])]), later]

    for result in fresh():
        for _ in range(2):
            with pytest.raises(ValueError) as caught:
                result.get(timeout=10)
            assert caught.value.__notes__ == [text]
    for result in fresh():
        with pytest.raises(ValueError) as caught:
            asyncio.run(waited(result))
        assert caught.value.__notes__ == [text]


def test_get_gives_up(app: App) -> None:
    result = app.AsyncResult("a")
    with pytest.raises(TimeoutError, match="The operation timed out.") as caught:
        result.get(timeout=0.01)
    assert isinstance(caught.value, result.TimeoutError)


def test_progress_can_be_followed(app: App) -> None:
    seen = []

    def on_message(body: dict[str, Any]) -> None:
        seen.append((body.get("status"), body.get("result")))

    app.store("a", {"p": 1}, "PROGRESS")
    app.store("parent", 0)
    parent = app.AsyncResult("parent")
    options = later(lambda: app.store("a", {"p": 2}, "PROGRESS"), lambda: app.store("a", 3))
    assert app.AsyncResult("a", parent=parent).get(on_message=on_message, propagate=False, **options) == 3
    assert seen == [("PROGRESS", {"p": 1}), ("PROGRESS", {"p": 2}), ("SUCCESS", 3)]


def test_get_calls_back(app: App) -> None:
    app.store("a", 3)
    seen: list[Any] = []
    app.AsyncResult("a").get(callback=lambda *args: seen.append(args))
    assert seen == [("a", 3)]


def test_get_is_refused_inside_a_task(app: App) -> None:
    app.store("a", 3)
    result = app.AsyncResult("a")
    with denied_join_result():
        with pytest.raises(RuntimeError, match=r"^Never call result.get\(\) within a task!"):
            result.get()
        with pytest.raises(RuntimeError, match="Never call"):
            app.ResultSet([result]).get()
        assert result.get(disable_sync_subtasks=False) == 3
        with allow_join_result():
            assert result.get() == 3


def test_a_failed_parent_ends_the_wait_for_its_child(app: App) -> None:
    chain = app.AsyncResult("c", parent=app.AsyncResult("b", parent=app.AsyncResult("a")))
    with pytest.raises(KeyError, match="lost"):
        chain.get(**later(lambda: app.fail("a")))
    with pytest.raises(TimeoutError):
        chain.get(timeout=0.001, follow_parents=False)
    assert app.AsyncResult("x", parent=app.AsyncResult("y")).get(**later(lambda: app.store("x", 1))) == 1
    through_group = app.AsyncResult("body", parent=app.GroupResult("g", [app.AsyncResult("m")], app.AsyncResult("a")))
    with pytest.raises(KeyError):
        through_group.get(timeout=10)


def test_an_ignored_result_is_none_at_once(app: App) -> None:
    result = app.AsyncResult("a")
    result.ignored = True
    assert result.get() is None
    assert asyncio.run(waited(result)) is None


def test_without_a_backend_only_reading_fails() -> None:
    app = App(backend=False)
    result = app.AsyncResult("a")
    assert repr(result) == "<AsyncResult: a>"
    for read in (result.get, result.ready, result.forget, result.exists, app.GroupResult("g", []).save):
        with pytest.raises(NotImplementedError, match="No result backend is configured"):
            read()
    with pytest.raises(ValueError, match="id"):
        app.AsyncResult(None)  # type: ignore[arg-type]


async def waited(result: Any) -> Any:
    return await result


def test_a_result_can_be_awaited(app: App) -> None:
    async def main() -> Any:
        waiting = asyncio.ensure_future(waited(app.AsyncResult("a")))
        await asyncio.wait([waiting], timeout=0.01)
        app.store("a", 5)
        return await waiting

    assert asyncio.run(main()) == 5
    app.fail("bad")
    with pytest.raises(KeyError):
        asyncio.run(waited(app.AsyncResult("bad")))
    with pytest.raises(KeyError):
        asyncio.run(waited(app.AsyncResult("child", parent=app.AsyncResult("bad"))))


def test_then_calls_back_with_the_result(app: App) -> None:
    called = threading.Semaphore(0)
    seen: list[Any] = []

    def note(value: Any) -> None:
        seen.append(value)
        called.release()

    result = app.AsyncResult("a")
    result.then(note)
    app.store("a", 5)
    assert called.acquire(timeout=10)
    assert seen == [result]
    assert seen[0].result == 5
    result.then(note)
    assert len(seen) == 2, "known already"
    app.fail("bad")
    app.AsyncResult("bad").then(note, note)
    assert called.acquire(timeout=10)
    assert called.acquire(timeout=10)
    assert called.acquire(timeout=10)
    assert seen[2] == "bad"
    assert isinstance(seen[3], KeyError)


def test_identity(app: App) -> None:
    one, same, other = app.AsyncResult("a"), app.AsyncResult("a"), app.AsyncResult("b", parent=app.AsyncResult("a"))
    assert one == same == "a"
    assert hash(one) == hash("a")
    assert one != other
    assert one != 3
    assert str(one) == one.task_id == "a"
    assert other.as_tuple() == (("b", (("a", None), None)), None)
    assert other.as_list() == ["b", "a"]
    again = result_from_tuple(json.loads(json.dumps(other.as_tuple())), app)
    assert again == other
    assert again.parent == one
    assert result_from_tuple(one, app) is one
    assert copy.copy(other).parent is other.parent


def test_a_pickle_finds_its_app_again(app: App) -> None:
    group = app.GroupResult("g", [app.AsyncResult("a")], parent=app.AsyncResult("p"))
    current.set_current_app(app)
    try:
        restored = pickle.loads(pickle.dumps(group))
    finally:
        current.deregister_app(app)
    assert restored == group
    assert type(restored) is GroupResult
    assert restored.results[0].app is app


def test_the_tree_of_children(app: App) -> None:
    app.store("root", 1, children=[(("left", None), None), (("right", None), None)])
    app.store("left", 2, children=[(("leaf", None), None)])
    app.store("right", 3)
    root = app.AsyncResult("root")
    with pytest.raises(IncompleteStream):
        list(root.iterdeps())
    assert [node.id for _, node in root.iterdeps(intermediate=True)] == ["root", "left", "right", "leaf"]
    app.store("leaf", 4)
    assert [(node.id, value) for node, value in root.collect()] == [("root", 1), ("left", 2), ("right", 3), ("leaf", 4)]
    assert root.get_leaf() == 4
    assert root.graph[root] == ["left", "right"]


def test_revoking_asks_the_remote_control(app: App) -> None:
    with pytest.raises(NotImplementedError, match="remote control"):
        app.AsyncResult("a").revoke()
    asked: list[Any] = []
    control = SimpleNamespace(revoke=lambda ids, **options: asked.append((ids, options)))
    app.control = control  # type: ignore[attr-defined]
    app.AsyncResult("a").revoke(terminate=True, signal="KILL")
    app.GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")]).revoke()
    assert asked[0] == (
        "a",
        {"connection": None, "terminate": True, "signal": "KILL", "reply": False, "timeout": None},
    )
    assert asked[1][0] == ["a", "b"]


def test_reading_under_always_eager_warns(app: App) -> None:
    app.conf.task_always_eager = True
    with pytest.warns(RuntimeWarning, match="task_always_eager") as caught:
        assert app.AsyncResult("a").state == "PENDING"
    assert caught[0].filename == __file__


def test_a_result_of_another_backend(app: App) -> None:
    other = App()
    other.store("a", 3)
    assert app.AsyncResult("a", backend=other.backend).get(timeout=10) == 3
    assert app.ResultSet([app.AsyncResult("a", backend=other.backend)]).get(timeout=10) == [3]


# -- eager results -----------------------------------------------------------------------------------------------


def test_an_eager_result_has_happened() -> None:
    result: EagerResult[int] = EagerResult("a", 5, states.SUCCESS, name="add")
    assert result.get() == 5
    assert result.get(timeout=1, interval=3, propagate=False) == 5
    assert result.ready()
    assert (result.state, result.name, result.children) == ("SUCCESS", "add", None)
    assert asyncio.run(waited(result)) == 5
    assert pickle.loads(pickle.dumps(result)).result == 5
    assert copy.copy(result).result == 5
    assert repr(result) == "<EagerResult: a>"
    seen: list[Any] = []
    result.then(seen.append)
    assert seen == [result]
    with denied_join_result(), pytest.raises(RuntimeError, match="Never call"):
        result.get()


def test_an_eager_failure_is_raised_and_a_revoked_one_too() -> None:
    result: EagerResult[int] = EagerResult("a", ValueError("bad"), states.FAILURE, "Traceback")
    with pytest.raises(ValueError, match="bad"):
        result.get()
    assert isinstance(result.get(propagate=False), ValueError)
    with pytest.raises(ValueError, match="bad"):
        asyncio.run(waited(result))
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get()
    assert EagerResult("a", object(), states.IGNORED).get() is None


# -- sets and groups ---------------------------------------------------------------------------------------------


def test_a_set_is_a_list_of_results(app: App) -> None:
    results = app.ResultSet([])
    one, two = app.AsyncResult("1"), app.AsyncResult("2")
    results.add(one)
    results.add(one)
    results.update([one, two])
    assert list(results) == [one, two]
    assert (len(results), results[1], results.supports_native_join) == (2, two, True)
    results.discard("3")
    with pytest.raises(KeyError):
        results.remove("3")
    results.remove("1")
    assert results == ResultSet([two])
    assert repr(results) == "<ResultSet: [2]>"
    results.clear()
    assert len(results) == 0
    assert results.get() == []
    assert results.ready()


def test_a_set_tells_how_far_it_is(app: App) -> None:
    results = app.ResultSet([app.AsyncResult("1"), app.GroupResult("g", [app.AsyncResult("2"), app.AsyncResult("3")])])
    app.store("1")
    app.store("2")
    assert (results.ready(), results.waiting(), results.successful(), results.failed()) == (False, True, False, False)
    assert results.completed_count() == 1
    app.fail("3")
    assert (results.ready(), results.waiting(), results.successful(), results.failed()) == (True, False, False, True)
    with pytest.raises(KeyError):
        results.maybe_throw()
    results.forget()
    assert not app.AsyncResult("1").exists()


def test_values_come_in_the_order_of_submission(app: App) -> None:
    results = app.ResultSet([app.AsyncResult("1"), app.GroupResult("g", [app.AsyncResult("2")]), app.AsyncResult("3")])
    app.store("3", "c")
    options = later(lambda: app.store("2", "b"), lambda: app.store("1", "a"))
    assert results.get(**options) == ["a", ["b"], "c"]
    assert results.join() == results.join_native() == ["a", ["b"], "c"]
    seen: list[Any] = []
    assert results.get(callback=lambda *args: seen.append(args)) == []
    assert seen == [("1", "a"), ("3", "c"), ("g", ["b"])]
    assert [task_id for task_id, _ in results.iter_native()] == ["1", "2", "3"]


def test_the_first_failure_is_raised_at_once(app: App) -> None:
    results = app.ResultSet([app.AsyncResult("1"), app.AsyncResult("2")])
    with pytest.raises(KeyError):
        results.get(**later(lambda: app.fail("2")))
    app.store("1", 1)
    one, error = results.get(propagate=False)
    assert one == 1
    assert isinstance(error, KeyError)
    with pytest.raises(TimeoutError):
        app.ResultSet([app.AsyncResult("never"), app.AsyncResult("1")]).get(timeout=0.01)


def test_a_group_fails_with_the_task_before_it(app: App) -> None:
    group = app.GroupResult("g", [app.AsyncResult("1")], parent=app.AsyncResult("before"))
    with pytest.raises(KeyError):
        group.get(**later(lambda: app.fail("before")))


def test_a_set_can_be_awaited(app: App) -> None:
    async def main() -> Any:
        waiting = asyncio.ensure_future(waited(app.ResultSet([app.AsyncResult("1"), app.AsyncResult("2")])))
        await asyncio.wait([waiting], timeout=0.01)
        app.store("2", 2)
        app.store("1", 1)
        return await waiting

    assert asyncio.run(main()) == [1, 2]
    app.fail("bad")
    with pytest.raises(KeyError):
        asyncio.run(waited(app.ResultSet([app.AsyncResult("never"), app.AsyncResult("bad")])))


def test_a_set_calls_back(app: App) -> None:
    called = threading.Event()
    results = app.ResultSet([app.AsyncResult("1"), app.AsyncResult("2")])
    results.then(lambda _: called.set())
    app.store("1")
    app.store("2")
    assert called.wait(10)


def test_a_group_is_saved_in_celerys_form(app: App) -> None:
    group = app.GroupResult("g", [app.AsyncResult("1"), app.AsyncResult("2")], parent=app.AsyncResult("p"))
    assert group.save() is group
    stored = json.loads(app.backend.fetch_group("g"))
    assert stored == {"result": [["g", [["p", None], None]], [[["1", None], None], [["2", None], None]]]}
    restored = app.GroupResult.restore("g")
    assert restored == group
    assert restored.parent == "p"
    assert restored == "g"
    assert hash(restored) == hash("g")
    assert (str(group), repr(group), group.children) == ("g", "<GroupResult: g [1, 2]>", group.results)
    group.delete()
    assert app.GroupResult.restore("g") is None
    assert group
    assert not app.GroupResult(None, [])
