"""``celery.concurrency`` and ``billiard.pool``: the kinds of worker, and classes that others patch."""

from __future__ import annotations

from typing import Any

from umbel import signals
from umbel.exceptions import ImproperlyConfigured
from umbel.worker import executors

_HOW = "Umbel's worker has executors in place of pools (umbel.interfaces.Executor): choose one by -P"


def get_available_pool_names() -> tuple[str, ...]:
    """Return what ``-P`` takes."""
    return ("prefork", "threads", "asyncio", "solo", "processes")


def get_implementation(cls: Any) -> Any:
    """Return the executor class of a name that ``-P`` takes."""
    name = {"prefork": "solo", "processes": "solo"}.get(cls, cls)
    if not isinstance(name, str) or cls not in get_available_pool_names():
        raise ImproperlyConfigured(f"there is no pool {cls!r}: {_HOW}")
    return type(executors.make_executor(name, 1))


class BasePool:
    """Base of pools written for Celery: can be subclassed and checked for, and not be used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(_HOW)


def apply_target(target: Any, args: Any = (), kwargs: Any = None, callback: Any = None, **options: Any) -> Any:
    """Call a function and hand its result to the callback."""
    value = target(*args, **(kwargs or {}))
    if callback is not None:
        callback(value)
    return value


class PoolWorker:
    """What billiard runs in a child. Instrumentations wrap :meth:`workloop` to be called when the child ends."""

    def workloop(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; a worker process calls it when it ends."""


_original = PoolWorker.workloop


def _ended(**kwargs: Any) -> None:
    cls: Any = worker_class()
    if cls is not None and cls.workloop is not _originals.get(cls, cls.workloop):
        cls.workloop(object.__new__(PoolWorker))


_originals: dict[Any, Any] = {}


def worker_class() -> Any:
    """Return the class that is wrapped: ours, or billiard's where that is loaded."""
    import sys

    module = sys.modules.get("billiard.pool")
    return getattr(module, "Worker", None)


def watch_workloop(cls: Any) -> None:
    """Have a wrapped ``workloop`` of this class called when a worker process ends."""
    _originals[cls] = cls.workloop
    signals.worker_process_shutdown.connect(_ended, dispatch_uid="umbel.celery.workloop")


watch_workloop(PoolWorker)
