"""Messages of calls that are all alike but for their ids and arguments, written without building them anew."""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from umbel.compression import DEFAULT_LIMIT
from umbel.envelope import Message, encode_envelope
from umbel.jsoncodec import encode_text
from umbel.nesting import too_deep
from umbel.saferepr import saferepr
from umbel.writing import NO_FOLLOW_UPS, encode_call, origin_name

_quoted: Final = msgspec.json.Encoder().encode
_HOLES: Final = ("body", "id", "argsrepr", "kwargsrepr", "origin", "reply_to", "tag")  # in the order of write()


class Template:
    """The envelope of one task's plain calls, with holes for what changes from call to call.

    :param fields: keywords of :func:`~umbel.writing.encode_call` that are the same for all of them. The serializer
        must be JSON, without compression, in protocol 2.
    """

    __slots__ = ("_max_size", "_pick", "_text")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._max_size = fields.get("max_size", DEFAULT_LIMIT)
        # Nothing of the user's can look like a hole: the mark is random.
        mark = os.urandom(8).hex()
        hole = {name: f"{mark}{index}{mark}" for index, name in enumerate(_HOLES)}
        given = {name: hole[name] for name in ("argsrepr", "kwargsrepr", "origin", "reply_to")}
        message = encode_call(**{**fields, **given, "id": hole["id"]})
        message.properties["delivery_tag"] = hole["tag"]
        message.body = bytes.fromhex("00")
        raw = encode_envelope(message).replace(b'"body":"AA=="', f'"body":"{hole["body"]}"'.encode())
        # These values come with their quotes.
        for name in given:
            raw = raw.replace(f'"{hole[name]}"'.encode(), hole[name].encode())
        parts = re.split(f"{mark}([0-9]){mark}".encode(), raw.replace(b"%", b"%%"))
        self._text = b"%b".join(parts[::2])
        self._pick = itemgetter(*(int(digit) for digit in parts[1::2]))

    def write(self, id: str, args: Sequence[Any], kwargs: Mapping[str, Any], reply_to: str) -> Message:
        """Return the message of one call.

        What the arguments raise when they are encoded comes through as it is; ``OverflowError`` if they are too long
        or nested too deeply.
        """
        text = f"[{encode_text(args)}, {encode_text(kwargs) if kwargs else '{}'}, {NO_FOLLOW_UPS}]"
        body = text.encode("ascii")
        if len(body) > self._max_size or too_deep(body):
            raise OverflowError(len(body))
        values = (
            binascii.b2a_base64(body, newline=False),
            id.encode("ascii"),
            _quoted(saferepr(args)) if args else b'"()"',
            _quoted(saferepr(kwargs)) if kwargs else b'"{}"',
            _quoted(origin_name()),
            _quoted(reply_to),
            os.urandom(16).hex().encode(),
        )
        return Message.sealed(self._text % self._pick(values))
