"""JSON as kombu writes and reads it: plain JSON, and ``{"__type__": ..., "__value__": ...}`` for a few more types.

Carried besides JSON's own: datetime, date, time, Decimal, UUID, bytes, objects with a ``__json__()`` method, Django's
lazy strings, and whatever :func:`register_type` added.
"""

from __future__ import annotations

import binascii
import json
import re
import sys
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final

import msgspec

from umbel.exceptions import DecodeError, EncodeError
from umbel.nesting import TOO_DEEP, too_deep

Encoder = Callable[[Any], Any]
Decoder = Callable[[Any], Any]

_TAG: Final = {"__type__", "__value__"}
# A key may be written with escapes, and then the bytes do not show it.
_ESCAPED_ASCII: Final = re.compile(rb"\\u00[567]")
_encoders: dict[type, tuple[str | None, Encoder]] = {}
_decoders: dict[str, Decoder] = {
    "bytes": lambda text: text.encode("utf-8"),
    "base64": binascii.a2b_base64,
}


def register_type(cls: type, marker: str | None, encoder: Encoder, decoder: Decoder = lambda value: value) -> None:
    """Make instances of a class and of its subclasses serializable as JSON, in this process.

    The reader needs the same registration. With ``marker=None`` the encoded value is sent bare, and nothing turns it
    back. Types are tried in the order of their registration; registering again replaces.
    """
    _encoders[cls] = (marker, encoder)
    if marker is not None:
        _decoders[marker] = decoder


register_type(datetime, "datetime", datetime.isoformat, datetime.fromisoformat)  # before date, its base
register_type(date, "date", date.isoformat, lambda text: datetime.fromisoformat(text).date())
register_type(time, "time", time.isoformat, time.fromisoformat)
register_type(Decimal, "decimal", str, Decimal)
register_type(uuid.UUID, "uuid", lambda value: {"hex": value.hex}, lambda fields: uuid.UUID(**fields))


def encode_extra(value: Any) -> Any:
    """Return what stands for a value that JSON has no notation for; TypeError when nothing does."""
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return reducer()
    # A lazy string can only exist where Django is imported already.
    django = sys.modules.get("django.utils.functional")
    if django is not None and isinstance(value, django.Promise):
        return str(value)
    for kind, (marker, encoder) in _encoders.items():
        if isinstance(value, kind):
            encoded = encoder(value)
            return encoded if marker is None else {"__type__": marker, "__value__": encoded}
    if isinstance(value, bytes):
        try:
            return {"__type__": "bytes", "__value__": value.decode("utf-8")}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": binascii.b2a_base64(value, newline=False).decode("ascii")}
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def decode_extra(fields: dict[str, Any]) -> Any:
    """Return the value that a decoded JSON object stands for: itself, unless it is tagged. Unknown tag: ValueError."""
    if fields.keys() != _TAG:
        return fields
    decoder = _decoders.get(fields["__type__"])
    if decoder is None:
        raise ValueError(
            f"unknown type tag {fields['__type__']!r:.100}; register_type() it in the process that reads it"
        )
    return decoder(fields["__value__"])


def make_encoder(*, allow_nan: bool, sort_keys: bool = False) -> Callable[[Any], str]:
    """Return an encoder of our types. Lets every error of the values through."""
    # Without the check for circles a circle ends as RecursionError, which is as good, and the rest is faster.
    slow = json.JSONEncoder(check_circular=False, allow_nan=allow_nan, sort_keys=sort_keys, default=encode_extra).encode
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return slow
    # JSONEncoder.encode makes one of these for each value, which takes longer than a small value itself.
    escape = json.encoder.encode_basestring_ascii
    chunks = make(None, encode_extra, escape, None, ": ", ", ", sort_keys, False, allow_nan)
    return lambda value: "".join(chunks(value, 0))


encode_text: Final = make_encoder(allow_nan=True)
"""Encode to the text that kombu would write. Lets every error of the values through."""

encode_strict: Final = make_encoder(allow_nan=False)
"""The same, with ValueError for NaN and the infinities, which JSON does not have."""


def json_dumps(value: Any) -> str:
    """Return the value as JSON text; EncodeError names the part that cannot be carried."""
    try:
        return encode_text(value)
    except Exception as error:  # __json__() and registered encoders are user code: anything may come
        raise EncodeError(explain(value, "the value", encode_text, "json", error)) from error


def json_loads(data: bytes | bytearray | memoryview | str) -> Any:
    """Return the value of JSON text, with tagged types restored; DecodeError when it is none."""
    try:
        if isinstance(data, str):
            if too_deep(data.encode("utf-8", "replace")):
                raise ValueError(TOO_DEEP)
            return _decode_json(data)
        if type(data) is not bytes:
            data = bytes(data)
        if too_deep(data):
            raise ValueError(TOO_DEEP)
        if not may_have_tags(data):
            try:
                return _decode_plain(data)
            except msgspec.MsgspecError:
                pass  # NaN, infinity and lone surrogates are refused there and allowed by kombu
        return _decode_json(data.decode("utf-8"))
    except Exception as error:  # registered decoders are user code: anything may come
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data)
        raise DecodeError(f"not valid JSON: {reason}", "application/json", raw) from error


_decode_plain: Final = msgspec.json.Decoder().decode
_decode_json: Final = json.JSONDecoder(object_hook=decode_extra).decode


def may_have_tags(raw: bytes) -> bool:
    """Say whether JSON bytes could hold a tagged value; False is certain."""
    return b"__type__" in raw or (b"\\" in raw and _ESCAPED_ASCII.search(raw) is not None)


# -- saying what is wrong ----------------------------------------------------------------------------------------


def explain(value: Any, path: str, encode: Callable[[Any], Any], serializer: str, error: BaseException) -> str:
    """Return a sentence that names the innermost part of the value that the encoder refuses, and what to do."""
    for _ in range(20):  # a circle has no innermost part
        found = _refused_child(value, path, encode)
        if found is None:
            break
        path, value, error = found
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{path} is of type {name}, which {serializer} cannot carry ({error}); {_advice(value, serializer, error)}"


def explain_parts(parts: dict[str, Any], encode: Callable[[Any], Any], serializer: str, error: BaseException) -> str:
    """Do what :func:`explain` does for the first of several named parts that is refused."""
    for name, value in parts.items():
        try:
            encode(value)
        except Exception as found:  # the same user code that failed before
            return explain(value, name, encode, serializer, found)
    return f"{serializer} cannot carry it ({error})"


def _refused_child(value: Any, path: str, encode: Callable[[Any], Any]) -> tuple[str, Any, BaseException] | None:
    if isinstance(value, dict):
        children = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return None
    for where, item in children:
        try:
            encode(item)
        except Exception as error:  # the same user code that failed before
            return where, item, error
    return None


def _advice(value: Any, serializer: str, error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it contains itself or is nested too deeply: pass flat data"
    if isinstance(value, dict):
        return "use strings as its keys"
    if isinstance(value, set | frozenset):
        return "pass list(...) of it"
    if hasattr(value, "pk"):
        return "pass its primary key and load it inside the task"
    if serializer == "json":
        return (
            "pass plain data (its id, a dict), give its class a __json__() method, "
            "or use umbel.serialization.register_type()"
        )
    return "pass plain data (its id, a dict)"
