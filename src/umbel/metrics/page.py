"""``/metrics`` of one worker: what its supervisor knows, made when it is asked for. Needs no ``prometheus_client``.

The desk is :class:`umbel.worker.desk.Desk`; any thread may read it.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from umbel import __version__
from umbel.metrics.labels import OTHER
from umbel.metrics.text import family


def worker_page(desk: Any, *, ready: bool) -> str:
    """Return the page of a worker. ``ready`` says whether it consumes."""
    node = {"worker": desk.hostname}
    holders = desk.holders()
    busy = sum(len(holder.running) for holder in holders)
    keeper = desk.keeper
    ended: Counter[str] = Counter()
    for name, count in desk.totals().items():
        # A message may ask for any name; one that is not registered is no label.
        ended[name if desk.app.registry.get(name) is not None else OTHER] += count
    pool = [holder.pid for holder in holders if holder.pid != os.getpid()]
    memory = [
        ({**node, "process": name}, float(size))
        for name, pids in (("supervisor", [os.getpid()]), ("pool", pool))
        if (size := sum(map(_resident, pids)))
    ]
    return "".join(
        (
            family("umbel_build_info", "gauge", "The version, as a label.", [({"version": __version__}, 1)]),
            family("umbel_worker_ready", "gauge", "1 while the worker consumes.", [(node, int(ready))]),
            family(
                "umbel_worker_broker_up",
                "gauge",
                "1 while the worker reaches the broker.",
                [(node, int(keeper is not None and not keeper.away))],
            ),
            family("umbel_worker_processes", "gauge", "Processes that run tasks.", [(node, len(holders))]),
            family(
                "umbel_worker_slots",
                "gauge",
                "Tasks that run now (busy), and that could run besides (free).",
                [
                    ({**node, "state": "busy"}, busy),
                    ({**node, "state": "free"}, max(0, desk.size - busy)),
                ],
            ),
            family(
                "umbel_worker_tasks_total",
                "counter",
                "Executions that have ended, however that was.",
                [({**node, "name": name}, count) for name, count in sorted(ended.items())],
            ),
            family(
                "umbel_worker_start_time_seconds",
                "gauge",
                "When the worker was started, in seconds since the epoch.",
                [(node, float(desk.started_at))],
            ),
            family(
                "umbel_worker_rss_bytes",
                "gauge",
                "Resident memory of the supervisor and, added up, of the processes; what they share counts in each.",
                memory,
            ),
        )
    )


def _resident(pid: int) -> int:
    """Return the resident bytes of a process; 0 where that cannot be known."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
