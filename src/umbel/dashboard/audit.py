"""Who changed what, when, and from where. Written to the log, and kept in the broker's store where it has one."""

from __future__ import annotations

import logging
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from umbel.exceptions import BrokerError, OperationalError

logger = logging.getLogger("umbel.dashboard.audit")

_KEY: Final = "dashboard:audit"
_KEPT: Final = 500
_TRIES: Final = 20


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One action."""

    at: datetime
    who: str
    where: str  # the address that it came from
    action: str
    target: str = ""
    outcome: str = ""
    count: int | None = None


_read = msgspec.json.Decoder(list[Entry]).decode


class Audit:
    """The latest actions of all dashboards of an app. Safe to share between threads."""

    def __init__(self, app: Any) -> None:
        self._app = app
        # For brokers without a store, and while it is away.
        self._here: deque[Entry] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    @property
    def durable(self) -> bool:
        """Whether the entries outlive this process."""
        return self._app.broker.store() is not None

    def write(
        self,
        who: str,
        where: str,
        action: str,
        *,
        outcome: str,
        target: str = "",
        count: int | None = None,
        keep: bool = True,
    ) -> None:
        """Write an action down. Never raises: what was done is done.

        :param keep: False for what strangers can cause as often as they like: it goes to the log alone, and pushes
            nothing out of what is kept.
        """
        entry = Entry(
            at=datetime.now(UTC),
            who=who[:200],
            where=where[:100],
            action=action,
            target=target[:300],
            outcome=outcome[:300],
            count=count,
        )
        logger.info(
            "%s from %s: %s %r %s: %r", entry.who, entry.where, action, entry.target,
            "" if count is None else count, entry.outcome,
        )  # fmt: skip
        if not keep:
            return
        try:
            if self._store(entry):
                return
        except (BrokerError, OperationalError) as error:
            logger.warning("The audit log could not be stored: %s", error)
        with self._lock:
            self._here.append(entry)

    def entries(self) -> list[Entry]:
        """Return the latest actions, the newest first."""
        store = self._app.broker.store()
        stored = store.get(_KEY) if store is not None else None
        with self._lock:
            found = list(self._here)
        if stored is not None:
            found += _read(stored.value)
        return sorted(found, key=lambda entry: entry.at, reverse=True)

    def _store(self, entry: Entry) -> bool:
        store = self._app.broker.store()
        if store is None:
            return False
        for _ in range(_TRIES):
            stored = store.get(_KEY)
            kept = _read(stored.value) if stored is not None else []
            value = msgspec.json.encode([*kept, entry][-_KEPT:])
            if store.put(_KEY, value, if_version=stored.version if stored is not None else 0) is not None:
                return True
        return False
