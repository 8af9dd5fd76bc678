"""Real Celery on the other end of one Redis: its producer to our worker, our producer to its worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import environment, run, worker

TASKS = """
import os
from {module} import {cls}
app = {cls}("peer", broker=os.environ["URL"], backend=os.environ["URL"])

class Odd(Exception):
    pass

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="echo", bind=True)
def echo(self, *args, **kwargs):
    return [list(args), kwargs]

@app.task(name="fail")
def fail(text):
    raise ValueError(text, 7)

@app.task(name="retried", bind=True, max_retries=3)
def retried(self, at):
    if self.request.retries < at:
        raise self.retry(countdown=0.1)
    return self.request.retries

@app.task(name="late")
def late():
    import time
    return time.time()

@app.task(name="report", bind=True)
def report(self):
    self.update_state(state="PROGRESS", meta={{"done": 1}})
    return "done"
"""

CLIENT = """
import datetime, decimal, json, time, uuid
from peer_tasks import add, echo, fail, late, report, retried
assert add.delay(2, 3).get(timeout=20) == 5
values = [1, 2.5, "näh", None, True, [1, [2]], {"k": "v"}, datetime.datetime(2026, 1, 2, 3, 4, 5),
          datetime.date(2026, 1, 2), decimal.Decimal("1.10"), uuid.UUID(int=5), b"bytes", b"\\xff\\x00"]
back, kwargs = echo.apply_async(args=values, kwargs={"user": "x", "n": 1}).get(timeout=20)
assert back == values, back
assert kwargs == {"user": "x", "n": 1}
failed = fail.delay("bad")
error = failed.get(timeout=20, propagate=False)
assert type(error) is ValueError and error.args == ("bad", 7), repr(error)
assert "ValueError" in failed.traceback and failed.state == "FAILURE"
assert retried.delay(2).get(timeout=20) == 2
started = time.time()
assert late.apply_async(countdown=1).get(timeout=20) >= started + 0.9
for serializer in ("json", "pickle", "yaml", "msgpack"):
    assert add.apply_async((1, 2), serializer=serializer).get(timeout=20) == 3, serializer
assert add.apply_async((1, 2), compression="zlib").get(timeout=20) == 3
assert add.apply_async((1, 2), priority=5).get(timeout=20) == 3
assert add.apply_async((1, 2), headers={"mine": "x"}, expires=60).get(timeout=20) == 3
expired = add.apply_async((1, 2), expires=datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=5))
assert expired.get(timeout=20, propagate=False).__class__.__name__ == "TaskRevokedError"
linked = add.apply_async((1, 2), link=add.s(10))
assert linked.get(timeout=20) == 3
assert report.delay().get(timeout=20) == "done"
results = [add.delay(n, n) for n in range(200)]
assert [r.get(timeout=20) for r in results] == [2 * n for n in range(200)]
print(json.dumps("ok"))
"""

CONTENT = "\napp.conf.accept_content = ['json', 'pickle', 'yaml', 'msgpack']\napp.conf.accept_unsafe = True\n"


def write(folder: Path, module: str) -> Path:
    folder.mkdir()
    cls = {"celery": "Celery", "umbel": "Umbel"}[module]
    (folder / "peer_tasks.py").write_text(TASKS.format(module=module, cls=cls) + CONTENT)
    return folder


@pytest.mark.parametrize(
    ("client", "server"), [("celery", "umbel"), ("umbel", "celery"), ("umbel", "umbel")], ids=lambda side: side
)
def test_client_and_worker(client: str, server: str, tmp_path: Path, redis_url: str) -> None:
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    home = write(tmp_path / "worker", server)
    caller = write(tmp_path / "client", client)
    with worker("peer_tasks", "-l", "info", "-c", "2", cwd=home, env=env, celery=server == "celery"):
        assert json.loads(run(CLIENT, cwd=caller, env=env, timeout=60)) == "ok"


def test_both_workers_share_one_queue(tmp_path: Path, redis_url: str) -> None:
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    ours, theirs = write(tmp_path / "ours", "umbel"), write(tmp_path / "theirs", "celery")
    code = """
from peer_tasks import add
results = [add.delay(n, 1) for n in range(500)]
assert [r.get(timeout=30) for r in results] == [n + 1 for n in range(500)]
"""
    with (
        worker("peer_tasks", "-c", "2", "-l", "info", cwd=ours, env=env) as mine,
        worker("peer_tasks", "-c", "2", "-l", "info", cwd=theirs, env=env, celery=True) as his,
    ):
        run(code, cwd=ours, env=env, timeout=60)
        run(code, cwd=theirs, env=env, timeout=60)
        done = [sum("succeeded in" in line for line in each.lines) for each in (mine, his)]
    assert sum(done) == 1000, done
