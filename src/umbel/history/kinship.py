"""Which tasks belong together: those of one root, and the members of one group.

Celery gives each member of a group that a client sends a root of its own, so the root alone does not say it. A task
belongs to the workflow of its root, of its group and of the groups that its message says come next; where these are
workflows that were taken for several, they become one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from umbel.history.rows import TaskRow

_MOST_STEPS: Final = 20
_NEVER: Final = 1e11
_LONGEST: Final = 255
_KIN: Final = "SELECT key, workflow FROM kin WHERE key IN (SELECT value FROM json_each(?))"
_ROOTS: Final = "SELECT id, workflow FROM tasks WHERE id IN (SELECT value FROM json_each(?)) AND workflow IS NOT NULL"
_BEGIN: Final = "INSERT INTO workflows (id, first, latest) VALUES (?, 1e11, -1e11)"
_KNOWN_BY: Final = "INSERT OR REPLACE INTO kin (key, workflow) VALUES (?, ?)"
_JOIN_ROOT: Final = "UPDATE tasks SET workflow = ? WHERE id = ? AND workflow IS NULL"
_NEWS: Final = "UPDATE workflows SET first = min(first, ?), latest = max(latest, ?) WHERE number = ?"
_MERGE: Final = (
    "UPDATE tasks SET workflow = :kept WHERE workflow = :gone",
    "UPDATE kin SET workflow = :kept WHERE workflow = :gone",
    "UPDATE workflows SET first = min(first, (SELECT first FROM workflows WHERE number = :gone)), "
    "latest = max(latest, (SELECT latest FROM workflows WHERE number = :gone)) WHERE number = :kept",
    "DELETE FROM workflows WHERE number = :gone",
)
_OF_TASKS: Final = (
    "SELECT DISTINCT workflow FROM tasks WHERE number IN (SELECT value FROM json_each(?)) AND workflow IS NOT NULL"
)
_EMPTY: Final = "SELECT value FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE workflow = value)"
_FORGET: Final = (
    "DELETE FROM kin WHERE workflow IN (SELECT value FROM json_each(?))",
    "DELETE FROM workflows WHERE number IN (SELECT value FROM json_each(?))",
)


def ahead_text(told: Any) -> str | None:
    """Return the steps that an event says come next, as they are kept; None where it says nothing of use."""
    if not isinstance(told, list | tuple):
        return None
    steps = []
    for each in told[:_MOST_STEPS]:
        if isinstance(each, Mapping) and isinstance(id := each.get("id"), str) and 0 < len(id) <= _LONGEST:
            texts = {"id": id, "name": str(each.get("name") or "")[:_LONGEST]}
            if isinstance(group := each.get("group"), str) and 0 < len(group) <= _LONGEST:
                texts["group"] = group
            steps.append({name: text.encode("utf-8", "replace").decode("utf-8") for name, text in texts.items()})
    return json.dumps(steps, ensure_ascii=False) if steps else None


class Kinship:
    """Finds the workflows of one batch of tasks. ``rows`` are all tasks of the batch, by their ids."""

    def __init__(self, connection: sqlite3.Connection, rows: Mapping[str, TaskRow]) -> None:
        self._connection = connection
        self._rows = rows
        self._known: dict[str, int] = {}
        self._roots: dict[str, int] = {}
        self._said: dict[str, int] = {}
        #: Ids of tasks of the batch that became part of a workflow because another one told of them.
        self.joined: set[str] = set()

    def place(self, rows: Sequence[TaskRow]) -> None:
        """Set ``workflow`` of these, and of their roots, where they are not alone."""
        if not rows:
            return
        keys = {row.id: _keys(row) for row in rows}
        wanted = {key for each in keys.values() for key in each} | {row.id for row in rows}
        self._known = dict(self._connection.execute(_KIN, (json.dumps(list(wanted)),)).fetchall())
        roots = [row.root for row in rows if row.root not in (None, row.id)]
        if roots:
            self._roots = dict(self._connection.execute(_ROOTS, (json.dumps(roots),)).fetchall())
        orphans: list[tuple[int, str]] = []
        for row in rows:
            self._one(row, keys[row.id])
            if row.workflow is not None and row.root not in (None, row.id) and row.root not in self._rows:
                orphans.append((row.workflow, row.root or ""))
        self._connection.executemany(_KNOWN_BY, list(self._said.items()))
        self._connection.executemany(_JOIN_ROOT, list(dict.fromkeys(orphans)))

    def _one(self, row: TaskRow, keys: Sequence[str]) -> None:
        root = self._rows.get(row.root or "")
        known = [self._known.get(key) for key in (row.id, *keys)]
        found = {
            each for each in (row.workflow, root and root.workflow, self._roots.get(row.root or ""), *known) if each
        }
        if found:
            number = min(found)
            for other in found - {number}:
                self._merge(number, other)
        elif keys:
            begun = self._connection.execute(_BEGIN, (keys[0],)).lastrowid
            assert begun is not None
            number = begun
        else:
            return
        row.workflow = number
        if root is not None and root is not row and root.workflow is None:
            root.workflow = number
            self.joined.add(root.id)
        for key in keys:
            if self._known.get(key) != number:
                self._known[key] = self._said[key] = number

    def _merge(self, kept: int, gone: int) -> None:
        for statement in _MERGE:
            self._connection.execute(statement, {"kept": kept, "gone": gone})
        for row in self._rows.values():
            if row.workflow == gone:
                row.workflow = kept
        for numbers in (self._known, self._roots, self._said):
            numbers.update([(key, kept) for key, number in numbers.items() if number == gone])

    def news(self, rows: Iterable[TaskRow]) -> None:
        """Note when there was the first and the last news of the workflows of these."""
        first: dict[int, float] = {}
        latest: dict[int, float] = {}
        for row in rows:
            if row.workflow is not None:
                known = [each for each in (row.sent, row.received, row.started, row.ended, row.at) if each]
                first[row.workflow] = min([first.get(row.workflow, _NEVER), *known])
                latest[row.workflow] = max([latest.get(row.workflow, -_NEVER), *known])
        self._connection.executemany(_NEWS, [(first[number], latest[number], number) for number in first])


def _keys(row: TaskRow) -> list[str]:
    """Return by what others are known to belong to the same workflow; nothing for a task that stands alone.

    The first one names the workflow.
    """
    found = [row.root if row.root != row.id else None, row.group_id]
    steps = json.loads(row.ahead) if row.ahead else ()
    found += [step.get("group") for step in steps]
    keys = list(dict.fromkeys(key for key in found if key))
    # A chain's first task: only those that follow will say that it is their root.
    return keys or ([row.id] if steps else [])


def of_tasks(connection: sqlite3.Connection, numbers: str) -> list[int]:
    """Return the workflows of the tasks with these numbers, a list in JSON."""
    return [row[0] for row in connection.execute(_OF_TASKS, (numbers,)).fetchall()]


def forget_empty(connection: sqlite3.Connection, workflows: Sequence[int]) -> None:
    """Forget those of these workflows that have no task any more."""
    empty = [row[0] for row in connection.execute(_EMPTY, (json.dumps(workflows),)).fetchall()]
    for forget in _FORGET:
        connection.execute(forget, (json.dumps(empty),))
