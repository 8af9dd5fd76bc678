"""``celery.utils.collections`` and ``objects``: mappings and bags that extensions import from there."""

from __future__ import annotations

import collections
import functools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

__all__ = [
    "AttributeDict", "AttributeDictMixin", "BufferMap", "Bunch", "ChainMap", "ConfigurationView", "DictAttribute",
    "Evictable", "FallbackContext", "LimitedSet", "Messagebuffer", "OrderedDict", "force_mapping", "getitem_property",
    "lpmerge", "mro_lookup",
]  # fmt: skip


class AttributeDictMixin:
    """Makes the items of a mapping its attributes too."""

    def __getattr__(self, k: str) -> Any:
        try:
            return self[k]  # type: ignore[index]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {k!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value


class AttributeDict(dict[str, Any], AttributeDictMixin):
    """A dictionary whose items are attributes too."""


class DictAttribute(MutableMapping[str, Any]):
    """An object's attributes as a mapping."""

    def __init__(self, obj: Any) -> None:
        object.__setattr__(self, "obj", obj)

    obj: Any

    def __getattr__(self, key: str) -> Any:
        return getattr(self.obj, key)

    def __setattr__(self, key: str, value: Any) -> None:
        setattr(self.obj, key, value)

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self.obj, key)
        except AttributeError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self.obj, key, value)

    def __delitem__(self, key: str) -> None:
        delattr(self.obj, key)

    def __iter__(self) -> Iterator[str]:
        return iter(dir(self.obj))

    def __len__(self) -> int:
        return len(dir(self.obj))


def force_mapping(m: Any) -> Any:
    """Return a mapping as it is, and an object's attributes as one."""
    return m if isinstance(m, Mapping) else DictAttribute(m)


def lpmerge(L: dict[Any, Any], R: Mapping[Any, Any]) -> dict[Any, Any]:
    """Update the left mapping with what is not None in the right one, and return it."""
    L.update((key, value) for key, value in R.items() if value is not None)
    return L


class ChainMap(collections.ChainMap[Any, Any]):
    """A :class:`collections.ChainMap` that can be told how to spell keys."""

    def __init__(self, *maps: Any, key_t: Callable[[Any], Any] | None = None) -> None:
        super().__init__(*maps)
        self.key_t = key_t

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.key_t(key) if self.key_t else key)

    def add_defaults(self, d: Any) -> None:
        """Add a mapping that is asked last but for the first."""
        self.maps.insert(1, force_mapping(d))


class ConfigurationView(ChainMap, AttributeDictMixin):
    """Changes over defaults, as a mapping and as attributes."""

    def __init__(self, changes: Any, defaults: Any = None, keys: Any = None, prefix: str | None = None) -> None:
        super().__init__(force_mapping(changes), *map(force_mapping, defaults or ()))
        self.__dict__["prefix"] = prefix

    def __setattr__(self, key: str, value: Any) -> None:
        if key in ("maps", "key_t"):
            object.__setattr__(self, key, value)
        else:
            self[key] = value


