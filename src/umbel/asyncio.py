"""Doing what blocks without blocking the event loop: a few threads per process that publish for coroutines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, TypeVar

T = TypeVar("T")

# Publishing waits for the broker and uses little CPU; the default executor may be full of the program's own work.
THREADS: Final = 4


class _Process:
    pool: ThreadPoolExecutor | None = None


async def run(call: Callable[[], T]) -> T:
    """Call this in a thread, with the context of the calling coroutine, and return what it returns.

    If the coroutine is cancelled the call goes on, and what it returns or raises is dropped.
    """
    if _Process.pool is None:
        _Process.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="umbel-publish")
    return await asyncio.get_running_loop().run_in_executor(_Process.pool, copy_context().run, call)


def _after_fork() -> None:
    # The threads exist in the parent only.
    _Process.pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
