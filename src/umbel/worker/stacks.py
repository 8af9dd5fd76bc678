"""The command ``stacks``: where each thread of a worker is, for whoever wonders why nothing moves."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from umbel.worker.control import inspect_command
from umbel.worker.desk import InProcessDesk
from umbel.worker.process import dump_stacks


@inspect_command(visible=False)
def stacks(state: Any, **kwargs: Any) -> Any:
    """Say where each thread of every process is, and what the process runs since how many seconds.

    A process that is stuck in C code cannot say it, and has no ``threads``. So all of them also write it to the log,
    as they do at a SIGUSR1: that is done by C code too.
    """
    if isinstance(state.desk, InProcessDesk):
        # In somebody else's program the signal means something else.
        dump_stacks()
    else:
        os.kill(os.getpid(), signal.SIGUSR1)
    threads, now = state.desk.stacks(), time.monotonic()
    return {
        "pid": os.getpid(),
        "processes": [
            {
                "pid": holder.pid,
                "running": [
                    {"id": each.task_id, "name": each.task, "seconds": round(now - each.since, 3)}
                    for each in holder.running
                ],
                "threads": [{"name": each.name, "stack": each.stack} for each in threads.get(holder.pid, ())],
            }
            for holder in state.desk.holders()
        ],
    }
