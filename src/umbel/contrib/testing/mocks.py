"""Messages and contexts for unit tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import Mock

from umbel.serialization import dumps
from umbel.utils.identity import uuid


def TaskMessage(
    name: str,
    id: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    callbacks: Any = None,
    errbacks: Any = None,
    chain: Any = None,
    shadow: str | None = None,
    utc: bool | None = None,
    **options: Any,
) -> Any:
    """Return a task's message as a consumer of kombu would get it: headers, properties and an encoded body."""
    task_id = id or uuid()
    embed = {"callbacks": callbacks, "errbacks": errbacks, "chain": chain, "chord": None}
    message = Mock(name=f"TaskMessage-{task_id}")
    message.headers = {"id": task_id, "task": name, "shadow": shadow}
    message.headers.update(options)
    message.content_type, message.content_encoding, message.body = dumps((list(args), dict(kwargs or {}), embed))
    message.payload = (args, kwargs, embed)
    return message


def TaskMessage1(
    name: str, id: str | None = None, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """Return a message of the old protocol: all that it says is in its body."""
    task_id = id or uuid()
    message = Mock(name=f"TaskMessage-{task_id}")
    message.headers = {}
    message.payload = {"task": name, "id": task_id, "args": list(args), "kwargs": dict(kwargs or {}), **options}
    message.content_type, message.content_encoding, message.body = dumps(message.payload)
    return message


def task_message_from_sig(app: Any, sig: Any, utc: bool = True, TaskMessage: Any = TaskMessage) -> Any:
    """Return the message that a signature would be sent as."""
    sig.freeze()
    return TaskMessage(sig.task, id=sig.id, args=sig.args, kwargs=sig.kwargs, callbacks=sig.options.get("link"),
                       errbacks=sig.options.get("link_error"), utc=utc)  # fmt: skip


class _ContextMock(Mock):
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


def ContextMock(*args: Any, **kwargs: Any) -> Any:
    """Return a mock that can stand in a ``with``."""
    return _ContextMock(*args, **kwargs)
