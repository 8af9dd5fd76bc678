"""What is known of a cluster from the events that were heard: its workers and its latest tasks.

Events may come in any order, because each process sends its own. A task's state is the one that is logically the
latest: what was received cannot undo what has succeeded.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from umbel import states

#: A worker counts as gone when it was silent for this part (in percent) of the time between two heartbeats.
HEARTBEAT_EXPIRE_WINDOW: Final = 200
_FREQ: Final = 60.0
_HEARTBEATS: Final = 4
_END_OF_TIME: Final = 2.5e11  # seconds since the epoch; a date has no later one

TASK_EVENT_TO_STATE: Final = {
    "sent": states.PENDING,
    "received": states.RECEIVED,
    "started": states.STARTED,
    "failed": states.FAILURE,
    "retried": states.RETRY,
    "succeeded": states.SUCCESS,
    "revoked": states.REVOKED,
    "rejected": states.REJECTED,
}

T = TypeVar("T")


def heartbeat_expires(timestamp: float, freq: float = 60, expire_window: float = HEARTBEAT_EXPIRE_WINDOW) -> float:
    """Return until when a worker counts as alive that was heard at this time; ``freq`` is 60 if it is no number."""
    return float(timestamp) + _finite(freq, _FREQ) * (expire_window / 100)


def _finite(value: Any, default: float) -> float:
    """Return a finite number; the default for all else that an event may say instead."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if math.isfinite(number) else default


def _settable(owner: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields of an event that it may set in a worker or a task.

    Events come from anywhere, and must not replace what belongs to the class, or to a subclass.
    """
    kind: Any = type(owner)
    kept = _kept_of(kind)
    return {
        name: value
        for name, value in fields.items()
        if isinstance(name, str) and not name.startswith("_") and name not in kept
    }


@functools.cache
def _kept_of(cls: Any) -> frozenset[str]:
    """Return the names of methods and of properties that are only read, and those that the class itself keeps."""
    found = {name: getattr(cls, name, None) for name in dir(cls)}
    own: frozenset[str] = cls._kept
    return own | {
        name for name, value in found.items() if callable(value) or (isinstance(value, property) and value.fset is None)
    }


class Worker:
    """One worker as its events describe it. Equal to another of the same ``hostname``."""

    expire_window = HEARTBEAT_EXPIRE_WINDOW
    _kept = frozenset({"expire_window", "heartbeats"})
    _fields = (
        "hostname", "pid", "freq", "heartbeats", "clock", "active", "processed", "loadavg", "sw_ident", "sw_ver",
        "sw_sys",
    )  # fmt: skip

    def __init__(
        self,
        hostname: str | None = None,
        pid: int | None = None,
        freq: float = 60,
        heartbeats: list[float] | None = None,
        clock: int = 0,
        active: int | None = None,
        processed: int | None = None,
        loadavg: Any = None,
        sw_ident: str | None = None,
        sw_ver: str | None = None,
        sw_sys: str | None = None,
    ) -> None:
        self.hostname = hostname
        self.pid = pid
        self.freq = freq
        self.heartbeats = [] if heartbeats is None else heartbeats
        self.clock = clock or 0
        self.active = active
        self.processed = processed
        self.loadavg = loadavg
        self.sw_ident = sw_ident
        self.sw_ver = sw_ver
        self.sw_sys = sw_sys

    def event(
        self,
        type_: str | None,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Learn from an event; ``type_`` is what follows the dash, None for an event of one of its tasks."""
        self.update(fields or {})
        if type_ == "offline":
            self.heartbeats.clear()
        elif 0 < (heard_at := _finite(local_received, 0.0)) < _END_OF_TIME:
            self.heartbeats.append(heard_at)
            self.heartbeats.sort()
            del self.heartbeats[:-_HEARTBEATS]

    def update(self, f: Mapping[str, Any], **more: Any) -> None:
        """Set fields, except those that no event may set."""
        for name, value in _settable(self, {**f, **more}).items():
            setattr(self, name, value)

    @property
    def status_string(self) -> str:
        """ONLINE or OFFLINE."""
        return "ONLINE" if self.alive else "OFFLINE"

    @property
    def heartbeat_expires(self) -> float:
        """Until when it counts as alive."""
        return heartbeat_expires(self.heartbeats[-1], self.freq, self.expire_window)

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return bool(self.heartbeats) and time.time() < self.heartbeat_expires

    @property
    def id(self) -> str:
        """Node name and process id."""
        return f"{self.hostname}.{self.pid}"

    def __eq__(self, other: object) -> bool:
        return self.hostname == other.hostname if isinstance(other, Worker) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hostname)

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string} clock:{self.clock})"


