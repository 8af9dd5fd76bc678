"""What one worker was told to be: settings and options resolved once, before anything is started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from umbel import settings
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import QueueSpec
from umbel.utils.nodenames import default_nodename, host_format
from umbel.worker.engine import EngineOptions
from umbel.worker.executors import POOLS
from umbel.worker.slots import RING

#: By how many tasks at once a process of ``-P threads`` or ``-P asyncio`` can grow while it runs.
GROWTH = 32

_FORKING_POOLS = ("prefork", "processes")
_CGROUP_QUOTA = "/sys/fs/cgroup/cpu.max"


class WorkerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's orders. Times are in seconds, memory in KiB; ``concurrency`` is that of one process."""

    hostname: str
    pool: str
    concurrency: int
    processes: int
    queues: tuple[QueueSpec, ...]
    prefetch_max: int | None = None
    settle_window: float = 0.002
    max_tasks: int | None = None
    max_memory: int | None = None
    max_age: float | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    stuck_after: float | None = None
    shutdown_timeout: float | None = 25.0
    soft_shutdown_timeout: float = 0.0
    lease_ttl: float = 30.0
    lease_heartbeat: float = 10.0
    lease_sweep: float = 10.0
    logfile: str | None = None
    loglevel: str | int = "WARNING"
    log_json: bool = False
    task_events: bool = False
    health_port: str | None = None
    heartbeat: float | None = 2.0  # between two heartbeat events; None for none
    autoscale: tuple[int, int] | None = None  # at most and at least so many processes
    start_method: str = "fork"  # how processes are started: fork or spawn
    beat: bool = False  # whether it sends periodic tasks too
    scheduler: str | None = None  # what beat is, if not the setting says it
    schedule_filename: str | None = None  # for a scheduler that keeps a file

    @property
    def forks(self) -> bool:
        """Whether each process runs one task at a time in its main thread."""
        return self.pool in _FORKING_POOLS

    @property
    def slot_capacity(self) -> int:
        """How many executions of one process may have started without being settled."""
        return RING if self.forks or self.pool == "solo" else 2 * (self.concurrency + GROWTH) + 8

    @property
    def total(self) -> int:
        """How many tasks may run at once in the whole worker."""
        return self.processes * self.concurrency

    def process_name(self, number: int) -> str:
        """Return the name of a process in the log, as Celery has it."""
        return f"{self.start_method.capitalize()}PoolWorker-{number}"

    def engine_options(self) -> EngineOptions:
        """Return the orders of one process."""
        return EngineOptions(
            queues=[queue.name for queue in self.queues],
            hostname=self.hostname,
            concurrency=self.concurrency,
            prefetch_max=self.prefetch_max,
            settle_window=self.settle_window,
            max_tasks=self.max_tasks,
            max_memory=self.max_memory,
            time_limit=self.time_limit,
            soft_time_limit=self.soft_time_limit,
        )


def make_plan(app: Any, options: Mapping[str, Any] | None = None) -> WorkerPlan:
    """Resolve options (what was given on the command line; None means not given) over the app's settings.

    Raises :exc:`ImproperlyConfigured`, saying which value and what to write instead, also where settings contradict
    each other.
    """
    settings.check(app.conf)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    conf = app.conf
    pool = _pool(given.get("pool", conf.worker_pool))
    wanted = _concurrency(given.get("concurrency", conf.worker_concurrency))
    factor = _at_least_one("--processes", given.get("processes", conf.worker_processes) or 1)
    forks = pool in _FORKING_POOLS
    concurrency = 1 if forks or pool == "solo" else wanted
    scale = _autoscale(given.get("autoscale"), pool)
    soft, hard = _limits(conf, given)
    return WorkerPlan(
        hostname=node_of(given.get("hostname")),
        pool=pool,
        concurrency=concurrency,
        processes=scale[1] if scale else wanted * factor if forks else factor,
        queues=_queues(app, given.get("queues"), given.get("exclude_queues")),
        prefetch_max=_prefetch(conf, given, concurrency),
        settle_window=conf.settle_window,
        max_tasks=given.get("max_tasks_per_child", conf.worker_max_tasks_per_child) or None,
        max_memory=given.get("max_memory_per_child", conf.worker_max_memory_per_child) or None,
        max_age=given.get("max_age_per_child", conf.worker_max_age_per_child) or None,
        time_limit=hard,
        soft_time_limit=soft,
        stuck_after=conf.stuck_after,
        shutdown_timeout=conf.worker_shutdown_timeout,
        soft_shutdown_timeout=conf.worker_soft_shutdown_timeout or 0.0,
        lease_ttl=conf.lease_ttl,
        lease_heartbeat=conf.lease_heartbeat,
        lease_sweep=conf.lease_sweep,
        logfile=given.get("logfile"),
        loglevel=given.get("loglevel", "WARNING"),
        log_json=given["log_format"] == "json" if "log_format" in given else bool(conf.worker_log_json),
        task_events=bool(given.get("task_events", conf.worker_send_task_events)),
        health_port=given.get("health_port"),
        heartbeat=None if given.get("without_heartbeat") else float(given.get("heartbeat_interval") or 2.0),
        autoscale=scale,
        start_method=_start_method(given.get("pool_start_method", conf.worker_pool_start_method)),
        beat=bool(given.get("beat")),
        scheduler=given.get("scheduler"),
        schedule_filename=given.get("schedule_filename"),
    )


