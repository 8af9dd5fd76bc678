"""The exceptions of kombu and billiard that Umbel itself never raises, for ``except`` clauses that name them."""

from __future__ import annotations

import builtins
import socket


class KombuError(Exception):
    """Base of kombu's errors."""


class NotBoundError(KombuError):
    """A declaration was used without a channel."""


class LimitExceeded(KombuError):
    """Too many of something."""


class VersionMismatch(KombuError):
    """A library is too old."""


class SerializerNotInstalled(KombuError):
    """A serializer needs a library."""


class ChannelError(Exception):
    """A broker refused something on a channel."""


class ResourceError(ChannelError):
    """A broker refused to give a queue or exchange."""


class ConnectionError(builtins.ConnectionError):
    """A connection to a broker failed."""


class InconsistencyError(ConnectionError):
    """A broker's data contradicts itself."""


class HttpError(Exception):
    """A broker that is spoken to by HTTP refused."""


class RestartFreqExceeded(Exception):
    """Something was restarted too often."""


class CoroStop(Exception):
    """A coroutine has ended."""


class ExceptionWithTraceback(Exception):
    """Carries an exception and its traceback as text between processes."""

    def __init__(self, exc: BaseException, tb: object = None) -> None:
        self.exc = exc
        self.tb = str(tb) if tb is not None else ""
        super().__init__()

    def __str__(self) -> str:
        return self.tb


TimeoutError = socket.timeout
