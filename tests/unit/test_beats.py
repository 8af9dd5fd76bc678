"""Celery's scheduler classes under the alias, beside Celery's own: the same story, told to both, comes out the same."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import umbel.schedules
from umbel import Umbel
from umbel.beat.choosing import Extension, is_ours, make_beat
from umbel.beat.service import Beat
from umbel.celery import beat_service, beats, shelved
from umbel.exceptions import ImproperlyConfigured

NAMES = ("Scheduler", "ScheduleEntry", "SchedulingError", "BeatLazyFunc")
OURS = SimpleNamespace(
    **{name: getattr(beats, name) for name in NAMES},
    PersistentScheduler=shelved.PersistentScheduler,
    schedules=umbel.schedules,
    App=Umbel,
)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def theirs() -> Any:
    beat = pytest.importorskip("celery.beat")
    import celery
    import celery.schedules

    assert celery.beat.__file__.endswith("celery/beat.py")
    classes = {name: getattr(beat, name) for name in (*NAMES, "PersistentScheduler")}
    return SimpleNamespace(**classes, schedules=celery.schedules, App=celery.Celery)


def make(kind: Any, **settings: Any) -> Any:
    app = kind.App("t", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    return app


def scheduler(kind: Any, app: Any, **options: Any) -> tuple[Any, list[Any]]:
    sent: list[Any] = []

    class Recording(kind.Scheduler):  # type: ignore[misc, name-defined]
        producer = None

        def send_task(self, name: str, args: Any, kwargs: Any, **more: Any) -> Any:
            if name == "broken":
                raise OSError("away")
            sent.append((name, list(args), dict(kwargs), {key: more[key] for key in more if key != "producer"}))
            return SimpleNamespace(id="an-id")

    return Recording(app=app, **options), sent


def entries(kind: Any) -> dict[str, Any]:
    lazy = kind.BeatLazyFunc(lambda x: x * 2, 21)
    return {
        "b": {"task": "t.b", "schedule": 60, "args": (1,), "options": {"queue": "q", "headers": {"own": 1}}},
        "a": {"task": "t.a", "schedule": timedelta(hours=1), "kwargs": {"k": lazy}, "relative": True},
        "c": {"task": "broken", "schedule": kind.schedules.crontab(minute=0, hour=0, day_of_month=1, month_of_year=1)},
    }


def of_entries(kind: Any) -> Any:
    entry = kind.ScheduleEntry(name="e", task="t.x", schedule=10, args=(1, 2), kwargs={"k": "v"}, app=make(kind))
    once = next(entry)
    twice = entry.next(last_run_at=LONG_AGO)
    other = kind.ScheduleEntry(name="other", task="t.y", schedule=20, options={"queue": "q"}, app=entry.app)
    before = (entry == once, entry == other, other.editable_fields_equal(entry))
    entry.update(other)
    copied = pickle.loads(pickle.dumps(twice))
    return [
        repr(once), before, entry == other, entry.name, entry.total_run_count, once.total_run_count,
        (twice.last_run_at, twice.total_run_count), twice.is_due().is_due, once.is_due().is_due,
        round(once.is_due().next), sorted(dict(iter(once))), (copied.name, copied.last_run_at, copied == twice),
        (entry < other) != (other < entry), kind.ScheduleEntry.__hash__ is None,
    ]  # fmt: skip


def of_ticks(kind: Any) -> Any:
    app = make(kind, beat_schedule=entries(kind), beat_max_loop_interval=7)
    found, sent = scheduler(kind, app)
    told: list[Any] = [sorted(found.schedule), found.max_interval, found.info, found.tick()]
    for name in ("b", "a", "c"):
        found.schedule[name].last_run_at = LONG_AGO
    found._heap = None
    # Each tick sends one; then nothing is due for so long that the longest interval counts.
    told += [found.tick() for _ in range(3)]
    told.append(0 < found.tick() <= 7)
    told += [sorted(sent), {name: each.total_run_count for name, each in sorted(found.schedule.items())}]

    # A new entry is seen, and one that cannot say when it is due does not stop the others.
    class Broken(kind.schedules.schedule):  # type: ignore[misc, name-defined]
        def is_due(self, last_run_at: datetime) -> Any:
            raise ValueError("no idea")

    found.add(name="d", task="t.d", schedule=Broken(1, app=app))
    found.add(name="e", task="t.e", schedule=30, last_run_at=LONG_AGO)
    told += [found.tick(), sent[-1][0], 0 < found.tick() <= 7]
    return told


def of_edits(kind: Any) -> Any:
    app = make(kind, beat_schedule=entries(kind))
    found, _ = scheduler(kind, app)
    found.schedule["b"].total_run_count = 5
    found.merge_inplace({"b": {"task": "t.other", "schedule": 1}, "new": {"task": "t.n", "schedule": 2}})
    told: list[Any] = [{name: (each.task, each.total_run_count) for name, each in sorted(found.schedule.items())}]
    same = dict(found.schedule)
    told.append((found.schedules_equal(same, found.schedule), found.schedules_equal(None, None),
                 found.schedules_equal(None, same), found.schedules_equal({}, same)))  # fmt: skip
    found.update_from_dict(
        {"dict": {"task": "t.d", "schedule": 3}, "entry": found.Entry(task="t.e", schedule=4, app=app)}
    )
    told += [sorted(found.schedule), found.schedule["dict"].name, found.schedule["entry"].app is app]
    try:
        found.apply_async(found.add(name="x", task="broken", schedule=1))
    except kind.SchedulingError as error:
        told.append(str(error))
    told += [found.schedule["x"].total_run_count, found.adjust(5), found.adjust(0), found.adjust(None)]
    lazy = kind.Scheduler(app=app, lazy=True)
    return [*told, lazy.schedule, lazy.max_interval, lazy.sync_every, lazy.should_sync()]


def of_syncs(kind: Any) -> Any:
    found, _ = scheduler(kind, make(kind, beat_sync_every=2))
    counted: list[int] = []
    found.sync = lambda: counted.append(1)
    told: list[Any] = []
    found.schedule.clear()
    for name in "abcd":
        found.apply_async(found.add(name=name, task="t", schedule=1))
        told.append(len(counted))
    return told


@pytest.mark.parametrize("story", [of_entries, of_ticks, of_edits, of_syncs])
def test_the_same_story(story: Any) -> None:
    assert story(OURS) == story(theirs())


def names(found: Any) -> list[str]:
    """The entries but that which Celery adds where results do not expire by themselves."""
    return sorted(name for name in found.schedule if name != "celery.backend_cleanup")


def of_files(kind: Any, path: str) -> Any:
    class Quiet(kind.PersistentScheduler):  # type: ignore[misc, name-defined]
        producer = None

    def opened(**settings: Any) -> Any:
        said = entries(kind) | {"a": {"task": "t.a", "schedule": 5}}
        app = make(kind, **{"timezone": "Europe/Rome", "beat_schedule": said, **settings})
        return Quiet(app=app, schedule_filename=path)

    first = opened()
    first.schedule["b"].total_run_count = 3
    first.schedule["b"].last_run_at = LONG_AGO
    told = [names(first), first.info.replace(path, "PATH")]
    first.close()
    second = opened()
    told += [second.schedule["b"].total_run_count, second.schedule["b"].last_run_at]
    second.close()
    third = opened(timezone="Asia/Tokyo")  # what was kept of another zone means something else
    told += [third.schedule["b"].total_run_count]
    third.close()
    for each in Path(path).parent.glob("kept*"):
        each.write_bytes(b"garbage")
    fourth = opened()
    told += [names(fourth)]
    fourth.close()
    return told


def test_the_file_of_the_persistent_one(tmp_path: Path) -> None:
    found = []
    for number, kind in enumerate((OURS, theirs())):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(of_files(kind, str(folder / "kept")))
    assert found[0] == found[1]
    assert found[0][0] == ["a", "b", "c"] and found[0][2:5] == [3, LONG_AGO, 0]


def test_a_service_ends_when_told_and_keeps_its_schedule() -> None:
    app = make(OURS)
    kept: list[str] = []

    class Once(beats.Scheduler):
        def tick(self, *args: Any, **kwargs: Any) -> Any:
            service.stop()
            return 60.0

        def sync(self) -> None:
            kept.append("sync")

    service = beat_service.Service(app, scheduler_cls=Once, max_interval=3)
    service.start()  # returns, although the next look was due in a minute
    assert kept and service.scheduler.max_interval == 3 and service.ticked_at is not None
    thread = beat_service.EmbeddedService(make(OURS), thread=True, scheduler_cls=beats.Scheduler)
    thread.start()
    thread.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_which_scheduler_runs() -> None:
    app = make(OURS)
    assert isinstance(make_beat(app), Beat)
    for name in (
        "celery.beat:PersistentScheduler",
        "celery.beat.PersistentScheduler",
        "umbel.beat:Beat",
        "umbel",
        None,
    ):
        assert is_ours(name)
    found = make_beat(app, scheduler="celery.beat:Scheduler", max_interval=4)
    assert isinstance(found, Extension) and found.service.scheduler_cls is beats.Scheduler and found.longest == 4
    app.conf.beat_scheduler = beats.Scheduler
    assert isinstance(make_beat(app), Extension)
    with pytest.raises(ImproperlyConfigured, match="umbel --as-celery"):
        make_beat(app, scheduler="no.such:Thing")
    assert app.Beat(quiet=True).app is app


NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)


class Asked(umbel.schedules.BaseSchedule):
    """Written for Celery: it says only whether it is due."""

    def is_due(self, last_run_at: datetime) -> Any:
        left = (last_run_at + timedelta(seconds=30) - NOW).total_seconds()
        return umbel.schedules.schedstate(left <= 0, 30.0 if left <= 0 else left)


class Estimated(umbel.schedules.BaseSchedule):
    """Written for Celery: it says only how long it takes, here until one moment."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return NOW + timedelta(hours=1) - NOW


def test_a_schedule_that_was_written_for_celery_says_when_it_is_due() -> None:
    asked, estimated = Asked(nowfun=lambda: NOW), Estimated(nowfun=lambda: NOW)
    assert asked.next_after(NOW - timedelta(seconds=10)) == NOW + timedelta(seconds=20)
    assert asked.next_after(NOW - timedelta(seconds=40)) == NOW  # it is due now, and cannot say since when
    assert estimated.next_after(NOW) == NOW + timedelta(hours=1)
    assert estimated.next_after(NOW + timedelta(hours=2)) is None
    with pytest.raises(NotImplementedError, match="BaseSchedule has no next_after"):
        umbel.schedules.BaseSchedule(nowfun=lambda: NOW).next_after(NOW)
