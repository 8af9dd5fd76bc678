"""Looking for the message of one task in the file.

The file has no index of task ids: each publish would pay for it, and somebody asks once in a while. So the messages are
looked through, some at a time, the latest first: between two parts others get their turn, and the search can end.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

from umbel.brokers.sqlite.database import Session
from umbel.brokers.sqlite.letters import crashes, moment
from umbel.interfaces import Peeked, Sighting, Verdict, VerdictKind
from umbel.spotting import is_of, marks_of

_PART: Final = 5_000
# The id stands in the envelope as JSON writes it: that it is there at all is found without decoding.
_LOOK: Final = (
    "SELECT min(id), count(*), json_group_array(id) FILTER (WHERE instr(raw, ?) OR instr(raw, ?)) FROM "
    "(SELECT id, raw FROM messages WHERE id < ? ORDER BY id DESC LIMIT ?)"
)
_MESSAGE: Final = "SELECT queue, priority, position, verdict, detail, raw, log FROM messages WHERE id = ?"
_NEWEST: Final = 2**62


def find(session: Session, task_id: str, timeout: float) -> Sighting | None:
    """Return where the message of this task is. Raises ``TimeoutError`` after so many seconds."""
    until, below = time.monotonic() + timeout, _NEWEST
    ours, celerys = marks_of(task_id)
    dead: Sighting | None = None
    while True:
        with session.read() as connection:
            lowest, count, found = connection.execute(_LOOK, (ours, celerys, below, _PART)).fetchone()
            for message in json.loads(found):
                # One view of all tables: what moves from one to another meanwhile must not be in neither.
                connection.execute("BEGIN")
                try:
                    sighting = _sight(connection, message, task_id)
                finally:
                    connection.execute("ROLLBACK")
                # A letter of an earlier life says less than a message that is to be run.
                if sighting is not None and sighting.place != "dead":
                    return sighting
                dead = dead or sighting
        if count < _PART:
            return dead
        below = lowest
        if time.monotonic() > until:
            raise TimeoutError(f"there are too many messages to look through within {timeout:g} s")


def _sight(connection: sqlite3.Connection, message: int, task_id: str) -> Sighting | None:
    row = connection.execute(_MESSAGE, (message,)).fetchone()
    if row is None or not is_of(row[5], task_id):
        return None
    queue, priority, position, verdict, detail, raw, log = row

    def seen(at: float | None = None, **letter: Any) -> Peeked:
        when = None if at is None else moment(at)
        return Peeked(raw=raw, queue=queue, at=when, crashes=crashes(log), **letter)

    one = connection.execute
    if one("SELECT 1 FROM ready WHERE (queue, priority, position) = (?, ?, ?)", (queue, priority, position)).fetchone():
        before = one(
            "SELECT count(*) FROM ready WHERE queue = ? AND (priority, position) < (?, ?)", (queue, priority, position)
        ).fetchone()[0]
        (total,) = one("SELECT count(*) FROM ready WHERE queue = ?", (queue,)).fetchone()
        return Sighting(place="ready", seen=seen(), position=before + 1, of=total)
    held = one(
        "SELECT consumers.id, node FROM held LEFT JOIN consumers ON number = consumer WHERE message = ?", (message,)
    ).fetchone()
    if held is not None:
        return Sighting(place="held", seen=seen(), consumer=held[0] or "", node=held[1] or "")
    due = one("SELECT due / 1e6 FROM scheduled WHERE message = ?", (message,)).fetchone()
    if due is not None:
        return Sighting(place="scheduled", seen=seen(due[0]))
    return _elsewhere(one, message, seen, verdict, detail)


def _elsewhere(
    one: Callable[..., sqlite3.Cursor],
    message: int,
    seen: Callable[..., Peeked],
    verdict: str | None,
    detail: str | None,
) -> Sighting | None:
    gate = one("SELECT gate FROM gated WHERE message = ?", (message,)).fetchone()
    if gate is not None:
        return Sighting(place="gate", seen=seen(), gate=gate[0])
    letter = one("SELECT number, reason, detail, traceback, died_at FROM dead WHERE message = ?", (message,)).fetchone()
    if letter is not None:
        key, reason, why, traceback, died_at = letter
        return Sighting(place="dead", seen=seen(died_at, key=str(key), reason=reason, detail=why, traceback=traceback))
    if one("SELECT 1 FROM ends WHERE message = ?", (message,)).fetchone() is None:
        return None
    ending = Verdict(kind=VerdictKind(verdict), detail=detail or "") if verdict is not None else None
    return Sighting(place="ends", seen=seen(), verdict=ending)
