"""What a finished task starts next: its callbacks, the next link of its chain, its errbacks.

The messages are built here and travel in the settlement of the task. Errbacks of Celery's newer style, which take
``(request, exc, traceback)``, are no messages: they are called in the process that ends the task.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from umbel.context import Context
from umbel.eager import takes_error
from umbel.exceptions import NotRegistered
from umbel.interfaces import Outgoing
from umbel.message import Call
from umbel.publishing import build
from umbel.signature import Signature, maybe_signature
from umbel.tracing import run_coroutine

logger = logging.getLogger("celery.app.trace")


def success_followups(app: Any, call: Call, value: Any) -> list[Outgoing]:
    """Return the messages that a success sends: each callback, then the next link of the chain."""
    follow = [_call(app, signature, (value,), call) for signature in call.callbacks or ()]
    if call.chain:
        # The chain travels reversed: the next link is at its end.
        rest = list(call.chain)
        step = rest.pop()
        follow.append(_call(app, step, (value,), call, chain=rest))
    return follow


class Errbacks:
    """The errbacks of one failed call: those that are sent, and those that are called."""

    __slots__ = ("called", "sent")

    def __init__(self, app: Any, call: Call) -> None:
        #: Messages, each with the failed task's id as its first argument.
        self.sent: list[Outgoing] = []
        #: Signatures of the newer style whose task is registered here.
        self.called: list[Signature[Any]] = []
        for raw in call.errbacks or ():
            signature = maybe_signature(raw, app=app)
            if signature is not None and _takes_error(signature):
                self.called.append(signature)
            else:
                self.sent.append(_call(app, raw, (call.id,), call))

    def run(self, context: Context, error: BaseException, traceback: str | None) -> None:
        """Call those that are called. What they raise is logged and changes nothing: the task has failed already."""
        for signature in self.called:
            try:
                value = signature.type(context, error, traceback, *signature.args, **signature.kwargs)
                if inspect.iscoroutine(value):
                    run_coroutine(value)
            # The wall around user code.
            except Exception:
                logger.error("Errback %s of %s[%s] raised", signature.task, context.task, context.id, exc_info=True)


def _takes_error(signature: Signature[Any]) -> bool:
    try:
        return takes_error(signature)
    except NotRegistered:
        # Another worker knows it, and that one gets it as a message.
        return False


def _call(
    app: Any, signature: Mapping[str, Any], partial: Sequence[Any], parent: Call, chain: list[Any] | None = None
) -> Outgoing:
    options = dict(signature.get("options") or {})
    args = list(signature.get("args") or ())
    if not signature.get("immutable"):
        args = [*partial, *args]
    if chain:
        options["chain"] = chain
    options["root_id"] = parent.headers.get("root_id") or parent.id
    options["parent_id"] = parent.id
    return build(app, signature["task"], args, dict(signature.get("kwargs") or {}), options)
