"""The commands that tell what a worker knows, with Celery's names and replies."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from umbel import __version__
from umbel.drivers import mask, scheme_of, split
from umbel.exceptions import CeleryError
from umbel.interfaces import Peeked, QueueSpec
from umbel.interfaces import Place as Where
from umbel.message import Call, decode_call, decode_envelope
from umbel.revoking import Revocation
from umbel.saferepr import saferepr
from umbel.sensitive import veil_of
from umbel.serialization import accepted_by
from umbel.worker.control import inspect_command, ok
from umbel.worker.desk import Desk, Holder
from umbel.worker.slots import Started

logger = logging.getLogger("celery.worker.control")

SOFTWARE_INFO: Final = {"sw_ident": "py-umbel", "sw_ver": __version__, "sw_sys": platform.system()}
#: The most entries of one reply.
MOST: Final = 10_000
_LONG: Final = 65536  # bytes of a message whose arguments are only shown in short
_ROOM: Final = 1 << 20  # bytes of the messages of one reply whose arguments are shown whole
_SHOWN: Final = ("exchange", "routing_key", "rate_limit")
_samples: Final[deque[tuple[float, int]]] = deque(maxlen=100)


@inspect_command(default_timeout=0.2)
def ping(state: Any, **kwargs: Any) -> Any:
    """Ping worker(s)."""
    return ok("pong")


@inspect_command()
def report(state: Any, **kwargs: Any) -> Any:
    """Information about the installation for bug reports."""
    app = state.app
    lines = [
        f"software -> umbel:{__version__} py:{platform.python_version()}",
        f"platform -> system:{platform.system()} arch:{platform.machine()}",
        f"            kernel version:{platform.release()} imp:{platform.python_implementation()}",
        f"settings -> transport:{scheme_of(split(app.urls.read)[0])} results:{mask(app.urls.backend or 'disabled://')}",
        "",
        app.conf.humanize(),
    ]
    return ok("\n".join(lines))


def strtobool(text: Any) -> bool:
    """Return what a word of the command line says. Raises ``ValueError`` for one that says neither."""
    word = str(text).strip().lower()
    if word in ("1", "true", "yes", "on", "y", "t"):
        return True
    if word in ("0", "false", "no", "off", "n", "f", ""):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


@inspect_command(alias="dump_conf", signature="[include_defaults=False]", args=[("with_defaults", strtobool)])
def conf(state: Any, with_defaults: bool = False, **kwargs: Any) -> Any:
    """List configuration."""
    table = state.app.conf.table(with_defaults=bool(with_defaults))
    return {name: _plain(value) for name, value in table.items() if not str(name).startswith("__")}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what it has not, as a text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return saferepr(value)


# -- tasks -------------------------------------------------------------------------------------------------------


def decoded(app: Any, peeked: Peeked) -> Call | None:
    """Return the call in a message, or None where it cannot be read."""
    try:
        return decode_call(peeked.message or decode_envelope(peeked.raw), accepted_by(app.conf))
    except CeleryError:
        return None


def info(desk: Desk, peeked: Peeked, *, pid: int | None = None, since: float | None = None, safe: bool = False) -> Any:
    """Return what Celery tells about a task; None where the message cannot be read.

    :param since: monotonic seconds at which it started.
    """
    call = decoded(desk.app, peeked)
    if call is None:
        return None
    short = safe or len(peeked.raw) > _LONG
    headers, properties = call.headers, call.properties
    if (veil := veil_of(desk.app.registry.get(call.task))) is not None:
        args, kwargs = veil.reprs(call.args, call.kwargs) if short else veil.values(call.args, call.kwargs)
    else:
        args = headers.get("argsrepr") or saferepr(call.args) if short else call.args
        kwargs = headers.get("kwargsrepr") or saferepr(call.kwargs) if short else call.kwargs
    given = properties.get("delivery_info")
    where = given if isinstance(given, dict) else {}
    return {
        "id": call.id,
        "name": call.task,
        "args": args,
        "kwargs": kwargs,
        "type": call.task,
        "hostname": desk.hostname,
        "time_start": None if since is None else time.time() - (time.monotonic() - since),
        "acknowledged": False,
        "delivery_info": {
            "exchange": where.get("exchange", ""),
            "routing_key": where.get("routing_key") or peeked.queue,
            "priority": properties.get("priority"),
            "redelivered": bool(where.get("redelivered") or headers.get("redelivered")),
        },
        "worker_pid": pid,
    }


def running(desk: Desk) -> Iterator[tuple[Holder, Any, Peeked]]:
    """Yield what runs: the process, its slot's entry, and the message."""
    for holder in desk.holders():
        if holder.running:
            held = desk.held(holder.consumer)
            for each in holder.running:
                if each.tag in held:
                    yield holder, each, held[each.tag]


