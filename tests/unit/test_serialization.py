"""Serializers, compression and exceptions on the wire."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from umbel import exceptions, jsoncodec, serialization
from umbel.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    RemoteError,
    Retry,
    SecurityError,
)
from umbel.serialization import (
    compress,
    decode_exception,
    decompress,
    dumps,
    encode_exception,
    json_dumps,
    json_loads,
    loads,
    register,
    register_type,
)

# -- JSON --------------------------------------------------------------------------------------------------------

TAGGED = [
    (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "datetime", "2026-01-02T03:04:05.000006+00:00"),
    (date(2026, 1, 2), "date", "2026-01-02"),
    (time(3, 4, 5), "time", "03:04:05"),
    (Decimal("1.50"), "decimal", "1.50"),
    (UUID(int=5), "uuid", {"hex": "00000000000000000000000000000005"}),
    (b"text", "bytes", "text"),
    (b"\xff\x00", "base64", "/wA="),
]


@pytest.mark.parametrize(("value", "marker", "encoded"), TAGGED)
def test_typed_values_are_tagged_as_kombu_tags_them(value: Any, marker: str, encoded: Any) -> None:
    assert json.loads(json_dumps(value)) == {"__type__": marker, "__value__": encoded}
    assert json_loads(json_dumps(value).encode()) == value


def test_plain_json_and_its_spacing() -> None:
    assert json_dumps({"a": (1, None, True), 2: "é"}) == '{"a": [1, null, true], "2": "\\u00e9"}'


@pytest.mark.parametrize("raw", [b'{"\\u005f_type__": "date", "__value__": "2026-01-02"}',
                                 b'{"__t\\u0079pe__": "date", "__value__": "2026-01-02"}'])  # fmt: skip
def test_an_escaped_tag_is_a_tag(raw: bytes) -> None:
    assert json_loads(raw) == date(2026, 1, 2)


@pytest.mark.parametrize("raw", [
    b"", b"{", b"[1,]", b'"\xff"', b"\xef\xbb\xbf1", b"[" * 100_000, b"1" * 5000,
    b'{"__type__": "nope", "__value__": 1}',
    b'{"__type__": "date", "__value__": 1}',
    b'{"__type__": [], "__value__": 1}',
    b'{"__type__": "uuid", "__value__": {"x": 1}}',
])  # fmt: skip
def test_bad_json_is_a_decode_error(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        json_loads(raw)


def test_huge_numbers_and_surrogates() -> None:
    assert json_loads(b"[123456789012345678901234567890]") == [123456789012345678901234567890]
    assert json_loads(b'"\\ud800"') == "\ud800"
    assert json_loads(bytearray(b"[1]")) == json_loads(memoryview(b"[1]")) == [1]


def test_a_json_method_wins() -> None:
    class Money(Decimal):
        def __json__(self) -> str:
            return f"EUR {self}"

    assert json_dumps([Money(5)]) == '["EUR 5"]'


def test_lazy_strings_of_django_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Promise:
        def __str__(self) -> str:
            return "hello"

    module = types.ModuleType("django.utils.functional")
    module.Promise = Promise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django.utils.functional", module)
    assert json_dumps(Promise()) == '"hello"'


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


class Pixel(Point):
    pass


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget what a test registers."""
    kept = [
        (mapping, dict(mapping))
        for mapping in (
            jsoncodec._encoders,
            jsoncodec._decoders,
            serialization._by_name,
            serialization._by_content_type,
        )
    ]
    yield
    for mapping, before in kept:
        mapping.clear()  # type: ignore[attr-defined]
        mapping.update(before)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("registries")
def test_registered_types() -> None:
    register_type(Point, "point", lambda point: [point.x, point.y], lambda pair: Point(*pair))
    again = json_loads(json_dumps(Pixel(3, 4)).encode())
    assert (type(again), again.x, again.y) == (Point, 3, 4)
    register_type(Point, None, lambda point: f"{point.x}/{point.y}")
    assert json_dumps(Point(1, 2)) == '"1/2"'


# -- serializers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content_type", "encoding"), [
    ("json", "application/json", "utf-8"),
    ("pickle", "application/x-python-serialize", "binary"),
    ("yaml", "application/x-yaml", "utf-8"),
    ("msgpack", "application/x-msgpack", "binary"),
])  # fmt: skip
def test_names_are_kombus(name: str, content_type: str, encoding: str) -> None:
    found_type, found_encoding, data = dumps({"a": [1, "é"]}, name)
    assert (found_type, found_encoding) == (content_type, encoding)
    assert loads(data, content_type, encoding, [name]) == {"a": [1, "é"]}
    assert loads(data, content_type, encoding, {content_type}) == {"a": [1, "é"]}


