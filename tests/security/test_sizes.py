"""S6, S8: what is too large to be kept, and what is nested too deeply to be read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import admit, inject, make_app, peek, refusal, runs, task_message
from support import eventually
from umbel import Umbel, nesting
from umbel.compression import compress
from umbel.envelope import CUT, KEPT, decode_envelope, encode_envelope
from umbel.exceptions import DecodeError, EncodeError
from umbel.interfaces import Dead, Place, Settlement
from umbel.nesting import MAX_DEPTH, too_deep, value_too_deep
from umbel.serialization import dumps, loads
from umbel.worker.inprocess import start_worker

MSGPACK, YAML = "application/x-msgpack", "application/x-yaml"


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name)
    yield made
    made.close()


# -- S6: what is kept of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
def test_s6_of_a_message_that_is_too_large_only_the_headers_are_kept(
    store: str, request: pytest.FixtureRequest, sqlite_url: str
) -> None:
    url = {"memory": f"memory://{request.node.name}", "sqlite": sqlite_url}.get(store)
    app = Umbel("shop", broker=url or request.getfixturevalue("redis_url"), set_as_current=False)
    sizes = {"large": 17 << 20, "huge": 30 << 20}
    for id, size in sizes.items():
        inject(app, task_message(b'["' + b"x" * size + b'"]', id=id, argsrepr="('x...',)"))
    broken = task_message(id="broken")
    broken.raw = b'{"body": ' + b"\xff" * 200_000
    inject(app, broken)
    with start_worker(app):
        eventually(lambda: app.broker.size("celery", Place.DEAD) == 3)
    letters = {letter.task_id: letter for letter in app.dead.list()}
    assert set(letters) == {"large", "huge", ""}
    for id, size in sizes.items():
        letter = letters[id]
        assert letter.reason == "undecodable"
        assert letter.task == "echo"
        assert letter.message is not None
        assert letter.message.body == b""
        assert size < letter.message.headers[CUT] < 2 * size
        assert len(letter.raw) < 2000
        assert not letter.whole
    assert letters[""].raw == (b'{"body": ' + b"\xff" * 200_000)[:KEPT]
    assert app.dead.requeue(*letters.values()) == []
    assert app.broker.size("celery", Place.DEAD) == 3
    assert len(app.dead.discard(*letters.values())) == 3
    app.close()


@pytest.mark.parametrize("message", [
    task_message(b'["' + b"x" * (KEPT + 1)), task_message(b"\xff" * 200_000, content_type="application/x-unknown"),
    task_message(b'[[{"__type__": "mine", "__value__": "' + b"x" * 100_000 + b'"}], {}, {}]'),
])  # fmt: skip
def test_s6_what_another_worker_might_read_is_kept_whole(app: Any, message: Any) -> None:
    decided = admit(app, message)
    assert isinstance(decided, Settlement)
    assert isinstance(decided.how, Dead)
    assert decided.how.kept is None


def test_s6_a_message_with_a_wrong_signature_is_kept_whole(request: pytest.FixtureRequest) -> None:
    app = make_app(request.node.name, security_key="k" * 32)
    decided = admit(app, task_message(b'[["' + b"x" * 200_000 + b'"], {}, {}]'))
    assert isinstance(decided, Settlement)
    assert isinstance(decided.how, Dead)
    assert (decided.how.reason, decided.how.kept, decided.result) == ("bad_signature", None, None)


def test_s6_headers_that_are_too_large_are_cut_too(app: Any) -> None:
    raw = encode_envelope(task_message(b"x" * (17 << 20), mine="y" * 200_000))
    decided = admit(app, raw)
    assert isinstance(decided, Settlement)
    assert isinstance(decided.how, Dead)
    assert decided.how.kept == raw[:KEPT]


# -- S8: depth ---------------------------------------------------------------------------------------------------


def nested(depth: int, inner: Any = 1) -> Any:
    for at in range(depth):
        inner = [inner] if at % 2 else {"a": inner}
    return inner


def exact_depth(text: str) -> int:
    """Return the depth of JSON as the definition has it, character by character."""
    depth = deepest = 0
    in_string = False
    characters = iter(text)
    for character in characters:
        if in_string:
            if character == "\\":
                next(characters, None)
            in_string = character != '"'
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


@pytest.mark.parametrize("passes", [0, 1, 12])
@pytest.mark.parametrize("short", [0, 1 << 30])
def test_s8_the_scanner_counts_as_the_definition_does(passes: int, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "_PASSES", passes)
    monkeypatch.setattr(nesting, "_SHORT", short)
    rng = random.Random(7)
    odd = ["", "a[", "]]", "\\", '"[[', '{"', '\\"]', "\\\\", "é[\n"]

    def make(depth: int) -> Any:
        if depth <= 0 or rng.random() < 0.2:
            return rng.choice([1, None, *odd])
        if rng.random() < 0.5:
            return [make(depth - 1) for _ in range(rng.randrange(1, 4))]
        return {rng.choice(odd): make(depth - 1) for _ in range(2)}

    for _ in range(1000):
        value = make(rng.randrange(1, 14))
        limit = rng.randrange(0, 14)
        monkeypatch.setattr(nesting, "MAX_DEPTH", limit)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        assert too_deep(text.encode()) == (exact_depth(text) > limit), (limit, text)
        assert value_too_deep(value) == (exact_depth(text) > limit), (limit, text)


@given(raw=st.binary(max_size=400) | st.text(alphabet='[]{}"\\a', max_size=2000).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_s8_the_scanner_never_lets_through_what_a_decoder_goes_into(raw: bytes) -> None:
    too_deep(raw)  # raises nothing
    padded = b"[" * (MAX_DEPTH + 1) + raw
    assert too_deep(padded), "a decoder would have gone in before it sees the rest"


@pytest.mark.parametrize("inner", [1, "x" * 300, [], {}], ids=["number", "text", "list", "object"])
@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_s8_the_limit_is_the_same_for_every_decoder(serializer: str, inner: Any) -> None:
    def encode(value: Any) -> Any:
        if serializer == "msgpack":
            return pytest.importorskip("msgpack").packb(value)
        return json.dumps(value).encode()  # which is YAML too

    content_type = {"msgpack": MSGPACK, "yaml": YAML}.get(serializer, "application/json")
    around = MAX_DEPTH - isinstance(inner, list | dict)
    assert loads(encode(nested(around, inner)), content_type, "utf-8", [serializer]) == nested(around, inner)
    for more in (1, 100):
        with pytest.raises(DecodeError, match="nested too deeply"):
            loads(encode(nested(around + more, inner)), content_type, "utf-8", [serializer])


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_s8_nobody_writes_what_nobody_reads(app: Any, serializer: str) -> None:
    pytest.importorskip({"json": "json"}.get(serializer, serializer))
    app.conf.accept_content = ["json", "msgpack", "yaml"]
    with pytest.raises(EncodeError, match="nested too deeply"):
        app.send_task("echo", [nested(MAX_DEPTH)], serializer=serializer)
    assert peek(app) == []
    with pytest.raises(EncodeError, match="nested too deeply"):
        dumps(nested(MAX_DEPTH + 1), serializer)
    app.send_task("echo", [nested(MAX_DEPTH - 2)], serializer=serializer)
    assert runs(app, peek(app)[0].raw)


def test_s8_a_value_that_is_just_not_too_deep_is_carried_to_its_end(app: Any) -> None:
    @app.task(name="deep")
    def deep(depth: int) -> Any:
        return nested(depth)

    with start_worker(app):
        assert app.send_task("echo", [nested(200)]).get(timeout=20) == [[nested(200)], {}]
        # A document of a result is a container too.
        assert deep.delay(MAX_DEPTH - 1).get(timeout=20) == nested(MAX_DEPTH - 1)
        with pytest.raises(EncodeError, match="nested too deeply"):
            deep.delay(MAX_DEPTH).get(timeout=20)


def test_s8_depth_hidden_by_compression_is_seen(app: Any) -> None:
    body, content_type = compress(json.dumps([[nested(MAX_DEPTH)], {}, {}]).encode(), "gzip")
    assert refusal(app, task_message(body, compression=content_type)) == "undecodable"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", [b"[", b'"', b"\\", b'["",', b"[]", b"{}[", b'\\"[', b"[" * 256 + b"]" * 256])
def test_s8_the_scanner_is_linear(unit: bytes) -> None:
    # 16 MiB take a second or two at most; quadratic work would take days.
    too_deep(unit * ((16 << 20) // len(unit)))


def test_s8_an_envelope_that_is_just_not_too_deep_is_read() -> None:
    envelope = encode_envelope(task_message(deep=nested(MAX_DEPTH - 2)))
    assert decode_envelope(envelope).headers["deep"] == nested(MAX_DEPTH - 2)
    with pytest.raises(DecodeError, match="nested too deeply"):
        decode_envelope(encode_envelope(task_message(deep=nested(MAX_DEPTH - 1))))
