"""Turning events into rows: one batch is one transaction.

An event may come late, twice, or never. A row's state is that of the latest event by the clocks of those who told it;
what comes late only fills in what nobody said, and what comes twice is one row of the happenings.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from umbel import states
from umbel.events.state import TASK_EVENT_TO_STATE
from umbel.history.fingerprint import fingerprint_of
from umbel.history.kinship import Kinship, ahead_text
from umbel.history.redaction import Redactor
from umbel.history.rows import COLUMNS, TaskRow, as_row

#: The latest happenings of one task that are kept: one that is retried for ever must not fill the file.
MOST_HAPPENINGS: Final = 200
_LONGEST_NAME: Final = 1024
_END_OF_TIME: Final = 1e11  # the year 5138; no moment of an event, and nothing that is no number, is beyond
_LONGEST_WORDS: Final = 1000
_FIELDS: Final = {"root_id": "root", "parent_id": "parent"}
_TEXTS: Final = ("name", "args", "kwargs", "eta", "expires", "queue", "root_id", "parent_id", "group_id")
_KINDRED: Final = frozenset({"root_id", "group_id"})
_MOMENTS: Final = {"sent": "sent", "received": "received", "started": "started"}
_ENDING: Final = frozenset({"succeeded", "failed", "revoked", "rejected"})
_KNOWN: Final = f"SELECT {', '.join(COLUMNS)} FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
_NEW: Final = f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_CHANGE: Final = f"UPDATE tasks SET {', '.join(f'{name} = ?' for name in COLUMNS[2:])} WHERE number = ?"
_HAPPENED: Final = "INSERT OR IGNORE INTO happenings VALUES (?, ?, ?, ?, ?, ?, ?)"
_SURPLUS: Final = (
    "DELETE FROM happenings WHERE task = ? AND at < "
    "(SELECT at FROM happenings WHERE task = ? ORDER BY at DESC LIMIT 1 OFFSET ?)"
)
_ERROR: Final = """
INSERT INTO errors VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?) ON CONFLICT (fingerprint) DO UPDATE SET
count = count + 1, first = min(first, excluded.first), latest = max(latest, excluded.latest), task = excluded.task,
name = excluded.name, exception = excluded.exception, traceback = coalesce(excluded.traceback, traceback)
"""


class Batch:
    """One transaction's work. ``now`` is the recorder's time."""

    def __init__(self, connection: sqlite3.Connection, redactor: Redactor, now: float) -> None:
        self._connection = connection
        self._redactor = redactor
        self._now = now
        self._rows: dict[str, TaskRow] = {}
        self._new: set[str] = set()
        self._changed: set[str] = set()
        self._worded: set[str] = set()
        self._kindred: set[str] = set()  # tasks of which it became known to whom they belong
        self._crowded: set[int] = set()

    def apply(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Write these task events; return how many were new."""
        events = [_sane(event) for event in events if _is_told(event)]
        self._load({event["uuid"] for event in events})
        count = sum(self._one(event) for event in events)
        self._save()
        return count

    def _load(self, ids: Iterable[str]) -> None:
        rows = self._connection.execute(_KNOWN, (json.dumps(list(ids)),)).fetchall()
        self._rows = {row[1]: as_row(row) for row in rows}
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'tasks'").fetchone()
        self._next = (found[0] if found else 0) + 1

    def _one(self, told: Mapping[str, Any]) -> bool:
        kind = str(told["type"]).partition("-")[2][:100]
        row = self._rows.get(told["uuid"])
        event = self._redactor.clean(dict(told), row.name if row is not None else None)
        at = float(event["timestamp"])
        if row is None:
            row = self._begin(event, at)
        if not self._happened(row, kind, at, event):
            return False
        self._changed.add(row.id)
        self._learn(row, kind, at, event)
        return True

    def _begin(self, event: dict[str, Any], at: float) -> TaskRow:
        number, self._next = self._next, self._next + 1
        name = event.get("name")
        row = TaskRow(
            number=number,
            id=event["uuid"],
            name=name[:_LONGEST_NAME] if isinstance(name, str) else "",
            state=states.PENDING,
            at=0.0,
            heard=self._now,
        )
        self._rows[row.id] = row
        self._new.add(row.id)
        self._worded.add(row.id)
        self._kindred.add(row.id)
        return row

    def _happened(self, row: TaskRow, kind: str, at: float, event: Mapping[str, Any]) -> bool:
        """Note that it happened; say whether that is new."""
        runtime = event.get("runtime")
        values = (
            row.number,
            at,
            kind,
            event["hostname"],
            _detail(kind, event),
            event.get("traceback"),
            _number(runtime),
        )
        if not self._connection.execute(_HAPPENED, values).rowcount:
            return False
        row.told += 1
        if row.told > MOST_HAPPENINGS:
            self._crowded.add(row.number)
        return True

    def _learn(self, row: TaskRow, kind: str, at: float, event: Mapping[str, Any]) -> None:
        self._fill(row, event)
        state = TASK_EVENT_TO_STATE.get(kind, kind.upper())
        late = at < row.at or (at == row.at and states.precedence(state) > states.precedence(row.state))
        if kind == "sent":
            row.client = event["hostname"]
            row.sent = at if row.sent is None else min(row.sent, at)
            # Who sends a retry says so as well: that is no news of the task. Only a first word makes a state.
            if row.at == 0.0:
                row.at = at
            return
        if kind in _MOMENTS:
            before = getattr(row, kind)
            setattr(row, kind, at if before is None else max(before, at))
        if kind in ("failed", "retried"):
            self._fail(row, at, event, late=late)
        if late and row.worker is not None:
            return
        row.state, row.at, row.worker = state, at, event["hostname"]
        retries = event.get("retries")
        if isinstance(retries, int) and 0 <= retries < 1 << 31:
            row.retries = int(retries)
        if kind in _ENDING:
            self._end(row, kind, at, event)
        elif kind in ("received", "started"):
            row.ended = row.runtime = None

    def _fill(self, row: TaskRow, event: Mapping[str, Any]) -> None:
        for field in _TEXTS:
            name, value = _FIELDS.get(field, field), event.get(field)
            if value in (None, "") or getattr(row, name) not in (None, ""):
                continue
            setattr(row, name, _text(str(value))[: 2 * _LONGEST_NAME])
            if field in ("name", "args", "kwargs"):
                self._worded.add(row.id)
            elif field in _KINDRED:
                self._kindred.add(row.id)
        if row.ahead is None and (ahead := ahead_text(event.get("ahead"))) is not None:
            row.ahead = ahead
            self._kindred.add(row.id)

    def _end(self, row: TaskRow, kind: str, at: float, event: Mapping[str, Any]) -> None:
        row.ended = at
        runtime = event.get("runtime")
        row.runtime = _number(runtime)
        if row.runtime is None and row.started is not None:
            row.runtime = max(0.0, at - row.started)
        if kind == "succeeded":
            row.result = event.get("result")
            row.exception = row.fingerprint = None

    def _fail(self, row: TaskRow, at: float, event: Mapping[str, Any], *, late: bool) -> None:
        exception, traceback = event.get("exception"), event.get("traceback")
        found = fingerprint_of(exception, traceback)
        if not late or (row.exception is None and row.state != states.SUCCESS):
            row.exception, row.fingerprint = exception, found.key
            self._worded.add(row.id)
        self._connection.execute(
            _ERROR,
            (found.key, found.type, found.message, found.frame, at, at, row.id, row.name, exception or "", traceback),
        )

    def _save(self) -> None:
        kinship = Kinship(self._connection, self._rows)
        kinship.place([row for row in self._rows.values() if row.id in self._kindred])
        self._changed |= kinship.joined
        kinship.news(self._rows[id] for id in self._changed)
        new = [self._rows[id] for id in self._rows if id in self._new]
        old = [self._rows[id] for id in self._changed - self._new]
        self._connection.executemany(_NEW, [_values(row) for row in new])
        self._connection.executemany(_CHANGE, [(*_values(row)[2:], row.number) for row in old])
        worded = [self._rows[id] for id in self._worded]
        self._connection.executemany(
            "INSERT OR REPLACE INTO words (rowid, text) VALUES (?, ?)", [(row.number, words_of(row)) for row in worded]
        )
        surplus = [(number, number, MOST_HAPPENINGS - 1) for number in self._crowded]
        self._connection.executemany(_SURPLUS, surplus)


