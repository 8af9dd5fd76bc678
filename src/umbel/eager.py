"""Running a task in the caller: ``apply()`` and ``task_always_eager``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from umbel import states
from umbel.asyncresult import EagerResult
from umbel.context import Context
from umbel.current import worker_frame
from umbel.exceptions import Retry
from umbel.message import checked_id
from umbel.serialization import dumps, loads
from umbel.signatures import Signature, as_list, maybe_signature
from umbel.tracing import Traced, run_eager
from umbel.utils.identity import uuid
from umbel.utils.nodenames import gethostname


def round_trip(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments as a worker would get them, so that eager runs find what cannot be serialized."""
    serializer = options.get("serializer") or task.serializer
    content_type, encoding, data = dumps([args, kwargs], serializer)
    args, kwargs = loads(data, content_type, encoding, accept=[content_type])
    return args, kwargs


def apply_eagerly(
    task: Any, args: Any, kwargs: Any, retries: int, throw: bool | None, options: Mapping[str, Any]
) -> EagerResult[Any]:
    """Run the task to its end, trying again at once where it asks for that, and then its callbacks."""
    app = task.app
    # A method of a task class that was never registered runs as itself.
    task = app.registry.get(task.name, task)
    task_id = checked_id(options.get("task_id") or uuid())
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    while True:
        context = _context(task, task_id, args, kwargs, retries, options)
        traced = run_eager(task, context, args, kwargs)
        retry = traced.result
        if traced.state != states.RETRY or not isinstance(retry, Retry) or retry.sig is None:
            break
        args, kwargs, retries = tuple(retry.sig.args), dict(retry.sig.kwargs), retries + 1
    if task.store_eager_result and not context.ignore_result and traced.state in states.READY_STATES:
        app.store_state(task, task_id, traced.state, traced.result, context, traced.traceback)
    _follow(app, context, traced)
    if throw is None:
        throw = app.conf.task_eager_propagates
    if throw and traced.state in states.PROPAGATE_STATES:
        raise traced.result
    return EagerResult(task_id, traced.result, traced.state, traceback=traced.traceback, name=task.name)


def _context(task: Any, task_id: str, args: Any, kwargs: Any, retries: int, options: Mapping[str, Any]) -> Context:
    frame = worker_frame()
    said = options.get("ignore_result")
    limits = task.time_limit, task.soft_time_limit
    fields: dict[str, Any] = {
        "id": task_id,
        "task": task.name,
        "args": args,
        "kwargs": kwargs,
        "parent_id": frame.request.id if frame else None,
        "root_id": (frame.request.root_id if frame else None) or task_id,
        "retries": retries,
        "is_eager": True,
        "called_directly": False,
        "logfile": options.get("logfile"),
        "loglevel": options.get("loglevel") or 0,
        "hostname": gethostname(),
        "callbacks": as_list(options.get("link")),
        "errbacks": as_list(options.get("link_error")),
        "headers": options.get("headers"),
        "timelimit": None if limits == (None, None) else list(limits),
        "ignore_result": bool(task.ignore_result if said is None else said),
        "delivery_info": {
            "is_eager": True,
            "exchange": options.get("exchange"),
            "routing_key": options.get("routing_key"),
            "priority": options.get("priority"),
        },
    }
    if options.get("stamped_headers"):
        names = as_list(options["stamped_headers"]) or []
        fields.update(stamped_headers=names, stamps={name: as_list(options.get(name, [])) for name in names})
    return Context(fields)


def _follow(app: Any, context: Context, traced: Traced) -> None:
    if traced.state == states.SUCCESS:
        for callback in context.callbacks or ():
            _signature(callback, app).apply((traced.result,))
    elif traced.state == states.FAILURE:
        for errback in context.errbacks or ():
            sig = _signature(errback, app)
            if takes_error(sig):
                sig.type(context, traced.result, traced.traceback, *sig.args, **sig.kwargs)
            else:
                sig.apply((context.id,))


def _signature(value: Any, app: Any) -> Signature[Any]:
    found = maybe_signature(value, app=app)
    assert found is not None
    return found


def takes_error(sig: Signature[Any]) -> bool:
    """Say whether an errback is called as ``errback(request, exc, traceback)``, and not as a task with the failed id.

    So it is for the task of a plain function that has more than one positional parameter left to fill.
    """
    task = sig.type
    function = getattr(task, "_decorated_fun", None)
    # Not its ``run``, in whose place is a plain function where the task tries again by itself.
    if function is None or sig.immutable or inspect.ismethod(task.__wrapped__):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind == each.VAR_POSITIONAL for each in parameters):
        return True
    left = [each for each in parameters if each.kind in kinds and each.name not in sig.kwargs]
    return len(left) - len(sig.args) > 1
