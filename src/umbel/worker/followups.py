"""What a finished task starts next: its callbacks, the next link of its chain, its errbacks.

The messages are built here and travel in the settlement of the task. Errbacks of Celery's newer style, which take
``(request, exc, traceback)``, are no messages: they are called in the process that ends the task.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from umbel.canvas_base import as_signature, kind_of
from umbel.canvas_group import group
from umbel.collecting import Collected
from umbel.context import Context
from umbel.current import pop_frame, push_frame
from umbel.eager import takes_error
from umbel.exceptions import NotRegistered
from umbel.interfaces import Outgoing
from umbel.message import Call
from umbel.signatures import Signature
from umbel.tracing import run_coroutine

logger = logging.getLogger("celery.app.trace")


def success_followups(app: Any, task: Any, call: Call, context: Context, value: Any) -> list[Outgoing]:
    """Return the messages that a success sends: each callback, then the next link of the chain.

    Their results become children of the task: one callback's own, several ones' as one group.
    """
    outbox = Collected(app)
    family = _family(call)
    with running(task, context):
        for callback in _callbacks(app, call.callbacks or ()):
            callback._deliver(outbox, (value,), {}, dict(family))
        if call.chain:
            # The chain travels reversed: the next link is at its end.
            *rest, step = call.chain
            options = {**family, "chain": rest} if rest else dict(family)
            as_signature(step, app)._deliver(outbox, (value,), {}, options)
    return outbox.outgoings


def _callbacks(app: Any, raw: Sequence[Any]) -> Iterator[Signature[Any]]:
    found = [as_signature(each, app) for each in raw]
    if len(found) < 2:
        yield from found
        return
    alone = [each for each in found if kind_of(each) != "group"]
    yield from (each for each in found if kind_of(each) == "group")
    if alone:
        yield group(alone, app=app)


@contextmanager
def running(task: Any, context: Context) -> Iterator[None]:
    """Have what is sent in the block count as sent by this attempt, which has ended."""
    push_frame(task, context)
    try:
        yield
    finally:
        pop_frame()


def _family(call: Call) -> dict[str, Any]:
    return {"root_id": call.headers.get("root_id") or call.id, "parent_id": call.id}


class Errbacks:
    """The errbacks of one failed call: those that are sent, and those that are called."""

    def __init__(self, app: Any, call: Call) -> None:
        self._app = app
        self._call = call
        self._apart: list[Signature[Any]] = []
        #: Signatures of the newer style whose task is registered here.
        self.called: list[Signature[Any]] = []
        for raw in call.errbacks or ():
            errback = as_signature(raw, app)
            (self.called if _takes_error(errback) else self._apart).append(errback)

    @cached_property
    def sent(self) -> list[Outgoing]:
        """Messages, each with the failed task's id as its first argument."""
        outbox = Collected(self._app)
        for errback in self._apart:
            errback._deliver(outbox, (self._call.id,), {}, {**_family(self._call), "add_to_parent": False})
        return outbox.outgoings

    def run(self, context: Context, error: BaseException, traceback: str | None) -> None:
        """Call those that are called. What they raise is logged and changes nothing: the task has failed already."""
        for errback in self.called:
            try:
                value = errback.type(context, error, traceback, *errback.args, **errback.kwargs)
                if inspect.iscoroutine(value):
                    run_coroutine(value)
            # The wall around user code.
            except Exception:
                logger.error("Errback %s of %s[%s] raised", errback.task, context.task, context.id, exc_info=True)


def _takes_error(errback: Signature[Any]) -> bool:
    try:
        return not kind_of(errback) and takes_error(errback)
    except NotRegistered:
        # Another worker knows it, and that one gets it as a message.
        return False
