"""``self.request.fence``: greater in each attempt of one message, so that a store of one's own can tell them apart."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, children, eventually, kill, tree
from umbel import Umbel
from umbel.worker.inprocess import start_worker

TASKS = """

@app.task(bind=True, name="fenced")
def fenced(self, path, seconds):
    # A message cannot say what its fence is.
    assert 0 < self.request.fence < 10**18
    with open(path, "a") as file:
        file.write(f"{self.request.fence}\\n")
    if seconds and len(open(path).readlines()) == 1:
        time.sleep(seconds)
        with open(path + ".late", "a") as file:
            file.write(f"{self.request.fence}\\n")
    if self.request.retries == 0:
        raise self.retry(countdown=0)
"""


def fences(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with FaultSite(tmp_path, request.getfixturevalue(f"{request.param}_url")).closing() as made:
        with open(tmp_path / "jobs.py", "a") as file:
            file.write(TASKS)
        yield made


def test_it_grows_with_each_attempt(site: FaultSite) -> None:
    """After a crash, and in a retry."""
    site.start("-c", "1").expect("ready.")
    seen = site.folder / "fences"
    result = site.app.send_task("fenced", args=(str(seen), 30), headers={"fence": 10**18})
    eventually(lambda: len(fences(seen)) == 1)
    worker = site.workers[0]
    for pid in children(worker.process.pid):
        os.kill(pid, signal.SIGKILL)
    result.get(timeout=20)
    first, second, third = fences(seen)
    assert first < second < third
    site.stop_all()


def test_an_attempt_that_was_given_up_has_a_lower_one(site: FaultSite) -> None:
    """The old attempt wakes up after the new one has ended: only its number tells that it is late."""
    sleeper = site.start("-c", "1")
    sleeper.expect("ready.")
    seen = site.folder / "fences"
    result = site.app.send_task("fenced", args=(str(seen), 1))
    eventually(lambda: len(fences(seen)) == 1)
    stopped = tree(sleeper.process.pid)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        site.start("-c", "1").expect("ready.")
        result.get(timeout=20)
        assert len(fences(seen)) == 3
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    late = site.folder / "fences.late"
    eventually(lambda: bool(fences(late)))
    assert fences(late)[0] < fences(seen)[1]
    kill(sleeper)


def test_in_this_process_too() -> None:
    app = Umbel("one", broker="memory://fence", backend="memory://fence", set_as_current=False)

    @app.task(bind=True, name="fence", max_retries=2)
    def fence(self: Any, before: list[int]) -> list[int]:
        before = [*before, self.request.fence]
        if len(before) < 3:
            raise self.retry(args=(before,), countdown=0)
        return before

    with start_worker(app):
        first, second, third = fence.delay([]).get(timeout=20)
    assert 0 < first < second < third
    assert fence.request.fence == 0
    app.close()
