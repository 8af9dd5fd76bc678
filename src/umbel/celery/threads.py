"""``celery.utils.threads``: values of one thread or coroutine, and a thread that ends the process when it fails."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any

__all__ = ["Local", "LocalManager", "LocalStack", "bgThread", "default_socket_timeout", "get_ident", "release_local"]


@contextmanager
def default_socket_timeout(timeout: float | None) -> Iterator[None]:
    """Set the timeout of new sockets during the block."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


class Local(threading.local):
    """An object with other attributes in each thread."""

    def __release_local__(self) -> None:
        self.__dict__.clear()


class LocalStack:
    """A stack with other contents in each thread and coroutine."""

    def __init__(self) -> None:
        self._items: ContextVar[tuple[Any, ...]] = ContextVar("umbel_local_stack", default=())

    def push(self, obj: Any) -> list[Any]:
        """Put a value on top and return all."""
        self._items.set((*self._items.get(), obj))
        return self.stack

    def pop(self) -> Any:
        """Take the top value off and return it; None where there is none."""
        items = self._items.get()
        self._items.set(items[:-1])
        return items[-1] if items else None

    @property
    def stack(self) -> list[Any]:
        """All values, the top last."""
        return list(self._items.get())

    @property
    def top(self) -> Any:
        """The top value, or None."""
        items = self._items.get()
        return items[-1] if items else None

    def __len__(self) -> int:
        return len(self._items.get())

    def __release_local__(self) -> None:
        self._items.set(())


def release_local(local: Any) -> None:
    """Empty a :class:`Local` or :class:`LocalStack` in this thread."""
    local.__release_local__()


class LocalManager:
    """Empties several of them at once."""

    def __init__(self, locals: Any = None, ident_func: Callable[[], int] | None = None) -> None:
        self.locals = [] if locals is None else [locals] if hasattr(locals, "__release_local__") else list(locals)
        self.ident_func = ident_func or get_ident

    def get_ident(self) -> int:
        """Return this thread's id."""
        return self.ident_func()

    def cleanup(self) -> None:
        """Empty them in this thread."""
        for local in self.locals:
            release_local(local)


class bgThread(threading.Thread):
    """A thread that calls :meth:`body` until it is stopped; an error in it ends the process."""

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name or type(self).__name__, daemon=True)
        self._asked = threading.Event()
        self._ended = threading.Event()

    def body(self) -> None:
        """One round; for subclasses."""
        raise NotImplementedError

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Say what went wrong."""
        sys.stderr.write(msg.format(*fmt) + "\n")
        traceback.print_exc(None, sys.stderr)

    def run(self) -> None:
        """Call the body again and again."""
        try:
            while not self._asked.is_set():
                try:
                    self.body()
                except Exception as error:  # the subclass's own code runs here
                    self.on_crash("{0!r} crashed: {1!r}", self.name, error)
                    sys.stderr.flush()
                    os._exit(1)
        finally:
            self._ended.set()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._asked.set()
        self._ended.wait()
        if self.is_alive() and self is not threading.current_thread():
            self.join()