def words_of(row: TaskRow) -> str:
    """Return the text by whose words a task is found."""
    parts = (row.name, row.args, row.kwargs, row.exception)
    return " ".join(part[:_LONGEST_WORDS] for part in parts if part)


def _is_told(event: Mapping[str, Any]) -> bool:
    """Say whether this is a task's event in full: anybody may write into an exchange."""
    return (
        isinstance(event.get("uuid"), str)
        and 0 < len(event["uuid"]) <= 255
        and isinstance(event.get("hostname"), str)
        and isinstance(event.get("timestamp"), int | float)
        and abs(event["timestamp"]) < _END_OF_TIME
        and str(event.get("type", "")).startswith("task-")
    )


def _sane(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event without what no file can hold: halves of characters."""
    return {name: _text(value) if isinstance(value, str) else value for name, value in event.items()}


def _text(value: str) -> str:
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _detail(kind: str, event: Mapping[str, Any]) -> str | None:
    if kind in ("failed", "retried"):
        found = event.get("exception")
    elif kind == "revoked":
        found = "expired" if event.get("expired") else "terminated" if event.get("terminated") else None
    elif kind == "rejected":
        found = "requeued" if event.get("requeue") else None
    elif kind == "received":
        retries = event.get("retries")
        found = f"retry {retries}" if retries else None
    else:
        found = event.get("queue") if kind == "sent" else None
    return None if found is None else _text(str(found))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < _END_OF_TIME else None


def _values(row: TaskRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in COLUMNS)
