"""``celery.worker.state``: what runs in this process now.

Kept by signals, from the first import of this module on: a process that never asks pays nothing. It speaks of its own
process, so of all tasks under ``-P solo`` and ``-P threads`` and in tests, and of one child's under ``-P prefork``.
"""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any, Final

from umbel import signals
from umbel.celery.containers import LimitedSet
from umbel.celery.version import SERIES, __version__
from umbel.exceptions import WorkerShutdown, WorkerTerminate

SOFTWARE_INFO: Final = {"sw_ident": "py-umbel", "sw_ver": __version__, "sw_series": SERIES, "sw_sys": platform.system()}

#: By task id.
requests: dict[str, Any] = {}
active_requests: set[Any] = set()
reserved_requests: set[Any] = set()
scheduled_requests: set[Any] = set()
successful_requests = LimitedSet(maxlen=1000, expires=10800)
revoked = LimitedSet(maxlen=50000, expires=10800)
total_count: Counter[str] = Counter()
all_total_count: list[int] = [0]
should_stop: Any = None
should_terminate: Any = None


def reset_state() -> None:
    """Forget everything."""
    for kept in (requests, active_requests, reserved_requests, scheduled_requests, successful_requests, revoked,
                 total_count):  # fmt: skip
        kept.clear()
    all_total_count[:] = [0]


def maybe_shutdown() -> None:
    """Raise what was asked for by ``should_stop`` and ``should_terminate``."""
    if should_terminate is not None and should_terminate is not False:
        raise WorkerTerminate(should_terminate)
    if should_stop is not None and should_stop is not False:
        raise WorkerShutdown(should_stop)


def task_reserved(request: Any) -> None:
    """Note a request that waits in the worker."""
    requests[request.id] = request
    reserved_requests.add(request)


class Persistent:
    """Not there: revoked ids are kept in the broker, and need no file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("revoked ids are kept in the broker, and need no file")


def task_scheduled(request: Any) -> None:
    """Note a request that waits for its moment. Umbel's worker has none: they wait in the broker."""
    scheduled_requests.add(request)


def merge_revoked(revoked: Any) -> None:
    """Note ids that were revoked."""
    globals()["revoked"].update(revoked)


def task_accepted(request: Any, **kwargs: Any) -> None:
    """Note a request that runs."""
    requests[request.id] = request
    active_requests.add(request)
    total_count[request.task or ""] += 1
    all_total_count[0] += 1


def task_ready(request: Any, successful: bool = False, **kwargs: Any) -> None:
    """Note that a request has ended."""
    if successful:
        successful_requests.add(request.id)
    requests.pop(request.id, None)
    active_requests.discard(request)
    reserved_requests.discard(request)


def _started(sender: Any = None, task: Any = None, **kwargs: Any) -> None:
    request = task.request
    if not request.is_eager:
        task_accepted(request)


def _ended(sender: Any = None, task: Any = None, state: str | None = None, **kwargs: Any) -> None:
    task_ready(task.request, successful=state == "SUCCESS")


def _revoked(sender: Any = None, request: Any = None, **kwargs: Any) -> None:
    if getattr(request, "id", None):
        revoked.add(request.id)


signals.task_prerun.connect(_started, weak=False, dispatch_uid=__name__)
signals.task_postrun.connect(_ended, weak=False, dispatch_uid=__name__)
signals.task_revoked.connect(_revoked, weak=False, dispatch_uid=__name__)
