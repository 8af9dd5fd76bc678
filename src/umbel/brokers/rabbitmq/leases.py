"""Leases where the connection is the lease: there is nothing to renew, and a dead process has lost what it held."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence

from umbel.brokers.rabbitmq.notes import Notes
from umbel.brokers.rabbitmq.started import Started
from umbel.exceptions import OperationalError
from umbel.interfaces import Leases, Reaped, Suspect, Verdict

logger = logging.getLogger("umbel.brokers.rabbitmq")


class RabbitLeases(Leases):
    """See :class:`umbel.interfaces.Leases`. Holds no connection of its own."""

    def __init__(self, notes: Notes, started: Started, end: Callable[[str], int]) -> None:
        """``end`` closes the consumer of this id, if it lives in this process, and says how much it held."""
        self._notes = notes
        self._started = started
        self._end = end
        self._born = os.urandom(4).hex()
        self._count = 0

    def register(self, node: str) -> str:
        """Return a new consumer id."""
        self._count += 1
        return f"{node}:{self._born}:{self._count}"

    def renew(self, ids: Sequence[str]) -> Collection[str]:
        """Return nothing: whoever loses its connection finds out by itself."""
        return ()

    def release(
        self,
        id: str,
        *,
        started: Collection[str] = (),
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> int:
        """Leave the verdicts for whoever takes the messages next; the server has given them back already.

        What was acknowledged before it ran is sent back together with its verdict.
        """
        # Whatever this process itself had to write is written then.
        held = self._end(id)
        sent_back = self._started.condemn(id, verdicts or {})
        for tag, verdict in (verdicts or {}).items():
            key = tag.split(".")[2:]
            if key and tag not in sent_back:
                self._notes.condemn(key[0], verdict, id)
        try:
            self._started.forget(id)
        except OperationalError as error:
            # It goes by itself.
            logger.debug("what consumer %s had put aside could not be deleted: %s", id, error)
        return held

    def suspects(self) -> Sequence[Suspect]:
        """Return nobody: the server knows who is gone."""
        return ()

    def reap(self, suspect: Suspect) -> Reaped:
        """Do nothing."""
        return Reaped(moved=0, left=0)

    def close(self) -> None:
        """Do nothing."""
