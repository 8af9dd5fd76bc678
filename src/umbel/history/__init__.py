"""What happened to an app's tasks, kept in a file of its own: searched, shown, and used to send tasks once more.

:class:`History` is the file, :class:`Recorder` fills it from events, :func:`open_history` opens the one of an app. The
choice of one SQLite file for every broker is explained in ``docs/history.md``.
"""

from __future__ import annotations

from umbel.history.history import Counts, History
from umbel.history.opening import history_path, open_history
from umbel.history.query import BadQuery, Query, parse
from umbel.history.recorder import Recorded, Recorder
from umbel.history.rows import Attempt, ErrorGroup, Happening, TaskPage, TaskRow
from umbel.history.workflows import Member, Workflow, WorkflowPage

__all__ = [
    "Attempt",
    "BadQuery",
    "Counts",
    "ErrorGroup",
    "Happening",
    "History",
    "Member",
    "Query",
    "Recorded",
    "Recorder",
    "TaskPage",
    "TaskRow",
    "Workflow",
    "WorkflowPage",
    "history_path",
    "open_history",
    "parse",
]
