"""What all beats of an app share: for each entry one record in the store, changed by conditional writes only.

A record says up to which moment the entry's times are done. Sending what is due and moving that moment is one step of
the store where the broker can do so, and whoever comes second finds another version: a time is sent once, however many
beats there are and however long one of them was stopped. A record also keeps what people changed of an entry, and
entries that no program declares::

    beat:of:<app>:<name>    the record of an entry that the app declares; apps of one store are told apart by name
    beat:entry:<name>       that of an entry which people added; of no app, and of all of the store
    beat:filled:<which>     the times of an entry that backfills have sent
    beat:revision           changes with every change that people make
    beat:of:<app>, beat     leases: who sends the entries of an app, and who those that people added
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from umbel.exceptions import ImproperlyConfigured, SerializationError
from umbel.interfaces import Store, Stored
from umbel.jsoncodec import json_dumps, json_loads
from umbel.periodic.entry import SHAPE, Entry, entry_of
from umbel.periodic.recurrence import without
from umbel.revoking import shared_store
from umbel.schedules import BaseSchedule

logger = logging.getLogger("celery.beat")

_PREFIX: Final = "beat:entry:"
_OWN: Final = "beat:of:"
_FILLED: Final = "beat:filled:"
REVISION: Final = "beat:revision"
#: The lease of whoever sends the entries that people added.
LEADER: Final = "beat"
#: Seconds for which an entry may be declared by no program and still be the same one when it is declared again: while
#: programs are replaced, an old release and a new one run side by side.
ABSENCE: Final = 86_400.0
_KEPT: Final = 20  # firings that a record remembers
_TRIES: Final = 50


class Fired(msgspec.Struct, frozen=True, array_like=True):
    """One sending: when it was due, when it was sent, the task's id, and what else there is to say."""

    due: float
    at: float
    task_id: str
    note: str = ""


class Record(msgspec.Struct, kw_only=True):
    """What the store knows of one entry. Moments are seconds since 1970."""

    through: float  # all times up to this one are done with
    anchor: float  # what intervals count from
    fingerprint: str = ""  # of the schedule that ``through`` belongs to
    said: dict[str, Any] | None = None  # the whole entry, if no program declares it
    changed: dict[str, Any] = {}  # what people changed of a declared one
    last_run_at: float | None = None
    last_id: str = ""
    count: int = 0
    history: list[Fired] = []
    gone: float | None = None  # when a leader saw first that no program declares it any more

    @property
    def done(self) -> datetime:
        """``through`` as a moment."""
        return datetime.fromtimestamp(self.through, UTC)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """An entry with its record, its version (0: not stored yet), and whether the program declares it."""

    key: str  # of its record
    entry: Entry
    record: Record
    version: int
    declared: bool
    unknown: bool = False  # whether the store does not know this schedule of the entry yet

    @property
    def schedule(self) -> BaseSchedule:
        """The entry's schedule; its intervals count from where the record says."""
        return self.entry.schedule.anchored(datetime.fromtimestamp(self.record.anchor, UTC))

    @property
    def which(self) -> str:
        """What tells it from all entries of the store: its name, with that of its app if the app declares it."""
        return self.key if self.declared else self.entry.name

    @property
    def filled_key(self) -> str:
        """The key of what backfills have sent of it."""
        return _FILLED + self.which


