"""``umbel top``, driven by its keys beside a real worker, and once on a terminal of its own."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from support import DEADLINE, environment, eventually, worker
from terminal_support import Terminal
from umbel import Umbel
from umbel.loading import find_app
from umbel.top.parts import Help, Listing, Question
from umbel.top.screen import Top
from umbel.top.source import Source

TASKS = """
import os
import time

from umbel import Umbel

app = Umbel("{name}", broker="{url}", backend="{url}")
app.conf.history_file = "{folder}/kept.db"
app.conf.update(task_send_sent_event=True, task_routes={{"mail": {{"queue": "post"}}}})


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="pay")
def pay(order):
    if not os.path.exists("{folder}/paid"):
        raise ValueError(f"no [money] for order {{order}}")
    return order


@app.task(name="wait")
def wait(path):
    open(path, "w").close()
    while os.path.exists(path):
        time.sleep(0.05)


@app.task(name="mail")
def mail(to):
    return to
"""


class Site:
    """The tasks in a folder of their own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.name = f"watched_{abs(hash(folder)) % 10**9}"
        (folder / f"{self.name}.py").write_text(TASKS.format(name=self.name, url=url, folder=folder))
        sys.path.insert(0, str(folder))
        try:
            self.app: Any = find_app(self.name, Umbel)
        finally:
            sys.path.remove(str(folder))

    def send(self, name: str, *args: Any) -> str:
        return str(self.app.tasks[name].delay(*args).id)

    def worker(self) -> Any:
        return worker(self.name, "-E", "-c", "2", "-n", "w1@box", "-l", "info", cwd=self.folder, env=environment())


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path}/q.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    made = Site(tmp_path, url)
    yield made
    made.app.close()
    sys.modules.pop(made.name, None)


