"""What is current: the app of this thread, the task that runs here, and whether waiting for a result is allowed.

The stack of running tasks is a context variable, so that every thread and every coroutine sees its own. It is a
linked list and not a list: a coroutine that was started inside a task keeps what it saw, whatever happens later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from umbel.exceptions import ImproperlyConfigured
from umbel.utils.proxy import Proxy


class Frame(NamedTuple):
    """One running task, its request, and what runs around it."""

    task: Any
    request: Any  # umbel.context.Context, or None for a task pushed without one
    outer: Frame | None


_frames: ContextVar[Frame | None] = ContextVar("umbel_frames", default=None)
_join_denied: ContextVar[bool] = ContextVar("umbel_join_denied", default=False)


# -- the running task --------------------------------------------------------------------------------------------


def push_frame(task: Any, request: Any) -> None:
    """Make this the running task of the current thread or coroutine."""
    _frames.set(Frame(task, request, _frames.get()))


def pop_frame() -> Frame | None:
    """Undo the last :func:`push_frame` and return what it pushed, or None if nothing was."""
    frame = _frames.get()
    if frame is not None:
        _frames.set(frame.outer)
    return frame


def top_frame() -> Frame | None:
    """Return the innermost running task and its request."""
    return _frames.get()


def frames() -> Iterator[Frame]:
    """Yield what runs here, innermost first."""
    frame = _frames.get()
    while frame is not None:
        yield frame
        frame = frame.outer


def push_current_task(task: Any) -> None:
    """Make this the current task without giving it a request."""
    push_frame(task, None)


def pop_current_task() -> Any:
    """Undo :func:`push_current_task`."""
    frame = pop_frame()
    return None if frame is None else frame.task


def get_current_task() -> Any:
    """Return the task that runs in this thread or coroutine, or None."""
    frame = _frames.get()
    return None if frame is None else frame.task


def get_current_worker_task() -> Any:
    """Return the task that a worker runs here, or None: one that was merely called as a function does not count."""
    frame = worker_frame()
    return None if frame is None else frame.task


def worker_frame() -> Frame | None:
    """Return the innermost frame whose task a worker runs (or ``apply`` emulates), or None."""
    frame = _frames.get()
    while frame is not None:
        if frame.request is not None and not frame.request.called_directly:
            return frame
        frame = frame.outer
    return None


# -- waiting for results inside a task ---------------------------------------------------------------------------


def join_denied() -> bool:
    """Say whether waiting for another task's result is refused here."""
    return _join_denied.get()


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Refuse ``get()`` inside the block: a task that waits for a task can use up every worker and wait for ever."""
    token = _join_denied.set(True)
    try:
        yield
    finally:
        _join_denied.reset(token)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Allow ``get()`` inside the block although a task runs."""
    token = _join_denied.set(False)
    try:
        yield
    finally:
        _join_denied.reset(token)


# -- the app -----------------------------------------------------------------------------------------------------


class _Local(threading.local):
    app: Any = None


_local: Final = _Local()
_apps: Final[WeakSet[Any]] = WeakSet()
_shared: Final[list[Callable[[Any], Any]]] = []
_lock: Final = threading.RLock()


class _Process:
    """What all threads share: the default app, the app last made current anywhere, and the one made for want of any."""

    default: Any = None
    latest: Any = None
    fallback: Any = None
    factory: Callable[[], Any] | None = None


def set_current_app(app: Any) -> None:
    """Make this the current app of the calling thread, and of every thread that never chose one."""
    _local.app = app
    _Process.latest = app


def set_default_app(app: Any) -> None:
    """Make this the app of every thread that never chose one."""
    _Process.default = app


def set_app_factory(factory: Callable[[], Any]) -> None:
    """Say how to make an app when one is needed and none exists."""
    _Process.factory = factory


def get_current_app() -> Any:
    """Return this thread's app; else the default one; else the last that became current; else a new default app.

    In a web server the request threads never call :meth:`Umbel.set_current`; they find the app that was made at
    import, not an unconfigured one.
    """
    app = _local.app or _Process.default or _Process.latest or _Process.fallback
    if app is not None:
        return app
    with _lock:
        if _Process.fallback is None:
            if _Process.factory is None:
                raise ImproperlyConfigured("there is no app yet; create one first: app = Umbel('name')")
            _Process.fallback = _Process.factory()
    return _Process.fallback


def app_or_default(app: Any = None) -> Any:
    """Return the given app, or else the current one."""
    return get_current_app() if app is None else app


def register_app(app: Any) -> None:
    """Add an app to those that are told about shared tasks and forks. Held weakly."""
    _apps.add(app)


def deregister_app(app: Any) -> None:
    """Forget an app that was closed; it stops being anyone's current app."""
    _apps.discard(app)
    if _local.app is app:
        _local.app = None
    if _Process.latest is app:
        _Process.latest = None
    if _Process.default is app:
        _Process.default = None
    if _Process.fallback is app:
        _Process.fallback = None


def active_apps() -> list[Any]:
    """Return the apps that exist."""
    return list(_apps)


def connect_on_app_finalize(constructor: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Have every app that is not yet finalized, and every later one, call this with itself."""
    _shared.append(constructor)
    return constructor


def announce_app_finalized(app: Any) -> None:
    """Call every shared constructor with this app."""
    for constructor in tuple(_shared):
        constructor(app)


current_app: Any = Proxy(get_current_app)
current_task: Any = Proxy(get_current_task)
