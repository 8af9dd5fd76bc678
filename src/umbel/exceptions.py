"""Every error that Umbel raises.

The names and bases are Celery's; bases were only added, so that ``except`` clauses of users go on working::

    CeleryError
    ├─ ImproperlyConfigured
    ├─ SecurityError
    ├─ SerializationError
    │   ├─ EncodeError
    │   └─ DecodeError
    │       └─ ContentDisallowed
    ├─ BrokerError
    │   ├─ OperationalError
    │   │   └─ PublishUnknown
    │   ├─ QueueNotFound (TaskError, KeyError)
    │   └─ LeaseLost
    ├─ BackendError
    │   ├─ BackendStoreError
    │   └─ BackendGetMetaError
    ├─ PoolError
    │   └─ PoolFull
    ├─ TaskError
    │   ├─ NotRegistered (KeyError)
    │   ├─ AlreadyRegistered
    │   ├─ InvalidTaskError
    │   ├─ TimeoutError (TimeoutError)
    │   ├─ MaxRetriesExceededError
    │   ├─ TaskRevokedError
    │   ├─ ChordError
    │   ├─ IncompleteStream
    │   ├─ RemoteError
    │   ├─ SoftTimeLimitExceeded
    │   ├─ TimeLimitExceeded
    │   ├─ WorkerLostError
    │   ├─ MaxDeliveriesExceeded
    │   └─ Terminated
    └─ TaskPredicate
        ├─ Retry
        ├─ Ignore
        └─ Reject
    WorkerShutdown (SystemExit)
    WorkerTerminate (SystemExit)
    CeleryWarning (UserWarning)
    ├─ AlwaysEagerIgnored
    ├─ DuplicateNodenameWarning
    ├─ DuplicateTaskNameWarning
    ├─ FixupWarning
    ├─ NotConfigured
    └─ SecurityWarning

All of them pickle, and a message says what went wrong, with which thing, and what to do next.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any


class CeleryError(Exception):
    """Base of all errors of this package. Catch it to catch everything that Umbel raises on purpose."""


class ImproperlyConfigured(CeleryError):
    """A setting, URL or option is unknown, ill-typed or contradictory. Fix the configuration; nothing was started."""


class SecurityError(CeleryError):
    """Something was refused because accepting it would be unsafe. Do not retry it unchanged."""


class SerializationError(CeleryError):
    """A value could not be turned into bytes, or bytes into a value. Nothing was sent and nothing was lost."""


class EncodeError(SerializationError):
    """Raised by the caller's own process when an argument or a result cannot be serialized. Nothing was sent."""


class DecodeError(SerializationError):
    """Bytes that arrived cannot be read. The message is kept as a dead letter."""

    def __init__(self, message: str = "", content_type: str | None = None, data: bytes = b"") -> None:
        super().__init__(message, content_type, data[:1024])
        self.content_type = content_type
        self.data = data[:1024]

    def __str__(self) -> str:
        return str(self.args[0])


class ContentDisallowed(DecodeError):
    """The content type is not in ``accept_content``. Add it there only if every producer can be trusted."""


class BrokerError(CeleryError):
    """Something went wrong between this process and the broker."""


class OperationalError(BrokerError):
    """The broker or backend cannot be reached. Nothing was changed there; it is always safe to retry."""


class PublishUnknown(OperationalError):
    """The connection broke after the message was sent and before it was confirmed.

    It may or may not be queued. Publishing again with the same ``task_id`` is safe where the broker recognises it.
    """

    def __init__(self, task_id: str = "", reason: str = "") -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"task {self.task_id} may or may not have been queued ({self.reason}); "
            f"publish again with task_id={self.task_id!r}"
        )


class LeaseLost(BrokerError):
    """This process no longer holds the message: someone else may be running it. Its outcome was not applied."""


class BackendError(CeleryError):
    """Something went wrong between this process and the result backend."""


class BackendStoreError(BackendError):
    """A result could not be stored. The message is not settled and will be delivered again."""

    def __init__(self, *args: Any, state: str | None = None, task_id: str | None = None) -> None:
        super().__init__(*args)
        self.state = state
        self.task_id = task_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, {"state": self.state, "task_id": self.task_id})


class BackendGetMetaError(BackendError):
    """A result could not be read. Reading it again is safe."""

    def __init__(self, *args: Any, task_ids: Iterable[str] = ()) -> None:
        super().__init__(*args)
        self.task_ids = list(task_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, {"task_ids": self.task_ids})


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], keywords: dict[str, Any]) -> BaseException:
    return cls(*args, **keywords)


class PoolError(CeleryError):
    """An executor was used in a way it does not support."""


class PoolFull(PoolError):
    """Every slot of the executor is taken. Wait for one to end."""


class TaskError(CeleryError):
    """Base of errors about one task."""


