"""The screen of ``umbel events``, on a terminal of its own, beside a worker that runs tasks."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import DEADLINE, WorkerProcess, environment, run, worker
from terminal_support import Terminal
from umbel.events.screen import row

APP = """
from umbel import Umbel
app = Umbel("watched", broker="sqlite:///{folder}/q.db", backend="sqlite:///{folder}/q.db")

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="fail")
def fail(text):
    raise ValueError(text)
"""
UMBEL = [sys.executable, "-m", "umbel", "-A", "watched"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "watched.py").write_text(APP.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def running(project: Path) -> Iterator[WorkerProcess]:
    with worker("watched", "-E", "-c", "1", "-n", "w1@here", "-l", "info", cwd=project, env=environment()) as process:
        yield process


def send(project: Path, code: str) -> str:
    return run(f"from watched import *\nprint({code})", cwd=project, env=environment()).strip()


def screen(project: Path, *, rows: int = 30, columns: int = 120, term: str = "vt100") -> Terminal:
    # A vt100 has no escapes that repeat or skip characters, so what is shown can be read as it is.
    env = environment(TERM=term, PYTHONPATH=str(project))
    return Terminal("-A", "watched", "events", env=env, rows=rows, columns=columns)


def shows(terminal: Terminal, text: str) -> None:
    """Wait until the text is on the screen, painting it anew: curses writes only the letters that differ."""
    deadline = time.monotonic() + DEADLINE
    while True:
        terminal.type("\x0c")
        try:
            return terminal.until(text, timeout=1)
        except AssertionError:
            if time.monotonic() > deadline:
                raise


@pytest.mark.timeout(120)
def test_tasks_are_shown_and_looked_into(project: Path, running: WorkerProcess) -> None:
    with screen(project) as terminal:
        terminal.until("UUID")
        terminal.until("w1@here")
        done = send(project, "add.delay(2, 3).id")
        shows(terminal, "SUCCESS")
        terminal.type("j")
        terminal.until(done)
        terminal.type("r")
        terminal.until(f"Task Result for {done}")
        terminal.until("5")
        terminal.until("Press any key to continue...")
        terminal.type("x")
        terminal.until("Keys: ")
        terminal.type("i")
        terminal.until(f"Task details for {done}")
        terminal.until("args: (2, 3)")
        terminal.until("Press any key")
        terminal.type("x")
        terminal.until("Keys: ")
        failed = send(project, "fail.delay('no luck').id")
        shows(terminal, "FAILURE")
        terminal.type("k")
        terminal.until(failed)
        terminal.type("t")
        terminal.until(f"Task Exception Traceback for {failed}")
        terminal.until("ValueError: no luck")
        terminal.until("Press any key")
        terminal.type("x")
        terminal.until("Keys: ")
        terminal.type("q")
        assert terminal.ended() == 0


@pytest.mark.timeout(120)
def test_tasks_are_revoked_and_limited(project: Path, running: WorkerProcess) -> None:
    with screen(project) as terminal:
        terminal.until("w1@here")
        done = send(project, "add.delay(2, 3).id")
        shows(terminal, "SUCCESS")
        terminal.type("j")
        terminal.until(done)
        terminal.type("c")
        terminal.until(f"Revoking {done}")
        terminal.until("w1@here: tasks ")
        terminal.until("flagged as revoked")
        running.expect("Tasks flagged as revoked")
        terminal.until("Press any key")
        terminal.type("x")
        terminal.until("Keys: ")
        terminal.type("l")
        terminal.until("New rate limit: ")
        terminal.type("77/x\x7fm\n")
        terminal.until("Limiting add to 77/m")
        terminal.until("w1@here: new rate limit set successfully")
        terminal.until("Press any key")
        terminal.type("x")
        terminal.until("Keys: ")
        terminal.type("l")
        terminal.until("New rate limit: ")
        terminal.type("often\n")
        terminal.until("often")
        terminal.until("Press any key")
        terminal.type("x")
        terminal.until("Keys: ")
        terminal.type("\x1b")
        assert terminal.ended() == 0


def test_a_broker_full_of_strange_events_does_not_move_the_cursor(project: Path) -> None:
    with screen(project, term="xterm-256color") as terminal:
        terminal.until("UUID")
        code = """
with app.events.default_dispatcher(hostname="w\\x1b]0;x\\x07") as d:
    d.send("task-received", uuid="id\\x1b[2J", name="na\\nme\\x00", args="\\u202e")
    d.send("task-failed", uuid="id\\x1b[2J", traceback="one\\n" * 100 + "last \\x1b[5m line", exception="E")
"""
        run("from watched import *\n" + code, cwd=project, env=environment())
        terminal.until(r"id\x1b[2J")
        terminal.type("j")
        terminal.until(r"id\x1b[2J")
        terminal.type("t")
        terminal.until("j, k: move")
        terminal.type("\x1b[6~" * 5)
        terminal.until(r"last \x1b[5m line")
        terminal.type("x")
        terminal.until("Keys: ")
        assert "\x1b[5m" not in terminal.shown and "\x07" not in terminal.shown
        terminal.type("\x03")
        assert terminal.ended() == 0
        # The terminal is as it was: back from the alternate screen.
        assert "\x1b[?1049l" in terminal.shown


@pytest.mark.parametrize(("rows", "columns"), [(4, 10), (10, 40), (60, 300)])
def test_any_size_of_window_will_do(rows: int, columns: int, project: Path) -> None:
    with screen(project, rows=rows, columns=columns) as terminal:
        terminal.until("Keys")
        send(project, "app.events.default_dispatcher().__enter__().send('task-received', uuid='4711', name='n')")
        terminal.type("jjik")
        terminal.resize(24, 80)
        # What the window is made of is said by the signal that a resized terminal sends.
        terminal.process.send_signal(28)
        terminal.until("Keys: ")
        terminal.type("qq")
        assert terminal.ended() == 0


def test_where_there_is_no_terminal_it_says_what_to_do(project: Path) -> None:
    done = subprocess.run(
        [*UMBEL, "events"], cwd=project, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "--dump prints the events" in done.stderr


@pytest.mark.parametrize("width", [0, 1, 20, 41, 79, 120, 300])
def test_a_row_is_as_wide_as_it_was_asked_for(width: int) -> None:
    text = row(width, "u" * 50, "proj." + "t" * 60, "w" * 40, "18:00:01", "SUCCESS")
    assert len(text) == width
    if width in (79, 120):
        assert re.fullmatch(r"u.*…u+ proj.*…t+ w.*…w+ 18:00:01 SUCCESS ", text)
