"""Messages, and the JSON envelope in which brokers without headers of their own carry them, as kombu writes it."""

from __future__ import annotations

import binascii
import json
from math import isfinite
from typing import Any, Final, NoReturn

import msgspec

from umbel.exceptions import DecodeError, EncodeError
from umbel.jsoncodec import decode_extra, encode_strict, explain_parts, may_have_tags
from umbel.nesting import TOO_DEEP, too_deep

_PARTS: Final = ("body", "content_type", "content_encoding", "headers", "properties")


class Message:
    """One message as a broker carries it: readable headers and an opaque body.

    ``raw`` is its envelope, where that is written already and nobody has looked inside.
    """

    __slots__ = (*_PARTS, "raw")
    raw: bytes | None
    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]

    def __init__(
        self,
        *,
        body: bytes,
        content_type: str = "application/json",
        content_encoding: str = "utf-8",
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> None:
        self.raw = None
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = {} if headers is None else headers
        self.properties = {} if properties is None else properties

    @classmethod
    def sealed(cls, raw: bytes) -> Message:
        """Return the message of an envelope, which is read when a part is asked for. Raises nothing here."""
        message = cls.__new__(cls)
        message.raw = raw
        return message

    def replace(self, **parts: Any) -> Message:
        """Return a copy with other parts. The rest is shared with this one."""
        return Message(**{part: parts[part] if part in parts else getattr(self, part) for part in _PARTS})

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there: a part of a sealed message.
        if name not in _PARTS or self.raw is None:
            raise AttributeError(f"a Message has no {name!r}")
        opened = decode_envelope(self.raw)
        for part in _PARTS:
            setattr(self, part, getattr(opened, part))
        self.raw = None  # from here on it may be changed
        return getattr(self, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return all(getattr(self, part) == getattr(other, part) for part in _PARTS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Message({', '.join(f'{part}={getattr(self, part)!r}' for part in _PARTS)})"


class _Envelope(msgspec.Struct, rename={"content_type": "content-type", "content_encoding": "content-encoding"}):
    body: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None


_write_json: Final = msgspec.json.Encoder().encode
_read_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_SCALARS: Final = frozenset({str, int, bool, type(None)})


def encode_envelope(message: Message) -> bytes:
    """Return the message as kombu's JSON envelope, with the body in base64. EncodeError for headers JSON has not."""
    if message.raw is not None:
        return message.raw
    headers = message.headers
    properties = message.properties
    if properties.get("body_encoding") != "base64":
        properties = {**properties, "body_encoding": "base64"}
    envelope = {
        "body": message.body,
        "content-encoding": message.content_encoding,
        "content-type": message.content_type,
        "headers": headers,
        "properties": properties,
    }
    # The fast encoder writes some types its own way, so it gets only those that both write alike.
    if _is_plain(headers) and _is_plain(properties):
        try:
            return _write_json(envelope)
        except (UnicodeEncodeError, TypeError):
            pass  # a lone surrogate, an odd key
    envelope["body"] = binascii.b2a_base64(message.body, newline=False).decode("ascii")
    try:
        return encode_strict(envelope).encode("ascii")
    except Exception as error:  # __json__() and registered encoders are user code: anything may come
        parts = {"its headers": headers, "its properties": properties}
        raise EncodeError(f"message: {explain_parts(parts, encode_strict, 'json', error)}") from error


def decode_envelope(raw: bytes) -> Message:
    """Return the message of a kombu envelope; keys that are missing get defaults. DecodeError when it is none."""
    try:
        if too_deep(raw):
            raise ValueError(TOO_DEEP)
        envelope = _read_tagged(raw) if may_have_tags(raw) else _read_plain(raw)
        properties = envelope.properties or {}
        body = _decode_body(envelope, properties.get("body_encoding"))
    except Exception as error:  # registered decoders are user code: anything may come
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DecodeError(f"not a message envelope: {reason}", None, raw) from error
    return Message(
        body=body,
        content_type=envelope.content_type or "application/json",
        content_encoding=envelope.content_encoding or "utf-8",
        headers=envelope.headers or {},
        properties=properties,
    )


CUT: Final = "umbel-cut"
"""The header of what is kept of a message whose body was too large to be kept; its value is the size in bytes."""

KEPT: Final = 65536
"""The most bytes that are kept of a message that is not kept whole."""


def remains(raw: bytes, message: Message | None) -> bytes:
    """Return what is kept of a message that is too large, or that is none: an envelope without its body, or a start.

    :param message: what was read from it, if something was.
    """
    try:
        found = message.replace(body=b"") if message is not None else _without_body(raw)
        size = len(raw) if message is None else len(message.body)
        envelope = encode_envelope(found.replace(headers={**found.headers, CUT: size}))
    except (msgspec.DecodeError, RecursionError, EncodeError):
        return raw[:KEPT]
    return envelope if len(envelope) <= KEPT else raw[:KEPT]


class _Outside(msgspec.Struct, rename={"content_type": "content-type", "content_encoding": "content-encoding"}):
    """An envelope whose body is passed over."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None


def _without_body(raw: bytes) -> Message:
    found = msgspec.json.decode(raw, type=_Outside)
    return Message(
        body=b"",
        content_type=found.content_type or "application/json",
        content_encoding=found.content_encoding or "utf-8",
        headers=found.headers,
        properties=found.properties,
    )


def _decode_body(envelope: _Envelope, encoding: Any) -> bytes:
    if not envelope.body:
        return b""
    if encoding == "base64":
        return binascii.a2b_base64(envelope.body)
    if encoding:
        raise ValueError(f"unknown body_encoding {encoding!r}")
    return envelope.body.encode("utf-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_read_json: Final = json.JSONDecoder(object_hook=decode_extra, parse_constant=_refuse_constant).decode


def _read_plain(raw: bytes) -> _Envelope:
    try:
        return _read_envelope(raw)
    except msgspec.DecodeError:
        return _read_tagged(raw)  # lone surrogates are refused there and written by kombu


def _read_tagged(raw: bytes) -> _Envelope:
    return msgspec.convert(_read_json(raw.decode("utf-8")), _Envelope)


def _is_plain(fields: Any) -> bool:
    for value in fields.values() if type(fields) is dict else fields:
        kind = type(value)
        if kind in _SCALARS:
            continue
        if kind is dict or kind is list or kind is tuple:
            if value and not _is_plain(value):
                return False
        elif kind is not float or not isfinite(value):
            return False
    return True
