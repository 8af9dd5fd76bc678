"""Slots: what a worker process is doing, in memory that it shares with its supervisor.

One slot of 256 bytes per process. The process writes ``since``, the tag of the delivery it runs and ``processed``;
the supervisor writes ``valid_until`` and ``recall``. Nothing here needs a lock::

    offset  0  since        double   0.0 while nothing runs; written last by started() and first by idle()
            8  valid_until  double   boot-time seconds until which the lease surely holds; 0.0 says unknown
           16  processed    uint64   executions that ended in this process
           24  recall       uint64   not 0: the supervisor asks for the unstarted messages
           32  tag          uint16 length and bytes in UTF-8

Each number is 8 bytes at an address divisible by 8, so a reader sees the old or the new one and no mixture.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator

_SIZE = 256
_TAG_AT = 32
_TAG_MAX = _SIZE - _TAG_AT - 2

_DOUBLE = struct.Struct("@d")
_COUNT = struct.Struct("@Q")
_LENGTH = struct.Struct("@H")

# Leases are measured in time that also passes while the machine sleeps; macOS has only one such clock.
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> float:
    """Return seconds since boot, suspended time included, comparable between the processes of this machine."""
    return time.clock_gettime(_BOOT_CLOCK)


class Slot:
    """One process's slot. The process writes, the supervisor reads; see the module for who owns which field."""

    __slots__ = ("_at", "_memory", "_running")

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._at = at
        self._running = False

    # -- the process ---------------------------------------------------------------------------------------------

    def started(self, tag: str, at: float) -> None:
        """Say that user code for this delivery starts now; ``at`` is in monotonic seconds."""
        memory, base = self._memory, self._at
        if self._running:
            # Killed between the two writes, the process must not be seen running a half-written tag.
            _DOUBLE.pack_into(memory, base, 0.0)
        data = tag.encode()[:_TAG_MAX]
        start = base + _TAG_AT
        memory[start + 2 : start + 2 + len(data)] = data
        _LENGTH.pack_into(memory, start, len(data))
        _DOUBLE.pack_into(memory, base, at or 1e-9)
        self._running = True

    def idle(self) -> None:
        """Say that no user code runs."""
        _DOUBLE.pack_into(self._memory, self._at, 0.0)
        self._running = False

    def count(self, n: int = 1) -> None:
        """Add to the number of executions that ended. One writer only."""
        place = self._at + 16
        _COUNT.pack_into(self._memory, place, _COUNT.unpack_from(self._memory, place)[0] + n)

    @property
    def valid_until(self) -> float:
        """Boot-time seconds until which the lease surely holds; 0.0 where nobody has said so yet."""
        return float(_DOUBLE.unpack_from(self._memory, self._at + 8)[0])

    @property
    def recall(self) -> bool:
        """Whether the supervisor wants the unstarted messages back."""
        return bool(_COUNT.unpack_from(self._memory, self._at + 24)[0])

    # -- the supervisor ------------------------------------------------------------------------------------------

    def current(self) -> tuple[str | None, float]:
        """Return the tag of the delivery that runs and since when, or ``(None, 0.0)``.

        Of a process that died the answer is exact. Of a living one it is the answer of some moment during the call.
        """
        for _ in range(8):
            since = self._since()
            if not since:
                return None, 0.0
            start = self._at + _TAG_AT
            length = min(_LENGTH.unpack_from(self._memory, start)[0], _TAG_MAX)
            data = bytes(self._memory[start + 2 : start + 2 + length])
            if self._since() == since:
                return data.decode(errors="replace"), since
        return None, 0.0

    def processed(self) -> int:
        """Return how many executions ended in this process."""
        return int(_COUNT.unpack_from(self._memory, self._at + 16)[0])

    def renewed(self, valid_until: float) -> None:
        """Tell the process until when its lease surely holds, in boot-time seconds."""
        _DOUBLE.pack_into(self._memory, self._at + 8, valid_until)

    def ask(self, recall: bool) -> None:
        """Ask for the unstarted messages, or take that back."""
        _COUNT.pack_into(self._memory, self._at + 24, int(recall))

    def clear(self) -> None:
        """Make the slot ready for the next process."""
        self._memory[self._at : self._at + _SIZE] = bytes(_SIZE)
        self._running = False

    def _since(self) -> float:
        return float(_DOUBLE.unpack_from(self._memory, self._at)[0])


class SlotTable:
    """A number of slots in one anonymous shared mapping: create it before the fork that shall share it."""

    __slots__ = ("_memory", "_slots")

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, max(size, 1) * _SIZE)
        self._slots = [Slot(self._memory, index * _SIZE) for index in range(size)]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)
