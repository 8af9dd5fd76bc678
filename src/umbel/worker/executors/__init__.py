"""How executions run inside one worker process."""

from __future__ import annotations

from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Executor

POOLS = ("prefork", "solo", "threads", "asyncio")


def make_executor(pool: str, concurrency: int) -> Executor:
    """Return the executor that one process of this pool uses.

    Raises :exc:`ImproperlyConfigured` for a pool that does not exist.
    """
    if pool in ("prefork", "solo", "processes"):
        from umbel.worker.executors.solo import SoloExecutor

        return SoloExecutor()
    if pool == "threads":
        from umbel.worker.executors.threads import ThreadsExecutor

        return ThreadsExecutor(concurrency)
    if pool == "asyncio":
        from umbel.worker.executors.asyncio import AsyncioExecutor

        return AsyncioExecutor(concurrency)
    raise ImproperlyConfigured(f"unknown pool {pool!r}; choose one of {', '.join(POOLS)}")
