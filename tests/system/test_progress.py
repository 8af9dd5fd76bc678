"""Progress of tasks that real workers run, in each kind of task and store."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, worker
from umbel import Umbel

TASKS = """
import asyncio
import os
import time
from pathlib import Path

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])


def wait_for(path):
    until = time.monotonic() + 30
    while not Path(path).exists() and time.monotonic() < until:
        time.sleep(0.02)


@app.task(bind=True, name="plain")
def plain(self, path):
    for step in self.track(range(4), text="mending"):
        if step == 2:
            wait_for(path)
    return "mended"


@app.task(bind=True, name="coroutine")
async def coroutine(self, path):
    for step in self.track(range(4), text="mending"):
        while step == 2 and not Path(path).exists():
            await asyncio.sleep(0.02)
    return "mended"


@app.task(bind=True, name="burst")
def burst(self):
    for _ in self.track(range(200_000)):
        pass
    return "done"


@app.task(bind=True, name="again", max_retries=1, default_retry_delay=3600)
def again(self):
    self.progress(1, 3)
    self.progress(2, 3)
    raise self.retry()


@app.task(bind=True, name="silent", ignore_result=True)
def silent(self):
    self.progress(1, 3)
    time.sleep(0.5)


@app.task(bind=True, name="fails")
def fails(self):
    self.progress(1, 3, "trying")
    time.sleep(0.5)
    raise ValueError("no such image")
"""


class Site:
    """A folder with the tasks, and a client of their store."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.env = environment(URL=url)
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)

    def send(self, name: str, *args: Any) -> Any:
        return self.app.send_task(name, args=args)


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, request.getfixturevalue(f"{request.param}_url"))
    yield made
    made.app.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_tasks_say_how_far_they_are(site: Site, pool: str) -> None:
    names = ["coroutine"] if pool == "asyncio" else ["plain", "coroutine"]
    mark = site.folder / "go"
    seen: dict[str, list[Any]] = {name: [] for name in names}
    with worker("jobs", "-l", "info", "-P", pool, "-c", "2", cwd=site.folder, env=site.env):
        results = {name: site.send(name, str(mark)) for name in names}
        for name, result in results.items():
            eventually(lambda result=result: (result.info or {}).get("current") == 2)
            assert result.state == "PROGRESS", name
            assert result.info == {"current": 2, "total": 4, "percent": 50.0, "text": "mending"}, name
        mark.touch()
        for name, result in results.items():
            assert result.get(timeout=30, on_message=lambda meta, name=name: seen[name].append(meta["status"]))
            assert result.get() == "mended" and result.state == "SUCCESS"
            assert seen[name][-1] == "SUCCESS"


def test_many_steps_are_few_writes_and_none_after_the_result(site: Site) -> None:
    with worker("jobs", "-l", "info", "-c", "1", cwd=site.folder, env=site.env):
        states: list[str] = []
        done: list[str] = []
        for _ in range(5):
            result = site.send("burst")
            assert result.get(timeout=60, on_message=lambda meta: states.append(meta["status"])) == "done"
            done.append(result.id)
        assert states.count("SUCCESS") == 5
        # 200,000 steps take some tenths of a second; each step written would be as many reports, where they are heard.
        assert states.count("PROGRESS") < 200
        assert [site.app.AsyncResult(id).state for id in done] == ["SUCCESS"] * 5


def test_a_task_that_waits_for_its_retry_is_not_said_to_go_on(site: Site) -> None:
    with worker("jobs", "-l", "info", "-c", "1", cwd=site.folder, env=site.env):
        result = site.send("again")
        eventually(lambda: result.state == "RETRY")
        # What the same process writes next comes after anything that was left of that attempt.
        other = site.send("fails")
        other.get(timeout=30, propagate=False)
        assert result.state == "RETRY"


def test_an_ignored_result_leaves_nothing(site: Site) -> None:
    with worker("jobs", "-l", "info", "-c", "1", cwd=site.folder, env=site.env):
        silent, after = site.send("silent"), site.send("burst")
        assert after.get(timeout=60) == "done"
        assert not silent.exists()


def test_it_is_watched_in_the_terminal(site: Site) -> None:
    mark, file = site.folder / "go", io.StringIO()
    with worker("jobs", "-l", "info", "-c", "2", cwd=site.folder, env=site.env):
        result = site.send("plain", str(mark))
        command = [sys.executable, "-m", "umbel", "-A", "jobs", "result", result.id, "--watch", "--timeout", "60"]
        asked = subprocess.Popen(
            command, cwd=site.folder, env=site.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        eventually(lambda: (result.info or {}).get("current") == 2)
        other = threading.Thread(target=lambda: (eventually(lambda: "50 %" in file.getvalue()), mark.touch()))
        other.start()
        assert result.watch(60, file=file) == "mended"
        other.join()
        out, err = asked.communicate(timeout=60)
        assert (asked.returncode, out.strip()) == (0, "mended"), err
        assert err.splitlines()[-1] == "100 % success"
        assert file.getvalue().splitlines()[-1] == "100 % success"
        with pytest.raises(ValueError, match="no such image"):
            site.send("fails").watch(60, file=file)
        assert "33 % trying" in file.getvalue() and file.getvalue().splitlines()[-1] == "failure"
