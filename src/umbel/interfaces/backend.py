"""What a result backend must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from umbel.interfaces.broker import Store
from umbel.interfaces.values import ChordPart, ResultRecord, StoreLocation


class ResultBackend(ABC):
    """Keeps what tasks returned. Safe to share between threads; never across a fork."""

    __slots__ = ()
    schemes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def open(self) -> None:
        """Connect. A second call does nothing."""

    @abstractmethod
    def close(self) -> None:
        """Give up every connection. A second call does nothing."""

    @abstractmethod
    def location(self) -> StoreLocation | None:
        """Return where results physically live, or None where that cannot be known."""

    @abstractmethod
    def store(self, record: ResultRecord) -> bool:
        """Store the record unless :func:`umbel.states.replaces` forbids it; say whether it was stored."""

    def store_all(self, records: Sequence[ResultRecord]) -> int:
        """Do :meth:`store` for each, in order; return how many were stored. An error may leave some of them stored.

        A driver that can do it in one round trip overrides this.
        """
        return sum(self.store(record) for record in records)

    def shared_store(self) -> Store | None:
        """Return a small store beside the results, for what a broker without one cannot keep; None without one."""
        return None

    def expect(self, reply_to: str) -> None:  # noqa: B027 - most have nothing to do
        """Get ready for results that are sent to this address, before it is given to anybody.

        Only backends that send results to their callers have something to do. Raises :exc:`OperationalError`.
        """

    @abstractmethod
    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        """Return the encoded metas that exist, in one round trip.

        ``timeout`` (seconds) bounds how long a store that does not answer is waited for, where that is less than what
        the driver allows for an answer.
        """

    @abstractmethod
    def watcher(self) -> ResultWatcher:
        """Return a new watcher with a connection of its own."""

    @abstractmethod
    def forget(self, task_ids: Collection[str]) -> None:
        """Delete the results."""

    @abstractmethod
    def save_group(self, group_id: str, payload: bytes, *, expires: float | None) -> None:
        """Keep a group's encoded description."""

    @abstractmethod
    def fetch_group(self, group_id: str) -> bytes | None:
        """Return what :meth:`save_group` kept."""

    @abstractmethod
    def forget_group(self, group_id: str) -> None:
        """Delete the description of a group, and its chord counters."""

    @abstractmethod
    def chord(self, group_id: str) -> ChordStore:
        """Return the parts of one chord."""

    #: Whether workers that are not ours may count parts here too. They keep no claim on a chord beyond their death.
    shares_chords: ClassVar[bool] = False

    def abandoned_chords(self, claim: str, *, limit: int = 100) -> Sequence[tuple[str, bytes]]:
        """Claim chords whose parts are all in and that nobody completes; return the id and the note of each.

        Looks at ``limit`` chords at most. What is claimed and not closed in time may be claimed again.
        """
        return ()

    @abstractmethod
    def expire(self, limit: int = 500) -> int:
        """Delete up to ``limit`` records that are past their time; return how many. Zero where the store does it."""


class ChordStore(ABC):
    """The parts of one chord, counted once per member."""

    __slots__ = ()

    @abstractmethod
    def begin(self, size: int, *, expires: float | None) -> None:
        """Record how many members there are. One that was closed is opened anew: it is called once more."""

    @abstractmethod
    def extend(self, count: int) -> None:
        """Make it wait for so many members more, before or after :meth:`begin`."""

    @abstractmethod
    def add(self, part: ChordPart) -> str | None:
        """Add one part; return the claim token if all are in and the body is not yet claimed by another part."""

    @abstractmethod
    def parts(self) -> Iterator[bytes]:
        """Yield the encoded parts in the order of their index, read in pages."""

    @abstractmethod
    def close(self, claim: str) -> None:
        """Mark the body as published and delete the parts."""


class ResultWatcher(ABC):
    """Tells when results change. One thread receives; any thread may add, discard and wake."""

    __slots__ = ()

    @abstractmethod
    def add(self, task_ids: Collection[str]) -> None:
        """Watch these too. A record that is there already is reported by the next :meth:`receive`."""

    @abstractmethod
    def discard(self, task_ids: Collection[str]) -> None:
        """Stop watching these."""

    @abstractmethod
    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        """Return (task id, encoded meta) of watched tasks that changed, waiting up to the timeout (seconds).

        ``patience`` (seconds) bounds how long a store that does not answer is waited for, where that is less than
        what the driver allows for an answer; :exc:`OperationalError` then. A change may be reported twice, or late by
        at most a second; a final state is never missed.
        """

    @abstractmethod
    def wake(self) -> None:
        """End a :meth:`receive` of another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""
