"""The helpers that programs import from ``celery.utils`` answer as Celery's own do: both are asked, and compared."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import celery.platforms
import pytest

from umbel.celery import containers, functional, imports, local, platforms, serialize, texts, threads, timer, times
from umbel.utils import time as utils_time

NOON = datetime(2026, 3, 5, 12, 30, 15, 7, tzinfo=UTC)
NAIVE = datetime(2026, 3, 5, 12, 30, 15)
ROME = ZoneInfo("Europe/Rome")


def named(case: Any) -> str:
    """The call in words: the same in every process, so without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", f"{case[0]}{case[1:]!r}")[:60]


def answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error)


def both(module: str, ours: Any, name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    theirs = importlib.import_module(module)
    return (
        answer(lambda: getattr(ours, name)(*args, **kwargs)),
        answer(lambda: getattr(theirs, name)(*args, **kwargs)),
    )


TEXTS = [
    ("abbr", "hello", 3), ("abbr", "hello", 4, ""), ("abbr", None, 4), ("abbr", "hello", 9),
    ("abbrtask", "feeds.tasks.refresh", 10), ("abbrtask", "feeds.tasks.refresh", 19), ("abbrtask", None, 1),
    ("dedent", "    a\n  b\n    c"), ("dedent_initial", "    a"), ("ensure_newlines", "a\n"), ("ensure_newlines", "a"),
    ("fill_paragraphs", "a b c d\ne f", 3), ("indent", "a\nb", 2), ("join", ["a", "", "b"]), ("pluralize", 1, "task"),
    ("pluralize", 2, "task"), ("pluralize", 0.5, "hour"), ("str_to_list", "a,b"), ("str_to_list", ["a"]),
    ("truncate", "one two three", 9), ("truncate", "short", 9), ("match_case", "a", "B"),
    ("simple_format", "%h and %%", {"h": "host"}), ("simple_format", "%x", {"h": "host"}), ("simple_format", "", {}),
    ("simple_format", "%i", {"i": lambda: "7"}), ("remove_repeating", "ab", "ab x ab y"),
    ("remove_repeating_from_task", "tasks.add", "tasks.add(2), tasks.mul(3)"),
    ("remove_repeating_from_task", "tasks.add", "nothing"),
]  # fmt: skip


@pytest.mark.parametrize("case", TEXTS, ids=named)
def test_texts(case: Any) -> None:
    ours, theirs = both("celery.utils.text", texts, *case)
    assert ours == theirs


TIMES: list[Any] = [
    ("maybe_timedelta", 30), ("maybe_timedelta", 1.5), ("maybe_timedelta", timedelta(2)),
    ("delta_resolution", NOON, timedelta(days=2)), ("delta_resolution", NOON, timedelta(hours=2)),
    ("delta_resolution", NOON, timedelta(minutes=2)), ("delta_resolution", NOON, timedelta(seconds=2)),
    ("remaining", NOON, timedelta(hours=1), NOON + timedelta(minutes=20)),
    ("remaining", NOON, timedelta(hours=1), NOON, True), ("remaining", NOON, timedelta(0), NOON + timedelta(1)),
    ("rate", "100/m"), ("rate", "10/s"), ("rate", "5/h"), ("rate", "7"), ("rate", 3), ("rate", None), ("rate", 0),
    ("weekday", "sunday"), ("weekday", "Mon"), ("weekday", "sat"), ("weekday", "nonday"), ("yearmonth", "january"),
    ("yearmonth", "DEC"), ("yearmonth", "x"), ("humanize_seconds", 4 * 60 * 60), ("humanize_seconds", 0),
    ("humanize_seconds", 60), ("humanize_seconds", 90061, "in", " "), ("humanize_seconds", 0.25, "", "", "now", True),
    ("maybe_iso8601", None), ("maybe_iso8601", NOON), ("maybe_iso8601", "2026-03-05T12:30:15+00:00"),
    ("is_naive", NAIVE), ("is_naive", NOON), ("make_aware", NAIVE, ROME), ("localize", NOON, ROME), ("to_utc", NAIVE),
    ("maybe_make_aware", NAIVE), ("maybe_make_aware", NAIVE, ROME), ("maybe_make_aware", NOON, ROME),
    ("maybe_make_aware", NAIVE, ROME, False), ("utcoffset",), ("adjust_timestamp", 1000.0, 2, lambda: 0.0),
    ("get_exponential_backoff_interval", 2, 3, 600), ("get_exponential_backoff_interval", 2, 30, 600),
    ("add_seconds_to_datetime", NOON, 61), ("subtract_datetimes", NOON, NOON - timedelta(5)),
]  # fmt: skip


@pytest.mark.parametrize("case", TIMES, ids=named)
def test_times(case: Any) -> None:
    home = utils_time if hasattr(utils_time, case[0]) else times
    ours, theirs = both("celery.utils.time", home, *case)
    assert ours == theirs


@pytest.mark.parametrize(
    "fields",
    [{"weekday": 3, "hour": 1}, {"day": 31, "month": 2}, {"weeks": 2}, {"minute": 5, "second": 0}, {"year": 2030}],
    ids=str,
)
def test_ffwd(fields: Any) -> None:
    from celery.utils.time import ffwd

    assert NOON + times.ffwd(**fields) == NOON + ffwd(**fields)


FUNCTIONAL: list[Any] = [
    ("is_list", [1]), ("is_list", "ab"), ("is_list", {}), ("is_list", 3), ("maybe_list", None), ("maybe_list", [1]),
    ("maybe_list", "a"), ("maybe_list", 5), ("first", None, [None, 2, 3]), ("first", lambda x: x > 2, [1, 2, 3]),
    ("first", None, []), ("padlist", ["a", "b"], 3), ("padlist", ["a", "b", "c"], 2), ("padlist", ["a"], 3, "z"),
    ("dictfilter", {"a": 1, "b": None}), ("maybe", int, "3"), ("maybe", int, None),
    ("seq_concat_item", [1], 2), ("seq_concat_item", (1,), 2), ("seq_concat_seq", [1], (2, 3)),
    ("seq_concat_seq", (1, 2), [3]), ("is_numeric_value", 3), ("is_numeric_value", True), ("is_numeric_value", "3"),
    ("fun_accepts_kwargs", lambda **kw: 0), ("fun_accepts_kwargs", lambda x: 0),
    ("fun_takes_argument", "x", lambda x: 0), ("fun_takes_argument", "y", lambda x: 0),
    ("fun_takes_argument", "y", lambda *a: 0), ("fun_takes_argument", "y", lambda x: 0, 1),
    ("arity_greater", lambda a, b: 0, 1), ("arity_greater", lambda a: 0, 1), ("arity_greater", lambda *a: 0, 1),
]  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONAL, ids=named)
def test_functional(case: Any) -> None:
    name, *args = case
    ours, theirs = both("celery.utils.functional", functional, name, *args)
    if name in ("fun_takes_argument", "arity_greater"):  # Celery's return something that is true
        theirs = bool(theirs)
    assert ours == theirs and type(ours) is type(theirs)


