"""Rates as Celery writes them."""

from __future__ import annotations

import math
from typing import Any, Final

_PER: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def per_second(rate: Any) -> float:
    """Return how many per second; 0.0 for no limit. Raises ``ValueError`` for what is no rate.

    >>> per_second("30/m"), per_second(5), per_second(None), per_second("0.5/s")
    (0.5, 5.0, 0.0, 0.5)
    """
    if rate is None or rate == "":
        return 0.0
    number, _, per = str(rate).partition("/")
    try:
        value = float(number) / _PER[per.strip() or "s"]
    except (KeyError, ValueError):
        value = -1.0
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"{rate!r} is no rate; write a number per second, or such as '5/s', '10/m' or '100/h'")
    return value
