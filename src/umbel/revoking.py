"""Revoking: telling every worker, also those that are not running now, not to start a task.

A revocation is a value in the broker's small store, so it survives workers and is found by those that start later::

    revoked:<n>    JSON: the ids, whether to terminate, the signal, when; goes by itself after `expires` seconds
    revocations    changes with every revocation: all that a worker reads once a second

Nothing here talks to a worker. Each one looks at ``revocations`` once a second and reads the rest when it changed.
"""

from __future__ import annotations

import os
import signal as signals
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Store
from umbel.utils.identity import uuid

PREFIX: Final = "revoked:"
CHANGED: Final = "revocations"
#: Seconds that a revocation is kept: a task that becomes due later than that runs all the same.
EXPIRES: Final = 86400.0

_BATCH = 1000


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """One request: these tasks are not to be started and, with ``terminate``, to be stopped where they run."""

    ids: Sequence[str]
    terminate: bool = False
    signal: str = "SIGTERM"
    at: float = 0.0  # wall time


_decoder = msgspec.json.Decoder(Revocation)


def revoke(
    app: Any,
    ids: str | Iterable[str],
    *,
    terminate: bool = False,
    signal: str | int | None = None,
    expires: float | None = None,
) -> None:
    """Revoke these tasks. Returns when the store has it; each worker heeds it about a second later.

    :param expires: seconds to remember it; choose more than a day for tasks that are due later than that.

    Raises :exc:`OperationalError` if the store cannot be reached, and :exc:`ImproperlyConfigured` if this broker has
    no store. Revoking twice, or what has run already, is harmless.
    """
    name = signal_name(signal)
    store = store_of(app)
    ttl = expires if expires is not None else float(os.environ.get("CELERY_WORKER_REVOKE_EXPIRES") or EXPIRES)
    wanted = [ids] if isinstance(ids, str) else [str(id) for id in ids]
    for start in range(0, len(wanted), _BATCH):
        value = Revocation(ids=wanted[start : start + _BATCH], terminate=terminate, signal=name, at=time.time())
        store.put(PREFIX + uuid(), msgspec.json.encode(value), ttl=ttl)
    if wanted:
        # Last: whoever sees the change must find what changed.
        store.put(CHANGED, b"")


def store_of(app: Any) -> Store:
    """Return the store that holds revocations. Raises :exc:`ImproperlyConfigured` if there is none."""
    store: Store | None = app.broker.store()
    if store is None:
        raise ImproperlyConfigured("this broker keeps no shared state, so its tasks cannot be revoked")
    return store


def signal_name(signal: str | int | None) -> str:
    """Return the name of a signal given as Celery takes it: ``KILL``, ``SIGKILL`` or 9. Raises ``ValueError``.

    >>> signal_name("term"), signal_name(9), signal_name(None)
    ('SIGTERM', 'SIGKILL', 'SIGTERM')
    """
    if signal is None:
        return "SIGTERM"
    try:
        if isinstance(signal, int):
            return signals.Signals(signal).name
        name = signal.upper()
        return signals.Signals[name if name.startswith("SIG") else f"SIG{name}"].name
    except (KeyError, ValueError):
        raise ValueError(f"{signal!r} is no signal; use a name such as 'SIGTERM' or 'KILL', or its number") from None


class Revocations:
    """What has been revoked, as far as this process has read. Used by one thread; ``ids`` may be read by any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, Revocation] = {}
        self._version = 0
        self.ids: frozenset[str] = frozenset()

    def changed(self) -> bool:
        """Ask whether there is something new to read: one small request."""
        stored = self._store.get(CHANGED)
        return stored is not None and stored.version != self._version

    def read(self) -> list[Revocation]:
        """Read everything; return the revocations that were not there the last time. Old ones are forgotten."""
        stored = self._store.get(CHANGED)
        found: dict[str, Revocation] = {}
        new = []
        for key, each in self._store.scan(PREFIX):
            revocation = self._seen.get(key)
            if revocation is None:
                try:
                    revocation = _decoder.decode(each.value)
                except msgspec.MsgspecError:
                    # Of a later version, or not ours: it must not keep the others from being heeded.
                    revocation = Revocation(ids=())
                new.append(revocation)
            found[key] = revocation
        self._seen = found
        self._version = stored.version if stored is not None else 0
        self.ids = frozenset(id for revocation in found.values() for id in revocation.ids)
        return new
