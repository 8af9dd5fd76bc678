"""Umbel: a distributed task queue with Celery's API and wire protocol.

The public names below are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own would cost more to import than all the rest of this module
if TYPE_CHECKING:
    from typing import Any

    from umbel.app import Celery, Umbel, shared_task
    from umbel.canvas import chain, chord, chunks, group, xmap, xstarmap
    from umbel.result import (
        AsyncResult,
        EagerResult,
        GroupResult,
        ResultSet,
        allow_join_result,
        denied_join_result,
    )
    from umbel.signatures import Signature, maybe_signature, signature, subtask
    from umbel.task import Task
    from umbel.utils.identity import uuid

    # Proxies of these.
    current_app: Umbel
    current_task: Task

__all__ = [
    "AsyncResult",
    "Celery",
    "EagerResult",
    "GroupResult",
    "ResultSet",
    "Signature",
    "Task",
    "Umbel",
    "__version__",
    "allow_join_result",
    "chain",
    "chord",
    "chunks",
    "current_app",
    "current_task",
    "denied_join_result",
    "group",
    "maybe_signature",
    "shared_task",
    "signature",
    "subtask",
    "uuid",
    "xmap",
    "xstarmap",
]

_MODULES = {
    "umbel.app": ("Celery", "Umbel", "current_app", "current_task", "shared_task"),
    "umbel.canvas": ("chain", "chord", "chunks", "group", "xmap", "xstarmap"),
    "umbel.result": (
        "AsyncResult", "EagerResult", "GroupResult", "ResultSet", "allow_join_result", "denied_join_result",
    ),
    "umbel.signatures": ("Signature", "maybe_signature", "signature", "subtask"),
    "umbel.task": ("Task",),
    "umbel.utils.identity": ("uuid",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def _load(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    # Many of these find the current app, and only the app's module knows how to make a first one.
    if home != "umbel.utils.identity":
        importlib.import_module("umbel.app")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


if not TYPE_CHECKING:  # a checker would take every misspelt name for one of these
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