class Seat:
    """Somebody before the screen."""

    def __init__(self, top: Top, pilot: Pilot[Any]) -> None:
        self.top, self.pilot = top, pilot

    async def until(self, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not check():
            assert time.monotonic() < deadline, self.everything()
            await self.pilot.pause(0.05)

    def everything(self) -> str:
        tables = [f"{id}: {self.rows(id)}" for id in ("workers", "queues", "tasks")]
        return "\n".join([self.text("head"), *tables, self.text("told"), self.text("done")])

    def list(self, id: str) -> Listing:
        return self.top.screen_stack[0].query_one(f"#{id}", Listing)

    def rows(self, id: str) -> list[list[str]]:
        table = self.list(id)
        return [[str(cell) for cell in table.get_row_at(at)] for at in range(table.row_count)]

    def text(self, id: str) -> str:
        return str(self.top.screen_stack[0].query_one(f"#{id}", Static).content)

    def states(self, name: str) -> list[str]:
        return [row[0] for row in self.rows("tasks") if row[1] == name]

    async def choose(self, id: str) -> None:
        """Move down to a task."""
        await self.pilot.press("escape")
        await self.until(lambda: any(row[-1] == id for row in self.rows("tasks")))
        deadline = time.monotonic() + DEADLINE
        while self.list("tasks").chosen != id:
            assert time.monotonic() < deadline, self.everything()
            await self.pilot.press("down")
        await self.until(lambda: id in self.text("told"))


@asynccontextmanager
async def seated(site: Site, *, size: tuple[int, int] = (150, 44)) -> AsyncIterator[Seat]:
    source = Source(site.app, ["umbel", "-A", "proj"], every=0.2)
    source.start()
    top = Top(source, name="proj", every=0.2)
    try:
        async with top.run_test(size=size) as pilot:
            yield Seat(top, pilot)
    finally:
        await asyncio.to_thread(source.stop)


@pytest.mark.timeout(180)
def test_what_workers_do_is_seen_and_steered(site: Site) -> None:
    async def look() -> None:
        async with seated(site) as seat:
            await seat.until(lambda: "No worker is alive" in seat.text("head"))
            with site.worker():
                await see(seat, site)
                failed = await retry(seat, site)
                await narrow_down(seat, failed)
                await end(seat)

    asyncio.run(look())


async def see(seat: Seat, site: Site) -> None:
    await seat.until(lambda: [row[:2] for row in seat.rows("workers")] == [["w1@box", "online"]])
    assert not seat.list("tasks").chosen
    added, running = site.send("add", 2, 3), site.send("wait", str(site.folder / "waiting"))
    site.send("mail", "eva")
    await seat.until(lambda: seat.states("add") == ["SUCCESS"])
    # What runs is on top, though other news are later.
    await seat.until(lambda: [row[-1] for row in seat.rows("tasks")][:1] == [running])
    await seat.until(lambda: seat.rows("workers")[0][2] == "1/2" and seat.rows("workers")[0][5] == "prefork")
    await seat.until(lambda: ["post", "unread", "1", "0", "0"] in [row[:5] for row in seat.rows("queues")])
    await seat.until(lambda: "Nobody reads post" in seat.text("head"))
    await seat.until(lambda: "1 waiting" in seat.text("head") and "1 running" in seat.text("head"))
    assert "1 worker alive" in seat.text("head")
    await seat.choose(added)
    told = seat.text("told")
    assert "(2, 3)" in told and "result   5" in told and "succeeded" in told
    assert f"$ umbel -A proj tasks why {added}" in told
    await seat.choose(running)
    assert "It runs since" in seat.text("told")


async def retry(seat: Seat, site: Site) -> str:
    failed = site.send("pay", 17)
    await seat.until(lambda: seat.states("pay") == ["FAILURE"])
    await seat.choose(failed)
    assert "ValueError: no [money] for order 17" in seat.text("told")
    (site.folder / "paid").touch()
    await seat.pilot.press("x")
    assert "there is nothing to revoke" in seat.text("done")
    await seat.pilot.press("r")
    await seat.until(lambda: f"umbel -A proj tasks retry {failed}   Sent once more as " in seat.text("done"))
    await seat.until(lambda: sorted(seat.states("pay")) == ["FAILURE", "SUCCESS"])
    return failed


async def narrow_down(seat: Seat, failed: str) -> None:
    await seat.pilot.press("slash", *"state:failed", "enter")
    await seat.until(lambda: [row[-1] for row in seat.rows("tasks")] == [failed])
    await seat.pilot.press("slash", "end", *" colour:red", "enter")
    await seat.until(lambda: "unknown qualifier 'colour'" in str(seat.list("tasks").border_subtitle))
    await seat.pilot.press("escape")
    await seat.until(lambda: len(seat.rows("tasks")) > 2)
    seat.list("queues").focus()
    await seat.pilot.press("j", "down")
    await seat.until(lambda: seat.list("queues").chosen == "post")
    await seat.pilot.press("enter")
    await seat.until(lambda: [row[1] for row in seat.rows("tasks")] == ["mail"])
    await seat.pilot.press("escape")
    await seat.until(lambda: len(seat.rows("tasks")) > 2)


async def end(seat: Seat) -> None:
    running = seat.rows("tasks")[0][-1]
    await seat.choose(running)
    await seat.pilot.press("r")
    assert "it runs twice" in str(seat.top.screen.query_one(Static).content)
    await seat.pilot.press("n", "x")
    assert isinstance(seat.top.screen, Question)
    asked = str(seat.top.screen.query_one(Static).content)
    assert f"$ umbel -A proj tasks revoke {running} --terminate" in asked
    await seat.pilot.press("n")
    assert seat.states("wait") == ["STARTED"] and "retry" in seat.text("done")
    await seat.pilot.press("x", "t")
    await seat.until(lambda: f"tasks revoke {running} --terminate   Revoked" in seat.text("done"))
    await seat.until(lambda: seat.states("wait") == ["REVOKED"])


@pytest.mark.timeout(120)
def test_it_stands_still_helps_and_has_workers_tell_of_their_tasks(tmp_path: Path, sqlite_url: str) -> None:
    site = Site(tmp_path, sqlite_url)

    async def look() -> None:
        async with seated(site, size=(80, 24)) as seat:
            # Without a worker a question finds nobody, and says so.
            await seat.pilot.press("e")
            await seat.until(lambda: "control enable_events   No worker replied." in seat.text("done"))
            first = site.send("add", 1, 1)
            await seat.until(lambda: [row[-1] for row in seat.rows("tasks")] == [first])
            assert not seat.top.screen_stack[0].query_one("#about").display
            await seat.pilot.press("p")
            assert "PAUSED" in seat.text("head")
            second = site.send("add", 2, 2)
            await asyncio.to_thread(eventually, lambda: seat.top._source.recording.history.task(second) is not None)
            await seat.pilot.pause(0.5)
            assert [row[-1] for row in seat.rows("tasks")] == [first]
            await seat.pilot.press("p")
            await seat.until(lambda: [row[-1] for row in seat.rows("tasks")] == [second, first])
            # Whoever chose something keeps it when others come.
            await seat.choose(first)
            assert "no worker is running" in seat.text("told") and seat.top.screen_stack[0].query_one("#about").display
            third = site.send("add", 3, 3)
            await seat.until(lambda: len(seat.rows("tasks")) == 3 and seat.rows("tasks")[0][-1] == third)
            assert seat.list("tasks").chosen == first
            # Also where so many come that it is none of the latest.
            for number in range(210):
                site.send("add", number, 0)
            await seat.until(lambda: len(seat.rows("tasks")) == 201)
            assert seat.list("tasks").chosen == first == seat.rows("tasks")[-1][-1]
            await seat.pilot.press("question_mark")
            assert isinstance(seat.top.screen, Help)
            await seat.pilot.press("space")
            assert not isinstance(seat.top.screen, Help)
            await seat.pilot.press("q")

    try:
        asyncio.run(look())
    finally:
        site.app.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("end", "status"), [("q", 0), ("\x03", 0), ("SIGTERM", 143)])
