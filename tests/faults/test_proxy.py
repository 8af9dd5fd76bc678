"""The proxy does to connections what it says, and passes everything on otherwise."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from support import eventually
from umbel.testing.proxy import Proxy


class Echo:
    """A server that sends every line back, and keeps what it has received."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"echo://me:secret@127.0.0.1:{self.listening.getsockname()[1]}/7?x=1"
        self.received: list[bytes] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(100):
                    self.received.append(data)
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with closing(Echo()) as made:
        yield made


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.url) as made:
        yield made


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(connection: socket.socket, word: bytes) -> bytes:
    connection.sendall(word)
    return connection.recv(100)


def silent(connection: socket.socket, word: bytes) -> bool:
    """Say whether the word is taken and nothing comes back."""
    connection.sendall(word)
    connection.settimeout(0.1)
    try:
        return connection.recv(100) is None
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def test_it_passes_everything_on(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        assert [ask(one, b"a"), ask(two, b"b"), ask(one, b"c")] == [b"a", b"b", b"c"]
        assert (proxy.connections, proxy.accepted) == (2, 2)
    eventually(lambda: proxy.connections == 0)


def test_its_url_is_the_servers_with_another_address(proxy: Proxy) -> None:
    assert proxy.url == f"echo://me:secret@127.0.0.1:{proxy.port}/7?x=1"


def test_a_url_without_a_port_is_refused() -> None:
    with pytest.raises(ValueError, match="no host and port"):
        Proxy("redis://localhost/0")


def test_reset(proxy: Proxy) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"a"
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            old.recv(100)
        with connect(proxy) as new:
            assert ask(new, b"b") == b"b"


def test_half_open(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"a"
        proxy.swallow()
        assert silent(old, b"lost")
        with connect(proxy) as new:
            assert silent(new, b"lost too")
            proxy.heal()
            with pytest.raises(ConnectionResetError):
                old.recv(100)
            with pytest.raises(ConnectionResetError):
                new.recv(100)
    with connect(proxy) as healed:
        assert ask(healed, b"b") == b"b"
    assert echo.received == [b"a", b"b"]


def test_half_open_for_ever(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"a"
        proxy.swallow()
        proxy.heal(reset=False)
        with connect(proxy) as new:
            assert ask(new, b"b") == b"b"
        assert silent(old, b"lost")
    assert echo.received == [b"a", b"b"]


def test_a_dropped_reply(proxy: Proxy, echo: Echo) -> None:
    proxy.drop_reply(b"LOSE")
    with connect(proxy) as connection:
        assert ask(connection, b"keep") == b"keep"
        connection.sendall(b"LOSE this")
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    with connect(proxy) as connection:
        assert ask(connection, b"LOSE no more") == b"LOSE no more"
    assert echo.received == [b"keep", b"LOSE this", b"LOSE no more"]
    assert proxy.dropped == 1


def test_a_dropped_reply_that_hangs(proxy: Proxy, echo: Echo) -> None:
    proxy.drop_reply(hang=True)
    with connect(proxy) as connection:
        assert silent(connection, b"a")
        assert silent(connection, b"b")
    eventually(lambda: echo.received in ([b"a", b"b"], [b"ab"]))


def test_refuse(proxy: Proxy) -> None:
    port = proxy.port
    with connect(proxy) as old:
        assert ask(old, b"a") == b"a"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            old.recv(100)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    assert proxy.port == port
    with connect(proxy) as new:
        assert ask(new, b"b") == b"b"


def test_delay(proxy: Proxy) -> None:
    proxy.delay(0.2)
    with connect(proxy) as connection:
        started = time.monotonic()
        assert ask(connection, b"a") == b"a"
        assert time.monotonic() - started >= 0.2


def test_a_server_that_is_down(proxy: Proxy, echo: Echo) -> None:
    with Proxy("echo://127.0.0.1:1") as dead, connect(dead) as connection:
        try:
            assert connection.recv(100) == b""
        except ConnectionResetError:
            pass


def test_it_ends_with_connections_open(echo: Echo) -> None:
    with Proxy(echo.url) as proxy:
        connection = connect(proxy)
        assert ask(connection, b"a") == b"a"
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(100)
    proxy.close()
