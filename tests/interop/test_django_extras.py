"""django-celery-results and django-celery-beat on the alias: their tables, their models and their admin pages.

Neither Celery nor kombu is installed where this runs.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import peers
from support import WorkerProcess, environment, eventually, run, worker
from umbel.celery import switch_path

# Programs of others start slowly on a busy machine.
pytestmark = pytest.mark.timeout(240)

PROJECT = Path(__file__).resolve().parent / "programs" / "django_extras"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    peers.needed("django_celery_beat")
    return environment(PYTHONPATH=switch_path(), DESK_HOME=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")


def command(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in the project."""
    done = [sys.executable, "-W", "error::DeprecationWarning:__main__", *words]
    return subprocess.run(done, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=50, check=False)


def test_tables_models_and_admin_pages(env: dict[str, str]) -> None:
    # The extensions are here without what they ask for.
    assert not {"celery", "kombu", "billiard"} & set(importlib.metadata.packages_distributions())
    for words in (("migrate", "-v", "1"), ("makemigrations", "--check", "--dry-run"), ("check",)):
        done = command(env, "manage.py", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    with worker("desk", "-l", "info", "-c", "1", cwd=PROJECT, env=env, celery=True) as running:
        seen = json.loads(run((PROJECT / "client.py").read_text(), cwd=PROJECT, env=env))
        # What the button of the admin page "run selected tasks" sent.
        running.expect("'hello ada'")
        assert "beat_scheduler" not in running.output
    assert set(seen["pages"].values()) == {200} and len(seen["pages"]) == 8
    assert seen == {
        "pages": seen["pages"],
        "offered": True,
        "ran": ["1 task was successfully run"],
        "interval": True,
        "crontab": True,
        "names": [["desk.tasks.greet", "SUCCESS"]],
        "greeted": "hello bob",
    }


@pytest.mark.parametrize(
    "backend",
    ["django-db", "django-cache", "django_celery_results.backends:DatabaseBackend"],
)
def test_their_result_backends_are_refused_with_what_to_do(backend: str, env: dict[str, str]) -> None:
    env = {**env, "DESK_RESULTS": backend}
    for words in (
        ("-m", "celery", "-A", "desk", "worker", "-c", "1"),
        ("-c", "from desk.tasks import greet; greet.delay('ada').get(timeout=5)"),
    ):
        done = command(env, *words)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode in (1, 78), said
        assert f"the result backend {backend}" in said and "was written for Celery" in said and "redis://" in said


SCHEDULE = """
import json
import django
django.setup()
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask
from django.utils import timezone
second, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
once = ClockedSchedule.objects.create(clocked_time=timezone.now())
weekly, _ = CrontabSchedule.objects.get_or_create(minute="30", hour="6", day_of_week="1", timezone="Europe/Berlin")
common = {"task": "desk.tasks.greet"}
PeriodicTask.objects.create(name="often", interval=second, args='["often"]', queue="celery", **common)
PeriodicTask.objects.create(name="once", clocked=once, one_off=True, args='["once"]', **common)
PeriodicTask.objects.create(name="monday", crontab=weekly, args='["monday"]', **common)
"""

SEEN = """
import json
import django
django.setup()
from django_celery_beat.models import PeriodicTask
print(json.dumps({each.name: [each.total_run_count, each.enabled] for each in PeriodicTask.objects.all()}))
"""


@pytest.fixture
def scheduled(env: dict[str, str]) -> dict[str, str]:
    """A database with an interval of a second, a moment and a weekly crontab."""
    env = {**env, "DJANGO_SETTINGS_MODULE": "settings"}
    done = command(env, "manage.py", "migrate", "-v", "0")
    assert done.returncode == 0, done.stderr
    run(SCHEDULE, cwd=PROJECT, env=env)
    return env


@pytest.mark.parametrize("scheduler", [None, "django", "django_celery_beat.schedulers:DatabaseScheduler"])
def test_the_database_scheduler_sends_what_is_due(scheduler: str | None, scheduled: dict[str, str]) -> None:
    chosen = [] if scheduler is None else ["-S", scheduler]  # the setting says it too
    beat = WorkerProcess(
        [sys.executable, "-m", "umbel", "--as-celery", "-A", "desk", "beat", "-l", "info", *chosen], PROJECT, scheduled
    )
    try:
        beat.expect(". scheduler -> django_celery_beat.schedulers.DatabaseScheduler")
        with worker("desk", "-l", "info", "-c", "1", cwd=PROJECT, env=scheduled, celery=True) as running:
            running.expect("'hello once'")
            eventually(lambda: running.output.count("'hello often'") >= 2)
            # What is edited is heeded within five seconds.
            run(SCHEDULE.split("second, _", maxsplit=1)[0] + "PeriodicTask.objects.get(name='often').delete()",
                cwd=PROJECT, env=scheduled)  # fmt: skip
            beat.expect("DatabaseScheduler: Schedule changed.")
    finally:
        status = beat.stop()
    assert status == 0, beat.output
    for line in ("beat: Starting...", "Scheduler: Sending due task often (desk.tasks.greet)", "beat: Shutting down..."):
        assert line in beat.output
    assert "Sending due task monday" not in beat.output and "Traceback" not in beat.output
    seen = json.loads(run(SEEN, cwd=PROJECT, env=scheduled))
    # Their scheduler adds the third by itself.
    assert set(seen) == {"once", "monday", "celery.backend_cleanup"}
    assert seen["once"] == [0, False] and seen["monday"] == [0, True]


def test_a_worker_runs_it_too(scheduled: dict[str, str]) -> None:
    with worker("desk", "-B", "-l", "info", "-c", "1", cwd=PROJECT, env=scheduled, celery=True) as running:
        eventually(lambda: running.output.count("'hello often'") >= 2)
    assert "beat: Shutting down..." in running.output and "Traceback" not in running.output
    # What was sent is written when it stops.
    assert json.loads(run(SEEN, cwd=PROJECT, env=scheduled))["often"][0] >= 2


def test_without_the_alias_it_says_how_to_run_it(env: dict[str, str]) -> None:
    plain = {key: value for key, value in env.items() if key != "PYTHONPATH"}
    for words in (("beat", "-S", "django"), ("beat", "-S", "django_celery_beat.schedulers:DatabaseScheduler")):
        done = command(plain, "-m", "umbel", "-A", "umbel_desk", *words)
        said = done.stdout + done.stderr
        assert done.returncode == 78 and "umbel --as-celery" in said, said
