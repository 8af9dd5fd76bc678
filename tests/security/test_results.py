"""S2, S31, S32: what comes back from a store that somebody else can write to."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import make_app
from umbel.exceptions import DecodeError, RemoteError, SecurityError
from umbel.interfaces import ResultRecord
from umbel.meta import decode_meta
from umbel.serialization import decode_exception
from umbel.utils.identity import uuid
from umbel.worker.inprocess import start_worker

RAN: list[Any] = []


class Trap(Exception):
    """An exception whose making does something."""

    def __init__(self, *args: Any) -> None:
        RAN.append(("init", args))
        super().__init__(*args)

    def __new__(cls, *args: Any) -> Any:
        RAN.append(("new", args))
        return super().__new__(cls, *args)

    def __setstate__(self, state: Any) -> None:
        RAN.append(("setstate", state))


class Watched(type):
    """A class of classes that notices when it is asked."""

    def __getattr__(cls, name: str) -> Any:
        RAN.append(("getattr", name))
        raise AttributeError(name)

    def __call__(cls, *args: Any) -> Any:
        RAN.append(("call", args))
        return super().__call__(*args)

    def __instancecheck__(cls, other: Any) -> bool:
        RAN.append(("instancecheck", other))
        return True


class Meta(Exception, metaclass=Watched):
    """An exception of that class."""


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    RAN.clear()
    yield
    assert RAN == []


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name)
    yield made
    made.close()


def stored(app: Any, result: Any, state: str = "FAILURE") -> Any:
    """Return the handle of a result that somebody wrote into the store."""
    payload = json.dumps({"status": state, "result": result, "traceback": None, "children": None, "task_id": "x"})
    app.backend.store(ResultRecord(task_id="x", state=state, payload=payload.encode()))
    return app.AsyncResult("x")


CALLABLES = [
    ("os", "system", ["touch canary"]),  # CVE-2021-23727
    ("os", "system", "touch canary"),
    ("builtins", "eval", ["__import__('os').mkdir('canary')"]),
    ("builtins", "exec", ["raise SystemExit"]),
    ("builtins", "print", ["x"]),
    ("builtins", "object", []),
    ("builtins", "type", ["X", [], {}]),
    ("subprocess", "Popen", ["true"]),
    ("builtins", "__import__", ["antigravity"]),
    ("umbel.app", "Umbel", []),
    ("umbel.exceptions", "annotations", []),
]
NOWHERE = [
    ("builtins", "__class__.__mro__", []),
    ("os", "path.join.__globals__", []),
    ("umbel.exceptions", "sys.modules", []),
    ("antigravity", "error", []),
    ("this", "ZeroDivisionError", []),
    ("", "", []),
    ("os.path", "..", []),
    ("builtins", "Exception.__init__", []),
]
NOT_EXCEPTIONS = [
    ("builtins", "SystemExit", [3]),
    ("builtins", "KeyboardInterrupt", []),
    ("builtins", "BaseException", ["x"]),
    ("builtins", "GeneratorExit", []),
    ("asyncio", "CancelledError", []),
]


@pytest.mark.parametrize(("module", "name", "message"), [*CALLABLES, *NOWHERE, *NOT_EXCEPTIONS])
def test_s2_a_stored_failure_calls_nothing_and_imports_nothing(
    app: Any, module: str, name: str, message: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(app, None, "STARTED")
    before = set(sys.modules)
    handle = stored(app, {"exc_module": module, "exc_type": name, "exc_message": message})
    error = handle.get(timeout=5, propagate=False)
    assert type(error) in (SecurityError, RemoteError)
    if (module, name, message) in CALLABLES:
        assert type(error) is SecurityError or module == "umbel.exceptions"
    with pytest.raises((SecurityError, RemoteError)):
        handle.get(timeout=5)
    assert set(sys.modules) == before
    assert list(tmp_path.iterdir()) == []


def test_s2_an_exception_is_made_without_its_own_code() -> None:
    error = decode_exception({"exc_module": __name__, "exc_type": "Trap", "exc_message": ["a", 1]})
    assert type(error) is Trap
    assert error.args == ("a", 1)
    watched = decode_exception({"exc_module": __name__, "exc_type": "Meta", "exc_message": ["a"]})
    assert type(watched) is Meta
    assert decode_exception({"exc_module": __name__, "exc_type": "Meta.nothing", "exc_message": []}).args


def test_s2_a_module_that_answers_for_any_name_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = lambda name: RAN.append(name) or ValueError  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    assert type(decode_exception({"exc_module": "lazy", "exc_type": "Oops", "exc_message": ["x"]})) is RemoteError


values = st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.lists(st.text(max_size=5), max_size=3)
NAMES = ["ValueError", "OSError", "UnicodeDecodeError", "ExceptionGroup", "StopIteration", "Trap", "eval", "KeyError",
         "SyntaxError", "Retry", "NotRegistered", "ContentDisallowed"]  # fmt: skip
names = st.sampled_from(NAMES) | values
modules = st.sampled_from(["builtins", "umbel.exceptions", "celery.exceptions", "os", __name__]) | values


@given(type_=names, module=modules, message=values | st.dictionaries(st.text(max_size=3), values, max_size=2))
@settings(max_examples=400, deadline=None)
def test_s2_any_description_becomes_an_error_that_can_be_shown(type_: Any, module: Any, message: Any) -> None:
    payload = {"exc_type": type_, "exc_module": module, "exc_message": message}
    meta = decode_meta(json.dumps({"status": "FAILURE", "result": payload}).encode())
    assert isinstance(meta["result"], Exception)
    assert isinstance(repr(meta["result"]) + str(meta["result"]), str)


@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_s2_any_bytes_are_a_result_or_a_decode_error(raw: bytes) -> None:
    for payload in (raw, b"\x00celery-compressed\x00" + raw, b"\x00celery-compressed\x00application/x-gzip\x00" + raw):
        try:
            assert isinstance(decode_meta(payload), dict)
        except DecodeError:
            pass


def test_s7_a_result_that_is_a_bomb_is_stopped() -> None:
    import zlib

    bomb = b"\x00celery-compressed\x00application/x-gzip\x00" + zlib.compress(bytes(64 << 20))
    with pytest.raises(DecodeError, match="grows past"):
        decode_meta(bomb)


def test_s31_a_stored_traceback_has_no_local_values(app: Any) -> None:
    @app.task
    def careless(given: str) -> None:
        secret = "canary" + given
        raise ValueError(len(secret))

    with start_worker(app):
        result = careless.delay("-value")
        error = result.get(timeout=20, propagate=False)
    assert "raise ValueError(len(secret))" in result.traceback
    raw = app.backend.fetch([result.id])[result.id]
    assert b"canary-value" not in raw
    assert error.args == (13 - 1,)


@pytest.mark.parametrize("chained", [False, True], ids=["task", "chain"])
def test_s31_tracebacks_can_be_left_out_of_results(app: Any, chained: bool) -> None:
    app.conf.result_store_traceback = False

    @app.task
    def careless() -> None:
        raise ValueError("canary-text")

    @app.task
    def rest(value: Any) -> None:
        pass

    with start_worker(app):
        result = (careless.s() | rest.s()).delay() if chained else careless.delay()
        error = result.get(timeout=20, propagate=False)
    assert (type(error), error.args) == (ValueError, ("canary-text",))
    assert result.traceback is None
    assert b"Traceback" not in app.backend.fetch([result.id])[result.id]
    assert b"careless" not in app.backend.fetch([result.id])[result.id]
    eager = careless.apply()
    assert eager.traceback is not None, "what is in memory was not stored"


def test_s32_ids_are_random_also_after_a_fork() -> None:
    def child(write: int) -> None:
        with os.fdopen(write, "w") as pipe:
            pipe.write("\n".join(uuid() for _ in range(10_000)))
        os._exit(0)

    uuid()
    pipes = []
    for _ in range(4):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            child(write)
        os.close(write)
        pipes.append((pid, read))
    found = [uuid() for _ in range(10_000)]
    for pid, read in pipes:
        with os.fdopen(read) as pipe:
            found += pipe.read().split("\n")
        os.waitpid(pid, 0)
    assert len(set(found)) == len(found) == 50_000
