"""What the processes of a worker share: a module that is imported before the fork is in memory once for all of them."""

from __future__ import annotations

import os
from pathlib import Path

from support import environment, worker
from umbel import Umbel

TASKS = """
import os
import sys

from umbel import Umbel, signals

app = Umbel("coroutines", broker=os.environ["URL"], backend=os.environ["URL"])
inherited = set()


@signals.worker_process_init.connect(weak=False)
def look(**_):
    inherited.update(sys.modules)


def imported():
    return sorted(set(sys.modules) - inherited), os.getpid()


if os.environ["COROUTINE"]:
    @app.task(name="imported")
    async def coroutine():
        import asyncio
        await asyncio.sleep(0)
        return imported()
else:
    app.task(name="imported")(lambda: ("asyncio" in sys.modules, os.getpid()))
"""


def test_what_a_coroutine_task_needs_is_imported_before_the_fork(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "coroutines.py").write_text(TASKS)
    app = Umbel("client", broker=sqlite_url, backend=sqlite_url, set_as_current=False)
    env = environment(URL=sqlite_url, COROUTINE="1")
    with worker("coroutines", "-c", "2", "-l", "info", cwd=tmp_path, env=env) as running:
        later, pid = app.send_task("imported").get(timeout=20)
        assert pid not in (os.getpid(), running.process.pid)
        assert not [name for name in later if name.partition(".")[0] in ("asyncio", "ssl", "concurrent")], later
    app.close()


def test_a_worker_without_coroutines_does_without_a_loop(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "coroutines.py").write_text(TASKS)
    app = Umbel("client", broker=sqlite_url, backend=sqlite_url, set_as_current=False)
    env = environment(URL=sqlite_url, COROUTINE="")
    with worker("coroutines", "-c", "1", "-l", "info", cwd=tmp_path, env=env):
        assert app.send_task("imported").get(timeout=20)[0] is False
    app.close()
