"""``umbel queues`` as it is called: what it prints, what it does, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, worker
from umbel import Umbel
from umbel.interfaces import Place

pytestmark = pytest.mark.timeout(120)

TASKS = """
import os
from umbel import Umbel

app = Umbel("shop", broker=os.environ["URL"], backend=os.environ["RESULTS"])
app.conf.task_queues = {"celery": {}, "mail": {}}
app.conf.task_routes = {"film.*": {"queue": "film"}}

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="login", sensitive=("password",))
def login(user, password):
    return user
"""


class Site:
    """An app in a module, and the command that looks at it."""

    def __init__(self, folder: Path, url: str, results: str) -> None:
        self.folder, self.env = folder, environment(URL=url, RESULTS=results)
        self.app = Umbel("shop", broker=url, backend=results, set_as_current=False)
        (folder / "shop.py").write_text(TASKS)

    def send(self, queue: str, count: int = 1, name: str = "add", **options: Any) -> None:
        for number in range(count):
            self.app.send_task(name, (number, "geheim"), queue=queue, **options)

    def umbel(self, *args: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", "shop", *args]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def data(self, *args: str) -> Any:
        body = json.loads(self.umbel("queues", *args, "-o", "json").stdout)
        assert body["schema"] == f"umbel.queues.{args[0]}/1"
        return body["data"]

    def listed(self) -> dict[str, Any]:
        return {each["queue"]: each for each in self.data("list")}


@pytest.fixture
def site(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    made = Site(tmp_path, sqlite_url, sqlite_url)
    yield made
    made.app.close()


def test_it_lists_what_is_known(site: Site) -> None:
    site.send("mail", 3)
    site.send("mail", countdown=3600)
    site.app.queues.pause("held", "why not", by="ann")
    with worker("shop", "-l", "info", "-c", "1", "-n", "w1@box", "-Q", "celery,video", cwd=site.folder, env=site.env):
        eventually(lambda: site.app.queues.readers() == {"w1@box": ["celery", "video"]})
        listed = site.listed()
        assert list(listed) == ["celery", "film", "held", "mail", "video"]
        mail = {"queue": "mail", "ready": 3, "scheduled": 1, "unacked": 0, "dead": 0, "consumers": 0, "paused": None}
        assert listed["mail"] == mail
        assert listed["video"]["consumers"] == 1
        paused = listed["held"]["paused"]
        assert (paused["by"], paused["why"]) == ("ann", "why not")
        rows = [line.split("\t") for line in site.umbel("queues", "list").stdout.splitlines()]
        assert rows[3] == ["mail", "3", "1", "0", "0", "0", "-"]
        assert rows[2][-1].startswith("since ") and rows[2][-1].endswith(": why not")
        names = [line.split()[0] for line in site.umbel("list", "queues").stdout.splitlines()[1:]]
        assert names == list(listed)
        shown = site.umbel("queues", "show", "video").stdout
        assert "w1@box" in shown and "paused" not in shown
        assert "paused why" in site.umbel("queues", "show", "held").stdout
        assert site.data("show", "video")["readers"] == ["w1@box"]


def test_pausing_and_resuming(site: Site) -> None:
    site.send("mail", 2)
    done = site.umbel("queues", "pause", "mail", "film", "--reason", "the provider is down")
    assert "mail is paused since" in done.stdout and "the provider is down" in done.stdout
    assert list(site.app.queues.paused()) == ["film", "mail"]
    assert "mail is resumed" in site.umbel("queues", "resume", "mail").stdout
    assert "mail was not paused" in site.umbel("queues", "resume", "mail").stdout
    assert site.data("resume", "--all") == [{"queue": "film", "resumed": True}]
    assert site.app.queues.paused() == {}
    (paused,) = site.data("pause", "mail")
    assert paused["queue"] == "mail" and paused["paused"]["why"] == ""
    site.umbel("queues", "resume", status=2)
    assert "one line" in site.umbel("queues", "pause", "mail", "-r", "a\nb", status=1).stderr


def test_a_slip_of_the_name_is_not_heeded(site: Site) -> None:
    error = site.umbel("queues", "pause", "mial", status=3).stderr
    assert "nothing is known of a queue 'mial'" in error and "did you mean 'mail'?" in error
    assert site.app.queues.paused() == {}
    for words in (["show", "mial"], ["peek", "mial"], ["purge", "mial"], ["move", "mial", "mail"]):
        site.umbel("queues", *words, status=3)
    told = json.loads(site.umbel("queues", "pause", "mial", "-o", "json", status=3).stderr)["error"]
    assert told["code"] == 3 and "mail" in told["hint"]
    site.umbel("queues", "pause", "later", "--new")
    assert list(site.app.queues.paused()) == ["later"]
    # Known by what is in it.
    site.send("adhoc")
    assert site.data("peek", "adhoc")[0]["args"] == [0, "geheim"]


def test_peeking_takes_nothing_and_hides_what_is_sensitive(site: Site) -> None:
    site.send("mail", 3)
    site.send("mail", name="login")
    site.send("mail", countdown=3600)
    seen = site.data("peek", "mail")
    assert [each["task"] for each in seen] == ["add", "add", "add", "login"]
    assert "geheim" not in json.dumps(seen[3]) and seen[0]["args"] == [0, "geheim"]
    assert len(site.data("peek", "mail", "--limit", "2")) == 2
    (later,) = site.data("peek", "mail", "--scheduled")
    assert later["due"] is not None
    assert "geheim" not in site.umbel("queues", "peek", "mail").stdout.splitlines()[3]
    assert site.app.broker.size("mail") == 4


def test_moving_and_purging(site: Site) -> None:
    site.send("mail", 4)
    site.send("mail", name="login")
    site.send("mail", countdown=3600)
    broker = site.app.broker
    site.umbel("queues", "pause", "mail")
    assert "--yes" in site.umbel("queues", "move", "mail", "film", status=4).stderr
    site.umbel("queues", "move", "mail", "nowhere", "--yes", status=3)
    moved = site.umbel("queues", "move", "mail", "film", "--task", "add", "--limit", "3", "--yes")
    assert "3 messages moved from mail to film." in moved.stdout
    assert (broker.size("mail"), broker.size("film")) == (2, 3)
    assert site.data("move", "mail", "later", "--new", "--yes") == {"queue": "mail", "to": "later", "moved": 2}
    site.umbel("queues", "move", "mail", "mail", status=2)
    assert "--yes" in site.umbel("queues", "purge", "film", status=4).stderr
    assert "3 messages of film discarded." in site.umbel("queues", "purge", "film", "--yes").stdout
    assert site.data("purge", "mail", "--yes") == {"queue": "mail", "purged": 1}
    assert broker.size("mail", Place.SCHEDULED) == broker.size("film") == 0
    assert list(site.app.queues.paused()) == ["mail"]


def test_on_rabbitmq(tmp_path: Path, rabbitmq_url: str, redis_url: str) -> None:
    """It tells less of its queues, and the workers say themselves what they read."""
    site = Site(tmp_path, rabbitmq_url, redis_url)
    site.send("mail", 2)
    site.app.close()
    with worker("shop", "-l", "info", "-c", "1", "-n", "w1@box", "-Q", "celery,video", cwd=site.folder, env=site.env):
        site.umbel("queues", "pause", "mail", "--reason", "down")
        listed = site.listed()
        assert listed["mail"]["ready"] == 2 and listed["mail"]["unacked"] is listed["mail"]["scheduled"] is None
        assert listed["mail"]["paused"]["why"] == "down"
        assert listed["video"]["consumers"] == 1 and listed["film"]["ready"] == 0
    assert len(site.data("peek", "mail")) == 2
    assert site.data("move", "mail", "film", "--yes")["moved"] == 2
    assert site.data("purge", "film", "--yes")["purged"] == 2


def test_a_broker_that_is_away(tmp_path: Path) -> None:
    site = Site(tmp_path, "redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0")
    for words in (["list"], ["pause", "mail"], ["resume", "mail"]):
        assert "Error" in site.umbel("queues", *words, status=69).stderr
    site.app.close()