@inspect_command(alias="dump_active")
def active(state: Any, safe: bool | None = False, **kwargs: Any) -> Any:
    """List of tasks currently being executed."""
    desk: Desk = state.desk
    found = [
        info(desk, peeked, pid=holder.pid, since=each.since, safe=bool(safe)) for holder, each, peeked in running(desk)
    ]
    if state.app.broker.features.lease == "connection":
        # Where nobody can look at what others hold, the worker knows the tasks that run, and not their arguments.
        seen = {each["id"] for each in found if each is not None}
        found += [
            _known(desk, holder.pid, each)
            for holder in desk.holders()
            for each in holder.running
            if each.task_id and each.task_id not in seen
        ]
    return [each for each in found if each is not None]


def _known(desk: Desk, pid: int, running: Started) -> dict[str, Any]:
    return {
        "id": running.task_id,
        "name": running.task,
        "args": [],
        "kwargs": {},
        "type": running.task,
        "hostname": desk.hostname,
        "time_start": time.time() - (time.monotonic() - running.since),
        "acknowledged": False,
        "delivery_info": {},
        "worker_pid": pid,
    }


@inspect_command(alias="dump_reserved")
def reserved(state: Any, **kwargs: Any) -> Any:
    """List of currently reserved tasks, not including scheduled/active."""
    found: list[Any] = []
    for holder in state.desk.holders():
        started = {each.tag for each in holder.running}
        for tag, peeked in state.desk.held(holder.consumer).items():
            if tag not in started and len(found) < MOST:
                found.append(info(state.desk, peeked))
    return [each for each in found if each is not None]


@inspect_command(alias="dump_schedule")
def scheduled(state: Any, **kwargs: Any) -> Any:
    """List of currently scheduled ETA/countdown tasks."""
    found: list[Any] = []
    room = _ROOM
    for queue in state.desk.queues:
        for peeked in state.app.broker.peek(queue.name, place=Where.SCHEDULED, limit=MOST - len(found)):
            room -= len(peeked.raw)
            request = info(state.desk, peeked, safe=room < 0)
            if request is not None:
                eta = peeked.at.isoformat() if peeked.at is not None else None
                found.append({"eta": eta, "priority": 6, "request": request})
    return found


@inspect_command(alias="dump_revoked")
def revoked(state: Any, **kwargs: Any) -> Any:
    """List of revoked task-ids."""
    return sorted(state.desk.revoked().ids)


@inspect_command(variadic="ids", signature="[id1 [id2 [... [idN]]]]")
def query_task(state: Any, ids: Any = (), **kwargs: Any) -> Any:
    """Query for task information by id."""
    wanted = {ids} if isinstance(ids, str) else set(map(str, ids))
    lists = {
        "scheduled": [each["request"] for each in scheduled(state)],
        "reserved": reserved(state),
        "active": active(state),
    }
    return {each["id"]: [name, each] for name, found in lists.items() for each in found if each["id"] in wanted}


@inspect_command(alias="dump_tasks", variadic="taskinfoitems", signature="[attr1 [attr2 [... [attrN]]]]")
def registered(state: Any, taskinfoitems: Any = None, builtins: bool = False, **kwargs: Any) -> Any:
    """List of registered tasks."""
    names = [str(name) for name in taskinfoitems or _SHOWN if not str(name).startswith("_")]
    tasks = state.app.tasks
    return [_described(tasks[name], names) for name in sorted(tasks) if builtins or not name.startswith("celery.")]


def _described(task: Any, names: Sequence[str]) -> str:
    values = ((name, getattr(task, name, None)) for name in names)
    fields = " ".join(f"{name}={value}" for name, value in values if value is not None)
    return f"{task.name} [{fields}]" if fields else str(task.name)


# -- the worker --------------------------------------------------------------------------------------------------


@inspect_command()
def active_queues(state: Any, **kwargs: Any) -> Any:
    """List the task queues a worker is currently consuming from."""
    paused = state.desk.paused
    # Celery's workers know no pause: what they read they say as ever.
    return [{**_queue(queue), **({"paused": True} if queue.name in paused else {})} for queue in state.desk.queues]


def _queue(queue: QueueSpec) -> dict[str, Any]:
    arguments = dict(queue.arguments)
    exchange = {
        "name": queue.exchange or queue.name,
        "type": queue.exchange_type,
        "arguments": None,
        "durable": queue.durable,
        "passive": False,
        "auto_delete": False,
        "delivery_mode": None,
        "no_declare": False,
    }
    nothing = ("binding_arguments", "consumer_arguments", "alias", "no_declare", "expires", "message_ttl")
    return {
        "name": queue.name,
        "exchange": exchange,
        "routing_key": queue.routing_key or queue.name,
        "queue_arguments": arguments or None,
        "durable": queue.durable,
        "exclusive": False,
        "auto_delete": False,
        "no_ack": False,
        "bindings": [],
        **dict.fromkeys(nothing),
        "max_length": arguments.get("x-max-length"),
        "max_length_bytes": arguments.get("x-max-length-bytes"),
        "max_priority": queue.max_priority,
    }


