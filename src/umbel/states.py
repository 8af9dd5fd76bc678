"""Task states, which of them are final, and which one wins when two writers meet.

The names and their order are Celery's: they are what its clients read from the result backend.
"""

from __future__ import annotations

from typing import Final

PENDING: Final = "PENDING"  # no record: waiting, or an id nobody knows
RECEIVED: Final = "RECEIVED"
STARTED: Final = "STARTED"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"
REJECTED: Final = "REJECTED"
RETRY: Final = "RETRY"
IGNORED: Final = "IGNORED"

READY_STATES: Final = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES: Final = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES: Final = frozenset({FAILURE, REVOKED})
ALL_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED})

# ``None`` stands for every state of a user's own.
_ORDER: Final = (SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING)
PRECEDENCE: Final = list(_ORDER)
PRECEDENCE_LOOKUP: Final = {name: rank for rank, name in enumerate(_ORDER)}
NONE_PRECEDENCE: Final = PRECEDENCE_LOOKUP[None]


def precedence(state: str) -> int:
    """Return the rank of a state; the lower rank wins."""
    return PRECEDENCE_LOOKUP.get(state, NONE_PRECEDENCE)


def replaces(new: str, old: str) -> bool:
    """Say whether a record in state ``new`` may replace one in state ``old``.

    A ready state is never replaced by an unready one, and SUCCESS is never replaced at all.
    """
    if old == SUCCESS:
        return False
    return new in READY_STATES or old not in READY_STATES


class state(str):
    """A state name that compares by precedence: ``state("STARTED") > state("PENDING")``."""

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
