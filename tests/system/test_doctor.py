"""`umbel doctor`, the banner's line about storage, and durability="strict", on real stores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support import environment, worker
from umbel import Umbel
from umbel.interfaces import Survives
from umbel.testing.servers import RedisServer, free_port

APP = """
import os
from umbel import Umbel
app = Umbel("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(**eval(os.environ.get("CONF", "{}")))

@app.task
def add(x, y): return x + y
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def umbel(folder: Path, env: Mapping[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "umbel", "-A", "shop", *args]
    return subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True, check=False, timeout=60)


def findings(folder: Path, env: Mapping[str, str], *args: str) -> tuple[int, dict[str, Any]]:
    done = umbel(folder, env, "doctor", "-o", "json", *args)
    return done.returncode, {each["check"]: each for each in json.loads(done.stdout)["data"]}


def test_an_sqlite_file_keeps_what_it_confirmed(folder: Path, sqlite_url: str) -> None:
    env = environment(BROKER=sqlite_url, CONF="{'durability': 'strict'}")
    code, found = findings(folder, env)
    assert code == 0
    assert found["durability"]["level"] == "ok" and "synchronous=FULL" in found["durability"]["text"]
    assert found["results"]["text"].startswith("in the broker's own store")
    assert found["workers"]["level"] == "warn"
    assert findings(folder, env, "--strict")[0] == 1
    with worker("shop", "-c", "1", "-l", "info", cwd=folder, env=env) as running:
        assert ".> storage:     SQLite" in running.output
        code, found = findings(folder, env, "--strict")
        assert code == 0 and found["workers"]["text"].startswith("1 alive"), found
    weaker = environment(BROKER=f"{sqlite_url}?synchronous=NORMAL", CONF="{'durability': 'strict'}")
    done = umbel(folder, weaker, "worker")
    assert done.returncode == 78 and "a power cut may lose the last commits" in done.stderr


def test_a_redis_says_what_it_keeps(folder: Path) -> None:
    for settings, survives, text in (
        ({"appendonly": "no"}, Survives.NOTHING, "appendonly no"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, Survives.PROCESS, "may lose the last second"),
        ({"appendonly": "yes", "appendfsync": "always"}, Survives.POWER_LOSS, "on disk when confirmed"),
        (
            {"appendonly": "yes", "appendfsync": "always", "maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"},
            Survives.NOTHING,
            "deletes messages",
        ),
    ):
        with RedisServer(settings=settings) as server:
            app = Umbel("shop", broker=server.url, backend=None)
            kept = app.broker.durability()
            app.close()
            assert kept.survives is survives and text in kept.text, kept
            strict = environment(BROKER=server.url, CONF="{'durability': 'strict'}")
            if survives is Survives.NOTHING:
                assert kept.advice
                assert findings(folder, environment(BROKER=server.url), "--strict")[0] == 1
                done = umbel(folder, strict, "worker")
                assert done.returncode == 78 and "Error: durability='strict'" in done.stderr


def test_a_redis_that_forbids_questions_is_still_described(folder: Path) -> None:
    with RedisServer(appendonly=True) as server:
        app = Umbel("shop", broker=server.url, backend=None)
        with app.broker._desk.link() as link:
            link.call("ACL", "SETUSER", "shy", "on", ">pw", "~*", "&*", "+@all", "-config")
        app.close()
        app = Umbel("shop", broker=server.url.replace("127.0.0.1", "shy:pw@127.0.0.1"), backend=None)
        kept = app.broker.durability()
        app.close()
    assert kept.survives is Survives.PROCESS and "appendfsync unknown" in kept.text


def test_a_broker_that_is_away_is_a_failure(folder: Path) -> None:
    env = environment(BROKER=f"redis://127.0.0.1:{free_port()}/0")
    code, found = findings(folder, env)
    assert code == 69
    assert found["broker"]["level"] == "fail" and "Connection refused" in found["broker"]["text"]
    strict = environment(**{**env, "CONF": "{'durability': 'strict'}"})
    assert umbel(folder, strict, "worker").returncode == 69


def test_what_waits_in_vain_and_what_died_is_told(folder: Path, redis_url: str) -> None:
    env = environment(
        BROKER=redis_url,
        CONF="{'task_queues': ['celery', 'slow'], 'accept_content': ['json', 'pickle'], 'accept_unsafe': 1}",
    )
    done = subprocess.run(
        [sys.executable, "-c", "import shop; shop.add.apply_async((1, 2), queue='slow'); shop.app.send_task('gone')"],
        cwd=folder, env=env, check=True,
    )  # fmt: skip
    assert done.returncode == 0
    quick = environment(
        **{**env, "CONF": env["CONF"].replace("}", ", 'task_unknown_backoff': None}"), "C_FORCE_ROOT": "1"}
    )
    with worker("shop", "-c", "1", "-l", "info", "-Q", "celery", cwd=folder, env=quick) as running:
        running.expect("gone")
        _, found = findings(folder, env)
        assert found["queues"]["text"] == "1 messages wait in 'slow', and no worker consumes it"
        assert found["security"]["level"] == "warn"
        assert found["dead"]["text"] == "dead letters: 1 from 'celery'"


def test_the_workers_of_rabbitmq_are_asked(folder: Path, rabbitmq_url: str) -> None:
    env = environment(BROKER=rabbitmq_url, CONF="{'task_queues': ['celery', 'slow'], 'result_backend': None}")
    none = findings(folder, env)[1]["workers"]
    assert none["level"] == "warn" and none["text"].startswith("none answers")
    with worker("shop", "-c", "1", "-l", "info", "-n", "w1@box", "-Q", "celery", cwd=folder, env=env):
        code = "import shop; shop.add.apply_async((1, 2), queue='slow')"
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True, timeout=60)
        _, found = findings(folder, env)
        assert found["workers"]["text"] == "1 alive: w1@box"
        assert found["queues"]["text"] == "1 messages wait in 'slow', and no worker consumes it"


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("redis://:pw@192.0.2.1:1/0", "192.0.2.1"),
        ("rediss://:pw@192.0.2.1:1/0", None),
        ("redis://192.0.2.1:1/0", None),
        ("redis://:pw@127.0.0.1:1/0", None),
    ],
)
def test_s23_a_password_without_tls_is_told(url: str, warned: str | None) -> None:
    from umbel.cli.doctor import _plain_password

    assert _plain_password(url) == warned
