"""Reading what a message says, and saying moments and names to people."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from umbel.exceptions import CeleryError
from umbel.interfaces import Crash, Sighting
from umbel.message import decode_envelope
from umbel.pausing import Pause
from umbel.utils.text import one_line


def headers_of(seen: Sighting) -> Mapping[str, Any]:
    with contextlib.suppress(CeleryError):
        message = seen.seen.message or decode_envelope(seen.seen.raw)
        return message.headers
    return {}


def crash_of(crash: Crash) -> dict[str, str]:
    return {"at": crash.at.isoformat(), "consumer": crash.consumer, "cause": crash.cause}


def since_of(pause: Pause, now: datetime) -> str:
    """Return since when, by whom and why a queue is paused."""
    why = f" ({one_line(pause.why)})" if pause.why else ""
    return f"since {moment(pause.at, now)} by {one_line(pause.by) or 'somebody'}{why}"


def time_of(value: Any) -> datetime | None:
    """Return the moment in a header, which anybody may have written."""
    try:
        if isinstance(value, datetime):
            found = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found = datetime.fromtimestamp(value, UTC)
        elif isinstance(value, str):
            found = datetime.fromisoformat(value)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def moment(when: datetime | None, now: datetime) -> str:
    """Return a moment and how far away it is, for people."""
    if when is None:
        return "an unknown time"
    seconds = (when - now).total_seconds()
    away = length(abs(seconds))
    text = when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"{text} ({'in ' + away if seconds > 0 else away + ' ago'})"


def length(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def names(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
