"""S1, S3-S10, S34, S35: messages of somebody who can write to the queue and means harm."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import ESCAPES, admit, inject, make_app, peek, refusal, runs, task_message
from support import eventually
from umbel import Umbel
from umbel.compression import compress, decompress
from umbel.envelope import Message, encode_envelope
from umbel.exceptions import (
    CeleryError,
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    InvalidTaskError,
)
from umbel.interfaces import Dead, Execution, Place, Settlement
from umbel.jsoncodec import json_loads
from umbel.message import decode_call, decode_envelope
from umbel.meta import decode_meta
from umbel.serialization import loads
from umbel.worker.inprocess import start_worker

JSON = "application/json"
YAML, MSGPACK, PICKLE = "application/x-yaml", "application/x-msgpack", "application/x-python-serialize"


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name)
    yield made
    made.close()


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


# -- S1: pickle --------------------------------------------------------------------------------------------------


def test_s1_the_canary_can_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_s1_content_that_is_not_accepted_is_a_dead_letter_and_runs_nothing(app: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps([[Canary(canary)], {}, {}], protocol=4)
    script = f"!!python/object/apply:os.mkdir ['{canary}']".encode()
    corpus = [
        (PICKLE, bomb), ("application/x-python-serialize; charset=utf-8", bomb), (PICKLE.upper(), bomb), ("", bomb),
        ("pickle", bomb), (YAML, script), (MSGPACK, b"\x93\x90\x80\x80"), ("application/x-unknown", b"x"),
        ("application/json", bomb), ("application/data", bomb), ("application/text", b"[[], {}, {}]"),
        ("text/plain", bomb),
    ]  # fmt: skip
    for index, (content_type, body) in enumerate(corpus):
        for encoding in ("binary", "utf-8", "rot13", "zlib_codec"):
            message = task_message(body, content_type=content_type, id=f"{index}-{encoding}")
            message.content_encoding = encoding
            inject(app, message)
    with start_worker(app):
        assert app.send_task("echo", [1]).get(timeout=20) == [[1], {}]
    reasons = [dead.reason for dead in peek(app, Place.DEAD)]
    assert len(reasons) == 4 * len(corpus)
    assert set(reasons) <= {"content_disallowed", "undecodable", "invalid_task"}
    assert not canary.exists()


def test_s1_no_header_turns_pickle_on(app: Any, tmp_path: Path) -> None:
    bomb = pickle.dumps([[Canary(tmp_path / "canary")], {}, {}])
    named = (
        {"accept_content": ["pickle"]},
        {"serializer": "pickle"},
        {"compression": PICKLE},
        {"content-type": PICKLE},
    )
    for headers in named:
        assert refusal(app, task_message(bomb, content_type=PICKLE, **headers)) == "content_disallowed"
        assert refusal(app, task_message(bomb, **headers)) == "undecodable"
    assert not (tmp_path / "canary").exists()


def test_s1_a_client_does_not_unpickle_a_result(app: Any, tmp_path: Path) -> None:
    document = {"status": "SUCCESS", "result": Canary(tmp_path / "canary"), "task_id": "x"}
    with pytest.raises(ContentDisallowed):
        decode_meta(pickle.dumps(document), serializer="pickle")
    with pytest.raises(DecodeError):
        decode_meta(pickle.dumps(document))
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root is refused")
def test_s1_root_does_not_unpickle(tmp_path: Path) -> None:
    code = "app = Umbel('x', broker='memory://', accept_content=['json', 'pickle'], accept_unsafe=True)\n"
    (tmp_path / "rooted.py").write_text(f"from umbel import Umbel\n{code}")
    env = {name: value for name, value in os.environ.items() if name != "C_FORCE_ROOT"}
    command = [sys.executable, "-m", "umbel", "-A", "rooted", "worker", "-P", "solo"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    assert "must not run as root" in done.stderr


# -- S3, S4: names that a message gives --------------------------------------------------------------------------


def hostile_names() -> Iterator[str]:
    yield from ("os.system", "os:system", "subprocess.Popen", "a:b", "../x", "/etc/passwd", "__import__('os')",
                "x" * 10**6, "this", "antigravity", "umbel.worker.runner:TaskRunner", "${x}", "%s%n", "\x00",
                "\ud800", ESCAPES, "", " ", "echo ", "ECHO", "echo.__class__.__init__")  # fmt: skip
    rng = random.Random(7)
    modules = sorted(sys.stdlib_module_names)
    for _ in range(10_000):
        yield rng.choice(modules) + rng.choice(".:/") + "".join(rng.choices("abc_.:/\\\n\0é", k=rng.randrange(12)))


def test_s3_no_name_in_a_message_imports_anything(app: Any) -> None:
    assert runs(app, task_message())  # whatever is imported for a task that is known, is
    assert refusal_or_delay(app, task_message(task="unknown"))
    before = set(sys.modules)
    for name in hostile_names():
        assert refusal_or_delay(app, task_message(task=name)), name
    assert set(sys.modules) == before


def refusal_or_delay(app: Any, message: Message) -> bool:
    """Say that it is not run; an unknown task may first wait for a worker that knows it."""
    return isinstance(admit(app, message), Settlement)


def test_s3_no_class_or_loader_is_looked_up_for_a_message(app: Any) -> None:
    before = set(sys.modules)
    evil = {"task": "antigravity.fly", "args": [], "kwargs": {}, "options": {"serializer": "this", "loader": "this.x"},
            "subtask_type": "this.Signature", "immutable": False}  # fmt: skip
    embed = {"callbacks": [evil], "errbacks": [evil], "chain": [evil], "chord": None}
    for headers in ({}, {"loader": "this"}, {"origin": "this"}, {"lang": "this"}, {"shadow": "this.x"},
                    {"stamps": {"a": "this.x"}, "stamped_headers": ["a"]}, {"__class__": "this.X"}):  # fmt: skip
        message = task_message(json.dumps([[evil], {"self": evil}, embed]).encode(), **headers)
        assert isinstance(admit(app, message), Execution)
    inject(app, task_message(json.dumps([[], {}, embed]).encode()))
    with start_worker(app):
        app.send_task("echo", []).get(timeout=20)
    assert "antigravity" not in set(sys.modules) - before
    assert "this" not in set(sys.modules) - before


@given(marker=st.text() | st.integers() | st.none() | st.lists(st.text()), value=st.text() | st.integers() | st.none()
       | st.lists(st.integers()) | st.dictionaries(st.text(), st.text()))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_s4_a_type_tag_leads_to_a_known_decoder_or_nowhere(marker: Any, value: Any) -> None:
    known = {"datetime", "date", "time", "decimal", "uuid", "bytes", "base64"}
    raw = json.dumps({"__type__": marker, "__value__": value}).encode()
    try:
        decoded = json_loads(raw)
    except DecodeError:
        return
    assert marker in known
    assert type(decoded).__module__ in ("datetime", "decimal", "uuid", "builtins")


@pytest.mark.parametrize("marker", ["os.system", "builtins.eval", "__class__", "object", "umbel.app.Umbel"])
def test_s4_a_class_path_is_no_type_tag(app: Any, marker: str) -> None:
    raw = json.dumps([[{"__type__": marker, "__value__": "echo"}], {}, {}]).encode()
    assert refusal(app, task_message(raw)) == "undecodable"


def test_s5_a_callback_in_an_unsigned_message_runs_only_a_registered_task(app: Any) -> None:
    # Who controls the broker controls which task runs; signed messages (test_signing.py) take that away.
    embed = {"callbacks": [{"task": "nowhere", "args": [], "kwargs": {}, "options": {}, "immutable": True}]}
    app.conf.task_unknown_backoff = (0.01,)
    inject(app, task_message(json.dumps([[], {}, embed]).encode()))
    with start_worker(app):
        eventually(lambda: app.broker.size("celery", Place.DEAD) == 1)
    assert [dead.reason for dead in peek(app, Place.DEAD)] == ["unregistered"]


# -- S6, S7: size ------------------------------------------------------------------------------------------------


def test_s6_a_message_that_is_too_large_is_not_parsed(app: Any) -> None:
    assert refusal(app, task_message(b'["' + b"x" * (17 << 20) + b'"]')) == "undecodable"
    assert refusal(app, b"[" * (35 << 20)) == "undecodable"
    assert runs(app, task_message(b'[["' + b"x" * (15 << 20) + b'"], {}, {}]'))


def test_s6_the_sender_refuses_it_too_and_sends_nothing(app: Any) -> None:
    app.conf.max_message_size = 1000
    with pytest.raises(EncodeError, match="max_message_size"):
        app.send_task("echo", ["x" * 1000])
    with pytest.raises(EncodeError, match="max_message_size"):
        app.send_task("echo", ["x" * 1000], compression="zlib")
    assert peek(app) == []
    app.send_task("echo", ["x" * 900])
    small = make_app("small", max_message_size=500)
    assert refusal(small, peek(app)[0].raw) == "undecodable"


CODECS = ["gzip", "bzip2", "lzma", "zstd", "brotli"]


@pytest.mark.parametrize("codec", CODECS)
def test_s7_a_bomb_is_stopped_at_the_limit(app: Any, codec: str) -> None:
    bomb, content_type = compress(bytes(64 << 20), codec)
    with pytest.raises(DecodeError, match="grows past"):
        decompress(bomb, content_type)
    assert refusal(app, task_message(bomb, compression=content_type)) == "undecodable"
    fits, _ = compress(bytes(1000), codec)
    assert len(decompress(fits, content_type, 1000)) == 1000
    with pytest.raises(DecodeError, match="grows past"):
        decompress(fits, content_type, 999)


MEASURE = """
    import resource, sys
    from umbel.compression import compress, decompress
    from umbel.exceptions import DecodeError
    codec, path = sys.argv[1:]
    data = open(path, "rb").read()
    compress(b"x", codec)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decompress(data, codec)
    except DecodeError as error:
        print(str(error)[:60], file=sys.stderr)
    else:
        sys.exit("it was unpacked")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("codec", CODECS)
