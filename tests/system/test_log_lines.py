"""The same tasks on our worker and on Celery's: whoever reads or parses the log finds the same lines."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from support import WorkerProcess, environment, run

TASKS = """
import os
import sys

from {module} import {cls}
from {module}.exceptions import Ignore, Reject
from {module}.utils.log import get_task_logger

app = {cls}("jobs", broker=os.environ["URL"], backend=os.environ["URL"])
logger = get_task_logger(__name__)


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="fail")
def fail():
    raise ValueError("no", 7)


@app.task(name="expected", throws=(KeyError,))
def expected():
    raise KeyError("k")


@app.task(name="again", bind=True)
def again(self):
    if self.request.retries == 0:
        raise self.retry(exc=OSError("busy"), countdown=1, max_retries=3)
    raise self.retry(countdown=1, max_retries=1)


@app.task(name="ignored")
def ignored():
    raise Ignore()


@app.task(name="rejected")
def rejected():
    raise Reject("not this one", requeue=False)


@app.task(name="talks")
def talks():
    print("to standard output")
    print("to standard error", file=sys.stderr)
    logger.info("to the log")
    logger.debug("not to be seen")
    return {{"text": "done"}}
"""

CLIENT = """
from jobs import add, again, app, expected, fail, ignored, rejected, talks
assert add.delay(1, 2).get(timeout=20) == 3
assert add.apply_async((1, 2), shadow="other name").get(timeout=20) == 3
for task in (fail, expected, again, talks):
    task.delay().get(timeout=20, propagate=False)
ignored.delay()
rejected.delay()
assert add.delay("a", "b").get(timeout=20) == "ab"
app.close()
"""

STAMP = re.compile(r"^\[[\d -]+ [\d:,]+: ([A-Z]+)/(?:MainProcess|ForkPoolWorker-\d+)\] ")
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
RUNTIME = re.compile(r"in [\d.e-]+s: ")


def said(module: str, folder: Path, url: str, client: str) -> tuple[list[str], list[str]]:
    """Run a worker and the client; return what its log says about tasks, and its words at the end, without stamps."""
    folder.mkdir()
    cls = {"celery": "Celery", "umbel": "Umbel"}[module]
    (folder / "jobs.py").write_text(TASKS.format(module=module, cls=cls))
    env = environment(URL=url, C_FORCE_ROOT="1")
    command = [sys.executable, "-m", module, "-A", "jobs", "worker", "-l", "info", "-c", "1"]
    running = WorkerProcess(command, folder, env)
    running.expect("ready.")
    run(client, cwd=folder, env=env)
    # The last task's line may come after its result.
    running.expect("succeeded in", timeout=20)
    running.process.send_signal(signal.SIGINT)
    try:
        running.process.wait(20)
    except subprocess.TimeoutExpired:
        running.process.kill()
        raise
    running.stop()
    lines = running.lines
    log = [STAMP.sub(r"\1 ", line) for line in lines if STAMP.match(line)]
    log = [RUNTIME.sub("in T: ", ID.sub("ID", line)) for line in log]
    about = [line for line in log if "Task " in line or "to standard" in line or "to the log" in line]
    return about, [line for line in lines if line.startswith("worker: ")]


def test_they_are_celerys(tmp_path: Path, redis_url: str) -> None:
    ours, our_end = said("umbel", tmp_path / "ours", redis_url, CLIENT)
    theirs, their_end = said("celery", tmp_path / "theirs", redis_url.removesuffix("/0") + "/5", CLIENT)
    # When a task is received that waits for its turn, or for its time, is not the same; what is said is.
    assert sorted(ours) == sorted(theirs)
    assert len(ours) > 15
    assert our_end == their_end and len(our_end) == 2
