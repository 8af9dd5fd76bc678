"""What the security tests share: an app with a task or two, and a way to hand a worker whatever bytes one likes."""

from __future__ import annotations

from typing import Any

import msgspec

from umbel import Umbel
from umbel.envelope import Message, encode_envelope
from umbel.interfaces import Dead, Delivery, Execution, Outgoing, Peeked, Place, Settlement
from umbel.worker.runner import TaskRunner

ESCAPES = "\r\n[2026-01-01 00:00:00,000: CRITICAL/MainProcess] forged \x1b]0;title\x07\x1b[31m\u2028\u202e\x9b"


def make_app(name: str, **settings: Any) -> Any:
    """Return an app on stores in memory, named after the test, with the tasks ``echo`` and ``fail``."""
    app = Umbel("shop", broker=f"memory://{name}", backend=f"memory://{name}", **settings)

    @app.task(name="echo")
    def echo(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    @app.task(name="fail")
    def fail(text: str) -> None:
        raise ValueError(text)

    return app


def deliver(raw: bytes, queue: str = "celery", **fields: Any) -> Delivery:
    """Return what a worker gets when these bytes are in the queue."""
    return Delivery(tag="1", queue=queue, raw=raw, **fields)


def admit(app: Any, message: Message | bytes, queue: str = "celery") -> Execution | Settlement:
    """Return what a worker of the app decides about a message."""
    raw = message if isinstance(message, bytes) else encode_envelope(message)
    return TaskRunner(app, hostname="h").admit(deliver(raw, queue), 0.0)


def refusal(app: Any, message: Message | bytes, queue: str = "celery") -> str:
    """Return the reason for which a worker keeps the message as a dead letter."""
    decided = admit(app, message, queue)
    assert isinstance(decided, Settlement), decided
    assert isinstance(decided.how, Dead), decided
    return decided.how.reason


def runs(app: Any, message: Message | bytes, queue: str = "celery") -> bool:
    """Say whether a worker would run it."""
    return isinstance(admit(app, message, queue), Execution)


def peek(app: Any, place: Place = Place.READY, queue: str = "celery") -> list[Peeked]:
    """Return what is in a queue."""
    return list(app.broker.peek(queue, place=place))


def task_message(body: bytes = b"[[], {}, {}]", *, content_type: str = "application/json", **headers: Any) -> Message:
    """Return a message as somebody who can write to the queue would make it."""
    given = {"lang": "py", "task": "echo", "id": "4a2f5c7e-0000-4000-8000-000000000001", **headers}
    return Message(body=body, content_type=content_type, headers=given, properties={"correlation_id": given["id"]})


def inject(app: Any, message: Message, queue: str = "celery") -> None:
    """Put a message into the queue past every check of the sender's side."""
    task_id = str(message.headers.get("id"))
    app.broker.publish([Outgoing(message=message, task_id=task_id, queue=queue)])


def plain(value: Any) -> Any:
    """Return a value as JSON would give it back."""
    return msgspec.json.decode(msgspec.json.encode(value))
