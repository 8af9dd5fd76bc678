"""``app.control.inspect()``: asking workers what they know."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from umbel.exceptions import DuplicateNodenameWarning
from umbel.mailbox import flatten, matches


def flatten_reply(reply: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``[{node: value}, ...]`` as one mapping, with a warning where two workers have one name."""
    nodes, twice = flatten(reply)
    if twice:
        warnings.warn(
            DuplicateNodenameWarning(
                f"Received multiple replies from node name{'s' if len(twice) > 1 else ''}: {', '.join(twice)}. "
                "Please make sure you give each node a unique nodename using the worker's `-n` option."
            ),
            stacklevel=2,
        )
    return nodes


class Inspect:
    """Asks workers. Each method returns ``{node: value}``, or None if nobody replied within ``timeout`` seconds.

    With one node name as the ``destination``, instead of a list, it returns that node's value alone.
    """

    app: Any = None

    def __init__(
        self,
        destination: str | Sequence[str] | None = None,
        timeout: float = 1.0,
        callback: Callable[[dict[str, Any]], object] | None = None,
        connection: Any = None,
        app: Any = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self.app = app if app is not None else self.app
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.connection = connection
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def _request(self, command: str, **arguments: Any) -> Any:
        destination = self.destination
        replies = self.app.control.broadcast(
            command,
            arguments=arguments,
            destination=[destination] if isinstance(destination, str) else destination,
            callback=self.callback,
            limit=self.limit,
            timeout=self.timeout,
            reply=True,
            pattern=self.pattern,
            matcher=self.matcher,
        )
        if not replies:
            return None
        nodes = flatten_reply(replies)
        if isinstance(destination, str):
            return nodes.get(destination)
        if self.pattern:
            return {node: value for node, value in nodes.items() if matches(node, self.pattern, self.matcher)}
        return nodes

    def ping(self, destination: Sequence[str] | None = None) -> Any:
        """Ask who is there: ``{"ok": "pong"}``."""
        if destination:
            self.destination = destination
        return self._request("ping")

    def active(self, safe: bool | None = None) -> Any:
        """Return the tasks that run now; with ``safe`` their arguments as texts."""
        return self._request("active", safe=safe)

    def reserved(self, safe: bool | None = None) -> Any:
        """Return the tasks that processes hold and have not started."""
        return self._request("reserved")

    def scheduled(self, safe: bool | None = None) -> Any:
        """Return the tasks of the worker's queues that wait for their time."""
        return self._request("scheduled")

    def registered(self, *taskinfoitems: str) -> Any:
        """Return the names of the worker's tasks, with the attributes that are asked for."""
        return self._request("registered", taskinfoitems=taskinfoitems)

    registered_tasks = registered

    def active_queues(self) -> Any:
        """Return the queues that the worker reads."""
        return self._request("active_queues")

    def stats(self) -> Any:
        """Return counters, processes, and what is known of the broker."""
        return self._request("stats")

    def revoked(self) -> Any:
        """Return the ids of revoked tasks."""
        return self._request("revoked")

    def query_task(self, *ids: Any) -> Any:
        """Return ``{id: [state, task]}`` for those of the ids that the worker knows."""
        if len(ids) == 1 and isinstance(ids[0], list | tuple):
            ids = tuple(ids[0])
        return self._request("query_task", ids=ids)

    def conf(self, with_defaults: bool = False) -> Any:
        """Return the settings, secrets masked."""
        return self._request("conf", with_defaults=with_defaults)

    def report(self) -> Any:
        """Return what a bug report needs, as ``{"ok": text}``."""
        return self._request("report")

    def clock(self) -> Any:
        """Return the logical time."""
        return self._request("clock")

    def memsample(self) -> Any:
        """Return the memory that the worker uses now, as a text."""
        return self._request("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """Return the latest memory samples, as a text."""
        return self._request("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:
        """Ask for a graph of objects, which Celery's workers draw and ours refuse."""
        return self._request("objgraph", num=n, max_depth=max_depth, type=type)

    def hello(self, from_node: str, revoked: Any = None) -> Any:
        """Exchange revoked ids, as Celery's workers do at their start."""
        return self._request("hello", from_node=from_node, revoked=revoked)
