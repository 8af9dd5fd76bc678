"""Results know the type of their value; what is stored about them has types too."""

from datetime import datetime
from typing import Any, assert_type

from umbel import AsyncResult, EagerResult, GroupResult, ResultSet, Umbel, current_app, current_task

app = Umbel("shop")


def look(result: AsyncResult[str]) -> None:
    assert_type(result.get(), str)
    assert_type(result.wait(timeout=1), str)
    assert_type(result.watch(timeout=1), str)
    assert_type(result.id, str)
    assert_type(result.task_id, str)
    assert_type(result.state, str)
    assert_type(result.status, str)
    assert_type(result.ready(), bool)
    assert_type(result.successful(), bool)
    assert_type(result.failed(), bool)
    assert_type(result.traceback, str | None)
    assert_type(result.date_done, datetime | None)
    assert_type(result.children, list[Any] | None)
    # A failed task has its exception here, and a running one what it reported.
    assert_type(result.result, Any)
    assert_type(result.info, Any)
    assert_type(result.then(print), AsyncResult[str])
    result.get(timeout="x")  # type: ignore[arg-type]
    result.redy()  # type: ignore[attr-defined]
    result.state()  # type: ignore[operator]


async def wait(result: AsyncResult[str], eager: EagerResult[int]) -> None:
    assert_type(await result, str)
    assert_type(await eager, int)


assert_type(AsyncResult[int]("an id", app=app).get(), int)
assert_type(app.AsyncResult("an id").get(), Any)
assert_type(app.send_task("by.name", (1,)), AsyncResult[Any])
assert_type(app.GroupResult("an id"), GroupResult[Any])
assert_type(app.ResultSet([]), ResultSet[Any])
assert_type(current_app.send_task("by.name"), AsyncResult[Any])
assert_type(current_task.name, str)