def test_on_a_terminal_it_comes_and_goes(tmp_path: Path, sqlite_url: str, end: str, status: int) -> None:
    site = Site(tmp_path, sqlite_url)
    env = environment(TERM="xterm-256color", PYTHONPATH=str(tmp_path))
    with site.worker(), Terminal("-A", site.name, "top", env=env, rows=40, columns=140) as terminal:
        terminal.until("Workers")
        terminal.until("w1@box")
        id = site.send("add", 2, 3)
        terminal.until(id)
        if end == "SIGTERM":
            terminal.process.send_signal(signal.SIGTERM)
        else:
            terminal.type(end)
        assert terminal.ended() == status
        # The terminal is as it was: back from the alternate screen.
        assert "\x1b[?1049l" in terminal.shown
    site.app.close()


def test_what_strangers_send_does_not_move_the_cursor(tmp_path: Path, sqlite_url: str) -> None:
    site = Site(tmp_path, sqlite_url)
    env = environment(TERM="xterm-256color", PYTHONPATH=str(tmp_path))
    with Terminal("-A", site.name, "top", env=env, rows=40, columns=140) as terminal:
        terminal.until("No worker is alive")
        with site.app.events.default_dispatcher(hostname="w\x1b]0;x\x07") as dispatcher:
            dispatcher.send("task-received", uuid="id[red]\x1b[2J", name="na\nme\x00[/b]", args="\u202e[blink]")
            dispatcher.send("task-failed", uuid="id[red]\x1b[2J", traceback="\x1b[5m line", exception="E[/]")
        terminal.until(r"id[red]\x1b[2J")
        terminal.type("j")
        terminal.until(r"\u202e[blink]")
        terminal.type("q")
        assert terminal.ended() == 0
        assert "\x1b[5m" not in terminal.shown and "\x07" not in terminal.shown
    site.app.close()


def test_without_textual_it_says_what_to_install(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError(\"No module named 'textual'\")\n")
    env = environment(TERM="xterm-256color", PYTHONPATH=str(tmp_path))
    with Terminal("-b", sqlite_url, "top", env=env) as terminal:
        terminal.until("pip install 'umbel[top]'")
        assert terminal.ended() == 78


def test_without_a_terminal_it_says_what_else_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "umbel", "top"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "umbel status" in done.stderr and "umbel events --dump" in done.stderr
