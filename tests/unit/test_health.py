"""What a worker tells probes, and what probes make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel.cli import healthcheck
from umbel.exceptions import ImproperlyConfigured
from umbel.worker.health import STALE, Condition, Health, heartbeat_file, parse_address, run_folder

WELL = Condition(node="celery@here", pid=1, processes=2, running=1)
AWAY = Condition(node="celery@here", pid=1, problems=("the broker is away",))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("UMBEL_RUN_DIR", str(path))
    return path


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health("celery@here", "0")
    made.start()
    yield made
    made.close()


def ask(health: Health, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{health.port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error) if error.code == 503 else {}


def test_the_port_says_whether_it_lives_and_whether_it_consumes(health: Health) -> None:
    assert ask(health, "/livez")[0] == 200
    status, body = ask(health, "/readyz")
    assert (status, body["problems"]) == (503, ["starting"])
    health.say(WELL)
    status, body = ask(health, "/readyz")
    assert status == 200 and body["ok"] is True and body["running"] == 1
    health.say(AWAY)
    assert ask(health, "/livez")[0] == 200
    assert ask(health, "/readyz")[0] == 503
    assert ask(health, "/other")[0] == 404


def test_a_supervisor_that_says_nothing_is_not_alive(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    health.say(WELL)
    monkeypatch.setattr(health, "_said_at", health._said_at - STALE)
    assert ask(health, "/livez")[0] == ask(health, "/readyz")[0] == 503


def test_the_file_is_read_by_the_command(health: Health) -> None:
    assert healthcheck.check(None, live=False, max_age=15)[0] == 69
    health.say(WELL)
    assert healthcheck.check(None, live=False, max_age=15) == (0, "celery@here: OK")
    assert healthcheck.check("celery@here", live=False, max_age=15)[0] == 0
    assert healthcheck.check("celery", live=False, max_age=15)[0] == 0
    assert healthcheck.check("other", live=False, max_age=15)[0] == 69
    code, text = healthcheck.check(None, live=False, max_age=-1)
    assert code == 1 and "said nothing for" in text
    health.say(AWAY)
    assert healthcheck.check(None, live=False, max_age=15) == (1, "celery@here: the broker is away")
    assert healthcheck.check(None, live=True, max_age=15)[0] == 0


def test_of_several_workers_one_must_be_named(health: Health) -> None:
    other = Health("other@here")
    other.say(AWAY)
    health.say(WELL)
    code, text = healthcheck.check(None, live=False, max_age=15)
    assert code == 2 and "celery@here, other@here" in text
    assert healthcheck.check("celery", live=False, max_age=15)[0] == 0
    other.close()
    assert not heartbeat_file("other@here").exists()
    assert healthcheck.check(None, live=False, max_age=15)[0] == 0


def test_a_broken_file_is_no_crash(health: Health, folder: Path) -> None:
    health.say(WELL)
    for content in ("", "{", "[]", '{"at": "x", "problems": []}'):
        heartbeat_file("celery@here").write_text(content)
        assert healthcheck.check(None, live=False, max_age=15)[0] == 69


def test_a_folder_that_others_can_write_is_not_used(health: Health, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    health.say(WELL)
    assert list(folder.iterdir()) == []


def test_both_sides_mean_the_same_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for unset in ([], ["UMBEL_RUN_DIR"], ["XDG_RUNTIME_DIR"]):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        for name in unset:
            monkeypatch.delenv(name)
        assert str(run_folder()) == healthcheck._folder()
    monkeypatch.delenv("UMBEL_RUN_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert str(run_folder()) == healthcheck._folder()


@pytest.mark.parametrize(
    ("text", "address"),
    [("8080", ("127.0.0.1", 8080)), ("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:9", ("::1", 9))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "http", "host:", "1.2.3.4", "99999"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="--health-port"):
        parse_address(text)


def test_a_port_that_is_taken_is_said(health: Health) -> None:
    second = Health("other@here", str(health.port))
    with pytest.raises(ImproperlyConfigured, match=f"--health-port 127.0.0.1:{health.port}"):
        second.start()


def test_the_command_imports_next_to_nothing(health: Health) -> None:
    health.say(WELL)
    code = (
        "import sys; sys.argv = ['umbel', 'healthcheck']\n"
        "import atexit; atexit.register(lambda: print(sorted({m.partition('.')[0] for m in sys.modules})))\n"
        "from umbel.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    said, modules = done.stdout.splitlines()
    assert said == "celery@here: OK"
    assert not {"click", "msgspec", "asyncio", "logging", "socket"} & set(json.loads(modules.replace("'", '"')))


@pytest.mark.parametrize("args", [["--nothing"], ["-n"], ["--max-age", "soon"]])
def test_wrong_options(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(args) == 2
    assert "Usage: umbel healthcheck" in capsys.readouterr().err


def test_quiet_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["-q"]) == 69
    assert capsys.readouterr() == ("", "")
    assert healthcheck.main(["--help"]) == 0
    assert "--max-age" in capsys.readouterr().out
