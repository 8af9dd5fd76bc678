"""``app.schedules``: look at periodic tasks and change them while beat runs, from any program that has the app."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, tzinfo
from itertools import islice
from typing import Any, Final

import msgspec

from umbel import states
from umbel.interfaces import Outgoing, Write
from umbel.jsoncodec import json_dumps, json_loads
from umbel.periodic.entry import Entry
from umbel.periodic.sending import ATOMIC, messages, task_id_at
from umbel.periodic.table import Fired, Line, Table
from umbel.schedules.notes import notes
from umbel.schedules.zones import utc
from umbel.sensitive import shown_call
from umbel.utils.identity import uuid

logger = logging.getLogger("celery.beat")

#: How many times one backfill may send, unless more is asked for.
MOST: Final = 1000
_TRIES: Final = 20
_STEP: Final = 100  # times that are sent in one go
_KEPT: Final = 10_000  # times of an entry of which it is remembered that a backfill sent them


class Fire(msgspec.Struct, frozen=True, kw_only=True):
    """One time of an entry to come; ``notes`` say what happens to it because clocks change."""

    name: str
    task: str
    at: datetime  # in the zone of the entry
    notes: Sequence[str] = ()


class Schedules:
    """The periodic tasks of an app: those of ``beat_schedule``, and those added here, which the broker keeps.

    Every change is heeded by a running beat within two seconds, and none makes it send what has passed. All methods
    raise :exc:`OperationalError` if the broker cannot be reached, and :exc:`KeyError` for a name that is not there.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.table = Table(app)

    @property
    def zone(self) -> tzinfo:
        """The zone of local times, for entries that have none of their own."""
        found: tzinfo = self._app.timezone
        return found

    def list(self) -> Sequence[Line]:
        """Return all entries, by name."""
        return self.table.lines()

    def get(self, name: str) -> Line:
        """Return one entry with what the store knows of it."""
        return self.table.line(name)

    def set(self, name: str, **said: Any) -> Line:
        """Add an entry, or change some of one, and return it.

        Names as in ``beat_schedule``: ``task`` ``schedule`` (also as text, ``"0 4 * * mon"`` or ``"30s"``) ``args``
        ``kwargs`` ``options`` ``relative`` ``enabled`` ``catch_up`` ``deadline`` ``overlap`` ``timezone`` ``start``
        ``end`` ``jitter``. A new ``schedule`` says all about when: bounds, jitter and zone of before are forgotten.
        What is changed of an entry that the program declares lasts until :meth:`reset`.

        Raises :exc:`ImproperlyConfigured` for a wrong value.
        """
        return self.table.set(name, **said)

    def enable(self, name: str) -> Line:
        """Have an entry sent again, from its next time on."""
        self.table.line(name)
        return self.table.enable(name)

    def disable(self, name: str) -> Line:
        """Have an entry not sent any more."""
        self.table.line(name)
        return self.table.enable(name, False)

    def reset(self, name: str) -> Line:
        """Take back what people changed of an entry that the program declares."""
        self.table.reset(name)
        return self.table.line(name)

    def remove(self, name: str) -> None:
        """Remove an entry that the program does not declare. Raises :exc:`ValueError` for one that it does."""
        self.table.remove(name)

    def history(self, name: str) -> Sequence[Fired]:
        """Return the latest sendings of an entry, the newest first; twenty are kept."""
        return tuple(self.table.history(name))

    # -- when ----------------------------------------------------------------------------------------------------

    def next(self, name: str | None = None, *, count: int = 10, after: datetime | None = None) -> Sequence[Fire]:
        """Return the next times of an entry, or of all that are enabled, in order."""
        if name is not None:
            return self.coming(self.table.line(name), count=count, after=after)
        found: list[Fire] = []
        for line in self.table.lines():
            try:
                found += self.coming(line, count=count, after=after) if line.entry.enabled else ()
            # A schedule may be of the user's own and raise anything; the other entries are told still.
            except Exception as error:
                logger.error("The times of the entry %r cannot be told: %r", line.entry.name, error)
        # Not by the moments themselves: two of one zone are compared by what the clock shows.
        return sorted(found, key=lambda fire: fire.at.timestamp())[:count]

    def preview(self, name: str, *, count: int = 5, **said: Any) -> Sequence[Fire]:
        """Return the next times that an entry would have after :meth:`set` with the same words, and change nothing.

        Raises what :meth:`set` raises.
        """
        return self.coming(self.table.would_be(name, **said), count=count)

    def coming(self, line: Line, *, count: int = 10, after: datetime | None = None) -> Sequence[Fire]:
        """Return the next times of an entry that was read before, also of one that is not enabled."""
        entry, zone = line.entry, self._app.timezone
        shown = line.schedule.local_zone(zone)
        found: list[Fire] = []
        before = utc(after) if after is not None else self._app.clock.now()
        for due in line.schedule.upcoming(before, zone=zone):
            if len(found) == count:
                break
            said = notes(line.schedule, due, zone=zone, after=before)
            found.append(Fire(name=entry.name, task=entry.task, at=due.astimezone(shown), notes=said))
            before = due
        return found

    def glance(self, line: Line, *, count: int) -> tuple[Sequence[Fire], Exception | None]:
        """Do :meth:`coming` for one of many: none if it is not enabled, and what its schedule raises is returned."""
        try:
            return (self.coming(line, count=count) if line.entry.enabled else ()), None
        except Exception as error:  # A schedule of the user's own may raise anything; the others are shown still.
            return (), error

    def shown(self, entry: Entry) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the arguments of an entry as people may see them: ``***`` for what its task's ``sensitive`` hides."""
        return shown_call(self._app.registry.get(entry.task), entry.args, entry.kwargs)

    # -- sending -------------------------------------------------------------------------------------------------

    def run(self, name: str) -> Any:
        """Send an entry's task now, whatever its schedule says, and return the result object."""
        line = self.table.line(name)
        task_id = uuid()
        self._app.publish(messages(self._app, line.entry, task_id))
        now = float(self._app.clock.time())
        self.table.remember(name, Fired(now, now, task_id, "by hand"))
        return self._app.AsyncResult(task_id)

    def times(self, name: str, start: datetime, end: datetime) -> Iterator[datetime]:
        """Yield the times of an entry from ``start`` to ``end``, both included and aware."""
        line = self.table.line(name)
        tick = timedelta(microseconds=1)
        for due in line.schedule.upcoming(start - tick, zone=self._app.timezone):
            if due > end:
                return
            yield due

    def backfill(
        self, name: str, start: datetime, end: datetime, *, most: int = MOST, again: bool = False
    ) -> Sequence[str]:
        """Send an entry for each of its times between two moments, both included, and return the ids of the tasks.

        A time has one id, whoever sends it. Those that were sent before are left out, unless ``again``: by a backfill,
        by beat within its history, or with a result that is still kept. Raises :exc:`ValueError` if these are more than
        ``most`` times, or if some have not come yet.
        """
        line, due = self.table.line(name), self.missed(name, start, end, most=most, again=again)
        sent: list[str] = []
        for first in range(0, len(due), _STEP):
            sent += self._fill(line, due[first : first + _STEP], again)
        return sent

    def missed(
        self, name: str, start: datetime, end: datetime, *, most: int = MOST, again: bool = False
    ) -> Sequence[datetime]:
        """Return the times that :meth:`backfill` would send now. Errors are the same."""
        line = self.table.line(name)
        if utc(end) > self._app.clock.now():
            raise ValueError(f"{end.isoformat()} has not come yet; beat sends what is due then")
        due = list(islice(self.times(name, utc(start), utc(end)), most + 1))
        if len(due) > most:
            raise ValueError(f"{name!r} was due more than {most} times then; ask for less at once, or allow more")
        return due if again else self._unsent(line, due, self._filled(line)[0])

    def _filled(self, line: Line) -> tuple[Sequence[float], int]:
        """Return the times that backfills have sent, and the version of that."""
        stored = self.table.store.get(line.filled_key)
        return ([], 0) if stored is None else (json_loads(stored.value), stored.version)

    def _fill(self, line: Line, due: Sequence[datetime], again: bool) -> Sequence[str]:
        """Send some times and note them, in one step of the broker where it can do that."""
        app, name = self._app, line.entry.name
        for _ in range(_TRIES):
            filled, version = self._filled(line)
            left = due if again else self._unsent(line, due, filled)
            if not left:
                return ()
            kept = sorted({*filled, *(each.timestamp() for each in left)})[-_KEPT:]
            ids = [task_id_at(line.which, each) for each in left]
            outgoings = [out for id in ids for out in messages(app, line.entry, id)]
            if again:
                # The broker would take it for a repeat of what was sent a moment ago, and drop it.
                meant = uuid()
                outgoings = [msgspec.structs.replace(out, attempt=f"{out.attempt}\n{meant}") for out in outgoings]
            write = Write(key=line.filled_key, value=json_dumps(kept).encode(), if_version=version)
            if self._publish(write, outgoings):
                return ids
        raise RuntimeError(f"others fill {name!r} at the same time; try again")

    def _unsent(self, line: Line, due: Sequence[datetime], filled: Sequence[float]) -> Sequence[datetime]:
        app = self._app
        known = {*filled, *(fired.due for fired in line.record.history if fired.task_id and not fired.note)}
        left = [each for each in due if each.timestamp() not in known]
        if app.backend is None:
            return left
        return [each for each in left if app.AsyncResult(task_id_at(line.which, each)).state == states.PENDING]

    def _publish(self, write: Write, outgoings: Sequence[Outgoing]) -> bool:
        app = self._app
        if app.broker.features.guarded and len(outgoings) <= ATOMIC:
            return app.broker.publish_if(write, outgoings, timeout=app.conf.publish_timeout) is not None
        app.publish(outgoings)
        return self.table.store.put(write.key, write.value, if_version=None) is not None
