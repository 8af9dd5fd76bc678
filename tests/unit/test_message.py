"""Task messages: what other clients may leave out, what is refused, and what a caller is told."""

from __future__ import annotations

import base64
import json
import os
from collections import OrderedDict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest

from umbel import states
from umbel.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured, InvalidTaskError
from umbel.message import (
    Message,
    decode_call,
    decode_envelope,
    encode_call,
    encode_envelope,
    origin_name,
    read_headers,
    saferepr,
)
from umbel.writing import DEFAULTS


def envelope(body: Any, headers: Any = None, **changes: Any) -> bytes:
    """Return an envelope as a sparse client writes it."""
    fields = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {} if headers is None else headers,
        "properties": {"body_encoding": "base64", "delivery_tag": "t"},
    }
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


# -- the envelope ------------------------------------------------------------------------------------------------


def test_missing_keys_get_defaults() -> None:
    assert decode_envelope(b"{}") == Message(body=b"")
    found = decode_envelope(b'{"body": "aGk=", "headers": null, "properties": {"body_encoding": "base64"}}')
    assert found.body == b"hi"
    assert (found.content_type, found.content_encoding) == ("application/json", "utf-8")
    assert decode_envelope('{"body": "[é]"}'.encode()).body == "[é]".encode()


@pytest.mark.parametrize("raw", [
    b"", b"null", b"[]", b"7", b"\xff", b'{"body": 7}', b'{"headers": []}', b'{"body": "x", "properties": 1}',
    b'{"body": "a", "properties": {"body_encoding": "base64"}}',
    b'{"body": "aGk=", "properties": {"body_encoding": "rot13"}}',
    b'{"headers": {"x": NaN}}', b'{"headers": {"x": "__type__", "y": Infinity}}',
    b'{"headers": ' + b"[" * 100_000,
    b'{"headers": {"x": {"__type__": "nope", "__value__": 1}}}',
])  # fmt: skip
def test_what_is_no_envelope_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError, match="not a message envelope"):
        decode_envelope(raw)


@pytest.mark.parametrize("headers", [
    {"n": 2**80, "f": 1.5, "t": True, "s": "é\n"},
    {"when": datetime(2026, 1, 2, tzinfo=UTC), "raw": b"\xff"},
    {"deep": {"when": [{"at": datetime(2026, 1, 2, tzinfo=UTC)}]}},
    {"surrogate": "\ud800"},
    {"state": states.state("STARTED")},
    {"keys": {None: 1, True: 2}},
])  # fmt: skip
def test_headers_are_written_as_kombu_writes_them(headers: dict[str, Any]) -> None:
    from kombu.utils import json as kombu_json

    raw = encode_envelope(Message(body=b"x", headers=headers))
    assert kombu_json.loads(raw)["headers"] == kombu_json.loads(kombu_json.dumps(headers))
    assert decode_envelope(raw).headers == kombu_json.loads(kombu_json.dumps(headers))


def test_a_header_that_json_has_not_is_named() -> None:
    with pytest.raises(EncodeError, match=r"message: its headers\['x'\]\[0\] is of type set"):
        encode_envelope(Message(body=b"", headers={"x": [{1}]}))
    with pytest.raises(EncodeError, match=r"its properties\['p'\] is of type float"):
        encode_envelope(Message(body=b"", properties={"p": float("nan")}))


def test_writing_changes_no_message() -> None:
    message = Message(body=b"x")
    assert b'"body_encoding":"base64"' in encode_envelope(message)
    assert message.properties == {}


# -- reading calls of other clients ------------------------------------------------------------------------------


def test_a_sparse_protocol_2_message() -> None:
    """celery-node sends these three headers; rusty-celery a few more."""
    message = decode_envelope(envelope([[1], {"a": 2}, {"callbacks": None}], {"lang": "js", "task": "t", "id": "i"}))
    call = decode_call(message)
    assert (call.task, call.id, call.args, call.kwargs, call.retries) == ("t", "i", [1], {"a": 2}, 0)
    assert call.headers == {
        **DEFAULTS, "lang": "js", "task": "t", "id": "i", "root_id": "i", "timelimit": (None, None), "stamps": {}
    }  # fmt: skip
    assert (call.callbacks, call.errbacks, call.chain, call.chord) == (None, None, None, None)
    assert message.headers == {"lang": "js", "task": "t", "id": "i"}


def test_protocol_1_of_gocelery() -> None:
    body = {"id": "i", "task": "t", "args": [1, 2], "kwargs": None, "retries": 0, "eta": None, "expires": "2099-01-01"}
    message = decode_envelope(envelope(body, ...))
    assert read_headers(message) == ("t", "i")
    call = decode_call(message)
    assert (call.args, call.kwargs, call.expires, call.utc) == ([1, 2], {}, "2099-01-01", True)
    assert call.headers["argsrepr"] == "[1, 2]"
    assert call.headers["kwargsrepr"] == "{}"


