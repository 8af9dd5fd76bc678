"""One beat: it leads or waits to lead, and the leader sends what is due.

::

    waiting ──the lease is free──> leading ──cannot renew──> waiting

Each app has a lease of its own, and its leader sends what the app declares. Entries that people added belong to no
app: a second lease says which of the leaders sends them.

A lease only spares the store the work of many. That each time is sent once does not depend on it: sending and
noting that it was sent are one conditional step of the broker (see :mod:`umbel.periodic.table`). A beat that was
stopped for an hour and wakes up in the middle of that step finds that the record has another version by now.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from umbel import signals, states
from umbel.bell import Bell
from umbel.exceptions import BackendError, BrokerError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Outgoing, Write
from umbel.periodic.due import due_times
from umbel.periodic.entry import Entry
from umbel.periodic.sending import ATOMIC, last_of, messages, task_id_at
from umbel.periodic.table import LEADER, REVISION, Fired, Line, Record, Table, encode, fired
from umbel.schedules import crontab

logger = logging.getLogger("celery.beat")

#: Seconds without a sign of life after which another beat leads.
LEASE: Final = 6.0
_RENEW: Final = 2.0  # seconds between signs of life, and between looks at what was changed
_LATER: Final = 10.0  # seconds until an entry that failed is tried again; in time for no time to count as missed
_LEAST: Final = 0.01  # seconds between two looks of which the first had nothing to send
_TRIES: Final = 20

#: What says that a store or a backend is away, and may be back soon.
_AWAY: Final = (OperationalError, BackendError)


class _Unknown(Exception):
    """Whether the task that was sent last has ended cannot be told now."""


class Beat:
    """Sends the entries of an app when they are due, until told to stop. :meth:`run` belongs to one thread."""

    def __init__(
        self,
        app: Any,
        *,
        max_interval: float | None = None,
        lease: float = LEASE,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """``max_interval``: most seconds between two looks, ``beat_max_loop_interval`` if not given; never above 2."""
        self.app = app
        self.table = Table(app)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        #: Most seconds between two looks.
        self.longest = min(max_interval or app.conf.beat_max_loop_interval or _RENEW, _RENEW)
        self._lease = lease
        self._on_ready = on_ready
        self._stop = Bell()
        self._lines: list[Line] = []
        self._revision = -1
        self.leading = False
        self._adopts = False  # whether it also sends the entries that people added
        self._renewed = 0.0  # when the leases were renewed, on the monotonic clock
        self._failed: dict[str, tuple[str, float]] = {}  # entries that failed: the error, and when to try again
        self._told = False  # whether it was said who leads
        #: When it last looked, on the monotonic clock; None before the first time.
        self.ticked_at: float | None = None

    # -- its life ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Lead or wait to lead until :meth:`stop`. A broker that is away is waited for."""
        signals.beat_init.send(sender=self)
        logger.info("beat: Starting...")
        if self._on_ready is not None:
            self._on_ready()
        away = False
        while not self._stop.is_set():
            try:
                pause = self.step()
                away = False
            except _AWAY as error:
                # What was due meanwhile is due when the broker is back.
                if not away:
                    logger.error("beat: Connection error: %s. Trying again until it is back.", error)
                away, pause, self.leading, self._revision = True, 1.0, False, -1
            self.ticked_at = self.app.clock.monotonic()
            self.app.clock.wait(self._stop, pause)
        self._resign()
        logger.info("beat: Shutting down...")

    def stop(self) -> None:
        """Have :meth:`run` return. May be called from a signal handler, more than once."""
        self._stop.set()

    def _resign(self) -> None:
        if not self.leading:
            return
        try:
            for name in (self.table.leader, LEADER) if self._adopts else (self.table.leader,):
                self.table.store.lease(name, self.owner, 0.001)
        except OperationalError as error:
            logger.debug("the lease of beat could not be given up, and ends by itself: %s", error)

    def step(self) -> float:
        """Send what is due, if this beat leads, and return the seconds until the next look.

        Raises :exc:`OperationalError` if the broker is away; what was not sent is sent by the next step.
        """
        if not self._lead():
            return min(self.longest, self._lease / 3)
        self._read()
        now, sent = self.app.clock.now(), False
        for at, line in enumerate(self._lines):
            if not self._still_leads() or self._revision < 0:
                return 0.0  # what was read before is not to be gone by any more
            if self._is_mine(line):
                self._lines[at] = self._send_due(line, now)
                sent = sent or self._lines[at] is not line
        pause = self._until_next()
        return pause if sent else max(pause, _LEAST)

    def _lead(self) -> bool:
        """Take or renew the leases, and say whether this beat leads."""
        store = self.table.store
        self._renewed = self.app.clock.monotonic()
        leads = store.lease(self.table.leader, self.owner, self._lease) is not None
        adopts = leads and store.lease(LEADER, self.owner, self._lease) is not None
        if (leads, adopts) != (self.leading, self._adopts):
            self._revision = -1
        if leads != self.leading or not self._told:
            logger.info("beat: %s", "leading" if leads else "another beat leads; waiting")
        self.leading, self._adopts, self._told = leads, adopts, True
        return leads

    def _still_leads(self) -> bool:
        """Renew the leases where it is time, in a round that takes long, and say whether this beat leads."""
        if self.app.clock.monotonic() - self._renewed >= _RENEW:
            self._lead()
        return self.leading

    def _is_mine(self, line: Line) -> bool:
        """Say whether an entry is for this beat to look at now."""
        if not line.entry.enabled or not (line.declared or self._adopts):
            return False
        failed = self._failed.get(line.key)
        return failed is None or self.app.clock.monotonic() >= failed[1]

    def _read(self) -> None:
        revision = self.table.store.get(REVISION)
        version = 0 if revision is None else revision.version
        if version == self._revision:
            return
        self._lines = self.table.lines()
        self._revision = version
        self._failed.clear()
        self.table.note_absent()
        for line in self._lines:
            if line.unknown and (line.declared or self._adopts):
                # Seen for the first time, with this schedule: from here on its times count, whoever leads.
                self._note(line)
        if any(line.unknown for line in self._lines):
            self._lines = self.table.lines()

    def _note(self, line: Line) -> None:
        self.table.store.put(line.key, encode(line.record), if_version=line.version)

    def _fail(self, line: Line, error: Exception) -> None:
        """Have an entry that failed rest for a while, so that the others go on; say once what the matter is."""
        told, _ = self._failed.get(line.key, ("", 0.0))
        if told != repr(error):
            logger.error(
                "Scheduler: %s fails, and is tried again every %g s: %r", line.entry.name, _LATER, error, exc_info=error
            )
        self._failed[line.key] = repr(error), self.app.clock.monotonic() + _LATER

    def _until_next(self) -> float:
        now = self.app.clock.now()
        pause = self.longest
        for line in self._lines:
            if not self._is_mine(line):
                continue
            try:
                due = line.schedule.next_after(line.record.done, zone=self.app.timezone)
            # As in _send_due.
            except Exception as error:
                self._fail(line, error)
                continue
            if due is not None:
                pause = min(pause, (due - now).total_seconds())
        return max(pause, 0.0)

    # -- sending -------------------------------------------------------------------------------------------------

    def _send_due(self, line: Line, now: datetime) -> Line:
        entry = line.entry
        if entry.deadline is None and isinstance(entry.schedule, crontab):
            entry = msgspec.structs.replace(entry, deadline=self.app.conf.beat_cron_starting_deadline)
        try:
            times, through = due_times(entry, line.schedule, line.record.done, now, self.app.timezone)
            if not times and through != line.record.done:
                return self._pass_over(line, through)
            for at, due in enumerate(times):
                if at and not self._still_leads():
                    break
                after = self._send(line, due)
                if after is None:
                    return self._again(line)
                line = after
        except _AWAY:
            raise
        # A schedule may be of the user's own, and a store may hold anything; the other entries must go on.
        except Exception as error:
            self._fail(line, error)
        else:
            self._failed.pop(line.key, None)
        return line

    def _pass_over(self, line: Line, through: datetime) -> Line:
        """Note that what was due up to a moment is not sent."""
        logger.info("Scheduler: %s: what was due until %s is too late and is not sent", line.entry.name, through)
        record = msgspec.structs.replace(line.record, through=through.timestamp())
        version = self.table.store.put(line.key, encode(record), if_version=line.version)
        return self._again(line) if version is None else msgspec.structs.replace(line, record=record, version=version)

    def _again(self, line: Line) -> Line:
        """Return an entry as somebody else has left it: another beat that sent it, or a person who changed it."""
        try:
            return self.table.line(line.entry.name)
        except KeyError:
            self._revision = -1
            return line

    def _send(self, line: Line, due: datetime) -> Line | None:
        """Send one time of an entry and return the entry after it; None if somebody else was faster.

        Raises :exc:`_Unknown` if it is not known whether it may be sent.
        """
        entry, record = line.entry, line.record
        if not entry.overlap and (reason := self._untold(entry)):
            return self._leave_out(line, due, ImproperlyConfigured(f"overlap=False needs {reason}"))
        if not entry.overlap and (running := self._running(record)):
            sent = Fired(due.timestamp(), self.app.clock.time(), "", f"not sent: {running} has not ended")
            record = fired(record, sent, due)
            outgoings: list[Outgoing] = []
            logger.info("Scheduler: %s is not sent: task %s, sent before, has not ended", entry.name, running)
        else:
            task_id = task_id_at(line.which, due)
            try:
                outgoings = messages(self.app, entry, task_id)
            # What user code makes of an entry may be anything; the other entries must go on.
            except Exception as error:
                return self._leave_out(line, due, error)
            logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
            record = fired(record, Fired(due.timestamp(), self.app.clock.time(), task_id), due)
        try:
            after = self._publish(line, record, outgoings, due)
        except OperationalError:
            raise
        except BrokerError as error:  # the queue is not there, or refuses: the other entries must go on
            return self._leave_out(line, due, error)
        if after is not None:
            logger.debug("%s sent. id->%s", entry.task, record.last_id)
        return after

    def _leave_out(self, line: Line, due: datetime, error: Exception) -> Line | None:
        """Note that this time of an entry was not sent; the next one is another try."""
        name = line.entry.name
        logger.error(
            "Scheduler: %s cannot be sent, and is tried again at its next time: %r", name, error, exc_info=error
        )
        sent = Fired(due.timestamp(), self.app.clock.time(), "", f"not sent: {error!r}")
        record = fired(line.record, sent, due)
        version = self.table.store.put(line.key, encode(record), if_version=line.version)
        return None if version is None else msgspec.structs.replace(line, record=record, version=version)

    def _publish(self, line: Line, record: Record, outgoings: Sequence[Outgoing], due: datetime) -> Line | None:
        broker, timeout = self.app.broker, self.app.conf.publish_timeout
        value, version = encode(record), line.version
        if broker.features.guarded and len(outgoings) <= ATOMIC:
            done = broker.publish_if(Write(key=line.key, value=value, if_version=version), outgoings, timeout=timeout)
        else:
            # It has no place for the record. If we die in between, the next leader sends the same ids once more.
            if outgoings:
                self.app.publish(outgoings)
            done = self.table.store.put(line.key, value, if_version=version)
            if done is None and outgoings:
                return self._catch_up(line, record.history[-1], due)
        return None if done is None else msgspec.structs.replace(line, record=record, version=done)

    def _catch_up(self, line: Line, sent: Fired, due: datetime) -> Line | None:
        """Note what was sent already, in a record that somebody has changed meanwhile; None if it is beyond that."""
        for _ in range(_TRIES):
            try:
                found = self.table.line(line.entry.name)
            except KeyError:
                return None
            if found.record.done >= due:
                return None
            record = fired(found.record, sent, due)
            version = self.table.store.put(found.key, encode(record), if_version=found.version)
            if version is not None:
                return msgspec.structs.replace(found, record=record, version=version)
        return None

    def _untold(self, entry: Entry) -> str:
        """Return what is missing to tell when a task of an entry has ended; nothing, if that can be told."""
        app = self.app
        if app.backend is None:
            return "a result backend, which tells when a task has ended"
        call: dict[str, Any] = {"task": entry.task, "kwargs": entry.kwargs, "options": entry.options}
        last = last_of(call)
        if last is None:
            return "a task whose result tells that all has ended, and a group has none: make it a chord"
        said = [(each.get("options") or {}).get("ignore_result") for each in (call, last)]
        if entry.task == "celery.chain":
            del said[0]  # these options are of its first task
        task = app.tasks.get(last["task"])
        own = app.conf.task_ignore_result if task is None else task.ignore_result
        if next((each for each in reversed(said) if each is not None), own):
            return f"the result of {last['task']}, which is ignored"
        return ""

    def _running(self, record: Record) -> str:
        """Return the id of the task that was sent last, if it has not ended. Raises :exc:`_Unknown`."""
        if not record.last_id:
            return ""
        expires = self.app.conf.seconds("result_expires")
        if expires and record.last_run_at is not None and self.app.clock.time() - record.last_run_at > expires:
            return ""
        try:
            state = self.app.AsyncResult(record.last_id).state
        except (*_AWAY, OSError) as error:
            # The entries after it may not depend on results.
            raise _Unknown(f"the result of {record.last_id} cannot be read: {error}") from error
        # What a stored result has to be read by may be anybody's. There is one, though not for us: the task has ended.
        except Exception as error:
            logger.warning("Scheduler: the result of %s cannot be read: %r; it counts as ended", record.last_id, error)
            return ""
        return "" if state in states.READY_STATES else record.last_id
