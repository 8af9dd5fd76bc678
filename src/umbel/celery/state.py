"""``celery._state``: what is current, under the private names that many programs use all the same."""

from __future__ import annotations

from typing import Any

from umbel import app as _app  # noqa: F401  (it says how to make a first app)
from umbel import current
from umbel.current import (
    active_apps,
    announce_app_finalized,
    app_or_default,
    connect_on_app_finalize,
    current_app,
    current_task,
    deregister_app,
    get_current_app,
    get_current_task,
    get_current_worker_task,
    pop_current_task,
    push_current_task,
    register_app,
    set_current_app,
    set_default_app,
)
from umbel.utils.proxy import Proxy

__all__ = [
    "app_or_default", "connect_on_app_finalize", "current_app", "current_task", "default_app", "disable_trace",
    "enable_trace", "get_current_app", "get_current_task", "get_current_worker_task", "pop_current_task",
    "push_current_task", "set_default_app", "task_join_will_block",
]  # fmt: skip

_set_current_app = set_current_app
_register_app = register_app
_deregister_app = deregister_app
_get_active_apps = active_apps
_announce_app_finalized = announce_app_finalized
_get_current_app = get_current_app


def _default() -> Any:
    return current._Process.default or get_current_app()


default_app: Any = Proxy(_default)


class _Tls:
    """This thread's current app."""

    @property
    def current_app(self) -> Any:
        return current._local.app

    @current_app.setter
    def current_app(self, app: Any) -> None:
        current._local.app = app


_tls = _Tls()


class _TaskStack:
    """The tasks that run in this thread or coroutine."""

    @property
    def top(self) -> Any:
        return get_current_task()

    @property
    def stack(self) -> list[Any]:
        return [frame.task for frame in current.frames()][::-1]

    def push(self, task: Any) -> None:
        push_current_task(task)

    def pop(self) -> Any:
        return pop_current_task()

    def __len__(self) -> int:
        return len(self.stack)


_task_stack = _TaskStack()


def task_join_will_block() -> bool:
    """Say whether waiting for a result is refused here."""
    return current.join_denied()


def _set_task_join_will_block(blocks: bool) -> None:
    current._join_denied.set(blocks)


def enable_trace() -> None:
    """Do nothing: Umbel has no trace of app changes."""


disable_trace = enable_trace