def test_iterators() -> None:
    theirs = importlib.import_module("celery.utils.functional")
    for module in (functional, theirs):
        assert list(module.chunks(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
        assert list(module.uniq([3, 1, 3, 2, 1])) == [3, 1, 2]
        assert list(module.lookahead(iter("abc"))) == [("a", "b"), ("b", "c"), ("c", None)]
        assert list(module.lookahead([])) == []
        assert module.mattrgetter("real", "none")(3) == {"real": 3, "none": None}
        assert module.firstmethod("upper")([3, "a", "b"]) == "A"


def test_regen_takes_from_an_iterator_once_and_no_further_than_needed() -> None:
    taken = []

    def source() -> Any:
        for number in range(5):
            taken.append(number)
            yield number

    lazily = functional.regen(source())
    assert taken == []
    assert list(islice(lazily, 2)) == [0, 1] and taken == [0, 1] and not lazily.fully_consumed()
    assert bool(lazily) and taken == [0, 1]
    assert list(lazily) == [0, 1, 2, 3, 4] == lazily.concretize() and lazily[-1] == 4 and len(lazily) == 5
    assert taken == [0, 1, 2, 3, 4]
    kept = [1]
    assert functional.regen(kept) is kept


def test_memoize_and_its_limit() -> None:
    calls = []

    @functional.memoize(maxsize=2)
    def double(x: int) -> int:
        calls.append(x)
        return x * 2

    assert [double(1), double(1), double(2), double(3), double(1)] == [2, 2, 4, 6, 2]
    assert calls == [1, 2, 3, 1] and (double.hits, double.misses) == (1, 4)
    double.clear()
    assert double(3) == 6 and calls[-1] == 3


def test_lazy_values() -> None:
    calls: list[int] = []
    each = functional.lazy(lambda: calls.append(1) or len(calls))
    once = functional.mlazy(lambda: calls.append(1) or len(calls))
    assert [each(), each()] == [1, 2] and [once(), once()] == [3, 3]
    assert functional.maybe_evaluate(once) == 3 and functional.maybe_evaluate(9) == 9


def test_head_from_fun_refuses_what_the_function_does_not_take() -> None:
    head = functional.head_from_fun(lambda a, b=2: None)
    head(1)
    head(1, b=3)
    with pytest.raises(TypeError):
        head()


def test_retry_over_time() -> None:
    tries: list[int] = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise KeyError(len(tries))
        return "done"

    assert functional.retry_over_time(work, (KeyError,), errback=lambda error, intervals, tried: 0) == "done"
    tries.clear()
    with pytest.raises(KeyError):
        functional.retry_over_time(work, (KeyError,), max_retries=1, errback=lambda *args: 0)
    assert len(tries) == 2


SERIALIZE: list[Any] = [
    ("strtobool", "yes"), ("strtobool", "OFF"), ("strtobool", "maybe"), ("strtobool", 3), ("b64encode", "a"),
    ("b64encode", b"a"), ("b64decode", "YQ=="), ("jsonify", {"a": (1, NAIVE, timedelta(1)), "b": None}),
    ("jsonify", object()), ("jsonify", [1.5, "x"]),
]  # fmt: skip


@pytest.mark.parametrize("case", SERIALIZE, ids=named)
def test_serialize(case: Any) -> None:
    ours, theirs = both("celery.utils.serialization", serialize, *case)
    assert ours == theirs


def test_exceptions_that_do_not_pickle() -> None:
    class Local(ValueError):  # a class of a function cannot be found again
        pass

    found = serialize.get_pickleable_exception(Local("x", 1))
    assert type(found) is ValueError and found.args == ("x", 1)

    class Lost(Exception):
        pass

    wrapped = serialize.get_pickleable_exception(Lost("x"))
    assert isinstance(wrapped, serialize.UnpickleableExceptionWrapper)
    again = serialize.get_pickled_exception(wrapped)
    assert type(again).__name__ == "Lost" and again.args == ("x",)
    known = KeyError("k")
    assert serialize.get_pickleable_exception(known) is known


def test_limited_set() -> None:
    now = [0.0]
    kept = containers.LimitedSet(maxlen=3, expires=10, now=lambda: now[0])
    for number in range(5):
        now[0] += 1
        kept.add(number)
    assert list(kept) == [2, 3, 4] and 1 not in kept and len(kept) == 3
    now[0] = 13.5
    kept.purge()
    assert list(kept) == [3, 4]
    assert kept.pop() == 3 and kept.pop() == 4 and kept.pop("none") == "none"


def test_mappings() -> None:
    found = containers.AttributeDict(a=1)
    found.b = 2
    assert found.a == 1 and found["b"] == 2 and not hasattr(found, "c")
    view = containers.ConfigurationView({"x": 1}, [{"x": 0, "y": 2}])
    assert (view.x, view.y, view["x"]) == (1, 2, 1)
    view.y = 3
    assert view["y"] == 3
    attributes = containers.DictAttribute(containers.Bunch(a=1))
    attributes["b"] = 2
    assert attributes["a"] == 1 and attributes.obj.b == 2 and attributes.get("z") is None
    assert containers.lpmerge({"a": 1, "b": 2}, {"a": None, "b": 3}) == {"a": 1, "b": 3}
    buffers = containers.BufferMap(3)
    buffers.extend("a", [1, 2])
    buffers.extend("b", [3, 4])
    assert buffers.total == 3 and buffers.take("b") == 3
    assert containers.mro_lookup(bool, "bit_length") is int


def test_colours_are_those_of_celery() -> None:
    from celery.utils.term import colored

    for make in (colored, texts.colored):
        color = make(enabled=True)
        assert str(color.red("a ", color.bold("b"))) == str(colored(enabled=True).red("a ", colored().bold("b")))
        assert str(make(enabled=False).red("a")) == "a"
        assert make().blue("abc").no_color() == "abc"


def test_urls() -> None:
    parsed = texts.parse_url("amqp://me:s%2Fx@host:5672/v?heartbeat=3")
    assert parsed == importlib.import_module("kombu.utils.url").parse_url("amqp://me:s%2Fx@host:5672/v?heartbeat=3")
    assert texts.as_url("redis", "h", 1, "u", "p/", "0") == "redis://u:p%2F@h:1/0"
    assert "secret" not in texts.maybe_sanitize_url("redis://u:secret@h/0")


def test_promise_proxy() -> None:
    calls: list[int] = []
    seen: list[Any] = []
    proxy = local.PromiseProxy(lambda: calls.append(1) or {"a": 1})
    proxy.__then__(seen.append)
    assert not proxy.__evaluated__() and calls == [] == seen
    assert proxy["a"] == 1 and proxy["a"] == 1 and calls == [1] and seen == [{"a": 1}]
    assert local.maybe_evaluate(proxy) == {"a": 1} and isinstance(proxy, dict)
    assert local.try_import("no.such.module", 5) == 5


def test_class_property() -> None:
    class Thing:
        kind = "a"

        def _get(cls) -> Any:
            return cls.kind

        both = local.class_property(_get)

    assert Thing.both == Thing().both == "a"


def test_local_stacks_are_of_one_thread() -> None:
    stack = threads.LocalStack()
    stack.push(1)
    stack.push(2)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(stack.top))
    thread.start()
    thread.join()
    assert (stack.top, len(stack), stack.stack, seen) == (2, 2, [1, 2], [None])
    assert stack.pop() == 2 and stack.pop() == 1 and stack.pop() is None


def test_timer_calls_in_order_and_again() -> None:
    clockwork = timer.Timer()
    done, ticks = threading.Event(), threading.Event()
    seen: list[str] = []
    clockwork.call_after(0.02, lambda: (seen.append("late"), done.set()))
    clockwork.call_after(0.001, seen.append, ("early",))
    clockwork.call_after(0.005, seen.append, ("never",)).cancel()
    counted: list[int] = []

    def tick() -> None:
        counted.append(1)
        if len(counted) == 3:
            ticks.set()
        raise ValueError("a call that fails does not stop the timer")

    entry = clockwork.call_repeatedly(0.001, tick)
    assert done.wait(10) and ticks.wait(10)
    entry.cancel()
    clockwork.stop()
    assert seen == ["early", "late"] and not clockwork._heap


def test_platforms() -> None:
    theirs = celery.platforms
    for name in ("EX_OK", "EX_FAILURE", "EX_UNAVAILABLE", "EX_USAGE", "SYSTEM", "IS_WINDOWS", "IS_macOS"):
        assert getattr(platforms, name) == getattr(theirs, name)
    assert platforms.signal_name(15) == theirs.signal_name(15) == "TERM"
    assert platforms.signals.signum("INT") == theirs.signals.signum("INT") == 2
    assert platforms.strargv(["celery", "worker", "-l"]) == theirs.strargv(["celery", "worker", "-l"])
    assert platforms.parse_uid("root") == 0 == platforms.parse_gid("0")
    with pytest.raises(KeyError):
        platforms.parse_uid("nobody-has-this-name")
    with pytest.raises(NotImplementedError, match="umbel worker --detach"):
        platforms.detached()


def test_pid_files(tmp_path: Any) -> None:
    path = tmp_path / "worker.pid"
    with platforms.Pidfile(str(path)) as held:
        assert held.is_locked() and held.read_pid() and not held.remove_if_stale()
        with pytest.raises(platforms.LockFailed):
            platforms.Pidfile(str(path)).acquire()
    assert not path.exists()
    path.write_text("99999999\n")
    assert platforms.Pidfile(str(path)).remove_if_stale() and not path.exists()
    path.write_text("7")
    with pytest.raises(ValueError, match="invalid"):
        platforms.Pidfile(str(path)).read_pid()


def test_imports(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lonely_module.py").write_text("x = 1\n")
    assert imports.find_module("lonely_module") is not None
    with pytest.raises(imports.NotAPackage):
        imports.find_module("lonely_module.sub")
    assert imports.instantiate("collections:OrderedDict", a=1) == {"a": 1}
    assert imports.reload_from_cwd("lonely_module").x == 1
    with pytest.warns(UserWarning, match="cannot load"):
        monkeypatch.setattr(imports, "load_extension_class_names", lambda group: [("x", "no.such:Thing")])
        assert list(imports.load_extension_classes("group")) == []
