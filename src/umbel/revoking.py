"""Revoking: telling every worker, also those that are not running now, not to start a task.

A revocation is a value in the broker's small store, so it survives workers and is found by those that start later::

    revoked:<n>    JSON: the ids or stamps, whether to terminate, the signal, when; goes by itself after `expires`
                   seconds
    revocations    changes with every revocation: all that a worker reads once a second

Nothing here talks to a worker. Each one looks at ``revocations`` once a second and reads the rest when it changed.
Where the broker has no such store, that of the result backend is used. Where there is none at all, remote control tells
the workers that run now, as in Celery, and each of them remembers it until it ends.
"""

from __future__ import annotations

import os
import signal as signals
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Store
from umbel.utils.identity import uuid

PREFIX: Final = "revoked:"
CHANGED: Final = "revocations"
#: Seconds that a revocation is kept: a task that becomes due later than that runs all the same.
EXPIRES: Final = 86400.0

#: How many revocations a worker remembers that was only told of them.
MOST_HEARD: Final = 10_000

_BATCH = 1000


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """One request: these tasks are not to be started and, with ``terminate``, to be stopped where they run."""

    ids: Sequence[str]
    terminate: bool = False
    signal: str = "SIGTERM"
    at: float = 0.0  # wall time
    stamps: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)  # tasks that carry one of these
    expires: float = 0.0  # seconds to remember it, for whoever does so in memory; 0.0: as long as usual


class RevokedTasks(msgspec.Struct, frozen=True):
    """What must not be started: these ids, and what carries one of these stamps."""

    ids: frozenset[str] = frozenset()
    stamps: Mapping[str, frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.ids or self.stamps)

    def meets(self, id: str, stamps: Any) -> bool:
        """Say whether the task of this id, with what its message says under ``stamps``, is among them."""
        return id in self.ids or (bool(self.stamps) and self.stamped(stamps))

    def stamped(self, stamps: Any) -> bool:
        """Say whether a message with these stamps is among them."""
        given = stamps if isinstance(stamps, dict) else {}
        return any(not wanted.isdisjoint(stamp_values(given.get(name))) for name, wanted in self.stamps.items())


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
    wanted = [ids] if isinstance(ids, str) else [str(id) for id in ids]
    if wanted:
        keep(app, Revocation(ids=wanted, terminate=terminate, signal=name, at=time.time()), expires=expires)


def revoke_by_stamps(
    app: Any,
    stamps: Mapping[str, str | Iterable[str]],
    *,
    terminate: bool = False,
    signal: str | int | None = None,
    expires: float | None = None,
) -> None:
    """Do :func:`revoke` for all tasks that carry one of these stamps, whenever they are sent."""
    name = signal_name(signal)
    wanted = {header: sorted(stamp_values(value)) for header, value in stamps.items()}
    if wanted:
        value = Revocation(ids=(), terminate=terminate, signal=name, at=time.time(), stamps=wanted)
        keep(app, value, expires=expires)


def keep(app: Any, revocation: Revocation, *, expires: float | None = None) -> None:
    """Write a revocation where every worker finds it. Errors as in :func:`revoke`."""
    store = store_of(app)
    ttl = _ttl(revocation.expires or expires)
    for start in range(0, max(len(revocation.ids), 1), _BATCH):
        part = msgspec.structs.replace(revocation, ids=revocation.ids[start : start + _BATCH])
        store.put(PREFIX + uuid(), msgspec.json.encode(part), ttl=ttl)
    # Last: whoever sees the change must find what changed.
    store.put(CHANGED, b"")


def stamp_values(value: Any) -> frozenset[str]:
    """Return the values of one stamp, which is a list or a single value, as texts.

    >>> sorted(stamp_values(["a", 7])), stamp_values(None)
    (['7', 'a'], frozenset())
    """
    if value is None:
        return frozenset()
    return frozenset(map(str, value)) if isinstance(value, list | tuple | set | frozenset) else frozenset({str(value)})


def _ttl(expires: float | None) -> float:
    return expires if expires is not None else float(os.environ.get("CELERY_WORKER_REVOKE_EXPIRES") or EXPIRES)


def shared_store(app: Any) -> Store | None:
    """Return the store that revocations are kept in: the broker's, else that of the results; None without either."""
    store: Store | None = app.broker.store()
    if store is None and app.backend is not None:
        store = app.backend.shared_store()
    return store


def store_of(app: Any) -> Store:
    """Return the store that holds revocations. Raises :exc:`ImproperlyConfigured` if there is none."""
    store = shared_store(app)
    if store is None:
        raise ImproperlyConfigured(
            "neither this broker nor the result backend keeps shared state, so what is revoked can only be told to the "
            "workers that run now; use a result backend such as redis:// or sqlite:// to have it kept"
        )
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
    """What has been revoked, as far as this process has read. Used by one thread; ``revoked`` may be read by any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, Revocation] = {}
        self._version = 0
        self.revoked = RevokedTasks()

    @property
    def ids(self) -> frozenset[str]:
        """The revoked ids."""
        return self.revoked.ids

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
        self.revoked = _all_of(found.values())
        return new


class HeardRevocations:
    """What was revoked while this process ran, where no store keeps it. May be told and asked by any thread.

    Each is forgotten after its time, and the oldest where there are more than :data:`MOST_HEARD`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: deque[tuple[float, Revocation]] = deque()
        self._new: list[Revocation] = []
        self.revoked = RevokedTasks()

    def tell(self, revocations: Iterable[Revocation]) -> None:
        """Heed these from the next :meth:`read` on."""
        now = time.monotonic()
        with self._lock:
            for each in revocations:
                self._heard.append((now + (each.expires or EXPIRES), each))
                self._new.append(each)
            while sum(max(len(each.ids), 1) for _, each in self._heard) > MOST_HEARD and len(self._heard) > 1:
                self._heard.popleft()

    def all(self) -> list[Revocation]:
        """Return all that is still remembered."""
        now = time.monotonic()
        with self._lock:
            return [each for until, each in self._heard if until > now]

    def changed(self) -> bool:
        """Say whether there is something new to read."""
        return bool(self._new)

    def read(self) -> list[Revocation]:
        """Return what was told since the last time; old ones are forgotten."""
        now = time.monotonic()
        with self._lock:
            new, self._new = self._new, []
            self._heard = deque(each for each in self._heard if each[0] > now)
            self.revoked = _all_of([each for _, each in self._heard])
        return new


def _all_of(revocations: Collection[Revocation]) -> RevokedTasks:
    stamps: dict[str, set[str]] = {}
    for revocation in revocations:
        for header, values in revocation.stamps.items():
            stamps.setdefault(header, set()).update(values)
    return RevokedTasks(
        frozenset(id for revocation in revocations for id in revocation.ids),
        {header: frozenset(values) for header, values in stamps.items()},
    )
