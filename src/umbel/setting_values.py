"""What a setting may hold: one reader per type of the table, each turning what users write into what we use."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta, tzinfo
from typing import Any

from umbel.exceptions import ImproperlyConfigured
from umbel.setting_rows import Setting

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "t": True, "y": True} | {
    "false": False, "no": False, "off": False, "0": False, "f": False, "n": False,
}  # fmt: skip


def coerce(row: Setting, value: Any, *, given_as: str, where: str) -> Any:
    """Return the value as the setting's type, reading strings as an environment or a config file writes them.

    ``None`` means "as if not set", unless the type allows it. Mutable values are kept, not copied, as in Celery.
    Raises :exc:`ImproperlyConfigured` for anything that the type cannot hold.
    """
    kind = row.type.removesuffix(" | none")
    nullable = kind != row.type
    if value is None or (nullable and isinstance(value, str) and value.strip().lower() in ("none", "")):
        return None if nullable else row.default
    read, hint = READERS[kind]
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError) as exc:
        alias = "" if given_as == row.name else f" (written {given_as!r})"
        raise ImproperlyConfigured(
            f"setting {row.name!r}{alias} in {where} must be {row.type}, not {_show(row, value)}; give {hint}"
        ) from exc


def _show(row: Setting, value: Any) -> str:
    # The value of a password or of a URL never goes into a traceback.
    if row.type == "url" or any(word in row.name for word in ("password", "secret", "key")):
        return f"a {type(value).__name__}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _bool(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return _WORDS[value.strip().lower()]
        except KeyError:
            raise ValueError(value) from None
    if isinstance(value, int) or (isinstance(value, float) and value in (0.0, 1.0)):
        return bool(value)
    raise TypeError(value)


def _number(value: Any) -> float | int:
    # False is a common way to write "off"; True says nothing about how much.
    if value is True:
        raise ValueError(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        value = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
    elif isinstance(value, bool):
        value = 0
    elif not isinstance(value, (int, float)):
        # Decimal and numpy's numbers are numbers; a list or an object is not.
        value = float(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(value)
    return value  # type: ignore[no-any-return]


def _int(value: Any) -> int:
    if isinstance(value, timedelta):
        raise TypeError(value)
    number = _number(value)
    if int(number) != number:
        raise ValueError(value)
    return int(number)


def _float(value: Any) -> float:
    return _number(value)


def _positive(value: Any) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        raise ValueError(value)
    return number


def _seconds(value: Any) -> float | timedelta:
    return value if isinstance(value, timedelta) else _number(value)


def _int_or_auto(value: Any) -> int | str:
    return "auto" if isinstance(value, str) and value.strip().lower() == "auto" else _int(value)


def _string(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    # A framework's lazily translated string has a string's methods; other objects are a mistake.
    if not hasattr(value, "casefold"):
        raise TypeError(value)
    return str(value)


def _timezone(value: Any) -> str | tzinfo:
    return value if isinstance(value, tzinfo) else _string(value)


def _bytes(value: Any) -> bytes | str:
    if not isinstance(value, (bytes, str)):
        raise TypeError(value)
    return value


def _keys(value: Any) -> Any:
    several = value if isinstance(value, (list, tuple)) else (value,)
    if not several or not all(isinstance(part, (str, bytes, os.PathLike)) and part for part in several):
        raise TypeError(type(value))
    return value


def _dict(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise TypeError(value)
    return value


def _bool_or_dict(value: Any) -> bool | Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    return _dict(value) if isinstance(value, str) and value.lstrip().startswith("{") else _bool(value)


def _items(value: Any) -> Any:
    if isinstance(value, str):
        text = value.strip()
        found = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
        return [part for part in found if part != ""]
    if isinstance(value, Mapping) or not isinstance(value, (Sequence, set, frozenset)) or isinstance(value, bytes):
        raise TypeError(value)
    return value


def _tuple(value: Any) -> Any:
    return tuple(_items(value)) if isinstance(value, str) else _items(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, (int, float, timedelta)) and not isinstance(value, bool):
        value = [value]
    numbers = tuple(_number(part) for part in _items(value))
    if not numbers or any(number < 0 for number in numbers):
        raise ValueError(value)
    return numbers


def _url(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value:
        return [_string(part) for part in value]
    return _string(value)


def _choice(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        word = _string(value).strip().lower()
        if word not in words:
            raise ValueError(value)
        return word

    return read


def _any(value: Any) -> Any:
    return value


READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "any": (_any, "any value"),
    "bool": (_bool, "True or False, or one of the words true, false, yes, no, on, off, 1, 0"),
    "bool | dict": (_bool_or_dict, "True, False or a dict of options"),
    "bytes": (_bytes, "bytes or a string"),
    "dict": (_dict, "a dict, or a string with a JSON object"),
    "float": (_float, "a number, such as 2.5"),
    "int": (_int, "a whole number, such as 4"),
    "int | auto": (_int_or_auto, 'a whole number, such as 4, or "auto"'),
    "keys": (_keys, 'text or bytes of at least 16 characters, "file:<path>", or a list of them'),
    "list": (_items, "a list, or a string with commas"),
    "numbers": (_numbers, "a list of numbers of at least 0, such as (1, 5, 30)"),
    "positive": (_positive, "a number above 0, such as 2.5"),
    "requeue | retry | fail": (_choice("requeue", "retry", "fail"), '"requeue", "retry" or "fail"'),
    "seconds": (_seconds, "a number of seconds or a timedelta"),
    "strict": (_choice("strict"), '"strict", or None'),
    "string": (_string, "a string"),
    "symbol": (_any, "a string or the object itself"),
    "timezone": (_timezone, "a zone's name, such as Europe/Berlin, or a tzinfo"),
    "tuple": (_tuple, "a tuple or list, or a string with commas"),
    "url": (_url, "a URL such as redis://localhost:6379/0, or a list of them"),
}
"""How each type of the table is read, and what to write when it cannot be."""
