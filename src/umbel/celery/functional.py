"""``celery.utils.functional`` and kombu's: small helpers that tasks and extensions import from there."""

from __future__ import annotations

import functools
import inspect
import operator
import threading
import time
from collections import OrderedDict, UserList
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

from umbel.defining import header_of

T = TypeVar("T")

cached_property = functools.cached_property


class LRUCache(OrderedDict[Any, Any]):
    """A dictionary that forgets what was used the longest time ago. Safe to share between threads."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.mutex = threading.RLock()

    def __getitem__(self, key: Any) -> Any:
        with self.mutex:
            value = super().__getitem__(key)
            self.move_to_end(key)
            return value

    def __setitem__(self, key: Any, value: Any) -> None:
        with self.mutex:
            super().__setitem__(key, value)
            self.move_to_end(key)
            while self.limit and len(self) > self.limit:
                del self[next(iter(self))]

    def incr(self, key: Any, delta: int = 1) -> int:
        """Add to a number that is kept as text, and return the sum."""
        with self.mutex:
            value = int(super().__getitem__(key)) + delta
            self[key] = str(value)
            return value


def memoize(maxsize: int | None = None, keyfun: Callable[..., Any] | None = None, Cache: Any = LRUCache) -> Any:
    """Return a decorator that keeps what a function returned for the same arguments."""

    def decorate(fun: Callable[..., Any]) -> Callable[..., Any]:
        cache = Cache(limit=maxsize)
        mutex = threading.Lock()

        @functools.wraps(fun)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            key = keyfun(args, kwargs) if keyfun else (args, tuple(sorted(kwargs.items())))
            try:
                with mutex:
                    value = cache[key]
            except KeyError:
                value = fun(*args, **kwargs)
                remembered.misses += 1  # type: ignore[attr-defined]
                with mutex:
                    cache[key] = value
            else:
                remembered.hits += 1  # type: ignore[attr-defined]
            return value

        def clear() -> None:
            cache.clear()
            remembered.hits = remembered.misses = 0  # type: ignore[attr-defined]

        remembered.hits = remembered.misses = 0  # type: ignore[attr-defined]
        remembered.clear = clear  # type: ignore[attr-defined]
        remembered.original_func = fun  # type: ignore[attr-defined]
        return remembered

    return decorate


class lazy:
    """A call that is made when its value is asked for, each time anew."""

    def __init__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._fun, self._args, self._kwargs = fun, args, kwargs

    def __call__(self) -> Any:
        return self.evaluate()

    def evaluate(self) -> Any:
        """Return the value."""
        return self._fun(*self._args, **self._kwargs)

    def __str__(self) -> str:
        return str(self())

    def __repr__(self) -> str:
        return repr(self())

    def __eq__(self, other: object) -> bool:
        return bool(self() == other)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> lazy:
        memo[id(self)] = self
        return self


class mlazy(lazy):
    """A call that is made once, when its value is first asked for."""

    evaluated = False
    _value: Any = None

    def evaluate(self) -> Any:
        """Return the value."""
        if not self.evaluated:
            self._value = super().evaluate()
            self.evaluated = True
        return self._value


def maybe_evaluate(value: Any) -> Any:
    """Return what a :class:`lazy` stands for, and anything else as it is."""
    return value.evaluate() if isinstance(value, lazy) else value


def evaluate_promises(it: Iterable[Any]) -> Iterator[Any]:
    """Yield the values, each :class:`lazy` evaluated."""
    return (maybe_evaluate(value) for value in it)


class DummyContext:
    """A ``with`` block around nothing."""

    def __enter__(self) -> DummyContext:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


def noop(*args: Any, **kwargs: Any) -> None:
    """Do nothing, with any arguments."""


def pass1(arg: T, *args: Any, **kwargs: Any) -> T:
    """Return the first argument."""
    return arg


def is_list(obj: Any, scalars: tuple[type, ...] = (Mapping, str), iters: tuple[type, ...] = (Iterable,)) -> bool:
    """Say whether it can be iterated over and is no text and no mapping."""
    return isinstance(obj, iters) and not isinstance(obj, scalars)


def maybe_list(obj: Any, scalars: tuple[type, ...] = (Mapping, str)) -> Any:
    """Return a list as it is, None as None, and anything else as a list of one."""
    return obj if obj is None or is_list(obj, scalars) else [obj]


def first(predicate: Callable[[Any], Any] | None, it: Iterable[T]) -> T | None:
    """Return the first value that the predicate (or that it is not None) holds for."""
    holds = predicate or (lambda value: value is not None)
    return next((value for value in it if holds(value)), None)


def firstmethod(method: str, on_call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a function that asks objects in turn for ``method`` until one returns something that is not None."""

    def ask(it: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        for obj in it:
            meth = getattr(maybe_evaluate(obj), method, None)
            if meth is not None:
                reply = on_call(meth, *args, **kwargs) if on_call else meth(*args, **kwargs)
                if reply is not None:
                    return reply
        return None

    return ask


def chunks(it: Iterator[T], n: int) -> Iterator[list[T]]:
    """Yield lists of ``n`` values of an iterator; the last may be shorter."""
    for item in it:
        yield [item, *islice(it, n - 1)]


def padlist(container: Sequence[Any], size: int, default: Any = None) -> list[Any]:
    """Return a list of ``size`` values: those given, then the default."""
    return [*container[:size], *[default] * (size - len(container))]


def mattrgetter(*attrs: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function from an object to a mapping of these attributes; those that it lacks are None."""
    return lambda obj: {attr: getattr(obj, attr, None) for attr in attrs}


def uniq(it: Iterable[T]) -> Iterator[T]:
    """Yield each value once, in the order of its first appearance."""
    return iter(dict.fromkeys(it))


class _Regen(UserList[Any]):
    """A list that is filled from an iterator as far as it was looked at."""

    def __init__(self, it: Iterable[Any]) -> None:
        self._it = iter(it)
        self._taken: list[Any] = []
        self._done = False

    @property
    def data(self) -> list[Any]:
        if not self._done:
            self._taken.extend(self._it)
            self._done = True
        return self._taken

    @data.setter
    def data(self, value: list[Any]) -> None:
        self._taken, self._done = value, True

    def fully_consumed(self) -> bool:
        """Say whether the iterator has ended."""
        return self._done

    def concretize(self) -> list[Any]:
        """Return all values."""
        return self.data

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while True:
            if index == len(self._taken):
                try:
                    self._taken.append(next(self._it))
                except StopIteration:
                    self._done = True
                    return
            yield self._taken[index]
            index += 1

    def __bool__(self) -> bool:
        return next(iter(self), self) is not self

    def __length_hint__(self) -> int:
        return operator.length_hint(self._it)


def regen(it: Iterable[Any]) -> Any:
    """Return lists and tuples as they are, and any other iterable as a list that is filled when needed."""
    return it if isinstance(it, list | tuple) else _Regen(it)


def lookahead(it: Iterable[T]) -> Iterator[tuple[T, T | None]]:
    """Yield each value with the one after it; None after the last."""
    values = iter(it)
    try:
        current = next(values)
    except StopIteration:
        return
    for following in values:
        yield current, following
        current = following
    yield current, None


def dictfilter(d: Mapping[str, Any] | None = None, **kw: Any) -> dict[str, Any]:
    """Return the mapping without what is None; further items are added first."""
    return {key: value for key, value in {**(d or {}), **kw}.items() if value is not None}


def maybe(typ: Callable[[Any], T], val: Any) -> T | None:
    """Return the value made into this type, or None for None."""
    return typ(val) if val is not None else None


def head_from_fun(fun: Callable[..., Any], bound: bool = False) -> Any:
    """Return a callable that raises ``TypeError`` for arguments that the function does not take."""
    header: Any = header_of(fun, bound=bound)
    return header if header is not None else noop


def _parameters(fun: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(fun).parameters.values())


def fun_accepts_kwargs(fun: Callable[..., Any]) -> bool:
    """Say whether the function takes any keyword argument."""
    return any(each.kind is each.VAR_KEYWORD for each in _parameters(fun))


def fun_takes_argument(name: str, fun: Callable[..., Any], position: int | None = None) -> bool:
    """Say whether the function takes an argument of this name, or one at this position (from 1)."""
    known = _parameters(fun)
    if any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in known):
        return True
    named = [each.name for each in known]
    return len(named) >= position if position else name in named


def arity_greater(fun: Callable[..., Any], n: int) -> bool:
    """Say whether the function takes more than ``n`` positional arguments."""
    known = _parameters(fun)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.kind is each.VAR_POSITIONAL for each in known) or sum(each.kind in kinds for each in known) > n


def seq_concat_item(seq: Any, item: Any) -> Any:
    """Return the list or tuple with one more item; of the same type."""
    return type(seq)([*seq, item])


def seq_concat_seq(a: Any, b: Any) -> Any:
    """Return both as one, of the longer one's type."""
    return type(a if len(a) >= len(b) else b)([*a, *b])


def is_numeric_value(value: Any) -> bool:
    """Say whether it is a number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- kombu's ---------------------------------------------------------------------------------------------------------


def fxrange(start: float = 1.0, stop: float | None = None, step: float = 1.0, repeatlast: bool = False) -> Any:
    """Yield numbers from ``start`` to ``stop``, and with ``repeatlast`` the last one for ever."""
    current = start * 1.0
    while True:
        if not stop or current <= stop:
            yield current
            current += step
        elif repeatlast:
            yield current - step
        else:
            return


def fxrangemax(start: float = 1.0, stop: float | None = None, step: float = 1.0, max: float = 100.0) -> Any:
    """Yield growing numbers until their sum is more than ``max``."""
    total, current = 0.0, start * 1.0
    while total <= max:
        yield current
        total += current
        current = min(current + step, stop) if stop else current + step


def retry_over_time(
    fun: Callable[..., Any],
    catch: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    errback: Callable[..., Any] | None = None,
    max_retries: int | None = None,
    interval_start: float = 2,
    interval_step: float = 2,
    interval_max: float = 30,
    callback: Callable[[], Any] | None = None,
    timeout: float | None = None,
) -> Any:
    """Call the function until it raises none of ``catch``; pause longer and longer between the tries."""
    intervals = fxrange(interval_start, interval_max + interval_start, interval_step, repeatlast=True)
    deadline = time.monotonic() + timeout if timeout else None
    tries = 0
    while True:
        try:
            return fun(*(args or ()), **(kwargs or {}))
        except catch as error:
            if (max_retries is not None and tries >= max_retries) or (deadline and time.monotonic() > deadline):
                raise
            if callback:
                callback()
            pause = float(errback(error, intervals, tries) if errback else next(intervals))
            tries += 1
            if pause:
                time.sleep(pause)


def reprkwargs(kwargs: Mapping[str, Any], sep: str = ", ", fmt: str = "{0}={1}") -> str:
    """Return keyword arguments as in a call."""
    return sep.join(fmt.format(key, repr(value)) for key, value in kwargs.items())


def reprcall(name: str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, sep: str = ", ") -> str:
    """Return a call in words."""
    return f"{name}({sep.join(chain(map(repr, args), [reprkwargs(kwargs, sep)] if kwargs else []))})"
