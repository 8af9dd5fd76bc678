"""Task events of one process: what its signals tell, sent in batches by a thread of its own.

Nothing is connected, and no thread runs, while nobody has asked for events.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from umbel import signals
from umbel.context import Context
from umbel.events.ahead import steps_ahead
from umbel.events.event import Event, utcoffset
from umbel.exceptions import BrokerError, Reject, SerializationError
from umbel.interfaces import Delivery
from umbel.message import Message, decode_call, decode_envelope, saferepr
from umbel.sensitive import HIDDEN, veil_of
from umbel.serialization import dumps
from umbel.worker.shared import Shared

logger = logging.getLogger("celery.events")

#: Seconds for which an event waits for others.
GATHER: Final = 0.05
#: Events in one message at most, and those that are kept while the broker is away.
BATCH: Final = 200
KEPT: Final = 10_000
_RETRY_AFTER: Final = 1.0
_LONGEST_TRACEBACK: Final = 16384


class Reporter:
    """Sends the task events of the node ``hostname`` from this process. ``report`` may be called by any thread."""

    def __init__(self, app: Any, hostname: str, shared: Shared) -> None:
        self._app = app
        self._hostname = hostname
        self._shared = shared
        self._pid = 0
        self._on = False
        self._waiting: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._some = threading.Event()
        self._sending = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started: dict[str, float] = {}
        self._receivers: tuple[tuple[Any, Callable[..., None]], ...] = (
            (signals.task_received, self._received),
            (signals.task_prerun, self._prerun),
            (signals.task_postrun, self._postrun),
            (signals.task_success, self._succeeded),
            (signals.task_failure, self._failed),
            (signals.task_retry, self._retried),
            (signals.task_revoked, self._revoked),
            (signals.task_rejected, self._rejected),
        )

    def report(self, on: bool, *, pid: int = 0) -> None:
        """Send events from now on, as the worker whose main process is ``pid``, or stop."""
        self._pid = pid
        if on == self._on:
            return
        self._on = on
        for signal, receiver in self._receivers:
            if on:
                signal.connect(receiver, weak=False)
            else:
                signal.disconnect(receiver)
        if on and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="umbel-events", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what waits and stop."""
        self.report(False, pid=self._pid)
        if self._waiting:
            self._send_all()

    # -- what happens, in the threads that run tasks -------------------------------------------------------------

    def _mine(self, request: Any, task: Any = None) -> bool:
        # Other workers and eager calls of this process use the same signals.
        return request.hostname == self._hostname and not request.is_eager and getattr(task, "send_events", True)

    def _note(self, type: str, id: str | None, **fields: Any) -> None:
        event = Event(
            type,
            uuid=id,
            hostname=self._hostname,
            utcoffset=utcoffset(),
            pid=self._pid,
            clock=self._shared.forward(),
            **fields,
        )
        self._waiting.append(event)
        if not self._some.is_set():
            self._some.set()

    def _received(self, request: Context, **named: Any) -> None:
        task = self._app.tasks.get(request.task)
        if not self._mine(request, task):
            return
        args, kwargs = request.argsrepr, request.kwargsrepr
        # The sender may have known the task by its name alone.
        if (veil := veil_of(task)) is not None:
            args, kwargs = veil.reprs(request.args, request.kwargs)
        self._note(
            "task-received",
            request.id,
            name=request.task,
            args=args if args is not None else saferepr(request.args or ()),
            kwargs=kwargs if kwargs is not None else saferepr(request.kwargs or {}),
            root_id=request.root_id,
            parent_id=request.parent_id,
            retries=request.retries,
            eta=request.eta,
            expires=request.expires,
            # Fields of task-sent, which most clients do not send.
            exchange=(request.delivery_info or {}).get("exchange"),
            routing_key=(request.delivery_info or {}).get("routing_key"),
            **_canvas(request),
        )

    def _prerun(self, task_id: str, task: Any, **named: Any) -> None:
        if self._mine(task.request, task):
            self._started[task_id] = time.monotonic()
            self._note("task-started", task_id)

    def _postrun(self, task_id: str, **named: Any) -> None:
        self._started.pop(task_id, None)

    def _succeeded(self, sender: Any, result: Any, **named: Any) -> None:
        request = sender.request
        if self._mine(request, sender):
            started = self._started.get(request.id)
            runtime = time.monotonic() - started if started is not None else None
            veil = veil_of(sender)
            hidden = veil is not None and veil.everything
            text = HIDDEN if hidden else saferepr(result, sender.resultrepr_maxsize)
            self._note("task-succeeded", request.id, result=text, runtime=runtime)

    def _failed(self, sender: Any, task_id: str, exception: BaseException, einfo: Any, **named: Any) -> None:
        request = sender.request
        # A rejected task is told of as such.
        if self._mine(request, sender) and not isinstance(exception, Reject):
            traceback = einfo.traceback[-_LONGEST_TRACEBACK:] if einfo is not None else None
            self._note("task-failed", task_id, exception=_repr(exception), traceback=traceback)

    def _retried(self, sender: Any, request: Context, reason: Any, einfo: Any, **named: Any) -> None:
        if self._mine(request, sender):
            error = reason.exc if getattr(reason, "exc", None) is not None else reason
            traceback = einfo.traceback[-_LONGEST_TRACEBACK:] if einfo is not None else None
            self._note("task-retried", request.id, exception=_repr(error), traceback=traceback)

    def _revoked(
        self, sender: Any, request: Context, terminated: bool, signum: Any, expired: bool, **named: Any
    ) -> None:
        if self._mine(request, sender):
            number = int(signum) if signum is not None else None
            self._note("task-revoked", request.id, terminated=terminated, signum=number, expired=expired)

    def _rejected(self, sender: Any, message: Any, exc: Any, **named: Any) -> None:
        if sender != self._hostname or not isinstance(message, Delivery):
            return
        self._note("task-rejected", _id_of(message), requeue=bool(getattr(exc, "requeue", False)))

    # -- the thread that sends -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(GATHER)
            self._some.clear()
            if not self._send_all():
                time.sleep(_RETRY_AFTER)
                self._some.set()

    def _send_all(self) -> bool:
        with self._sending:
            while self._waiting:
                batch = [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]
                try:
                    self._send(batch)
                except BrokerError as error:
                    logger.warning("Events could not be sent, and will be later: %s", error)
                    return False
                except SerializationError as error:
                    logger.error("Events could not be encoded: %s", error)
                for _ in batch:
                    if self._waiting:
                        self._waiting.popleft()
        return True

    def _send(self, batch: list[dict[str, Any]]) -> None:
        content_type, encoding, body = dumps(batch, self._app.conf.event_serializer, what="the events")
        message = Message(
            body=body,
            content_type=content_type,
            content_encoding=encoding,
            headers={"hostname": self._hostname},
            properties={"delivery_mode": 1},
        )
        self._app.broker.pubsub().publish(self._app.conf.event_exchange, message, routing_key="task.multi")


def _canvas(request: Context) -> dict[str, Any]:
    """Return what Celery's events leave out: the group that a task is in, and what its message says comes next."""
    fields: dict[str, Any] = {}
    if request.group:
        fields["group_id"] = request.group
    if (request.chain or request.chord) and (ahead := steps_ahead(request.chain, request.chord)):
        fields["ahead"] = ahead
    return fields


def _repr(error: Any) -> str:
    try:
        return saferepr(error)
    except Exception as inner:  # the exception's own code runs here
        return f"<unrepresentable {type(error).__name__}: {type(inner).__name__}>"


def _id_of(delivery: Delivery) -> str | None:
    """Return the id of the task that a delivery is, as far as its headers say."""
    try:
        message = delivery.message or decode_envelope(delivery.raw)
        id = message.headers.get("id")
        return id if isinstance(id, str) else decode_call(message).id
    except Exception:  # a message that can be anything; the event is for people to read
        return None
