"""Real workers that are really killed: what comes again, what ends, and what the dead letters tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.exceptions import MaxDeliveriesExceeded, NotRegistered, WorkerLostError
from umbel.interfaces import Place

TASKS = """
import os
import signal
import time

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(
    lease_ttl=3.0, lease_heartbeat=1.0, lease_sweep=1.0, max_deliveries=3, redelivery_backoff=(0.2, 0.4),
    worker_shutdown_timeout=float(os.environ.get("SHUTDOWN_TIMEOUT", "10")),
    task_unknown_backoff=[float(pause) for pause in os.environ.get("PAUSES", "0.2,0.2").split(",")],
)


def mark(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")


@app.task(name="add")
def add(x, y):
    return x + y


def kill(path, cured):
    mark(path)
    if not os.path.exists(cured):
        os.kill(os.getpid(), signal.SIGKILL)
    return "cured"


app.task(kill, name="kill")
app.task(kill, name="kill_fail", on_lost="fail")
app.task(kill, name="kill_once", acks_late=False)
app.task(kill, name="kill_retry", retry_on_worker_lost=True, max_retries=1, default_retry_delay=1)


@app.task(name="leave")
def leave(path):
    mark(path)
    os._exit(7)


@app.task(name="hold")
def hold(path):
    mark(path)
    time.sleep(60)


app.task(hold.run, name="hold_once", acks_late=False)


@app.task(name="note")
def note(task_id, path):
    with open(path, "a") as file:
        file.write(f"sent {task_id}\\n")


@app.task(name="tell")
def tell(request, exc, traceback, path):
    with open(path, "a") as file:
        file.write(f"called {request.id} {type(exc).__name__}\\n")


@app.task(name="tell_and_die")
def tell_and_die(request, exc, traceback, path):
    mark(path)
    os.kill(os.getpid(), signal.SIGKILL)


if "NEWER" in os.environ:
    @app.task(name="newer")
    def newer():
        return "known now"
"""


class Site:
    """A folder with the tasks, the URL of its store, and a client of it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.env = environment(URL=url)
        self.marks, self.cured, self.told = folder / "marks", folder / "cured", folder / "told"
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(name, args=[str(arg) if isinstance(arg, Path) else arg for arg in args], **options)

    @contextmanager
    def worker(self, *options: str, status: int | None = 0, **env: str) -> Iterator[WorkerProcess]:
        with worker("jobs", "-l", "info", *options, cwd=self.folder, env=self.env | env, status=status) as running:
            yield running

    def umbel(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", "jobs", *args]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=30, check=False
        )

    def count(self, place: Place) -> int:
        return self.app.broker.size("celery", place)

    def state(self, id: str) -> str:
        """The state as it is now: a result that was read once remembers what it read."""
        return str(self.app.AsyncResult(id).state)

    def runs(self) -> int:
        return len(self.marks.read_text().split()) if self.marks.exists() else 0

    def is_empty(self) -> bool:
        return not any(self.count(place) for place in (Place.READY, Place.SCHEDULED, Place.HELD))


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "sqlite_url")
    made = Site(tmp_path, url)
    yield made
    made.app.close()


