"""A TCP proxy that breaks connections on purpose, to stand between a client and a real server in a test.

    with RedisServer() as server, Proxy(server.url) as proxy:
        app = Umbel("jobs", broker=proxy.url)
        proxy.drop_reply(b"EVALSHA")      # the next script runs, and its answer never arrives
        proxy.reset()                     # every connection ends as if the server's machine had restarted
        proxy.swallow()                   # half-open: connections stay, new ones are accepted, nothing gets through
        proxy.heal()                      # from now on everything gets through again

It listens on the loopback interface only. Its work is done by an asyncio loop in a thread of its own, so the test may
be of any kind; every method may be called from any thread and has taken effect when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65536
_PATIENCE = 10.0  # seconds for the thread to do what it is asked


class _Pair:
    """One client's connection and the one made to the server for it. Belongs to the loop."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
        self.client = client
        self.server = server
        self.losing = False  # the next answer is not passed on
        self.dead = False  # half-open: nothing is passed on
        self.ended = asyncio.Event()

    def reset(self) -> None:
        """End both sides with a reset, not in order."""
        for side in (self.client, self.server):
            if side is None:
                continue
            sock = side.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            side.transport.abort()
        self.ended.set()


class _Relay:
    """What happens on the loop. Only coroutines of the loop touch it, but the counters may be read."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self.dropped = 0
        self.pairs: set[_Pair] = set()
        self._server = host, port
        self._listening: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = True  # False: new connections are half-open
        self._delay = 0.0
        self._match: bytes | None = None
        self._times = 0
        self._hang = False

    async def listen(self) -> None:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def reset(self) -> int:
        count = len(self.pairs)
        for pair in list(self.pairs):
            pair.reset()
        await asyncio.sleep(0)
        return count

    async def refuse(self) -> None:
        await self._stop_listening()
        await self.reset()

    async def swallow(self) -> None:
        self._flowing = False
        for pair in self.pairs:
            pair.dead = True

    async def set(
        self, *, delay: float | None = None, match: bytes | None = None, times: int = 0, hang: bool = False
    ) -> None:
        if delay is not None:
            self._delay = delay
        if match is not None:
            self._match, self._times, self._hang = match, times, hang

    async def heal(self, reset: bool) -> None:
        self._delay, self._match, self._times, self._flowing = 0.0, None, 0, True
        for pair in list(self.pairs):
            if reset and (pair.losing or pair.dead):
                pair.reset()
        if self._listening is None:
            await self.listen()

    async def end(self) -> None:
        await self._stop_listening()
        await self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        pair = _Pair(to_client, None)
        self.pairs.add(pair)
        pumps: list[asyncio.Task[None]] = []
        try:
            pair.dead = not self._flowing
            if self._flowing:
                from_server, pair.server = await asyncio.open_connection(*self._server)
                pumps = [self._task(self._requests(pair, from_client)), self._task(self._answers(pair, from_server))]
            else:
                pumps = [self._task(self._ignore(pair, from_client))]
            await pair.ended.wait()
        except OSError:
            pass  # the server is down: the client is to see the end of its connection
        finally:
            for pump in pumps:
                pump.cancel()
            self.pairs.discard(pair)
            for side in (pair.client, pair.server):
                if side is not None:
                    side.close()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _requests(self, pair: _Pair, source: asyncio.StreamReader) -> None:
        try:
            while data := await source.read(_CHUNK):
                if pair.dead:
                    continue
                if self._match is not None and self._times > 0 and self._match in data:
                    self._times -= 1
                    pair.losing = True
                assert pair.server is not None
                pair.server.write(data)
                await pair.server.drain()
        except OSError:
            pass
        finally:
            pair.ended.set()

    async def _answers(self, pair: _Pair, source: asyncio.StreamReader) -> None:
        try:
            while data := await source.read(_CHUNK):
                if pair.dead:
                    continue
                if pair.losing:
                    self.dropped += 1
                    if not self._hang:
                        pair.reset()
                        return
                    continue
                if self._delay:
                    await asyncio.sleep(self._delay)
                pair.client.write(data)
                await pair.client.drain()
        except OSError:
            pass
        finally:
            pair.ended.set()

    async def _ignore(self, pair: _Pair, source: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await source.read(_CHUNK):
                pass
        pair.ended.set()


class Proxy:
    """Passes connections on to one server until it is told to break them.

    ``url`` of the server needs a host and a port; :attr:`url` is the same with the proxy's. Leaving the ``with`` ends
    every connection.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise ValueError(f"{url!r} has no host and port to connect to")
        self._parts = parts
        self._relay = _Relay(parts.hostname, parts.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="umbel-proxy", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on, the same as long as it lives."""
        return self._relay.port

    @property
    def accepted(self) -> int:
        """How many connections were made so far."""
        return self._relay.accepted

    @property
    def dropped(self) -> int:
        """How many answers were swallowed by :meth:`drop_reply` so far."""
        return self._relay.dropped

    @property
    def url(self) -> str:
        """The server's URL, by way of this proxy."""
        user, at, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._relay.pairs)

    # -- what a test asks for ------------------------------------------------------------------------------------

    def reset(self) -> int:
        """Reset every connection, and return how many there were. New ones get through."""
        count: int = self._do(self._relay.reset())
        return count

    def swallow(self) -> None:
        """Be half-open from now on: accept, read what comes from either side, and pass nothing on until :meth:`heal`.

        What was swallowed is gone, so these connections can never be used again; see :meth:`heal`.
        """
        self._do(self._relay.swallow())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, as a server that is down does, until :meth:`heal`."""
        self._do(self._relay.refuse())

    def delay(self, seconds: float) -> None:
        """Hold back every answer by so many seconds from now on; 0 ends that."""
        self._do(self._relay.set(delay=seconds))

    def drop_reply(self, match: bytes = b"", *, times: int = 1, hang: bool = False) -> None:
        """Pass on the next requests that hold ``match`` and swallow their answers, then reset the connection.

        With ``hang`` the connection stays, silent. Whatever else is under way on that connection is lost as well.
        """
        self._do(self._relay.set(match=match, times=times, hang=hang))

    def heal(self, *, reset: bool = True) -> None:
        """Pass everything on again. Connections that lost something are reset.

        Without ``reset`` they stay silent for ever, as after a firewall that forgot them: only a timeout finds that.
        """
        self._do(self._relay.heal(reset))

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start listening on a free loopback port."""
        self._thread.start()
        self._do(self._relay.listen())

    def close(self) -> None:
        """End every connection and stop. A second call does nothing."""
        if not self._thread.is_alive():
            return
        self._do(self._relay.end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)
