"""What the processes of one worker share beside their slots: a logical clock, and the buckets of rate limits.

One anonymous mapping, made before the fork. All numbers are 8 bytes::

    0    clock   uint64   the logical time of the worker's events
    8    unused
    16   buckets, three numbers each:
         name     uint64   hash of the task's name; 0 where the bucket is free
         next     double   wall time at which the next token is there
         booked   double   wall time until which messages that had to wait were told to come back

A bucket is changed under a lock of the kernel, which a process that dies gives up; the clock without one, since two
events may show the same logical time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator
from typing import Final

try:
    import fcntl
except ImportError:  # Windows, where a worker has one process
    fcntl = None  # type: ignore[assignment]

BUCKETS: Final = 1024
#: Seconds that a message waits at most before it asks again, so that it reaches a worker that has come since.
LONGEST_WAIT: Final = 30.0
#: A token counts as there so many seconds before: what was told to come back then may be a little early.
_TOLERANCE: Final = 0.01

_NUMBER: Final = struct.Struct("@Q")
_BUCKET: Final = struct.Struct("@Qdd")
_FIRST: Final = 16
#: Bytes of the mapping.
SIZE: Final = _FIRST + BUCKETS * _BUCKET.size


class Shared:
    """Make it before the fork, or of files that were inherited. Its methods may be called from any process and thread.

    ``file`` is a descriptor of :data:`SIZE` bytes, ``lock`` that of another file, which it then owns.
    """

    def __init__(self, file: int = -1, lock: int | None = None) -> None:
        self._memory = mmap.mmap(file, SIZE)
        self._file = _nameless() if lock is None else lock
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()

    @property
    def lock(self) -> int:
        """The descriptor of the file whose lock is used."""
        return self._file

    # -- the clock -----------------------------------------------------------------------------------------------

    @property
    def value(self) -> int:
        """The logical time."""
        return int(_NUMBER.unpack_from(self._memory, 0)[0])

    def forward(self) -> int:
        """Move on by one and return the time."""
        return self.adjust(0)

    def adjust(self, other: int) -> int:
        """Move past the time of a message that was received."""
        value = min(max(self.value, other), (1 << 63) - 1) + 1
        _NUMBER.pack_into(self._memory, 0, value)
        return value

    # -- the buckets ---------------------------------------------------------------------------------------------

    def take(self, name: str, rate: float, now: float) -> float:
        """Take a token of a task that may start ``rate`` times a second; return 0.0, or when to come back for one.

        Times are wall time. Who has to wait gets a moment of its own, so that not all of them come back at once.
        """
        interval = 1 / rate
        with self._locked():
            at, (_, ready, booked) = self._bucket(name)
            # A clock that was set back must not stop the task until it has caught up.
            if ready > now + interval:
                ready = now
            if ready <= now + _TOLERANCE:
                self._write(at, name, max(ready, now) + interval, booked)
                return 0.0
            booked = max(booked if booked <= now + LONGEST_WAIT else now, ready)
            moment = booked
            self._write(at, name, ready, booked + interval)
            return min(moment, now + LONGEST_WAIT)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # The kernel's lock is between processes, and belongs to the whole of one.
        with self._lock:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if fcntl is not None:
                    fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _bucket(self, name: str) -> tuple[int, tuple[int, float, float]]:
        """Return where the bucket of a task is, and what is in it. When all are taken, names share one."""
        wanted = _hash(name)
        for step in range(BUCKETS):
            at = _FIRST + (wanted + step) % BUCKETS * _BUCKET.size
            found = _BUCKET.unpack_from(self._memory, at)
            if found[0] in (0, wanted):
                return at, found
        at = _FIRST + wanted % BUCKETS * _BUCKET.size
        return at, _BUCKET.unpack_from(self._memory, at)

    def _write(self, at: int, name: str, ready: float, booked: float) -> None:
        _BUCKET.pack_into(self._memory, at, _hash(name), ready, booked)


def _nameless() -> int:
    """Return a file without a name or content: only its lock is used."""
    file, path = tempfile.mkstemp(prefix="umbel-lock-")
    os.unlink(path)
    return file


def _hash(name: str) -> int:
    data = name.encode("utf-8", "surrogatepass")
    return (zlib.crc32(data) << 32 | zlib.adler32(data)) or 1
