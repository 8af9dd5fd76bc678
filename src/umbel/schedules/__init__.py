"""When something recurs: :class:`crontab`, :class:`schedule` (an interval), :class:`solar` and :class:`clocked`.

They can be put together: ``a | b`` is due whenever one of the two is, ``a & b`` when both are, and each has
``between(start, end)`` and ``jitter(seconds)``.
"""

from umbel.schedules.base import BaseSchedule, Both, Bounded, Either, Jittered, clocked, schedstate
from umbel.schedules.cron import crontab
from umbel.schedules.fields import ParseException, crontab_parser
from umbel.schedules.interval import maybe_schedule, schedule
from umbel.schedules.sun import solar

__all__ = [
    "BaseSchedule",
    "Both",
    "Bounded",
    "Either",
    "Jittered",
    "ParseException",
    "clocked",
    "crontab",
    "crontab_parser",
    "maybe_schedule",
    "schedstate",
    "schedule",
    "solar",
]
