"""A queue with workers of both kinds on it: Celery's and ours, killed in the middle, and what must hold at the end.

What can be demanded. A plain task runs at least once and its value is stored; it runs again only where the process
that had it was killed, so Celery's side must have ``task_acks_late`` (its default gives up what a killed worker held)
and, on Redis, a ``visibility_timeout`` that is larger than the longest time a message waits in a worker, and no larger
than one can wait: until it is over nobody sees what a killed Celery worker held. A chord's body is published once; as a
task of its own it runs again if its process is killed in it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fault_support import alive, eventually, tree
from support import WorkerProcess, environment, run
from umbel import Umbel

#: Seconds after which what a killed Celery worker held may be seen again on Redis. Another Celery worker has to look
#: for it, by default each hundred seconds.
VISIBILITY = 8
MEMBERS = 10

_TASKS = """
import os, time
from {module} import {cls}

app = {cls}("mixed", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=4)
if {module!r} == "celery" and os.environ["URL"].startswith("redis"):
    app.conf.broker_transport_options = {{
        "visibility_timeout": {visibility}, "unacked_restore_interval": 1, "unacked_restore_throttle": 1,
    }}
if {module!r} == "umbel":
    app.conf.update(lease_ttl=1.5, lease_heartbeat=0.5, lease_sweep=0.3, redelivery_backoff=(0.1,))

def note(task, what):
    it = task.request
    line = f"{{it.id}} {{task.name}} {{what}} {{os.getpid()}} {{time.monotonic_ns()}}\\n"
    descriptor = os.open(os.environ["LEDGER"] + "/" + str(os.getpid()), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)

@app.task(name="plain", bind=True)
def plain(self, number, seconds):
    note(self, "start")
    time.sleep(seconds)
    note(self, "end")
    return number * 2

@app.task(name="body", bind=True)
def body(self, values):
    note(self, "start")
    note(self, "end")
    return values
"""

_SEND = """
import json, sys
from mixed_tasks import app, body, plain
from {module} import chord
tasks, chords, members, seconds = json.loads(sys.argv[1])
ids = [], []
for number in range(max(tasks, chords)):
    # By turns, so that whoever is killed has some of both.
    if number < tasks:
        ids[0].append(plain.delay(number, seconds).id)
    if number * chords // tasks != (number + 1) * chords // tasks:
        ids[1].append(chord([plain.s(n, seconds) for n in range(members)])(body.s()).id)
