"""The commands that change a worker, with Celery's names and replies."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from umbel.interfaces import QueueSpec
from umbel.revoking import Revocation, RevokedTasks, signal_name, stamp_values
from umbel.utils.rates import per_second
from umbel.worker.control import control_command, nok, ok
from umbel.worker.inspect_commands import decoded, running

logger = logging.getLogger("celery.worker.control")

# -- tasks -------------------------------------------------------------------------------------------------------


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(
    state: Any,
    task_id: Any,
    terminate: bool = False,
    signal: Any = None,
    stored: bool = False,
    expires: float | None = None,
    **kwargs: Any,
) -> Any:
    """Revoke task by task id (or list of ids).

    ``stored`` says that whoever asks has written it down already, where every worker finds it.
    """
    ids, name = _words(task_id), signal_name(signal)
    if stored:
        state.desk.look()
    # Where workers and clients have different result backends, what was written down may be elsewhere.
    unknown = not state.desk.revoked().ids.issuperset(ids)
    if unknown or (terminate and not stored):
        revocation = Revocation(ids=ids, terminate=bool(terminate), signal=name, at=time.time(), expires=expires or 0.0)
        state.desk.revoke(revocation)
        state.desk.look()
    if not terminate:
        return ok(f"tasks {set(ids)} flagged as revoked")
    here = {each.task_id for holder in state.desk.holders() for each in holder.running} & set(ids)
    return ok(f"terminate: {', '.join(sorted(here))}" if here else "terminate: tasks unknown")


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    """Terminate task by task id (or list of ids)."""
    return revoke(state, task_id, terminate=True, signal=signal)


@control_command(variadic="headers", signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]")
def revoke_by_stamped_headers(
    state: Any,
    headers: Any,
    terminate: bool = False,
    signal: Any = None,
    stored: bool = False,
    expires: float | None = None,
    **kwargs: Any,
) -> Any:
    """Revoke task by header (or list of headers)."""
    wanted = headers if isinstance(headers, Mapping) else dict(_pair(word) for word in _words(headers))
    if not stored:
        stamped = {name: sorted(stamp_values(value)) for name, value in wanted.items()}
        state.desk.revoke(
            Revocation(
                ids=(),
                terminate=bool(terminate),
                signal=signal_name(signal),
                at=time.time(),
                stamps=stamped,
                expires=expires or 0.0,
            )
        )
    state.desk.look()
    if not terminate:
        return ok(f"headers {dict(wanted)} flagged as revoked, but not terminated")
    stamps = RevokedTasks(stamps={name: stamp_values(value) for name, value in wanted.items()})
    ids = []
    for _, _, peeked in running(state.desk):
        call = decoded(state.app, peeked)
        if call is not None and stamps.stamped(call.headers.get("stamps")):
            ids.append(call.id)
    if not ids:
        return ok(f"headers {dict(wanted)} were not terminated")
    import signal as signals

    number = signals.Signals[signal_name(signal)].value
    state.desk.change(lambda: state.desk.terminate(ids, number))
    return ok(f"headers {dict(wanted)} revoked")


def _pair(word: str) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not separator:
        raise ValueError(f"{word!r} is no header; write name=value")
    return name, value


def _words(given: Any) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else [str(each) for each in given]


@control_command(
    args=[("task_name", str), ("rate_limit", str)], signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>"
)
def rate_limit(state: Any, task_name: str, rate_limit: Any, **kwargs: Any) -> Any:
    """Tell worker(s) to modify the rate limit for a task by type."""
    try:
        rate = per_second(rate_limit)
    except ValueError as error:
        return nok(f"Invalid rate limit string: {error!r}")
    desk, task = state.desk, state.app.tasks.get(task_name)
    if task is None:
        logger.error("Rate limit attempt for unknown task %s", task_name)
        return nok("unknown task")
    desk.change(lambda: desk.order(rates={**desk.orders.rates, task_name: rate_limit or None}))
    task.rate_limit = rate_limit
    if not rate:
        logger.info("Rate limits disabled for tasks of type %s", task_name)
        return ok("rate limit disabled successfully")
    logger.info("New rate limit for tasks of type %s: %s.", task_name, rate_limit)
    return ok("new rate limit set successfully")


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)], signature="<task_name> <soft_secs> [hard_secs]"
)
def time_limit(
    state: Any, task_name: str | None = None, hard: float | None = None, soft: float | None = None, **kwargs: Any
) -> Any:
    """Tell worker(s) to modify the time limit for task by type."""
    if task_name is None or state.app.tasks.get(task_name) is None:
        logger.error("Change time limit attempt for unknown task %s", task_name)
        return nok("unknown task")
    limits = [None if each is None else float(each) for each in (soft, hard)]
    if any(each is not None and each < 0 for each in limits):
        return nok(f"a time limit cannot be negative (soft {soft}, hard {hard})")
    if hard and not state.desk.plan.forks and state.desk.plan.pool == "solo":
        return nok("a worker of one process cannot keep a hard time limit; use a soft one")
    state.desk.change(lambda: state.desk.limit_time(task_name, *limits))
    logger.info("New time limits for tasks of type %s: soft=%s hard=%s", task_name, soft, hard)
    return ok("time limits set successfully")


# -- events ------------------------------------------------------------------------------------------------------


@control_command()
def enable_events(state: Any, **kwargs: Any) -> Any:
    """Tell worker(s) to send task-related events."""
    if state.desk.orders.events:
        return ok("task events already enabled")
    state.desk.change(lambda: state.desk.order(events=True))
    logger.info("Events of group {task} enabled by remote.")
    return ok("task events enabled")


@control_command()
def disable_events(state: Any, **kwargs: Any) -> Any:
    """Tell worker(s) to stop sending task-related events."""
    if not state.desk.orders.events:
        return ok("task events already disabled")
    state.desk.change(lambda: state.desk.order(events=False))
    logger.info("Events of group {task} disabled by remote.")
    return ok("task events disabled")


@control_command()
def heartbeat(state: Any, **kwargs: Any) -> Any:
    """Tell worker(s) to send event heartbeat immediately."""
    logger.debug("Heartbeat requested by remote.")
    state.remote.beat()


@control_command()
def election(state: Any, id: str = "", topic: str = "", action: Any = None, **kwargs: Any) -> Any:
    """Ignored: elections are held among Celery's workers."""


