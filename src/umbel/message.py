"""Task messages: the envelope that a broker carries, and the call inside it, as Celery writes and reads them.

Written: protocol 2 (arguments in the body, everything else in the headers), and protocol 1 on request (everything in
the body). Read: both, the hybrid of both, and messages of other clients that leave out what they do not know.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from umbel.compression import DEFAULT_LIMIT, decompress
from umbel.envelope import Message, decode_envelope, encode_envelope
from umbel.exceptions import DecodeError, InvalidTaskError
from umbel.jsoncodec import json_loads
from umbel.saferepr import saferepr
from umbel.serialization import loads, refusal
from umbel.writing import ALL_HEADERS, DEFAULTS, CallHeaders, encode_call, origin_name

__all__ = [
    "Call",
    "CallHeaders",
    "Message",
    "checked_id",
    "decode_call",
    "decode_envelope",
    "encode_call",
    "encode_envelope",
    "origin_name",
    "read_headers",
    "saferepr",
]


class Call(msgspec.Struct, kw_only=True):
    """A decoded task message, whatever protocol it came in.

    ``headers`` holds every header of protocol 2, with defaults for those that were left out, and the user's own.
    """

    task: str
    id: str
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    headers: dict[str, Any] = msgspec.field(default_factory=dict)
    properties: dict[str, Any] = msgspec.field(default_factory=dict)
    retries: int = 0
    eta: str | None = None  # ISO 8601; without an offset it is UTC if ``utc``
    expires: str | None = None
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None  # the next step is the last one
    chord: Any = None
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    utc: bool = True


LONGEST_ID: Final = 255
LONGEST_NAME: Final = 1024
_SIGNATURES: Final = ("callbacks", "errbacks", "chain")


def read_headers(message: Message, accept: Collection[str] | None = None) -> tuple[str, str]:
    """Return the name and the id of the task that a message asks for; InvalidTaskError when it asks for none.

    The body is only decoded for protocol 1, which says nothing in the headers; then the errors of
    :func:`decode_call` may come too.
    """
    fields: Any = message.headers
    if "task" not in fields:
        fields = _payload(message, accept)
        if not isinstance(fields, dict):
            raise _no_task(message, fields)
    return _identity(message, fields)


def decode_call(message: Message, accept: Collection[str] | None = None, max_size: int = DEFAULT_LIMIT) -> Call:
    """Return the call that a message holds.

    ContentDisallowed when the body is of a type that is not accepted; DecodeError when it cannot be read;
    InvalidTaskError when it is read and does not describe a call. The message itself is never changed.

    :param accept: serializer names and content types; None for JSON alone.
    :param max_size: the most bytes that the body may have once it is unpacked; DecodeError for more.
    """
    payload = _payload(message, accept, max_size)
    if isinstance(payload, dict):
        return _call_from_dict(message, payload)
    headers = message.headers
    if "task" not in headers or not isinstance(payload, list | tuple) or not 2 <= len(payload) <= 3:
        raise _no_task(message, payload)
    if not ALL_HEADERS.issubset(headers):
        headers = _filled(headers)
    return _call(message, headers, payload)


def _payload(message: Message, accept: Collection[str] | None, max_size: int = DEFAULT_LIMIT) -> Any:
    body = message.body
    if len(body) > max_size:
        raise DecodeError(f"its body has {len(body)} bytes, more than max_message_size ({max_size})", None, body)
    compression = message.headers.get("compression")
    if not compression and message.content_type == "application/json" and (accept is None or "json" in accept):
        return json_loads(body)
    refused = refusal(message.content_type, accept, body)
    if refused is not None:  # before anything of it is unpacked
        raise refused
    if compression:
        body = decompress(body, str(compression), max_size)
    return loads(body, message.content_type, message.content_encoding, accept)


def _call_from_dict(message: Message, body: dict[str, Any]) -> Call:
    """Read protocol 1, and the hybrid that has protocol 1's body and the headers of protocol 2."""
    own = {name: body[name] for name in ALL_HEADERS & body.keys()}
    if body.get("taskset"):
        own["group"] = body["taskset"]
    headers = _filled({**own, **message.headers})
    args, kwargs = body.get("args"), body.get("kwargs")
    if headers["argsrepr"] is None:
        headers["argsrepr"] = saferepr(args or ())
        headers["kwargsrepr"] = saferepr(kwargs or {})
    embed = {name: body.get(name) for name in ("callbacks", "errbacks", "chord")}
    return _call(message, headers, (args, kwargs, embed), utc=bool(body.get("utc", True)))


