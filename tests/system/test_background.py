"""``app.start_background``: a worker and a beat in threads of a program, and how the program ends with them."""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import WorkerProcess, environment, eventually, run
from umbel import Umbel
from umbel.exceptions import ImproperlyConfigured, OperationalError


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest) -> Iterator[Umbel]:
    kind = request.param
    url = f"memory://{uuid.uuid4().hex}" if kind == "memory" else request.getfixturevalue("sqlite_url")
    app = Umbel("inside", broker=url, backend=url, set_as_current=False)

    @app.task(name="where", shared=False)
    def where() -> str:
        return threading.current_thread().name

    @app.task(name="hold", shared=False)
    def hold(seconds: float) -> None:
        time.sleep(seconds)

    app.conf.beat_schedule = {"often": {"task": "where", "schedule": 0.2}}
    yield app
    app.close()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("pool", [None, "asyncio", "solo"])
def test_tasks_run_and_what_is_due_is_sent(app: Umbel, pool: str | None) -> None:
    before = threads()
    with app.start_background(**({} if pool is None else {"pool": pool})) as inside:
        assert inside.running and inside.error is None
        assert app.tasks["where"].delay().get(timeout=20)
        eventually(lambda: len(app.schedules.history("often")) >= 2)
        first = app.schedules.history("often")[-1]
        assert app.AsyncResult(first.task_id).get(timeout=20)
    assert not inside.running
    assert inside.stop() is True  # a second time
    eventually(lambda: threads() <= before | {"umbel-results"} or not (threads() - before) & {"Beat", "umbel-worker"})
    # The program goes on as a client.
    assert app.tasks["where"].delay().id


def test_a_beat_alone_and_a_worker_alone(app: Umbel) -> None:
    with app.start_background(worker=False) as inside:
        eventually(lambda: app.broker.size("celery") >= 1)
        assert inside.running
    assert not inside.running
    with app.start_background(beat=False):
        eventually(lambda: app.broker.size("celery") == 0)
        sent = len(app.schedules.history("often"))
        app.tasks["where"].delay().get(timeout=20)
        assert len(app.schedules.history("often")) == sent


def test_a_task_that_does_not_end_is_given_back(app: Umbel) -> None:
    inside = app.start_background(beat=False, concurrency=1)
    app.tasks["hold"].delay(3.0)
    eventually(lambda: app.broker.size("celery") == 0)
    inside.stop(timeout=0.1)
    eventually(lambda: app.broker.size("celery") == 1)


def test_what_cannot_work_is_refused(app: Umbel) -> None:
    with pytest.raises(ValueError, match="nothing to start"):
        app.start_background(worker=False, beat=False)
    with pytest.raises(ImproperlyConfigured, match="use pool='threads'"):
        app.start_background(pool="prefork")
    with pytest.raises(TypeError, match="concurrency"):
        app.start_background(worker=False, concurrency=2)
    app.conf.beat_schedule = {"bad": {"task": "where"}}
    with pytest.raises(ImproperlyConfigured, match="no 'schedule'"):
        app.start_background()
    away = Umbel("away", broker="redis://127.0.0.1:1/0", set_as_current=False)
    with pytest.raises(OperationalError):
        away.start_background(timeout=0.5)
    with pytest.raises(OperationalError):
        away.start_background(worker=False)


def test_a_program_that_forgets_to_stop_ends(tmp_path: Path) -> None:
    code = """
import os
from umbel import Umbel
app = Umbel("p", broker="sqlite:///q.db", backend="sqlite:///q.db")
@app.task
def add(x, y):
    return x + y
app.conf.beat_schedule = {"often": {"task": add.name, "schedule": 0.2, "args": (1, 1)}}
inside = app.start_background()
print(add.delay(1, 2).get(timeout=20))
# A process forked from this one has none of the threads, and disturbs nothing when it ends.
pid = os.fork()
if not pid:
    assert not inside.running and inside.stop()
    raise SystemExit(0)
assert os.waitpid(pid, 0)[1] == 0
print(inside.running, add.delay(3, 4).get(timeout=20))
"""
    assert run(code, cwd=tmp_path, env=environment()).split() == ["3", "True", "7"]
    app = Umbel("p", broker=f"sqlite:///{tmp_path}/q.db", set_as_current=False)
    # It took leave: nothing is held, and the next beat may lead at once.
    assert app.broker.store().lease("beat", "another", 5.0) is not None
    app.close()


STOPPED_BY_SIGNALS = """
import itertools, signal, threading, time
from umbel import Umbel
app = Umbel("p", broker="sqlite:///q.db", backend="sqlite:///q.db")
held = threading.Event()
@app.task
def hold():
    held.set()
    time.sleep(60)
options = {"concurrency": 1} if WORKER else {}
inside = app.start_background(worker=WORKER, beat=not WORKER, **options)
if WORKER:
    hold.delay()
    held.wait(20)
timeouts = iter([60.0, 0.1, 0.1])
def end(number, frame):
    timeout = next(timeouts)
    print("stopping for", timeout, flush=True)
    print("stopped", inside.stop(timeout), flush=True)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while inside.running:
    time.sleep(0.01)
print("over", flush=True)
"""


def test_a_second_signal_hastens_the_stop_of_the_first(tmp_path: Path) -> None:
    """The handler runs in the middle of the stop that it hastens, in the same thread."""
    code = STOPPED_BY_SIGNALS.replace("WORKER", "True")
    program = WorkerProcess([sys.executable, "-c", code], tmp_path, environment())
    program.expect("up")
    program.process.send_signal(signal.SIGTERM)
    program.expect("stopping for 60.0")
    assert program.stop() == 0
    assert program.lines[2:-1] == ["stopping for 0.1", "stopped True", "stopped True", "over"], program.output


def test_a_beat_is_stopped_by_a_handler(tmp_path: Path) -> None:
    code = STOPPED_BY_SIGNALS.replace("WORKER", "False")
    program = WorkerProcess([sys.executable, "-c", code], tmp_path, environment())
    program.expect("up")
    assert program.stop() == 0
    assert program.lines[-3:-1] == ["stopped True", "over"], program.output