class Task:
    """One task as its events describe it. What was not told is None. Equal to another of the same ``uuid``."""

    worker: Worker | None = None
    name = received = sent = started = succeeded = failed = retried = revoked = rejected = None
    args = kwargs = eta = expires = retries = result = exception = timestamp = runtime = traceback = None
    exchange = routing_key = root_id = parent_id = client = None
    state: str = states.PENDING
    clock: int = 0

    _kept = frozenset({"cluster_state", "merge_rules", "state", "worker"})
    _fields = (
        "uuid", "name", "state", "received", "sent", "started", "rejected", "succeeded", "failed", "retried", "revoked",
        "args", "kwargs", "eta", "expires", "retries", "worker", "result", "exception", "timestamp", "runtime",
        "traceback", "exchange", "routing_key", "clock", "client", "root", "root_id", "parent", "parent_id", "children",
    )  # fmt: skip
    _info_fields = (
        "args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception", "exchange", "routing_key",
        "root_id", "parent_id",
    )  # fmt: skip
    #: What an event that comes too late may still add.
    merge_rules: Mapping[str, Collection[str]] = {
        states.RECEIVED: ("name", "args", "kwargs", "parent_id", "root_id", "retries", "eta", "expires"),
    }

    def __init__(self, uuid: str | None = None, cluster_state: State | None = None, **fields: Any) -> None:
        self.uuid = uuid
        self.cluster_state = cluster_state
        self.__dict__.update(fields)

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Learn from an event; ``type_`` is what follows the dash."""
        known = TASK_EVENT_TO_STATE.get(type_)
        state = known if known is not None else type_.upper()
        if known is not None:
            self.__dict__[type_] = timestamp
        news = _settable(self, fields or {})
        late = states.RETRY not in (state, self.state) and states.precedence(state) > states.precedence(self.state)
        if late:
            kept = self.merge_rules.get(state)
            news = news if kept is None else {name: value for name, value in news.items() if name in kept}
        else:
            news.update(state=state, timestamp=timestamp)
        self.__dict__.update(news)

    def info(self, fields: Collection[str] | None = None, extra: Collection[str] = ()) -> dict[str, Any]:
        """Return what is known of it, for display."""
        names = [*(self._info_fields if fields is None else fields), *(extra or ())]
        return {name: value for name in names if (value := getattr(self, name, None)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values; relatives by their ids."""
        relatives = {
            "root": self.root_id,
            "parent": self.parent_id,
            "children": [child.id for child in self.children],
        }
        return {name: relatives[name] if name in relatives else getattr(self, name) for name in self._fields}

    @property
    def id(self) -> str | None:
        """The same as ``uuid``."""
        return self.uuid

    @property
    def origin(self) -> Any:
        """Who told of it: the worker, or the client."""
        return self.client if self.worker is None else self.worker.id

    @property
    def ready(self) -> bool:
        """Whether it has ended."""
        return self.state in states.READY_STATES

    @property
    def parent(self) -> Task | None:
        """The task that sent it, if that one is known."""
        return self._relative(self.parent_id)

    @property
    def root(self) -> Task | None:
        """The first task of its workflow, if that one is known."""
        return self._relative(self.root_id)

    @property
    def children(self) -> list[Task]:
        """The known tasks that it has sent."""
        known = self.cluster_state.tasks.values() if self.cluster_state is not None else ()
        return [task for task in known if task.parent_id is not None and task.parent_id == self.uuid]

    def _relative(self, id: str | None) -> Task | None:
        return self.cluster_state.tasks.get(id) if isinstance(id, str) and self.cluster_state is not None else None

    def __eq__(self, other: object) -> bool:
        return self.uuid == other.uuid if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"


