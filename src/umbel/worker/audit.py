"""Completing chords that were left: all parts are in, and whoever had to publish the body is dead.

None of ours leaves one: the message that brought the last part is held until the body is published, and comes again.
Celery's worker counts its part first and may have acknowledged its message before; and a message that comes again may
come to the other kind of worker, which finds the chord claimed and lets it be. So the first part that a process of ours
adds to a chord on a backend that both kinds use leaves a note of the body there. Some time after, and again while the
chord is open, a worker looks: full, and the claim over? Then it claims the chord and does what the last member's worker
would have done. A crash in between lets that claim end too, and the body may be called twice, never not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from umbel.exceptions import BackendError, DecodeError, OperationalError, SecurityError
from umbel.interfaces import Broker, Delivery, PublishStatus, Settlement
from umbel.utils.identity import uuid
from umbel.worker.chords import Chords
from umbel.worker.records import Contribution, Records

# Celery's name for what goes wrong with chords.
logger = logging.getLogger("celery.backends.base")

#: How many chords one look completes at most; the next one goes on.
_AT_ONCE = 100


class ChordAudit:
    """Completes chords that nobody else completes. Used by one thread."""

    def __init__(self, app: Any, broker: Broker, *, hostname: str) -> None:
        self._backend = app.backend
        self._broker = broker
        self._records = Records(app, app.clock)
        self._complete = Chords(app, self._records, hostname=hostname).complete

    @classmethod
    def make(cls, app: Any, broker: Broker, *, hostname: str) -> Callable[[], None] | None:
        """Return :meth:`run`; None where no chord can be left, or where a note could forge a signed message."""
        if app.backend is None or not app.backend.shares_chords or app.conf.security_key is not None:
            return None
        return cls(app, broker, hostname=hostname).run

    def run(self) -> None:
        """Look once. Raises nothing where a store is away: the next look finds the same."""
        claim = f"audit:{uuid()}"
        try:
            left = self._backend.abandoned_chords(claim, limit=_AT_ONCE)
        except (BackendError, OperationalError) as error:
            logger.warning("Nobody can look now for chords that were left: %s", error)
            return
        for group_id, note in left:
            logger.warning("Chord %r was left by a worker that is gone; it is completed here.", group_id)
            try:
                self._finish(group_id, note, claim)
            except (BackendError, OperationalError) as error:
                logger.warning("Chord %r cannot be completed now, and is tried again in a minute: %s", group_id, error)
            # The wall around what a message of somebody else's says: neither the other chords nor the leases of this
            # worker, whose thread this is, must suffer for it.
            except Exception:
                logger.exception("Chord %r cannot be completed", group_id)

    def _finish(self, group_id: str, note: bytes, claim: str) -> None:
        try:
            part = self._records.noted(group_id, note)
        except (DecodeError, SecurityError) as error:
            logger.error("Chord %r cannot be completed, and is forgotten: %s", group_id, error)
            self._backend.chord(group_id).close(claim)
            return
        claims = [(group_id, claim)]
        delivery = Delivery(tag="", queue="", raw=b"")
        settlement: Settlement | None = Settlement(delivery=delivery, chord=part)
        while settlement is not None:
            settlement = self._step(self._complete(settlement), claims)
        # Published before it is closed: a crash in between repeats the body, the other order might lose it.
        for each, token in claims:
            self._backend.chord(each).close(token)

    def _step(self, settlement: Settlement, claims: list[tuple[str, str]]) -> Settlement | None:
        """Store, count and publish what a completed chord comes to; return it if it completes another chord."""
        backend = self._backend
        for record in (settlement.result, *settlement.results):
            if record is not None:
                backend.store(record)
        last: Contribution | None = None
        for part in (*settlement.parts, settlement.chord):
            if part is None:
                continue
            token = backend.chord(part.group_id).add(part)
            if token is not None and isinstance(part, Contribution):
                claims.append((part.group_id, token))
                last = part
        if settlement.publish:
            for published in self._broker.publish(settlement.publish):
                if published.status is PublishStatus.REFUSED:
                    raise OperationalError(f"a message that follows a chord was refused: {published.detail}")
        return None if last is None else Settlement(delivery=settlement.delivery, chord=last)
