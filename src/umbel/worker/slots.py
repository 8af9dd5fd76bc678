"""Slots: what a worker process is doing, in memory that it shares with its supervisor.

One slot per process, with room for every execution that started and is not settled. Nothing here needs a lock::

    head     0  valid_until  double   boot-time seconds until which the lease surely holds; 0.0 says unknown
             8  recall       uint64   ASKED: start nothing; RECALLED: what had not started has been given back
            16  gate         uint64   not 0: start nothing for now
            24  processed    uint64   executions that ended in this process
            32  settled      uint64   every execution up to this token is settled (one-at-a-time executors)
            40  beat         double   monotonic seconds at which the process last found nothing to do
            48  batch        uint32 length and the tags that were reserved last, in ASCII with blanks
    entries  0  since        double   above 0: runs since then; below 0: ended and not settled; 0: free
             8  token        uint64   numbers the executions of this process
            16  hard_at      double   monotonic seconds at which the supervisor ends it; 0.0: never
            24  hard         double   the hard limit in seconds
            32  behind       uint64   messages that had been reserved and wait for this execution to end
            40  length       uint64   bytes of the text
            48  text         tag, task id and task name, with NUL between them; of ids that are too long the beginning

The supervisor writes ``valid_until``, ``gate`` and ASKED and RECALLED; the process writes the rest, and takes RECALLED
away. Each number is 8 bytes at an address divisible by 8, so a reader sees the old or the new one and no mixture.

The process writes its entry and then reads ``recall`` and ``gate``; the supervisor writes one of them, waits
:data:`SETTLING` seconds and then reads the entries. So either the process sees that it must not start, or the
supervisor sees that it has started.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

#: How long a write of one process takes, at most, until another one's CPU sees it.
SETTLING = 0.001
#: Started and unsettled executions that one process has at most where it runs one at a time.
RING = 128

ASKED = 1
RECALLED = 2
#: What to tell :meth:`Slot.renewed` when the lease is over for good: a moment long ago.
LOST = 1e-9

_BEAT_AT = 40
_BATCH_AT = 48
_BATCH_MAX = 8192 - _BATCH_AT - 4
_HEAD = 8192
_ENTRY = 512
_TEXT_AT = 48
_TEXT_MAX = _ENTRY - _TEXT_AT
_ID_LEAST = 64

_DOUBLE = struct.Struct("@d")
_COUNT = struct.Struct("@Q")
_SIZE = struct.Struct("@I")
_GATE = struct.Struct("@dQQ")
_STATE = struct.Struct("@dQddQQ")

# Leases are measured in time that also passes while the machine sleeps; macOS has only one such clock.
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_clock = time.clock_gettime


def boot_time() -> float:
    """Return seconds since boot, suspended time included, comparable between the processes of this machine."""
    return time.clock_gettime(_BOOT_CLOCK)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """One execution as its process describes it. ``running`` is false when it has ended and is not settled."""

    index: int
    token: int
    running: bool
    since: float  # monotonic seconds
    tag: str
    task_id: str = ""
    task: str = ""
    hard_at: float = 0.0  # monotonic seconds; 0 for never
    hard: float = 0.0
    behind: int = 0


class Slot:
    """One process's slot. The process writes, the supervisor reads; see the module for who owns which field."""

    __slots__ = ("_at", "_capacity", "_ended", "_memory", "_token")

    def __init__(self, memory: mmap.mmap, at: int, capacity: int) -> None:
        self._memory = memory
        self._at = at
        self._capacity = capacity
        self._token = 0
        self._ended = 0

    @property
    def capacity(self) -> int:
        """How many executions there is room for."""
        return self._capacity

    # -- the process ---------------------------------------------------------------------------------------------

    def started(
        self,
        tag: str,
        at: float,
        task_id: str = "",
        task: str = "",
        hard: float = 0.0,
        hard_at: float = 0.0,
        behind: int = 0,
        index: int = -1,
    ) -> bool:
        """Say that user code for this delivery starts now (monotonic seconds); return whether it may.

        Where it may not, the entry is taken back; :attr:`expired` tells the reason. Without an ``index`` the entries
        are used in turn, which is right where executions end in the order in which they start.
        """
        memory = self._memory
        token = self._token = self._token + 1
        base = self._at + _HEAD + (token % self._capacity if index < 0 else index) * _ENTRY
        text = f"{tag}\0{task_id}\0{task}".encode()
        if len(text) > _TEXT_MAX:
            text = _shortened(tag, task_id, task)
        length = len(text)
        memory[base + _TEXT_AT : base + _TEXT_AT + length] = text
        # `since` comes first in these: what is half written counts as started, which loses nothing.
        _STATE.pack_into(memory, base, at or 1e-9, token, hard_at, hard, behind, length)
        valid_until, recall, gate = _GATE.unpack_from(memory, self._at)
        if recall or gate or (valid_until and _clock(_BOOT_CLOCK) > valid_until):
            _DOUBLE.pack_into(memory, base, 0.0)
            return False
        return True

    def ended(self, index: int = -1) -> None:
        """Say that an execution has ended, the latest one without an index, and that its outcome is not settled."""
        if index < 0:
            self._ended = self._token
            index = self._token % self._capacity
        _DOUBLE.pack_into(self._memory, self._at + _HEAD + index * _ENTRY, -1.0)

    def settled(self) -> None:
        """Say that everything that has ended is settled, where executions end in the order in which they start."""
        _COUNT.pack_into(self._memory, self._at + 32, self._ended)

    def free(self, indexes: Iterable[int]) -> None:
        """Say that the outcomes of these entries are settled."""
        for index in indexes:
            _DOUBLE.pack_into(self._memory, self._at + _HEAD + index * _ENTRY, 0.0)

    def reserved(self, tags: Sequence[str]) -> None:
        """Say which messages were reserved last. Tags that do not fit are left out."""
        data = " ".join(tags).encode()
        if len(data) > _BATCH_MAX:
            data = data[:_BATCH_MAX].rpartition(b" ")[0]
        start = self._at + _BATCH_AT
        _SIZE.pack_into(self._memory, start, len(data))
        self._memory[start + 4 : start + 4 + len(data)] = data

    def behind(self, count: int) -> None:
        """Say how many messages wait behind the execution that started last."""
        base = self._at + _HEAD + (self._token % self._capacity) * _ENTRY
        _COUNT.pack_into(self._memory, base + 32, count)

    def count(self, n: int = 1) -> None:
        """Add to the number of executions that ended. One writer only."""
        at = self._at + 24
        _COUNT.pack_into(self._memory, at, _COUNT.unpack_from(self._memory, at)[0] + n)

    def beat(self, now: float) -> None:
        """Say that there is nothing to do now (monotonic seconds)."""
        _DOUBLE.pack_into(self._memory, self._at + _BEAT_AT, now)

    @property
    def valid_until(self) -> float:
        """Boot-time seconds until which the lease surely holds; 0.0 while that is unknown."""
        return float(_DOUBLE.unpack_from(self._memory, self._at)[0])

    @property
    def expired(self) -> bool:
        """Whether the lease may have ended: nothing may be started on it."""
        return 0.0 < self.valid_until < boot_time()

    @property
    def lost(self) -> bool:
        """Whether the store has said that the lease is over, and what was held belongs to others."""
        return self.valid_until == LOST

    @property
    def gated(self) -> bool:
        """Whether the supervisor is about to decide something, and nothing may start until it has."""
        _, recall, gate = _GATE.unpack_from(self._memory, self._at)
        return bool(gate) or recall == ASKED

    def dropped(self) -> None:
        """Say that nothing is left of what had been reserved before a recall."""
        _COUNT.pack_into(self._memory, self._at + 8, 0)

    # -- the supervisor ------------------------------------------------------------------------------------------

    @property
    def beat_at(self) -> float:
        """Monotonic seconds at which the process last found nothing to do."""
        return float(_DOUBLE.unpack_from(self._memory, self._at + _BEAT_AT)[0])

    def executions(self) -> list[Started]:
        """Return what runs and what has ended without being settled."""
        settled = _COUNT.unpack_from(self._memory, self._at + 32)[0]
        found = []
        for index in range(self._capacity):
            base = self._at + _HEAD + index * _ENTRY
            since, token, hard_at, hard, behind, length = _STATE.unpack_from(self._memory, base)
            if since > 0 or (since < 0 and token > settled):
                tag, task_id, task = self._text(base + _TEXT_AT, min(length, _TEXT_MAX))
                found.append(
                    Started(
                        index=index,
                        token=token,
                        running=since > 0,
                        since=since,
                        tag=tag,
                        task_id=task_id,
                        task=task,
                        hard_at=hard_at,
                        hard=hard,
                        behind=behind,
                    )
                )
        return sorted(found, key=lambda each: each.token)

    def running(self) -> list[Started]:
        """Return what runs, the oldest first."""
        return [each for each in self.executions() if each.running]

    def still(self, execution: Started) -> bool:
        """Say whether this very execution still runs."""
        base = self._at + _HEAD + execution.index * _ENTRY
        since, token, *_ = _STATE.unpack_from(self._memory, base)
        return bool(since > 0 and token == execution.token)

    def batch(self) -> list[str]:
        """Return the tags that were reserved last."""
        start = self._at + _BATCH_AT
        length = min(_SIZE.unpack_from(self._memory, start)[0], _BATCH_MAX)
        return bytes(self._memory[start + 4 : start + 4 + length]).decode(errors="replace").split()

    def processed(self) -> int:
        """Return how many executions ended in this process."""
        return int(_COUNT.unpack_from(self._memory, self._at + 24)[0])

    def renewed(self, valid_until: float) -> None:
        """Tell the process until when its lease surely holds, in boot-time seconds."""
        _DOUBLE.pack_into(self._memory, self._at, valid_until)

    def recall(self, state: int) -> None:
        """Say how far a recall is: :data:`ASKED` or :data:`RECALLED`."""
        _COUNT.pack_into(self._memory, self._at + 8, state)

    @property
    def recalling(self) -> int:
        """How far a recall is; 0 where there is none."""
        return int(_COUNT.unpack_from(self._memory, self._at + 8)[0])

    def shut(self, gate: bool) -> None:
        """Close the gate, behind which nothing starts, or open it."""
        _COUNT.pack_into(self._memory, self._at + 16, int(gate))

    def clear(self) -> None:
        """Make the slot ready for the next process."""
        memory, at = self._memory, self._at
        memory[at : at + _BATCH_AT + 4] = bytes(_BATCH_AT + 4)
        for index in range(self._capacity):
            base = at + _HEAD + index * _ENTRY
            memory[base : base + _TEXT_AT] = bytes(_TEXT_AT)
        self._token = self._ended = 0

    def _text(self, start: int, length: int) -> tuple[str, str, str]:
        parts = bytes(self._memory[start : start + length]).decode(errors="replace").split("\0")
        tag, task_id, task = (*parts, "", "")[:3]
        return tag, task_id, task


def _shortened(tag: str, task_id: str, task: str) -> bytes:
    """Cut the id, for the name says what becomes of a task whose process dies; a name only if it alone is too long."""
    name, id = task.encode(), task_id.encode()
    room = max(0, _TEXT_MAX - len(tag.encode()) - 2)
    name = name[: max(0, room - min(len(id), _ID_LEAST))]
    return b"\0".join((tag.encode(), id[: room - len(name)], name))[:_TEXT_MAX]


class SlotTable:
    """A number of slots in one shared mapping: of a file, or anonymous and made before the fork that shall share it."""

    __slots__ = ("_memory", "_slots")

    def __init__(self, size: int, capacity: int = RING, file: int = -1) -> None:
        each = _HEAD + capacity * _ENTRY
        self._memory = mmap.mmap(file, self.bytes(size, capacity))
        self._slots = [Slot(self._memory, index * each, capacity) for index in range(size)]

    @staticmethod
    def bytes(size: int, capacity: int) -> int:
        """Return the length of the file that holds so many slots."""
        return max(size, 1) * (_HEAD + capacity * _ENTRY)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)
