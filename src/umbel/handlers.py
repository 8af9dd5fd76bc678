"""What a task class may override: hooks around the run, and around binding and naming. All do nothing by default."""

from __future__ import annotations

from typing import Any


class Handlers:
    """The hooks of a task. Those about a run are called in the process and thread that runs it.

    What a hook raises is logged; it cannot change an outcome that is decided already.
    """

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called right before the body. What it raises counts as raised by the body."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called with the return value after the body succeeded."""

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called with the reason when the task will be tried again."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called with the error when the task failed for good."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called last, with the state and the return value or error."""

    def shadow_name(self, args: Any, kwargs: Any, options: dict[str, Any]) -> str | None:
        """Return the name that logs and monitors show for this call, or None for the task's own."""
        return None

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called when the task class becomes a task of an app."""
