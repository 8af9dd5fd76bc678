"""AMQP 0-9-1 as bytes: the methods that we send and hear, and the content that goes with some of them.

The coding of values is py-amqp's; sending and receiving are not, because its calls have no deadline and read a frame
in three system calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

from amqp.serialization import dumps, loads  # type: ignore[import-untyped]

from umbel.brokers.rabbitmq.tables import read_properties, write_properties
from umbel.exceptions import EncodeError

Method = tuple[int, int]

CONNECTION_CLOSE: Final = (10, 50)
CONNECTION_CLOSE_OK: Final = (10, 51)
BLOCKED: Final = (10, 60)
UNBLOCKED: Final = (10, 61)
CHANNEL_OPEN: Final = (20, 10)
CHANNEL_OPEN_OK: Final = (20, 11)
CHANNEL_CLOSE: Final = (20, 40)
CHANNEL_CLOSE_OK: Final = (20, 41)
EXCHANGE_DECLARE: Final = (40, 10)
EXCHANGE_DECLARE_OK: Final = (40, 11)
EXCHANGE_DELETE: Final = (40, 20)
EXCHANGE_DELETE_OK: Final = (40, 21)
EXCHANGE_BIND: Final = (40, 30)
EXCHANGE_BIND_OK: Final = (40, 31)
QUEUE_DECLARE: Final = (50, 10)
QUEUE_DECLARE_OK: Final = (50, 11)
QUEUE_BIND: Final = (50, 20)
QUEUE_BIND_OK: Final = (50, 21)
QUEUE_PURGE: Final = (50, 30)
QUEUE_PURGE_OK: Final = (50, 31)
QUEUE_DELETE: Final = (50, 40)
QUEUE_DELETE_OK: Final = (50, 41)
QOS: Final = (60, 10)
QOS_OK: Final = (60, 11)
CONSUME: Final = (60, 20)
CONSUME_OK: Final = (60, 21)
CANCEL: Final = (60, 30)
CANCEL_OK: Final = (60, 31)
PUBLISH: Final = (60, 40)
RETURN: Final = (60, 50)
DELIVER: Final = (60, 60)
GET: Final = (60, 70)
GET_OK: Final = (60, 71)
GET_EMPTY: Final = (60, 72)
ACK: Final = (60, 80)
NACK: Final = (60, 120)
CONFIRM_SELECT: Final = (85, 10)
CONFIRM_SELECT_OK: Final = (85, 11)

#: What the arguments of the methods that we send look like, in py-amqp's letters.
_SENT: Final[Mapping[Method, str]] = {
    CONNECTION_CLOSE: "BsBB",
    CONNECTION_CLOSE_OK: "",
    CHANNEL_OPEN: "s",
    CHANNEL_CLOSE: "BsBB",
    CHANNEL_CLOSE_OK: "",
    EXCHANGE_DECLARE: "BssbbbbbF",
    EXCHANGE_DELETE: "Bsbb",
    EXCHANGE_BIND: "BsssbF",
    QUEUE_DECLARE: "BsbbbbbF",
    QUEUE_BIND: "BsssbF",
    QUEUE_PURGE: "Bsb",
    QUEUE_DELETE: "Bsbbb",
    QOS: "lBb",
    CONSUME: "BssbbbbF",
    CANCEL: "sb",
    CANCEL_OK: "s",
    GET: "Bsb",
    ACK: "Lb",
    NACK: "Lbb",
    CONFIRM_SELECT: "b",
}
#: The same for those that we hear and whose arguments matter.
_HEARD: Final[Mapping[Method, str]] = {
    CONNECTION_CLOSE: "BsBB",
    BLOCKED: "s",
    CHANNEL_CLOSE: "BsBB",
    QUEUE_DECLARE_OK: "sll",
    QUEUE_PURGE_OK: "l",
    QUEUE_DELETE_OK: "l",
    CONSUME_OK: "s",
    CANCEL: "sb",
    CANCEL_OK: "s",
    RETURN: "Bsss",
    DELIVER: "sLbss",
    GET_OK: "Lbssl",
    ACK: "Lb",
    NACK: "Lbb",
}
WITH_CONTENT: Final = frozenset({RETURN, DELIVER, GET_OK})

METHOD_FRAME: Final = 1
HEADER_FRAME: Final = 2
BODY_FRAME: Final = 3
HEARTBEAT_FRAME: Final = 8
HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
END: Final = 0xCE
HEAD: Final = Struct(">BHI")  # type, channel, length
METHOD: Final = Struct(">HH")
CONTENT: Final = Struct(">HHQ")  # class, weight, length of the body
_END: Final = b"\xce"


class Content(NamedTuple):
    """A message as it came: the arguments of the method that brought it, its properties and its body."""

    args: tuple[Any, ...]
    properties: Mapping[str, Any]
    body: bytes


def method(channel: int, name: Method, *args: Any) -> bytes:
    """Return the frame of one method. :exc:`EncodeError` for a name or a value that AMQP has no form for."""
    try:
        payload: bytes = METHOD.pack(*name) + dumps(_SENT[name], args)
    except Exception as error:
        # py-amqp lets through whatever struct and its own checks raise; none of it speaks of the server.
        raise EncodeError(f"AMQP cannot carry {_shown(args)}: {error}") from error
    return HEAD.pack(METHOD_FRAME, channel, len(payload)) + payload + _END


def declare_queue(
    name: str,
    *,
    passive: bool = False,
    durable: bool = True,
    exclusive: bool = False,
    auto_delete: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Return the arguments of QUEUE_DECLARE. ``passive`` only asks whether it is there."""
    return 0, name, passive, durable, exclusive, auto_delete, False, arguments or {}


