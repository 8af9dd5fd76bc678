"""A coroutine function is a task like any other; the async calls know as much as the others."""

from collections.abc import Coroutine
from typing import Any, assert_type

from umbel import AsyncResult, Task, Umbel, shared_task

app = Umbel("shop")


@app.task
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return url.encode()


@app.task(bind=True, queue="web")
async def fetch_bound(self: Task, url: str) -> bytes:
    return url.encode()


@shared_task
async def fetch_shared(url: str) -> int:
    return len(url)


@app.task
def add(x: int, y: int) -> int:
    return x + y


assert_type(fetch.delay("u"), AsyncResult[bytes])
assert_type(fetch.delay("u", timeout=2).get(), bytes)
assert_type(fetch_bound.delay("u").get(), bytes)
assert_type(fetch_shared.delay("u").get(), int)
fetch.delay(1)  # type: ignore[arg-type]
fetch.delay("u", 2.0)  # type: ignore[call-arg]
fetch_bound.delay(1)  # type: ignore[arg-type]
fetch_shared.delay(1)  # type: ignore[arg-type]


async def main() -> None:
    assert_type(fetch("u"), Coroutine[Any, Any, bytes])  # type: ignore[unused-coroutine]
    assert_type(await fetch("u"), bytes)
    assert_type(await fetch.adelay("u"), AsyncResult[bytes])
    assert_type(await (await fetch.adelay("u")), bytes)
    assert_type(await (await fetch_bound.adelay("u")), bytes)
    assert_type(await (await add.adelay(1, 2)), int)
    assert_type(await (await add.aapply_async((1, 2), countdown=1)), int)
    assert_type(await add.delay(1, 2), int)
    await add.adelay(1, "2")  # type: ignore[arg-type]
    await fetch.adelay()  # type: ignore[call-arg]
    add.adelay(1, 2)  # type: ignore[unused-coroutine]
