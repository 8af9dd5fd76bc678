"""The moves of messages between their places, each a few statements inside a transaction of the caller's.

A message's own row stays where it is; only the row that says in which place it is moves, and that is small.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from umbel.brokers.sqlite.database import Transaction
from umbel.brokers.sqlite.letters import enqueue, logged, moment
from umbel.interfaces import (
    QUEUED,
    Crash,
    Delivery,
    Outgoing,
    Published,
    PublishStatus,
    Verdict,
    VerdictKind,
)
from umbel.message import encode_envelope

BATCH_BYTES = 1024 * 1024
DUE_BATCH = 256
LOWEST_PRIORITY = 9

Prepared = tuple[Outgoing, bytes]


def microseconds(moment: datetime | float) -> int:
    """Return a moment as the schedule stores it."""
    return round((moment if isinstance(moment, int | float) else moment.timestamp()) * 1_000_000)


def prepare(batch: Iterable[Outgoing]) -> list[Prepared]:
    """Encode messages, which must happen before the file is locked."""
    return [(outgoing, encode_envelope(outgoing.message)) for outgoing in batch]


# -- into the file -----------------------------------------------------------------------------------------------


def publish_batch(
    tx: Transaction, batch: Sequence[Prepared], window: float, *, follow_up: bool = False
) -> list[Published]:
    """Add the messages that nobody has published before within the window (seconds; 0 does not look).

    A follow-up may take a unique key again that its own task has.
    """
    repeated = _published_before(tx, batch, window) if window else set()
    outcomes: list[Published] = []
    fresh: list[Prepared] = []
    for item in batch:
        outgoing = item[0]
        if outgoing.repeat_key in repeated:
            outcome = Published(PublishStatus.DUPLICATE, outgoing.task_id)
        elif outgoing.unique is not None and (holder := _take_key(tx, outgoing, own=follow_up)):
            outcome = Published(PublishStatus.DUPLICATE, holder)
        else:
            outcome = QUEUED
            fresh.append(item)
            if window:
                repeated.add(outgoing.repeat_key)
        outcomes.append(outcome)
    if window:
        _remember(tx, fresh, window)
    _add(tx, fresh)
    return outcomes


def _add(tx: Transaction, batch: Sequence[Prepared]) -> None:
    first = tx.take(len(batch))
    messages, ready, scheduled, gated, undue = [], [], [], [], []
    for id, (outgoing, raw) in enumerate(batch, first):
        priority = min(max(outgoing.priority, 0), LOWEST_PRIORITY)
        messages.append((id, outgoing.queue, priority, id, tx.now, raw))
        due = 0 if outgoing.not_before is None else microseconds(outgoing.not_before)
        if outgoing.gate is not None:
            gated.append((outgoing.gate, id, id))
            if due:
                undue.append((due, id))
        elif due > microseconds(tx.now):
            scheduled.append((due, id, outgoing.queue))
        else:
            ready.append((outgoing.queue, priority, id, id))
    tx.executemany(
        "INSERT INTO messages (id, queue, priority, position, enqueued_at, raw) VALUES (?, ?, ?, ?, ?, ?)", messages
    )
    if ready:
        tx.executemany("INSERT INTO ready VALUES (?, ?, ?, ?)", ready)
    if scheduled:
        tx.executemany("INSERT INTO scheduled VALUES (?, ?, ?)", scheduled)
    if gated:
        tx.executemany("INSERT INTO gated VALUES (?, ?, ?)", gated)
    if undue:
        tx.executemany("UPDATE messages SET due = ? WHERE id = ?", undue)


def _published_before(tx: Transaction, batch: Sequence[Prepared], window: float) -> set[str]:
    width = _width(window)
    marks = ",".join(map(str, range(int((tx.now - window) // width), int(tx.now // width) + 1)))
    if len(batch) == 1:
        rows = tx.execute(
            f"SELECT task_id FROM seen WHERE bucket IN ({marks}) AND task_id = ? AND published_at > ? LIMIT 1",
            (batch[0][0].repeat_key, tx.now - window),
        )
    else:
        rows = tx.execute(
            "SELECT seen.task_id FROM json_each(?) AS asked CROSS JOIN seen "
            f"WHERE bucket IN ({marks}) AND task_id = asked.value AND published_at > ?",
            (json.dumps([outgoing.repeat_key for outgoing, _ in batch]), tx.now - window),
        )
    return {row[0] for row in rows.fetchall()}


def _width(window: float) -> float:
    return max(30.0, window / 4)


def _remember(tx: Transaction, fresh: Sequence[Prepared], window: float) -> None:
    width = _width(window)
    newest = int(tx.now // width)
    tx.executemany(
        "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET published_at = excluded.published_at",
        [(newest, outgoing.repeat_key, tx.now) for outgoing, _ in fresh],
    )
    # More is removed than added, a little at a time, so the table shrinks without a sweep that anyone would notice.
    if tx.take(0) % 16 >= len(fresh):
        return
    stale = tx.execute(
        "SELECT bucket, task_id FROM seen WHERE bucket < ? ORDER BY bucket, task_id LIMIT ?",
        (int((tx.now - window) // width), 2 * len(fresh) + 32),
    ).fetchall()
    if stale:
        tx.execute("DELETE FROM seen WHERE (bucket, task_id) <= (?, ?)", stale[-1])


def _take_key(tx: Transaction, outgoing: Outgoing, *, own: bool) -> str:
    """Take a unique key; return the task id that holds it instead. ``own``: the same task may take it again."""
    row = tx.execute(
        "SELECT task_id FROM uniques WHERE key = ? AND (expires IS NULL OR expires > ?)", (outgoing.unique, tx.now)
    ).fetchone()
    if row is not None and not (own and row[0] == outgoing.task_id):
        return str(row[0])
    expires = None if outgoing.unique_ttl is None else tx.now + outgoing.unique_ttl
    tx.execute("INSERT OR REPLACE INTO uniques VALUES (?, ?, ?)", (outgoing.unique, outgoing.task_id, expires))
    return ""


# -- into the hands of a consumer --------------------------------------------------------------------------------


def bring_due(tx: Transaction) -> None:
    """Move what is due from the schedule to the tails of the queues."""
    due = tx.execute(
        "SELECT due, message FROM scheduled WHERE due <= ? ORDER BY due, message LIMIT ?",
        (microseconds(tx.now), DUE_BATCH),
    ).fetchall()
    if not due:
        return
    tx.execute("DELETE FROM scheduled WHERE (due, message) <= (?, ?)", due[-1])
    positions = enumerate((message for _, message in due), tx.take(len(due)))
    tx.executemany("UPDATE messages SET position = ? WHERE id = ?", list(positions))
    enqueue(tx, [message for _, message in due])


Row = tuple[int, str, int, str | None, str | None, float, bytes]  # hold, and the message's columns


def take_batch(tx: Transaction, consumer: int, queues: Sequence[str], limit: int) -> list[Row]:
    """Take up to so many messages, for :func:`deliveries`. The queues come in the order of their turn."""
    bring_due(tx)
    ends = _pick_ends(tx, queues, limit)
    wanted = ends + _pick(tx, queues, limit - len(ends))
    if not wanted:
        return []
    ids = [message for _, _, _, message in wanted]
    first = tx.take(len(ids))
    found = tx.execute(
        "SELECT asked.key + ?, queue, crashes, verdict, detail, enqueued_at, raw "
        "FROM json_each(?) AS asked CROSS JOIN messages WHERE messages.id = asked.value",
        (first, json.dumps(ids)),
    )
    taken: list[Row] = []
    total = 0
    for row in found:
        taken.append(row)
        total += len(row[6])
        if total > BATCH_BYTES:
            break
    found.close()
    holds = [(hold, consumer, message) for hold, message in enumerate(ids[: len(taken)], first)]
    tx.executemany("INSERT INTO held (hold, consumer, message) VALUES (?, ?, ?)", holds)
    _take_out(tx, wanted[: len(taken)], min(len(ends), len(taken)))
    return taken


def deliveries(rows: Iterable[Row]) -> list[Delivery]:
    """Return what was taken as deliveries. Not part of the transaction, which is to be short."""
    return [
        Delivery(
            tag=str(hold),
            queue=queue,
            raw=raw,
            count=crashes + 1,
            fence=hold,
            enqueued_at=moment(enqueued_at),
            redelivered=crashes > 0,
            verdict=None if verdict is None else Verdict(kind=VerdictKind(verdict), detail=detail or ""),
        )
        for hold, queue, crashes, verdict, detail, enqueued_at, raw in rows
    ]


_Pick = tuple[str, int, int, int]  # queue, priority, position, message


def _pick_ends(tx: Transaction, queues: Sequence[str], limit: int) -> list[_Pick]:
    if tx.execute("SELECT 1 FROM ends LIMIT 1").fetchone() is None:
        return []
    return tx.execute(
        "SELECT queue, 0, position, message FROM ends WHERE queue IN (SELECT value FROM json_each(?)) "
        "ORDER BY position LIMIT ?",
        (json.dumps(queues), limit),
    ).fetchall()


def _pick(tx: Transaction, queues: Sequence[str], limit: int) -> list[_Pick]:
    heads: list[list[_Pick]] = []
    for queue in queues if limit > 0 else ():
        rows = tx.execute(
            "SELECT queue, priority, position, message FROM ready WHERE queue = ? ORDER BY priority, position LIMIT ?",
            (queue, limit),
        ).fetchall()
        if rows:
            heads.append(rows)
    if len(heads) <= 1:
        return heads[0] if heads else []
    picked: list[_Pick] = []
    for rank in range(limit):
        picked.extend(rows[rank] for rows in heads if rank < len(rows))
        if len(picked) >= limit:
            break
    return picked[:limit]


def _take_out(tx: Transaction, taken: Sequence[_Pick], ends: int) -> None:
    for queue, _, position, _ in taken[:ends]:
        tx.execute("DELETE FROM ends WHERE queue = ? AND position = ?", (queue, position))
    # What was taken of one queue and priority is always its first part.
    last: dict[tuple[str, int], int] = {}
    for queue, priority, position, _ in taken[ends:]:
        last[queue, priority] = position
    for (queue, priority), position in last.items():
        tx.execute("DELETE FROM ready WHERE queue = ? AND priority = ? AND position <= ?", (queue, priority, position))


# -- out of the hands of a consumer ------------------------------------------------------------------------------


class Held:
    """A hold that was just taken off: its message is in no place until it is put somewhere."""

    __slots__ = ("chord", "counted", "message", "once", "tag", "verdict")

    def __init__(self, hold: int, message: int, once: int, chord: str | None) -> None:
        self.tag = str(hold)
        self.message = message
        self.once = bool(once)
        self.chord = chord
        self.counted = False
        self.verdict: Verdict | None = None


def take_off(tx: Transaction, consumer: int, tags: Iterable[str]) -> dict[str, Held]:
    """End those of these holds that the consumer has."""
    rows = tx.execute(
        "DELETE FROM held WHERE hold IN (SELECT value FROM json_each(?)) AND consumer = ? "
        "RETURNING hold, message, once, chord",
        (json.dumps([int(tag) for tag in tags if tag.isdecimal()]), consumer),
    ).fetchall()
    return {held.tag: held for held in (Held(*row) for row in rows)}


def take_off_all(tx: Transaction, consumer: int, limit: int) -> tuple[list[Held], int]:
    """End up to so many holds of a consumer; also return how many are left."""
    rows = tx.execute(
        "SELECT hold, message, once, chord FROM held WHERE consumer = ? ORDER BY hold LIMIT ?", (consumer, limit)
    ).fetchall()
    tx.executemany("DELETE FROM held WHERE hold = ?", [(row[0],) for row in rows])
    (left,) = tx.execute("SELECT count(*) FROM held WHERE consumer = ?", (consumer,)).fetchone()
    return [Held(*row) for row in rows], left


def put_back(tx: Transaction, consumer: int, held: Held) -> None:
    """Undo the taking off of one hold."""
    tx.execute(
        "INSERT INTO held VALUES (?, ?, ?, ?, ?)", (int(held.tag), consumer, held.message, held.once, held.chord)
    )


class Redelivery:
    """What becomes of messages whose deliveries crash: how often they may, and the pauses (seconds) between."""

    __slots__ = ("limit", "pauses")

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.limit = int(options.get("max_deliveries", 5) or 0)  # 0 for no limit
        self.pauses = [float(pause) for pause in options.get("redelivery_backoff", (1, 5, 30, 120)) or ()]

    def pause(self, crashes: int) -> float:
        """Return how long a message waits after so many crashes: the first redelivery comes at once."""
        return self.pauses[min(crashes - 2, len(self.pauses) - 1)] if crashes > 1 and self.pauses else 0.0


def give_back(tx: Transaction, holds: Sequence[Held], rules: Redelivery, crash: Crash, *, wait: bool = True) -> None:
    """Return messages to the heads of their queues, or to the ends with a verdict, in their order.

    ``crash`` is noted for those that were counted; with ``wait`` these go to the schedule for their pause.
    """
    ready: list[int] = []
    for held in holds:
        crashes, verdict, log = tx.execute(
            "SELECT crashes, verdict, log FROM messages WHERE id = ?", (held.message,)
        ).fetchone()
        # One that was to be ended, and whose process had to be ended instead, must not come round for ever.
        if held.counted or (held.verdict is not None and verdict is not None):
            crashes += 1
            tx.execute(
                "UPDATE messages SET crashes = ?, log = ? WHERE id = ?", (crashes, logged(log, crash), held.message)
            )
        decided = held.verdict or _decide(held, crashes, rules.limit)
        if verdict is None and decided is not None:
            verdict = decided.kind.value
            tx.execute(
                "UPDATE messages SET verdict = ?, detail = ? WHERE id = ?", (verdict, decided.detail, held.message)
            )
        if verdict is not None:
            tx.execute("INSERT INTO ends SELECT queue, position, id FROM messages WHERE id = ?", (held.message,))
        elif held.counted and wait and (pause := rules.pause(crashes)) > 0:
            put_in_schedule(tx, held.message, tx.now + pause)
        else:
            ready.append(held.message)
    enqueue(tx, ready)


def _decide(held: Held, crashes: int, max_deliveries: int) -> Verdict | None:
    if held.once and held.counted:
        return Verdict(kind=VerdictKind.LOST, detail="its process died, and it must not run twice")
    if held.counted and 0 < max_deliveries <= crashes:
        return Verdict(kind=VerdictKind.MAX_DELIVERIES, detail=f"its worker died in each of {crashes} deliveries")
    return None


def put_in_schedule(tx: Transaction, message: int, until: datetime | float) -> None:
    """Put a message into the schedule."""
    tx.execute("INSERT INTO scheduled SELECT ?, id, queue FROM messages WHERE id = ?", (microseconds(until), message))


def put_at_gate(tx: Transaction, message: int, gate: str) -> None:
    """Put a message at a gate."""
    tx.execute("INSERT INTO gated SELECT ?, position, id FROM messages WHERE id = ?", (gate, message))


def free_names(tx: Transaction, names: Iterable[str]) -> None:
    """Give up unique keys, and let one message through each gate."""
    for name in names:
        tx.execute("DELETE FROM uniques WHERE key = ?", (name,))
        first = tx.execute(
            "SELECT gated.position, message, due FROM gated JOIN messages ON messages.id = message "
            "WHERE gate = ? ORDER BY gated.position LIMIT 1",
            (name,),
        ).fetchone()
        if first is not None:
            position, message, due = first
            tx.execute("DELETE FROM gated WHERE gate = ? AND position = ?", (name, position))
            _let_through(tx, message, due)


def _let_through(tx: Transaction, message: int, due: int | None) -> None:
    if due is None or due <= microseconds(tx.now):
        enqueue(tx, [message])
    else:
        tx.execute("INSERT INTO scheduled SELECT due, id, queue FROM messages WHERE id = ?", (message,))
    if due is not None:
        # It was for this gate: another one may be set up by a clock that goes differently.
        tx.execute("UPDATE messages SET due = NULL WHERE id = ?", (message,))


def mark_counted(holds: Iterable[Held], started: Iterable[str], verdicts: Mapping[str, Verdict]) -> None:
    """Mark which of the holds ended with a crash, and which have a verdict. What ran once must not run again."""
    tags = frozenset(started)
    for held in holds:
        held.counted = held.tag in tags or held.once
        held.verdict = verdicts.get(held.tag)
