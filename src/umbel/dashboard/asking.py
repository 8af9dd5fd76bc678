"""Asking workers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

#: Seconds that a worker has to reply.
PATIENCE: Final = 2.0
_FRESH: Final = 2.0
_MOST: Final = 200


class Asking:
    """Asks one worker several things at once, and remembers the replies for two seconds: so many may look at once."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def about(self, node: str, *commands: str) -> dict[str, Any]:
        """Return what a worker replies to each command; None for those that it does not reply to in time."""
        with self._lock:
            at, found = self._known.get(node, (float("-inf"), {}))
        if time.monotonic() - at < _FRESH and set(commands) <= set(found):
            return found
        with ThreadPoolExecutor(len(commands), thread_name_prefix="umbel-dashboard-ask") as threads:
            replies = threads.map(lambda command: self._ask(node, command), commands)
            found = dict(zip(commands, replies, strict=True))
        with self._lock:
            self._known[node] = (time.monotonic(), found)
            while len(self._known) > _MOST:
                del self._known[next(iter(self._known))]
        return found

    def forget(self) -> None:
        """Ask anew the next time, because something was changed."""
        with self._lock:
            self._known.clear()

    def _ask(self, node: str, command: str) -> Any:
        inspect = self._app.control.inspect(destination=node, timeout=PATIENCE)
        return getattr(inspect, command)()