def test_protocol_1_names_its_group_taskset() -> None:
    call = decode_call(decode_envelope(envelope({"task": "t", "id": "i", "args": [], "taskset": "g", "utc": False})))
    assert call.headers["group"] == "g"
    assert call.utc is False


def test_the_hybrid_takes_headers_first() -> None:
    body = {"task": "other", "id": "other", "args": [1], "kwargs": {}, "retries": 1, "callbacks": [{"task": "c"}]}
    call = decode_call(decode_envelope(envelope(body, {"task": "t", "id": "i", "retries": 4})))
    assert (call.task, call.id, call.retries) == ("t", "i", 4)
    assert call.callbacks == [{"task": "c"}]


def test_values_in_unusual_forms() -> None:
    headers = {"task": "t", "id": "i", "retries": None, "eta": "", "timelimit": None, "stamps": None}
    embed = {"callbacks": {"task": "c"}, "errbacks": [{"task": "e"}]}
    call = decode_call(decode_envelope(envelope([None, None, embed], headers)))
    assert (call.args, call.kwargs, call.retries, call.eta) == ([], {}, 0, None)
    assert call.callbacks == [{"task": "c"}]
    assert call.errbacks == [{"task": "e"}]
    assert call.headers["timelimit"] == [None, None]
    when = {"__type__": "datetime", "__value__": "2026-01-02T03:04:05+00:00"}
    call = decode_call(decode_envelope(envelope([[], {}], {"task": "t", "id": "i", "eta": when})))
    assert call.eta == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize(("body", "headers"), [
    ([[], {}, {}], {}),
    ([[], {}, {}], {"task": "t"}),
    ([[], {}, {}], {"task": "", "id": "i"}),
    ([[], {}, {}], {"task": ["t"], "id": "i"}),
    ([[], {}, {}], {"task": "t", "id": 7}),
    ([[]], {"task": "t", "id": "i"}),
    ([[], {}, {}, {}], {"task": "t", "id": "i"}),
    (["ab", {}, {}], {"task": "t", "id": "i"}),
    ([[], [], {}], {"task": "t", "id": "i"}),
    ([[], {}, []], {"task": "t", "id": "i"}),
    ([[], {}, {}], {"task": "t", "id": "i", "retries": "many"}),
    ([[], {}, {}], {"task": "t", "id": "i", "eta": 17}),
    ("text", {"task": "t", "id": "i"}),
    (7, {}),
    (None, {}),
    ({"args": []}, {}),
    ({"task": "t", "args": []}, {}),
    ({"task": "t", "id": "i", "kwargs": [1]}, {}),
])  # fmt: skip
def test_what_is_no_call_is_refused(body: Any, headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidTaskError):
        decode_call(decode_envelope(envelope(body, headers)))


def test_read_headers_leaves_the_body_alone() -> None:
    message = Message(body=b"\xff junk", content_type="application/x-unknown", headers={"task": "t", "id": "i"})
    assert read_headers(message) == ("t", "i")
    for headers in ({"task": "t"}, {"task": 1, "id": "i"}):
        with pytest.raises(InvalidTaskError):
            read_headers(Message(body=b"[]", headers=headers))
    with pytest.raises(InvalidTaskError):
        read_headers(Message(body=b"[]"))
    with pytest.raises(DecodeError):
        read_headers(Message(body=b"{"))
    with pytest.raises(ContentDisallowed):
        read_headers(Message(body=b"", content_type="application/x-python-serialize"))


def test_only_accepted_content_is_unpacked() -> None:
    for compression in (None, "zlib"):
        message = encode_call(task="t", id="i", args=(1,), serializer="pickle", compression=compression)
        with pytest.raises(ContentDisallowed):
            decode_call(message)
        assert decode_call(message, ["pickle"]).args == (1,)
    with pytest.raises(ContentDisallowed):
        decode_call(encode_call(task="t", id="i"), ["pickle"])


def test_broken_bodies_are_decode_errors() -> None:
    for headers in ({}, {"compression": "application/x-gzip"}, {"compression": "nope"}):
        with pytest.raises(DecodeError):
            decode_call(Message(body=b"[1", headers={"task": "t", "id": "i", **headers}))


# -- writing calls -----------------------------------------------------------------------------------------------


