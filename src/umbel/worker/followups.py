"""What a finished task starts next: its callbacks, the next link of its chain, its errbacks.

Pure: it builds the messages, and the settlement of the task carries them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from umbel.interfaces import Outgoing
from umbel.message import Call
from umbel.publishing import build


def success_followups(app: Any, call: Call, value: Any) -> list[Outgoing]:
    """Return the messages that a success sends: each callback, then the next link of the chain."""
    follow = [_call(app, signature, (value,), call) for signature in call.callbacks or ()]
    if call.chain:
        # The chain travels reversed: the next link is at its end.
        rest = list(call.chain)
        step = rest.pop()
        follow.append(_call(app, step, (value,), call, chain=rest))
    return follow


def failure_followups(app: Any, call: Call) -> list[Outgoing]:
    """Return the messages that a failure sends: each errback, with the failed task's id prepended."""
    return [_call(app, signature, (call.id,), call) for signature in call.errbacks or ()]


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
