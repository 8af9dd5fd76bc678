"""How long to wait before trying again: Celery's exponential back-off with full jitter, and pauses spread evenly."""

from __future__ import annotations

import random


def exponential_backoff(factor: float, retries: int, maximum: float, *, full_jitter: bool = False) -> float:
    """Return the seconds to wait before retry number ``retries`` (from 0).

    ``factor * 2 ** retries``, at most ``maximum``. With jitter a whole number of seconds between zero and that,
    so that a thousand tasks that failed together do not come back together.

    >>> exponential_backoff(2, 3, 600)
    16.0
    >>> exponential_backoff(2, 30, 600)
    600.0
    """
    # 2 ** retries of an unlimited retry would overflow a float long after any maximum is reached.
    seconds = float(min(maximum, factor * (2 ** min(retries, 64))))
    if full_jitter:
        seconds = float(random.randrange(int(seconds) + 1))
    return max(0.0, seconds)


def spread(seconds: float, share: float = 0.2) -> float:
    """Return about so many seconds, at most that ``share`` more or less, so that a fleet does not act as one.

    >>> 8.0 <= spread(10.0) <= 12.0
    True
    """
    return seconds * random.uniform(1 - share, 1 + share)
