"""Writing task messages: protocol 2, and protocol 1 on request."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, Unpack

from umbel.compression import DEFAULT_LIMIT, compress
from umbel.envelope import Message
from umbel.exceptions import EncodeError, ImproperlyConfigured
from umbel.jsoncodec import encode_text, explain_parts
from umbel.nesting import TOO_DEEP, too_deep
from umbel.saferepr import saferepr
from umbel.serialization import dumps


class CallHeaders(TypedDict, total=False):
    """What protocol 2 says about a call in its headers, besides task and id. What is left out gets a default."""

    shadow: str | None
    eta: str | None  # ISO 8601
    expires: str | None  # ISO 8601
    group: str | None
    group_index: int | None
    retries: int
    timelimit: Sequence[float | None]  # hard, then soft, in seconds
    root_id: str | None  # default: the id
    parent_id: str | None
    argsrepr: str | None  # default: computed
    kwargsrepr: str | None  # default: computed
    origin: str | None  # default: this process
    ignore_result: bool
    replaced_task_nesting: int
    stamped_headers: Sequence[str] | None
    stamps: Mapping[str, Any] | None


DEFAULTS: Final[Mapping[str, Any]] = {
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": (None, None),
    "root_id": None,
    "parent_id": None,
    "argsrepr": None,
    "kwargsrepr": None,
    "origin": None,
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": None,
}
ALL_HEADERS: Final = frozenset({"lang", "task", "id", *DEFAULTS})
_NOTHING: Final = (None, None, None, None)
NO_FOLLOW_UPS: Final = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
_origin: tuple[int, str] = (0, "")


def origin_name() -> str:
    """Return the name of this process as the sender of messages: ``gen<pid>@<host>``."""
    global _origin
    pid = os.getpid()  # asked each time, since a fork keeps the cache
    if _origin[0] != pid:
        _origin = (pid, f"gen{pid}@{socket.gethostname()}")
    return _origin[1]


def encode_call(
    *,
    task: str,
    id: str,
    args: Sequence[Any] | None = (),
    kwargs: Mapping[str, Any] | None = None,
    serializer: str = "json",
    compression: str | None = None,
    headers: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    errbacks: Sequence[Any] | None = None,
    chain: Sequence[Any] | None = None,
    chord: Any = None,
    protocol: int = 2,
    reply_to: str | None = None,
    correlation_id: str | None = None,
    priority: int | None = 0,
    delivery_mode: int = 2,
    exchange: str = "",
    routing_key: str = "",
    expiration: float | None = None,
    properties: Mapping[str, Any] | None = None,
    max_size: int = DEFAULT_LIMIT,
    **about: Unpack[CallHeaders],
) -> Message:
    """Return the message that asks for a task to be run.

    EncodeError names the argument that cannot be carried; TypeError when ``args`` is no list or tuple, or ``kwargs``
    no mapping. Every call makes a message of its own: its ``delivery_tag`` is new.

    :param headers: the user's own; they go beside the protocol's and win over them.
    :param protocol: 1 puts everything into the body, and has no chain and no origin.
    :param expiration: seconds after which the broker may drop it; goes as a text of milliseconds.
    :param properties: more properties; they win over the others.
    :param max_size: the most bytes of a body before compression; EncodeError for more: no worker would read it.
    """
    args, kwargs = _checked(task, args, kwargs)
    fields = _fields(task, id, args, kwargs, about)
    sent: dict[str, Any] = {
        "correlation_id": correlation_id or id,
        "reply_to": reply_to or "",
        "delivery_mode": delivery_mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "priority": priority or 0,
        "body_encoding": "base64",
        "delivery_tag": os.urandom(16).hex(),
    }
    if expiration is not None:
        sent["expiration"] = str(int(expiration * 1000))
    if properties:
        sent.update(properties)
    write_body = _body_v1 if protocol == 1 else _body_v2
    kind, encoding, body = write_body(fields, args, kwargs, (callbacks, errbacks, chain, chord), serializer)
    if len(body) > max_size:
        raise EncodeError(
            f"task {task}: its arguments take {len(body)} bytes, more than max_message_size ({max_size}); "
            "keep the data in a file or a database and pass where it is"
        )
    if protocol == 1:
        fields = {}
    if headers:
        fields.update(headers)
    if compression:
        body, fields["compression"] = compress(body, compression)
    return Message(body=body, content_type=kind, content_encoding=encoding, headers=fields, properties=sent)


def _checked(
    task: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[Sequence[Any], dict[str, Any]]:
    if args is None:
        args = ()
    elif not isinstance(args, list | tuple):
        raise TypeError(f"task {task}: args must be a list or tuple, not {type(args).__name__}")
    if kwargs is None:
        return args, {}
    if not isinstance(kwargs, Mapping):
        raise TypeError(f"task {task}: kwargs must be a mapping, not {type(kwargs).__name__}")
    return args, kwargs if isinstance(kwargs, dict) else dict(kwargs)


def _fields(task: str, id: str, args: Sequence[Any], kwargs: dict[str, Any], about: CallHeaders) -> dict[str, Any]:
    fields: dict[str, Any] = {"lang": "py", "task": task, "id": id, **DEFAULTS, **about}
    if len(fields) != len(ALL_HEADERS):
        raise TypeError(f"task {task}: unknown options {sorted(fields.keys() - ALL_HEADERS)}")
    fields["timelimit"] = list(fields["timelimit"] or (None, None))
    if not fields["root_id"]:
        fields["root_id"] = id
    if fields["argsrepr"] is None:
        fields["argsrepr"] = saferepr(args)
    if fields["kwargsrepr"] is None:
        fields["kwargsrepr"] = saferepr(kwargs) if kwargs else "{}"
    if not fields["origin"]:
        fields["origin"] = origin_name()
    if fields["stamps"] is None:
        fields["stamps"] = {}
    return fields


def _body_v2(
    fields: dict[str, Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    follow_ups: tuple[Any, Any, Any, Any],
    serializer: str,
) -> tuple[str, str, bytes]:
    embed = _embed(follow_ups)
    try:
        if serializer == "json":
            after = NO_FOLLOW_UPS if follow_ups == _NOTHING else encode_text(embed)
            text = f"[{encode_text(args)}, {encode_text(kwargs) if kwargs else '{}'}, {after}]"
            body = text.encode("ascii")
            if too_deep(body):
                raise RecursionError(TOO_DEEP)
            return "application/json", "utf-8", body
        return dumps((args, kwargs, embed), serializer)
    except Exception as error:  # __json__(), pickle hooks and custom serializers are user code: anything may come
        raise _unserializable(fields["task"], _parts(args, kwargs, embed), serializer, error) from error


def _body_v1(
    fields: dict[str, Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    follow_ups: tuple[Any, Any, Any, Any],
    serializer: str,
) -> tuple[str, str, bytes]:
    names = ("task", "id", "group", "group_index", "retries", "eta", "expires", "timelimit")
    embed = _embed(follow_ups)
    if embed.pop("chain"):
        raise ValueError(f"task {fields['task']}: protocol 1 has no chains; use task_protocol 2")
    body = {name: fields[name] for name in names}
    body |= {"args": args, "kwargs": kwargs, "utc": True, "taskset": fields["group"], **embed}
    try:
        return dumps(body, serializer)
    except EncodeError as error:
        raise _unserializable(fields["task"], _parts(args, kwargs, embed), serializer, error) from error


def _embed(follow_ups: tuple[Any, Any, Any, Any]) -> dict[str, Any]:
    callbacks, errbacks, chain, chord = follow_ups
    return {"callbacks": callbacks, "errbacks": errbacks, "chain": chain, "chord": chord}


def _parts(args: Sequence[Any], kwargs: dict[str, Any], embed: dict[str, Any]) -> dict[str, Any]:
    return {
        **{f"argument {index}": value for index, value in enumerate(args, 1)},
        **{f"keyword argument {name!r}": value for name, value in kwargs.items()},
        **{f"its {name}": value for name, value in embed.items()},
    }


def _unserializable(task: str, parts: dict[str, Any], serializer: str, error: Exception) -> Exception:
    if isinstance(error, ImproperlyConfigured):
        return error
    encode = encode_text if serializer == "json" else lambda value: dumps(value, serializer)
    return EncodeError(f"task {task}: {explain_parts(parts, encode, serializer, error)}")
