"""``app.queues``: the queues of an app, those that are known beyond it, and pausing them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import OperationalError
from umbel.interfaces import QueueSpec, Store
from umbel.pausing import LONGEST, Pause, change_paused, read_paused, whoami

#: Under this prefix workers say in the broker's store what they read.
PRESENCE: Final = "worker:"


class Queues:
    """The queues of an app. Safe to share between threads.

    Called, it returns what a worker reads: ``app.queues()``. A paused queue goes on taking messages, and no worker of
    Umbel fetches from it until it is resumed; tasks that run go on. All other methods raise :exc:`OperationalError` if
    the store cannot be reached.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, names: Sequence[str] | str | None = None) -> list[QueueSpec]:
        """Return the queues of these names, or those that a worker reads by default."""
        found: list[QueueSpec] = self._app.router.select(names)
        return found

    # -- pausing -------------------------------------------------------------------------------------------------

    def pause(self, name: str, reason: str = "", *, by: str | None = None) -> Pause:
        """Pause a queue, and return since when it is paused. Workers heed it within about a second.

        It lasts until :meth:`resume`, whatever restarts meanwhile. A queue that nobody knows yet may be paused too.
        One that is paused already stays so since then; a reason that is given replaces the one before.

        :param by: who does it; the user and machine of this process if not given.

        Raises :exc:`ImproperlyConfigured` where neither the broker nor the result backend keeps shared state, and
        ``ValueError`` for a name or a reason that is not one line of at most 255 characters.
        """
        who = whoami() if by is None else by
        for what, text in (("the name of a queue", name), ("a reason", reason), ("who pauses", who)):
            if len(text) > LONGEST or not text.isprintable():
                raise ValueError(f"{what} is one line of at most {LONGEST} characters, not {text[:LONGEST]!r}")
        if not name:
            raise ValueError("the name of the queue to pause is empty")
        now = self._app.clock.now()

        def change(paused: dict[str, Pause]) -> None:
            old = paused.get(name)
            if old is None or reason:
                paused[name] = Pause(at=now if old is None else old.at, by=who, why=reason)

        return change_paused(self._app, change)[name]

    def resume(self, name: str) -> bool:
        """Have workers fetch from a queue again, within about a second; return whether it was paused.

        Raises :exc:`ImproperlyConfigured` where nothing can be paused.
        """
        old: Pause | None = None

        def change(paused: dict[str, Pause]) -> None:
            nonlocal old
            old = paused.pop(name, None)

        change_paused(self._app, change)
        return old is not None

    def paused(self) -> Mapping[str, Pause]:
        """Return the paused queues, with ``at``, ``by`` and ``why`` of each; none where nothing can be paused."""
        return read_paused(self._app)

    # -- which there are -----------------------------------------------------------------------------------------

    def routed(self) -> set[str]:
        """Return the queues that the app declares, that a mapping of ``task_routes`` names, or that it has met."""
        return {*self._app.router.queues, *_of_routes(self._app.conf.task_routes)}

    def known(self) -> list[str]:
        """Return the names of all queues that can be known of: these, and what the broker and its workers tell.

        That is what a worker reads, what is paused, and what has dead letters. A queue that was only ever named by a
        sender elsewhere is not among them.
        """
        found = {name for names in self.readers().values() for name in names}
        # It may be kept with the results, which can be away by themselves.
        with contextlib.suppress(OperationalError):
            found.update(self.paused())
        return sorted({*self.routed(), *found, *self._app.broker.dead().queues()})

    def readers(self) -> dict[str, list[str]]:
        """Return the workers of Umbel that are alive, and the queues of each; none where the broker has no store."""
        store: Store | None = self._app.broker.store()
        return dict(_present(store)) if store is not None else {}


def _present(store: Store) -> Iterator[tuple[str, list[str]]]:
    for key, stored in store.scan(PRESENCE):
        with contextlib.suppress(msgspec.MsgspecError):
            about = msgspec.json.decode(stored.value)
            queues = about.get("queues", ()) if isinstance(about, dict) else ()
            yield key.removeprefix(PRESENCE), [str(name) for name in queues]


def _of_routes(routes: Any) -> set[str]:
    """Return the queues that mappings of routes name: the app has them only once something was sent there."""
    found: set[str] = set()
    for each in routes if isinstance(routes, list | tuple) else (routes,):
        for where in each.values() if isinstance(each, Mapping) else ():
            queue = where.get("queue") if isinstance(where, Mapping) else where
            name = getattr(queue, "name", queue)
            if isinstance(name, str):
                found.add(name)
    return found
