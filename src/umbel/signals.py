"""Signals: tell whoever connected that something happened. Names and arguments are Celery's.

A receiver is called with ``signal``, ``sender`` and the named arguments of the signal. What it raises is logged and
returned, never raised: a signal observes and cannot change what happens.

Sending to nobody is cheap; a caller in a hot path may ask ``if signal.receivers:`` before it builds the arguments.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, overload

from umbel.retry import exponential_backoff

logger = logging.getLogger("celery.utils.dispatch.signal")

Receiver = Callable[..., Any]
F = TypeVar("F", bound=Receiver)
Key = tuple[Hashable, Hashable]

_RETRY_MAX = 30.0


class Signal:
    """A list of receivers. Safe to use from every thread; a receiver runs in the thread that sends."""

    def __init__(
        self, providing_args: Iterable[str] | None = None, use_caching: bool = False, name: str | None = None
    ) -> None:
        self.name = name
        self.providing_args = frozenset(providing_args or ())
        self.use_caching = use_caching
        self.receivers: list[tuple[Key, Any]] = []
        self._lock = threading.Lock()
        self._dead = False

    @overload
    def connect(
        self, receiver: F, sender: Any = ..., weak: bool = ..., dispatch_uid: Hashable = ..., retry: bool = ...
    ) -> F: ...
    @overload
    def connect(
        self, *, sender: Any = ..., weak: bool = ..., dispatch_uid: Hashable = ..., retry: bool = ...
    ) -> Callable[[F], F]: ...
    def connect(self, *args: Any, **options: Any) -> Any:
        """Connect a receiver; without one, return a decorator.

        :param sender: call it for this sender only; for ``before_task_publish`` that is a task's name.
        :param weak: forget the receiver when nothing else refers to it, so a lambda needs ``weak=False``.
        :param dispatch_uid: of several receivers with the same one, only the first is connected.
        :param retry: call it again after an exception, until it succeeds; the sender waits.
        """
        if (args and callable(args[0])) or "receiver" in options:
            return self._connect(*args, **options)
        return lambda receiver: self._connect(receiver, *args, **options)

    def _connect(
        self,
        receiver: Receiver,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Hashable = None,
        retry: bool = False,
    ) -> Receiver:
        if not callable(receiver):
            raise TypeError(f"a signal receiver must be callable, not {receiver!r}")
        if not _accepts_kwargs(receiver):
            raise ValueError(f"signal receiver {receiver!r} must accept keyword arguments (add **kwargs)")
        key = _key(receiver, sender, dispatch_uid)
        entry: Any = receiver
        if retry:
            entry = _Retrying(receiver)
        elif weak:
            entry = self._weak(receiver)
        with self._lock:
            self._sweep()
            if all(key != known for known, _ in self.receivers):
                self.receivers.append((key, entry))
        return receiver

    def _weak(self, receiver: Receiver) -> Any:
        # A bound method object dies at once even if its instance lives.
        if inspect.ismethod(receiver):
            return weakref.WeakMethod(receiver, self._on_death)
        return weakref.ref(receiver, self._on_death)

    def _on_death(self, _: object) -> None:
        # Runs inside the garbage collector, perhaps while this thread holds the lock: only leave a note.
        self._dead = True

    def _sweep(self) -> None:
        if self._dead:
            self._dead = False
            self.receivers[:] = [pair for pair in self.receivers if _resolve(pair[1]) is not None]

    def disconnect(
        self,
        receiver: Receiver | None = None,
        sender: Any = None,
        weak: bool | None = None,
        dispatch_uid: Hashable = None,
    ) -> bool:
        """Disconnect what :meth:`connect` connected with the same arguments; say whether it was there."""
        key = _key(receiver, sender, dispatch_uid)
        with self._lock:
            self._sweep()
            for index, (known, _) in enumerate(self.receivers):
                if known == key:
                    del self.receivers[index]
                    return True
        return False

    def has_listeners(self, sender: Any = None) -> bool:
        """Say whether anybody would be called for this sender."""
        return bool(self.receivers) and bool(self._live(sender))

    def send(self, sender: Any, **named: Any) -> list[tuple[Receiver, Any]]:
        """Call every receiver and return pairs of receiver and what it returned or raised."""
        if not self.receivers:
            return []
        responses: list[tuple[Receiver, Any]] = []
        for receiver in self._live(sender):
            # The outer wall around a user's receiver: whatever it raises must not reach the sender.
            try:
                response = receiver(signal=self, sender=sender, **named)
            except Exception as error:
                logger.exception("Signal handler %r raised: %r", receiver, error)
                response = error
            responses.append((receiver, response))
        return responses

    send_robust = send

    def _live(self, sender: Any) -> list[Receiver]:
        wanted = (None, _identity(sender))
        with self._lock:
            self._sweep()
            found = [entry for (_, of), entry in self.receivers if of in wanted]
        return [receiver for receiver in map(_resolve, found) if receiver is not None]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name} providing_args={sorted(self.providing_args)}>"


class _Retrying:
    """Calls a receiver until it does not raise."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def __call__(self, **named: Any) -> Any:
        attempt = 0
        while True:
            # The outer wall around a user's receiver, which asked to be called again whatever it raised.
            try:
                return self.receiver(**named)
            except Exception as error:
                pause = exponential_backoff(2, attempt, _RETRY_MAX)
                attempt += 1
                logger.error(
                    "Could not process signal receiver %r: %r. Retrying in %.0f seconds...", self.receiver, error, pause
                )
                time.sleep(pause)


