"""What is written is read back, and is what kombu and Celery would have written."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery.utils.saferepr import saferepr as celery_saferepr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from umbel import compression
from umbel.exceptions import DecodeError, EncodeError
from umbel.message import Message, decode_call, decode_envelope, encode_call, encode_envelope, saferepr
from umbel.serialization import dumps, json_dumps, json_loads, loads

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.text(max_size=20) | st.sampled_from(
    ["", "__type__", "é", "\\u005f_type__", "'", '"', "\\", "\n", "\ud800", "🎉"]
)
numbers = st.integers() | st.sampled_from([2**63, 2**64, -(2**70)]) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | text
offsets = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-3))])
typed = (
    st.datetimes(timezones=offsets)
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.binary(max_size=20)
)
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))
values = st.recursive(
    scalars | typed, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4)
)
wire_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
anything = st.recursive(
    scalars | typed | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(text | st.integers() | st.tuples(st.integers()), inner, max_size=4)
        | st.frozensets(st.integers(), max_size=3)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=20,
)


def is_tag(value: Any) -> bool:
    """Say whether a dict of the user's own would be taken for a tagged value."""
    if isinstance(value, dict):
        return value.keys() == {"__type__", "__value__"} or any(map(is_tag, value.values()))
    return isinstance(value, list) and any(map(is_tag, value))


@quick
@given(values)
def test_json_is_read_back(value: Any) -> None:
    if not is_tag(value):
        assert json_loads(json_dumps(value).encode()) == value


@quick
@given(values)
def test_json_is_what_kombu_writes_and_reads(value: Any) -> None:
    written = json_dumps(value)
    assert written == kombu_json.dumps(value)
    if not is_tag(value):
        assert json_loads(written.encode()) == kombu_json.loads(written)
        assert json_loads(written) == kombu_json.loads(written)


@quick
@given(st.floats() | st.lists(st.floats()))
def test_floats_that_json_has_not_are_as_in_kombu(value: Any) -> None:
    written = json_dumps(value)
    assert written == kombu_json.dumps(value)
    assert repr(json_loads(written.encode())) == repr(kombu_json.loads(written))


@quick
@given(plain, st.data())
def test_broken_json_is_refused_where_kombu_refuses_it(value: Any, data: st.DataObject) -> None:
    raw = bytearray(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.sampled_from(b'{}[],:"\\0 1e-._\xff\x00n') | st.integers(0, 255))
    try:
        expected = repr(kombu_json.loads(bytes(raw)))
    except Exception:
        expected = "refused"
    try:
        found = repr(json_loads(bytes(raw)))
    except DecodeError:
        found = "refused"
    assert found == expected


@quick
@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda one: one.encode("utf-8", "replace")))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for read in (json_loads, decode_envelope):
        try:
            read(raw)
        except DecodeError as error:
            assert error.data == raw  # and nothing else is ever raised


@quick
@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | wire_text | st.binary(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(wire_text, inner, max_size=3)),
       st.sampled_from(["pickle", "msgpack", "yaml"]))  # fmt: skip
def test_other_serializers_are_read_back(value: Any, serializer: str) -> None:
    content_type, encoding, data = dumps(value, serializer)
    assert loads(data, content_type, encoding, [serializer]) == value or not value


@quick
@given(st.binary(max_size=2000), st.sampled_from(["gzip", "bzip2", "lzma", "zstd", "brotli"]))
def test_compression_is_read_back(data: bytes, name: str) -> None:
    packed, content_type = compression.compress(data, name)
    assert compression.decompress(packed, content_type, len(data)) == data
    if data:
        try:
            compression.decompress(packed, content_type, len(data) - 1)
        except DecodeError as error:
            assert "grows past" in str(error)
        else:
            raise AssertionError("the limit was not kept")


headers = st.dictionaries(wire_text.filter(bool), values, max_size=4)


@quick
@given(st.binary(max_size=200), headers, headers)
def test_an_envelope_is_read_back(body: bytes, extra: dict[str, Any], more: dict[str, Any]) -> None:
    if is_tag(extra) or is_tag(more) or "body_encoding" in more:
        return
    message = Message(body=body, headers=extra, properties=more)
    again = decode_envelope(encode_envelope(message))
    assert again.body == body
    assert again.headers == extra
    assert again.properties == {**more, "body_encoding": "base64"}
    assert kombu_json.loads(encode_envelope(message))["headers"] == extra


@quick
@given(st.lists(values, max_size=4), st.dictionaries(text, values, max_size=3), st.sampled_from([1, 2]), st.uuids())
def test_a_call_is_read_back(args: list[Any], kwargs: dict[str, Any], protocol: int, task_id: uuid.UUID) -> None:
    if is_tag(args) or is_tag(kwargs):
        return
    written = encode_call(task="proj.x", id=str(task_id), args=args, kwargs=kwargs, protocol=protocol, retries=3)
    call = decode_call(decode_envelope(encode_envelope(written)))
    assert (call.task, call.id, call.retries) == ("proj.x", str(task_id), 3)
    assert list(call.args) == args
    assert call.kwargs == kwargs


@settings(quick, max_examples=100)
@given(anything, st.sampled_from([None, 1, 2, 5, 17, 40, 100, 1024]), st.integers(0, 4))
def test_saferepr_is_celerys(value: Any, maxlen: int | None, levels: int) -> None:
    assert saferepr(value, maxlen, levels) == celery_saferepr(value, maxlen, levels)


@quick
@given(st.lists(scalars, max_size=6).map(tuple), st.integers(1, 60))
def test_saferepr_of_arguments_is_celerys(args: tuple[Any, ...], maxlen: int) -> None:
    assert saferepr(args, maxlen) == celery_saferepr(args, maxlen)
    named = {f"k{index}": value for index, value in enumerate(args)}
    assert saferepr(named, maxlen) == celery_saferepr(named, maxlen)


@quick
@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(["headers", "properties"]))
def test_an_envelope_never_holds_what_is_not_json(number: float, where: str) -> None:
    with pytest.raises(EncodeError):
        encode_envelope(Message(body=b"", **{where: {"x": [number]}}))


def test_a_fixed_moment_is_read_back() -> None:
    moment = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)
    assert json_loads(json_dumps(moment)) == moment
