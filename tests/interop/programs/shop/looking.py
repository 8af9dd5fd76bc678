"""What a result says of itself, as JSON has it."""

import time

from celery.result import GroupResult
from shop import journal

WAIT = 20


def attempt(call, *args, **kwargs):
    """Return what comes of a call."""
    try:
        return journal.plain(call(*args, **kwargs))
    except Exception as exc:
        return journal.error(exc)


def seen(result, *, wait=WAIT):
    """Return all that a result says of itself, once it is there or the seconds have passed."""
    outcome = attempt(result.get, timeout=wait) if wait else None
    if isinstance(result, GroupResult):
        return seen_group(result, outcome)
    settled(result)
    return {
        "outcome": outcome,
        "state": str(result.state),
        "ready": [result.ready(), result.successful(), result.failed()],
        "info": attempt(lambda: result.info),
        "traceback": (result.traceback or "").strip().splitlines()[-1:],
        "children": [journal.plain(child) for child in result.children or ()],
        "parent": result.parent.id if result.parent else None,
        "extended": {
            name: journal.plain(getattr(result, name))
            for name in ("name", "args", "kwargs", "worker", "retries", "queue")
        },
        "done": type(result.date_done).__name__,
        "tuple": journal.plain(result.as_tuple()),
        "text": [repr(result), str(result)],
    }


def seen_group(result, outcome):
    until(result.ready)
    return {
        "outcome": outcome,
        "counts": [len(result), result.completed_count(), result.ready(), result.successful(), result.failed()],
        "waiting": result.waiting(),
        "members": [seen(member) for member in result],
        "tuple": journal.plain(result.as_tuple()),
        "parent": result.parent.id if result.parent else None,
    }


def settled(result):
    """Wait until a result that is ready has all its fields: a revoked one is stored by another process."""
    deadline = time.monotonic() + WAIT
    while not result.ready() and str(result.state) in ("STARTED", "RETRY") and time.monotonic() < deadline:
        time.sleep(0.05)


def until(check):
    deadline = time.monotonic() + WAIT
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
