"""The zygote: a process with one thread and no connections that forks the worker processes.

The supervisor forks it once, after the app is imported and before it starts a thread or opens a connection, so that
each child starts from a clean image and shares its memory. It obeys frames on a socket and reports what happened::

    supervisor ──Fork(key, payload) + one descriptor──> zygote ──fork──> child: run(payload, socket)
               ──Kill(pid, signal)───────────────────>
               <──Forked | ForkFailed | Exited─────────

If the supervisor dies, the kernel kills the zygote and then its children (Linux); elsewhere both see the end of
their socket. Only the zygote knows whether a pid is still that child, so only it sends signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

import msgspec

from umbel.exceptions import CeleryError

_HEADER = struct.Struct("!I")
_PR_SET_PDEATHSIG = 1
#: What a terminal or a service manager sends to a whole group: the supervisor alone decides what it means.
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]

Run = Callable[[bytes, socket.socket], int]


class Fork(msgspec.Struct, tag=True, frozen=True):
    """Ask for a child. ``key`` comes back in the answer; ``payload`` goes to the child."""

    key: int
    payload: bytes


class Kill(msgspec.Struct, tag=True, frozen=True):
    """Ask to send a signal to a child, if it still lives."""

    pid: int
    signal: int


class Forked(msgspec.Struct, tag=True, frozen=True):
    """A child was started."""

    key: int
    pid: int


class ForkFailed(msgspec.Struct, tag=True, frozen=True):
    """The system refused to fork."""

    key: int
    reason: str


class Exited(msgspec.Struct, tag=True, frozen=True):
    """A child ended. ``code`` is its exit status, or minus the signal that killed it."""

    pid: int
    code: int


Event = Forked | ForkFailed | Exited
_requests = msgspec.json.Decoder(Fork | Kill)
_events = msgspec.json.Decoder(Forked | ForkFailed | Exited)


class ZygoteLost(CeleryError):
    """The zygote is gone, and every child with it."""


class Zygote:
    """The supervisor's end. Used by one thread; :meth:`fork` and :meth:`kill` only ask, the answer is an event."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self.pid = pid

    @classmethod
    def start(cls, run: Run) -> Zygote:
        """Fork the zygote. ``run`` is called in each child and returns its exit code.

        The caller has one thread and no connections; it is the main thread, for the kernel ties the zygote's life
        to the thread that forked it.
        """
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        libc = c_library()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Nothing may arrive between the fork and the moment the zygote has handlers of its own.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        gc.collect()
        gc.disable()
        gc.freeze()
        try:
            pid = os.fork()
            if pid == 0:
                _become_zygote(theirs, ours, parent, libc, run, old_mask)
        finally:
            gc.unfreeze()
            gc.enable()
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        theirs.close()
        return cls(ours, pid)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return self._sock.fileno()

    def fork(self, key: int, payload: bytes) -> socket.socket:
        """Ask for a child and return this side of its socket."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                _send(self._sock, Fork(key, payload), [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise ZygoteLost(f"the zygote (pid {self.pid}) is gone: {error}") from error
        return ours

    def kill(self, pid: int, signum: int) -> None:
        """Ask to signal a child; nothing happens if it has ended."""
        with contextlib.suppress(OSError):
            _send(self._sock, Kill(pid, signum))

    def events(self) -> list[Event]:
        """Return what has happened since the last call; never waits. Raises :exc:`ZygoteLost` when it is gone."""
        try:
            data = self._sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            raise ZygoteLost(f"the zygote (pid {self.pid}) is gone, and every child with it")
        self._buffer += data
        return [_events.decode(frame) for frame in _frames(self._buffer)]

    def close(self) -> None:
        """End the zygote and any child that is left. A second call does nothing."""
        self._sock.close()
        if self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0


def die_with_parent(parent: int, libc: ctypes.CDLL | None) -> bool:
    """Have the kernel kill this process when ``parent`` ends; return whether it will.

    Where it cannot, the caller watches its socket to the parent.
    """
    if libc is None:
        return False
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the kernel was told.
        os._exit(1)
    return True


def open_connections() -> list[str]:
    """Name the network connections of this process: children would share them, and corrupt them."""
    found = []
    for entry in _listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    host, port = sock.getpeername()[:2]
                    found.append(f"{host}:{port}")
    return found


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def c_library() -> ctypes.CDLL | None:
    """Return the C library where :func:`die_with_parent` can use it."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _send(sock: socket.socket, frame: Fork | Kill | Event, fds: list[int] | None = None) -> None:
    data = msgspec.json.encode(frame)
    header = _HEADER.pack(len(data))
    if fds:
        # A descriptor travels with the first byte, so it cannot be told apart from a neighbour's.
        socket.send_fds(sock, [header], fds)
        sock.sendall(data)
    else:
        sock.sendall(header + data)


