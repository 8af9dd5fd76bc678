"""How amounts are written for people: numbers, how often, how long, how long ago."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_STEPS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def count(value: float | int | None) -> str:
    """Return a whole number with its thousands apart.

    >>> count(12345), count(None)
    ('12,345', '–')
    """
    return "–" if value is None else f"{int(value):,}"


def rate(value: float | None) -> str:
    """Return how often a second.

    >>> rate(0), rate(0.04), rate(3.25), rate(1234.5)
    ('0', '0.04', '3.3', '1,234')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.2f}" if value < 1 else f"{value + 1e-9:,.1f}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a span of time, with its two largest parts.

    >>> duration(0.0042), duration(3.14159), duration(75), duration(7380), duration(200000)
    ('4 ms', '3.1 s', '1m 15s', '2h 3m', '2d 7h')
    """
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for at, (size, unit) in enumerate(_STEPS):
        if seconds >= size:
            smaller, name = _STEPS[at + 1] if at + 1 < len(_STEPS) else (1, "s")
            rest = int(seconds % size // smaller)
            return f"{int(seconds // size)}{unit}" + (f" {rest}{name}" if rest else "")
    return "–"


def ago(moment: datetime | float | None) -> str:
    """Return how long ago that was, or in how long it will be."""
    if moment is None:
        return "–"
    at = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
    seconds = (datetime.now(UTC) - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"
