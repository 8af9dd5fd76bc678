"""Remote control: what a program can ask of the workers of its app."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from umbel.revoking import revoke


class Control:
    """``app.control``. Safe to use from every thread."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        *,
        expires: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell all workers not to start these tasks, also the workers that are not running now.

        A worker that meets the message of one stores the state REVOKED instead of running it. A task that runs goes
        on unless ``terminate`` is true: then :exc:`Terminated` is raised in it, and under prefork its process is
        killed a second later, or at once with ``signal="SIGKILL"``.

        :param destination: accepted as in Celery; a revocation is for all workers.
        :param expires: seconds to remember it, a day if not given: more is needed for tasks that are due later.
        :param kwargs: the options of a broadcast, which this is not.

        Raises :exc:`OperationalError` if the broker cannot be reached, and ``ValueError`` for an unknown signal.
        """
        revoke(self.app, task_id, terminate=terminate, signal=signal, expires=expires)

    def terminate(
        self, task_id: str | Iterable[str], destination: Any = None, signal: str | int | None = None, **kwargs: Any
    ) -> None:
        """Do :meth:`revoke` with ``terminate=True``."""
        self.revoke(task_id, destination=destination, terminate=True, signal=signal, **kwargs)