def test_s7_a_bomb_takes_no_memory(codec: str, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(compress(bytes(256 << 20), codec)[0])
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), codec, str(bomb)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10, f"{done.stdout} KiB"


def test_s7_a_large_dictionary_or_window_is_refused(tmp_path: Path) -> None:
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 30}]
    packed = lzma.compress(b"small", filters=filters)
    with pytest.raises(DecodeError):
        decompress(packed, "lzma")
    # A frame header that asks for a window of 2 GiB (RFC 8878, 3.1.1.1.2).
    with pytest.raises(DecodeError):
        decompress(b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([21 << 3]) + b"\x01\x00\x00", "zstd")


def test_s7_a_body_is_unpacked_once(app: Any) -> None:
    inner, content_type = compress(b"[[], {}, {}]", "gzip")
    outer, _ = compress(inner, "gzip")
    assert refusal(app, task_message(outer, compression=content_type)) == "undecodable"
    assert refusal(app, task_message(outer, compression=f"{content_type},{content_type}")) == "undecodable"


# -- S8, S9, S34, S35: what decoders choke on --------------------------------------------------------------------

DEEP = 100_000


@pytest.mark.parametrize(("content_type", "body"), [
    (JSON, b"[" * DEEP), (JSON, b"[" * DEEP + b"]" * DEEP), (JSON, b'{"a":' * DEEP), (JSON, b'[{"__type__":' * 5000),
    (MSGPACK, b"\x91" * DEEP), (MSGPACK, b"\x81\xa1a" * DEEP),
    (YAML, b"[" * 5000), (YAML, b"- " * 5000), (YAML, b"{a: " * 2000),
])  # fmt: skip
def test_s8_deep_nesting_is_refused_in_each_decoder(app: Any, content_type: str, body: bytes) -> None:
    app.conf.accept_content = ["json", "msgpack", "yaml"]
    assert refusal(app, task_message(body, content_type=content_type)) == "undecodable"


