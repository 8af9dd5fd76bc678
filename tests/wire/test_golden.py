"""What the real Celery wrote is read, and written again, without a difference."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from umbel import exceptions
from umbel.compression import decompress
from umbel.message import Call, Message, decode_call, decode_envelope, encode_call, encode_envelope, read_headers
from umbel.serialization import decode_exception, encode_exception, json_dumps, json_loads, loads
from umbel.writing import DEFAULTS

GOLDEN = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "golden").glob("*.json"))}
MESSAGES = [name for name, record in GOLDEN.items() if record["kind"] == "message"]
RESULTS = [name for name, record in GOLDEN.items() if record["kind"] == "result"]
ACCEPT = ("json", "pickle", "yaml", "msgpack")
SERIALIZERS = {
    "application/json": "json",
    "application/x-python-serialize": "pickle",
    "application/x-yaml": "yaml",
    "application/x-msgpack": "msgpack",
}
COMPRESSIONS = {"application/x-gzip": "zlib", "application/x-bz2": "bzip2", "application/x-lzma": "lzma"}


def read(name: str) -> tuple[Message, Call]:
    message = decode_envelope(GOLDEN[name]["raw"].encode("utf-8"))
    return message, decode_call(message, ACCEPT)


def asked(name: str) -> tuple[list[Any], dict[str, Any]]:
    record = GOLDEN[name]
    return json_loads(json_dumps(record["args"])), json_loads(json_dumps(record["kwargs"]))


def plain_body(message: Message) -> bytes:
    compression = message.headers.get("compression")
    return decompress(message.body, compression) if compression else message.body


def write_again(name: str) -> Message:
    """Ask for the same call as Celery was asked for."""
    message, call = read(name)
    args, kwargs = asked(name)
    protocol = 2 if "task" in message.headers else 1
    about = {key: call.headers[key] for key in DEFAULTS if key not in ("argsrepr", "kwargsrepr")}
    own = {key: value for key, value in message.headers.items() if key not in {*DEFAULTS, "lang", "task", "id"}}
    compression = own.pop("compression", None)
    properties = message.properties
    expiration = properties.get("expiration")
    return encode_call(
        task=call.task,
        id=call.id,
        args=tuple(args),
        kwargs=kwargs,
        serializer=SERIALIZERS[message.content_type],
        compression=COMPRESSIONS[compression] if compression else None,
        headers=own,
        callbacks=call.callbacks,
        errbacks=call.errbacks,
        chain=call.chain,
        chord=call.chord,
        protocol=protocol,
        reply_to=properties["reply_to"],
        correlation_id=properties["correlation_id"],
        priority=properties["priority"],
        routing_key=properties["delivery_info"]["routing_key"],
        expiration=int(expiration) / 1000 if expiration else None,
        properties={"delivery_tag": properties["delivery_tag"]},
        **about,
    )


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_of_celery_is_read(name: str) -> None:
    message, call = read(name)
    args, kwargs = asked(name)
    assert (call.task, call.id) == ("proj.add", message.properties["correlation_id"]) or name == "reply-to"
    assert read_headers(message, ACCEPT) == (call.task, call.id)
    assert list(call.args) == args
    assert call.kwargs == kwargs
    assert call.headers.keys() >= DEFAULTS.keys()


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_written_from_the_same_inputs_is_equal(name: str) -> None:
    ours = write_again(name)
    theirs = decode_envelope(GOLDEN[name]["raw"].encode("utf-8"))
    assert ours.headers == theirs.headers
    assert ours.properties == theirs.properties
    assert (ours.content_type, ours.content_encoding) == (theirs.content_type, theirs.content_encoding)
    ours_body, theirs_body = plain_body(ours), plain_body(theirs)
    encoding = theirs.content_type, theirs.content_encoding, ACCEPT
    assert loads(ours_body, *encoding) == loads(theirs_body, *encoding)
    if theirs.content_type == "application/json" and "task" in theirs.headers:
        assert ours_body == theirs_body


@pytest.mark.parametrize("name", MESSAGES)
def test_an_envelope_says_the_same_as_celerys(name: str) -> None:
    theirs = json.loads(GOLDEN[name]["raw"])
    again = json.loads(encode_envelope(decode_envelope(GOLDEN[name]["raw"].encode("utf-8"))))
    assert again == theirs
    ours = json.loads(encode_envelope(write_again(name)))
    assert ours.keys() == theirs.keys()
    assert ours["headers"] == theirs["headers"]
    assert ours["properties"] == theirs["properties"]
    assert base64.b64decode(ours["body"], validate=True)


@pytest.mark.parametrize("name", MESSAGES)
def test_kombu_reads_our_envelope(name: str) -> None:
    from kombu.compression import decompress as kombu_decompress
    from kombu.serialization import loads as kombu_loads
    from kombu.utils.json import loads as kombu_json

    ours = kombu_json(encode_envelope(write_again(name)))
    theirs = kombu_json(GOLDEN[name]["raw"])
    assert ours["headers"] == theirs["headers"]
    bodies = []
    for envelope in (ours, theirs):
        body = base64.b64decode(envelope["body"])
        if "compression" in envelope["headers"]:
            body = kombu_decompress(body, envelope["headers"]["compression"])
        bodies.append(kombu_loads(body, envelope["content-type"], envelope["content-encoding"], force=True))
    assert bodies[0] == bodies[1]


def test_details_of_messages() -> None:
    assert read("eta")[1].eta == "2099-12-31T23:59:58.123456+00:00"
    assert read("expires")[1].expires == "2099-12-31T23:59:58.123456+00:00"
    assert read("expires")[0].properties["expiration"] == "60000"
    assert read("priority")[0].properties["priority"] == 3
    assert read("headers")[1].headers["trace"] == {"id": 7}
    assert str(read("headers-typed")[1].headers["who"]) == "12345678-1234-5678-1234-567812345678"
    assert read("time-limits")[1].headers["timelimit"] == [30, 20.5]
    assert read("shadow")[1].retries == 2
    assert read("stamped")[1].headers["stamps"] == {"priority_class": "high"}
    assert read("ignore-result")[1].headers["ignore_result"] is True


def test_details_of_workflows() -> None:
    link = read("link")[1]
    assert link.callbacks is not None
    assert link.callbacks[0]["args"] == [3]
    errors = read("link-error")[1]
    assert errors.errbacks is not None
    assert [one["immutable"] for one in errors.errbacks] == [True, False]
    chain = read("chain")[1].chain
    assert chain is not None
    assert [step["args"] for step in chain] == [[8], [4]]
    chord = read("chord")[1]
    assert chord.chord["args"] == [10]
    assert chord.headers["group"] == chord.chord["options"]["group_id"]
    assert chord.headers["group_index"] == 0
    assert read("group")[1].headers["group"]


def test_protocol_1_fills_the_headers() -> None:
    call = read("protocol1-rich")[1]
    assert call.headers["timelimit"] == [9, None]
    assert call.headers["a"] == 1
    assert call.headers["root_id"] == call.id
    assert call.headers["argsrepr"] == "[2, 2]"
    assert call.callbacks is not None
    assert call.utc is True


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_celery_is_read(name: str) -> None:
    from kombu.utils.json import loads as kombu_json

    raw = GOLDEN[name]["raw"]
    meta = json_loads(raw.encode("utf-8"))
    assert meta == kombu_json(raw)
    assert meta["status"] == GOLDEN[name]["state"]
    assert json.loads(json_dumps(meta)) == json.loads(raw)


def failure(name: str) -> BaseException:
    return decode_exception(json_loads(GOLDEN[name]["raw"])["result"])


def test_a_failure_of_celery_is_read() -> None:
    assert type(failure("result-failure")) is ValueError
    assert failure("result-failure").args == ("too big", 7)
    assert type(failure("result-retry")) is KeyError
    assert type(failure("result-failure-celery")) is exceptions.MaxRetriesExceededError
    assert type(failure("result-revoked")) is exceptions.TaskRevokedError
    unknown = failure("result-failure-unknown")
    assert isinstance(unknown, exceptions.RemoteError)
    assert str(unknown) == "shop.PaymentFailed: no, {1}"


@pytest.mark.parametrize("name", ["result-failure", "result-retry", "result-failure-celery", "result-revoked"])
def test_a_failure_is_written_as_celery_writes_it(name: str) -> None:
    assert encode_exception(failure(name)) == json.loads(GOLDEN[name]["raw"])["result"]
