"""Everything about results, under the names that Celery's ``celery.result`` has."""

from __future__ import annotations

from umbel.asyncresult import AsyncResult, EagerResult, result_from_tuple
from umbel.current import allow_join_result, denied_join_result
from umbel.groupresult import GroupResult, ResultSet
from umbel.resultbase import ResultBase, assert_will_not_block
from umbel.waiting import Waiter

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "ResultBase",
    "ResultSet",
    "Waiter",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "result_from_tuple",
]