def test_s8_deep_nesting_is_refused_in_an_envelope(app: Any) -> None:
    for raw in (b"[" * DEEP, b'{"headers":' * DEEP, b'{"body":"","headers":{"a":' + b"[" * DEEP + b"]" * DEEP + b"}}"):
        assert refusal(app, raw) == "undecodable"


@pytest.mark.parametrize("raw", [b"9" * 5000, b"-" + b"9" * 5000, b"1e99999999999", b"NaN", b"Infinity", b"-Infinity"])
def test_s9_numbers_that_are_none_in_an_envelope(app: Any, raw: bytes) -> None:
    for name in (b"retries", b"timelimit", b"eta", b"expires", b"group_index", b"mine"):
        envelope = encode_envelope(task_message()).replace(b'"lang"', b'"' + name + b'":' + raw + b',"lang"')
        decided = admit(app, envelope)
        if isinstance(decided, Settlement):
            assert isinstance(decided.how, Dead)
            assert decided.how.reason in ("undecodable", "invalid_task")
        else:
            assert name in (b"mine", b"group_index")


@pytest.mark.parametrize("body", [
    b'{"task": "echo", "id": "x", "args": [], "kwargs": {}, "retries": Infinity}',
    b'{"task": "echo", "id": "x", "args": [], "kwargs": {}, "retries": 1e999}',
    b'{"task": "echo", "id": "x", "args": [], "kwargs": {}, "retries": NaN}',
    b'{"task": "echo", "id": "x", "args": [], "kwargs": {}, "timelimit": [NaN]}',
    b'{"task": "echo", "id": "x", "args": [], "kwargs": {}, "eta": 1e999}',
])  # fmt: skip
def test_s9_numbers_that_are_none_in_a_body_of_protocol_1(app: Any, body: bytes) -> None:
    message = Message(body=body)
    assert refusal(app, message) in ("undecodable", "invalid_task")