@inspect_command()
def stats(state: Any, **kwargs: Any) -> Any:
    """Request worker statistics/information."""
    desk: Desk = state.desk
    plan, ended, holders = desk.plan, desk.totals(), desk.holders()
    # As in Celery a task counts from its start.
    total = Counter(each.task for holder in holders for each in holder.running)
    total.update(ended)
    found = {
        "total": dict(total),
        "pid": os.getpid(),
        "clock": str(desk.shared.value),
        "uptime": int(time.time() - desk.started_at),
        "pool": {
            "implementation": f"umbel.worker:{plan.pool}",
            "max-concurrency": desk.size,
            "processes": [holder.pid for holder in holders],
            "max-tasks-per-child": plan.max_tasks or "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": [plan.soft_time_limit or 0, plan.time_limit or 0],
            "writes": "N/A",
        },
        "broker": _broker(state.app),
        "prefetch_count": plan.prefetch_max or 0,
        "rusage": _usage(),
    }
    if desk.autoscale is not None:
        most, least = desk.autoscale
        found["autoscaler"] = {"max": most, "min": least, "current": desk.size, "qty": desk.size}
    return found


def _broker(app: Any) -> dict[str, Any]:
    from urllib.parse import urlsplit

    first = split(app.urls.read)[0]
    parts = urlsplit(first)
    return {
        "hostname": parts.hostname,
        "userid": parts.username,
        "virtual_host": parts.path.strip("/") or "/",
        "port": parts.port,
        "insist": False,
        "ssl": bool(app.conf.broker_use_ssl),
        "transport": scheme_of(first),
        "connect_timeout": app.conf.broker_connection_timeout,
        "transport_options": _plain(app.conf.table(with_defaults=True).get("broker_transport_options")),
        "login_method": app.conf.broker_login_method,
        "uri_prefix": None,
        "heartbeat": None if app.conf.broker_heartbeat is None else float(app.conf.broker_heartbeat),
        "failover_strategy": "round-robin",
        "alternates": [],
        "credential_provider": None,
    }


def _usage() -> Any:
    try:
        import resource
    except ImportError:  # Windows
        return "N/A"
    usage = resource.getrusage(resource.RUSAGE_SELF)
    names = (
        "utime stime maxrss ixrss idrss isrss minflt majflt nswap inblock oublock msgsnd msgrcv nsignals nvcsw nivcsw"
    )
    return {name: getattr(usage, f"ru_{name}") for name in names.split()}


@inspect_command()
def clock(state: Any, **kwargs: Any) -> Any:
    """Get current logical clock value."""
    return {"clock": state.desk.shared.value}


@inspect_command(visible=False)
def hello(state: Any, from_node: str, revoked: Any = None, **kwargs: Any) -> Any:
    """Request mingle sync-data."""
    if from_node == state.hostname:
        return None
    logger.info("sync with %s", from_node)
    # A list of ids, or with their times in a mapping: those of a Celery worker that starts beside us.
    ids = [str(id) for id in revoked or ()][:MOST]
    new = [id for id in ids if id not in state.desk.revoked().ids]
    if new:
        state.desk.revoke(Revocation(ids=new, at=time.time()))
    return {"revoked": sorted(state.desk.revoked().ids), "clock": state.desk.shared.forward()}


# -- memory ------------------------------------------------------------------------------------------------------


@inspect_command()
def memsample(state: Any, **kwargs: Any) -> Any:
    """Sample current RSS memory usage."""
    used = _rss()
    _samples.append((time.time(), used))
    return _size(used)


@inspect_command(args=[("samples", int)], signature="[n_samples=10]")
def memdump(state: Any, samples: int = 10, **kwargs: Any) -> Any:
    """Dump statistics of previous memsample requests."""
    lines = [f"-> {time.strftime('%H:%M:%S', time.localtime(at))}: {_size(used)}" for at, used in _samples]
    lines = lines[-max(int(samples), 1) :]
    return "\n".join(["- rss (sample):", *lines, f"- rss (end): {_size(_rss())}."])


@inspect_command(
    default_timeout=60.0,
    args=[("type", str), ("num", int), ("max_depth", int)],
    signature="[object_type=Request] [num=200 [max_depth=10]]",
)
def objgraph(state: Any, **kwargs: Any) -> Any:
    """Refused: no worker of ours draws graphs of its objects."""
    raise NotImplementedError("objgraph is not supported; 'memsample' tells how much memory the worker uses")


def _rss() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _size(used: float) -> str:
    for unit in ("b", "kB", "MB"):
        if used < 1024:
            return f"{used:.1f}{unit}"
        used /= 1024
    return f"{used:.1f}GB"