def test_kombu_reads_what_we_write() -> None:
    from kombu.serialization import loads as kombu_loads

    for name in ("json", "pickle", "yaml", "msgpack"):
        content_type, encoding, data = dumps({"a": [1, "é"]}, name)
        assert kombu_loads(data, content_type, encoding, force=True) == {"a": [1, "é"]}


def test_raw_content_is_handed_over() -> None:
    assert dumps(b"x", "raw") == ("application/data", "binary", b"x")
    assert dumps("é", "raw") == ("application/data", "utf-8", "é".encode())
    assert dumps("é", None) == ("text/plain", "utf-8", "é".encode())
    assert dumps([1], None) == ("application/json", "utf-8", b"[1]")
    assert loads(b"\xff", "application/data", "binary", ()) == b"\xff"
    assert loads("é".encode("latin-1"), "application/text", "latin-1", ()) == "é"
    with pytest.raises(EncodeError):
        dumps([1], "raw")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


def test_only_json_is_accepted_unless_told() -> None:
    content_type, encoding, data = dumps(Bomb(), "pickle")
    for accept in (None, ("json",), ("yaml", "application/json"), ()):
        with pytest.raises(ContentDisallowed, match="accept_content") as caught:
            loads(data, content_type, encoding, accept)
        assert caught.value.content_type == content_type
    with pytest.raises(ContentDisallowed):
        loads(b"{}", "application/json", "utf-8", ["pickle"])


@pytest.mark.parametrize(("content_type", "data"), [
    ("application/x-yaml", b"!!python/object/apply:os.system ['true']"),
    ("application/x-yaml", b"[" * 2000),
    ("application/x-msgpack", b"\xc1"),
    ("application/x-python-serialize", b"junk"),
    ("text/plain", b"\xff"),
])  # fmt: skip
def test_broken_content_is_a_decode_error(content_type: str, data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        loads(data, content_type, "utf-8", [content_type])
    assert caught.value.content_type == content_type


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ImproperlyConfigured, match="json, pickle, yaml, msgpack"):
        dumps(1, "jsn")


@pytest.mark.usefixtures("registries")
def test_a_registered_serializer_is_used() -> None:
    register("upper", lambda value: value.upper(), lambda data: data.decode().lower(), "application/x-upper")
    assert dumps("abc", "upper") == ("application/x-upper", "utf-8", b"ABC")
    assert loads(b"ABC", "application/x-upper", "utf-8", ["upper"]) == "abc"
    register("writeonly", str, None, "application/x-wo")
    assert loads(b"1", "application/x-wo", "utf-8", ["writeonly"]) == "1"
    register("readonly", None, len, "application/x-ro")
    with pytest.raises(ImproperlyConfigured, match="only read"):
        dumps(1, "readonly")


@pytest.mark.parametrize(("module", "name"), [("msgpack", "msgpack"), ("yaml", "yaml")])
def test_a_missing_extra_says_what_to_install(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: dumps(1, name), lambda: loads(b"1", f"application/x-{name}", "", [name])):
        with pytest.raises(ImproperlyConfigured, match=rf"pip install 'umbel\[{name}\]'"):
            call()


@pytest.mark.parametrize(("module", "name"), [("zstandard", "zstd"), ("brotli", "brotli")])
def test_a_missing_codec_says_what_to_install(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "zstd" and sys.version_info >= (3, 14):
        pytest.skip("it is in the standard library")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImproperlyConfigured, match=rf"pip install 'umbel\[{name}\]'"):
        compress(b"x", name)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, umbel.message; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"yaml", "msgpack", "kombu", "celery", "zstandard", "brotli", "lzma", "bz2", "redis"}
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.parametrize(("value", "expected"), [
    ({"a": [1, {2}]}, r"the value\['a'\]\[1\] is of type set, .*list\(\.\.\.\)"),
    ({"a": {(1, 2): 3}}, r"the value\['a'\] is of type dict, .*strings as its keys"),
    ([object()], r"the value\[0\] is of type object, .*register_type"),
    ([types.SimpleNamespace(pk=3)], r"the value\[0\] is of type types.SimpleNamespace, .*primary key"),
])  # fmt: skip
def test_an_encode_error_names_the_part(value: Any, expected: str) -> None:
    with pytest.raises(EncodeError, match=expected):
        json_dumps(value)
    with pytest.raises(EncodeError, match=expected):
        dumps(value, "json")


