"""A Django project as Celery's documentation has it, unchanged, on Umbel; ``make interop`` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peers
from support import WorkerProcess, environment, run, worker
from umbel.celery import switch_path

PROJECT = Path(__file__).resolve().parent / "programs" / "django_shop"


def test_a_django_project(tmp_path: Path) -> None:
    peers.needed("django")
    env = environment(PYTHONPATH=switch_path(), SHOP_HOME=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    with worker("shop", "-l", "info", "-c", "1", cwd=PROJECT, env=env, celery=True) as running:
        seen = json.loads(run((PROJECT / "client.py").read_text(), cwd=PROJECT, env=env))
        running.expect("order 1 is paid")
        assert "10000000" not in running.output
    assert seen["total"] == 30
    assert seen["described"][1:] == [True, "sqlite"]
    assert seen["before_commit"] == 0
    assert seen["paid"] == [True, True]
    assert seen["zone"] == "Europe/Rome"
    assert (seen["billed"], seen["shipped"]) == (42, [[30, "bike", 0, "celery"], [12, "boat", 0, "celery"]])
    assert seen["missing"] == ["Order.DoesNotExist", "Order matching query does not exist.", "FAILURE"]


def test_it_sees_what_it_sees_on_celery(tmp_path: Path, redis_url: str) -> None:
    peers.needed("django")
    seen = {}
    for library, python, path in (("celery", peers.python("celery57"), ""), ("umbel", sys.executable, switch_path())):
        home = tmp_path / library
        home.mkdir()
        env = environment(
            SHOP_HOME=str(home), SHOP_URL=redis_url, PYTHONPATH=path, C_FORCE_ROOT="1", PYTHONDONTWRITEBYTECODE="1"
        )
        running = WorkerProcess([python, "-m", "celery", "-A", "shop", "worker", "-l", "info", "-c", "1"], PROJECT, env)
        try:
            running.expect("ready.")
            done = subprocess.run(
                [python, "client.py"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            seen[library] = json.loads(done.stdout)
            running.expect("order 1 is paid")
        finally:
            running.stop()
    assert seen["umbel"] == seen["celery"]
