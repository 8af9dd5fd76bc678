"""A connection that packs, sends and reads with hiredis directly.

The high-level client of redis-py costs more time per command than the server does, and hides the push messages of
client tracking, which end our waits.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha1
from pkgutil import get_data
from typing import Any, Final, NoReturn

import hiredis

from umbel.brokers.redis.client import Source, Unconfirmed, unreachable
from umbel.brokers.redis.waker import Waker, ready
from umbel.exceptions import BrokerError, OperationalError

Word = str | bytes | int | float

DOUBTED: Final = 10.0  # seconds of silence after which the server itself is asked: the kernel may not know
_MORE: Final = object()
_READ_SIZE: Final = 65536
_FRESH: Final = 0.1  # seconds in which a link that was just used is taken to be alive, without asking the kernel
_LARGE: Final = 65536  # more than this may take its time to be sent
_KERNEL_TIMEOUTS: Final = sys.platform == "linux" and struct.calcsize("ll") == 16
# redis.io/docs/latest/develop/reference/protocol-spec: the first word of an error reply is its kind. After these the
# server has changed nothing, and another server, or the same one later, may well do it.
_UNAVAILABLE: Final = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
    }
)
_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?([A-Z]+) ")
# The server behind the address is no longer the one that takes writes.
_MOVED: Final = frozenset({"READONLY", "MASTERDOWN", "CLUSTERDOWN"})

_Push: Final[Any] = hiredis.PushNotification
# hiredis declares its argument as a tuple of one word.
pack: Final[Callable[[tuple[Word, ...]], bytes]] = hiredis.pack_command  # type: ignore[assignment]


class Script:
    """A Lua script made of files of this package, named by its hash."""

    __slots__ = ("sha", "text")

    def __init__(self, *names: str) -> None:
        parts = [get_data(__package__, f"{name}.lua") or b"" for name in names]
        self.text = b"\n".join(parts)
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def pack(self, keys: Sequence[Word], args: Sequence[Word]) -> bytes:
        """Return the words that run it."""
        return pack((b"EVALSHA", self.sha, len(keys), *keys, *args))


class Link:
    """One connection. Used by one thread at a time; connects when it is first used, and again after a failure.

    :meth:`close` may be called from another thread: whoever waits on it then gets :exc:`OperationalError`.
    """

    __slots__ = (
        "_buffer",
        "_hurried",
        "_on_open",
        "_on_push",
        "_plain",
        "_poll",
        "_reader",
        "_sock",
        "_source",
        "_until",
        "_waker",
        "idle_since",
        "timeout",
    )

    def __init__(
        self,
        source: Source,
        *,
        timeout: float | None = None,
        on_open: Callable[[Link], None] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._source = source
        self.timeout = timeout or source.socket_timeout
        self._on_open = on_open
        self._on_push = on_push
        self._sock: Any = None
        self._poll: Any = None  # of that socket, and of the waker that the last wait had
        self._waker: Waker | None = None
        self._plain = False  # its timeouts are the kernel's
        self._hurried = False  # its timeout is what a deadline has left
        self._until = 0.0  # monotonic seconds at which everything must be done; 0 for none
        self.idle_since = 0.0
        self._reader: Any = None
        self._buffer = bytearray(_READ_SIZE)

    # -- commands ------------------------------------------------------------------------------------------------

    def call(self, *words: Word) -> Any:
        """Run one command and return its reply."""
        return self.checked(self.exchange(pack(words)))

    def run(self, script: Script, keys: Sequence[Word], args: Sequence[Word]) -> Any:
        """Run a script and return its reply."""
        packed = script.pack(keys, args)
        reply = self.exchange(packed)
        if _unscripted(reply):
            self.call(b"SCRIPT", b"LOAD", script.text)
            reply = self.exchange(packed)
        return self.checked(reply)

    def run_many(self, script: Script, calls: Sequence[tuple[Sequence[Word], Sequence[Word]]]) -> list[Any]:
        """Run a script once for each (keys, args), in one round trip, and return the replies.

        The first error reply is raised; what was called before and after it has run.
        """
        packed = [script.pack(keys, args) for keys, args in calls]
        replies = self._replies(packed)
        # A server that has not got the script refuses all of them, unless it gets it in between.
        unknown = [at for at, reply in enumerate(replies) if _unscripted(reply)]
        if unknown:
            self.call(b"SCRIPT", b"LOAD", script.text)
            for at, reply in zip(unknown, self._replies([packed[at] for at in unknown]), strict=True):
                replies[at] = reply
        return [self.checked(reply) for reply in replies]

    def _replies(self, packed: Sequence[bytes]) -> list[Any]:
        """Send packed commands and return what came back, errors too."""
        self.send(b"".join(packed))
        try:
            replies = [self.read() for _ in packed]
        except BaseException:
            self.drop()
            raise
        if self._hurried:
            self._limit(self.timeout)
        return replies

    def pipeline(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Run commands in one round trip and return their replies; the first error reply is raised."""
        return [self.checked(reply) for reply in self._replies([pack(tuple(command)) for command in commands])]

    def exchange(self, packed: bytes) -> Any:
        """Send packed words and return the reply, also when it is an error."""
        try:
            self.send(packed)
            reply = self.read()
        except BaseException:
            # An exception in between (a signal's, say) leaves a reply that the next command would take for its own.
            self.drop()
            raise
        if self._hurried:
            self._limit(self.timeout)
        return reply

    def send(self, packed: bytes) -> None:
        """Send packed words; each command in them is owed one :meth:`read`."""
        until = self._until
        if self._sock is None:
            # Connecting and the first answer share the time of one answer.
            until = until or time.monotonic() + self.timeout
            self.open()
        if until:
            self._limit_until(until)
        sock = self._sock
        if sock is None:
            raise unreachable(self._source.name, "the connection was closed")
        try:
            sock.sendall(packed)
            if until and len(packed) > _LARGE:
                self._limit_until(until)
        except OSError as error:
            # A command that was not sent whole is not run.
            self.drop()
            raise unreachable(self._source.name, _cause(error)) from error

    def read(self) -> Any:
        """Return the next reply, also when it is an error. Push messages go to ``on_push``."""
        reader = self._reader
        if reader is None:
            raise self._closed()
        reply = reader.gets()
        while reply is _MORE or type(reply) is _Push:
            if reply is _MORE:
                self._receive()
            elif self._on_push is not None:
                self._on_push(reply)
            reply = reader.gets()
        return reply

    def _receive(self) -> None:
        sock, reader = self._sock, self._reader
        if sock is None or reader is None:
            raise self._closed()
        try:
            count = sock.recv_into(self._buffer)
            if not count:
                raise ConnectionResetError("the server closed the connection")
        except OSError as error:
            self.drop()
            raise Unconfirmed(f"Redis at {self._source.name} gave no answer: {_cause(error)}") from error
        reader.feed(self._buffer, 0, count)

    def _closed(self) -> Unconfirmed:
        self.drop()
        return Unconfirmed(f"the connection to Redis at {self._source.name} was closed")

    def checked(self, reply: Any) -> Any:
        """Return a reply of :meth:`exchange`, or raise our error for it."""
        if type(reply) is hiredis.ReplyError:
            self.fail(reply)
        return reply

    def fail(self, reply: Exception) -> NoReturn:
        """Raise the error of ours for an error reply."""
        text = str(reply)
        kind = _kind(text)
        if kind in _MOVED:
            self.drop()
        if kind in _UNAVAILABLE:
            raise OperationalError(f"Redis at {self._source.name} refused: {text}") from reply
        raise BrokerError(f"Redis at {self._source.name} answered with an error: {text}") from reply

    # -- deadlines -----------------------------------------------------------------------------------------------

    def hurry(self, seconds: float) -> None:
        """Let all that is done from now on, connecting too, take no longer than this together, until :meth:`relax`."""
        if seconds < self.timeout:
            self._until = time.monotonic() + seconds

    def relax(self) -> None:
        """Give each step its usual time again."""
        self._until = 0.0
        if self._hurried and self._sock is not None:
            self._limit(self.timeout)

    @property
    def hurried(self) -> bool:
        """Whether :meth:`relax` has something to undo."""
        return self._until > 0.0

    def answers(self, seconds: float) -> bool:
        """Say whether the server still answers on this connection within so many seconds; if not, it is given up."""
        self.hurry(seconds)
        try:
            self.call(b"PING")
        except BrokerError:
            self.drop()
            return False
        finally:
            self.relax()
        return True

    def _limit_until(self, moment: float) -> None:
        self._limit(max(moment - time.monotonic(), 0.001))
        self._hurried = True

    # -- the connection ------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known without asking."""
        return self._sock is not None

    def open(self) -> None:
        """Connect now, if not connected; all of it takes no longer than one answer may."""
        if self._sock is not None:
            return
        until = self._until or time.monotonic() + self.timeout
        sock: Any = self._source.connect(max(until - time.monotonic(), 0.001))
        self._plain = _KERNEL_TIMEOUTS and not hasattr(sock, "pending")
        if self._plain:
            sock.settimeout(None)
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._waker = None
        # Last: from here on it may be closed by another thread.
        self._sock = sock
        self._limit(self.timeout)
        if self._on_open is not None:
            self._limit_until(until)
            try:
                self._on_open(self)
            except BaseException:
                self.drop()
                raise

    def _limit(self, seconds: float) -> None:
        """Bound each send and each receive."""
        self._hurried = False
        sock = self._sock
        if sock is None:
            return
        # One that was closed meanwhile is an error at the next send or receive.
        with suppress(OSError):
            if not self._plain:
                sock.settimeout(seconds)
                return
            # By the kernel: a socket with a timeout of Python's costs another system call for each send and receive.
            interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, interval)

    def drop(self) -> None:
        """Give up the connection; the next command makes a new one."""
        sock = self._sock
        self._sock = self._reader = self._poll = self._waker = None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    close = drop

    def stale(self) -> bool:
        """Say whether the server has closed the connection while it lay idle."""
        if self._sock is None or not self._arrived(self._sock, 0.0, None):
            return False
        try:
            self.pump()
        except OperationalError:
            return True
        return False

    def pump(self) -> None:
        """Hand the push messages that have arrived to ``on_push``; never waits for more than a started one."""
        self._drain()
        while self._arrived(self._sock, 0.0, None):
            self._receive()
            self._drain()

    def _drain(self) -> bool:
        """Hand over what was received already; return whether there was anything."""
        found, reader = False, self._reader
        if reader is None:
            raise self._closed()
        while (reply := reader.gets()) is not _MORE:
            found = True
            if self._on_push is not None and type(reply) is _Push:
                self._on_push(reply)
        return found

    def listen(self, timeout: float, waker: Waker | None = None) -> bool:
        """Block until the server sends something or the waker is set; return whether the server did.

        Push messages go to ``on_push``, those that came along with the last reply too.
        """
        sock = self._sock
        if sock is None:
            try:
                ready([waker] if waker else [], timeout)
            except ValueError:
                raise self._closed() from None
            return False
        # The socket would not show any more what lies in the reader.
        if self._drain():
            return True
        if not self._arrived(sock, max(timeout, 0.0), waker):
            return False
        self._receive()
        self._drain()
        return True

    def _arrived(self, sock: Any, timeout: float, waker: Waker | None) -> bool:
        try:
            if not self._plain:
                return bool(sock.pending()) or sock in ready([sock, waker] if waker else [sock], timeout)
            poll, number = self._poll, sock.fileno()
            if poll is None:
                raise self._closed()
            if waker is not self._waker:
                if self._waker is not None:
                    poll.unregister(self._waker)
                if waker is not None:
                    poll.register(waker, select.POLLIN)
                self._waker = waker
            return any(found == number for found, _ in poll.poll(timeout * 1000))
        except ValueError:
            # What was closed has no number any more.
            raise self._closed() from None


