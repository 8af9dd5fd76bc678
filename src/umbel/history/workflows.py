"""Reading workflows: tasks that belong together, the latest workflow first.

A page of the list is read off the numbers of the workflows, and their counts off one index of the tasks. Where a query
says what a task of it must be, the tasks that fit are found first, at most :data:`umbel.history.search.LOOK` of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel import states
from umbel.history.query import Query
from umbel.history.search import matching

#: The most workflows of a page, and the most tasks that are read of one.
MOST: Final = 500
MOST_MEMBERS: Final = 20_000
_FIELDS: Final = "number, id, first, latest"
_PAGE: Final = f"SELECT {_FIELDS} FROM workflows WHERE number < ? ORDER BY number DESC LIMIT ?"
_CHOSEN: Final = (
    f"SELECT {_FIELDS} FROM workflows WHERE number < ? AND number IN (SELECT value FROM json_each(?)) "
    "ORDER BY number DESC LIMIT ?"
)
_OF: Final = (
    "SELECT DISTINCT workflow FROM tasks WHERE number IN (SELECT value FROM json_each(?)) AND workflow IS NOT NULL"
)
_COUNTS: Final = (
    "SELECT workflow, state, count(*), min(number) FROM tasks INDEXED BY tasks_workflow "
    "WHERE workflow IN (SELECT value FROM json_each(?)) GROUP BY workflow, state"
)
_NAMES: Final = "SELECT number, name FROM tasks WHERE number IN (SELECT value FROM json_each(?))"
_BY_TASK: Final = f"SELECT {_FIELDS} FROM workflows WHERE number = (SELECT workflow FROM tasks WHERE id = ?)"
_BY_KEY: Final = f"SELECT {_FIELDS} FROM workflows WHERE number = (SELECT workflow FROM kin WHERE key = ?)"
_NEWEST: Final = 2**62


class Workflow(msgspec.Struct, kw_only=True):
    """Tasks that belong together. ``id`` is that of their root, or of the group that they are.

    ``first`` and ``latest`` are the moments of the first and the last news of them; ``name`` is that of the task that
    was heard of first.
    """

    number: int
    id: str
    first: float
    latest: float
    name: str = ""
    states: Mapping[str, int] = {}

    @property
    def total(self) -> int:
        """How many of its tasks are known."""
        return sum(self.states.values())

    @property
    def done(self) -> int:
        """How many of them succeeded."""
        return self.states.get(states.SUCCESS, 0)

    @property
    def bad(self) -> int:
        """How many of them failed, or were revoked or rejected."""
        return sum(count for state, count in self.states.items() if state in BAD)

    @property
    def ended(self) -> bool:
        """Whether all tasks that are known have ended."""
        return all(state in states.READY_STATES for state in self.states)

    def duration(self, now: float) -> float:
        """Return the seconds from its first news to its last, or to now where something still runs or waits."""
        return max(0.0, (self.latest if self.ended else now) - self.first)


class WorkflowPage(msgspec.Struct, frozen=True):
    """A part of the list; ``next`` asks for what follows, 0: that was all.

    ``cut`` says that more tasks fit the query than are looked at, so that older workflows may be missing.
    """

    workflows: Sequence[Workflow]
    next: int = 0
    cut: bool = False


class Member(msgspec.Struct):
    """What is read of each task of a workflow. Moments are seconds since the epoch; what was not told is None."""

    number: int
    id: str
    name: str
    state: str
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    ended: float | None = None
    runtime: float | None = None
    retries: int | None = None
    parent: str | None = None
    group_id: str | None = None
    ahead: str | None = None
    replay: str | None = None

    @property
    def began(self) -> float | None:
        """The first moment that is known of it."""
        return next((each for each in (self.sent, self.received, self.started, self.ended) if each is not None), None)


#: States of tasks that ended and did not succeed: nothing that waits for them will run.
BAD: Final = frozenset({states.FAILURE, states.REVOKED, states.REJECTED})
_MEMBERS: Final = (
    f"SELECT {', '.join(Member.__struct_fields__)} FROM tasks "
    "WHERE number IN (SELECT number FROM tasks WHERE workflow = ? ORDER BY number LIMIT ?) ORDER BY number"
)


def page_of(connection: sqlite3.Connection, query: Query, *, after: int, limit: int) -> WorkflowPage:
    """Return the workflows that have a task that fits, the latest first, behind the number ``after`` (0: the start)."""
    limit = max(1, min(limit, MOST))
    below, cut = after or _NEWEST, False
    if query.everything:
        rows = connection.execute(_PAGE, (below, limit + 1)).fetchall()
    else:
        numbers, cut = matching(connection, query)
        chosen = json.dumps([row[0] for row in connection.execute(_OF, (json.dumps(numbers),)).fetchall()])
        rows = connection.execute(_CHOSEN, (below, chosen, limit + 1)).fetchall()
    found = _counted(connection, rows[:limit])
    return WorkflowPage(found, found[-1].number if len(rows) > limit else 0, cut)


def workflow_of(connection: sqlite3.Connection, id: str) -> Workflow | None:
    """Return the workflow of which this is the id, or that of a task or a group of it; None: nobody knows it."""
    row = connection.execute(_BY_TASK, (id,)).fetchone() or connection.execute(_BY_KEY, (id,)).fetchone()
    return _counted(connection, [row])[0] if row is not None else None


def members_of(connection: sqlite3.Connection, number: int, limit: int = MOST_MEMBERS) -> list[Member]:
    """Return the tasks of a workflow in the order in which they were heard of, the first so many."""
    return [Member(*row) for row in connection.execute(_MEMBERS, (number, limit)).fetchall()]


def _counted(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> list[Workflow]:
    found = {row[0]: Workflow(number=row[0], id=row[1], first=row[2], latest=row[3], states={}) for row in rows}
    counts: dict[int, dict[str, int]] = {number: {} for number in found}
    heads: dict[int, int] = {}
    for number, state, count, least in connection.execute(_COUNTS, (json.dumps(list(found)),)).fetchall():
        counts[number][state] = count
        heads[number] = min(least, heads.get(number, least))
    names = dict(connection.execute(_NAMES, (json.dumps(list(heads.values())),)).fetchall())
    for number, each in found.items():
        each.states = counts[number]
        each.name = names.get(heads.get(number), "")
    return list(found.values())


def failed_leaves(members: Sequence[Member]) -> list[str]:
    """Return the tasks to send once more: those that failed, unless it was because one that they sent failed.

    One in whose place another was sent already is none of them.
    """
    blamed = {member.parent for member in members if member.state == states.FAILURE}
    return [
        member.id
        for member in members
        if member.state == states.FAILURE and member.replay is None and member.id not in blamed
    ]


def unfinished(members: Sequence[Member]) -> list[str]:
    """Return the ids of the tasks that have not ended, and of the steps that were not sent yet."""
    gone = {member.id for member in members} | {member.group_id for member in members if member.group_id}
    # What waits for a task that ended badly will not run.
    gone.update(step for member in members if member.state in BAD for step in _steps(member.ahead))
    found = {member.id: None for member in members if member.state not in states.READY_STATES}
    for ahead in dict.fromkeys(member.ahead for member in members):
        found.update((step, None) for step in _steps(ahead) if step not in gone)
    return list(found)


def _steps(ahead: str | None) -> list[str]:
    return [step["id"] for step in json.loads(ahead)] if ahead else []
