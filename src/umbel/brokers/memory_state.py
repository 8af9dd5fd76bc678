"""What lives in a process under one ``memory://name``: messages, consumers, results, chords, keys, listeners.

Broker and result backend of one name share it, which is how a settlement can apply a result in its own step. One lock
guards everything; a method whose name starts with an underscore, and every method of :class:`Messages` and
:class:`Results`, expects its caller to hold it. Times are seconds since the epoch of the driver's clock.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from umbel.bell import Bell
from umbel.interfaces import (
    QUEUED,
    ChordPart,
    Crash,
    Dead,
    Outgoing,
    Published,
    PublishStatus,
    ResultRecord,
    Stored,
    StoreLocation,
    Verdict,
    VerdictKind,
)
from umbel.message import Message, encode_envelope
from umbel.states import replaces

PRIORITIES = 10
KEEP_DEAD = 10_000  # dead letters of each queue
KEEP_CRASHES = 20  # of one message, the latest
_CLOSED_SECONDS = 86400.0  # a part that comes late must not open a closed chord anew


class Entry:
    """One message in one place."""

    __slots__ = ("crashes", "enqueued_at", "log", "priority", "queue", "raw", "task_id", "verdict")

    def __init__(self, outgoing: Outgoing, now: float) -> None:
        self.raw = encode_envelope(outgoing.message)
        self.queue = outgoing.queue
        self.task_id = outgoing.task_id
        self.priority = min(max(outgoing.priority, 0), PRIORITIES - 1)
        self.enqueued_at = datetime.fromtimestamp(now, UTC)
        self.crashes = 0
        self.log: tuple[Crash, ...] = ()
        self.verdict: Verdict | None = None


class Letter:
    """A dead letter: the message, why it died, and when."""

    __slots__ = ("at", "entry", "why")

    def __init__(self, entry: Entry, why: Dead, at: datetime) -> None:
        self.entry = entry
        self.why = why
        self.at = at


class Lane:
    """One queue: a deque for each priority, the lowest number first."""

    __slots__ = ("levels",)

    def __init__(self) -> None:
        self.levels: list[deque[Entry]] = [deque() for _ in range(PRIORITIES)]

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self.levels)

    def pop(self) -> Entry | None:
        """Take the first message, or None."""
        for level in self.levels:
            if level:
                return level.popleft()
        return None


class Messages:
    """Where messages are while nobody holds them: queues, schedule, gates, ends, dead letters."""

    def __init__(self, ring: Callable[[str | None], None]) -> None:
        self.lanes: dict[str, Lane] = {}
        self.schedule: list[tuple[float, int, Entry]] = []
        self.gates: dict[str, deque[tuple[Entry, float]]] = {}  # with the moment before which each is not due
        self.ends: deque[Entry] = deque()
        self.dead: dict[str, dict[str, Letter]] = {}  # of each queue by their keys, the oldest first
        self._taken: dict[str, tuple[str, float | None]] = {}
        self._sweep_at = 1024
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._numbers = itertools.count()
        self._ring = ring

    def lane(self, queue: str) -> Lane:
        """Return the queue of that name, new if need be."""
        lane = self.lanes.get(queue)
        if lane is None:
            lane = self.lanes[queue] = Lane()
        return lane

    def publish(self, outgoing: Outgoing, now: float, window: float, *, follow_up: bool = False) -> Published:
        """Put the message where it belongs, unless its key is taken or its task id was seen within the window.

        A follow-up may take a unique key again that its own task has.
        """
        holder = self._holder(outgoing, now, window)
        if follow_up and holder == outgoing.task_id:
            holder = None
        if holder is not None:
            return Published(PublishStatus.DUPLICATE, holder)
        if window > 0 and outgoing.task_id:
            self._seen[outgoing.repeat_key] = now + window
        if outgoing.unique is not None:
            self._take_key(outgoing.unique, outgoing.task_id, _end(outgoing.unique_ttl, now), now)
        entry = Entry(outgoing, now)
        due = 0.0 if outgoing.not_before is None else outgoing.not_before.timestamp()
        if outgoing.gate is not None:
            self.park(entry, outgoing.gate, due)
        elif due > now:
            self.delay(entry, due)
        else:
            self.append(entry)
        return QUEUED

    def _take_key(self, key: str, task_id: str, until: float | None, now: float) -> None:
        self._taken[key] = (task_id, until)
        if len(self._taken) > self._sweep_at:
            self._taken = {key: taken for key, taken in self._taken.items() if not _is_over(taken[1], now)}
            # Doubling keeps the sweeps at a constant cost for each key.
            self._sweep_at = 1024 + 2 * len(self._taken)

    def _holder(self, outgoing: Outgoing, now: float, window: float) -> str | None:
        # The oldest come first, so forgetting those that are over keeps this small at no cost worth naming.
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)
        if window > 0 and self._seen.get(outgoing.repeat_key, 0.0) > now:
            return outgoing.task_id
        if outgoing.unique is not None and outgoing.unique in self._taken:
            task_id, until = self._taken[outgoing.unique]
            if not _is_over(until, now):
                return task_id
        return None

    def append(self, entry: Entry) -> None:
        """Put it at the end of its queue, or of the ends when it has a verdict."""
        target = self.lane(entry.queue).levels[entry.priority] if entry.verdict is None else self.ends
        target.append(entry)
        self._ring(entry.queue if entry.verdict is None else None)

    def put_back(
        self, entry: Entry, *, crash: Crash | None = None, limit: int | None = None, pauses: Sequence[float] = ()
    ) -> None:
        """Return it to the head of its queue; one crash too many sends it to the ends.

        ``pauses`` are seconds that the second, third, … redelivery after a crash waits; without any they all come at
        once.
        """
        if crash is not None:
            entry.crashes += 1
            entry.log = (*entry.log, crash)[-KEEP_CRASHES:]
            if entry.verdict is None and limit is not None and entry.crashes >= limit:
                detail = f"delivered {entry.crashes} times, and each time its worker died"
                entry.verdict = Verdict(kind=VerdictKind.MAX_DELIVERIES, detail=detail)
                self.append(entry)
                return
            if entry.verdict is None and pauses and entry.crashes > 1:
                pause = pauses[min(entry.crashes - 2, len(pauses) - 1)]
                self.delay(entry, crash.at.timestamp() + pause)
                return
        target = self.lane(entry.queue).levels[entry.priority] if entry.verdict is None else self.ends
        target.appendleft(entry)
        self._ring(entry.queue if entry.verdict is None else None)

    def delay(self, entry: Entry, until: float) -> None:
        """Put it into the schedule."""
        heapq.heappush(self.schedule, (until, next(self._numbers), entry))
        self._ring(entry.queue)

    def due(self, now: float) -> None:
        """Move what is due into the queues."""
        while self.schedule and self.schedule[0][0] <= now:
            self.append(heapq.heappop(self.schedule)[2])

    def park(self, entry: Entry, gate: str, due: float = 0.0) -> None:
        """Let it wait at the gate; one that is let through before it is ``due`` waits on in the schedule."""
        self.gates.setdefault(gate, deque()).append((entry, due))

    def free(self, name: str, now: float) -> None:
        """Let one message through the gate of this name, and give up the unique key of this name."""
        self._taken.pop(name, None)
        waiting = self.gates.get(name)
        if waiting:
            entry, due = waiting.popleft()
            if due > now:
                self.delay(entry, due)
            else:
                self.append(entry)
            if not waiting:
                del self.gates[name]

    def bury(self, entry: Entry, why: Dead, now: float) -> None:
        """Keep it as a dead letter, and let the oldest go where there are too many."""
        letters = self.dead.setdefault(entry.queue, {})
        if why.kept is not None:
            entry.raw = why.kept
        letters[str(next(self._numbers))] = Letter(entry, why, datetime.fromtimestamp(now, UTC))
        if len(letters) > KEEP_DEAD:
            del letters[next(iter(letters))]

    def revive(self, queue: str, key: str, raw: bytes | None, to: str) -> bool:
        """Move a dead letter to the tail of a queue as if it had never been delivered; say whether it was there."""
        letter = self.dead.get(queue, {}).pop(key, None)
        if letter is None:
            return False
        entry = letter.entry
        entry.raw, entry.queue = entry.raw if raw is None else raw, to
        entry.crashes, entry.log, entry.verdict = 0, (), None
        self.append(entry)
        return True

    def take(self, queues: Iterable[str]) -> Iterator[Entry]:
        """Take their ends, then one message of each queue in turn until nothing is left or the caller stops."""
        queues = list(queues)
        for ended in [entry for entry in self.ends if entry.queue in queues]:
            self.ends.remove(ended)
            yield ended
        waiting = [lane for queue in queues if (lane := self.lanes.get(queue))]
        while waiting:
            for lane in list(waiting):
                entry = lane.pop()
                if entry is None:
                    waiting.remove(lane)
                else:
                    yield entry

    def is_waiting(self, queues: Collection[str]) -> bool:
        """Say whether a consumer of these queues would get something."""
        return any(self.lanes.get(queue) for queue in queues) or any(entry.queue in queues for entry in self.ends)


class Chord:
    """The parts of one chord."""

    __slots__ = ("claim", "done", "expires_at", "extra", "members", "parts", "size")

    def __init__(self) -> None:
        self.size: int | None = None
        self.extra = 0  # members that were added later
        self.parts: list[tuple[float, bytes]] = []
        self.members: set[str] = set()
        self.claim: str | None = None
        self.done = False
        self.expires_at: float | None = None

    def begin(self, size: int) -> None:
        """Record how many members there are; one that was closed starts anew."""
        self.size = size
        if self.done:
            self.done, self.claim, self.extra = False, None, 0

    def add(self, part: ChordPart) -> str | None:
        """Add one part; return the claim token if all are in and this part owns the claim."""
        token = f"{part.task_id}:{part.index}"
        if self.done:
            return None
        if token not in self.members:
            self.members.add(token)
            self.parts.append((float("inf") if part.index is None else part.index, part.payload))
        if self.size is None or len(self.parts) < self.size + self.extra:
            return None
        if self.claim is None:
            self.claim = token
        return token if self.claim == token else None

    def close(self, claim: str) -> bool:
        """Mark the body as published, if the claim is the right one; say whether it is."""
        if claim != self.claim:
            return False
        self.done = True
        self.parts.clear()
        self.members.clear()
        return True


class Results:
    """Results by task id, descriptions of groups, chords, and who watches."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[str, bytes, float | None]] = {}
        self._groups: dict[str, tuple[bytes, float | None]] = {}
        self._chords: dict[str, Chord] = {}
        self._watching: dict[str, list[Callable[[str, bytes], None]]] = {}

    def store(self, record: ResultRecord, now: float) -> bool:
        """Store the record unless the one that is there wins; tell those who watch."""
        old = self._records.get(record.task_id)
        if old is not None and not _is_over(old[2], now) and not replaces(record.state, old[0]):
            return False
        self._records[record.task_id] = (record.state, record.payload, _end(record.expires, now))
        for tell in self._watching.get(record.task_id, ()):
            tell(record.task_id, record.payload)
        return True

    def fetch(self, task_ids: Iterable[str], now: float) -> dict[str, bytes]:
        """Return the payloads that exist and are not over."""
        found = {}
        for task_id in task_ids:
            record = self._records.get(task_id)
            if record is not None and not _is_over(record[2], now):
                found[task_id] = record[1]
        return found

    def forget(self, task_ids: Iterable[str]) -> None:
        """Delete the records."""
        for task_id in task_ids:
            self._records.pop(task_id, None)

    def save_group(self, group_id: str, payload: bytes, expires: float | None, now: float) -> None:
        """Keep a group's description."""
        self._groups[group_id] = (payload, _end(expires, now))

    def fetch_group(self, group_id: str, now: float) -> bytes | None:
        """Return a group's description."""
        payload, until = self._groups.get(group_id, (None, None))
        return None if _is_over(until, now) else payload

    def forget_group(self, group_id: str) -> None:
        """Delete a group's description and its chord."""
        self._groups.pop(group_id, None)
        self._chords.pop(group_id, None)

    def chord(self, group_id: str, expires: float | None, now: float) -> Chord:
        """Return the chord of the group, new if need be, kept for so long from now."""
        chord = self._chords.get(group_id)
        if chord is None or _is_over(chord.expires_at, now):
            chord = self._chords[group_id] = Chord()
        if expires is not None:
            chord.expires_at = now + expires
        return chord

    def chord_parts(self, group_id: str, now: float) -> list[bytes]:
        """Return the parts in the order of their index."""
        chord = self._chords.get(group_id)
        if chord is None or _is_over(chord.expires_at, now):
            return []
        return [payload for _, payload in sorted(chord.parts, key=lambda part: part[0])]

    def close_chord(self, group_id: str, claim: str, now: float) -> None:
        """Mark the body of the chord as published, and remember that for a while even if the chord had no end."""
        chord = self._chords.get(group_id)
        if chord is not None and chord.close(claim) and chord.expires_at is None:
            chord.expires_at = now + _CLOSED_SECONDS

    def watch(self, task_ids: Collection[str], tell: Callable[[str, bytes], None], now: float) -> None:
        """Call ``tell`` when one of these changes, and now for what is there."""
        for task_id in task_ids:
            listeners = self._watching.setdefault(task_id, [])
            if tell not in listeners:
                listeners.append(tell)
        for task_id, payload in self.fetch(task_ids, now).items():
            tell(task_id, payload)

    def unwatch(self, task_ids: Iterable[str], tell: Callable[[str, bytes], None]) -> None:
        """Stop calling ``tell`` for these."""
        for task_id in task_ids:
            listeners = self._watching.get(task_id, [])
            if tell in listeners:
                listeners.remove(tell)
            if not listeners:
                self._watching.pop(task_id, None)

    def expire(self, limit: int, now: float) -> int:
        """Delete up to that many records, groups and chords that are over; return how many."""
        tables: tuple[dict[str, Any], ...] = (self._records, self._groups, self._chords)
        old = [(tables[0], id) for id, record in self._records.items() if _is_over(record[2], now)]
        groups = [(tables[1], id) for id, group in self._groups.items() if _is_over(group[1], now)]
        chords = [(tables[2], id) for id, chord in self._chords.items() if _is_over(chord.expires_at, now)]
        found = [*old, *groups, *chords][:limit]
        for table, id in found:
            del table[id]
        return len(found)


