"""Tasks that are sent when the database transaction has been committed."""

from __future__ import annotations

import functools
from typing import Any

from umbel.task import Task


class DjangoTask(Task[..., Any]):
    """Base of the tasks of a Django project."""

    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Do :meth:`delay` when the current transaction is committed; not at all if it is rolled back."""
        from django.db import transaction  # type: ignore[import-not-found, unused-ignore]

        transaction.on_commit(functools.partial(self.delay, *args, **kwargs))

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Do :meth:`apply_async` when the current transaction is committed; not at all if it is rolled back."""
        from django.db import transaction  # type: ignore[import-not-found, unused-ignore]

        transaction.on_commit(functools.partial(self.apply_async, *args, **kwargs))