print(json.dumps(ids))
"""


class Sent(NamedTuple):
    """The ids of what one client has sent."""

    tasks: list[str]
    bodies: list[str]


class Fleet:
    """A folder with the same tasks for both kinds of workers, and a ledger of what they run."""

    def __init__(self, folder: Path, url: str, results: str) -> None:
        self.ledger = folder / "ledger"
        self.ledger.mkdir()
        self.env = environment(URL=url, RESULTS=results, LEDGER=str(self.ledger), C_FORCE_ROOT="1")
        self.homes = {module: folder / module for module in ("celery", "umbel")}
        for module, home in self.homes.items():
            home.mkdir()
            cls = {"celery": "Celery", "umbel": "Umbel"}[module]
            (home / "mixed_tasks.py").write_text(_TASKS.format(module=module, cls=cls, visibility=VISIBILITY))
        self.app = Umbel("client", broker=url, backend=results, set_as_current=False)
        self.workers: list[WorkerProcess] = []
        self.killed: set[int] = set()

    @contextmanager
    def closing(self) -> Iterator[Fleet]:
        """Whatever happens, no process of this test is left."""
        try:
            yield self
        finally:
            for running in self.workers:
                self._kill(running)
                print(running.output)
            self.app.close()

    def start(self, module: str) -> WorkerProcess:
        """Start a worker of this kind and wait until it is ready."""
        name = f"{module}{len(self.workers)}@mixed"
        command = [sys.executable, "-m", module, "-A", "mixed_tasks", "worker", "-l", "info", "-c", "2", "-n", name]
        running = WorkerProcess(command, self.homes[module], self.env)
        self.workers.append(running)
        running.expect("ready.")
        return running

    def send(self, module: str, tasks: int, chords: int, seconds: float) -> Sent:
        """Have a client of this kind send so much."""
        code = f"import sys; sys.argv[1:] = [{json.dumps([tasks, chords, MEMBERS, seconds])!r}]\n"
        said = run(code + _SEND.format(module=module), cwd=self.homes[module], env=self.env, timeout=120)
        return Sent(*json.loads(said.splitlines()[-1]))

    def kill(self, running: WorkerProcess) -> None:
        """Kill a worker with all its processes, and see that it had run something."""
        below = self._kill(running)
        assert below & self.pids(), f"none of {below} had run anything:\n{running.output}"

    def _kill(self, running: WorkerProcess) -> set[int]:
        below = set(tree(running.process.pid)) if running.process.poll() is None else set()
        self.killed |= below
        # The parent first: it would replace its children.
        for pid in sorted(below, key=lambda pid: pid != running.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if below:
            running.stop(signal.SIGKILL)
            eventually(lambda: not any(map(alive, below)), timeout=10)
        return below

    def stop(self) -> None:
        """Stop in order what runs."""
        for running in self.workers:
            if running.process.poll() is None:
                running.stop(timeout=30)

    def pids(self) -> set[int]:
        """Return the processes that have run something."""
        return {int(file.name) for file in self.ledger.iterdir()}

    def runs(self) -> dict[str, list[tuple[int, int, bool]]]:
        """Return the starts of each task by its id: when, in which process, and whether it came to its end."""
        starts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        ends: Counter[tuple[str, int]] = Counter()
        for file in self.ledger.iterdir():
            # A process that is killed may leave half a line.
            for line in file.read_text().split("\n")[:-1]:
                id, _, what, pid, at = line.split()
                if what == "start":
                    starts[id].append((int(at), int(pid)))
                else:
                    ends[id, int(pid)] += 1
        found = {}
        for id, times in starts.items():
            found[id] = []
            for at, pid in sorted(times):
                found[id].append((at, pid, ends[id, pid] > 0))
                ends[id, pid] -= 1
        return found

    def ended(self) -> int:
        """Return how many bodies came to their end."""
        return sum(any(done for *_, done in runs) for runs in self.runs().values())

    def recovery(self) -> float:
        """Return the longest time in seconds between a start in a killed process and the next one of that task."""
        waits = [
            (then[0] - cut[0]) / 1e9
            for attempts in self.runs().values()
            for cut, then in itertools.pairwise(attempts)
            if cut[1] in self.killed
        ]
        return max(waits, default=0.0)

    def values(self, ids: Collection[str]) -> dict[str, tuple[str, Any]]:
        """Return state and value of everything that has a final result."""
        assert self.app.backend is not None
        asked = list(ids)
        found = {}
        for at in range(0, len(asked), 1000):
            for id, payload in self.app.backend.fetch(asked[at : at + 1000]).items():
                meta = json.loads(payload)
                found[id] = meta["status"], meta["result"]
        return found

    def check(self, sent: Collection[Sent], timeout: float) -> tuple[int, int]:
        """Wait for everything and check the promises; return how much was lost and how much ran again."""
        right: dict[str, tuple[str, Any]] = {}
        for each in sent:
            right.update((id, ("SUCCESS", 2 * number)) for number, id in enumerate(each.tasks))
            right.update((id, ("SUCCESS", [2 * n for n in range(MEMBERS)])) for id in each.bodies)
        deadline = time.monotonic() + timeout
        while (got := self.values(right)) != right and time.monotonic() < deadline:
            time.sleep(0.2)
        lost = sum(got.get(id) != value for id, value in right.items())
        runs = self.runs()
        for id, attempts in runs.items():
            for _, pid, _ in attempts[:-1]:
                assert pid in self.killed, f"{id} ran again though nobody killed {pid}: {attempts}"
        bodies = [id for each in sent for id in each.bodies]
        assert all(len([run for run in runs.get(id, ()) if run[1] not in self.killed]) <= 1 for id in bodies)
        return lost, sum(len(attempts) - 1 for attempts in runs.values())
