"""What the dashboard costs, and how fast it answers: one private Redis, a worker with events, and a full history.

    python benchmarks/dashboard.py [--tasks 100000] [--pairs 7]

First the history is filled; then every page is asked for while tasks run; then the same work is done in turn with the
dashboard beside it and without, and the median of the ratios is printed.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umbel import group
from umbel.history import History
from umbel.testing.servers import RedisServer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

PAGES = (
    "", "tasks", "tasks?filter=state%3Afailed", "tasks?filter=name%3Ashop.task7", "tasks?filter=order",
    "task?id={task}",
    "workflows", "queues", "queue?name=celery", "workers", "schedules", "errors", "dead", "doctor", "audit",
)  # fmt: skip


def fill(path: str, tasks: int) -> str:
    """Write so many tasks into the history; return the id of one."""
    history, id, begun = History(path), "", time.time() - 3600.0
    for first in range(0, tasks, 1000):
        events: list[dict[str, Any]] = []
        for number in range(first, min(first + 1000, tasks)):
            id, at = str(uuid.uuid4()), begun + number * 3600.0 / tasks
            about = {"uuid": id, "hostname": f"w{number % 8}@box", "clock": number}
            name, words = f"shop.task{number % 40}", f"(order {number % 5000},)"
            sent = {"name": name, "args": words, "kwargs": "{}", "queue": "celery", "root_id": id, "parent_id": None}
            events += [
                {"type": "task-sent", "timestamp": at, **about, **sent},
                {"type": "task-received", "timestamp": at + 0.01, **about, **sent},
                {"type": "task-started", "timestamp": at + 0.02, **about},
            ]
            if number % 50:
                events.append(
                    {"type": "task-succeeded", "timestamp": at + 0.1, "result": "1", "runtime": 0.08, **about}
                )
            else:
                error = {"exception": f"ValueError('no stock of {number % 9}')", "traceback": "Traceback: nothing"}
                events.append({"type": "task-failed", "timestamp": at + 0.1, **error, **about})
        history.record(events)
    history.close()
    return id


def port() -> int:
    """Return a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(env: dict[str, str], *words: str, url: str = "") -> Iterator[None]:
    """Run ``umbel words`` while the block runs; wait until the URL answers."""
    command = [sys.executable, "-m", "umbel", "-A", "apps.umbel_app", *words]
    process = subprocess.Popen(command, cwd=HERE, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while url:
            try:
                get(url)
                break
            except OSError:
                assert process.poll() is None, "it ended"
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def get(url: str) -> bytes:
    """Return a page."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        content: bytes = answer.read()
    return content


@contextmanager
def load(app: Any, rate: float) -> Iterator[None]:
    """Send so many tasks a second while the block runs."""
    done = threading.Event()

    def send() -> None:
        due = time.monotonic()
        while not done.is_set():
            app.send_task("work", (0.001,), ignore_result=True)
            due += 1 / rate
            done.wait(max(due - time.monotonic(), 0.0))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def drained(app: Any, name: str, args: tuple[Any, ...], count: int) -> float:
    """Send so many tasks and return how many were done in a second, from the first to the last."""
    started = time.monotonic()
    group([app.signature(name, args) for _ in range(count)], app=app).apply_async().get(timeout=120)
    return count / (time.monotonic() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks in the history")
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        history = str(Path(folder, "history.db"))
        os.environ.update(BENCH_URL=redis.url, BENCH_HISTORY=history)
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        started = time.monotonic()
        task = fill(history, given.tasks)
        print(f"{given.tasks} tasks written in {time.monotonic() - started:.1f} s")
        from apps.umbel_app import app

        with running(env, "worker", "-E", "-c", "2", "-l", "error"):
            show_pages(app, env, task)
            show_pairs(app, env, given.pairs)
        app.close()


def show_pages(app: Any, env: dict[str, str], task: str) -> None:
    """Ask for every page while tasks run, and print how long each took."""
    at = f"http://127.0.0.1:{(number := port())}/"
    with running(env, "dashboard", "--port", str(number), url=at), load(app, 200.0):
        time.sleep(3.0)
        print(f"{'page':40} {'median ms':>10} {'slowest ms':>10}")
        for page in PAGES:
            url, times = at + page.format(task=task), []
            for _ in range(20):
                started = time.monotonic()
                get(url)
                times.append((time.monotonic() - started) * 1000)
            print(f"/{page.format(task='ID'):39} {statistics.median(times):10.0f} {max(times):10.0f}")
        delays = []
        for _ in range(10):
            id, started = app.send_task("noop").id, time.monotonic()
            while b"SUCCESS" not in get(f"{at}tasks?filter=id%3A{id}"):
                time.sleep(0.02)
            delays.append(time.monotonic() - started)
        print(f"shown after it was sent, in s: {statistics.median(delays):.2f}, at most {max(delays):.2f}")


def show_pairs(app: Any, env: dict[str, str], pairs: int) -> None:
    """Do the same work with the dashboard and without, in turn, and print the ratios."""
    for name, args, count in (("noop", (), 20_000), ("work", (0.005,), 1500)):
        drained(app, name, args, count)
        ratios = []
        for turn in range(pairs):
            found: dict[bool, float] = {}
            for beside in (True, False) if turn % 2 else (False, True):
                if not beside:
                    found[beside] = drained(app, name, args, count)
                    continue
                at = f"http://127.0.0.1:{(number := port())}/"
                with running(env, "dashboard", "--port", str(number), url=at):
                    found[beside] = drained(app, name, args, count)
            ratios.append(found[True] / found[False])
            print(f"{name}: {found[False]:8.0f}/s without, {found[True]:8.0f}/s with the dashboard: {ratios[-1]:.2f}")
        print(f"{name}: median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
