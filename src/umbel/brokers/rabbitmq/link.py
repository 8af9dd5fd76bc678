"""One connection to RabbitMQ: opened by py-amqp (address, TLS, login), and driven by us, with a deadline in every call.

Not safe to share between threads. An error of the connection ends the link; a new one must be made. An error of one
channel ends that channel alone.
"""

from __future__ import annotations

import contextlib
import heapq
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

import amqp  # type: ignore[import-untyped]

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.address import Address
from umbel.brokers.rabbitmq.frames import Content, Method
from umbel.exceptions import BrokerError, OperationalError

Args = tuple[Any, ...]

_AGAIN: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError)
_CHUNK: Final = 262144
_GOODBYE: Final = 2.0  # seconds for an orderly end
_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
LONGEST: Final = 30.0  # seconds for a call whose caller said nothing


class ChannelClosed(BrokerError):
    """The server has closed a channel: what was asked for cannot be, or a consumer was too slow. Others go on."""

    def __init__(self, code: int = 0, text: str = "") -> None:
        super().__init__(f"the server closed the channel: {text} ({code})")
        self.code = code
        self.text = text


class Channel:
    """One channel of a link, and what is to be called when it brings something."""

    __slots__ = ("_calls", "closed", "link", "number", "on_cancel", "on_confirm", "on_content")

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.closed: ChannelClosed | None = None
        self._calls: dict[Method, Args | Content | None] = {}
        #: Takes what is delivered and what is returned.
        self.on_content: Callable[[Method, Content], None] | None = None
        #: Takes a confirmed number, whether all up to it are meant, and whether the server has the message.
        self.on_confirm: Callable[[int, bool, bool], None] | None = None
        #: Takes the tag of a consumer that the server has ended.
        self.on_cancel: Callable[[str], None] | None = None

    def frame(self, name: Method, *args: Any) -> bytes:
        """Return the bytes of a method on this channel."""
        return frames.method(self.number, name, *args)

    def send(self, data: bytes, *, timeout: float = LONGEST) -> None:
        """Write frames of this channel; raises :exc:`ChannelClosed` if it has ended."""
        if self.closed is not None:
            raise self.closed
        self.link.write(data, time.monotonic() + timeout)

    def call(self, name: Method, args: Args, *answers: Method, timeout: float = LONGEST) -> tuple[Method, Any]:
        """Send a method and wait for one of its answers; return which it was and its arguments or content."""
        return self.ask(self.frame(name, *args), *answers, timeout=timeout)

    def ask(self, data: bytes, *answers: Method, timeout: float = LONGEST) -> tuple[Method, Any]:
        """Do :meth:`call` for frames that are written already."""
        deadline = time.monotonic() + timeout
        self.start(data, *answers, timeout=timeout)
        return self.answer(*answers, timeout=deadline - time.monotonic())

    def start(self, data: bytes, *answers: Method, timeout: float = LONGEST) -> None:
        """Write frames, and keep what answers them for :meth:`answer`: one of each kind at a time."""
        if self.closed is not None:
            raise self.closed
        for answer in answers:
            self._calls[answer] = None
        self.link.write(data, time.monotonic() + timeout)

    def answer(self, *answers: Method, timeout: float = LONGEST) -> tuple[Method, Any]:
        """Wait for one of these answers to what was started; return which it was and its arguments or content."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                for answer in answers:
                    if (found := self._calls.get(answer)) is not None:
                        return answer, found
                if self.closed is not None:
                    raise self.closed
                if not self.link.read(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    # Answers come in order: after one that is missing no other could be told apart.
                    raise self.link.fail(f"no answer within {timeout:g} s")
        finally:
            for answer in answers:
                self._calls.pop(answer, None)

    def heard(self, name: Method, found: Args | Content) -> None:
        """Take what the link has read for this channel."""
        if name in self._calls:
            self._calls[name] = found
        elif isinstance(found, Content):
            if self.on_content is not None:
                self.on_content(name, found)
        elif name in (frames.ACK, frames.NACK):
            if self.on_confirm is not None:
                self.on_confirm(found[0], found[1], name == frames.ACK)
        elif name == frames.CANCEL and self.on_cancel is not None:
            self.on_cancel(found[0])

    @property
    def closing(self) -> bool:
        """Whether its end was asked for here, and not yet answered."""
        return frames.CHANNEL_CLOSE_OK in self._calls

    def close(self) -> None:
        """End the channel: what it holds goes back. A second call does nothing."""
        if self.closed is not None:
            return
        if self.link.alive:
            self.call(frames.CHANNEL_CLOSE, (0, "", 0, 0), frames.CHANNEL_CLOSE_OK, timeout=_GOODBYE)
        self.closed = ChannelClosed(0, "it was closed here")
        self.link.forget(self)


class Link:
    """One open connection. ``name`` is shown in the server's list of connections."""

    def __init__(self, address: Address, *, name: str, timeout: float | None = None, heartbeat: float = 0.0) -> None:
        """Connect. Raises :exc:`OperationalError` if that cannot be done within ``timeout`` seconds."""
        self._name = address.name
        self.alive = False
        #: Why the server does not read what is published now; empty if it does.
        self.blocked = ""
        self._channels: dict[int, Channel] = {}
        self._numbers = 0  # the highest that a channel had
        self._free: list[int] = []  # a heap: those up to it that no channel has now
        self._partial: dict[int, tuple[Method, Args, int, dict[str, Any], list[bytes]]] = {}
        self._awaited: dict[int, tuple[Method, Args]] = {}
        connection = _connect(address, name, min(timeout or LONGEST, address.connect_timeout), heartbeat)
        transport = connection.transport
        self._keep = connection  # it owns the socket
        self._sock: socket.socket = transport.sock
        self._tls = isinstance(self._sock, ssl.SSLSocket)
        self._sock.setblocking(False)
        self._buffer = bytearray(transport._read_buffer)
        self.frame_max: int = connection.frame_max or 131072
        self.channel_max: int = connection.channel_max or 65535
        self.heartbeat = float(connection.heartbeat or 0)
        self.server: dict[str, Any] = connection.server_properties
        self.sent_at = self.heard_at = time.monotonic()
        self.alive = True

    def fileno(self) -> int:
        """Return what to select on."""
        return self._sock.fileno()

    def channel(self, *, timeout: float = LONGEST) -> Channel:
        """Return a new channel. It has the lowest number that is free, for the server allows so many and no more."""
        number = heapq.heappop(self._free) if self._free else self._numbers + 1
        if number > self.channel_max:
            # Whoever connects anew has them all again.
            raise self.fail(f"all {self.channel_max} channels of the connection are in use")
        self._numbers = max(self._numbers, number)
        channel = self._channels[number] = Channel(self, number)
        channel.call(frames.CHANNEL_OPEN, ("",), frames.CHANNEL_OPEN_OK, timeout=timeout)
        return channel

    def forget(self, channel: Channel) -> None:
        """Hear no more of a channel that has ended on both sides; another may have its number. Twice is as once."""
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]
            heapq.heappush(self._free, channel.number)

    def fail(self, reason: object) -> OperationalError:
        """End the connection at once, and return the error that says why."""
        self.drop()
        return unreachable(self._name, reason)

    def drop(self) -> None:
        """End the connection without a word, as a crash would."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()

    def close(self) -> None:
        """End the connection in order, so that all that was sent has been read. A second call does nothing."""
        if not self.alive:
            return
        deadline = time.monotonic() + _GOODBYE
        try:
            self.write(frames.method(0, frames.CONNECTION_CLOSE, 0, "", 0, 0), deadline)
            while self.alive and time.monotonic() < deadline:
                self.read(deadline - time.monotonic())
        except BrokerError:
            pass
        self.drop()

    # -- bytes ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes, deadline: float) -> None:
        """Write all of it; :exc:`OperationalError` (and the end of the link) if that is not done by the deadline."""
        if not self.alive:
            raise unreachable(self._name, "the connection is closed")
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except _AGAIN:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self.fail(self.blocked or "it does not read what we send") from None
                self._ready(left, write=True)
            except OSError as error:
                raise self.fail(error) from error
        self.sent_at = time.monotonic()

    def read(self, timeout: float) -> int:
        """Wait for something to come, and take all that is there; return how many frames that was."""
        if not self.alive:
            raise unreachable(self._name, "the connection is closed")
        if timeout > 0 and not (self._tls and self._pending()):
            self._ready(timeout)
        received = 0
        while True:
            try:
                data = self._sock.recv(_CHUNK)
            except _AGAIN:
                break
            except OSError as error:
                raise self.fail(error) from error
            if not data:
                raise self.fail("the server closed the connection")
            self._buffer += data
            received += len(data)
            if len(data) < _CHUNK and not self._tls:
                break
        return self._take() if received or self._buffer else 0

    def pause(self, timeout: float, *, also: Any = None) -> None:
        """Wait until there may be something to read, and read nothing. From any thread."""
        if not (self._tls and self._pending()):
            files = [self._sock, also] if also is not None else [self._sock]
            with contextlib.suppress(OSError, ValueError):
                wait_for(files, timeout)

    def _pending(self) -> bool:
        return bool(self._sock.pending())  # type: ignore[attr-defined]

    def _ready(self, timeout: float, *, write: bool = False) -> None:
        wait_for([self._sock], timeout, write=write)
        if write:
            # A server that is stuck with what it has for us would never read.
            try:
                data = self._sock.recv(_CHUNK)
            except _AGAIN:
                return
            except OSError as error:
                raise self.fail(error) from error
            if not data:
                raise self.fail("the server closed the connection")
            self._buffer += data

    # -- frames --------------------------------------------------------------------------------------------------

    def _take(self) -> int:
        buffer, at, found = self._buffer, 0, []
        while len(buffer) - at >= 8:
            kind, channel, length = frames.HEAD.unpack_from(buffer, at)
            end = at + 7 + length
            if len(buffer) <= end:
                break
            if buffer[end] != frames.END:
                raise self.fail("what it sent is not AMQP")
            found.append((kind, channel, bytes(memoryview(buffer)[at + 7 : end])))
            at = end + 1
        if found:
            del buffer[:at]
            self.heard_at = time.monotonic()
        for kind, channel, payload in found:
            self._on_frame(kind, channel, payload)
        return len(found)

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == frames.METHOD_FRAME:
            name = frames.METHOD.unpack_from(payload)
            args = frames.arguments(name, payload)
            if name in frames.WITH_CONTENT:
                self._awaited[number] = name, args
            elif number == 0:
                self._on_connection(name, args)
            else:
                self._on_method(number, name, args)
        elif kind == frames.HEADER_FRAME:
            length, properties = frames.properties_of(payload)
            name, args = self._awaited.pop(number)
            if length:
                self._partial[number] = name, args, length, properties, []
            else:
                self._on_content(number, name, Content(args, properties, b""))
        elif kind == frames.BODY_FRAME:
            name, args, length, properties, parts = self._partial[number]
            parts.append(payload)
            if sum(map(len, parts)) >= length:
                del self._partial[number]
                self._on_content(number, name, Content(args, properties, b"".join(parts)))

    def _on_content(self, number: int, name: Method, content: Content) -> None:
        channel = self._channels.get(number)
        if channel is not None:
            channel.heard(name, content)

    def _on_connection(self, name: Method, args: Args) -> None:
        if name == frames.CONNECTION_CLOSE:
            with contextlib.suppress(OperationalError):
                self.write(frames.method(0, frames.CONNECTION_CLOSE_OK), time.monotonic() + _GOODBYE)
            raise self.fail(f"{args[1]} ({args[0]})")
        if name == frames.CONNECTION_CLOSE_OK:
            self.drop()
        elif name == frames.BLOCKED:
            self.blocked = f"the server takes no messages now: {args[0] or 'it is short of a resource'}"
        elif name == frames.UNBLOCKED:
            self.blocked = ""

    def _on_method(self, number: int, name: Method, args: Args) -> None:
        channel = self._channels.get(number)
        if name == frames.CHANNEL_CLOSE:
            self._awaited.pop(number, None)
            self._partial.pop(number, None)
            self.write(frames.method(number, frames.CHANNEL_CLOSE_OK), time.monotonic() + _GOODBYE)
            if channel is not None:
                channel.closed = ChannelClosed(args[0], args[1])
                if not channel.closing:
                    self.forget(channel)
        elif name == frames.CHANNEL_CLOSE_OK and channel is not None and channel.closed is not None:
            # Both sides have ended it at once, and only now nothing more comes under its number.
            self.forget(channel)
        elif channel is not None:
            channel.heard(name, args)

    # -- life ----------------------------------------------------------------------------------------------------

    def tend(self, now: float) -> None:
        """Send a heartbeat if one is due; :exc:`OperationalError` if the server was not heard for two intervals."""
        if not self.heartbeat:
            return
        if now - self.heard_at > 2 * self.heartbeat:
            raise self.fail(f"nothing was heard for {now - self.heard_at:.0f} s")
        if now - self.sent_at >= self.heartbeat / 3:
            self.write(frames.HEARTBEAT, now + min(self.heartbeat / 2, _GOODBYE))


def wait_for(files: list[Any], timeout: float, *, write: bool = False) -> None:
    """Block until one of the files can be read (or written, or both), or the timeout (seconds) has passed."""
    if not hasattr(select, "poll"):
        select.select(files, files if write else [], [], timeout)
        return
    # select() knows no descriptor above 1023.
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN | select.POLLOUT if write else select.POLLIN)
    poll.poll(max(timeout, 0.0) * 1000)


def unreachable(name: str, cause: object) -> OperationalError:
    """Return the error that says which server could not be reached, and why."""
    text = str(cause).strip().rstrip(".") or type(cause).__name__
    return OperationalError(f"RabbitMQ at {name}: {text}")


def _connect(address: Address, name: str, timeout: float, heartbeat: float) -> Any:
    connection = amqp.Connection(
        host=f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}",
        userid=address.user,
        password=address.password,
        login_method=address.login_method or "PLAIN",
        virtual_host=address.virtual_host,
        ssl=dict(address.tls) if address.tls is not None else False,
        connect_timeout=max(timeout, 0.05),
        heartbeat=max(1, round(heartbeat)) if heartbeat else 0,
        # Without it py-amqp gives up a connection that carried nothing for one second, and with it all that was held.
        socket_settings={_USER_TIMEOUT: 20_000} if _USER_TIMEOUT is not None else None,
        client_properties={"product": "Umbel", "connection_name": name},
    )
    try:
        connection.connect()
    except amqp.exceptions.AccessRefused as error:
        raise unreachable(address.name, f"the user or the password is wrong, or may not enter ({error})") from error
    except amqp.exceptions.NotAllowed as error:
        raise unreachable(
            address.name, f"the virtual host does not exist or is not open to the user ({error})"
        ) from error
    except (OSError, amqp.exceptions.AMQPError) as error:
        text = "it took too long" if isinstance(error, TimeoutError) else error
        raise unreachable(address.name, text) from error
    return connection


class Bell:
    """Ends a wait of another thread. Ringing twice is the same as once; safe in a signal handler."""

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """Return what to select on."""
        return self._read.fileno()

    def ring(self) -> None:
        """End the wait, or the next one."""
        # Full: it has rung already. Closed: nobody waits any more.
        with contextlib.suppress(OSError):
            self._write.send(b"\0")

    def rung(self) -> bool:
        """Forget that it rang, and say whether it did."""
        heard = False
        with contextlib.suppress(OSError):
            while self._read.recv(4096):
                heard = True
        return heard

    def close(self) -> None:
        """Give up the sockets."""
        self._read.close()
        self._write.close()