def _filled(headers: dict[str, Any]) -> dict[str, Any]:
    filled = {"lang": None, "task": None, "id": None, **DEFAULTS, **headers}
    if not filled["root_id"]:
        filled["root_id"] = filled["id"]
    if filled["stamps"] is None:
        filled["stamps"] = {}
    if not filled["timelimit"]:
        filled["timelimit"] = [None, None]
    return filled


def _call(message: Message, headers: dict[str, Any], body: Sequence[Any], *, utc: bool = True) -> Call:
    task, id = _identity(message, headers)
    args = [] if body[0] is None else body[0]
    kwargs = {} if body[1] is None else body[1]
    embed = body[2] if len(body) == 3 and body[2] is not None else {}
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict) or not isinstance(embed, dict):
        raise InvalidTaskError(
            f"task {task}[{id}]: a body must hold a list of arguments, a mapping of keyword arguments and a mapping of "
            f"follow-ups, not {type(args).__name__}, {type(kwargs).__name__} and {type(embed).__name__}"
        )
    retries = headers["retries"]
    if type(retries) is not int:
        retries = _integer(task, id, retries)
    limits = headers["timelimit"]
    if type(limits) is not list or len(limits) != 2 or limits[0] is not None or limits[1] is not None:
        _check_limits(task, id, limits)
    eta, expires = headers["eta"], headers["expires"]
    call = Call(
        task=task,
        id=id,
        args=args,
        kwargs=kwargs,
        headers=headers,
        properties=message.properties,
        retries=retries,
        eta=_moment(task, id, "eta", eta) if eta is not None else None,
        expires=_moment(task, id, "expires", expires) if expires is not None else None,
        chord=embed.get("chord"),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        utc=utc,
    )
    for name in _SIGNATURES:
        if embed.get(name) is not None:
            setattr(call, name, _signatures(task, id, name, embed[name]))
    if call.chord is not None:
        _signatures(task, id, "chord", call.chord)
    return call


def _identity(message: Message, fields: dict[str, Any]) -> tuple[str, str]:
    task, id = fields.get("task"), fields.get("id")
    if not isinstance(task, str) or not isinstance(id, str) or not task or not id:
        raise _no_task(message, fields)
    if len(id) > LONGEST_ID or len(task) > LONGEST_NAME or not id.isprintable():
        # An id goes into logs, keys and pages, where a line break or a terminal's escape would do harm. A name is
        # only ever shown as it is where a task of this app has it.
        raise InvalidTaskError(
            f"task {task!r:.100}[{id!r:.100}]: an id has at most {LONGEST_ID} characters, all of them printable, and a "
            f"name at most {LONGEST_NAME}"
        )
    return task, id


def checked_id(id: Any) -> str:
    """Return the id that a caller wants for a task, as text; ``ValueError`` if a worker would refuse it."""
    if not isinstance(id, str):
        if isinstance(id, UUID):
            return str(id)
        raise ValueError(f"task_id must be text or a uuid.UUID, not {id!r:.100}; for a number give str() of it")
    if len(id) > LONGEST_ID or not id.isprintable():
        raise ValueError(f"task_id must be at most {LONGEST_ID} printable characters, not {id[:100]!r}")
    return id


def _no_task(message: Message, found: Any) -> InvalidTaskError:
    names = ", ".join(f"{name!r:.40}" for name in sorted(map(str, message.headers))[:30]) or "none"
    return InvalidTaskError(
        f"message is no task: it needs 'task' and 'id' as text, in the headers or in a body that is a mapping "
        f"(headers: {names}; content type {message.content_type:.100}; found a {type(found).__name__})"
    )


def _integer(task: str, id: str, value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTaskError(f"task {task}[{id}]: retries must be a number, not {value!r:.80}") from error


def _moment(task: str, id: str, name: str, value: Any) -> str | None:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        if not value:
            return None
        try:
            datetime.fromisoformat(value)
            return value
        except ValueError:
            pass
    raise InvalidTaskError(f"task {task}[{id}]: {name} must be an ISO 8601 text, not {value!r:.80}")


def _check_limits(task: str, id: str, value: Any) -> None:
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(each is None or isinstance(each, int | float) for each in value):
        raise InvalidTaskError(
            f"task {task}[{id}]: timelimit must be two numbers of seconds or null, not {value!r:.80}"
        )


def _signatures(task: str, id: str, name: str, value: Any) -> list[Any]:
    found = list(value) if isinstance(value, list | tuple) else [value]
    for each in found:
        # Looked at before the task runs: afterwards nobody could be told.
        if not isinstance(each, dict) or not isinstance(each.get("task"), str):
            raise InvalidTaskError(f"task {task}[{id}]: {name} must hold signatures, not {each!r:.80}")
    return found
