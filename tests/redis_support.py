"""What the tests of Redis alone share."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from umbel.brokers.redis import RedisBroker
from umbel.clock import SYSTEM_CLOCK


class Lossy:
    """Stands between a client and the server, and loses answers when told to: the command runs, the answer does not
    arrive. Ended by leaving its ``with``.
    """

    def __init__(self, url: str) -> None:
        self._to = url.removeprefix("redis://").partition("/")[0].rsplit(":", 1)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listening]
        self._threads: list[threading.Thread] = []
        self._losing = ""
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"

    def lose_answer_to(self, word: str) -> None:
        """Close the connection instead of passing the next answer to a command with this word."""
        self._losing = word

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection((self._to[0], int(self._to[1])))
                self._open += [client, server]
                self._start(self._carry, client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        lost = threading.Event()
        with contextlib.suppress(OSError):
            self._start(self._answer, client, server, lost)
            while data := client.recv(65536):
                if self._losing and self._losing.encode() in data:
                    self._losing = ""
                    lost.set()
                server.sendall(data)

    @staticmethod
    def _answer(client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if lost.is_set():
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Lossy:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for opened in self._open:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)
        for opened in self._open:
            opened.close()


def opened(closing: contextlib.ExitStack, url: str, clock: Any = SYSTEM_CLOCK, **options: Any) -> RedisBroker:
    broker = RedisBroker(url, options=options, clock=clock)
    broker.open()
    closing.callback(broker.close)
    return broker


def consumer_of(closing: contextlib.ExitStack, broker: RedisBroker, *queues: str) -> tuple[Any, Any, str]:
    leases = broker.leases()
    closing.callback(leases.close)
    id = leases.register("node")
    consumer = broker.consumer(id, list(queues or ("q",)))
    closing.callback(consumer.close)
    return consumer, leases, id
