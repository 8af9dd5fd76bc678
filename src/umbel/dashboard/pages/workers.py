"""Workers: who is there, what they do, and steering them."""

from __future__ import annotations

from typing import Any, Final

from umbel.dashboard.asking import PATIENCE
from umbel.dashboard.ordering import told
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dashboard.roll import Seen, roll

page = Page("workers", "Workers", key="w")

_ASKED: Final = ("stats", "active", "reserved", "active_queues", "registered")
_MOST: Final = 200


@page.get("/workers")
def workers(ask: Ask) -> Reply:
    """List the workers."""
    live = ask.site.live
    return ask.render("workers.html", workers=roll(live), hears=live.hears_tasks)


@page.get("/worker")
def worker(ask: Ask) -> Reply:
    """Show one worker as it describes itself."""
    name = _node(ask, ask.text("name", most=500))
    seen = next((each for each in roll(ask.site.live) if each.name == name), Seen(name=name, alive=False))
    about = ask.site.asking.about(name, *_ASKED)
    stats = _dict(about["stats"])
    return ask.render(
        "worker.html",
        name=name,
        seen=seen,
        replied=about["stats"] is not None,
        stats=stats,
        facts=_facts(stats),
        total=_totals(stats.get("total")),
        active=[_running(each) for each in _dicts(about["active"])],
        reserved=len(_dicts(about["reserved"])),
        queues=[str(each.get("name")) for each in _dicts(about["active_queues"])],
        registered=[str(each) for each in _list(about["registered"])],
        known=[each.name for each in ask.site.live.queues],
    )


@page.get("/worker/stacks")
def stacks(ask: Ask) -> Reply:
    """Show where the threads of a worker are at this moment."""
    name = _node(ask, ask.text("name", most=500))
    replies = ask.app.control.broadcast("stacks", destination=[name], reply=True, timeout=PATIENCE)
    reply = next((_dict(each.get(name)) for each in replies or () if isinstance(each, dict) and name in each), {})
    processes = [
        {
            "pid": _whole(each.get("pid")),
            "running": [str(task.get("name") or "") for task in _dicts(each.get("running"))],
            "threads": [(str(one.get("name")), str(one.get("stack"))) for one in _dicts(each.get("threads"))],
        }
        for each in _dicts(reply.get("processes"))
    ]
    return ask.render("stacks.html", name=name, replied="processes" in reply, processes=processes)


# What workers reply is believed as little as any other message.


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value[:_MOST] if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _facts(stats: dict[str, Any]) -> dict[str, Any]:
    pool, scaler = _dict(stats.get("pool")), _dict(stats.get("autoscaler"))
    memory = _whole(_dict(stats.get("rusage")).get("maxrss"))
    return {
        "processes": len(_list(pool.get("processes"))) or _whole(pool.get("max-concurrency")),
        "pool": str(pool.get("implementation") or "").rpartition(":")[2],
        "uptime": _whole(stats.get("uptime")),
        "memory": None if memory is None else memory * 1024,
        "scaler": (_whole(scaler.get("max")), _whole(scaler.get("min"))) if scaler else None,
    }


def _totals(value: Any) -> list[tuple[str, int]]:
    found = [(str(name), times) for name, times in _dict(value).items() if type(times) is int]
    return sorted(found, key=lambda each: -each[1])[:_MOST]


def _running(task: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(task.get("id") or ""),
        "name": str(task.get("name") or ""),
        "args": task.get("args"),
        "kwargs": task.get("kwargs"),
        "since": task.get("time_start"),
        "pid": _whole(task.get("worker_pid")),
    }


def _node(ask: Ask, name: str) -> str:
    if not name:
        ask.refuse(400, "Which worker?")
    return name


def _back(ask: Ask, node: str, text: str, count: int, target: str = "") -> Reply:
    if node:
        return ask.done(text, to="/worker", name=node, target=target or node, count=count)
    return ask.done(text, to="/workers", target=target or "all workers", count=count)


@page.post("/workers/shutdown", "workers.shutdown")
def shutdown(ask: Ask) -> Reply:
    """Have a worker end when what it runs has ended."""
    node = ask.field("worker")
    ask.app.control.shutdown(destination=[node])
    ask.site.asking.forget()
    return ask.done(f"{node} was told to shut down.", to="/workers", target=node, count=1)


@page.post("/workers/grow", "workers.grow")
def grow(ask: Ask) -> Reply:
    """Add processes."""
    node = ask.field("worker")
    return _back(ask, node, *told(ask, ask.app.control.pool_grow, _number(ask, "n", 1, 64), node=node))


@page.post("/workers/shrink", "workers.shrink")
def shrink(ask: Ask) -> Reply:
    """Take processes away."""
    node = ask.field("worker")
    return _back(ask, node, *told(ask, ask.app.control.pool_shrink, _number(ask, "n", 1, 64), node=node))


@page.post("/workers/autoscale", "workers.autoscale")
def autoscale(ask: Ask) -> Reply:
    """Change between how many processes a worker chooses."""
    node, most, least = ask.field("worker"), _number(ask, "max", 1, 1000), _number(ask, "min", 0, 1000)
    return _back(ask, node, *told(ask, ask.app.control.autoscale, most, least, node=node))


@page.post("/workers/restart", "workers.restart")
def restart(ask: Ask) -> Reply:
    """Replace a worker's processes."""
    node = ask.field("worker")
    return _back(ask, node, *told(ask, ask.app.control.pool_restart, node=node))


@page.post("/workers/rate", "workers.rate-limit")
def rate(ask: Ask) -> Reply:
    """Limit how often a task is started."""
    node, task, limit = ask.field("worker"), ask.field("task", most=1000), ask.field("rate", most=40)
    return _back(ask, node, *told(ask, ask.app.control.rate_limit, task, limit, node=node), f"{node} {task} {limit}")


@page.post("/workers/limits", "workers.time-limit")
def limits(ask: Ask) -> Reply:
    """Limit how long a task may run."""
    node, task = ask.field("worker"), ask.field("task", most=1000)
    soft, hard = _seconds(ask, "soft"), _seconds(ask, "hard")
    text, count = told(ask, ask.app.control.time_limit, task, soft, hard, node=node)
    return _back(ask, node, text, count, f"{node} {task} soft={soft} hard={hard}")


@page.post("/workers/terminate", "workers.terminate")
def terminate(ask: Ask) -> Reply:
    """End a task that runs."""
    node, task_id = ask.field("worker"), ask.field("id", most=255)
    ask.app.control.terminate(task_id)
    ask.site.asking.forget()
    return _back(ask, node, f"{task_id} is revoked, and terminated where it runs.", 1, task_id)


@page.post("/workers/events", "workers.events")
def events(ask: Ask) -> Reply:
    """Have all workers send task events, or stop it."""
    control = ask.app.control
    order = control.disable_events if ask.optional("off") else control.enable_events
    return _back(ask, "", *told(ask, order))


def _number(ask: Ask, name: str, least: int, most: int) -> int:
    given = ask.field(name, most=9)
    if not given.isdecimal() or not least <= int(given) <= most:
        ask.refuse(400, f"{name} must be a number from {least} to {most}.")
    return int(given)


def _seconds(ask: Ask, name: str) -> float | None:
    given = ask.optional(name, most=20)
    if not given:
        return None
    try:
        found = float(given)
    except ValueError:
        ask.refuse(400, f"{name} must be a number of seconds.")
    if not 0 <= found < 1e9:
        ask.refuse(400, f"{name} must be a number of seconds, 0 or more.")
    return found