# -- the pool ----------------------------------------------------------------------------------------------------


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: Any, n: int = 1, **kwargs: Any) -> Any:
    """Grow pool by n processes/threads."""
    return _resize(state, "pool_grow", int(n), "pool will grow")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: Any, n: int = 1, **kwargs: Any) -> Any:
    """Shrink pool by n processes/threads."""
    return _resize(state, "pool_shrink", -int(n), "pool will shrink")


def _resize(state: Any, name: str, by: int, text: str) -> Any:
    if state.desk.autoscale is not None:
        return nok(f"{name} is not supported with autoscale. Adjust autoscale range instead.")
    state.desk.change(lambda: state.desk.resize(by))
    return ok(text)


@control_command()
def pool_restart(
    state: Any, modules: Sequence[str] | None = None, reload: bool = False, reloader: Any = None, **kwargs: Any
) -> Any:
    """Restart execution pool."""
    if not state.app.conf.worker_pool_restarts:
        raise ValueError("Pool restarts not enabled: set worker_pool_restarts")
    state.desk.change(lambda: state.desk.restart(tuple(modules or ()), reload=bool(reload)))
    return ok("reload started")


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: Any, max: int | None = None, min: int | None = None, **kwargs: Any) -> Any:
    """Modify autoscale settings."""
    if state.desk.autoscale is None:
        raise ValueError("Autoscale not enabled")
    most, least = state.desk.change(lambda: state.desk.rescale(max, min))
    return ok(f"autoscale now max={most} min={least}")


@control_command()
def shutdown(state: Any, msg: str = "Got shutdown from remote", **kwargs: Any) -> Any:
    """Shutdown worker(s)."""
    logger.warning("%.200s", msg)
    state.desk.stop()
    # Nobody is told: whoever asked is not waiting for a reply.
    raise SystemExit(0)


# -- queues ------------------------------------------------------------------------------------------------------


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(
    state: Any,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **options: Any,
) -> Any:
    """Tell worker(s) to consume from task queue by name."""
    desk = state.desk
    if any(each.name == queue for each in desk.queues):
        return ok(f"already consuming from {queue}")
    known = {each.name: each for each in state.app.queues(None)}
    spec = known.get(queue) or QueueSpec(
        name=queue,
        exchange=exchange or queue,
        exchange_type=exchange_type or "direct",
        routing_key=routing_key or queue,
    )
    # It may have been paused this very moment.
    desk.look()
    desk.change(lambda: desk.watch([*desk.queues, spec]))
    logger.info("Started consuming from %s", queue)
    return ok(f"add consumer {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: Any, queue: str, **kwargs: Any) -> Any:
    """Tell worker(s) to stop consuming from task queue by name."""
    desk = state.desk
    desk.change(lambda: desk.watch([each for each in desk.queues if each.name != queue]))
    logger.info("Canceling queue %s", queue)
    return ok(f"no longer consuming from {queue}")
