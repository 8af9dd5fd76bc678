"""Pausing: a paused queue takes messages, and no worker fetches from it until it is resumed.

What is paused is one value in the broker's small store, or where the broker has none, in that of the results, so it
survives workers and brokers that restart::

    paused    JSON: {queue: {"at": moment, "by": who, "why": reason}}

It is never deleted, only emptied. Nothing here talks to a worker: each one reads it before it fetches its first message
and once a second from then on.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from umbel.drivers import mask
from umbel.exceptions import DecodeError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Store
from umbel.revoking import shared_store
from umbel.utils.nodenames import gethostname

KEY: Final = "paused"
#: Characters that the name of a queue, a reason and the name of whoever pauses may have.
LONGEST: Final = 255
_TRIES: Final = 50


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Since when a queue is paused, by whom and why."""

    at: datetime  # aware, in UTC
    by: str = ""
    why: str = ""


Paused = Mapping[str, Pause]

_decoder = msgspec.json.Decoder(dict[str, Pause])


def read_paused(app: Any) -> dict[str, Pause]:
    """Return the paused queues, by name; none where the app has no place to keep that.

    Raises :exc:`OperationalError` if the store cannot be reached.
    """
    store = shared_store(app)
    return {} if store is None else _read(store)[0]


def change_paused(app: Any, change: Callable[[dict[str, Pause]], object]) -> dict[str, Pause]:
    """Change which queues are paused in one step, and return them. ``change`` runs again where others were quicker.

    Raises :exc:`ImproperlyConfigured` if the app has no place to keep it, and :exc:`OperationalError` if that cannot
    be reached.
    """
    store = _store_of(app)
    for _ in range(_TRIES):
        paused, version = _read(store)
        before = dict(paused)
        change(paused)
        if paused == before or store.put(KEY, _encode(paused), if_version=version) is not None:
            return paused
    raise OperationalError("others pause and resume queues all the time, so nothing was changed here; try again")


def whoami() -> str:
    """Return the user and the machine of this process, as far as the system knows them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container, where nobody has a name
        user = ""
    return f"{user}@{gethostname()}" if user else gethostname()


def _store_of(app: Any) -> Store:
    store = shared_store(app)
    if store is None:
        results = app.urls.backend
        raise ImproperlyConfigured(
            f"queues cannot be paused here: neither the broker {mask(app.urls.read)} nor the result backend "
            f"{mask(results) if results else '(there is none)'} keeps shared state, so workers that start later would "
            "not know of it; use a result backend such as redis:// or sqlite://"
        )
    return store


def _read(store: Store) -> tuple[dict[str, Pause], int]:
    """Return what is paused, and the version of that."""
    stored = store.get(KEY)
    return ({}, 0) if stored is None else (_decode(stored.value), stored.version)


def _decode(value: bytes) -> dict[str, Pause]:
    try:
        return _decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"which queues are paused cannot be read, for the store's {KEY!r} is: {error}") from error


def _encode(paused: Paused) -> bytes:
    return msgspec.json.encode(dict(sorted(paused.items())))


class Pauses:
    """What is paused, as far as this process has read. Used by one thread; ``paused`` may be read by any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._value = b""
        self.paused: Paused = {}

    def changed(self) -> bool:
        """Read it, which is one small request, and say whether it is not what it was the last time.

        Raises :exc:`DecodeError`, once for each value, for one that is not ours; what was known before then holds.
        """
        stored = self._store.get(KEY)
        # Not by the version: a store that was emptied counts from the start again.
        value = stored.value if stored is not None else b""
        if value == self._value:
            return False
        self._value = value
        paused = _decode(value) if value else {}
        changed = paused != self.paused
        self.paused = paused
        return changed