def _resolve(entry: Any) -> Receiver | None:
    receiver: Receiver | None = entry() if isinstance(entry, weakref.ReferenceType) else entry
    return receiver


def _key(receiver: Receiver | None, sender: Any, dispatch_uid: Hashable) -> Key:
    return dispatch_uid or _identity(receiver), _identity(sender)


def _identity(target: Any) -> Hashable:
    if target is None or isinstance(target, str | bytes):
        return target
    # A proxy stands for the object behind it.
    behind = getattr(type(target), "_get_current_object", None)
    if behind is not None:
        target = behind(target)
    function = getattr(target, "__func__", None)
    if function is not None:
        return id(getattr(target, "__self__", None)), id(function)
    return id(target)


def _accepts_kwargs(receiver: Receiver) -> bool:
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):  # a builtin: it will be seen when it is called
        return True
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


# -- publishing, in the sending process --------------------------------------------------------------------------
before_task_publish = Signal(
    {"body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"}, name="before_task_publish"
)
after_task_publish = Signal({"body", "exchange", "routing_key", "headers"}, name="after_task_publish")
task_sent = Signal({"task_id", "task", "args", "kwargs", "eta", "taskset"}, name="task_sent")

# -- tasks, in the worker ----------------------------------------------------------------------------------------
task_received = Signal({"request"}, name="task_received")
task_prerun = Signal({"task_id", "task", "args", "kwargs"}, name="task_prerun")
task_postrun = Signal({"task_id", "task", "args", "kwargs", "retval", "state"}, name="task_postrun")
task_success = Signal({"result", "runtime"}, name="task_success")
task_retry = Signal({"request", "reason", "einfo"}, name="task_retry")
task_failure = Signal({"task_id", "exception", "args", "kwargs", "traceback", "einfo"}, name="task_failure")
task_internal_error = Signal(
    {"task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"}, name="task_internal_error"
)
task_revoked = Signal({"request", "terminated", "signum", "expired"}, name="task_revoked")
task_rejected = Signal({"message", "exc"}, name="task_rejected")
task_unknown = Signal({"message", "exc", "name", "id"}, name="task_unknown")

# -- workers -----------------------------------------------------------------------------------------------------
celeryd_init = Signal({"instance", "conf", "options"}, name="celeryd_init")
celeryd_after_setup = Signal({"instance", "conf"}, name="celeryd_after_setup")
import_modules = Signal(name="import_modules")
worker_init = Signal(name="worker_init")
worker_before_create_process = Signal(name="worker_before_create_process")
worker_process_init = Signal(name="worker_process_init")
worker_process_shutdown = Signal({"pid", "exitcode"}, name="worker_process_shutdown")
worker_ready = Signal(name="worker_ready")
worker_shutdown = Signal(name="worker_shutdown")
worker_shutting_down = Signal({"sig", "how", "exitcode"}, name="worker_shutting_down")
heartbeat_sent = Signal(name="heartbeat_sent")

# -- logging -----------------------------------------------------------------------------------------------------
setup_logging = Signal({"loglevel", "logfile", "format", "colorize"}, name="setup_logging")
after_setup_logger = Signal({"logger", "loglevel", "logfile", "format", "colorize"}, name="after_setup_logger")
after_setup_task_logger = Signal(
    {"logger", "loglevel", "logfile", "format", "colorize"}, name="after_setup_task_logger"
)

# -- beat, pools and programs ------------------------------------------------------------------------------------
beat_init = Signal(name="beat_init")
beat_embedded_init = Signal(name="beat_embedded_init")
eventlet_pool_started = Signal(name="eventlet_pool_started")
eventlet_pool_preshutdown = Signal(name="eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal(name="eventlet_pool_postshutdown")
eventlet_pool_apply = Signal({"target", "args", "kwargs"}, name="eventlet_pool_apply")
user_preload_options = Signal({"app", "options"}, name="user_preload_options")