def _kind(text: str) -> str:
    """Return the kind of an error reply. Redis before 7 hides that of an error inside a script behind its own words."""
    inside = _IN_SCRIPT.findall(text) if text.startswith(("ERR Error running script", "@user_script")) else ()
    return str(inside[-1]) if inside else text.partition(" ")[0]


def _unscripted(reply: Any) -> bool:
    return type(reply) is hiredis.ReplyError and str(reply).startswith("NOSCRIPT")


def _cause(error: OSError) -> str:
    # What the kernel's timeout looks like from Python, beside Python's own.
    return "it took too long" if isinstance(error, TimeoutError | BlockingIOError) else str(error)


class LinkPool:
    """Links for whoever needs one for a moment. Safe to share between threads."""

    __slots__ = ("_free", "_source", "_timeout", "closed")

    def __init__(self, source: Source, *, timeout: float | None = None) -> None:
        self._source = source
        self._timeout = timeout
        self._free: deque[Link] = deque()  # its methods are atomic
        self.closed = True

    def take(self, timeout: float | None = None) -> Link:
        """Return a link that is nobody else's; give it back with :meth:`give`.

        ``timeout`` bounds all that is done with it, where that is less than what one answer may take.
        """
        while True:
            try:
                link = self._free.pop()
            except IndexError:
                link = Link(self._source, timeout=self._timeout)
                break
            idle = time.monotonic() - link.idle_since
            if idle < _FRESH:
                break
            if link.stale():
                link.close()
            elif idle < DOUBTED:
                break
            else:
                return self._asked(link, timeout)
        if timeout is not None:
            link.hurry(timeout)
        return link

    def _asked(self, link: Link, timeout: float | None) -> Link:
        """Return this link if the server still answers on it, else a new one; the asking counts for the timeout."""
        allowed = link.timeout if timeout is None else min(timeout, link.timeout)
        until = time.monotonic() + allowed
        # A quarter, so that the rest is enough for a new connection.
        if not link.answers(allowed / 4):
            # The others have been silent as well.
            self._close_idle()
            link = Link(self._source, timeout=self._timeout)
        link.hurry(max(until - time.monotonic(), 0.001))
        return link

    def give(self, link: Link) -> None:
        """Take a link back, for the next."""
        if self.closed or not link.connected:
            link.close()
        else:
            if link.hurried:
                link.relax()
            link.idle_since = time.monotonic()
            self._free.append(link)

    @contextmanager
    def link(self, timeout: float | None = None) -> Iterator[Link]:
        """``with pool.link() as link:`` lends one, as :meth:`take` returns it."""
        link = self.take(timeout)
        try:
            yield link
        except BaseException:
            link.close()
            raise
        self.give(link)

    def open(self) -> None:
        """Connect one link; a pool that was closed may be used again."""
        self.closed = False
        with self.link() as link:
            link.open()

    def close(self) -> None:
        """Close the links that lie idle; those that are lent close when they come back."""
        self.closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:
                self._free.pop().close()
            except IndexError:
                return
