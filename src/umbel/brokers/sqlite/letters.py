"""Dead letters, and what every move of a message shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from umbel.brokers.sqlite.database import Session, Transaction
from umbel.interfaces import Crash, Dead, DeadLetters, Peeked

DEAD_LIMIT = 10_000  # dead letters kept for each queue
_KEEP_CRASHES = 20  # of one message, the latest
_PAGE = """
SELECT number, reason, dead.detail, traceback, died_at, log, raw
FROM dead JOIN messages ON messages.id = message
WHERE dead.queue = ? AND number < ? ORDER BY number DESC LIMIT ?
"""
_NEWEST = 2**62


def moment(seconds: float) -> datetime:
    """Return a stored moment as an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)


def enqueue(tx: Transaction, messages: Iterable[int]) -> None:
    """Put messages that are in no place into their queue, each at its own position."""
    tx.executemany(
        "INSERT INTO ready SELECT queue, priority, position, id FROM messages WHERE id = ?",
        [(message,) for message in messages],
    )


def delete_messages(tx: Transaction, messages: Sequence[int]) -> None:
    """Delete messages that are in no place."""
    if messages:
        tx.execute("DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(messages),))


def logged(log: str | None, crash: Crash) -> str:
    """Return a message's log of crashes with one more."""
    before = json.loads(log) if log else []
    return json.dumps([*before, [crash.at.timestamp(), crash.consumer, crash.cause]][-_KEEP_CRASHES:])


def crashes(log: str | None) -> list[Crash]:
    """Return the crashes of a log, the oldest first."""
    rows = json.loads(log) if log else []
    return [Crash(at=moment(at), consumer=consumer, cause=cause) for at, consumer, cause in rows]


def put_with_dead(tx: Transaction, message: int, how: Dead) -> None:
    """Put a message among the dead letters of its queue, and let the oldest go where there are too many."""
    number = tx.take()
    if how.kept is not None:
        tx.execute("UPDATE messages SET raw = ? WHERE id = ?", (how.kept, message))
    tx.execute(
        "INSERT INTO dead (queue, number, message, reason, detail, traceback, died_at) "
        "SELECT queue, ?, id, ?, ?, ?, ? FROM messages WHERE id = ?",
        (number, how.reason, how.detail, how.traceback, tx.now, message),
    )
    surplus = tx.execute(
        "SELECT queue, number, message FROM dead WHERE queue = (SELECT queue FROM messages WHERE id = ?) "
        "ORDER BY number DESC LIMIT 16 OFFSET ?",
        (message, DEAD_LIMIT),
    ).fetchall()
    tx.executemany("DELETE FROM dead WHERE queue = ? AND number = ?", [row[:2] for row in surplus])
    delete_messages(tx, [row[2] for row in surplus])


class SqliteDeadLetters(DeadLetters):
    """See :class:`umbel.interfaces.DeadLetters`."""

    __slots__ = ("_session",)

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session

    def queues(self) -> Sequence[str]:
        """Return the names of the queues that have dead letters, sorted."""
        with self._session().read() as connection:
            return [row[0] for row in connection.execute("SELECT DISTINCT queue FROM dead ORDER BY queue").fetchall()]

    def page(self, queue: str, *, before: str = "", limit: int = 100) -> Sequence[Peeked]:
        """Return dead letters, the latest first."""
        wanted = (queue, _number(before) if before else _NEWEST, max(limit, 0))
        with self._session().read() as connection:
            rows = connection.execute(_PAGE, wanted).fetchall()
        return [_letter(queue, row) for row in rows]

    def revive(self, queue: str, letters: Mapping[str, bytes | None], *, to: str = "") -> Collection[str]:
        """Move these letters to the tail of their queue, or another, in one commit; return the keys that were there."""
        with self._session().write() as tx:
            taken = dict(_take_out(tx, queue, letters))
            positions = enumerate((key for key in letters if key in taken), tx.take(len(taken)))
            tx.executemany(
                "UPDATE messages SET position = ?, crashes = 0, log = NULL, verdict = NULL, detail = NULL, queue = ?, "
                "raw = coalesce(?, raw) WHERE id = ?",
                [(position, to or queue, letters[key], taken[key]) for position, key in positions],
            )
            enqueue(tx, taken.values())
        return list(taken)

    def discard(self, queue: str, keys: Collection[str]) -> Collection[str]:
        """Delete these letters in one commit; return the keys that were there."""
        with self._session().write() as tx:
            taken = _take_out(tx, queue, keys)
            delete_messages(tx, [message for _, message in taken])
        return [key for key, _ in taken]


def _letter(queue: str, row: Sequence[Any]) -> Peeked:
    number, reason, detail, traceback, died_at, log, raw = row
    return Peeked(
        raw=raw,
        queue=queue,
        at=moment(died_at),
        key=str(number),
        reason=reason,
        detail=detail,
        traceback=traceback,
        crashes=crashes(log),
    )


def _take_out(tx: Transaction, queue: str, keys: Iterable[str]) -> list[tuple[str, int]]:
    """Take these letters out; return the key and the message of each that was there, which is then in no place."""
    rows = tx.execute(
        "DELETE FROM dead WHERE queue = ? AND number IN (SELECT value FROM json_each(?)) RETURNING number, message",
        (queue, json.dumps([_number(key) for key in keys])),
    ).fetchall()
    return [(str(number), message) for number, message in rows]


def _number(key: str) -> int:
    # Whatever is no number is no key of ours, and no letter has a negative one.
    return int(key) if key.isdecimal() and len(key) < 19 else -1
