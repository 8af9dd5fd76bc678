"""Header tables and message properties as bytes, in RabbitMQ's dialect of AMQP 0-9-1.

https://www.rabbitmq.com/amqp-0-9-1-errata.html#section_3 lists the letters; other dialects use some of them
differently. Written here because each message has a table of some twenty headers, and py-amqp's reader took more time
for it than everything else together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from typing import Any, Final

_LONG: Final = Struct(">I")
_INT: Final = Struct(">ci")
_INT64: Final = Struct(">cq")
_DOUBLE: Final = Struct(">cd")
_TIME: Final = Struct(">cQ")
_DECIMAL: Final = Struct(">cBi")
_FIXED: Final[Mapping[int, Struct]] = {
    ord(letter): Struct(">" + form)
    for letter, form in {
        "b": "b", "B": "B", "s": "h", "U": "h", "u": "H", "I": "i", "i": "I", "l": "q", "L": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip

#: The properties of a message by the bits of their flags, from the highest on: ``s`` is a short text, ``F`` a table,
#: ``o`` one byte and ``L`` eight.
PROPERTIES: Final = (
    ("content_type", "s"), ("content_encoding", "s"), ("headers", "F"), ("delivery_mode", "o"), ("priority", "o"),
    ("correlation_id", "s"), ("reply_to", "s"), ("expiration", "s"), ("message_id", "s"), ("timestamp", "L"),
    ("type", "s"), ("user_id", "s"), ("app_id", "s"), ("cluster_id", "s"),
)  # fmt: skip
_BITS: Final = tuple((0x8000 >> at, name, letter) for at, (name, letter) in enumerate(PROPERTIES))
_DEEPEST: Final = 64  # tables inside tables; a message of Celery's has four

# The names of headers are few and come again and again.
_names: dict[bytes, str] = {}
_MOST_NAMES: Final = 1000


# -- reading ---------------------------------------------------------------------------------------------------------


def read_properties(data: bytes, at: int) -> dict[str, Any]:
    """Return the properties that start at this byte. Raises ValueError, IndexError or struct.error for what is none."""
    flags = data[at] << 8 | data[at + 1]
    at += 2
    found: dict[str, Any] = {}
    for bit, name, letter in _BITS:
        if not flags & bit:
            continue
        if letter == "s":
            end = at + 1 + data[at]
            found[name] = data[at + 1 : end].decode("utf-8", "surrogateescape")
            at = end
        elif letter == "o":
            found[name] = data[at]
            at += 1
        elif letter == "F":
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            found[name] = read_table(data, at + 4, end, 0)
            at = end
        else:
            found[name] = int.from_bytes(data[at : at + 8], "big")
            at += 8
    return found


def read_table(data: bytes, at: int, end: int, depth: int) -> dict[str, Any]:
    """Return the table between these bytes."""
    found: dict[str, Any] = {}
    while at < end:
        stop = at + 1 + data[at]
        raw = data[at + 1 : stop]
        name = _names.get(raw)
        if name is None:
            name = raw.decode("utf-8", "surrogateescape")
            if len(_names) < _MOST_NAMES:
                _names[raw] = name
        kind = data[stop]
        at = stop + 1
        # The usual ones first, and here: a call for each would take as long as the rest.
        if kind == 83:  # S
            stop = at + 4 + int.from_bytes(data[at : at + 4], "big")
            try:
                found[name] = data[at + 4 : stop].decode()
            except UnicodeDecodeError:
                found[name] = data[at + 4 : stop]
            at = stop
        elif kind == 86:  # V
            found[name] = None
        else:
            found[name], at = _read_value(kind, data, at, depth)
    return found


def _read_value(kind: int, data: bytes, at: int, depth: int) -> tuple[Any, int]:
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(data, at)[0], at + fixed.size
    if kind == 116:  # t
        return data[at] != 0, at + 1
    if kind == 86:  # V
        return None, at
    if kind == 84:  # T
        return datetime.fromtimestamp(int.from_bytes(data[at : at + 8], "big"), UTC), at + 8
    if kind == 68:  # D
        return Decimal(int.from_bytes(data[at + 1 : at + 5], "big", signed=True)).scaleb(-data[at]), at + 5
    start = at + 4
    end = start + int.from_bytes(data[at:start], "big")
    if kind == 83:  # S
        try:
            return data[start:end].decode(), end
        except UnicodeDecodeError:
            return data[start:end], end
    if kind == 120:  # x
        return data[start:end], end
    if depth >= _DEEPEST:
        raise ValueError("tables are nested too deeply")
    if kind == 70:  # F
        return read_table(data, start, end, depth + 1), end
    if kind == 65:  # A
        values = []
        while start < end:
            value, start = _read_value(data[start], data, start + 1, depth + 1)
            values.append(value)
        return values, end
    raise ValueError(f"a table has a value of unknown type {chr(kind)!r}")


# -- writing ---------------------------------------------------------------------------------------------------------


def write_properties(properties: Mapping[str, Any]) -> bytes:
    """Return the bytes of these properties. Raises ValueError and its kin for what AMQP has no form for."""
    flags = 0
    parts = [b""]
    for bit, name, letter in _BITS:
        value = properties.get(name)
        if value is None:
            continue
        flags |= bit
        if letter == "s":
            parts.append(_short(str(value)))
        elif letter == "o":
            parts.append(bytes((value,)))
        elif letter == "F":
            parts.append(write_table(value))
        else:
            parts.append(int(value).to_bytes(8, "big"))
    parts[0] = flags.to_bytes(2, "big")
    return b"".join(parts)


def _short(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError(f"{text[:40]!r}… has more than 255 bytes")
    return bytes((len(data),)) + data


def write_table(table: Mapping[str, Any]) -> bytes:
    """Return the bytes of a table, with its length before them."""
    parts: list[bytes] = []
    add = parts.append
    for name, value in table.items():
        add(_short(name if type(name) is str else str(name)))
        if type(value) is str:
            data = value.encode("utf-8", "surrogatepass")
            add(b"S" + _LONG.pack(len(data)) + data)
        elif value is None:
            add(b"V")
        else:
            _write_value(value, add)
    data = b"".join(parts)
    return _LONG.pack(len(data)) + data


def _write_value(value: Any, add: Callable[[bytes], None]) -> None:
    if isinstance(value, str | bytes):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        add(b"S" + _LONG.pack(len(data)) + data)
    elif value is None:
        add(b"V")
    elif isinstance(value, bool):
        add(b"t\x01" if value else b"t\x00")
    elif isinstance(value, int):
        add(_INT.pack(b"I", value) if -(2**31) <= value < 2**31 else _INT64.pack(b"l", value))
    elif isinstance(value, float):
        add(_DOUBLE.pack(b"d", value))
    elif isinstance(value, Mapping):
        add(b"F" + write_table(value))
    elif isinstance(value, Sequence):
        parts: list[bytes] = []
        for each in value:
            _write_value(each, parts.append)
        data = b"".join(parts)
        add(b"A" + _LONG.pack(len(data)) + data)
    elif isinstance(value, datetime):
        add(_TIME.pack(b"T", int(value.timestamp())))
    elif isinstance(value, Decimal):
        _, _, exponent = value.as_tuple()
        places = max(-int(exponent), 0)
        add(_DECIMAL.pack(b"D", places, int(value.scaleb(places))))
    else:
        raise ValueError(f"a value of type {type(value).__name__} has no form in a header")