class QueueNotFound(BrokerError, TaskError, KeyError):
    """The queue is not declared and ``task_create_missing_queues`` is off. Add it to ``task_queues``."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class NotRegistered(TaskError, KeyError):
    """No task of this name is registered here. Import the module that defines it."""

    def __str__(self) -> str:
        return f"Task of kind {self.args[0]!r} never registered, please make sure it's imported." if self.args else ""


class AlreadyRegistered(TaskError):
    """A task of this name is registered already."""


class InvalidTaskError(TaskError):
    """The message does not describe a task. It is kept as a dead letter."""


class TimeoutError(TaskError, builtins.TimeoutError):
    """Raised by ``get()`` when the result did not arrive in time. The task may still run; waiting again is safe."""


class MaxRetriesExceededError(TaskError):
    """The task asked for one more retry than ``max_retries`` allows. It ends as FAILURE with this error."""

    def __init__(self, *args: Any, task_args: Any = (), task_kwargs: Any = None) -> None:
        super().__init__(*args)
        self.task_args = task_args
        self.task_kwargs = {} if task_kwargs is None else task_kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, {"task_args": self.task_args, "task_kwargs": self.task_kwargs})


class TaskRevokedError(TaskError):
    """The task was revoked and will not run."""


class ChordError(TaskError):
    """A member of the chord failed, so its body was not called."""


class IncompleteStream(TaskError):
    """The end of a stream of values was found before it was complete."""


class RemoteError(TaskError):
    """Stands for a remote exception whose class this process does not have. ``exc_type`` names it."""

    def __init__(self, exc_type: str = "", text: str = "") -> None:
        super().__init__(exc_type, text)
        self.exc_type = exc_type
        self.text = text

    def __str__(self) -> str:
        return f"{self.exc_type}: {self.text}" if self.text else self.exc_type


class SoftTimeLimitExceeded(TaskError):
    """Raised inside the task when its soft time limit has passed. Clean up and return, or let it fail."""

    def __str__(self) -> str:
        return _limit_words("soft", self.args)


class TimeLimitExceeded(TaskError):
    """The task ran past its hard time limit and was stopped."""

    def __str__(self) -> str:
        return _limit_words("hard", self.args)


def _limit_words(kind: str, args: tuple[Any, ...]) -> str:
    # A Celery worker gives the seconds alone, or nothing.
    if len(args) == 1 and isinstance(args[0], int | float):
        return f"the {kind} time limit of {args[0]:g} s was exceeded"
    return str(args[0]) if args else f"the {kind} time limit was exceeded"


class WorkerLostError(TaskError):
    """The process that ran the task died."""


class MaxDeliveriesExceeded(TaskError):
    """The message was delivered ``max_deliveries`` times and each time its worker died. It is a dead letter now."""


class Terminated(TaskError):
    """The task was stopped by request while it ran."""


class TaskPredicate(CeleryError):
    """Base of what task code raises to say how it should end."""


class Retry(TaskPredicate):
    """Raised by ``Task.retry``: run again later. ``when`` is seconds or a moment, ``exc`` the reason."""

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.exc: BaseException | None = None if isinstance(exc, str) else exc
        self.excs: str | None = exc if isinstance(exc, str) else None
        if self.exc is not None:
            self.excs = _safe_repr(self.exc)
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(exc, when, **kwargs)

    def humanize(self) -> str:
        """Return the moment of the retry in words."""
        if isinstance(self.when, int | float):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.exc if self.exc is not None else self.excs, self.when)


class Ignore(TaskPredicate):
    """Raised by a task to end without a state: the message is acknowledged and nothing is stored."""


class Reject(TaskPredicate):
    """Raised by a task to refuse its message: ``requeue=True`` gives it back, else it becomes a dead letter."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class WorkerTerminate(SystemExit):
    """Ends the worker at once."""


class WorkerShutdown(SystemExit):
    """Ends the worker after the tasks that run."""


class CeleryWarning(UserWarning):
    """Base of all warnings of this package."""


class AlwaysEagerIgnored(CeleryWarning):
    """``send_task`` by name ignores ``task_always_eager``: the body is not known here."""


class DuplicateNodenameWarning(CeleryWarning):
    """Two workers have the same node name."""


class DuplicateTaskNameWarning(CeleryWarning):
    """Two different functions were registered under one task name; the first is kept."""


class FixupWarning(CeleryWarning):
    """A framework integration could not do all that it should."""


class NotConfigured(CeleryWarning):
    """The configuration module was not found, so the defaults are used."""


class SecurityWarning(CeleryWarning):
    """Something unsafe was configured."""


def _safe_repr(value: object) -> str:
    # The exception comes from user code, and its __repr__ may raise anything.
    try:
        return repr(value)
    except Exception as error:
        return f"<unrepresentable {type(value).__name__}: {type(error).__name__}>"


def retry_at(when: float | datetime, now: datetime | None = None) -> datetime:
    """Return the moment that ``Retry.when`` means."""
    if isinstance(when, datetime):
        return when
    return (now or datetime.now(UTC)) + timedelta(seconds=when)
