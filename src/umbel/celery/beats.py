"""``celery.beat``: schedulers in Celery's shape, which extensions are made of.

Umbel's own beat (:mod:`umbel.beat`) uses none of this. A class of an extension runs on it, one beat at a time as in
Celery (``Service`` is in :mod:`umbel.celery.beat_service`)::

    Service ──tick──> Scheduler ──heap──> ScheduleEntry ──is_due──> a schedule
"""

from __future__ import annotations

import copy
import heapq
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property, total_ordering
from typing import Any, Final, NamedTuple

from umbel.celery.connection import Producer
from umbel.celery.times import maybe_make_aware
from umbel.periodic.sending import Lazy
from umbel.schedules import crontab, maybe_schedule
from umbel.signatures import reprcall
from umbel.utils.time import humanize_seconds

logger = logging.getLogger("celery.beat")

#: Most seconds between two looks, if nothing says otherwise.
DEFAULT_MAX_INTERVAL: Final = 300

BeatLazyFunc = Lazy

_PRIORITY: Final = 5
_EDITABLE: Final = ("task", "args", "kwargs", "options", "schedule")
#: A little earlier than asked, so that the look finds what is due and not what is nearly so.
_DRIFT: Final = -0.010


class SchedulingError(Exception):
    """Raised if a task of a schedule cannot be sent."""


class event_t(NamedTuple):
    """One place of the heap: when the entry is to be looked at, in seconds since 1970."""

    time: float
    priority: int
    entry: Any


@total_ordering
class ScheduleEntry:
    """One line of a schedule, with when it was last sent and how often."""

    name: Any = None
    schedule: Any = None
    args: Any = None
    kwargs: Any = None
    options: Any = None
    last_run_at: Any = None
    total_run_count = 0

    def __init__(
        self,
        name: str | None = None,
        task: str | None = None,
        last_run_at: datetime | None = None,
        total_run_count: int | None = None,
        schedule: Any = None,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        relative: bool = False,
        app: Any = None,
    ) -> None:
        """``relative`` belongs to an interval, see :class:`umbel.schedules.schedule`."""
        self.app = app
        self.name = name
        self.task = task
        self.args = args
        self.kwargs = kwargs or {}
        self.options = options or {}
        self.schedule = maybe_schedule(schedule, relative, app=app)
        self.last_run_at = last_run_at or self.default_now()
        self.total_run_count = total_run_count or 0

    def default_now(self) -> Any:
        """Return the present moment by the schedule, or else by the app."""
        return self.schedule.now() if self.schedule else self.app.now()

    _default_now = default_now

    def _next_instance(self, last_run_at: datetime | None = None) -> Any:
        counted = {"last_run_at": last_run_at or self.default_now(), "total_run_count": self.total_run_count + 1}
        return type(self)(**{**dict(self), **counted})

    __next__ = next = _next_instance

    def update(self, other: Any) -> None:
        """Take what people edit from another entry: task, schedule, arguments and options."""
        for field in _EDITABLE:
            setattr(self, field, getattr(other, field))

    def is_due(self) -> Any:
        """Say whether it is due, and the seconds until it is due the next time."""
        return self.schedule.is_due(self.last_run_at)

    def editable_fields_equal(self, other: Any) -> bool:
        """Say whether an entry sends the same at the same times."""
        return all(getattr(self, field) == getattr(other, field) for field in _EDITABLE)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(vars(self).items())

    def __repr__(self) -> str:
        call = reprcall(self.task or "", self.args or (), self.kwargs or {})
        return f"<{type(self).__name__}: {self.name} {call} {self.schedule}"

    def __eq__(self, other: object) -> bool:
        return self.editable_fields_equal(other)

    def __lt__(self, other: object) -> bool:
        # Only the last means of the heap to tell two entries apart.
        return id(self) < id(other) if isinstance(other, ScheduleEntry) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as in Celery: equal ones may come to differ

    def __reduce__(self) -> tuple[Any, ...]:
        last = (self.last_run_at, self.total_run_count)
        return type(self), (self.name, self.task, *last, self.schedule, self.args, self.kwargs, self.options)


