"""What the first, the second and the third signal mean."""

from __future__ import annotations

import signal
import time
from typing import Any

import msgspec
import pytest

from umbel.worker.plan import WorkerPlan
from umbel.worker.shutdown import EX_RESTART, Shutdown

PLAN = WorkerPlan(hostname="w@h", pool="prefork", concurrency=1, processes=1, queues=())


def shut(*numbers: int, **changes: Any) -> Shutdown:
    shutdown = Shutdown(msgspec.structs.replace(PLAN, **changes))
    for number in numbers:
        shutdown.on_signal(number)
        shutdown.advance()
    return shutdown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_is_warm(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    shutdown = shut(number)
    left = shutdown.left(time.monotonic())
    assert (shutdown.how, shutdown.exit_code) == ("warm", 0)
    assert left is not None and 24 < left <= 25


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 130),
        ([signal.SIGQUIT], 1),
        ([signal.SIGTERM, signal.SIGQUIT], 1),
    ],
)
def test_cold(numbers: list[int], code: int) -> None:
    shutdown = shut(*numbers)
    assert (shutdown.how, shutdown.exit_code, shutdown.left(time.monotonic())) == ("cold", code, 0.0)


def test_tasks_may_run_for_ever() -> None:
    assert shut(signal.SIGTERM, shutdown_timeout=None).left(time.monotonic()) is None


def test_the_soft_window_comes_before_cold_and_a_third_signal_ends_it() -> None:
    shutdown = shut(signal.SIGQUIT, soft_shutdown_timeout=60.0)
    left = shutdown.left(time.monotonic())
    assert left is not None and left > 59
    shutdown.on_signal(signal.SIGQUIT)
    shutdown.advance()
    assert shutdown.left(time.monotonic()) == 0.0


def test_sigterm_can_be_made_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    assert shut(signal.SIGTERM).how == "cold"


def test_other_signals_do_not_stop() -> None:
    shutdown = Shutdown(PLAN)
    shutdown.on_signal(signal.SIGUSR1)
    assert (shutdown.asked.is_set(), shutdown.take_others(), shutdown.take_others()) == (False, [signal.SIGUSR1], [])


@pytest.mark.parametrize(
    ("numbers", "restart", "code"),
    [([signal.SIGHUP], True, EX_RESTART), ([signal.SIGHUP, signal.SIGTERM], False, 143), ([signal.SIGTERM], False, 0)],
)
def test_sighup_without_a_terminal_asks_for_a_new_start(numbers: list[int], restart: bool, code: int) -> None:
    shutdown = shut(*numbers)
    assert (shutdown.restart, shutdown.ended(True)) == (restart, code)


def test_a_stop_that_could_not_give_everything_back_is_no_success() -> None:
    assert shut(signal.SIGTERM).ended(False) == 69
    assert shut(signal.SIGHUP).ended(False) == 69
    assert shut(signal.SIGQUIT).ended(False) == 1
