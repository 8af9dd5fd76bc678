"""A decorated function keeps its signature, with and without options, bound or shared."""

from typing import Any, assert_type

from umbel import AsyncResult, Celery, EagerResult, Signature, Task, Umbel, shared_task

app = Umbel("shop")
old_name = Celery("shop", set_as_current=False)


@app.task
def charge(order_id: int, note: str = "") -> str:
    return f"{order_id} {note}"


assert_type(charge(7), str)
assert_type(charge.delay(7), AsyncResult[str])
assert_type(charge.delay(7, note="x").get(timeout=10), str)
assert_type(charge.apply_async((7,), countdown=1), AsyncResult[str])
assert_type(charge.apply((7,)), EagerResult[str])
assert_type(charge.apply((7,)).get(), str)
assert_type(charge.AsyncResult("an id").get(), str)
assert_type(charge.s(7), Signature[str])
assert_type(charge.si(7).set(countdown=1).clone(), Signature[str])
assert_type(charge.s().delay(7).get(), str)
assert_type(charge.s(7)(), str)
assert_type(~charge.s(7), str)
assert_type(app.send_many([charge.s(1), charge.s(2)]), list[AsyncResult[str]])
assert_type(app.send_many([(charge, (1,)), "by.name"]), list[AsyncResult[Any]])
assert_type(charge.name, str)

charge("7")  # type: ignore[arg-type]
charge.delay("7")  # type: ignore[arg-type]
charge.delay()  # type: ignore[call-arg]
charge.delay(7, "x", 1)  # type: ignore[call-arg]
charge.delay(order=7)  # type: ignore[call-arg]
charge.delay(7, note=1)  # type: ignore[arg-type]
charge.delay(7).get(timeout="soon")  # type: ignore[arg-type]
charge.dleay(7)  # type: ignore[attr-defined]


@app.task(name="shop.refund", queue="money", autoretry_for=(ConnectionError,), retry_backoff=True, max_retries=5)
def refund(order_id: int) -> None: ...


assert_type(refund.delay(7), AsyncResult[None])
refund.delay("7")  # type: ignore[arg-type]


@old_name.task(ignore_result=True)
def by_the_old_name(x: float) -> float:
    return x


assert_type(by_the_old_name.delay(1).get(), float)
by_the_old_name.delay("1")  # type: ignore[arg-type]


@shared_task
def shared(x: int, y: int) -> list[int]:
    return [x, y]


@shared_task(bind=True, name="twice")
def shared_and_bound(self: Task, x: int) -> int:
    return 2 * x


assert_type(shared.delay(1, 2).get(), list[int])
assert_type(shared_and_bound.delay(1).get(), int)
shared.delay(1)  # type: ignore[call-arg]
shared_and_bound.delay("1")  # type: ignore[arg-type]


@app.task(bind=True, max_retries=3)
def bound(self: Task, x: int, *rest: int, loud: bool = False) -> dict[str, int]:
    if self.request.retries > 3:
        raise self.retry(countdown=5, exc=ValueError())
    self.update_state(state="PROGRESS", meta={"done": 1})
    self.progress(1, 2.5, "half")
    self.progress("1")  # type: ignore[arg-type]
    assert_type(list(self.track([x])), list[int])
    return {"x": x}


assert_type(bound.delay(1, 2, 3, loud=True).get(), dict[str, int])
assert_type(bound(1), dict[str, int])
bound.delay("1")  # type: ignore[arg-type]
bound.delay(1, "2")  # type: ignore[arg-type]
bound.delay(1, loud="very")  # type: ignore[arg-type]


class Holder:
    @app.task(bind=True)
    def tenfold(self, x: int) -> int:
        return 10 * x


assert_type(Holder.tenfold.delay(4).get(), int)
Holder.tenfold.delay("4")  # type: ignore[arg-type]
