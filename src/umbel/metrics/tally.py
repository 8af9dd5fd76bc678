"""From events to counts: what each event adds, and how long tasks waited and ran.

An event of a worker names its task by the id alone, except the first. So what was heard of each task is kept until it
ends; of those that do not end the latest :data:`KEPT` are kept.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from umbel.metrics.labels import OTHER, Labels

#: Tasks that are remembered between two of their events.
KEPT: Final = 50_000
#: Seconds after which a worker that is silent counts as gone, at least, and after which it is forgotten.
SILENT: Final = 10.0
FORGOTTEN: Final = 600.0
_HEARTBEATS: Final = 4
_NEWEST: Final = 0.1  # weight of the latest execution in the mean of a queue
_TASK_EVENTS: Final = frozenset(
    {"sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected"}
)
_ENDS: Final = frozenset({"succeeded", "failed", "revoked", "rejected"})
_ERROR: Final = re.compile(r"[A-Za-z_][\w.]*")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a task, its names fit for labels. Durations are in seconds, None where they are not known."""

    what: str  # what follows "task-" in the type of the event
    name: str
    queue: str
    worker: str
    wait: float | None = None  # with "started": since it was sent, or due if that is later
    prefetch: float | None = None  # with "started": since the worker received it
    run: float | None = None
    error: str = ""  # with "failed": the class of the exception
    had_started: bool = False
    eta: bool = False


class Node(msgspec.Struct, kw_only=True):
    """A worker as its heartbeats describe it."""

    name: str
    active: int = 0
    heard_at: float = 0.0  # monotonic seconds
    patience: float = SILENT
    offline: bool = False

    @property
    def up(self) -> bool:
        """Whether it was heard of lately."""
        return not self.offline and time.monotonic() - self.heard_at < self.patience


class _Seen(msgspec.Struct):
    name: str = OTHER
    queue: str = OTHER
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    due: float | None = None