class Latest(OrderedDict[str, T], Generic[T]):
    """A mapping that forgets what was put in first when it has more than ``limit``."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: str, value: T) -> None:
        super().__setitem__(key, value)
        while len(self) > self.limit:
            self.popitem(last=False)

    def __reduce__(self) -> Any:
        return _latest, (self.limit, dict(self))


def _latest(limit: int, items: Mapping[str, Any]) -> Latest[Any]:
    found: Latest[Any] = Latest(limit)
    found.update(items)
    return found


class _Index:
    """Tasks by one of their properties: ``index[key]`` is a set, ``index(key)`` yields pairs by time."""

    def __init__(self, state: State, key: Callable[[Task], Any]) -> None:
        self._state = state
        self._key = key

    def __getitem__(self, key: Any) -> set[Task]:
        return {task for task in self._state.tasks.values() if self._key(task) == key}

    def __call__(self, key: Any, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        ordered = self._state.tasks_by_time(reverse=reverse)
        return islice((pair for pair in ordered if self._key(pair[1]) == key), limit)


# Inside the class below the plain names are its attributes, which a subclass may replace.
_Worker = Worker
_Task = Task


class State:
    """Keeps what events tell. Give each event to :meth:`event`; safe to share between threads.

    ``callback(state, event)`` is called before each; ``on_node_join`` and ``on_node_leave`` with the worker.
    """

    Worker = _Worker
    Task = _Task

    def __init__(
        self,
        callback: Callable[[State, dict[str, Any]], object] | None = None,
        workers: Any = None,
        tasks: Any = None,
        taskheap: Any = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10000,
        on_node_join: Callable[[_Worker], object] | None = None,
        on_node_leave: Callable[[_Worker], object] | None = None,
        tasks_by_type: Any = None,
        tasks_by_worker: Any = None,
    ) -> None:
        self.event_callback = callback
        self.workers: Any = Latest[_Worker](max_workers_in_memory) if workers is None else workers
        self.tasks: Any = Latest[_Task](max_tasks_in_memory) if tasks is None else tasks
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        self.event_count = 0
        self.task_count = 0
        self.handlers: dict[str, Callable[[str, dict[str, Any]], Any]] = {}
        self._seen_types: Latest[None] = Latest(max_tasks_in_memory)
        self._mutex = threading.RLock()
        for task in self.tasks.values():
            task.cluster_state = self

    def event(self, event: dict[str, Any]) -> tuple[Any, str] | None:
        """Learn from an event, as the receiver gives it; return ((worker or task, whether it is new), subject)."""
        with self._mutex:
            return self._event(event)

    def _event(self, event: dict[str, Any]) -> tuple[Any, str] | None:
        self.event_count += 1
        if self.event_callback is not None:
            self.event_callback(self, event)
        group, _, subject = str(event.get("type", "")).partition("-")
        handler = self.handlers.get(group)
        if handler is not None:
            return handler(subject, event), subject
        if not isinstance(event.get("hostname"), str) or event.get("timestamp") is None:
            return None
        if group == "worker":
            return self._worker_event(subject, event), subject
        if group == "task" and isinstance(event.get("uuid"), str):
            return self._task_event(subject, event), subject
        return None

    def _worker_event(self, subject: str, event: dict[str, Any]) -> tuple[_Worker, bool]:
        name, offline = event["hostname"], subject == "offline"
        worker = self.workers.get(name)
        created = worker is None and not offline
        if worker is None:
            worker = self.Worker(name)
            if not offline:
                self.workers[name] = worker
        worker.event(subject, event["timestamp"], event.get("local_received"), event)
        if self.on_node_join is not None and (created or subject == "online"):
            self.on_node_join(worker)
        if offline and self.on_node_leave is not None:
            # Who is not told keeps it, to see that it is gone.
            self.on_node_leave(worker)
            self.workers.pop(name, None)
        return worker, created

    def _task_event(self, subject: str, event: dict[str, Any]) -> tuple[_Task, bool]:
        task, created = self.get_or_create_task(event["uuid"])
        if subject == "sent":
            task.client = event["hostname"]
        else:
            worker, _ = self.get_or_create_worker(event["hostname"])
            task.worker = worker
            worker.event(None, event["timestamp"], event.get("local_received"))
        if subject == "received":
            self.task_count += 1
        task.event(subject, event["timestamp"], event.get("local_received"), event)
        if isinstance(task.name, str):
            self._seen_types[task.name] = None
        return task, created

    def get_or_create_worker(self, hostname: str, **fields: Any) -> tuple[_Worker, bool]:
        """Return the worker of this name and whether it is new."""
        worker = self.workers.get(hostname)
        if worker is None:
            worker = self.workers[hostname] = self.Worker(hostname, **fields)
            return worker, True
        worker.update(fields)
        return worker, False

    def get_or_create_task(self, uuid: str) -> tuple[_Task, bool]:
        """Return the task of this id and whether it is new."""
        task = self.tasks.get(uuid)
        if task is not None:
            return task, False
        task = self.tasks[uuid] = self.Task(uuid, cluster_state=self)
        return task, True

    def freeze_while(self, fun: Callable[..., Any], *args: Any, clear_after: bool = False, **kwargs: Any) -> Any:
        """Call the function while no event is taken, and forget everything afterwards if so wished."""
        with self._mutex:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self.clear()

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget the tasks that have ended, or with ``ready=False`` all."""
        self._clear_tasks(ready)

    # Celery's name, which subclasses override.
    def _clear_tasks(self, ready: bool = True) -> None:
        with self._mutex:
            kept = {} if not ready else {id: task for id, task in self.tasks.items() if not task.ready}
            self.tasks.clear()
            self.tasks.update(kept)

    def clear(self, ready: bool = True) -> None:
        """Do :meth:`clear_tasks`, and forget the workers and the counts."""
        with self._mutex:
            self.workers.clear()
            self._clear_tasks(ready)
            self.event_count = self.task_count = 0

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, _Task]]:
        """Yield pairs of id and task, the one that is known longest first."""
        return islice(list(self.tasks.items()), limit)

    def tasks_by_time(self, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, _Task]]:
        """Yield pairs of id and task, those with the latest news first unless ``reverse`` is false."""
        known = sorted(self.tasks.items(), key=_when, reverse=reverse)
        return islice(known, limit)

    tasks_by_timestamp = tasks_by_time

    @property
    def tasks_by_type(self) -> _Index:
        """The tasks of one name."""
        return _Index(self, lambda task: task.name)

    @property
    def tasks_by_worker(self) -> _Index:
        """The tasks of one worker, by its node name."""
        return _Index(self, lambda task: task.worker.hostname if task.worker is not None else None)

    def task_types(self) -> list[str]:
        """Return the names of all tasks that were heard of, or the latest of very many."""
        return sorted(self._seen_types)

    def alive_workers(self) -> Iterator[_Worker]:
        """Yield the workers that were heard of lately."""
        return (worker for worker in list(self.workers.values()) if worker.alive)

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mutex"}

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)
        self._mutex = threading.RLock()


def _when(pair: tuple[str, _Task]) -> tuple[int, float]:
    task = pair[1]
    return (task.clock if isinstance(task.clock, int) else 0), _finite(task.timestamp, 0.0)
