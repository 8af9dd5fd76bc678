"""What Celery has and Umbel does not, and what to do instead. Errors and the compatibility table say it."""

from __future__ import annotations

from typing import Final

_BACKEND = "Umbel has no such result backend yet: use redis://, sqlite:/// or memory://"
_PIPES = "Umbel's worker processes share nothing and no pool feeds them; see 'umbel worker --help' for -P"
_STEPS = "Umbel's worker is not made of this step; app.steps['worker'] takes steps of your own"
_PRIVATE = "private to Celery"
_EVENTLET = "Umbel has no eventlet and gevent pools: use -P asyncio with coroutine tasks, or -P threads"

#: A module, or a module and a name -> what to do instead. A module stands for all that is in it.
REFUSED: Final[dict[str, str]] = {
    "celery.app.builtins": "Umbel registers Celery's built-in tasks by itself",
    "celery.backends.asynchronous": "a backend of Umbel implements umbel.interfaces.ResultBackend",
    "celery.concurrency.asynpool": _PIPES,
    "celery.concurrency.eventlet": _EVENTLET,
    "celery.concurrency.gevent": _EVENTLET,
    "celery.concurrency.prefork": _PIPES,
    "celery.concurrency.solo": _PIPES,
    "celery.concurrency.thread": _PIPES,
    "celery.contrib.sphinx": "document tasks with sphinx.ext.autodoc: they are objects with a docstring",
    "celery.utils.annotations": "private to Celery; typing.get_type_hints does it",
    "celery.utils.quorum_queues": "private to Celery; quorum queues need no detection here",
    "celery.utils.static": "private to Celery",
    "celery.worker.autoscale": "scale with --autoscale",
    "celery.worker.heartbeat": _STEPS,
    "celery.worker.loops": _STEPS,
    "celery.worker.pidbox": _STEPS,
    "celery.apps.multi.Cluster": "start and stop workers with 'umbel multi', or by systemd",
    "celery.bin.multi.MultiTool": "start and stop workers with 'umbel multi', or by systemd",
    "celery.backends.redis.SentinelBackend": "the URL decides: sentinel:// is read by the same backend",
    "celery.beat.BeatPidbox": "ping is answered by 'umbel beat --enable-remote-control'",
    "celery.platforms.DaemonContext": "a worker is put into the background by 'umbel worker --detach', or by systemd",
    "celery.contrib.migrate.start_filter": "celery.contrib.migrate.move takes a predicate that may return None",
    "celery.security.utils.reraise_errors": _PRIVATE,
    "celery.utils.graph.CycleError": "umbel.utils.graph orders what is in a cycle as well as it can",
    "celery.utils.graph.DOT": "umbel.utils.graph.DependencyGraph.to_dot writes a graph",
    "celery.utils.graph.GraphFormatter": "umbel.utils.graph.DependencyGraph.to_dot writes a graph",
    "celery.utils.threads.bound_open_broker_sockets": _PRIVATE,
    "celery.utils.timer2.Schedule": "celery.utils.timer2.Timer has the same methods",
    "celery.worker.consumer.consumer.dump_body": _PRIVATE,
    "celery.worker.consumer.consumer.Evloop": _STEPS,
    **{
        f"celery.utils.sysinfo.{name}": "celery.utils.sysinfo.available_cpu_count says how many CPUs there are"
        for name in ("CpuBudget", "cgroup_cpu_quota", "cpu_budget")
    },
    **{
        f"celery.bin.base.{name}": _PRIVATE
        for name in (
            "DaemonOption", "ISO8601DateTime", "ISO8601DateTimeOrFloat", "JsonArray", "JsonObject", "LogLevel",
            "consume_preload_options", "handle_remote_command_error",
        )
    },
    **{
        f"celery.bin.worker.{name}": _PRIVATE
        for name in (
            "AUTOSCALE", "Autoscale", "CELERY_BEAT", "CeleryBeat", "HOSTNAME", "Hostname", "WORKERS_POOL",
            "WorkersPool", "detach",
        )
    },
    **{
        f"celery.backends.{name}": _BACKEND
        for name in (
            "arangodb", "azureblockblob", "cassandra", "consul", "cosmosdbsql", "couchbase", "couchdb", "database",
            "dynamodb", "elasticsearch", "filesystem", "gcs", "mongodb", "s3",
        )
    },
}  # fmt: skip

#: A module of Umbel that is not there yet -> what to do until it is.
NOT_YET: Final[dict[str, str]] = {}


def refusal(name: str) -> str | None:
    """Return what to say about a dotted name that is refused, or None for any other."""
    found = name
    while found:
        if found in REFUSED:
            return f"{name}: {REFUSED[found]}"
        found = found.rpartition(".")[0]
    return None
