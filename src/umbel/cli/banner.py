"""What a worker says when it starts: Celery's fields in Celery's order."""

from __future__ import annotations

import platform
from datetime import datetime
from typing import Any

from umbel import __version__
from umbel.cli.transport import Transport
from umbel.worker.plan import WorkerPlan

_FLOWER = r"""
   _\|/_
  (_\|/_)
    \|/
     |
     |
""".strip("\n").splitlines()


def banner(app: Any, plan: WorkerPlan, where: Transport, kept: str, *, tasks: bool, builtins: bool = False) -> str:
    """Return the banner.

    ``kept`` says what the broker keeps; ``tasks`` lists the app's tasks, and ``builtins`` our own too.
    """
    events = "ON" if plan.task_events else "OFF (enable -E to monitor tasks in this worker)"
    fields = [
        ("app", f"{app.main or '__main__'}:{id(app):#x}"),
        ("transport", where.broker),
        ("results", where.results),
        ("concurrency", _concurrency(plan, spawned=plan.start_method == "spawn" and where.features.shared)),
        ("task events", events),
        ("storage", kept),
    ]
    head = [
        f"{plan.hostname} v{__version__} (umbel)",
        f"{platform.platform()} {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}",
        "",
    ]
    lines = ["", *(f"{art:<10} {text}".rstrip() for art, text in _beside(_FLOWER, head))]
    lines += ["", "[config]"]
    lines += [f".> {name + ':':<12} {value}" for name, value in fields]
    lines += ["", "[queues]"]
    lines += [
        f".> {queue.name:<16} exchange={queue.exchange}({queue.exchange_type}) key={queue.routing_key}"
        for queue in plan.queues
    ]
    lines.append("")
    if tasks:
        names = sorted(name for name in app.tasks if builtins or not name.startswith("celery."))
        lines += ["[tasks]", *(f"  . {name}" for name in names), ""]
    return "\n".join(lines)


def _concurrency(plan: WorkerPlan, *, spawned: bool) -> str:
    how = ", spawned" if spawned and plan.pool != "solo" else ""
    if plan.autoscale is not None:
        return f"{{min={plan.autoscale[1]}, max={plan.autoscale[0]}}} ({plan.pool}{how})"
    many = f", {plan.processes} processes" if not plan.forks and plan.processes > 1 else ""
    return f"{plan.total} ({plan.pool}{many}{how})"


def _beside(left: list[str], right: list[str]) -> list[tuple[str, str]]:
    height = max(len(left), len(right))
    above = (height - len(right)) // 2
    padded = [""] * above + right
    return [(left[row] if row < len(left) else "", padded[row] if row < len(padded) else "") for row in range(height)]