def _end(seconds: float | None, now: float) -> float | None:
    return None if seconds is None else now + seconds


def _is_over(until: float | None, now: float) -> bool:
    return until is not None and until <= now


class Held:
    """One message in the in-flight set of a consumer."""

    __slots__ = ("claim", "entry", "once")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.once = False
        self.claim: tuple[str, str] | None = None  # the chord that it completed, and the claim token


class Member:
    """A registered consumer: its beat, the end of its lease, and what it holds in the order of reservation."""

    __slots__ = ("beat", "ends_at", "held", "node", "reaped")

    def __init__(self, node: str, ends_at: float) -> None:
        self.node = node
        self.beat = 1
        self.ends_at = ends_at
        self.reaped = False
        self.held: dict[str, Held] = {}


class Shared:
    """Everything under one name, and the lock that guards it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.messages = Messages(self.ring)
        self.results = Results()
        self.members: dict[str, Member] = {}
        self.waiting: dict[Bell, frozenset[str]] = {}
        self.listeners: dict[str, list[Callable[[str, Message], None]]] = {}
        self.values: dict[str, tuple[Stored, float | None]] = {}
        self.owners: dict[str, tuple[str, int, float]] = {}
        self.numbers = itertools.count(1)

    def ring(self, queue: str | None) -> None:
        """Wake the consumers of the queue; of every queue when it is None."""
        for bell, queues in self.waiting.items():
            if queue is None or queue in queues:
                bell.set()


_named: dict[str, Shared] = {}
_naming = threading.Lock()


def shared(name: str) -> Shared:
    """Return what lives under the name; it lives as long as the process."""
    with _naming:
        return _named.setdefault(name, Shared())


def _forget_all() -> None:
    # A forked child must not run its parent's messages once more, and the lock may have been held at the fork.
    global _naming
    _named.clear()
    _naming = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def name_of(url: str) -> str:
    """Return the name in ``memory://name``.

    >>> name_of("memory://jobs")
    'jobs'
    """
    return url.partition("://")[2].strip("/")


def location_of(name: str) -> StoreLocation:
    """Return where the results of that name live: in this process."""
    return StoreLocation(scheme="memory", identity=str(os.getpid()), database=name)