MOMENTS = [
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "2026-01-01",
    "20260101T00",
    "x" * 10_000,
    "\ud800",
]


@pytest.mark.parametrize("moment", [*MOMENTS, 1e308, [], {}, True])
@pytest.mark.parametrize("name", ["eta", "expires"])
def test_s9_moments_at_the_ends_of_time(app: Any, name: str, moment: Any) -> None:
    app.broker.publish([])
    inject(app, task_message(**{name: moment}, id="odd"))
    with start_worker(app):
        assert app.send_task("echo", [1]).get(timeout=20) == [[1], {}]
    assert app.broker.size("celery", Place.HELD) == 0
    for place in (Place.READY, Place.SCHEDULED, Place.DEAD):
        peek(app, place)


def test_s34_a_billion_laughs_are_not_told(app: Any) -> None:
    app.conf.accept_content = ["json", "yaml"]
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    merges = ["b0: &b0 {k0: 1, k1: 1}"]
    merges += [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 20)}]}}" for n in range(1, 12)]
    for text in ("\n".join(lines), "\n".join(merges), "&a [*a]", "&a {b: *a}", "- &a [1]\n- *b"):
        with pytest.raises(DecodeError):
            loads(text.encode(), YAML, "utf-8", ["yaml"])
        assert refusal(app, task_message(text.encode(), content_type=YAML)) == "undecodable"
    shared = [1, 2]
    from umbel.serialization import dumps

    content_type, encoding, data = dumps([shared, shared, {"a": shared}], "yaml")
    assert b"*id001" in data
    assert loads(data, content_type, encoding, ["yaml"]) == [shared, shared, {"a": shared}]


def test_s34_yaml_makes_no_objects(app: Any, tmp_path: Path) -> None:
    app.conf.accept_content = ["yaml"]
    canary = tmp_path / "canary"
    for tag in (
        "!!python/object/apply:os.mkdir",
        "!!python/object/new:os.mkdir",
        "!!python/name:os.mkdir",
        "!!python/module:os",
    ):
        body = f"{tag} ['{canary}']".encode()
        assert refusal(app, task_message(body, content_type=YAML)) == "undecodable"
    assert not canary.exists()