class Scheduler:
    """Sends the entries of a schedule. Subclasses keep the schedule elsewhere; one thread at a time.

    Made with ``lazy`` it is only asked what it is, and must not set anything up.
    """

    Entry: Any = ScheduleEntry
    max_interval: Any = DEFAULT_MAX_INTERVAL
    #: Seconds between two calls of :meth:`sync`.
    sync_every: Any = 3 * 60
    #: How many sendings force a :meth:`sync`; none if it is 0 or None.
    sync_every_tasks: Any = None

    _last_sync: float | None = None
    _tasks_since_sync = 0

    logger = logger

    def __init__(
        self,
        app: Any,
        schedule: Any = None,
        max_interval: float | None = None,
        Producer: Any = None,
        lazy: bool = False,
        sync_every_tasks: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.app = app
        evaluate = getattr(schedule, "evaluate", None)
        self.data: Any = {} if schedule is None else evaluate() if callable(evaluate) else schedule
        self.max_interval = max_interval or app.conf.beat_max_loop_interval or self.max_interval
        self.Producer = Producer or _producer
        self._heap: list[Any] | None = None
        self.old_schedulers: Any = None
        self.sync_every_tasks = app.conf.beat_sync_every if sync_every_tasks is None else sync_every_tasks
        if not lazy:
            self.setup_schedule()

    # -- the schedule --------------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Fill the schedule when the scheduler starts."""
        self.install_default_entries(self.data)
        self.merge_inplace(self.app.conf.beat_schedule)

    def install_default_entries(self, data: Any) -> None:
        """Add what Umbel itself wants to be run: clearing results away, where the backend does not do it alone."""
        entries: dict[str, Any] = {}
        # Made and not opened: it is only asked what it is.
        alone = getattr(self.app.make_backend(), "supports_autoexpire", True)
        if self.app.conf.result_expires and not alone and "celery.backend_cleanup" not in data:
            entries["celery.backend_cleanup"] = {
                "task": "celery.backend_cleanup",
                "schedule": crontab("0", "4", "*"),
                "options": {"expires": 12 * 3600},
            }
        self.update_from_dict(entries)

    def get_schedule(self) -> Any:
        """Return the entries by name."""
        return self.data

    def set_schedule(self, schedule: Any) -> None:
        """Replace the entries."""
        self.data = schedule

    @property
    def schedule(self) -> Any:
        """The entries by name."""
        return self.get_schedule()

    @schedule.setter
    def schedule(self, schedule: Any) -> None:
        self.set_schedule(schedule)

    def add(self, **kwargs: Any) -> Any:
        """Add an entry and return it."""
        entry = self.Entry(app=self.app, **kwargs)
        self.schedule[entry.name] = entry
        return entry

    def _maybe_entry(self, name: str, entry: Any) -> Any:
        if isinstance(entry, self.Entry):
            entry.app = self.app
            return entry
        return self.Entry(**{**entry, "name": name, "app": self.app})

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Add entries, or replace those of the same names."""
        self.schedule.update({name: self._maybe_entry(name, entry) for name, entry in dict_.items()})

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        """Make the schedule that of ``beat_schedule``: entries of the same name keep when they were last sent."""
        schedule = self.schedule
        for name in set(schedule) - set(b):
            schedule.pop(name, None)
        for name, said in b.items():
            entry = self.Entry(**{**said, "name": name, "app": self.app})
            if schedule.get(name):
                schedule[name].update(entry)
            else:
                schedule[name] = entry

    def schedules_equal(self, old_schedules: Any, new_schedules: Any) -> bool:
        """Say whether two schedules have the same entries."""
        if old_schedules is None or new_schedules is None:
            return old_schedules is new_schedules
        if set(old_schedules) != set(new_schedules):
            return False
        return all(new_schedules.get(name) == entry for name, entry in old_schedules.items())

    # -- its life ------------------------------------------------------------------------------------------------

    def tick(
        self,
        event_t: Callable[..., Any] = event_t,
        min: Callable[..., Any] = min,
        heappop: Callable[..., Any] = heapq.heappop,
        heappush: Callable[..., Any] = heapq.heappush,
    ) -> Any:
        """Send the first entry if it is due, and return the seconds after which to look again."""
        if self._heap is None or not self.schedules_equal(self.old_schedulers, self.schedule):
            self.old_schedulers = copy.copy(self.schedule)
            self.populate_heap()
        heap: Any = self._heap
        if not heap:
            return self.max_interval
        event = heap[0]
        entry = event[2]
        now = self._when(entry, 0)
        if event[0] > now:
            return min(event[0] - now, self.max_interval)
        due, following = self._asked(self.is_due, entry)
        first = heappop(heap)
        if first is not event:
            heappush(heap, first)
            return min(first[0] - self._when(first[2], 0), self.max_interval)
        if due:
            after = self.reserve(entry)
            self.apply_entry(entry, producer=self.producer)
            heappush(heap, event_t(self._when(after, following), event[1], after))
            return 0
        # It asks to be looked at again later; left where it is, it would hide those behind it.
        known = isinstance(following, int | float) and not isinstance(following, bool)
        pause = following if known else self.max_interval
        heappush(heap, event_t(self._when(entry, pause), event[1], entry))
        return 0 if heap[0][2] is not entry else min(self.adjust(pause), self.max_interval)

    def populate_heap(self, event_t: Callable[..., Any] = event_t, heapify: Callable[..., Any] = heapq.heapify) -> None:
        """Order the entries by when they are due."""
        self._heap = []
        for entry in self.schedule.values():
            due, following = self._asked(lambda each: each.is_due(), entry)
            self._heap.append(event_t(self._when(entry, 0 if due else following) or 0, _PRIORITY, entry))
        heapify(self._heap)

    def _asked(self, ask: Callable[[Any], Any], entry: Any) -> tuple[Any, Any]:
        try:
            due, following = ask(entry)
        # A schedule may be anybody's code; one that cannot say when it is due must not stop the others.
        except Exception:
            pause = humanize_seconds(self.max_interval)
            logger.exception("beat: Cannot calculate the next run of %r, trying again in %s.", entry.name, pause)
            return False, self.max_interval
        return due, following

    def is_due(self, entry: Any) -> Any:
        """Say whether an entry is due, and the seconds until it is due the next time."""
        return entry.is_due()

    def adjust(self, n: Any, drift: float = _DRIFT) -> Any:
        """Return a number of seconds a little shortened."""
        return n + drift if n and n > 0 else n

    def _when(self, entry: Any, next_time_to_run: Any, mktime: Any = None) -> float:
        now: datetime = maybe_make_aware(entry.default_now())
        return now.astimezone(UTC).timestamp() + (self.adjust(next_time_to_run) or 0)

    # -- sending -------------------------------------------------------------------------------------------------

    def reserve(self, entry: Any) -> Any:
        """Note that an entry is sent now, and return what it is afterwards."""
        after = self.schedule[entry.name] = next(entry)
        return after

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send an entry; an error is logged, and the entry waits for its next time."""
        logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            result = self.apply_async(entry, producer=producer, advance=False)
        # One entry that cannot be sent must not stop the others.
        except Exception as error:
            logger.exception("Message Error: %s\n%s", error, traceback.format_stack())
        else:
            if result and hasattr(result, "id"):
                logger.debug("%s sent. id->%s", entry.task, result.id)
            else:
                logger.debug("%s sent.", entry.task)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send an entry and return the result object. Raises :exc:`SchedulingError`."""
        # Noted before it is sent: an entry that fails would else be due at once, for ever.
        entry = self.reserve(entry) if advance else entry
        task = self.app.tasks.get(entry.task)
        try:
            args = [each() if isinstance(each, Lazy) else each for each in entry.args or ()]
            named = {key: each() if isinstance(each, Lazy) else each for key, each in (entry.kwargs or {}).items()}
            options = dict(entry.options)
            options["headers"] = {**(options.get("headers") or {}), "celery_beat_task": True}
            if task:
                return task.apply_async(args, named, producer=producer, **options)
            return self.send_task(entry.task, args, named, producer=producer, **options)
        # Whatever it is, the caller learns which entry it was.
        except Exception as error:
            raise SchedulingError(f"Couldn't apply scheduled task {entry.name}: {error}") from error
        finally:
            self._tasks_since_sync += 1
            if self.should_sync():
                self._do_sync()

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """Send a task that is not registered here."""
        return self.app.send_task(*args, **kwargs)

    # -- keeping -------------------------------------------------------------------------------------------------

    def should_sync(self) -> bool:
        """Say whether it is time to keep the schedule."""
        if not self._last_sync or time.monotonic() - self._last_sync > self.sync_every:
            return True
        return bool(self.sync_every_tasks and self._tasks_since_sync >= self.sync_every_tasks)

    def _do_sync(self) -> None:
        try:
            logger.debug("beat: Synchronizing schedule...")
            self.sync()
        finally:
            self._last_sync = time.monotonic()
            self._tasks_since_sync = 0

    def sync(self) -> None:
        """Keep the schedule where it survives; here it is kept nowhere."""

    def close(self) -> None:
        """Keep the schedule and give up connections, which are made anew if it is used again."""
        try:
            self.sync()
        finally:
            self.__dict__.pop("producer", None)
            connection = self.__dict__.pop("connection", None)
            if connection is not None:
                connection.release()

    @cached_property
    def connection(self) -> Any:
        """A connection to the broker, which subclasses use; tasks are sent without it."""
        return self.app.connection_for_write()

    @cached_property
    def producer(self) -> Any:
        """What is handed to ``apply_async``, and not needed there."""
        return self.Producer(None, auto_declare=False)

    @property
    def info(self) -> str:
        """Lines for the banner."""
        return ""


# The parameter of the constructor has the same name.
_producer: Final = Producer


def is_scheduler(found: Any) -> bool:
    """Say whether something is a class of schedulers, which a service can run."""
    return isinstance(found, type) and issubclass(found, Scheduler)
