"""What the connections of one process to one file have in common: its lock files, its consumer ids and its bells.

Three files lie beside ``jobs.db``. ``jobs.db.lock`` is locked by whoever writes or checkpoints. ``jobs.db.workers``
carries one byte for each consumer, locked by its supervisor as long as that lives, and byte 0, the turnstile.

POSIX frees all locks that a process has on a file as soon as it closes *any* descriptor of it. So each process opens
each of these files once, here, and closes it only when nobody in the process uses the database.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from umbel.brokers.sqlite.filesystem import lock_holders
from umbel.exceptions import OperationalError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_TURNSTILE = 0
_POLL = 0.0001

if sys.platform == "win32":

    def _try_byte(descriptor: int, offset: int) -> bool:
        """Lock one byte if no other process has it."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _free_byte(descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        except PermissionError:
            pass  # it was not locked

    def _try_file(descriptor: int) -> bool:
        return _try_byte(descriptor, 0)

    def _free_file(descriptor: int) -> None:
        _free_byte(descriptor, 0)

else:

    def _try_byte(descriptor: int, offset: int) -> bool:
        """Lock one byte if no other process has it."""
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _free_byte(descriptor: int, offset: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)

    def _try_file(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _free_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class Waker:
    """Ends the sleep of one thread. Safe to ring and wake from any thread; :meth:`wake` also in a signal handler."""

    __slots__ = ("_receiver", "_sender", "sleeping")

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self.sleeping = False  # set by the sleeper before it looks a last time, so that no change falls between

    def wake(self) -> None:
        """End the sleep, or the next one."""
        self._send(b"w")

    def ring(self) -> None:
        """Say that the file has changed, if anyone sleeps."""
        if self.sleeping:
            self._send(b"r")

    def _send(self, what: bytes) -> None:
        try:
            self._sender.send(what)
        except OSError:
            pass  # full: it will wake anyway; closed: nobody sleeps

    def sleep(self, seconds: float) -> bytes:
        """Sleep until woken or rung or the time is over; return why: ``w``'s and ``r``'s, or nothing."""
        self._receiver.settimeout(max(0.0, seconds))
        try:
            return self._receiver.recv(4096)
        except (TimeoutError, BlockingIOError):
            return b""

    def close(self) -> None:
        """Give up the descriptors."""
        self._receiver.close()
        self._sender.close()


class Shared:
    """The process's side of one database file. Safe to share between threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.users = 0
        self.checkpoint_at = 0
        self.own: set[int] = set()
        self._sleepers: tuple[Waker, ...] = ()
        self._mutex = threading.RLock()
        self._writer = 0
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._lock = os.open(f"{path}.lock", flags, 0o600)
        try:
            self._workers = os.open(f"{path}.workers", flags, 0o600)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Close the lock files, which frees every lock on them."""
        os.close(self._lock)
        os.close(self._workers)

    def abandon(self) -> None:
        """Close the lock files in a forked child, where none of the locks is ours and any thread's state is stale."""
        self._mutex = threading.RLock()
        self.own = set()
        self.close()

    @contextmanager
    def writing(self, timeout: float) -> Iterator[None]:
        """Be the only writer of the file, in this process and among all; OperationalError after so many seconds."""
        if self._writer == threading.get_ident():
            raise OperationalError(
                f"{self.path} is being written by this very thread; a signal handler must not use it"
            )
        deadline = time.monotonic() + timeout
        try:
            # Inside the try: an exception raised by a signal handler at any point must not leave anything locked.
            if not self._mutex.acquire(timeout=timeout):
                raise self._busy(timeout)
            self._writer = threading.get_ident()
            # Whoever has just written must queue up here behind the one who waits; a free-for-all on one lock let
            # a busy worker keep it for a second at a time.
            self._poll(lambda: _try_byte(self._workers, _TURNSTILE), 10 * _POLL, deadline, timeout)
            self._poll(lambda: _try_file(self._lock), 2 * _POLL, deadline, timeout)
            _free_byte(self._workers, _TURNSTILE)
            yield
        finally:
            self._release()

    def _release(self) -> None:
        # Taking it once more succeeds if it is ours, and tells so without a flag that an exception could have skipped.
        if not self._mutex.acquire(blocking=False):
            return
        self._writer = 0
        _free_byte(self._workers, _TURNSTILE)
        _free_file(self._lock)
        self._mutex.release()
        try:
            self._mutex.release()
        except RuntimeError:
            pass  # it was not ours, and nobody's

    def _poll(self, attempt: Callable[[], bool], longest: float, deadline: float, timeout: float) -> None:
        pause = _POLL
        while not attempt():
            if time.monotonic() > deadline:
                raise self._busy(timeout)
            time.sleep(pause)
            pause = min(pause * 1.2, longest)

    def _busy(self, timeout: float) -> OperationalError:
        text = f"{self.path} was being written by another thread or process for {timeout:g} s"
        holders = lock_holders(self._lock)
        if not holders:
            return OperationalError(f"{text}; try again, and look for a process that was stopped in the middle of it")
        advice = "let that go on (SIGCONT) or kill it" if "(stopped" in holders else "try again"
        return OperationalError(f"{text}, which is {holders}; {advice}")

    def log_size(self, size: int = 0) -> int:
        """Return what all writers know of the length of the log, after setting it. Only the writer may ask."""
        os.lseek(self._lock, 0, os.SEEK_SET)
        if size:
            os.write(self._lock, size.to_bytes(8, "little"))
            return size
        return int.from_bytes(os.read(self._lock, 8), "little")

    def claim(self, number: int) -> None:
        """Hold the byte of a consumer until :meth:`disclaim`, or until this process ends."""
        with self._mutex:
            if not _try_byte(self._workers, number):
                raise OperationalError(f"{self.path}.workers: the lock of new consumer {number} is taken")
            self.own.add(number)

    def disclaim(self, number: int) -> None:
        """Let the byte of a consumer go. Does nothing if it is not held."""
        with self._mutex:
            if number in self.own:
                self.own.discard(number)
                _free_byte(self._workers, number)

    def claimed(self, number: int) -> bool:
        """Say whether some process holds the byte of that consumer."""
        with self._mutex:
            if number in self.own:
                return True
            if not _try_byte(self._workers, number):
                return True
            _free_byte(self._workers, number)
            return False

    def waker(self) -> Waker:
        """Return a new waker that is rung at each change, until it is dismissed."""
        waker = Waker()
        with self._mutex:
            self._sleepers = (*self._sleepers, waker)
        return waker

    def dismiss(self, waker: Waker) -> None:
        """Close a waker."""
        with self._mutex:
            self._sleepers = tuple(other for other in self._sleepers if other is not waker)
        waker.close()

    def ring(self) -> None:
        """Tell the sleepers of this process that the file has changed."""
        for waker in self._sleepers:
            waker.ring()
