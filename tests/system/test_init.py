"""``umbel init``: what it writes runs, is tested, and passes the checkers; what is there stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import DEADLINE, WorkerProcess, environment

pytestmark = pytest.mark.timeout(180)


def umbel(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "umbel", *args]
    return subprocess.run(
        command, cwd=folder, env=environment(**env), capture_output=True, text=True, check=False, timeout=60
    )


def python(folder: Path, *args: str, **env: str) -> None:
    command = [sys.executable, "-m", *args]
    done = subprocess.run(
        command, cwd=folder, env=environment(**env), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def tree(folder: Path) -> dict[str, str]:
    return {str(each.relative_to(folder)): each.read_text() for each in folder.rglob("*") if each.is_file()}


def test_the_project_runs(tmp_path: Path) -> None:
    done = umbel(tmp_path, "init", "shop")
    assert done.returncode == 0, done.stderr
    assert "shop/shop.py" in done.stdout.splitlines()
    assert [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")] == [
        "cd shop",
        "pip install -r requirements.txt",
        "umbel -A shop dev",
        "umbel -A shop call shop.add -a '[2, 3]'",
        "pytest",
    ]
    folder = tmp_path / "shop"
    # With what a new user has: a shell's settings for another project are not of this one.
    words = [sys.executable, "-m", "umbel", "-A", "shop", "dev", "-p", "0", "--", "-c", "1"]
    running = WorkerProcess(words, folder, environment())
    try:
        running.expect("ready.")
        called = umbel(folder, "-A", "shop", "call", "shop.add", "-a", "[2, 3]")
        assert called.returncode == 0, called.stderr
        got = umbel(folder, "-A", "shop", "result", called.stdout.strip(), "--timeout", str(DEADLINE))
        assert (got.returncode, got.stdout) == (0, "5\n"), got.stderr
        listed = umbel(folder, "-A", "shop", "schedules", "list", "-o", "json")
        assert json.loads(listed.stdout)["data"][0]["task"] == "shop.tick"
        sent = umbel(folder, "-A", "shop", "schedules", "run", "tick").stdout.strip()
        got = umbel(folder, "-A", "shop", "result", sent, "--timeout", str(DEADLINE))
        assert got.returncode == 0 and got.stdout.startswith("20"), got.stderr
    finally:
        assert running.stop(timeout=60) == 0, running.output
    assert (folder / ".umbel" / "shop.db").exists()


@pytest.mark.parametrize("framework", ["none", "flask"])
def test_the_project_passes_its_tests_and_the_checkers(framework: str, tmp_path: Path) -> None:
    assert umbel(tmp_path, "init", "my shop", "--framework", framework).returncode == 0
    folder = tmp_path / "my shop"
    assert (folder / "test_my_shop.py").exists()
    # The broker of the environment is not there, and is not asked for.
    python(folder, "pytest", "-q", "-p", "no:cacheprovider", UMBEL_BROKER_URL="redis://127.0.0.1:1/0")
    python(folder, "ruff", "check", "--no-cache", "--extend-select", "I,UP,B,PL,SIM,RUF", "--ignore", "PLR2004", ".")
    python(folder, "ruff", "format", "--no-cache", "--check", ".")
    python(folder, "mypy", "--cache-dir", os.devnull, ".")


@pytest.mark.parametrize(
    ("url", "backend", "package"),
    [
        ("redis://localhost:6379/3", "result_backend = broker_url", "umbel[dashboard,redis]"),
        ("amqp://localhost//", 'with_name("results.db")', "umbel[dashboard,rabbitmq]"),
        ("sqlite:////var/lib/shop.db", "result_backend = broker_url", "umbel[dashboard]"),
    ],
)
def test_a_broker_of_ones_own(url: str, backend: str, package: str, tmp_path: Path) -> None:
    done = umbel(tmp_path, "init", "shop", "--broker", url, "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == "umbel.init/1" and said["data"]["name"] == "shop" and "shop.py" in said["data"]["files"]
    settings = (tmp_path / "shop" / "settings.py").read_text()
    assert f'broker_url = "{url}"' in settings and backend in settings
    assert (tmp_path / "shop" / "requirements.txt").read_text().splitlines() == [package, "pytest"]
    python(tmp_path / "shop", "ruff", "check", "--no-cache", "--extend-select", "I", ".")
    python(tmp_path / "shop", "ruff", "format", "--no-cache", "--check", ".")
    seen = umbel(tmp_path / "shop", "-A", "shop", "report")
    assert seen.returncode == 0 and f"transport:{url.partition(':')[0]}" in seen.stdout, seen.stderr


def test_the_broker_of_this_shell_is_not_written_down(tmp_path: Path) -> None:
    assert umbel(tmp_path, "init", "shop", UMBEL_BROKER_URL="redis://:s3cret@elsewhere/0").returncode == 0
    assert "elsewhere" not in "".join(tree(tmp_path).values())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("mine = True\n")
    (tmp_path / "README.md").symlink_to("nowhere")
    done = umbel(tmp_path, "init", "--name", "shop")
    assert done.returncode == 4 and "README.md, settings.py; --force" in done.stderr, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["README.md", "settings.py"]
    assert (tmp_path / "settings.py").read_text() == "mine = True\n"
    again = umbel(tmp_path, "init", "--name", "shop", "-o", "json")
    assert again.returncode == 4 and json.loads(again.stderr)["error"]["code"] == 4
    (tmp_path / "README.md").unlink()
    assert umbel(tmp_path, "init", "--name", "shop", "--force").returncode == 0
    assert "beat_schedule" in (tmp_path / "settings.py").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["3d"], 2, "no name for a Python module; say --name NAME"),
        (["json"], 2, "another module has that name"),
        (["kombu"], 2, "another module has that name"),
        (["shop", "--name", "class"], 2, "no name for a Python module"),
        (["shop", "--broker", "memory://"], 78, "lives in one process"),
        (["shop", "--broker", "redsi://localhost"], 78, "no broker for scheme 'redsi'"),
        (["shop", "--broker", "redis://:s3cret@localhost/0"], 4, "set UMBEL_BROKER_URL"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = umbel(tmp_path, "init", *words)
    assert done.returncode == code and said in done.stderr and "s3cret" not in done.stderr, done.stderr
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = umbel(tmp_path, "init", "file/shop")
    assert done.returncode == 73 and "cannot be written" in done.stderr, done.stderr
