"""Which beat runs: ours, or a scheduler class of an extension."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Final, Protocol

from umbel import aliased
from umbel.beat.service import Beat
from umbel.exceptions import ImproperlyConfigured
from umbel.loading import symbol_by_name

#: Names of our own: the default of ``beat_scheduler`` is Celery's, whose file nobody needs here.
OURS: Final = frozenset({"umbel", "umbel.beat:Beat", "umbel.beat.Beat", "celery.beat:PersistentScheduler",
                         "celery.beat.PersistentScheduler"})  # fmt: skip
_CLASSES: Final = "umbel.celery.beats"


class Runs(Protocol):
    """What sends what is due: :meth:`run` returns after :meth:`stop`, which any thread may call."""

    @property
    def ticked_at(self) -> float | None:
        """When it last looked, on the monotonic clock; None before the first time."""

    @property
    def longest(self) -> float:
        """Most seconds between two looks."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


class Extension:
    """A scheduler of Celery's kind, run by its service."""

    def __init__(self, service: Any, on_ready: Callable[[], None] | None = None) -> None:
        self.service = service
        self._on_ready = on_ready

    @property
    def ticked_at(self) -> float | None:
        """When it last looked."""
        found: float | None = self.service.ticked_at
        return found

    @property
    def longest(self) -> float:
        """Most seconds between two looks."""
        return float(self.service.get_scheduler(lazy=True).max_interval)

    def run(self) -> None:
        """Send what is due until :meth:`stop`."""
        if self._on_ready is not None:
            self._on_ready()
        self.service.start()

    def stop(self) -> None:
        """Have :meth:`run` return when the look of this moment has ended."""
        self.service.stop()


def is_ours(scheduler: Any) -> bool:
    """Say whether a value of ``beat_scheduler`` or ``-S`` means Umbel's own beat."""
    return scheduler is None or scheduler in ("", Beat) or (isinstance(scheduler, str) and scheduler in OURS)


def make_beat(
    app: Any,
    *,
    scheduler: Any = None,
    schedule_filename: str | None = None,
    max_interval: float | None = None,
    on_ready: Callable[[], None] | None = None,
) -> Runs:
    """Return what ``scheduler`` means, or else the setting ``beat_scheduler``; nothing is started.

    A scheduler of an extension is a class, ``module:Class``, or a name of the entry points ``celery.beat_schedulers``.
    Raises :exc:`ImproperlyConfigured`.
    """
    chosen = scheduler or app.conf.beat_scheduler
    if is_ours(chosen):
        return Beat(app, max_interval=max_interval, on_ready=on_ready)
    service = symbol_by_name("umbel.celery.beat_service:Service")
    options = {"max_interval": max_interval, "schedule_filename": schedule_filename}
    return Extension(service(app, scheduler_cls=_found(chosen), **options), on_ready)


def _found(chosen: Any) -> Any:
    """Return the class of an extension's scheduler."""
    value = chosen
    if isinstance(chosen, str):
        named = {point.name: point.value for point in entry_points(group="celery.beat_schedulers")}
        value = named.get(chosen, chosen)
        if value.startswith(("celery.beat:", "celery.beat.")):
            # Also where the alias is not installed.
            value = f"{_CLASSES}:{value[len('celery.beat') + 1 :]}"
    try:
        found = symbol_by_name(value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(f"the scheduler {chosen!r} cannot be imported: {error}{_advice()}") from error
    if not symbol_by_name(f"{_CLASSES}:is_scheduler")(found):
        raise ImproperlyConfigured(f"the scheduler {chosen!r} is no celery.beat.Scheduler of Umbel's{_advice()}")
    return found


def _advice() -> str:
    if aliased.active:
        return ""
    return "; one that was written for Celery runs with umbel --as-celery (see docs/coming-from-celery.md)"
