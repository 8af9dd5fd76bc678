"""Looking for the message of one task inside one process."""

from __future__ import annotations

from datetime import UTC, datetime

from umbel.brokers.memory_dead import peeked
from umbel.brokers.memory_state import Entry, Shared
from umbel.interfaces import Peeked, Sighting


def find(shared: Shared, task_id: str) -> Sighting | None:
    """Return where the message of this task is. Its caller holds the lock and has brought what is due."""
    messages = shared.messages
    for lane in messages.lanes.values():
        for position, entry in enumerate(lane, 1):
            if entry.task_id == task_id:
                return Sighting(place="ready", seen=_seen(entry), position=position, of=len(lane))
    for due, _, entry in messages.schedule:
        if entry.task_id == task_id:
            return Sighting(place="scheduled", seen=_seen(entry, due))
    for gate, waiting in messages.gates.items():
        for entry, due in waiting:
            if entry.task_id == task_id:
                return Sighting(place="gate", seen=_seen(entry, due or None), gate=gate)
    return _held(shared, task_id) or _ended(shared, task_id)


def _held(shared: Shared, task_id: str) -> Sighting | None:
    for id, member in shared.members.items():
        for held in member.held.values():
            if held.entry.task_id == task_id:
                return Sighting(place="held", seen=_seen(held.entry), consumer=id, node=member.node)
    return None


def _ended(shared: Shared, task_id: str) -> Sighting | None:
    for entry in shared.messages.ends:
        if entry.task_id == task_id:
            return Sighting(place="ends", seen=_seen(entry), verdict=entry.verdict)
    for queue, letters in shared.messages.dead.items():
        for key, letter in reversed(letters.items()):
            if letter.entry.task_id == task_id:
                return Sighting(place="dead", seen=peeked(queue, key, letter))
    return None


def _seen(entry: Entry, at: float | None = None) -> Peeked:
    moment = None if at is None else datetime.fromtimestamp(at, UTC)
    return Peeked(raw=entry.raw, queue=entry.queue, at=moment, crashes=entry.log)