def test_s35_msgpack_that_lies_about_its_length_or_holds_extensions(app: Any) -> None:
    import msgpack

    app.conf.accept_content = ["msgpack"]
    lies = [first + b"\xff\xff\xff\xff\x01" for first in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")]
    lies += [b"\xc1", b"\x93\x90", b"\x93\x90\x80\x80\x00"]
    lies += [msgpack.packb(msgpack.ExtType(5, b"x")), msgpack.packb({(1, 2): 1})]
    for body in lies:
        assert refusal(app, task_message(body, content_type=MSGPACK)) == "undecodable", body


@pytest.mark.parametrize("content_type", [MSGPACK, YAML, "application/json"])
@given(data=st.binary(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_s38_any_bytes_are_a_value_or_a_decode_error(content_type: str, data: bytes) -> None:
    try:
        value = loads(data, content_type, "utf-8", [content_type])
    except DecodeError as error:
        assert error.content_type == content_type
    else:
        assert isinstance(repr(value), str)


# -- S10, S38: any message at all --------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
NAMES = ["lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
         "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
         "stamps", "compression", "umbel-signature", "headers", "is_eager", "loglevel", "delivery_info", "__class__",
         "update", "redelivered"]  # fmt: skip
PROPERTIES = ["correlation_id", "reply_to", "priority", "delivery_info", "expiration"]
FUZZED = make_app("fuzzed")
SIGNED = make_app("fuzzed-signed", security_key="k" * 32)


@given(headers=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), trees, max_size=5),
       properties=st.dictionaries(st.sampled_from(PROPERTIES), trees, max_size=3),
       body=trees, named=st.booleans())  # fmt: skip
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_s10_no_message_breaks_a_worker(headers: Any, properties: Any, body: Any, named: bool) -> None:
    if named:
        headers = {"task": "echo", "id": "x", **headers}
    envelope = {"body": base64.b64encode(json.dumps(body).encode()).decode(), "content-type": "application/json",
                "content-encoding": "utf-8", "headers": headers,
                "properties": {"body_encoding": "base64", **properties}}  # fmt: skip
    raw = json.dumps(envelope).encode()
    for app in (FUZZED, SIGNED):
        decided = admit(app, raw)
        assert isinstance(decided, Execution | Settlement)
        if app is SIGNED:
            assert isinstance(decided, Settlement)


@given(raw=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_s10_no_bytes_break_a_worker(raw: bytes) -> None:
    assert isinstance(admit(FUZZED, raw), Settlement)


@pytest.mark.parametrize("id", ["a\nb", "a\x00", "\x1b[31m", "\u2028", "\u202e", "\ud800", "x" * 256])
def test_s10_an_id_is_printable_and_not_long(app: Any, id: str) -> None:
    assert refusal(app, task_message(id=id)) == "invalid_task"
    with pytest.raises(ValueError, match="task_id"):
        app.send_task("echo", [], task_id=id)
    assert peek(app) == []


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
@pytest.mark.parametrize("text", [
    "a b", "é", "\x00", "\ud800", "a\nb", "'; DROP TABLE message; --", "x') redis.call('FLUSHALL') --", "*", "[a-z]*",
    "{celery}", "../../x", "x" * 300, "%s", "\x06\x163",
])  # fmt: skip
def test_s10_s24_s25_names_are_names_and_nothing_else(
    store: str, text: str, request: pytest.FixtureRequest, sqlite_url: str
) -> None:
    url = {"memory": f"memory://{abs(hash(request.node.name))}", "sqlite": sqlite_url}.get(store)
    url = url or request.getfixturevalue("redis_url")
    app = Umbel("shop", broker=url, backend=url, set_as_current=False)
    app.send_task("echo", ["kept"], task_id="kept")
    refused = None
    try:
        app.send_task("echo", ["odd"], queue=text, headers={text: text}, task_id="odd", priority=0)
    except (CeleryError, ValueError) as error:
        refused = error
    assert len(app.broker.peek("celery")) == 1
    if refused is None:
        (odd,) = app.broker.peek(text)
        assert decode_call(decode_envelope(odd.raw)).headers[text] == text
        assert app.broker.size(text) == 1
        assert app.broker.purge(text) == 1
        assert app.broker.size(text) == 0
    else:
        assert isinstance(refused, ImproperlyConfigured)
        assert not text.isprintable() or len(text) > 255
    assert app.broker.size("celery") == 1
    app.close()


ODD_IDS = ["*", "[a-z]*", "a b", "é", "'; DROP TABLE result; --", "%", "_", "{x}", "../x", "x" * 255]


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
def test_s10_s24_s25_ids_reach_their_own_result_and_no_other(
    store: str, request: pytest.FixtureRequest, sqlite_url: str
) -> None:
    url = {"memory": f"memory://{request.node.name}", "sqlite": sqlite_url}.get(store)
    url = url or request.getfixturevalue("redis_url")
    app = Umbel("shop", broker=url, backend=url, set_as_current=False)

    @app.task(name="echo")
    def echo(value: Any) -> Any:
        return value

    with start_worker(app):
        results = {id: echo.apply_async((id,), task_id=id) for id in ODD_IDS}
        assert {id: result.get(timeout=20) for id, result in results.items()} == {id: id for id in ODD_IDS}
    for id in ODD_IDS:
        app.AsyncResult(id).forget()
        left = [other for other in ODD_IDS if app.AsyncResult(other).state == "SUCCESS"]
        assert left == ODD_IDS[ODD_IDS.index(id) + 1 :]
    app.close()


def test_s11_errors_about_a_message_are_short() -> None:
    with pytest.raises(InvalidTaskError) as caught:
        decode_call(Message(body=b"{}", headers={"x" * 10**6: 1}))
    assert len(str(caught.value)) < 5000
    with pytest.raises(ContentDisallowed) as refused:
        loads(b"x", "y" * 10**6, "utf-8")
    assert len(str(refused.value)) < 1000
