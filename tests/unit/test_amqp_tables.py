"""Header tables and properties: what py-amqp and RabbitMQ write we read, and they read what we write."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from amqp.serialization import decode_properties_basic, dumps, loads  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given
from hypothesis import strategies as st

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.tables import PROPERTIES, read_properties, read_table, write_properties, write_table
from umbel.exceptions import EncodeError


def _not_text(data: bytes) -> bool:
    """Bytes that are text, be it with lone surrogates, come back as text: AMQP has one type for both."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return True
    return False


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
    | st.binary(max_size=100).filter(_not_text)
    | st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC))
    | st.decimals(-1000, 1000, places=3)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=5))
tables = st.dictionaries(names, values, max_size=12)


def _read(data: bytes) -> dict[str, Any]:
    return read_table(data, 4, len(data), 0)


def _plain(value: Any) -> Any:
    """What py-amqp makes of it: moments without a zone."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


@given(tables)
def test_a_table_comes_back(table: dict[str, Any]) -> None:
    assert _read(write_table(table)) == table


@given(tables)
def test_py_amqp_reads_what_we_write(table: dict[str, Any]) -> None:
    assert loads("F", write_table(table), 0)[0][0] == _plain(table)


@given(tables)
def test_we_read_what_py_amqp_writes(table: dict[str, Any]) -> None:
    assert _read(dumps("F", (table,))) == table


def test_every_letter() -> None:
    """https://www.rabbitmq.com/amqp-0-9-1-errata.html#section_3"""
    fields = {
        "b": (b"b\xff", -1),
        "B": (b"B\xff", 255),
        "s": (b"s\xff\xfe", -2),
        "u": (b"u\xff\xfe", 65534),
        "I": (b"I\xff\xff\xff\xfe", -2),
        "i": (b"i\xff\xff\xff\xfe", 2**32 - 2),
        "l": (b"l" + b"\xff" * 8, -1),
        "f": (b"f\x3f\x80\x00\x00", 1.0),
        "d": (b"d\x3f\xf0" + b"\x00" * 6, 1.0),
        "D": (b"D\x02\xff\xff\xff\x9c", Decimal("-1.00")),
        "T": (b"T" + (1_000_000).to_bytes(8, "big"), datetime(1970, 1, 12, 13, 46, 40, tzinfo=UTC)),
        "x": (b"x\x00\x00\x00\x02\xff\x00", b"\xff\x00"),
        "t": (b"t\x01", True),
        "V": (b"V", None),
    }
    body = b"".join(b"\x01" + name.encode() + data for name, (data, _) in fields.items())
    assert read_table(body, 0, len(body), 0) == {name: value for name, (_, value) in fields.items()}


@given(st.binary(max_size=200))
def test_any_bytes_harm_nobody(data: bytes) -> None:
    """A broken header is no reason for anything but not to be read."""
    length, properties = frames.properties_of((b"\x00\x3c" + bytes(10) + data).ljust(14, b"\0"))
    assert length == 0
    assert isinstance(properties, dict)


def test_deep_tables_are_refused() -> None:
    inner = b""
    for _ in range(5000):
        body = b"\x01aF" + len(inner).to_bytes(4, "big") + inner
        inner = body
    assert frames.properties_of(b"\x00\x3c" + bytes(10) + b"\x20\x00" + len(inner).to_bytes(4, "big") + inner)[1] == {}


def test_properties() -> None:
    properties: dict[str, Any] = {name: f"{name} ž" for name, letter in PROPERTIES if letter == "s"}
    properties |= {"headers": {"a": [1, None]}, "delivery_mode": 2, "priority": 9, "timestamp": 2**40}
    data = write_properties(properties)
    assert read_properties(data, 0) == properties
    theirs, _ = decode_properties_basic(data, 0)
    assert theirs.pop("application_headers") == {"a": [1, None]}
    assert theirs == {name: value for name, value in properties.items() if name != "headers"}
    assert read_properties(write_properties({}), 0) == {}


@pytest.mark.parametrize(
    "properties",
    [{"reply_to": "x" * 256}, {"priority": 256}, {"headers": {"x": {1, 2}}}, {"headers": {"x": 2**63}}],
    ids=["long", "number", "type", "big"],
)
def test_what_has_no_form(properties: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="AMQP cannot carry"):
        frames.encoded(properties)
