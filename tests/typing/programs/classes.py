"""Task classes: what they inherit from says what they take and return."""

from typing import Any, assert_type

from umbel import AsyncResult, Task, Umbel

app = Umbel("shop")


class Weigh(Task[[str], float]):
    name = "weigh"

    def run(self, thing: str) -> float:
        return float(len(thing))


weigh = app.register_task(Weigh())
assert_type(weigh, Weigh)
assert_type(app.register_task(Weigh), Weigh)
assert_type(weigh.delay("leek"), AsyncResult[float])
assert_type(weigh.delay("leek").get(), float)
assert_type(weigh("leek"), float)
weigh.delay(1)  # type: ignore[arg-type]
weigh.delay()  # type: ignore[call-arg]


class Loose(Task):
    """Without parameters it takes and returns anything, as in Celery."""

    name = "loose"

    def run(self, *args: Any) -> Any:
        return args


loose = app.register_task(Loose())
assert_type(loose.delay(1, "x").get(), Any)


class Noisy(Task):
    """A base for other tasks."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        print(retval)


@app.task(base=Noisy, bind=True)
def measured(self: Noisy, x: int) -> int:
    return x


assert_type(measured.delay(1).get(), int)
measured.delay("1")  # type: ignore[arg-type]


class OfTheApp(app.Task):  # type: ignore[name-defined, misc]  # a checker cannot know a class that an object makes
    name = "of.the.app"

    def run(self, x: int) -> int:
        return x


of_the_app = app.register_task(OfTheApp())
assert_type(of_the_app.delay(1), Any)