def test_defaults_of_a_call() -> None:
    message = encode_call(task="t", id="i")
    assert message.body == b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
    assert message.headers == {
        **DEFAULTS, "lang": "py", "task": "t", "id": "i", "root_id": "i", "timelimit": [None, None], "stamps": {},
        "argsrepr": "()", "kwargsrepr": "{}", "origin": origin_name(),
    }  # fmt: skip
    tag = message.properties.pop("delivery_tag")
    assert message.properties == {
        "correlation_id": "i", "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": ""},
    }  # fmt: skip
    assert encode_call(task="t", id="i").properties["delivery_tag"] != tag


def test_options_of_a_call() -> None:
    message = encode_call(
        task="t", id="i", headers={"mine": 1, "retries": 9}, expiration=1.5, exchange="x", routing_key="q",
        priority=None, retries=2, timelimit=(30, 20), argsrepr="***", properties={"app_id": "a"}, chain=[{"task": "n"}],
    )  # fmt: skip
    assert message.headers["mine"] == 1
    assert message.headers["retries"] == 9
    assert message.headers["timelimit"] == [30, 20]
    assert message.headers["argsrepr"] == "***"
    assert message.properties["expiration"] == "1500"
    assert message.properties["delivery_info"] == {"exchange": "x", "routing_key": "q"}
    assert (message.properties["priority"], message.properties["app_id"]) == (0, "a")
    assert decode_call(message).chain == [{"task": "n"}]


def test_calls_share_nothing() -> None:
    first, second = encode_call(task="t", id="i"), encode_call(task="t", id="i")
    first.headers["stamps"]["a"] = 1
    first.headers["timelimit"][0] = 5
    assert second.headers["stamps"] == {}
    assert second.headers["timelimit"] == [None, None]


def test_arguments_of_wrong_types() -> None:
    with pytest.raises(TypeError, match="args must be a list or tuple, not str"):
        encode_call(task="t", id="i", args="ab")
    with pytest.raises(TypeError, match="kwargs must be a mapping, not list"):
        encode_call(task="t", id="i", kwargs=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown options"):
        encode_call(task="t", id="i", contdown=3)  # type: ignore[call-arg]
    assert decode_call(encode_call(task="t", id="i", args=None, kwargs=None)).args == []
    for mapping in (MappingProxyType({"a": 1}), OrderedDict(a=1)):
        assert decode_call(encode_call(task="t", id="i", kwargs=mapping)).kwargs == {"a": 1}


class User:
    pk = 5


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize(("args", "kwargs", "expected"), [
    ((1, User()), {}, r"task proj\.x: argument 2 is of type .*\.User, .*primary key"),
    ((), {"user": User()}, r"task proj\.x: keyword argument 'user' is of type .*\.User, .*primary key"),
    ((1, {"a": [0, {1, 2}]}), {}, r"argument 2\['a'\]\[1\] is of type set, .*list\(\.\.\.\)"),
])  # fmt: skip
def test_an_argument_that_cannot_be_carried_is_named(
    serializer: str, protocol: int, args: Any, kwargs: Any, expected: str
) -> None:
    with pytest.raises(EncodeError, match=expected):
        encode_call(task="proj.x", id="i", args=args, kwargs=kwargs, serializer=serializer, protocol=protocol)


def test_other_errors_of_writing() -> None:
    with pytest.raises(EncodeError, match=r"its callbacks\[0\] is of type object"):
        encode_call(task="t", id="i", callbacks=[object()])
    with pytest.raises(ImproperlyConfigured, match="jsn"):
        encode_call(task="t", id="i", serializer="jsn")
    with pytest.raises(ImproperlyConfigured, match="rar"):
        encode_call(task="t", id="i", compression="rar")
    with pytest.raises(ValueError, match="protocol 1 has no chains"):
        encode_call(task="t", id="i", protocol=1, chain=[{"task": "n"}])
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EncodeError, match="argument 1"):
        encode_call(task="t", id="i", args=(circle,))


def test_origin_is_right_after_a_fork() -> None:
    assert origin_name().startswith(f"gen{os.getpid()}@")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, origin_name().encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode().startswith(f"gen{child}@")
    os.close(reader)


# -- saferepr ----------------------------------------------------------------------------------------------------


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_saferepr_of_plain_values() -> None:
    assert saferepr((2, "a'b", None, 1.5)) == "(2, 'a\\'b', None, 1.5)"
    assert saferepr({"k": "v"}, 5).endswith("}")


def test_saferepr_never_raises_and_stays_small() -> None:
    assert "Unrepresentable" in saferepr([Rude()])
    circle: list[Any] = []
    circle.append(circle)
    assert "Recursion" in saferepr(circle)
    assert len(saferepr(["x" * 100] * 100_000, 200)) < 420
    assert len(saferepr(list(range(10**6)), 100)) < 120