@pytest.fixture
def local(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    """The same for what does not depend on the broker."""
    made = Site(tmp_path, sqlite_url)
    yield made
    made.app.close()


def test_a_poison_among_the_good_dies_alone_and_can_be_cured(site: Site) -> None:
    links = [
        site.app.signature("note", args=(str(site.told),)),
        site.app.signature("tell", args=(str(site.told),)),
    ]
    with site.worker("-c", "2"):
        poison = site.send("kill", site.marks, site.cured, link_error=links)
        good = [site.send("add", number, 1) for number in range(100)]
        assert [result.get(timeout=30) for result in good] == list(range(1, 101))
        with pytest.raises(MaxDeliveriesExceeded, match="3 deliveries"):
            poison.get(timeout=30)
        assert site.runs() == 3
        eventually(lambda: site.told.exists() and len(site.told.read_text().splitlines()) == 2)
        assert sorted(site.told.read_text().splitlines()) == [
            f"called {poison.id} MaxDeliveriesExceeded",
            f"sent {poison.id}",
        ]
        eventually(site.is_empty)
        (letter,) = site.app.dead.list()
        assert (letter.task, letter.task_id, letter.reason) == ("kill", poison.id, "max_deliveries")
        assert [crash.cause for crash in letter.crashes] == ["signal 9 (SIGKILL)"] * 3
        assert all(crash.consumer.startswith("celery@") for crash in letter.crashes)
        first, second, third = (crash.at for crash in letter.crashes)
        # The first redelivery comes at once; the second waits.
        assert first < second and (third - second).total_seconds() >= 0.2

        site.cured.touch()
        done = site.umbel("dead", "requeue", poison.id)
        assert done.returncode == 0, done.stderr
        eventually(lambda: site.state(poison.id) == "SUCCESS")
        assert site.app.AsyncResult(poison.id).get(timeout=5) == "cured" and site.runs() == 4
    assert site.app.dead.list() == [] and site.is_empty()


def test_a_poison_is_cured_by_other_arguments(site: Site) -> None:
    with site.worker("-c", "1"):
        poison = site.send("kill", site.marks, site.cured)
        with pytest.raises(MaxDeliveriesExceeded, match="3 deliveries"):
            poison.get(timeout=30)
        refused = site.umbel("dead", "requeue", poison.id, "--args", "[1]")
        assert refused.returncode == 1 and "missing a required argument" in refused.stderr
        assert len(site.app.dead.list()) == 1
        harmless = json.dumps([str(site.marks), str(site.folder)])
        done = site.umbel("dead", "requeue", poison.id, "--args", harmless)
        assert done.returncode == 0, done.stderr
        eventually(lambda: site.state(poison.id) == "SUCCESS")
    assert site.runs() == 4 and site.app.dead.list() == [] and site.is_empty()


def test_an_exit_of_its_own_is_a_crash_too(local: Site) -> None:
    with local.worker("-c", "1"), pytest.raises(MaxDeliveriesExceeded):
        local.send("leave", local.marks).get(timeout=30)
    shown = json.loads(local.umbel("dead", "list", "-o", "json").stdout)["data"]
    assert [crash["cause"] for crash in shown[0]["crashes"]] == ["exitcode 7"] * 3


def test_a_loss_that_counts_as_a_retry(site: Site) -> None:
    links = [site.app.signature("tell", args=(str(site.told),))]
    with site.worker("-c", "1"):
        lost = site.send("kill_retry", site.marks, site.cured, link_error=links)
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            lost.get(timeout=30)
        assert site.runs() == 2
        eventually(lambda: site.told.exists() and site.told.read_text() == f"called {lost.id} WorkerLostError\n")

        cured = site.send("kill_retry", site.marks, site.cured)
        eventually(lambda: site.state(cured.id) == "RETRY")
        site.cured.touch()
        assert cured.get(timeout=30) == "cured"
    assert site.is_empty() and site.app.dead.list() == []


@pytest.mark.parametrize("name", ["kill_fail", "kill_once"])
def test_what_must_not_run_twice_is_marked_lost(site: Site, name: str) -> None:
    with site.worker("-c", "1"):
        lost = site.send(name, site.marks, site.cured)
        with pytest.raises(WorkerLostError, match=r"SIGKILL|its process died"):
            lost.get(timeout=30)
        assert site.send("add", 1, 1).get(timeout=20) == 2
    assert site.runs() == 1 and site.is_empty() and site.app.dead.list() == []


@pytest.mark.parametrize("name", ["hold_once"])
def test_it_is_marked_lost_when_the_whole_worker_dies(site: Site, name: str) -> None:
    lost = site.send(name, site.marks)
    with site.worker("-c", "1", status=None) as running:
        eventually(lambda: site.runs() == 1)
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait(10)
    with site.worker("-c", "1"), pytest.raises(WorkerLostError):
        lost.get(timeout=30)
    assert site.runs() == 1 and site.is_empty()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stop_that_cuts_it_off_marks_it_lost_too(local: Site, pool: str) -> None:
    lost, again = local.send("hold_once", local.marks), local.send("hold", local.marks)
    with local.worker("-c", "2", "-P", pool, SHUTDOWN_TIMEOUT="0.5"):
        eventually(lambda: local.runs() == 2)
    if pool == "prefork":
        # The process is gone: an engine of the next worker says so.
        with local.worker("-c", "1", SHUTDOWN_TIMEOUT="0.5"):
            eventually(lambda: local.runs() == 3)
    with pytest.raises(WorkerLostError):
        lost.get(timeout=10)
    assert local.state(again.id) == "PENDING" and local.count(Place.READY) == 1
    assert local.runs() == (3 if pool == "prefork" else 2)


def test_an_unknown_task_waits_for_a_worker_that_knows_it(site: Site) -> None:
    result = site.send("newer")
    with site.worker("-c", "1", PAUSES="0.5,60") as old:
        old.expect("Received unregistered task of type 'newer'. It waits 0.5 s")
        assert site.send("add", 1, 1).get(timeout=20) == 2
        with site.worker("-c", "1", NEWER="1"):
            # Whichever of the two gets it first; the pause after that is long.
            eventually(lambda: site.state(result.id) == "SUCCESS" or "60 s" in old.output)
    if site.state(result.id) != "SUCCESS":
        assert site.count(Place.SCHEDULED) == 1
    else:
        assert result.get(timeout=5) == "known now"


def test_a_task_that_nobody_knows_dies_and_lives_again_with_a_new_worker(site: Site) -> None:
    result = site.send("newer")
    with site.worker("-c", "1") as old:
        with pytest.raises(NotRegistered):
            result.get(timeout=30)
        old.expect("The message is kept as a dead letter")
    listed = site.umbel("dead", "list", "--reason", "unregistered", "--task", "new*")
    assert listed.stdout.split("\t")[3] == result.id, listed.stderr
    done = site.umbel("dead", "requeue", "--reason", "unregistered", "--yes")
    assert done.returncode == 0, done.stderr
    with site.worker("-c", "1", NEWER="1"):
        eventually(lambda: site.state(result.id) == "SUCCESS")
    assert site.app.dead.list() == []


def test_an_errback_that_kills_its_worker_does_not_do_so_for_ever(site: Site) -> None:
    link = site.app.signature("tell_and_die", args=(str(site.told),))
    with site.worker("-c", "1"):
        lost = site.send("kill_fail", site.marks, site.cured, link_error=[link])
        with pytest.raises(WorkerLostError):
            lost.get(timeout=40)
        assert site.send("add", 1, 1).get(timeout=20) == 2
    assert site.runs() == 1
    assert len(site.told.read_text().split()) == 5  # until the message was delivered max_deliveries + 3 times
    assert site.is_empty()
