"""``repr`` with a limit, as Celery writes ``argsrepr`` and ``kwargsrepr``.

Strings show as they are, nothing is escaped but the quote; what does not fit ends in ``...`` with every open bracket
closed. The work done is bounded by the limit, not by the size of the object.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from numbers import Number
from typing import Any, Final

_NUMBERS: Final = frozenset({int, bool, float, type(None)})
_SMALL: Final = 16


def saferepr(obj: Any, maxlen: int | None = 1024, maxlevels: int = 3) -> str:
    """Return a short text for any object. Never raises.

    :param maxlen: characters after which the rest is left out; the closing brackets come on top.
    :param maxlevels: containers nested deeper show as ``[...]``; 0 shows them all.
    """
    text = _quick(obj)
    if text is not None and (maxlen is None or len(text) < maxlen):
        return text
    writer = _Writer(maxlen, maxlevels)
    writer.write(obj)
    return "".join(writer.parts)


def _quick(obj: Any) -> str | None:
    """Return the repr of a small flat container of plain values, or None when it might differ from the slow way."""
    kind = type(obj)
    if kind is tuple or kind is list:
        values = obj
    elif kind is dict:
        values = obj.values()
        for key in obj:
            if type(key) is not str or not _is_plain(key):
                return None
    else:
        return None
    if len(obj) > _SMALL:
        return None
    for value in values:
        kind = type(value)
        if kind is str:
            if not _is_plain(value):
                return None
        elif kind not in _NUMBERS or (kind is int and value.bit_length() > 1024):
            return None
    return repr(obj)


def _is_plain(text: str) -> bool:
    return len(text) < 1024 and text.isprintable() and "'" not in text and "\\" not in text


class _Full(Exception):
    """The limit is reached and something had to be left out."""


class _Writer:
    """Writes one object piece by piece until the room is used up."""

    def __init__(self, room: int | None, maxlevels: int) -> None:
        self.parts: list[str] = []
        self._room = room
        self._maxlevels = maxlevels
        self._path: set[int] = set()

    def write(self, obj: Any) -> None:
        """Write the object; what does not fit is left out."""
        try:
            self._value(obj, 0)
        except _Full:
            pass

    def _put(self, text: str) -> None:
        if self._room is not None:
            if self._room <= 0:
                self.parts.append(", ...")
                raise _Full
            self._room -= len(text)
        self.parts.append(text)

    def _cut(self, text: str) -> str:
        if self._room and self._room > 0 and len(text) >= self._room:
            return text[: self._room].rsplit(" ", 1)[0] + "..."
        return text

    def _value(self, obj: Any, level: int) -> None:
        if isinstance(obj, Decimal):
            self._put(self._cut(_repr(obj)))
        elif isinstance(obj, Number):
            self._put(self._cut(_repr(obj, str)))
        elif isinstance(obj, str):
            self._put("'{}'".format(self._cut(obj).replace("'", "\\'")))
        elif isinstance(obj, bytes):
            self._put(self._bytes(obj))
        elif isinstance(obj, set | frozenset | tuple | dict | list):
            self._container(obj, level)
        else:
            self._put(self._cut(_repr(obj)))

    def _bytes(self, data: bytes) -> str:
        long = bool(self._room) and self._room is not None and len(data) > max(self._room, 0)
        chunk = data[: self._room] if long else data
        try:
            text = chunk.decode("utf-8")
        except UnicodeDecodeError:
            text = chunk.hex()
        return f"b'{text}...'" if long else f"b'{text}'"

    def _container(self, obj: Any, level: int) -> None:
        if isinstance(obj, set | frozenset) and not obj:
            self._put(self._cut(f"{type(obj).__name__}()"))
            return
        start, end = _brackets(obj)
        if self._maxlevels and level >= self._maxlevels:
            self._put(f"{start}...{end}")
        elif id(obj) in self._path:
            self._put(self._cut(f"<Recursion on {type(obj).__name__} with id={id(obj)}>"))
        else:
            self._put(start)
            self._path.add(id(obj))
            try:
                self._items(obj, level + 1)
            finally:
                # Closed also when the room is used up, so that the brackets always match.
                self._path.discard(id(obj))
                self.parts.append(end)
                if self._room is not None and self._room > 0:
                    self._room -= len(end)

    def _items(self, obj: Any, level: int) -> None:
        is_dict = isinstance(obj, dict)
        items: Iterable[Any] = obj.items() if is_dict else obj
        for index, item in enumerate(items):
            if index:
                self._put(", ")
            if is_dict:
                self._key(item[0])
                self._put(": ")
            self._value(item[1] if is_dict else item, level)

    def _key(self, key: Any) -> None:
        if self._room is not None and self._room <= 0:
            self._put("")
        self._put(saferepr(key, self._room, self._maxlevels))


def _brackets(obj: Any) -> tuple[str, str]:
    if isinstance(obj, dict):
        return "{", "}"
    if isinstance(obj, list):
        return "[", "]"
    if isinstance(obj, tuple):
        return "(", ",)" if len(obj) == 1 else ")"
    if type(obj) is set:
        return "{", "}"
    return f"{type(obj).__name__}({{", "})"


def _repr(obj: Any, convert: Any = repr) -> str:
    try:
        text: str = convert(obj)
    except Exception as error:  # __repr__ is user code: anything may come
        return f"<Unrepresentable {type(obj)!r}{id(obj):#x}: {error!r}>"
    return text
