"""Results and chord parts in the file, for the settlements of the broker and for the result backend alike."""

from __future__ import annotations

from collections.abc import Sequence

from umbel.brokers.sqlite.database import Transaction
from umbel.interfaces import ChordPart, ResultRecord
from umbel.states import READY_STATES, SUCCESS

_READY = ", ".join(f"'{state}'" for state in sorted(READY_STATES))
# The rule is umbel.states.replaces; a record that is past its time counts as absent.
_STORE = f"""
INSERT INTO results (number, task_id, state, payload, expires) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (task_id) DO UPDATE SET
    number = excluded.number, state = excluded.state, payload = excluded.payload, expires = excluded.expires
WHERE state <> '{SUCCESS}' AND (excluded.state IN ({_READY}) OR state NOT IN ({_READY})) OR expires <= ?
"""
_LAST = 2**62  # the place of members without an index
_KEPT = 86400.0  # how long a closed chord is remembered, so that a late part does not open it anew


def store_records(tx: Transaction, records: Sequence[ResultRecord]) -> int:
    """Store those of the records that may replace what is there; return how many."""
    if not records:
        return 0
    rows = [
        (number, record.task_id, record.state, record.payload, later(tx, record.expires), tx.now)
        for number, record in enumerate(records, tx.take(len(records)))
    ]
    return tx.executemany(_STORE, rows).rowcount


def later(tx: Transaction, seconds: float | None) -> float | None:
    """Return the moment so many seconds from now, or None for never."""
    return None if seconds is None else tx.now + seconds


def begin_chord(tx: Transaction, group_id: str, size: int, expires: float | None) -> None:
    """Record how many members a chord has; one that was closed starts anew."""
    tx.execute("DELETE FROM chords WHERE group_id = ? AND closed", (group_id,))
    tx.execute(
        "INSERT INTO chords (group_id, size, expires) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET size = excluded.size, expires = excluded.expires",
        (group_id, size, later(tx, expires)),
    )


def extend_chord(tx: Transaction, group_id: str, count: int) -> None:
    """Make a chord wait for so many members more."""
    # As parts that are still missing: its size may not be known yet, and is written over when it is.
    tx.execute(
        "INSERT INTO chords (group_id, parts) VALUES (?, ?) ON CONFLICT DO UPDATE SET parts = parts + excluded.parts",
        (group_id, -count),
    )


def add_part(tx: Transaction, part: ChordPart) -> str | None:
    """Add one part; return the claim token if all are in and this part owns the claim."""
    size, count, claim, closed = _chord(tx, part)
    if closed:
        return None
    place = _LAST if part.index is None else part.index
    added = tx.execute(
        "INSERT INTO chord_parts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (part.group_id, place, part.task_id, part.payload),
    )
    if added.rowcount:
        count += 1
        # Its time begins anew with each part: members that take long must not outlive it.
        tx.execute(
            "UPDATE chords SET parts = ?, expires = coalesce(?, expires) WHERE group_id = ?",
            (count, later(tx, part.expires), part.group_id),
        )
    if size is None or count < size:
        return None
    mine = f"{part.task_id}:{part.index}"
    if claim is None:
        tx.execute("UPDATE chords SET claim = ? WHERE group_id = ?", (mine, part.group_id))
        return mine
    return mine if claim == mine else None


def _chord(tx: Transaction, part: ChordPart) -> tuple[int | None, int, str | None, int]:
    find = "SELECT size, parts, claim, closed FROM chords WHERE group_id = ? AND (expires IS NULL OR expires > ?)"
    row: tuple[int | None, int, str | None, int] | None = tx.execute(find, (part.group_id, tx.now)).fetchone()
    if row is not None:
        return row
    forget_chord(tx, part.group_id)
    tx.execute("INSERT INTO chords (group_id, expires) VALUES (?, ?)", (part.group_id, later(tx, part.expires)))
    return None, 0, None, 0


def close_chord(tx: Transaction, group_id: str, claim: str | None = None) -> None:
    """Mark the body as published and delete the parts, if the claim (any, for None) is the right one."""
    closed = tx.execute(
        "UPDATE chords SET closed = 1, expires = coalesce(expires, ?) "
        "WHERE group_id = ? AND claim IS NOT NULL AND claim = coalesce(?, claim)",
        (tx.now + _KEPT, group_id, claim),
    )
    if closed.rowcount:
        tx.execute("DELETE FROM chord_parts WHERE group_id = ?", (group_id,))


def forget_chord(tx: Transaction, group_id: str) -> None:
    """Delete a chord and its parts."""
    tx.execute("DELETE FROM chords WHERE group_id = ?", (group_id,))
    tx.execute("DELETE FROM chord_parts WHERE group_id = ?", (group_id,))
