"""What is stored for a task, a group and a chord member: Celery's formats, encoded and decoded.

A task's meta is one document::

    {"status", "result", "traceback", "children", "date_done", "task_id"}
    + "group_id", "parent_id"                                     where the task has one
    + "name", "args", "kwargs", "worker", "retries", "queue"      with result_extended,
      "stamped_headers" and each stamp                            if it is stamped

``result`` is the value, for FAILURE, RETRY and REVOKED the exception as ``{"exc_type", "exc_message", "exc_module"}``,
for STARTED the process that runs it, and for a state of the user's own whatever ``update_state`` was given.

A compressed document says so in front: a marker that no serializer can begin with, the content type, NUL, the bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Any, Final

from umbel import states
from umbel.exceptions import DecodeError
from umbel.resultbase import ResultBase
from umbel.serialization import accepted_by, compress, decode_exception, decompress, dumps, encode_exception, loads

Meta = dict[str, Any]
"""A decoded meta: exceptions rebuilt, children still as tuples."""

COMPRESSED: Final = b"\x00celery-compressed\x00"


def encode_meta(
    task_id: str,
    state: str,
    result: Any = None,
    traceback: str | None = None,
    children: Iterable[Any] | None = None,
    date_done: datetime | str | None = None,
    *,
    request: Any = None,
    extended: bool = False,
    veil: Any = None,
    serializer: str = "json",
    compression: str | None = None,
) -> bytes:
    """Return the document to store for one task. Raises :exc:`EncodeError` if the result cannot be encoded.

    :param children: results, or their tuples; when not given, those of the request.
    :param date_done: left out of the document while the state is not a ready one.
    :param request: the task's :class:`~umbel.context.Context`, for the ids and the extended fields.
    :param extended: whether to add name, arguments, worker and so on (``result_extended``).
    :param veil: the :class:`~umbel.sensitive.Veil` of the task, where it has one.
    """
    if children is None and request is not None:
        children = getattr(request, "children", None)
    if isinstance(date_done, datetime):
        date_done = date_done.isoformat()
    meta: Meta = {
        "status": state,
        "result": encode_result(result, state),
        "traceback": traceback,
        "children": None if children is None else [_as_tuple(child) for child in children],
        "date_done": date_done if state in states.READY_STATES else None,
    }
    if request is not None:
        _add_request(meta, request, extended, veil)
    meta["task_id"] = task_id
    return _encode(meta, serializer, compression, f"the result of task {task_id}")


def _add_request(meta: Meta, request: Any, extended: bool, veil: Any) -> None:
    if group := getattr(request, "group", None):
        meta["group_id"] = group
    if parent := getattr(request, "parent_id", None):
        meta["parent_id"] = parent
    if not extended:
        return
    meta["name"] = getattr(request, "task", None)
    meta["args"] = getattr(request, "args", None)
    meta["kwargs"] = getattr(request, "kwargs", None)
    if veil is not None:
        meta["args"], meta["kwargs"] = veil.values(meta["args"], meta["kwargs"])
    meta["worker"] = getattr(request, "hostname", None)
    meta["retries"] = getattr(request, "retries", None)
    meta["queue"] = (getattr(request, "delivery_info", None) or {}).get("routing_key")
    if stamps := getattr(request, "stamps", None):
        names = getattr(request, "stamped_headers", None)
        meta["stamped_headers"] = names
        meta.update({name: value for name, value in stamps.items() if name in (names or ())})


def decode_meta(payload: bytes, *, serializer: str = "json", accept: Collection[str] | None = None) -> Meta:
    """Return the document with its exception rebuilt.

    Raises :exc:`DecodeError` if it is none, and :exc:`ContentDisallowed` if ``accept`` (JSON alone unless given) does
    not have the serializer. Never imports anything and never runs code that the document names.
    """
    meta = _decode(payload, serializer, accept)
    if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
        raise DecodeError("a stored result is not a document with a status", data=payload)
    meta["result"] = decode_result(meta.get("result"), meta["status"])
    meta.setdefault("traceback", None)
    meta.setdefault("children", None)
    meta.setdefault("date_done", None)
    return meta


def pending_meta(task_id: str) -> Meta:
    """Return what stands for a task that nothing is stored about."""
    return {
        "status": states.PENDING,
        "result": None,
        "traceback": None,
        "children": None,
        "date_done": None,
        "task_id": task_id,
    }


def encode_result(result: Any, state: str) -> Any:
    """Return what stands for the result in a document: exceptions as dicts, results of other tasks as tuples."""
    if state in states.EXCEPTION_STATES and isinstance(result, BaseException):
        return encode_exception(result)
    return _as_tuple(result)


def decode_result(result: Any, state: str) -> Any:
    """Return the value, or for a state that has an exception the exception; never raises."""
    if state in states.EXCEPTION_STATES and result:
        return decode_exception(result)
    return result


def encode_group(result: Any, *, serializer: str = "json", compression: str | None = None) -> bytes:
    """Return the document that describes a group: ``{"result": [[id, parent], [member, ...]]}``."""
    return _encode({"result": _as_tuple(result)}, serializer, compression, "the group")


def decode_group(payload: bytes, *, serializer: str = "json", accept: Collection[str] | None = None) -> Any:
    """Return the nested tuples that :func:`umbel.result.result_from_tuple` reads."""
    document = _decode(payload, serializer, accept)
    if not isinstance(document, dict) or "result" not in document:
        raise DecodeError("a stored group is not a document with a result", data=payload)
    return document["result"]


def encode_part(
    task_id: str, state: str, result: Any, *, serializer: str = "json", compression: str | None = None
) -> bytes:
    """Return a chord member as the header of the chord keeps it: ``[1, task_id, state, result]``."""
    part = [1, task_id, state, encode_result(result, state)]
    return _encode(part, serializer, compression, f"the result of task {task_id}")


def decode_part(
    payload: bytes, *, serializer: str = "json", accept: Collection[str] | None = None
) -> tuple[str, str, Any]:
    """Return task id, state and result of a chord member."""
    part = _decode(payload, serializer, accept)
    if not isinstance(part, list | tuple) or len(part) != 4:
        raise DecodeError("a stored chord member is not a list of four", data=payload)
    _, task_id, state, result = part
    return task_id, state, decode_result(result, state)


def _as_tuple(result: Any) -> Any:
    # By class: a Decimal has a method of that name, too.
    return result.as_tuple() if isinstance(result, ResultBase) and hasattr(result, "as_tuple") else result


def _encode(document: Any, serializer: str, compression: str | None, what: str) -> bytes:
    data = dumps(document, serializer, what=what)[2]
    if not compression:
        return data
    body, content_type = compress(data, compression)
    return b"".join((COMPRESSED, content_type.encode(), b"\x00", body))


def _decode(payload: bytes, serializer: str, accept: Collection[str] | None) -> Any:
    # Told by the payload and not by the setting, so that results stay readable when the setting changes.
    if payload.startswith(COMPRESSED):
        content_type, _, body = payload[len(COMPRESSED) :].partition(b"\x00")
        payload = decompress(body, content_type.decode("ascii", "replace"))
    content_type_, encoding = _format(serializer)
    return loads(payload, content_type_, encoding, accept)


@functools.cache
def _format(serializer: str) -> tuple[str, str]:
    return dumps(None, serializer)[:2]


def decoder(conf: Any) -> Callable[[bytes], Meta]:
    """Return :func:`decode_meta` with what the settings say at the moment of each call."""

    def decode(payload: bytes) -> Meta:
        return decode_meta(payload, serializer=conf.result_serializer, accept=accepted(conf))

    return decode


def accepted(conf: Any) -> Collection[str]:
    """Return which serializers a result may have come in."""
    return accepted_by(conf, conf.result_accept_content or conf.accept_content)
