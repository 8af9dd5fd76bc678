"""Real worker processes for tests: start one, wait until it is ready, stop it, look at what it said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DEADLINE = 60.0


class WorkerProcess:
    """A worker in a process of its own; its output is kept line by line."""

    def __init__(self, command: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.lines.append("<end of output>")
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def expect(self, text: str, timeout: float = DEADLINE) -> None:
        """Wait until a line holds the text."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not any(text in line for line in self.lines):
                left = deadline - time.monotonic()
                ended = "<end of output>" in self.lines
                if left <= 0 or ended:
                    raise AssertionError(f"no line with {text!r}; the worker said:\n{self.output}")
                self._changed.wait(min(left, 0.5))

    def stop(self, how: int = signal.SIGTERM, timeout: float = DEADLINE) -> int:
        """Send the signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise AssertionError(f"the worker did not stop; it said:\n{self.output}") from None
        finally:
            # Left open it would be a warning, and so a failure, in whichever test comes next.
            self._reader.join(5)
            assert self.process.stdout is not None
            self.process.stdout.close()
        return status


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child: this one without settings that would leak into it."""
    # The last two: a run of several processes says how wide its terminal is, which is not that of a test.
    ours = ("CELERY_", "UMBEL_", "BROKER", "RESULT_", "COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


@contextmanager
def worker(
    target: str,
    *options: str,
    cwd: Path,
    env: Mapping[str, str],
    celery: bool = False,
    status: int | None = 0,
    python: str = sys.executable,
) -> Iterator[WorkerProcess]:
    """Run ``umbel -A target worker options`` (or ``celery``) while the block runs, and check its exit status."""
    module = "celery" if celery else "umbel"
    command = [python, "-m", module, "-A", target, "worker", *options]
    running = WorkerProcess(command, cwd, env)
    try:
        running.expect("ready.")
        yield running
    except BaseException:
        running.stop(signal.SIGKILL)
        print(running.output)
        raise
    try:
        ended = running.stop()
    except AssertionError:
        # A real Celery hangs now and then when its SIGTERM meets the end of a task, and is not what is tested.
        if "(umbel)" in running.output:
            raise
        return
    if status is not None:
        assert ended == status, running.output


def run(
    code: str, *, cwd: Path, env: Mapping[str, str], timeout: float = DEADLINE, python: str = sys.executable
) -> str:
    """Run Python code in a process of its own and return what it printed."""
    done = subprocess.run(
        [python, "-c", code],
        cwd=cwd,
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def eventually(check: Callable[[], bool], timeout: float = DEADLINE) -> None:
    """Wait until the check holds."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def copy_example(name: str, to: Path, *, celery: bool = False) -> Path:
    """Copy an example; with ``celery`` as the same program for the real Celery."""
    target = to / (name + ("-celery" if celery else ""))
    shutil.copytree(EXAMPLES / name, target, ignore=shutil.ignore_patterns("__pycache__", ".umbel"))
    if celery:
        for path in target.rglob("*.py"):
            text = path.read_text()
            path.write_text(text.replace("from umbel", "from celery").replace("Umbel", "Celery"))
    return target
