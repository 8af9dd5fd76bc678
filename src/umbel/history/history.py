"""The history of an app's tasks: what was told of them, kept in a file, and found again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.history.file import HistoryFile
from umbel.history.keeping import Batch
from umbel.history.kinship import forget_empty, of_tasks
from umbel.history.query import Query, parse
from umbel.history.redaction import Redactor
from umbel.history.rows import (
    COLUMNS,
    Attempt,
    ErrorGroup,
    Happening,
    TaskPage,
    TaskRow,
    as_row,
    attempts_of,
    told_in_order,
)
from umbel.history.search import search
from umbel.history.workflows import MOST_MEMBERS, Member, Workflow, WorkflowPage, members_of, page_of, workflow_of

#: What is kept unless it is said otherwise.
MAX_TASKS: Final = 200_000
MAX_AGE: Final = 14 * 86400.0
#: Tasks that one step of pruning forgets: others wait for the file meanwhile.
PRUNE_STEP: Final = 500
#: Errors that are kept: the latest.
MOST_ERRORS: Final = 10_000
_ERROR: Final = ErrorGroup.__struct_fields__
_ERRORS: Final = f"SELECT {', '.join(_ERROR)} FROM errors"
_TASK: Final = f"SELECT {', '.join(COLUMNS)} FROM tasks"
_TOO_MANY: Final = "SELECT number FROM tasks WHERE number <= ? ORDER BY number LIMIT ?"
_TOO_OLD: Final = "SELECT number FROM tasks WHERE heard < ? ORDER BY heard LIMIT ?"
_FORGET: Final = (
    "DELETE FROM happenings WHERE task IN (SELECT value FROM json_each(?))",
    "DELETE FROM words WHERE rowid IN (SELECT value FROM json_each(?))",
    "DELETE FROM tasks WHERE number IN (SELECT value FROM json_each(?))",
)
_GONE_ERRORS: Final = "DELETE FROM errors WHERE fingerprint IN (SELECT fingerprint FROM errors"
_OLD_ERRORS: Final = f"{_GONE_ERRORS} WHERE latest < ? ORDER BY latest LIMIT ?)"
_ERRORS_TOO_MANY: Final = f"{_GONE_ERRORS} ORDER BY latest DESC LIMIT ? OFFSET ?)"
_COUNT: Final = (
    "SELECT state, count(*) FROM tasks GROUP BY state ORDER BY 2 DESC",
    "SELECT name, count(*) FROM tasks GROUP BY name ORDER BY 2 DESC LIMIT 1000",
)
_RUN: Final = (
    "SELECT runtime FROM tasks WHERE number IN (SELECT number FROM tasks WHERE name = ? ORDER BY number DESC LIMIT ?) "
    "AND state = 'SUCCESS' AND runtime IS NOT NULL ORDER BY runtime"
)


class Counts(msgspec.Struct, frozen=True):
    """How many tasks are known in each state, and by their names."""

    states: Mapping[str, int]
    names: Mapping[str, int]


class History:
    """What is known of tasks that were heard of. Safe to share between threads, and to open in several processes.

    Every method may raise :exc:`OperationalError`; then nothing was changed. ``app`` says which tasks are sensitive.

    :param max_tasks: :meth:`prune` forgets the oldest above so many; 0 keeps all.
    :param max_age: and those first heard of so many seconds ago; 0 keeps all.
    """

    def __init__(
        self,
        path: str,
        *,
        app: Any = None,
        max_tasks: int = MAX_TASKS,
        max_age: float = MAX_AGE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = HistoryFile(path)
        self._app = app
        self.max_tasks = max_tasks
        self.max_age = max_age
        self._now = now

    @property
    def path(self) -> str:
        """Where the file is."""
        return self._file.path

    # -- writing -------------------------------------------------------------------------------------------------

    def record(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Write the events of tasks among these, in one transaction; return how many were not known yet.

        What is sensitive, and what looks like a secret, is taken out first. An event that comes twice is one.
        """
        with self._file.write() as connection:
            return Batch(connection, Redactor(self._app), self._now()).apply(events)

    def prune(self) -> int:
        """Forget up to :data:`PRUNE_STEP` tasks that are too many or too old; return how many. Zero: that was all."""
        with self._file.write() as connection:
            (newest,) = connection.execute("SELECT max(number) FROM tasks").fetchone()
            bound = (newest or 0) - self.max_tasks if self.max_tasks else 0
            aged = self._now() - self.max_age if self.max_age else 0.0
            gone = [row[0] for row in connection.execute(_TOO_MANY, (bound, PRUNE_STEP)).fetchall()]
            gone = gone or [row[0] for row in connection.execute(_TOO_OLD, (aged, PRUNE_STEP)).fetchall()]
            numbers = json.dumps(gone)
            workflows = of_tasks(connection, numbers)
            for forget in _FORGET:
                connection.execute(forget, (numbers,))
            forget_empty(connection, workflows)
            if self.max_age:
                connection.execute(_OLD_ERRORS, (aged, PRUNE_STEP))
            # Messages with a name or an address in them make an error of each failure.
            connection.execute(_ERRORS_TOO_MANY, (PRUNE_STEP, MOST_ERRORS))
        return len(gone)

    def replayed(self, id: str, new_id: str) -> None:
        """Write down that another task was sent in place of this one, if it is still here."""
        with self._file.write() as connection:
            connection.execute("UPDATE tasks SET replay = ? WHERE id = ?", (new_id, id))

    # -- reading -------------------------------------------------------------------------------------------------

    def tasks(self, query: Query | str = "", *, after: int = 0, limit: int = 50) -> TaskPage:
        """Return a page of the tasks that fit, the latest first; ``after`` is the ``next`` of the page before.

        Raises :exc:`BadQuery` for a text that cannot be understood (see :func:`umbel.history.query.parse`).
        """
        wanted = parse(query, now=self._now()) if isinstance(query, str) else query
        with self._file.read() as connection:
            return search(connection, wanted, after=after, limit=limit)

    def find(self, query: Query | str = "", *, after: int = 0, limit: int = 50) -> tuple[list[TaskRow], int]:
        """Return so many tasks that fit, from as many pages as it takes, and what asks for those behind them.

        Unlike that of :meth:`tasks` its work has no bound but the size of the history.
        """
        wanted = parse(query, now=self._now()) if isinstance(query, str) else query
        rows: list[TaskRow] = []
        while True:
            page = self.tasks(wanted, after=after, limit=limit - len(rows))
            rows += page.tasks
            after = page.next
            if not after or len(rows) >= limit:
                return rows, after

    def task(self, id: str) -> TaskRow | None:
        """Return what is known of one task."""
        with self._file.read() as connection:
            row = connection.execute(f"{_TASK} WHERE id = ?", (id,)).fetchone()
        return as_row(row) if row is not None else None

    def timeline(self, id: str) -> Sequence[Happening]:
        """Return what was told of one task, in the order of time; the latest 200."""
        with self._file.read() as connection:
            rows = connection.execute(
                "SELECT at, kind, worker, detail, traceback, runtime FROM happenings "
                "WHERE task = (SELECT number FROM tasks WHERE id = ?) ORDER BY at, kind",
                (id,),
            ).fetchall()
        fields = Happening.__struct_fields__
        return told_in_order([Happening(**dict(zip(fields, row, strict=True))) for row in rows])

    def attempts(self, id: str) -> Sequence[Attempt]:
        """Return the runs of one task, the first one first."""
        return attempts_of(self.timeline(id))

    def relatives(self, id: str, *, limit: int = 200) -> Sequence[TaskRow]:
        """Return the known tasks that this one sent, the latest first."""
        with self._file.read() as connection:
            rows = connection.execute(f"{_TASK} WHERE parent = ? ORDER BY number DESC LIMIT ?", (id, limit)).fetchall()
        return [as_row(row) for row in rows]

    def workflows(self, query: Query | str = "", *, after: int = 0, limit: int = 50) -> WorkflowPage:
        """Return a page of the workflows that have a task that fits, the latest first; ``after`` as of :meth:`tasks`.

        Raises :exc:`BadQuery` for a text that cannot be understood.
        """
        wanted = parse(query, now=self._now()) if isinstance(query, str) else query
        with self._file.read() as connection:
            return page_of(connection, wanted, after=after, limit=limit)

    def workflow(self, id: str) -> Workflow | None:
        """Return the workflow with this id, or that a task or a group with this id is a part of."""
        with self._file.read() as connection:
            return workflow_of(connection, id)

    def members(self, workflow: Workflow, *, limit: int = MOST_MEMBERS) -> Sequence[Member]:
        """Return the tasks of a workflow, the first so many, in the order in which they were heard of."""
        with self._file.read() as connection:
            return members_of(connection, workflow.number, limit)

    def errors(self, *, since: float = 0.0, limit: int = 100) -> Sequence[ErrorGroup]:
        """Return the groups of failures that were there since, the latest first."""
        with self._file.read() as connection:
            rows = connection.execute(
                f"{_ERRORS} WHERE latest >= ? ORDER BY latest DESC LIMIT ?", (since, limit)
            ).fetchall()
        return [ErrorGroup(**dict(zip(_ERROR, row, strict=True))) for row in rows]

    def error(self, fingerprint: str) -> ErrorGroup | None:
        """Return one group; the beginning of its fingerprint will do, if it is of no other."""
        with self._file.read() as connection:
            rows = connection.execute(
                f"{_ERRORS} WHERE fingerprint >= ? AND fingerprint < ? LIMIT 2",
                (fingerprint, fingerprint + "\U0010ffff"),
            ).fetchall()
        return ErrorGroup(**dict(zip(_ERROR, rows[0], strict=True))) if len(rows) == 1 else None

    def counts(self, *, names: bool = True) -> Counts:
        """Return how many tasks are known in each state and of each name; each takes longer the more there are.

        :param names: without it those of the names are left out.
        """
        by_state, by_name = _COUNT
        with self._file.read() as connection:
            return Counts(
                states=dict(connection.execute(by_state).fetchall()),
                names=dict(connection.execute(by_name).fetchall()) if names else {},
            )

    def runtimes(self, name: str, *, limit: int = 1000) -> Sequence[float]:
        """Return how long the latest successful runs of a task took, the shortest first."""
        with self._file.read() as connection:
            return [row[0] for row in connection.execute(_RUN, (name, limit)).fetchall()]

    def close(self) -> None:
        """Close the file. A second call does nothing, and reading opens it again."""
        self._file.close()
