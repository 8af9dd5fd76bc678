"""Which queues of a file have messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from umbel.brokers.sqlite.database import Database


def queues(url: str, options: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the queues that have messages anywhere, sorted. Raises :exc:`OperationalError`."""
    session = Database(url, options).session()
    try:
        with session.read() as connection:
            return sorted(name for (name,) in connection.execute("SELECT DISTINCT queue FROM messages"))
    finally:
        session.close()