class Bunch:
    """An object with these attributes."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)


class FallbackContext:
    """A block around what was provided, or else around what ``fallback`` makes."""

    def __init__(self, provided: Any, fallback: Callable[..., Any], *fb_args: Any, **fb_kwargs: Any) -> None:
        self.provided = provided
        self._make: Callable[[], Any] = functools.partial(fallback, *fb_args, **fb_kwargs)
        self._context: Any = None

    def __enter__(self) -> Any:
        if self.provided is not None:
            return self.provided
        self._context = self._make()
        return self._context.__enter__()

    def __exit__(self, *exc_info: Any) -> Any:
        return self._context.__exit__(*exc_info) if self._context is not None else None


class getitem_property:
    """An attribute that is an item of the object: ``getitem_property("options.task_id")``."""

    def __init__(self, keypath: str, doc: str | None = None) -> None:
        *self.path, self.key = keypath.split(".")
        self.__doc__ = doc

    def _owner(self, obj: Any) -> Any:
        for part in self.path:
            obj = obj[part]
        return obj

    def __get__(self, obj: Any, type: Any = None) -> Any:
        return type if obj is None else self._owner(obj).get(self.key)

    def __set__(self, obj: Any, value: Any) -> None:
        self._owner(obj)[self.key] = value


def mro_lookup(cls: type, attr: str, stop: Iterable[type] = (), monkey_patched: Iterable[str] = ()) -> Any:
    """Return the class of the inheritance order that defines an attribute, or None from ``stop`` on."""
    stop, patched = set(stop), set(monkey_patched)
    for node in cls.mro():
        if node in stop:
            if patched and getattr(node.__dict__.get(attr), "__module__", None) not in patched:
                return node
            return None
        if attr in node.__dict__:
            return node
    return None


class Evictable:
    """Base of what forgets its oldest contents."""

    def evict(self) -> None:
        """Forget what is too much."""


class Messagebuffer(Evictable):
    """A queue of at most ``maxsize`` values that forgets the oldest."""

    Empty = IndexError

    def __init__(self, maxsize: int | None, iterable: Iterable[Any] | None = None, deque: type = deque) -> None:
        self.maxsize = maxsize
        self.data: Any = deque(iterable or [])

    def put(self, item: Any) -> None:
        """Add a value."""
        self.data.append(item)
        self.evict()

    def extend(self, it: Iterable[Any]) -> None:
        """Add values."""
        self.data.extend(it)
        self.evict()

    def take(self, *default: Any) -> Any:
        """Take the oldest value; the default, or :exc:`IndexError`, when there is none."""
        if not self.data and default:
            return default[0]
        return self.data.popleft()

    def evict(self) -> None:
        """Forget what is too much."""
        while self.maxsize and len(self.data) > self.maxsize:
            self.data.popleft()

    def __len__(self) -> int:
        return len(self.data)

    def __contains__(self, item: object) -> bool:
        return item in self.data


class BufferMap(OrderedDict[Any, Any], Evictable):
    """Queues by key, with at most ``maxsize`` values in all of them."""

    def __init__(self, maxsize: int, iterable: Any = None, bufmaxsize: int = 1000) -> None:
        super().__init__()
        self.maxsize = maxsize
        self.bufmaxsize = bufmaxsize
        for key, values in iterable or ():
            self.extend(key, values)

    def _buffer(self, key: Any) -> Messagebuffer:
        found: Messagebuffer = self.setdefault(key, Messagebuffer(self.bufmaxsize))
        return found

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(len(buffer) for buffer in self.values())

    def put(self, key: Any, item: Any) -> None:
        """Add a value."""
        self._buffer(key).put(item)
        self.evict()

    def extend(self, key: Any, it: Iterable[Any]) -> None:
        """Add values."""
        self._buffer(key).extend(it)
        self.evict()

    def take(self, key: Any, *default: Any) -> Any:
        """Take the oldest value of a key."""
        return self._buffer(key).take(*default)

    def evict(self) -> None:
        """Forget what is too much, of the key that was used the longest time ago."""
        while self.total > self.maxsize:
            for buffer in self.values():
                if buffer:
                    buffer.take()
                    break


class LimitedSet:
    """A set that forgets what was added before ``expires`` seconds, and the oldest beyond ``maxlen``."""

    def __init__(
        self,
        maxlen: int = 0,
        expires: float = 0,
        data: Any = None,
        minlen: int = 0,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.maxlen, self.minlen, self.expires = maxlen or 0, minlen or 0, expires or 0
        self._now = now or time.monotonic
        self._data: dict[Any, float] = {}
        if data:
            self.update(data)

    def add(self, item: Any, now: float | None = None) -> None:
        """Add a value, or make it the newest."""
        self._data.pop(item, None)
        self._data[item] = now or self._now()
        self.purge()

    def update(self, other: Any) -> None:
        """Add the values of another."""
        items = other._data if isinstance(other, LimitedSet) else other
        for item in items:
            self.add(item, items[item] if isinstance(items, Mapping) else None)

    def discard(self, item: Any) -> None:
        """Take a value out, if it is in."""
        self._data.pop(item, None)

    pop_value = discard

    def pop(self, default: Any = None) -> Any:
        """Take the oldest value out and return it."""
        item = next(iter(self._data), default)
        self._data.pop(item, None)
        return item

    def purge(self, now: float | None = None) -> None:
        """Forget what is too much or too old; ``minlen`` values are kept in any case."""
        now = now or self._now()
        while self.maxlen and len(self._data) > self.maxlen:
            self.pop()
        while self.expires and len(self._data) > self.minlen:
            if next(iter(self._data.values())) + self.expires > now:
                break
            self.pop()

    def clear(self) -> None:
        """Forget all."""
        self._data.clear()

    def as_dict(self) -> dict[Any, float]:
        """Return the values with the time each was added."""
        return dict(self._data)

    def __contains__(self, item: object) -> bool:
        return item in self._data

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._data))

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"<LimitedSet({len(self)})>"
