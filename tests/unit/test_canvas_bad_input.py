"""What is wrong with a canvas is said where it is made or sent, and nothing of it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from umbel import Umbel, chain, chord, group
from umbel.exceptions import EncodeError
from umbel.interfaces import Place


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    name = f"memory://{request.node.name}"
    with Umbel("bad", broker=name, backend=name, set_as_current=False) as made:
        yield made


@pytest.fixture
def add(app: Any) -> Any:
    @app.task(name="add")
    def add(x: int = 0, y: int = 0) -> int:
        return x + y

    return add


def waiting(app: Any) -> int:
    return sum(app.broker.size("celery", place) for place in (Place.READY, Place.SCHEDULED))


def used(add: Any) -> Any:
    generator = (add.s(n) for n in range(3))
    list(generator)
    return generator


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a member cannot be encoded": (
        lambda add: group([add.s(1), add.s(object())]),
        EncodeError,
        "task add: argument 1 is of type object",
    ),
    "a later step cannot be encoded": (
        lambda add: chain(add.s(1), add.s(object())),
        EncodeError,
        r"chain\[0\]\['args'\]\[0\] is of type object",
    ),
    "a body cannot be encoded": (
        lambda add: chord([add.s(1), add.s(2)], add.s(object())),
        EncodeError,
        r"chord\['args'\]\[0\] is of type object",
    ),
    "a callback cannot be encoded": (
        lambda add: add.s(1).set(link=add.s(object())),
        EncodeError,
        r"callbacks\[0\]\['args'\]\[0\] is of type object",
    ),
    "a callback that is a task": (lambda add: add.s(1).set(link=add), TypeError, "link takes signatures"),
    "an errback that is a name": (
        lambda add: add.s(1).set(link_error="told"),
        TypeError,
        "link_error takes sig.*'told'",
    ),
    "no body": (lambda add: chord([add.s(1)]), TypeError, "a chord needs a body"),
    "a body that is a task": (lambda add: chord([add.s(1)], add), TypeError, "made of signatures such as"),
    "a header that is a number": (lambda add: chord(5, add.s()), TypeError, "the header of a chord is"),
    "members that are numbers": (lambda add: group([1, 2]), TypeError, "made of signatures such as .* not of 1"),
    "a step that is a task": (lambda add: chain(add.s(1), add), TypeError, "made of signatures such as"),
    "a step that is None": (lambda add: chain(add.s(1), None), TypeError, "not of None"),
    "chunks of none": (lambda add: add.chunks([(1, 1)], 0), ValueError, "chunks of 0: .* 1 or more"),
    "a generator that was read": (lambda add: group(used(add)), ValueError, "has been read by somebody else"),
    "a header that was read": (lambda add: chord(used(add), add.s()), ValueError, "has been read by somebody else"),
    "a countdown that is a word": (
        lambda add: group([add.s(1).set(countdown="soon")]),
        ValueError,
        "countdown must be",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_is_wrong_is_said_and_nothing_is_sent(case: str, app: Any, add: Any) -> None:
    make, kind, text = BAD[case]
    with pytest.raises(kind, match=text):
        make(add).apply_async()
    assert waiting(app) == 0


@pytest.mark.parametrize("backend", [None, "rpc://"])
@pytest.mark.parametrize(
    "make",
    [
        lambda add: chord((add.s(n) for n in range(1000)), add.s()),
        lambda add: add.s(1) | group([add.s(1), add.s(2)]) | add.s(3),
    ],
    ids=["a chord", "in a chain"],
)
def test_a_chord_needs_a_backend_that_keeps_its_parts(backend: str | None, make: Any) -> None:
    broker = "memory://no-parts" if backend is None else "amqp://nobody@127.0.0.1:1//"
    with Umbel("bad", broker=broker, backend=backend, set_as_current=False) as app:
        task = app.task(name="add")(lambda x=0, y=0: x)
        # Before the broker, which is not there, is even asked for: more than one batch of members would be gone.
        with pytest.raises(NotImplementedError, match=r"needs a result backend|chords do not work"):
            make(task).apply_async()


def test_a_generator_that_fails_says_how_much_was_sent(app: Any, add: Any) -> None:
    def members() -> Iterator[Any]:
        for number in range(700):
            yield add.s(number)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more") as caught:
        group(members()).apply_async()
    assert caught.value.__notes__ == [f"{waiting(app)} tasks of this canvas were sent before"]
    assert waiting(app) == 500


def test_what_is_empty_is_sent_as_nothing(app: Any, add: Any) -> None:
    assert group().apply_async().results == []
    assert chain().apply_async() is None
    assert waiting(app) == 0
    chord([], add.s()).apply_async()
    assert waiting(app) == 1


def test_a_generator_may_be_sent_twice(app: Any, add: Any) -> None:
    canvas = group(add.s(n) for n in range(3))
    assert [len(canvas.apply_async()) for _ in range(2)] == [3, 3]
    assert waiting(app) == 6
