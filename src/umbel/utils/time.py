"""Names of days and months, and intervals in words."""

from __future__ import annotations

from typing import Final

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_UNITS: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def weekday(name: str) -> int:
    """Return the number of a day of the week, Sunday being 0. Raises :exc:`KeyError`."""
    return _position(name, _DAYS)


def yearmonth(name: str) -> int:
    """Return the number of a month, January being 1. Raises :exc:`KeyError`."""
    return _position(name, _MONTHS) + 1


def _position(name: str, names: tuple[str, ...]) -> int:
    # English in every locale, and as in Celery the first three letters decide.
    short = name[:3].lower()
    if short not in names:
        raise KeyError(name)
    return names.index(short)


def humanize_seconds(secs: float, prefix: str = "", sep: str = "", now: str = "now", microseconds: bool = False) -> str:
    """Return seconds in words, in the largest unit that fits: ``1.50 hours``."""
    secs = float(format(float(secs), ".2f"))
    for divider, unit in _UNITS:
        if secs >= divider:
            amount = secs / divider
            return f"{prefix}{sep}{amount:.2f} {unit}{'' if amount == 1 else 's'}"
    if microseconds and secs > 0.0:
        return f"{prefix}{sep}{secs:.2f} seconds"
    return now