def _frames(buffer: bytearray) -> list[bytes]:
    """Take the complete frames out of the buffer."""
    frames = []
    while len(buffer) >= 4:
        (length,) = _HEADER.unpack_from(buffer)
        if len(buffer) < 4 + length:
            break
        frames.append(bytes(buffer[4 : 4 + length]))
        del buffer[: 4 + length]
    return frames


# -- the zygote's side -------------------------------------------------------------------------------------------


def _become_zygote(
    sock: socket.socket,
    other: socket.socket,
    parent: int,
    libc: ctypes.CDLL | None,
    run: Run,
    mask: Iterable[int],
) -> None:
    """Serve until the supervisor is gone. Never returns."""
    try:
        other.close()
        die_with_parent(parent, libc)
        # The supervisor decides what a signal means; a terminal or a service manager sends it to all of us.
        # A handler that does nothing, and not SIG_IGN: that one a child's subprocess would inherit.
        for signum in STOP_SIGNALS:
            signal.signal(signum, nothing)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _Server(sock, libc, run).serve()
    except BaseException:
        # The outermost wall of this process: what escapes would run the supervisor's code a second time.
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def end_with(run: Callable[[], int]) -> NoReturn:
    """End this process with the code that ``run`` returns, with 70 and a traceback if it raises.

    The outermost wall of a child: what escaped from one that was forked would go on as a second zygote, and what the
    user's threads still do must not keep it.
    """
    code = 70
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def nothing(signum: int, frame: object) -> None:
    """Let the signal only interrupt what waits."""


class _Server:
    """The loop of the zygote."""

    def __init__(self, sock: socket.socket, libc: ctypes.CDLL | None, run: Run) -> None:
        self._sock = sock
        self._libc = libc
        self._run = run
        self._children: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def serve(self) -> None:
        """Fork, kill and report until the supervisor closes its end."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, nothing)
        while True:
            readable, _, _ = select.select([self._sock.fileno(), self._wake_read], [], [])
            if self._wake_read in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            try:
                self._report_exits()
                if self._sock.fileno() in readable and not self._obey():
                    break
            except (EOFError, ConnectionError):
                # The supervisor was killed, with frames on their way in one direction or the other.
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _obey(self) -> bool:
        """Do one request; return False when there will be no more."""
        header, fds, _, _ = socket.recv_fds(self._sock, 4, 1)
        if not header:
            return False
        header += self._read(4 - len(header))
        request = _requests.decode(self._read(_HEADER.unpack(header)[0]))
        if isinstance(request, Kill):
            if request.pid in self._children:
                os.kill(request.pid, request.signal)
            return True
        with socket.socket(fileno=fds[0]) as child_end:
            child_end.set_inheritable(False)
            self._fork(request, child_end)
        return True

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            chunk = self._sock.recv(length - len(data))
            if not chunk:
                raise EOFError("the supervisor went away in the middle of a request")
            data += chunk
        return data

    def _fork(self, request: Fork, child_end: socket.socket) -> None:
        parent = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _send(self._sock, ForkFailed(request.key, str(error)))
            return
        if pid == 0:
            self._become_child(request, child_end, parent, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._children.add(pid)
        _send(self._sock, Forked(request.key, pid))

    def _become_child(self, request: Fork, child_end: socket.socket, parent: int, mask: Iterable[int]) -> NoReturn:
        """Run the child."""

        def run() -> int:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._sock.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            die_with_parent(parent, self._libc)
            # What signals mean here is up to the child; until it says so they do nothing.
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            gc.enable()
            return self._run(request.payload, child_end)

        end_with(run)

    def _report_exits(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._children.discard(pid)
            _send(self._sock, Exited(pid, os.waitstatus_to_exitcode(status)))
