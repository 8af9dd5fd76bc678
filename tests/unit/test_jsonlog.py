"""The log as JSON: one line for a record, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from umbel import Umbel
from umbel.context import Context
from umbel.current import pop_frame, push_frame
from umbel.utils.jsonlog import JsonFormatter
from umbel.utils.log import Logging, get_task_logger, task_logger


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> Iterator[logging.Logger]:
    logger = logging.getLogger("test.jsonlog")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    yield logger
    logger.removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_object(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("%d of %s", 3, "four", extra={"order": 7, "what": object})
    (found,) = lines(stream)
    assert found["message"] == "3 of four" and found["level"] == "WARNING" and found["logger"] == "test.jsonlog"
    assert found["time"].endswith("+00:00") and isinstance(found["pid"], int)
    assert found["extra"] == {"order": 7, "what": "<class 'object'>"}
    assert "task_id" not in found and "trace_id" not in found and "error" not in found


@pytest.mark.parametrize("text", ["a\nb\r\x1b]0;", "\u2028\u2029", "\ud800", "\U0001f600", "\x00", '"}\n{"level":"x"'])
def test_no_text_forges_a_line(text: str, logger: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("%s", text, extra={text: text})
    assert stream.getvalue().isascii() and stream.getvalue().count("\n") == 1
    (found,) = lines(stream)
    assert found["error"]["type"] == "ValueError" and "Traceback" in found["error"]["traceback"]
    if text != "\ud800":
        assert found["message"] == text and found["error"]["message"] == text
    found["message"].encode()


def test_what_json_does_not_have_is_written_as_text(logger: logging.Logger, stream: io.StringIO) -> None:
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError

    ring: list[Any] = []
    ring.append(ring)
    logger.error("x", extra={"ring": ring})
    logger.error("x", extra={"keys": {(1, 2): 3}})
    logger.error("x", extra={"rude": Rude()})
    assert [found["message"] for found in lines(stream)] == ["x", "x", "x"]


def test_the_task_that_runs_is_named(logger: logging.Logger, stream: io.StringIO) -> None:
    app = Umbel("shop", broker="memory://", set_as_current=False)
    task = app.task(name="shop.add")(lambda: 0)
    request = Context(id="1", root_id="0", retries=2, hostname="w1@box", delivery_info={"routing_key": "mail"})
    push_frame(task, request)
    try:
        logger.info("a")
        logger.warning("b")
    finally:
        pop_frame()
    (found,) = lines(stream)
    assert {name: found[name] for name in ("task_id", "task_name", "root_id", "retries", "queue", "worker")} == {
        "task_id": "1",
        "task_name": "shop.add",
        "root_id": "0",
        "retries": 2,
        "queue": "mail",
        "worker": "w1@box",
    }


def test_a_line_about_a_task_that_does_not_run_names_it_too(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("Task %(name)s[%(id)s] received", {"name": "shop.add", "id": "7"})
    (found,) = lines(stream)
    assert (found["task_id"], found["task_name"]) == ("7", "shop.add")


def test_the_trace_is_named(logger: logging.Logger, stream: io.StringIO) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("test").start_as_current_span("x") as span:
        logger.warning("inside")
    (found,) = lines(stream)
    assert found["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert found["span_id"] == f"{span.get_span_context().span_id:016x}"


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let logging be set up, and take it back."""
    root, before = logging.getLogger(), (task_logger.handlers[:], task_logger.propagate, task_logger.level)
    handlers, level = root.handlers[:], root.level
    root.handlers[:], task_logger.handlers[:] = [], []
    monkeypatch.setattr(Logging, "already_setup", False)
    yield
    for handler in (*root.handlers, *task_logger.handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    task_logger.handlers[:], task_logger.propagate = before[0], before[1]
    task_logger.setLevel(before[2])


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    ("setting", "given", "expected"), [(True, None, True), (False, True, True), (True, False, False)]
)
def test_the_setting_and_the_option(setting: bool, given: bool | None, expected: bool) -> None:
    app = Umbel("shop", broker="memory://", worker_log_json=setting, set_as_current=False)
    stream = io.StringIO()
    Logging(app.conf, given).setup("INFO", stream, redirect_stdouts=False)  # type: ignore[arg-type]
    logging.getLogger("other").warning("hello")
    get_task_logger("shop.tasks").warning("from a task")
    first, second = stream.getvalue().splitlines()
    if expected:
        assert json.loads(first)["message"] == "hello" and json.loads(second)["message"] == "from a task"
    else:
        # Celery's formats are what they were.
        assert first.startswith("[") and first.endswith("] hello")
        assert second.endswith("] ???[???]: from a task")


def test_importing_it_imports_no_tracing() -> None:
    import subprocess

    code = "import umbel.utils.log, sys; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