def node_of(hostname: str | None) -> str:
    """Return the node name that ``-n`` means, with its abbreviations expanded.

    >>> node_of("w1@box")
    'w1@box'
    """
    return host_format(default_nodename(hostname))


def cpus() -> int:
    """Return how many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _cpu_quota() -> int:
    """Return the CPUs that the container grants, rounded up, or those of the machine."""
    try:
        with open(_CGROUP_QUOTA, encoding="ascii") as file:
            quota, period = file.read().split()
        granted = -(-int(quota) // int(period))
    except (OSError, ValueError):
        return cpus()
    return max(1, min(granted, cpus()))


def _pool(value: Any) -> str:
    pool = str(value)
    if pool in ("eventlet", "gevent"):
        raise ImproperlyConfigured(f"-P {pool} is not supported; use -P asyncio, or -P threads for blocking code")
    if pool not in (*POOLS, "processes"):
        raise ImproperlyConfigured(f"unknown pool {pool!r}; use one of: {', '.join(POOLS)}")
    return "prefork" if pool == "processes" else pool


def _start_method(value: Any) -> str:
    if value not in ("fork", "spawn"):
        raise ImproperlyConfigured(
            f"worker_pool_start_method (--pool-start-method) is {value!r}; use fork, or spawn for an app that cannot "
            "be forked"
        )
    # Windows knows nothing else.
    return str(value) if hasattr(os, "fork") else "spawn"


def _concurrency(value: Any) -> int:
    if value == "auto":
        return _cpu_quota()
    return cpus() if not value else _at_least_one("-c/--concurrency", value)


def _autoscale(value: Any, pool: str) -> tuple[int, int] | None:
    """Return at most and at least how many processes ``--autoscale max,min`` asks for."""
    if not value:
        return None
    if pool not in _FORKING_POOLS:
        raise ImproperlyConfigured(f"--autoscale counts processes, so it needs -P prefork, not -P {pool}")
    most, _, least = str(value).partition(",")
    found = _at_least_one("--autoscale (max)", most), _at_least_one("--autoscale (min)", least or 1)
    if found[0] < found[1]:
        raise ImproperlyConfigured(f"--autoscale takes max,min, and {found[0]} is less than {found[1]}")
    return found


def _at_least_one(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ImproperlyConfigured(f"{name} must be a whole number from 1, not {value!r}")
    return number


def _prefetch(conf: Any, given: Mapping[str, Any], concurrency: int) -> int | None:
    if given.get("disable_prefetch") or conf.worker_disable_prefetch:
        return 1
    multiplier = given.get("prefetch_multiplier")
    if multiplier is None and "worker_prefetch_multiplier" in conf.without_defaults():
        # Only a bound that somebody asked for: without one the engine reads ahead as far as it pays.
        multiplier = conf.worker_prefetch_multiplier
    return int(multiplier) * concurrency if multiplier else None


def _limits(conf: Any, given: Mapping[str, Any]) -> tuple[float | None, float | None]:
    soft = given.get("soft_time_limit", conf.task_soft_time_limit) or None
    hard = given.get("time_limit", conf.task_time_limit) or None
    if (soft is not None and soft < 0) or (hard is not None and hard < 0):
        raise ImproperlyConfigured(f"a time limit cannot be negative (soft {soft}, hard {hard}); 0 is for none")
    if soft is not None and hard is not None and soft > hard:
        raise ImproperlyConfigured(
            f"the soft time limit ({soft} s) must not be longer than the hard one ({hard} s): see "
            "task_soft_time_limit, task_time_limit, --soft-time-limit and --time-limit"
        )
    return soft, hard


def _queues(app: Any, names: Iterable[str] | None, excluded: Iterable[str] | None) -> tuple[QueueSpec, ...]:
    wanted = list(names) if names else None
    without = set(excluded or ())
    queues = tuple(queue for queue in app.queues(wanted) if queue.name not in without)
    if not queues:
        raise ImproperlyConfigured("no queue is left to consume from; check -Q/--queues and -X/--exclude-queues")
    return queues