class Table:
    """The entries of an app: those of ``beat_schedule``, and those in the store. Safe to share between threads."""

    def __init__(self, app: Any) -> None:
        self._app = app
        #: The lease of whoever sends the entries that this app declares.
        self.leader: Final = _OWN + quote(app.main or "", safe="")
        self._told: dict[str, str] = {}  # what was said of entries that cannot be read

    @property
    def store(self) -> Store:
        """Where the records are. Raises :exc:`ImproperlyConfigured` if neither broker nor results have a place."""
        store = shared_store(self._app)
        if store is None:
            raise ImproperlyConfigured(
                "beat keeps what it has sent in the broker or in the result backend, and this app has neither "
                "redis:// nor sqlite:// for that; set result_backend to one of these"
            )
        return store

    # -- reading -------------------------------------------------------------------------------------------------

    def lines(self) -> list[Line]:
        """Return all entries, by name. One that the store has and this program cannot read is left out, and told of.

        Raises :exc:`ImproperlyConfigured` for one of the program that cannot be.
        """
        declared, stored = self._declared(), self._stored(_PREFIX)
        own = self._stored(self._own_prefix)
        found: list[Line] = []
        for name in sorted({*declared, *stored}):
            try:
                line = self._line(name, declared.get(name), own.get(name), stored.get(name))
            # Another release or another machine may have stored it; the other entries must go on.
            except Exception as error:
                if name in declared:
                    entry_of(name, declared[name], self._app)  # it is the program's own mistake if this raises too
                self._tell_of(name, error)
                continue
            if line is not None:
                found.append(line)
        return found

    def _stored(self, prefix: str) -> dict[str, Stored]:
        return {key.removeprefix(prefix): value for key, value in self.store.scan(prefix)}

    def _tell_of(self, name: str, error: Exception) -> None:
        if self._told.get(name) != repr(error):
            self._told[name] = repr(error)
            advice = "'umbel schedules reset' forgets what was changed of it, 'remove' what was added"
            logger.error("The entry %r in the store cannot be read and is left out: %r; %s", name, error, advice)

    @property
    def _own_prefix(self) -> str:
        return f"{self.leader}:"

    def _key(self, name: str) -> str:
        return (self._own_prefix if name in self._declared() else _PREFIX) + name

    def line(self, name: str) -> Line:
        """Return one entry. Raises :exc:`KeyError`."""
        said, store = self._declared().get(name), self.store
        own = None if said is None else store.get(self._own_prefix + name)
        line = self._line(name, said, own, store.get(_PREFIX + name) if own is None else None)
        if line is None:
            raise KeyError(
                f"there is no entry {name!r}; there are: {', '.join(each.entry.name for each in self.lines())}"
            )
        return line

    def _declared(self) -> Mapping[str, Any]:
        self._app.finalize()
        found: Mapping[str, Any] = self._app.conf.beat_schedule or {}
        return found

    def _line(self, name: str, said: Any, own: Stored | None, stored: Stored | None) -> Line | None:
        now = self._app.clock.time()
        key, record, version = _PREFIX + name, Record(through=now, anchor=now), 0
        if said is not None:
            key = self._own_prefix + name
            record, version = self._begun(own, stored) or record, 0 if own is None else own.version
        elif stored is not None:
            record, version = decode(stored.value), stored.version
        if said is None and record.said is None:
            # It was declared once, and is not any more.
            return None
        absent = record.gone is not None
        if record.gone is not None:
            # What was due while it was not there is not made up for.
            anew = {"through": now, "anchor": now} if now - record.gone > ABSENCE else {}
            record = msgspec.structs.replace(record, gone=None, **anew)
        entry = entry_of(name, self._whole(name, record), self._app)
        unknown = record.fingerprint != entry.fingerprint
        if unknown:
            # What was due by another schedule is not made up for.
            fresh = {"through": now, "anchor": now} if record.fingerprint else {}
            record = msgspec.structs.replace(record, fingerprint=entry.fingerprint, **fresh)
        unknown = unknown or absent
        return Line(key=key, entry=entry, record=record, version=version, declared=said is not None, unknown=unknown)

    @staticmethod
    def _begun(own: Stored | None, stored: Stored | None) -> Record | None:
        """Return the record of a declared entry, if it has one: its own, or one from before apps were told apart."""
        if own is not None:
            return decode(own.value)
        before = None if stored is None else decode(stored.value)
        return before if before is not None and before.said is None else None

    # -- changing ------------------------------------------------------------------------------------------------

    def set(self, name: str, **said: Any) -> Line:
        """Add an entry that no program declares, or change one, and return it. Names as in ``beat_schedule``.

        Times that passed before now are never made up for. Raises :exc:`ImproperlyConfigured` for a wrong value.
        """

        def change(record: Record, declared: bool) -> None:
            checked = self._checked(name, record, said, declared)
            if declared:
                shaped = ["schedule"] if any(key in SHAPE for key in said) else []
                record.changed = {key: checked[key] for key in (*record.changed, *said, *shaped) if key in checked}
            else:
                record.said = checked

        self._change(name, change, create=True)
        return self.line(name)

    def would_be(self, name: str, **said: Any) -> Line:
        """Return an entry as :meth:`set` would leave it now, and change nothing. Raises what :meth:`set` raises."""
        declared, key, now = name in self._declared(), self._key(name), self._app.clock.time()
        stored = self.store.get(key)
        before = Record(through=now, anchor=now) if stored is None else decode(stored.value)
        self._checked(name, before, said, declared)
        entry = entry_of(name, self._reshaped(name, before, said), self._app)
        record = msgspec.structs.replace(before, through=now, anchor=now, fingerprint=entry.fingerprint)
        version = 0 if stored is None else stored.version
        return Line(key=key, entry=entry, record=record, version=version, declared=declared)

    def enable(self, name: str, enabled: bool = True) -> Line:
        """Let an entry be sent, or no more. What passed while it was disabled is not made up for."""
        return self.set(name, enabled=enabled)

    def reset(self, name: str) -> None:
        """Take back what people changed of a declared entry. Raises :exc:`KeyError`."""

        def change(record: Record, declared: bool) -> None:
            record.changed = {}

        self._change(name, change)

    def remove(self, name: str) -> None:
        """Remove an entry that no program declares.

        Raises :exc:`KeyError`, and :exc:`ValueError` for a declared one, which its program would bring back.
        """
        if name in self._declared():
            raise ValueError(f"{name!r} is declared by the program; disable it, or take it out of beat_schedule")
        # Without reading it: what cannot be read is to be removed too.
        if not self.store.delete(_PREFIX + name):
            self.line(name)  # which raises, and says what there is
        self.store.delete(_FILLED + name)
        self._tell()

    def note_absent(self) -> None:
        """Note which entries of the app were declared once and are not any more. For the one that leads."""
        declared = self._declared()
        for key, stored in self.store.scan(self._own_prefix):
            if key.removeprefix(self._own_prefix) in declared:
                continue
            try:
                record = decode(stored.value)
            except (SerializationError, ValueError):
                continue  # of a later release, whose matter it is
            if record.gone is None:
                record.gone = self._app.clock.time()
                self.store.put(key, encode(record), if_version=stored.version)

    def _change(self, name: str, change: Callable[[Record, bool], None], *, create: bool = False) -> None:
        declared, key = name in self._declared(), self._key(name)
        for _ in range(_TRIES):
            stored, now = self.store.get(key), self._app.clock.time()
            if stored is None and not create and not declared:
                raise KeyError(f"there is no entry {name!r}")
            record = Record(through=now, anchor=now) if stored is None else decode(stored.value)
            change(record, declared)
            record.through, record.anchor, record.gone = now, now, None
            record.fingerprint = entry_of(name, self._whole(name, record), self._app).fingerprint
            version = 0 if stored is None else stored.version
            if self.store.put(key, encode(record), if_version=version) is not None:
                self._tell()
                return
        raise RuntimeError(f"the entry {name!r} was changed by others {_TRIES} times meanwhile; try again")

    def _whole(self, name: str, record: Record) -> dict[str, Any]:
        said = dict(self._declared().get(name) or record.said or {})
        if "schedule" in record.changed:
            # It says all about when; what the program says about that belongs to its own schedule.
            said = {key: value for key, value in said.items() if key not in SHAPE}
        return {**said, **record.changed}

    def _checked(self, name: str, record: Record, said: Mapping[str, Any], declared: bool) -> dict[str, Any]:
        """Return an entry with what is said anew as it is stored; without its schedule, where the program has that."""
        entry = entry_of(name, self._reshaped(name, record, said), self._app)
        anew = any(key in ("schedule", *SHAPE) for key in said)
        checked = entry.to_dict() if not declared or "schedule" in record.changed or anew else entry.rest()
        if anew:
            entry.check_next(self._app.clock.now(), self._app.timezone)
        return checked

    def _reshaped(self, name: str, record: Record, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return an entry with what is said anew; a bound or a zone of before gives way to one of now."""
        before = self._whole(name, record)
        anew = [key for key in said if key in SHAPE]
        if anew and "schedule" not in said and isinstance(before.get("schedule"), Mapping):
            before["schedule"] = without(before["schedule"], anew)
        if "schedule" in said:
            before = {key: value for key, value in before.items() if key not in SHAPE}
        return {**before, **said}

    def _tell(self) -> None:
        self.store.put(REVISION, b"")

    def remember(self, name: str, sent: Fired) -> None:
        """Add to an entry's history something sent by hand; its schedule goes on as before. Raises :exc:`KeyError`."""
        for _ in range(_TRIES):
            line = self.line(name)
            record = msgspec.structs.replace(line.record, history=[*line.record.history, sent][-_KEPT:])
            if self.store.put(line.key, encode(record), if_version=line.version) is not None:
                self._tell()
                return

    def history(self, name: str) -> Iterator[Fired]:
        """Yield the latest sendings of an entry, the newest first. Raises :exc:`KeyError`."""
        yield from reversed(self.line(name).record.history)


def encode(record: Record) -> bytes:
    """Return a record as it is stored. Arguments may have the types that a task's may have."""
    said = msgspec.structs.asdict(record)
    said["history"] = [msgspec.structs.astuple(each) for each in record.history]
    return json_dumps(said).encode()


def decode(value: bytes) -> Record:
    """Return a stored record."""
    return msgspec.convert(json_loads(value), Record)


def fired(record: Record, what: Fired, through: datetime) -> Record:
    """Return the record of an entry after one more of its times; without a task id nothing was sent."""
    history = [*record.history, what][-_KEPT:]
    record = msgspec.structs.replace(record, through=through.timestamp(), history=history)
    if not what.task_id:
        return record
    return msgspec.structs.replace(record, last_run_at=what.at, last_id=what.task_id, count=record.count + 1)
