"""Reserving and settling for one registered id."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence

from umbel.brokers.sqlite.database import Database, Transaction
from umbel.brokers.sqlite.letters import delete_messages, moment, put_with_dead
from umbel.brokers.sqlite.outcomes import add_part, close_chord, store_records
from umbel.brokers.sqlite.places import (
    Held,
    Prepared,
    Redelivery,
    Row,
    deliveries,
    free_names,
    give_back,
    microseconds,
    prepare,
    publish_batch,
    put_at_gate,
    put_back,
    put_in_schedule,
    take_batch,
    take_off,
)
from umbel.exceptions import BrokerError, LeaseLost
from umbel.interfaces import (
    Ack,
    Begin,
    Consumer,
    Crash,
    Dead,
    Delay,
    Delivery,
    Park,
    Requeue,
    Settled,
    Settlement,
)

_SHORTEST, _LONGEST = 0.001, 0.02
_FIND = "SELECT number FROM consumers WHERE id = ? AND NOT reaped"
_FOOD = """
SELECT EXISTS (SELECT 1 FROM ready WHERE queue IN (SELECT value FROM json_each(?1)))
    OR EXISTS (SELECT 1 FROM ends WHERE queue IN (SELECT value FROM json_each(?1))),
    (SELECT min(due) FROM scheduled)
