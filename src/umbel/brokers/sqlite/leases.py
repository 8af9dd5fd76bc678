"""Consumer ids, kept alive by a lock of the kernel's.

The supervisor that registers an id locks the byte of that number in the ``.workers`` file. The kernel frees the lock
when the process ends, however it ends, and a forked child does not inherit it: whoever can take the lock knows at once
that the holder is dead, without any clock. A supervisor that lives but stands still (SIGSTOP, a frozen container) keeps
its lock; it becomes a suspect when its beat is older than the lease, by a clock that counts the sleep of the machine.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from umbel.brokers.sqlite.database import Database, Transaction, boot
from umbel.brokers.sqlite.letters import moment
from umbel.brokers.sqlite.places import Redelivery, give_back, mark_counted, take_off_all
from umbel.clock import SYSTEM_CLOCK
from umbel.interfaces import Crash, Leases, Reaped, Suspect, Verdict

_REAP_BATCH = 256
_WHO = "SELECT number, id, node, beat, reaped, boot, beat_at FROM consumers"


class SqliteLeases(Leases):
    """Registers ids for the processes of one supervisor, in whose process it must stay."""

    def __init__(self, database: Database, *, ttl: float, redelivery: Redelivery) -> None:
        self._clock = database.clock
        self._ttl = ttl
        self._redelivery = redelivery
        self._session = database.session()
        self._mine: set[int] = set()

    def _now(self) -> tuple[str, int]:
        name, ticks = boot()
        if self._clock is not SYSTEM_CLOCK:
            ticks = int(self._clock.monotonic() * 1000)
        return name, ticks

    def register(self, node: str) -> str:
        """Return a new consumer id, alive from now; never one that was used before."""
        name, ticks = self._now()
        number = 0
        try:
            with self._session.write() as tx:
                number = tx.take()
                # Random bits besides: a file that is restored from a copy counts on from an older number.
                id = f"{node}:{number}:{secrets.token_hex(4)}"
                # Locked before anyone can see the row.
                self._session.shared.claim(number)
                self._mine.add(number)
                tx.execute(
                    "INSERT INTO consumers (number, id, node, boot, beat_at) VALUES (?, ?, ?, ?, ?)",
                    (number, id, node, name, ticks),
                )
        except BaseException:
            self._disclaim(number)
            raise
        return id

    def _disclaim(self, number: int) -> None:
        if number in self._mine:
            self._mine.discard(number)
            self._session.shared.disclaim(number)

    def renew(self, ids: Sequence[str]) -> Collection[str]:
        """Show a new beat for these; return the ids that are lost."""
        if not ids:
            return []
        name, ticks = self._now()
        with self._session.write() as tx:
            rows = tx.execute(
                "UPDATE consumers SET beat = beat + 1, boot = ?, beat_at = ? "
                "WHERE id IN (SELECT value FROM json_each(?)) AND NOT reaped RETURNING id",
                (name, ticks, json.dumps(list(ids))),
            ).fetchall()
        alive = {row[0] for row in rows}
        return [id for id in ids if id not in alive]

    def release(
        self,
        id: str,
        *,
        started: Collection[str] = (),
        verdicts: Mapping[str, Verdict] | None = None,
        cause: str = "",
    ) -> int:
        """Give back all that a stopped consumer holds and forget it; return how many messages that was."""
        with self._session.write() as tx:
            row = tx.execute("SELECT number FROM consumers WHERE id = ?", (id,)).fetchone()
            if row is None:
                return 0
            (number,) = row
            holds, _ = take_off_all(tx, number, -1)
            mark_counted(holds, started, verdicts or {})
            give_back(tx, holds, self._redelivery, Crash(at=moment(tx.now), consumer=id, cause=cause))
            tx.execute("DELETE FROM consumers WHERE number = ?", (number,))
        self._disclaim(number)
        return len(holds)

    def suspects(self) -> Sequence[Suspect]:
        """Return the consumers whose supervisor is dead or stands still, or whose taking over was not finished."""
        with self._session.read() as connection:
            rows = connection.execute(_WHO).fetchall()
        found = []
        for row in rows:
            dead = self._is_dead(row)
            if dead or self._stands_still(row):
                age = self._age(row)
                found.append(Suspect(id=row[1], beat=row[3], node=row[2], age=age, still=age, dead=dead))
        return found

    def _is_dead(self, row: tuple[Any, ...]) -> bool:
        """Say whether its supervisor is surely gone, or taking over from it has begun."""
        number, _, _, _, reaped, booted, _ = row
        if reaped or number in self._session.shared.own:
            return bool(reaped)
        return bool(booted != self._now()[0]) or not self._session.shared.claimed(number)

    def _stands_still(self, row: tuple[Any, ...]) -> bool:
        return row[0] not in self._session.shared.own and self._age(row) > self._ttl

    def _age(self, row: tuple[Any, ...]) -> float:
        name, ticks = self._now()
        return max(0.0, (ticks - row[6]) / 1000) if row[5] == name else 0.0

    def reap(self, suspect: Suspect) -> Reaped:
        """Take over from a dead consumer if its beat is still the same; move one batch of what it held."""
        with self._session.write() as tx:
            row = tx.execute(f"{_WHO} WHERE id = ?", (suspect.id,)).fetchone()
            if row is None or row[3] != suspect.beat or not (self._is_dead(row) or self._stands_still(row)):
                return Reaped(moved=0, left=0)
            return self._reap(tx, row[0], suspect.id)

    def _reap(self, tx: Transaction, number: int, id: str) -> Reaped:
        tx.execute("UPDATE consumers SET reaped = 1 WHERE number = ?", (number,))
        holds, left = take_off_all(tx, number, _REAP_BATCH)
        for held in holds:
            # Nobody is left to say which of them had started.
            held.counted = True
        crash = Crash(at=moment(tx.now), consumer=id, cause="its worker was lost")
        give_back(tx, holds, self._redelivery, crash)
        if not left:
            tx.execute("DELETE FROM consumers WHERE number = ?", (number,))
        return Reaped(moved=len(holds), left=left)

    def close(self) -> None:
        """Close the connection. What was registered here and not released counts as dead from now on."""
        for number in list(self._mine):
            self._disclaim(number)
        self._session.close()
