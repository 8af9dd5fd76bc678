"""Tasks that can be asked to stop, and look whether they were.

A task asks :meth:`AbortableTask.is_aborted` from time to time and returns; nothing stops it by force::

    @app.task(bind=True, base=AbortableTask)
    def count(self):
        for number in range(100):
            if self.is_aborted():
                return number
            work(number)

    count.delay().abort()
"""

from __future__ import annotations

from typing import Any, Final

from umbel.asyncresult import AsyncResult
from umbel.task import Task

__all__ = ["ABORTED", "AbortableAsyncResult", "AbortableTask"]

#: The state of a task that was asked to stop.
ABORTED: Final = "ABORTED"


class AbortableAsyncResult(AsyncResult[Any]):
    """The result of a task that can be asked to stop."""

    def is_aborted(self) -> bool:
        """Say whether it was asked to stop, and has not ended since."""
        return bool(self.state == ABORTED)

    def abort(self) -> None:
        """Ask the task to stop. Does nothing if it has ended; it ends by itself, and may also end well."""
        self.app.store_state(self, self.id, ABORTED, None, None)


class AbortableTask(Task[..., Any]):
    """Base of tasks that look whether they were asked to stop."""

    abstract = True

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AbortableAsyncResult:
        """Return the result of a call of this task by its id."""
        return AbortableAsyncResult(task_id, app=self.app)

    def is_aborted(self, task_id: str | None = None) -> bool:
        """Say whether the running attempt, or the task of this id, was asked to stop. Asks the backend each time."""
        task_id = task_id or self.request.id
        # Called as a function, or in a program without a worker, there is nobody who could ask.
        return task_id is not None and self.AsyncResult(task_id).is_aborted()
