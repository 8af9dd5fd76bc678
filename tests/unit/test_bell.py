"""An event that may be set in a signal handler, whatever the thread it interrupts is doing with it."""

from __future__ import annotations

import subprocess
import sys
import threading

from umbel import Umbel
from umbel.beat.service import Beat
from umbel.bell import Bell
from umbel.celery.beat_service import Service
from umbel.worker.inprocess import InProcessWorker
from umbel.worker.plan import make_plan

STORM = """
import signal, time
from umbel.bell import Bell

bell = Bell()
rung = 0
def ring(number, frame):
    global rung
    rung += 1
    bell.set()

signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
until = time.monotonic() + 1.0
heard = 0
while time.monotonic() < until:
    heard += bell.wait(0.00005)
    bell.clear()
    bell.set()
    bell.clear()
signal.setitimer(signal.ITIMER_REAL, 0)
print(rung, heard)
"""


def test_a_signal_may_ring_at_any_moment() -> None:
    """The standard event hangs here: its lock is held by the very thread that the signal interrupts."""
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=30, check=True)
    rung, heard = map(int, done.stdout.split())
    assert rung > 100 and heard > 10, (rung, heard)


def test_every_waiter_hears_it_and_it_stays() -> None:
    bell = Bell()
    heard: list[bool] = []
    waiters = [threading.Thread(target=lambda: heard.append(bell.wait(10))) for _ in range(5)]
    for each in waiters:
        each.start()
    bell.set()
    for each in waiters:
        each.join(10)
    assert heard == [True] * 5
    assert bell.is_set() and bell.wait(0)


def test_a_cleared_one_waits_again() -> None:
    bell = Bell()
    bell.set()
    bell.set()
    bell.clear()
    assert not bell.is_set()
    assert not bell.wait(0.01)
    bell.set()
    assert bell.wait()


def test_what_is_stopped_by_handlers_waits_for_bells() -> None:
    app = Umbel("bells", broker="memory://bells", set_as_current=False)
    worker = InProcessWorker(app, make_plan(app, {"pool": "solo"}), "memory://", probed=False)
    service = Service(app)
    events = worker._stopping, Beat(app)._stop, service._is_shutdown, service._is_stopped
    assert [type(event) for event in events] == [Bell] * 4
    app.close()
