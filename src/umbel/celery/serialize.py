"""``celery.utils.serialization``: exceptions that can be pickled, and small conversions."""

from __future__ import annotations

import base64
import datetime
import decimal
import numbers
import pickle
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from umbel.jsoncodec import json_dumps

__all__ = ["UnpickleableExceptionWrapper", "b64decode", "b64encode", "strtobool"]

_TOO_GENERAL = {object, Exception, BaseException}


def subclass_exception(name: str, parent: type[BaseException], module: str) -> type[BaseException]:
    """Return a new exception class of this name and module."""
    return type(name, (parent,), {"__module__": module})


def create_exception_cls(name: str, module: str, parent: type[BaseException] | None = None) -> type[BaseException]:
    """Return a new exception class under :exc:`Exception`."""
    return subclass_exception(name, parent or Exception, module)


def itermro(cls: type, stop: Iterable[type]) -> Iterator[type]:
    """Yield the class and those it inherits from, up to the first of ``stop``."""
    stop = set(stop)
    for each in cls.mro():
        if each in stop:
            return
        yield each


def _pickles(value: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(value))  # nosec B301 # pickled here a moment ago
    except Exception:  # the object's own code runs here
        return False
    return True


def find_pickleable_exception(
    exc: BaseException, loads: Any = pickle.loads, dumps: Any = pickle.dumps
) -> BaseException | None:
    """Return the exception as the nearest class of its own that can be pickled, or None."""
    args = getattr(exc, "args", ())
    for cls in itermro(type(exc), _TOO_GENERAL):
        try:
            found: BaseException = cls(*args)
            loads(dumps(found))
        except Exception:  # the class's own code runs here
            continue
        return found
    return None


def get_pickleable_etype(cls: type, loads: Any = pickle.loads, dumps: Any = pickle.dumps) -> type:
    """Return the class, or the nearest it inherits from, that can be pickled."""
    for each in cls.mro():
        try:
            loads(dumps(each))
        except Exception:  # a metaclass's own code runs here
            continue
        return each
    return Exception


class UnpickleableExceptionWrapper(Exception):
    """Stands for an exception that cannot be pickled: its module, its class's name and its arguments."""

    def __init__(self, exc_module: str, exc_cls_name: str, exc_args: Any, text: str | None = None) -> None:
        self.exc_module, self.exc_cls_name, self.text = exc_module, exc_cls_name, text
        self.exc_args = ensure_serializable(exc_args, _must_pickle)
        super().__init__(exc_module, exc_cls_name, self.exc_args, text)

    def restore(self) -> BaseException:
        """Return an exception of a class of that name."""
        return create_exception_cls(self.exc_cls_name, self.exc_module)(*self.exc_args)

    def __str__(self) -> str:
        return self.text or f"{self.exc_cls_name}{tuple(self.exc_args)!r}"

    @classmethod
    def from_exception(cls, exc: BaseException) -> UnpickleableExceptionWrapper:
        """Return what stands for this exception."""
        return cls(type(exc).__module__, type(exc).__name__, getattr(exc, "args", ()), repr(exc))


def _must_pickle(value: Any) -> Any:
    return pickle.dumps(value)


def get_pickleable_exception(exc: BaseException) -> BaseException:
    """Return the exception, or what can be pickled in its place."""
    return exc if _pickles(exc) else find_pickleable_exception(exc) or UnpickleableExceptionWrapper.from_exception(exc)


def get_pickled_exception(exc: BaseException) -> BaseException:
    """Return the exception that a wrapper stands for; any other as it is."""
    return exc.restore() if isinstance(exc, UnpickleableExceptionWrapper) else exc


def ensure_serializable(items: Iterable[Any], encoder: Callable[[Any], Any] = json_dumps) -> tuple[Any, ...]:
    """Return the values; one that the encoder refuses as its representation."""

    def safe(value: Any) -> Any:
        try:
            encoder(value)
        except Exception:  # the value's own code runs here
            return repr(value)
        return value

    return tuple(safe(item) for item in items)


def b64encode(s: str | bytes) -> str:
    """Return bytes, or text as UTF-8, in base64."""
    return base64.b64encode(s.encode() if isinstance(s, str) else s).decode()


def b64decode(s: str | bytes) -> bytes:
    """Return the bytes of base64."""
    return base64.b64decode(s)


_TRUTHS = {"false": False, "no": False, "0": False, "off": False, "true": True, "yes": True, "1": True, "on": True}


def strtobool(term: Any, table: Mapping[str, bool] | None = None) -> Any:
    """Return the truth value of a word such as ``yes`` or ``off``; what is no text, as it is."""
    if not isinstance(term, str):
        return term
    try:
        return (table or _TRUTHS)[term.lower()]
    except KeyError:
        raise TypeError(f"Cannot coerce {term!r} to type bool") from None


def jsonify(
    obj: Any,
    builtin_types: Any = (numbers.Real, str),
    key: str | None = None,
    keyfilter: Callable[[Any], bool] | None = None,
    unknown_type_filter: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value in types that JSON has."""
    if obj is None or isinstance(obj, builtin_types):
        return obj
    if hasattr(obj, "__json__"):
        return obj.__json__()
    more: dict[str, Any] = {"builtin_types": builtin_types, "keyfilter": keyfilter,
                            "unknown_type_filter": unknown_type_filter}  # fmt: skip
    if isinstance(obj, list | tuple):
        return [jsonify(value, **more) for value in obj]
    if isinstance(obj, dict):
        return {
            name: jsonify(value, key=name, **more) for name, value in obj.items() if not keyfilter or keyfilter(name)
        }
    if isinstance(obj, datetime.datetime | datetime.date | datetime.time):
        return obj.isoformat()
    if isinstance(obj, datetime.timedelta | decimal.Decimal | uuid.UUID):
        return str(obj)
    if unknown_type_filter is None:
        raise ValueError(f"Unsupported type: {type(obj)!r} {obj!r} (parent: {key})")
    return unknown_type_filter(obj)


def raise_with_context(exc: BaseException) -> NoReturn:
    """Raise an exception, and keep what is handled now as its cause."""
    handled = sys.exc_info()[1]
    if handled is None or handled is exc:
        raise exc
    raise exc from handled
