"""Finding tasks, each page in bounded time however much there is.

Every list is in the order of the tasks' numbers. A page is read off the index of the rarest thing that is asked for,
and the rest is compared row by row, of at most :data:`LOOK` rows; where that was not enough to fill the page, the next
one goes on behind the last row that was looked at.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from umbel.history.query import Compared, Query
from umbel.history.rows import COLUMNS, TaskPage, TaskRow, as_row

#: Rows that are looked at for one page, at most, and up to which it is counted what is rare.
LOOK: Final = 10_000
#: The most tasks of a page.
MOST: Final = 1_000
_NEWEST: Final = 2**62
_CHUNK: Final = 500
# Statements are put together from these and the parts below, all of them constants; what was asked is a parameter.
_ALL: Final = "SELECT number FROM tasks WHERE number < ? AND number >= ? ORDER BY number DESC LIMIT ?"
_TASKS: Final = "SELECT number FROM tasks WHERE"
_BEHIND: Final = "AND number < ? AND number >= ? ORDER BY number DESC LIMIT ?"
_WORDS: Final = "SELECT rowid FROM words WHERE"
_BEHIND_WORD: Final = "AND rowid < ? AND rowid >= ? ORDER BY rowid DESC LIMIT ?"
_ROWS: Final = f"SELECT {', '.join(COLUMNS)} FROM tasks WHERE number IN (SELECT value FROM json_each(?))"
_FITTING: Final = "SELECT number FROM tasks WHERE number IN (SELECT value FROM json_each(?))"
_LATEST: Final = " ORDER BY number DESC LIMIT ?"
_COUNT: Final = "SELECT count(*) FROM (SELECT 1 FROM tasks WHERE"
_COUNT_WORDS: Final = "SELECT count(*) FROM (SELECT 1 FROM words WHERE"
_COMPARES: Final = {">", "<", ">=", "<="}


class _Part(msgspec.Struct, frozen=True):
    """One condition: for reading an index, and worded so that no index is used for it."""

    sql: str
    sieve: str
    values: tuple[Any, ...]
    indexed: bool = False
    ordered: bool = False  # the index holds what fits in the order of the numbers
    words: bool = False  # the index is the table of words


def search(connection: sqlite3.Connection, query: Query, *, after: int = 0, limit: int = 50) -> TaskPage:
    """Return the tasks that fit, the latest first, behind the number ``after`` (0: from the start)."""
    limit = max(0, min(limit, MOST))
    parts = _parts(query)
    driver = _rarest(connection, parts)
    looked = _numbers(connection, driver, _bounds(connection, query, after))
    found = _sieved(connection, looked, [part for part in parts if part is not driver], limit + 1)
    page = found[:limit]
    if len(found) > limit:
        return TaskPage(page, page[-1].number if page else after)
    return TaskPage(page, looked[-1] if len(looked) == LOOK else 0)


def matching(connection: sqlite3.Connection, query: Query) -> tuple[list[int], bool]:
    """Return the numbers of the tasks that fit, the latest first, and whether there was more to look through."""
    parts = _parts(query)
    driver = _rarest(connection, parts)
    looked = _numbers(connection, driver, _bounds(connection, query, 0))
    rest = [part for part in parts if part is not driver]
    if not rest:
        return looked, len(looked) == LOOK
    statement = " AND ".join((_FITTING, *(part.sieve for part in rest)))
    values = [value for part in rest for value in part.values]
    rows = connection.execute(statement, (json.dumps(looked), *values)).fetchall()
    return [row[0] for row in rows], len(looked) == LOOK


def _numbers(connection: sqlite3.Connection, driver: _Part | None, bounds: tuple[int, int]) -> list[int]:
    """Return the numbers to look at, the latest first."""
    if driver is None:
        return [row[0] for row in connection.execute(_ALL, (*bounds, LOOK)).fetchall()]
    statement = " ".join((_WORDS if driver.words else _TASKS, driver.sql, _BEHIND_WORD if driver.words else _BEHIND))
    return [row[0] for row in connection.execute(statement, (*driver.values, *bounds, LOOK)).fetchall()]


def _sieved(
    connection: sqlite3.Connection, numbers: Sequence[int], parts: Sequence[_Part], limit: int
) -> list[TaskRow]:
    """Return the tasks of these numbers that fit, up to the limit."""
    statement = " AND ".join((_ROWS, *(part.sieve for part in parts))) + _LATEST
    values = [value for part in parts for value in part.values]
    found: list[TaskRow] = []
    for at in range(0, len(numbers), _CHUNK):
        chunk = json.dumps(numbers[at : at + _CHUNK])
        rows = connection.execute(statement, (chunk, *values, limit - len(found))).fetchall()
        found += map(as_row, rows)
        if len(found) >= limit:
            break
    return found


def _bounds(connection: sqlite3.Connection, query: Query, after: int) -> tuple[int, int]:
    """Return below which number and from which on tasks can be: they are numbered as they were heard of."""
    below, above = after or _NEWEST, 0
    if query.before is not None:
        found = connection.execute(
            "SELECT number FROM tasks WHERE heard >= ? ORDER BY heard, number LIMIT 1", (query.before,)
        ).fetchone()
        below = min(below, found[0]) if found else below
    if query.after is not None:
        found = connection.execute(
            "SELECT number FROM tasks WHERE heard >= ? ORDER BY heard, number LIMIT 1", (query.after,)
        ).fetchone()
        above = found[0] if found else _NEWEST
    return below, above


def _parts(query: Query) -> list[_Part]:
    found = []
    for column in ("state", "name", "queue", "worker", "root", "parent"):
        if value := getattr(query, column):
            found.append(_text(column, value))
    if query.workflow:
        same = (
            "workflow = coalesce((SELECT workflow FROM tasks WHERE id = ?), (SELECT workflow FROM kin WHERE key = ?))"
        )
        found.append(_Part(same, f"+{same}", (query.workflow, query.workflow), indexed=True))
    if query.group:
        # Without an index of its own: whoever asks for a group knows its workflow.
        found.append(_Part("group_id = ?", "group_id = ?", (query.group,)))
    if query.id:
        # The whole of an id is rare, and so is a beginning of some length.
        found.append(_text("id", query.id if len(query.id) >= 36 or query.id.endswith("*") else query.id + "*"))
    if query.error:
        same = "fingerprint IN (SELECT fingerprint FROM errors WHERE fingerprint = ? OR type = ? COLLATE NOCASE)"
        found.append(_Part(same, f"+{same}", (query.error, query.error), indexed=True))
    for column in ("runtime", "retries"):
        compared: Compared | None = getattr(query, column)
        if compared is not None and compared.sign in _COMPARES:
            condition = f"{column} {compared.sign} ?"
            found.append(_Part(condition, condition, (compared.value,)))
    if query.replayed is not None:
        condition = f"replay IS {'NOT ' if query.replayed else ''}NULL"
        found.append(_Part(condition, condition, ()))
    if match := words_of(query.words):
        sieve = "number IN (SELECT rowid FROM words WHERE words MATCH ?)"
        found.append(_Part("words MATCH ?", sieve, (match,), indexed=True, ordered=True, words=True))
    return found


def _text(column: str, value: str) -> _Part:
    if value.endswith("*"):
        start = value[:-1]
        condition = f"{column} >= ? AND {column} < ?"
        sieve = f"+{column} >= ? AND +{column} < ?"
        return _Part(condition, sieve, (start, start + "\U0010ffff"), indexed=True)
    return _Part(f"{column} = ?", f"+{column} = ?", (value,), indexed=True, ordered=True)


def words_of(words: tuple[str, ...]) -> str:
    """Return the words as FTS5 wants to be asked: each is the beginning of something, and all are there.

    >>> words_of(("ord", "a.b")), words_of(("--",))
    ('"ord"* "a.b"*', '')
    """
    return " ".join(
        '"{}"*'.format(word.replace('"', '""').replace("\0", " "))
        for word in words
        if any(char.isalnum() for char in word)
    )


def _rarest(connection: sqlite3.Connection, parts: list[_Part]) -> _Part | None:
    """Return the condition that fits the fewest tasks, if reading its index is better than reading all."""
    best, fewest = None, LOOK
    for part in parts:
        if not part.indexed:
            continue
        statement = " ".join((_COUNT_WORDS if part.words else _COUNT, part.sql, "LIMIT ?)"))
        (count,) = connection.execute(statement, (*part.values, LOOK)).fetchone()
        # Of an index in the right order any part can be read; what is found in another order must be sorted first.
        if count < fewest or (best is None and part.ordered):
            best, fewest = part, count
    return best