def test_a_circle_is_an_encode_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EncodeError, match="contains itself"):
        json_dumps(circle)


def test_other_serializers_name_the_part_too() -> None:
    with pytest.raises(EncodeError, match=r"the value\['f'\] is of type function"):
        dumps({"a": 1, "f": lambda: 1}, "pickle")
    with pytest.raises(EncodeError, match=r"the value\[0\] is of type object, which msgpack"):
        dumps([object()], "msgpack")


# -- compression -------------------------------------------------------------------------------------------------

BOMB_SIZE = 8 << 20
CODECS = ["gzip", "zlib", "bzip2", "lzma", "zstd", "brotli"]


@pytest.mark.parametrize("name", CODECS)
def test_a_bomb_is_refused_before_it_grows(name: str) -> None:
    import tracemalloc

    size = BOMB_SIZE if name != "lzma" else 4 * BOMB_SIZE  # its dictionary alone takes 8 MiB
    packed, content_type = compress(b"\0" * size, name)
    assert len(packed) < size // 500
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="grows past 65536 bytes"):
            decompress(packed, content_type, 1 << 16)
        assert tracemalloc.get_traced_memory()[1] < size // 2
    finally:
        tracemalloc.stop()
    assert len(decompress(packed, content_type, size)) == size


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_compressed_data_is_read_back(name: str, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    packed, content_type = compress(data[:size], name)
    assert decompress(packed, content_type) == data[:size]
    assert decompress(packed, name, size) == data[:size]


@pytest.mark.parametrize("name", CODECS)
def test_broken_compressed_data_is_refused(name: str) -> None:
    packed, content_type = compress(bytes(range(256)) * 40, name)
    for broken in (packed[:-6], packed[: len(packed) // 2], b"junk" * 10, b""):
        with pytest.raises(DecodeError):
            decompress(broken, content_type)


def test_real_gzip_is_read_as_well() -> None:
    import gzip

    assert decompress(gzip.compress(b"hello"), "application/x-gzip") == b"hello"
    assert decompress(zlib.compress(b"hello"), "application/x-gzip") == b"hello"


def test_unknown_compressions() -> None:
    with pytest.raises(ImproperlyConfigured, match="brotli, bzip"):
        compress(b"", "rar")
    with pytest.raises(DecodeError, match="rar"):
        decompress(b"", "rar")


# -- exceptions --------------------------------------------------------------------------------------------------

RAN: list[str] = []


class SideEffect(Exception):
    def __new__(cls, *args: Any) -> SideEffect:
        RAN.append("new")
        return super().__new__(cls, *args)

    def __init__(self, *args: Any) -> None:
        RAN.append("init")
        super().__init__(*args)

    class Inner(ValueError):
        pass


class NeedsTwo(OSError):
    def __init__(self, one: int, two: str, *, three: int) -> None:
        super().__init__(one, two)


def stored(exc_type: Any, message: Any = (), module: Any = None) -> BaseException:
    return decode_exception({"exc_type": exc_type, "exc_message": message, "exc_module": module})


@pytest.mark.parametrize("exc", [
    ValueError("x", 1),
    KeyError("k"),
    FileNotFoundError(2, "no"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ZeroDivisionError(),
    StopIteration(3),
    SideEffect.Inner("deep"),
])  # fmt: skip
def test_an_exception_survives(exc: Exception) -> None:
    again = decode_exception(json_loads(json_dumps(encode_exception(exc)).encode()))
    assert type(again) is type(exc)
    assert again.args == exc.args
    assert str(again) == str(exc)


def test_no_code_of_the_class_is_run() -> None:
    RAN.clear()
    again = stored("SideEffect", ["a"], __name__)
    assert type(again) is SideEffect
    assert again.args == ("a",)
    assert RAN == []
    again = stored("NeedsTwo", [2, "two"], __name__)
    assert isinstance(again, NeedsTwo)
    assert again.args == (2, "two")


OURS = [
    cls
    for cls in vars(exceptions).values()
    if isinstance(cls, type) and issubclass(cls, exceptions.CeleryError) and cls.__module__ == exceptions.__name__
]


@pytest.mark.parametrize("cls", OURS)
def test_our_exceptions_survive_json_and_pickle(cls: type[exceptions.CeleryError]) -> None:
    exc = cls("some", None) if cls in (exceptions.PublishUnknown, RemoteError) else cls("some")
    if cls is Retry:
        exc = Retry("why", ValueError("reason"), 5)
    encoded = encode_exception(exc)
    assert encoded["exc_module"] in ("celery.exceptions", "billiard.exceptions", "kombu.exceptions")
    again = decode_exception(json_loads(json_dumps(encoded).encode()))
    assert type(again) is cls
    assert type(pickle.loads(pickle.dumps(exc))) is cls
    if cls is Retry:
        assert str(again) == "Retry in 5s: ValueError('reason')"
    else:
        assert str(again) == str(exc)


@pytest.mark.parametrize(("exc", "module"), [
    (exceptions.MaxRetriesExceededError(), "celery.exceptions"),
    (exceptions.SoftTimeLimitExceeded(), "billiard.exceptions"),
    (exceptions.OperationalError(), "kombu.exceptions"),
])  # fmt: skip
def test_our_exceptions_have_celerys_homes(exc: Exception, module: str) -> None:
    import importlib

    assert encode_exception(exc)["exc_module"] == module
    assert hasattr(importlib.import_module(module), type(exc).__name__)


def test_celerys_client_rebuilds_ours() -> None:
    from celery import Celery
    from celery.exceptions import MaxRetriesExceededError

    backend = Celery(set_as_current=False, backend="cache+memory://").backend
    assert type(backend.exception_to_python(encode_exception(exceptions.MaxRetriesExceededError("x")))) is (
        MaxRetriesExceededError
    )


def test_an_unknown_class_becomes_a_remote_error() -> None:
    again = stored("Gone", ["why", 3], "module.never.imported")
    assert isinstance(again, RemoteError)
    assert (again.exc_type, again.text) == ("module.never.imported.Gone", "why, 3")
    assert "module.never.imported" not in sys.modules
    assert str(stored("X", "text", None)) == "X: text"
    assert str(stored("f.<locals>.Error", ["text"], __name__)).endswith("f.<locals>.Error: text")


@pytest.mark.parametrize(("module", "name"), [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "object"),
    ("subprocess", "Popen"),
    ("os", "path"),
])  # fmt: skip
def test_what_is_no_exception_is_refused(module: str, name: str) -> None:
    again = stored(name, "touch pwned", module)
    assert isinstance(again, SecurityError)
    assert module == "builtins" or module in str(again)


@pytest.mark.parametrize(("module", "name"), [
    ("builtins", "SystemExit"),
    ("builtins", "KeyboardInterrupt"),
    ("builtins", "__class__.__mro__"),
    (__name__, "__builtins__.eval"),
    (__name__, "SideEffect.__init__.__globals__"),
    (__name__, "json.decoder.JSONDecodeError.__x__"),
    ("builtins", ""),
    ("", "eval"),
])  # fmt: skip
def test_odd_names_lead_nowhere(module: str, name: str) -> None:
    again = stored(name, ["x"], module)
    assert isinstance(again, RemoteError | SecurityError)


def test_a_lazy_module_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("it was woken")

        def __getattr__(self, name: str) -> Any:
            raise AssertionError("it was woken")

    monkeypatch.setitem(sys.modules, "lazy_module", Lazy("lazy_module"))
    try:
        assert isinstance(stored("Anything", ["x"], "lazy_module"), RemoteError)
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("payload", [None, "text", 7, [], {}, {"exc_type": 5}, {"exc_type": "X", "exc_module": {}}])
def test_payloads_of_other_clients(payload: Any) -> None:
    assert isinstance(decode_exception(payload), RemoteError)


def test_arguments_that_do_not_fit_become_a_remote_error() -> None:
    assert isinstance(stored("UnicodeDecodeError", ["only one"], "builtins"), RemoteError)
    assert isinstance(stored("ExceptionGroup", ["m", ["x"]], "builtins"), RemoteError)
    assert isinstance(stored("DecodeError", ["m", None, {"a": 1}], "kombu.exceptions"), RemoteError)


def test_an_exception_itself_is_kept() -> None:
    exc = ValueError("x")
    assert decode_exception(exc) is exc


def test_encoding_an_exception_never_fails() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    encoded = encode_exception(ValueError({1}, object, Rude()))
    assert encoded["exc_message"] == ["{1}", "<class 'object'>", "<unrepresentable Rude: RuntimeError>"]
    assert json_loads(json_dumps(encoded).encode()) == encoded
