"""What Celery has under ``contrib``: abortable tasks, the remote debugger, apps for tests."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from umbel import Umbel, current_app
from umbel.contrib import rdb
from umbel.contrib.abortable import ABORTED, AbortableTask
from umbel.contrib.testing.app import TestApp as make_app
from umbel.contrib.testing.app import setup_default_app
from umbel.contrib.testing.manager import Manager
from umbel.contrib.testing.mocks import TaskMessage as task_message
from umbel.contrib.testing.worker import start_worker


@pytest.fixture
def app() -> Any:
    with setup_default_app(app := make_app()):
        yield app


def test_a_task_is_asked_to_stop_while_it_runs(app: Umbel) -> None:
    running, asked = threading.Event(), threading.Event()

    @app.task(bind=True, base=AbortableTask)
    def crunch(self: Any) -> str:
        running.set()
        assert not self.is_aborted()
        assert asked.wait(10)
        return "stopped" if self.is_aborted() else "went on"

    with start_worker(app, pool="threads"):
        result: Any = crunch.AsyncResult(crunch.delay().id)
        assert running.wait(10) and not result.is_aborted()
        result.abort()
        assert result.is_aborted() and result.state == ABORTED
        asked.set()
        assert result.get(timeout=10) == "stopped"
        assert not result.is_aborted()


def test_an_app_for_a_test_leaves_nothing_behind() -> None:
    mine = Umbel("mine", broker="memory://")
    mine.set_current()
    with setup_default_app(app := make_app()):
        app.set_current()
        assert current_app.main == "celery.tests" and current_app.conf.broker_url == "memory://"
    assert current_app.main == "mine"
    mine.close()


def test_the_trap_is_sprung_by_the_current_app(app: Umbel) -> None:
    with setup_default_app(make_app(), use_trap=True), pytest.raises(RuntimeError, match="depends on current_app"):
        _ = current_app.conf
    assert current_app is not None


def test_a_manager_joins_results_and_names_what_is_missing(app: Umbel, capsys: pytest.CaptureFixture[str]) -> None:
    @app.task
    def double(x: int) -> int:
        return x * 2

    manager = Manager(app)
    with start_worker(app):
        assert manager.join(app.ResultSet([double.delay(1), double.delay(2)]), timeout=10) == [2, 4]
        tries: list[int] = []

        def third() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise KeyError
            return 3

        assert manager.wait_for(third, (KeyError,), interval_start=0.001, interval_step=0) == 3
    waiting = app.AsyncResult("00000000-0000-4000-8000-000000000000")
    with pytest.raises(AssertionError, match="Missing task results"):
        manager.join(waiting, timeout=0.01, max_retries=1)
    assert waiting.id in capsys.readouterr().out


def test_a_message_for_tests() -> None:
    message = task_message("shop.add", id="i", args=(1,), kwargs={"y": 2})
    assert message.headers["task"] == "shop.add" and message.payload[0] == (1,)
    assert message.content_type == "application/json" and b'"y"' in message.body


def test_a_debugger_answers_on_its_port(capfd: pytest.CaptureFixture[str]) -> None:
    made: list[Any] = []
    found = threading.Event()
    listen = rdb._listen

    def note(host: str, port: int) -> Any:
        listening, actual = listen(host, port)
        made.append(actual)
        found.set()
        return listening, actual

    values: list[int] = []

    def body() -> None:
        secret = 41
        rdb.set_trace()
        values.append(secret + 1)

    rdb._listen = note
    try:
        thread = threading.Thread(target=body)
        thread.start()
        assert found.wait(10)
        with socket.create_connection(("127.0.0.1", made[0]), timeout=10) as client:
            lines = client.makefile("rw")
            lines.write("p secret\ncontinue\n")
            lines.flush()
            assert "41" in lines.read()
        thread.join(10)
    finally:
        rdb._listen = listen
    assert values == [42] and not rdb._current
    assert f"Remote Debugger:{made[0]}" in capfd.readouterr().err
