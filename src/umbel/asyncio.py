"""Doing what blocks without blocking the event loop: a few threads per process that publish for coroutines."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from umbel.exceptions import OperationalError

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


async def send(app: Any, timeout: float | None, call: Callable[[float], T]) -> T:
    """Do :func:`run` with what publishes, all within the timeout: ``call`` gets the seconds that it may take.

    Raises :exc:`OperationalError` if other coroutines had the threads for that long; then ``call`` is not called. Where
    tasks run here and now they take the time that they need.

    :param timeout: None takes ``publish_timeout``.
    """
    allowed: float = timeout or app.conf.publish_timeout
    if app.conf.task_always_eager:
        return await run(lambda: call(allowed))
    asked = app.clock.monotonic()

    def in_time() -> T:
        waited = app.clock.monotonic() - asked
        if waited > 0.9 * allowed:
            # With less an attempt could be cut off in its middle, and its outcome be unknown.
            raise OperationalError(
                f"cannot send within {allowed:g} s (publish_timeout): what other coroutines send takes that long. "
                "Nothing was queued; it is safe to send again."
            )
        # The timeout itself where nothing else was to be sent: drivers have it already and need not set another.
        return call(allowed - waited if waited > 0.01 * allowed else allowed)

    return await run(in_time)


def _after_fork() -> None:
    # The threads exist in the parent only.
    _Process.pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
