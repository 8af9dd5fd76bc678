"""Values of labels, of which there must be few: each makes a series that is kept for hours or weeks.

Names come in events, which anybody can send who reaches the broker. So a value is one that was known beforehand, or
one of a limited number that were learned, or else :data:`OTHER`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

#: Stands for every name that is not known.
OTHER: Final = "other"
_LONGEST: Final = 255


class Labels:
    """The values of one label. Used by any thread: sets of names are replaced, or grow by one."""

    def __init__(self, known: Iterable[str] = (), *, limit: int) -> None:
        """``known`` are always values; ``limit`` is how many more may be learned."""
        self._known = frozenset(known)
        self._limit = limit
        self._learned: set[str] = set()

    def of(self, name: Any) -> str:
        """Return the value for a name: itself if it is known."""
        return name if isinstance(name, str) and (name in self._known or name in self._learned) else OTHER

    def learn(self, name: Any) -> str:
        """Return the value for a name, which is known from now on if there is room for it."""
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not name.isprintable():
            return OTHER
        if name not in self._known and len(self._learned) < self._limit:
            self._learned.add(name)
        return self.of(name)

    def forget(self, name: str) -> None:
        """Make room for another one."""
        self._learned.discard(name)
