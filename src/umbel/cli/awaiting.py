"""Waiting for a result, as long as there may be one."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from umbel.cli.errors import EX_NOT_FOUND, Trouble
from umbel.cli.options import Target
from umbel.exceptions import BrokerError, CeleryError, OperationalError, TimeoutError

_LOOK: Final = 1.0  # seconds before anybody asks where the task is
_MOST: Final = 1000  # messages of one queue that are looked into


def wait(target: Target, app: Any, handle: Any, timeout: float | None, *, unknown: bool, watch: bool) -> Any:
    """Return a task's value, or what it raised.

    :param unknown: wait for an id that nobody knows, too. Otherwise it ends the command with exit code 3.

    Raises :exc:`~umbel.exceptions.TimeoutError`.
    """
    if unknown or not (target.names_app or target.broker):
        # Without an app nobody knows where its messages are.
        return _get(handle, timeout, watch=watch)
    started = time.monotonic()
    try:
        return _get(handle, _LOOK if timeout is None else min(timeout, _LOOK), watch=watch)
    except TimeoutError:
        if timeout is not None and timeout <= _LOOK:
            raise
    text = _look(app, handle)
    if text and not target.quiet:
        click.echo(f"Waiting. {text}", err=True)
    left = None if timeout is None else max(timeout - (time.monotonic() - started), 0.01)
    return _get(handle, left, watch=watch)


def _get(handle: Any, timeout: float | None, *, watch: bool) -> Any:
    if not watch:
        return handle.get(timeout=timeout, propagate=False)
    from umbel.watching import watch as watched

    return watched(handle, timeout, propagate=False)


def _look(app: Any, handle: Any) -> str:
    """Return where the task is, in words; ends the command where no result can come of it."""
    from umbel.history import open_history
    from umbel.why import why

    history = open_history(app)
    try:
        if handle.state != "PENDING":
            return f"It is {handle.state}."
        answer = why(app, handle.id, history=history)
        if answer.verdict == "unknown":
            if _mentioned(app, handle.id):
                return "Nobody knows this id yet; it may be of a later task of a workflow that is still there."
            # It may have been sent by another task between the two looks: there is no third place.
            answer = why(app, handle.id, history=history)
    except (OperationalError, BrokerError) as error:
        return f"Where it is cannot be known: {' '.join(str(error).split())}."
    finally:
        if history is not None:
            history.close()
    if answer.verdict == "unknown":
        raise Trouble(
            f"nothing is known of {handle.id}: no message, no result, no history; check the id, -A and the broker "
            "(--wait waits all the same; a result that was ignored or has expired is not kept)",
            EX_NOT_FOUND,
        )
    if answer.verdict == "finished" and not handle.ready():
        raise Trouble(f"there is no result of {handle.id} any more; {answer.text}", EX_NOT_FOUND)
    return answer.text


def _mentioned(app: Any, task_id: str) -> bool:
    """Say whether a message may send this task later: one of a chain or a chord has those after it in its body."""
    from umbel.interfaces import Place
    from umbel.message import decode_envelope

    broker, mark = app.broker, task_id.encode()
    for name in app.queues.known():
        for place in (Place.READY, Place.SCHEDULED, Place.HELD):
            size = broker.size(name, place)
            if size > _MOST:
                return True
            for seen in broker.peek(name, place=place, limit=size) if size else ():
                try:
                    message = seen.message or decode_envelope(seen.raw)
                except CeleryError:
                    continue
                if mark in message.body or "compression" in message.headers:
                    return True
    return False
