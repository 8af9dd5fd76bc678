"""How much of a busy machine a thread gets."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 10


def give_way() -> None:
    """Have the calling thread run when nobody else on this machine wants to, or nearly so.

    For what only watches: on a busy machine it falls behind, and the tasks do not. Linux knows priorities of threads;
    elsewhere this does nothing.
    """
    if sys.platform == "linux":
        # Refused, it runs as all others do.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