"""


class SqliteConsumer(Consumer):
    """A consumer with a connection of its own. Used by one thread at a time; :meth:`wake` by any.

    ``results`` says whether settlements bring their results along.
    """

    def __init__(
        self,
        database: Database,
        id: str,
        queues: Sequence[str],
        *,
        redelivery: Redelivery,
        results: Callable[[], bool],
    ) -> None:
        self._id = id
        self.watch(queues)
        self._redelivery = redelivery
        self._results = results
        self._clock = database.clock
        self._session = database.session()
        self._waker = self._session.shared.waker()
        self._number: int | None = None
        self._due: int | None = None

    def watch(self, queues: Sequence[str]) -> None:
        """Read these queues; see :meth:`umbel.interfaces.Consumer.watch`."""
        self._queues = list(dict.fromkeys(queues))
        self._names = json.dumps(self._queues)
        self._version = 0  # what was there already in a new queue is looked for

    def reserve(self, limit: int) -> Sequence[Delivery]:
        """Take up to ``limit`` messages; never waits."""
        with self._session.read() as connection:
            number = connection.execute(_FIND, (self._id,)).fetchone()
        if number is None:
            raise self._lost()
        self._number = number[0]
        # Looking first needs no lock, so that idle consumers do not stand in the way of busy ones.
        if limit <= 0 or not self._look():
            return []
        with self._session.write() as tx:
            self._live(tx)
            rows = self._reserve(tx, limit)
        return deliveries(rows)

    def _reserve(self, tx: Transaction, limit: int) -> list[Row]:
        assert self._number is not None
        self._queues = self._queues[1:] + self._queues[:1]
        return take_batch(tx, self._number, self._queues, limit)

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"consumer {self._id} is not registered, or was taken over; register a new one")

    def _live(self, tx: Transaction) -> None:
        row = tx.execute(_FIND, (self._id,)).fetchone()
        if row is None:
            raise self._lost()
        self._number = row[0]

    def begin(self, batch: Sequence[Begin]) -> Collection[str]:
        """Mark deliveries as started; return the tags that are no longer held."""
        self._bound([begin.result for begin in batch])
        with self._session.write() as tx:
            lost = []
            for begin in batch:
                held = tx.execute(
                    "UPDATE held SET once = once OR ? WHERE hold = ? AND consumer = ?",
                    (begin.once, _hold(begin.delivery), self._owner(tx)),
                )
                if not held.rowcount:
                    lost.append(begin.delivery.tag)
                elif begin.result is not None:
                    store_records(tx, [begin.result])
            return lost

    def _owner(self, tx: Transaction) -> int:
        if self._number is None:
            row = tx.execute("SELECT number FROM consumers WHERE id = ?", (self._id,)).fetchone()
            self._number = row[0] if row is not None else None
        return -1 if self._number is None else self._number

    def _bound(self, carried: Sequence[object]) -> None:
        if not self._results() and any(thing is not None for thing in carried):
            raise BrokerError("a settlement carries a result, but results live elsewhere; store it before settling")

    def settle(self, batch: Sequence[Settlement], *, reserve: int = 0) -> Settled:
        """End the holds in one commit, and reserve up to ``reserve`` more in it."""
        self._bound([thing for settlement in batch for thing in (settlement.result, settlement.chord)])
        self._bound([thing for settlement in batch for thing in settlement.results])
        prepared = [prepare(settlement.publish) if settlement.publish else [] for settlement in batch]
        if not batch:
            return Settled(deliveries=self.reserve(reserve)) if reserve > 0 else Settled()
        with self._session.write() as tx:
            refused, complete = self._settle(tx, batch, prepared)
            alive = not (reserve > 0 or refused) or tx.execute(_FIND, (self._id,)).fetchone() is not None
            if not alive and len(refused) == len(batch):
                raise self._lost()
            # Otherwise the caller must first learn what was applied; the next reserve tells it the rest.
            rows = self._reserve(tx, reserve) if alive and reserve > 0 else []
        return Settled(refused=refused, complete=complete, deliveries=deliveries(rows))

    def _settle(
        self, tx: Transaction, batch: Sequence[Settlement], prepared: Sequence[Sequence[Prepared]]
    ) -> tuple[list[str], dict[str, str]]:
        held = take_off(tx, self._owner(tx), [settlement.delivery.tag for settlement in batch])
        refused: list[str] = []
        complete: dict[str, str] = {}
        applied: list[tuple[Settlement, Held]] = []
        publish: list[Prepared] = []
        for settlement, follow_ups in zip(batch, prepared, strict=True):
            hold = held.pop(settlement.delivery.tag, None)
            if hold is None:
                refused.append(settlement.delivery.tag)
                continue
            if settlement.results:
                store_records(tx, settlement.results)
            if settlement.chord is not None and (claim := _add_parts(tx, settlement)) is not None:
                complete[hold.tag] = claim
                hold.chord = settlement.chord.group_id
                put_back(tx, self._owner(tx), hold)
                if settlement.result is not None:
                    store_records(tx, [settlement.result])
                continue
            applied.append((settlement, hold))
            publish.extend(follow_ups)
        store_records(tx, [settlement.result for settlement, _ in applied if settlement.result is not None])
        self._end(tx, applied)
        if publish:
            # Not looked up among the published: it happens once with its ack, and a retry keeps its task id.
            publish_batch(tx, publish, 0, follow_up=True)
        return refused, complete

    def _end(self, tx: Transaction, applied: Sequence[tuple[Settlement, Held]]) -> None:
        done: list[int] = []
        back: list[Held] = []
        for settlement, hold in applied:
            how = settlement.how
            if isinstance(how, Ack):
                done.append(hold.message)
                if hold.chord is not None:
                    close_chord(tx, hold.chord)
            elif isinstance(how, Requeue):
                hold.counted = how.counted
                back.append(hold)
            elif isinstance(how, Delay):
                put_in_schedule(tx, hold.message, how.until)
            elif isinstance(how, Park):
                put_at_gate(tx, hold.message, how.gate)
            elif isinstance(how, Dead):
                put_with_dead(tx, hold.message, how)
            if settlement.frees:
                free_names(tx, settlement.frees)
        delete_messages(tx, done)
        if back:
            crash = Crash(at=moment(tx.now), consumer=self._id, cause="given back as crashed")
            give_back(tx, back, self._redelivery, crash, wait=False)

    def wait(self, timeout: float) -> bool:
        """Block until a message may be there, :meth:`wake` is called, or the timeout (seconds) has passed."""
        deadline = time.monotonic() + timeout
        pause = _SHORTEST
        self._waker.sleeping = True
        try:
            # What this connection wrote itself does not change its version, so the first look is at the tables.
            found = self._look()
            while not found:
                left = deadline - time.monotonic()
                why = self._waker.sleep(min(pause, left))
                if b"w" in why:
                    return self._look()
                if left <= 0:
                    return False
                # Rung within this process there is something to look at now; else look less and less often.
                pause = _SHORTEST if why else min(pause * 1.5, _LONGEST)
                found = self._is_due() or (self._session.version() != self._version and self._look())
            return True
        finally:
            self._waker.sleeping = False

    def _look(self) -> bool:
        # The version first: what is committed in between makes it differ next time.
        self._version = self._session.version()
        with self._session.read() as connection:
            found, self._due = connection.execute(_FOOD, (self._names,)).fetchone()
        return bool(found) or self._is_due()

    def _is_due(self) -> bool:
        return self._due is not None and self._due <= microseconds(self._clock.time())

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one."""
        self._waker.wake()

    def close(self) -> None:
        """Close the connection; what is held stays held."""
        self._session.shared.dismiss(self._waker)
        self._session.close()


def _hold(delivery: Delivery) -> int:
    return int(delivery.tag) if delivery.tag.isdecimal() else -1


def _add_parts(tx: Transaction, settlement: Settlement) -> str | None:
    """Add the parts of a settlement; return the claim token if that completed their chord."""
    assert settlement.chord is not None
    claims = [add_part(tx, part) for part in (*settlement.parts, settlement.chord)]
    return next(filter(None, claims), None)
