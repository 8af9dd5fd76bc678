"""Doing what blocks without blocking the event loop: a few threads per process that publish for coroutines."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

# Publishing waits for the broker and uses little CPU; the default executor may be full of the program's own work.
THREADS: Final = 4


class _Process:
    pool: ThreadPoolExecutor | None = None


async def run(call: Callable[[], T]) -> T:
    """Call this in a thread, with the context of the calling coroutine, and return what it returns.

    If the coroutine is cancelled the call goes on, and what it returns or raises is dropped.
    """
    # Programs without coroutines never need these, and asyncio takes longer to import than all of Umbel's core.
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    if _Process.pool is None:
        _Process.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="umbel-publish")
    return await asyncio.get_running_loop().run_in_executor(_Process.pool, copy_context().run, call)


def _after_fork() -> None:
    # The threads exist in the parent only.
    _Process.pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
