from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from umbel import signals
from umbel.current import pop_frame, push_frame
from umbel.utils import log, nodenames, text
from umbel.utils.graph import DependencyGraph

CONF = SimpleNamespace(
    worker_log_format=log.PROCESS_FORMAT,
    worker_log_datefmt=None,
    worker_task_log_format=log.TASK_FORMAT,
    worker_task_log_datefmt=None,
    worker_log_json=False,
    worker_log_color=None,
    worker_hijack_root_logger=True,
    worker_redirect_stdouts=True,
    worker_redirect_stdouts_level="WARNING",
)
LOGGERS = ("", "celery", "celery.task", "celery.redirected", "py.warnings")


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """Give every test its own logging, and standard output back afterwards."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in loggers]
    streams = sys.stdout, sys.stderr
    log.Logging.already_setup = False
    yield
    log.Logging.already_setup = False
    logging.captureWarnings(False)
    sys.stdout, sys.stderr = streams
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def setup(**options: Any) -> io.StringIO:
    stream = io.StringIO()
    log.setup_logging(CONF, logfile=stream, **options)
    return stream


def test_lines_have_celerys_formats() -> None:
    stream = setup(loglevel="info", redirect_stdouts=False)
    logging.getLogger("celery.worker").info("ready")
    log.get_task_logger("proj.tasks").warning("half done")
    first, second = stream.getvalue().splitlines()
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.fullmatch(rf"\[{moment}: INFO/MainProcess\] ready", first)
    assert re.fullmatch(rf"\[{moment}: WARNING/MainProcess\] \?\?\?\[\?\?\?\]: half done", second)


def test_a_task_line_carries_name_and_id_which_cannot_forge_a_line() -> None:
    stream = setup(loglevel="info", redirect_stdouts=False)
    push_frame(SimpleNamespace(name="proj.add"), SimpleNamespace(id="x\r\n[2026] \x1b]0;\u2028evil"))
    try:
        log.get_task_logger("proj.tasks").info("line one\nline two")
    finally:
        pop_frame()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2, "only the task's own line break is one"
    assert lines[0].endswith(r"proj.add[x\r\n[2026] \x1b]0;\u2028evil]: line one")


def test_a_second_setup_does_nothing_unless_forced() -> None:
    first = setup(loglevel="info", redirect_stdouts=False)
    second = setup(loglevel="info", redirect_stdouts=False)
    third = setup(loglevel="info", redirect_stdouts=False, force=True)
    logging.getLogger("celery").info("hello")
    assert [bool(stream.getvalue()) for stream in (first, second, third)] == [False, False, True]


def test_the_root_logger_is_taken_over_only_if_that_is_wanted() -> None:
    root = logging.getLogger()
    own = logging.NullHandler(), logging.StreamHandler(io.StringIO())
    root.handlers[:] = own
    kept = SimpleNamespace(**{**vars(CONF), "worker_hijack_root_logger": False})
    log.setup_logging(kept, loglevel="info", logfile=io.StringIO(), redirect_stdouts=False)
    assert tuple(root.handlers) == own
    setup(redirect_stdouts=False, force=True)
    assert not set(own) & set(root.handlers)


def test_signals_can_take_over_and_adjust() -> None:
    seen: list[tuple[str, Any]] = []

    def adjusted(logger: logging.Logger, **_: Any) -> None:
        seen.append(("adjusted", logger.name))

    def taken(loglevel: int, **_: Any) -> None:
        seen.append(("taken", loglevel))

    signals.after_setup_logger.connect(adjusted)
    signals.after_setup_task_logger.connect(adjusted)
    setup(redirect_stdouts=False)
    assert seen == [("adjusted", "root"), ("adjusted", "celery.task")]
    signals.setup_logging.connect(taken)
    try:
        out = sys.stdout
        assert log.setup_logging(CONF, loglevel="DEBUG", force=True)
        assert seen[2:] == [("taken", logging.DEBUG)]
        assert sys.stdout is out, "whoever takes over decides about standard output too"
    finally:
        signals.setup_logging.disconnect(taken)


def test_what_a_setup_receiver_raises_is_raised() -> None:
    def bad(**_: Any) -> None:
        raise LookupError("no")

    signals.setup_logging.connect(bad)
    try:
        with pytest.raises(LookupError):
            setup()
    finally:
        signals.setup_logging.disconnect(bad)


def test_prints_become_warnings() -> None:
    stream = setup(loglevel="info")
    print("from a task")
    print("to standard error", file=sys.stderr)
    assert [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "WARNING/MainProcess] from a task",
        "WARNING/MainProcess] to standard error",
    ]


def test_a_handler_that_writes_to_the_proxy_does_not_recurse() -> None:
    logger = logging.Logger("loop")
    proxy = log.LoggingProxy(logger, "INFO")
    logger.addHandler(logging.StreamHandler(proxy))
    assert proxy.write("100% of it\n") == 11
    assert proxy.write("\n") == 1
    proxy.close()
    assert proxy.write("dropped") == 7
    assert not proxy.isatty()


def test_in_a_signal_handler_no_logger_is_used() -> None:
    stream = io.StringIO()
    logger = logging.Logger("signal")
    logger.addHandler(logging.StreamHandler(stream))
    proxy = log.LoggingProxy(logger)
    with log.in_sighandler():
        proxy.write("stopping")
    assert not stream.getvalue()
    proxy.write("stopped")
    assert stream.getvalue() == "stopped\n"


def test_colours_follow_the_level() -> None:
    formatter = log.ColorFormatter("%(message)s")

    def line(level: str) -> str:
        return formatter.format(logging.LogRecord("x", log.mlevel(level), "", 0, "text\ud800", (), None))

    assert line("ERROR") == "\033[1;31mtext\\ud800\033[0m"
    assert line("INFO") == "text\\ud800"


def test_levels_are_read_in_any_case() -> None:
    assert [log.mlevel(each) for each in ("info", "Warn", "30", 10, None)] == [20, 30, 30, 10, 0]
    with pytest.raises(ValueError, match="did you mean 'WARNING'"):
        log.mlevel("warnin")


def test_task_loggers_are_below_celery_task() -> None:
    logger = log.get_task_logger("some.module")
    assert logger.parent is log.task_logger
    assert log.get_task_logger("celery.task.mine").parent is log.task_logger
    with pytest.raises(RuntimeError, match="reserved"):
        log.get_task_logger("celery.task")


def test_a_child_process_names_itself() -> None:
    try:
        log.set_process_name(3)
        record = logging.LogRecord("x", 20, "", 0, "", (), None)
        assert record.processName == "ForkPoolWorker-3"
        assert nodenames.node_format("%n%I-%i.log", "w1@box.example.com") == "w1-3-3.log"
    finally:
        log.set_process_name(0, "MainProcess")


def test_node_names() -> None:
    assert nodenames.node_format("%p|%h|%n|%d|%i|%I|%%h", "w1@box.example.com") == (
        "w1@box.example.com|box.example.com|w1|example.com|0||%h"
    )
    assert nodenames.default_nodename("w1@").startswith("w1@")
    assert nodenames.default_nodename(None) == f"celery@{nodenames.gethostname()}"
    assert nodenames.host_format("worker-%n", host="box.example.com") == "worker-box"
    with pytest.raises(ValueError, match="unknown format %x"):
        nodenames.node_format("%x", "w1@box")


def test_one_line_escapes_and_shortens() -> None:
    assert text.one_line("proj.add") == "proj.add"
    assert text.one_line("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert text.one_line("a\x1b[31m\x85\u202e\ud800") == r"a\x1b[31m\x85\u202e\ud800"
    assert len(text.one_line("\n" * 5_000_000)) == 1024
    assert text.did_you_mean("queu", ["queue"]) == "; did you mean 'queue'?"
    assert text.did_you_mean("zzz", ["queue"]) == ""


def test_graph() -> None:
    graph: DependencyGraph[str] = DependencyGraph([("a", ["b", "c"]), ("b", ["c"]), ("d", [])])
    assert graph.topsort() == ["c", "b", "a", "d"]
    assert [graph.valency_of(node) for node in "abcdx"] == [3, 2, 1, 1, 0]
    assert list(graph) == ["a", "b", "c", "d"]
    assert graph.edges() == ["a", "b"]
    stream = io.StringIO()
    graph.to_dot(stream)
    assert '    "a" -> "b";\n' in stream.getvalue()
    assert '    "d";\n' in stream.getvalue()
    graph.add_edge("c", "a")
    with pytest.raises(ValueError, match="cycle"):
        graph.topsort()
