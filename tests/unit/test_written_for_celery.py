"""What packages for Celery bring: commands, result backends, and classes that lean on Celery's attributes."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from support import environment
from umbel import Umbel
from umbel.celery.connection import Connection
from umbel.drivers import open_backend
from umbel.events.event import Event
from umbel.events.state import State, Worker
from umbel.exceptions import ImproperlyConfigured
from umbel.schedules import crontab


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package that adds commands to Celery's."""
    info = tmp_path / "petals-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: petals\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[celery.commands]\npetals = petals:petals\nbroken = nothing_here:x\nodd = petals:ODD\n"
        "[celery.result_backends]\npetal-store = petals:Store\n"
    )
    (tmp_path / "petals.py").write_text(
        "import click\nfrom celery.bin.base import CeleryCommand\nODD = 1\n"
        "@click.command(cls=CeleryCommand, context_settings={'ignore_unknown_options': True})\n"
        "@click.argument('words', nargs=-1, type=click.UNPROCESSED)\n@click.pass_context\n"
        "def petals(ctx, words):\n"
        "    print(ctx.obj.app.connection().transport.driver_type, ctx.obj.quiet, *words)\n"
    )
    return tmp_path


def umbel(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = environment(PYTHONPATH=str(package))
    command = [sys.executable, "-m", "umbel", *words]
    return subprocess.run(command, cwd=package, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_a_command_of_a_package_runs_with_the_alias(package: Path) -> None:
    done = umbel(package, "--as-celery", "-b", "memory://", "petals", "--port=1", "x")
    assert (done.returncode, done.stdout) == (0, "memory False --port=1 x\n"), done.stderr
    without = umbel(package, "petals")
    assert without.returncode == 78 and "run it as umbel --as-celery petals" in without.stderr
    for name, why in (("broken", "cannot be imported from nothing_here:x"), ("odd", "is no command but 1")):
        done = umbel(package, "--as-celery", name)
        assert done.returncode == 78 and why in done.stderr and "Traceback" not in done.stderr
    nobody = umbel(package, "--as-celery", "nosuch")
    assert nobody.returncode == 2 and "no such command 'nosuch'" in nobody.stderr


@pytest.mark.parametrize("name", ["django-db", "django-cache", "django_celery_results.backends:DatabaseBackend"])
def test_a_result_backend_of_a_package_is_refused(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"{name} was written for Celery.* Keep results in redis://"):
        open_backend(name)


def test_a_result_backend_is_known_by_the_name_that_its_package_gives_it(package: Path) -> None:
    code = "from umbel.drivers import open_backend; open_backend('petal-store://x')"
    env = environment(PYTHONPATH=str(package))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert "petal-store (petals:Store) was written for Celery" in done.stderr


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://h", "redis"),
        ("rediss://h", "redis"),
        ("sentinel://h", "redis"),
        ("amqps://h", "amqp"),
        (None, "memory"),
    ],
)
def test_a_connection_says_what_kind_of_broker_it_leads_to(url: str | None, kind: str) -> None:
    assert Connection(url).transport.driver_type == kind


def test_a_worker_that_went_stays_in_a_state_that_nobody_asked_to_forget_it() -> None:
    state, now = State(), time.time()
    state.event(Event("worker-online", hostname="w@h", local_received=now, pid=7))
    assert {name: getattr(state.workers["w@h"], name) for name in Worker._fields}["pid"] == 7
    assert state.workers["w@h"].alive
    state.event(Event("worker-offline", hostname="w@h", local_received=now))
    assert not state.workers["w@h"].alive and list(state.alive_workers()) == []


def test_a_subclass_of_a_state_may_look_on_when_tasks_are_forgotten() -> None:
    class Seen(State):
        cleared = 0

        def _clear_tasks(self, ready: bool = True) -> None:
            super()._clear_tasks(ready)
            self.cleared += 1

    state = Seen()
    state.event(Event("task-received", hostname="w@h", uuid="a", local_received=time.time()))
    state.clear_tasks(ready=False)
    state.clear()
    assert state.cleared == 2 and not state.tasks


def test_a_subclass_of_a_schedule_may_set_its_zone_first() -> None:
    class Zoned(crontab):
        def __init__(self, tz: ZoneInfo) -> None:
            self.tz = tz
            app = Umbel("zones", broker="memory://", set_as_current=False)
            super().__init__(minute="30", hour="6", nowfun=lambda: datetime(2026, 1, 5, 5, 31, tzinfo=UTC), app=app)

    schedule = Zoned(ZoneInfo("Europe/Rome"))
    assert schedule.tz == ZoneInfo("Europe/Rome")
    assert schedule.is_due(datetime(2026, 1, 5, 5, 0, tzinfo=UTC)) == (True, 86340.0)