class Tally:
    """Takes events and tells each set of metrics what they mean. :meth:`event` is for one thread, the rest for all.

    ``routes`` maps an exchange and a routing key to the queue that they lead to.
    """

    def __init__(
        self,
        tasks: Labels,
        queues: Labels,
        routes: Mapping[tuple[str, str], str],
        told: Sequence[Callable[[Told], None]] = (),
        forgotten: Sequence[Callable[[str], None]] = (),
    ) -> None:
        """``told`` are called with each event of a task, ``forgotten`` with the name of a worker that was forgotten."""
        self.tasks = tasks
        self._queues = queues
        self._routes = dict(routes)
        self._told = told
        self._forgotten = forgotten
        self._workers = Labels(limit=1000)
        self._errors = Labels(limit=100)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._nodes: dict[str, Node] = {}
        # When each worker that has a label was heard of, by whatever event: not all send heartbeats.
        self._heard: dict[str, float] = {}
        self._lock = threading.Lock()
        self._means: dict[str, float] = {}

    def nodes(self) -> list[Node]:
        """Return the workers that told of themselves, also those that are gone, until they are forgotten."""
        now = time.monotonic()
        with self._lock:
            self._nodes = {name: node for name, node in self._nodes.items() if now - node.heard_at <= FORGOTTEN}
            gone = [name for name, heard_at in self._heard.items() if now - heard_at > FORGOTTEN]
            for name in gone:
                del self._heard[name]
                self._workers.forget(name)
            found = list(self._nodes.values())
        for name in gone:
            for forget in self._forgotten:
                forget(name)
        return found

    def sent_at(self, task_id: str) -> float | None:
        """Return when a task that has not ended was sent, in seconds since the epoch, if that was heard."""
        seen = self._seen.get(task_id)
        return None if seen is None or seen.sent is None else max(seen.sent, seen.due or 0.0)

    def learn_queue(self, name: str) -> None:
        """Count what is told of this queue under its own name from now on, if there is room for it."""
        if self._queues.learn(name) == name:
            # Without an exchange a message goes to the queue that its key names.
            self._routes.setdefault(("", name), name)

    def mean_run(self, queues: Iterable[str]) -> float | None:
        """Return for how many seconds the latest tasks of these queues ran, on average; None if none was heard of."""
        means = [self._means[queue] for queue in queues if queue in self._means]
        return sum(means) / len(means) if means else None

    def event(self, event: Mapping[str, Any]) -> None:
        """Take one event. Anybody may have sent it: what makes no sense in it counts as not said."""
        group, _, what = str(event.get("type")).partition("-")
        if group == "worker":
            self._of_worker(what, event)
        elif group == "task" and what in _TASK_EVENTS:
            told = self._of_task(what, event)
            if told.run is not None:
                mean = self._means.get(told.queue, told.run)
                self._means[told.queue] = mean + (told.run - mean) * _NEWEST
            for tell in self._told:
                tell(told)

    def _of_worker(self, what: str, event: Mapping[str, Any]) -> None:
        name = self._worker(event)
        if name == OTHER:
            return
        with self._lock:
            node = self._nodes.setdefault(name, Node(name=name))
            node.heard_at, node.offline = time.monotonic(), what == "offline"
            node.patience = max(SILENT, _HEARTBEATS * (_number(event.get("freq")) or 0.0))
            node.active = 0 if node.offline else int(_number(event.get("active")) or 0)

    def _worker(self, event: Mapping[str, Any]) -> str:
        """Return the label of the worker that sent an event."""
        with self._lock:
            name = self._workers.learn(event.get("hostname"))
            if name != OTHER:
                self._heard[name] = time.monotonic()
            return name

    def _of_task(self, what: str, event: Mapping[str, Any]) -> Told:
        uuid, at = str(event.get("uuid")), _number(event.get("timestamp"))
        seen = self._seen.get(uuid)
        if seen is None:
            seen = self._seen[uuid] = _Seen()
            if len(self._seen) > KEPT:
                self._seen.popitem(last=False)
        self._learn(seen, what, event, at)
        had_started = seen.started is not None
        wait = prefetch = run = None
        if what == "started" and at is not None:
            begins = [moment for moment in (seen.sent, seen.due) if moment is not None]
            wait = max(0.0, at - max(begins)) if seen.sent is not None else None
            prefetch = max(0.0, at - seen.received) if seen.received is not None else None
            seen.started = at
        elif what in ("succeeded", "failed", "retried"):
            run = _number(event.get("runtime"))
            if run is None and at is not None and seen.started is not None:
                run = max(0.0, at - seen.started)
        told = Told(
            what=what,
            name=seen.name,
            queue=seen.queue,
            # A client's name has a number of its process in it; there may be any number of clients.
            worker="" if what == "sent" else self._worker(event),
            wait=wait,
            prefetch=prefetch,
            run=run,
            error=self._error(event) if what == "failed" else "",
            had_started=had_started,
            eta=seen.due is not None,
        )
        if what in _ENDS:
            del self._seen[uuid]
        elif what == "retried":
            # It comes again under its id; that it was sent again may have been heard already.
            if seen.sent is None or seen.started is None or seen.sent < seen.started:
                seen.sent = seen.due = None
            seen.received = seen.started = None
        return told

    def _learn(self, seen: _Seen, what: str, event: Mapping[str, Any], at: float | None) -> None:
        if event.get("name") is not None:
            seen.name = self.tasks.of(event["name"])
        if event.get("queue") is not None:
            seen.queue = self._queues.of(event["queue"])
        elif seen.queue == OTHER:
            # Workers tell of the address alone.
            seen.queue = self._routes.get((str(event.get("exchange")), str(event.get("routing_key"))), OTHER)
        if what == "sent":
            seen.sent = at
        elif what == "received":
            seen.received = at
        if event.get("eta") is not None:
            seen.due = _moment(event["eta"])

    def _error(self, event: Mapping[str, Any]) -> str:
        found = _ERROR.match(str(event.get("exception")))
        return self._errors.learn(found.group()) if found else OTHER


def _number(value: Any) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    return None


def _moment(text: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