def declare_exchange(name: str, kind: str, *, passive: bool = False, durable: bool = True) -> tuple[Any, ...]:
    """Return the arguments of EXCHANGE_DECLARE. ``passive`` only asks whether it is there."""
    return 0, name, kind, passive, durable, False, False, False, {}


def bind(target: str, source: str, key: str) -> tuple[Any, ...]:
    """Return the arguments of QUEUE_BIND and of EXCHANGE_BIND."""
    return 0, target, source, key, False, {}


def encoded(properties: Mapping[str, Any]) -> bytes:
    """Return the properties of a message as bytes. :exc:`EncodeError` for what AMQP has no form for."""
    try:
        return write_properties(properties)
    except Exception as error:
        # As in method(): a header may be of any type, and a property of any length.
        raise EncodeError(f"AMQP cannot carry these headers or properties: {error}") from error


def publish(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    """Return the frame of PUBLISH: the same as :func:`method`, in a quarter of its time."""
    payload = b"\0<\0(\0\0" + short(exchange) + short(key) + (b"\1" if mandatory else b"\0")
    return HEAD.pack(METHOD_FRAME, channel, len(payload)) + payload + _END


def short(text: str) -> bytes:
    """Return a short text as bytes. :exc:`EncodeError` for a long one."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise EncodeError(f"AMQP cannot carry the name {text:.40}…: it has more than 255 bytes")
    return bytes((len(data),)) + data


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the frames of a message, with its :func:`encoded` properties, that follow the method that sends it."""
    header = CONTENT.pack(60, 0, len(body)) + properties
    frames = [HEAD.pack(HEADER_FRAME, channel, len(header)), header, _END]
    room = frame_max - 8
    for start in range(0, len(body), room):
        part = body[start : start + room]
        frames += [HEAD.pack(BODY_FRAME, channel, len(part)), part, _END]
    return b"".join(frames)


def arguments(name: Method, payload: bytes) -> tuple[Any, ...]:
    """Return the arguments of a method that was heard; none where they do not matter."""
    if name == DELIVER:
        return _delivered(payload)
    letters = _HEARD.get(name)
    return tuple(loads(letters, payload, 4)[0]) if letters else ()


def _delivered(payload: bytes) -> tuple[str, int, bool, str, str]:
    """Do :func:`arguments` for the method that comes most often: consumer, number, again, exchange, key."""
    at = 5 + payload[4]
    consumer = payload[5:at].decode()
    number = int.from_bytes(payload[at : at + 8], "big")
    again = payload[at + 8] & 1 == 1
    at += 9
    end = at + 1 + payload[at]
    return (
        consumer,
        number,
        again,
        payload[at + 1 : end].decode(),
        payload[end + 1 :].decode("utf-8", "surrogateescape"),
    )


def properties_of(payload: bytes) -> tuple[int, dict[str, Any]]:
    """Return the length of the body and the properties that a content header announces."""
    length: int = CONTENT.unpack_from(payload)[2]
    try:
        properties = read_properties(payload, 12)
    except (ValueError, IndexError, OverflowError, StructError):
        # Of another client, with types or bytes of its own: the body may still be shown to people.
        properties = {}
    return length, properties


def _shown(args: tuple[Any, ...]) -> str:
    return ", ".join(f"{each!r:.80}" for each in args if each)
