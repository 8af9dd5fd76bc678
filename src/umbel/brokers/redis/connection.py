"""From a server's address to an open, authenticated socket that speaks RESP3.

Written here and not taken from redis-py: importing that costs a process 20 MB and a tenth of a second, for the one
thing that was used of it. Everything that is said before the first command goes in one write:
``HELLO 3 AUTH``, ``CLIENT SETNAME``, ``SELECT`` (https://redis.io/docs/latest/commands/hello/).
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from umbel.exceptions import ImproperlyConfigured, OperationalError

try:
    import hiredis
except ImportError as error:
    raise ImproperlyConfigured("Redis needs hiredis: pip install 'umbel[redis]'") from error

if TYPE_CHECKING:
    import ssl
    from concurrent.futures import Future

if not hasattr(hiredis, "PushNotification"):
    raise ImproperlyConfigured(f"Redis needs hiredis 3.2 or newer, not {hiredis.__version__}: pip install -U hiredis")

_READ_SIZE: Final = 65536
_OLDEST: Final = (6, 2)  # the first that knows RPOP with a count, and ZADD with LT and GT
#: Names that are being looked up now, by process: who asks for the same one waits for the same answer.
_lookups: Final[dict[tuple[int, str, int], Future[list[Any]]]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One server to try. Its ``repr`` shows no password."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""  # of a Unix socket, in place of host and port
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    master_name: str = ""  # set for a Sentinel: the server it is asked for
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The server's address, for messages."""
        return self.path or f"{self.host}:{self.port}"


def connect(target: Target, timeout: float) -> socket.socket:
    """Return a socket on which the next reply is that of the next command.

    Looking up the name, connecting, TLS and the greeting share the timeout (seconds). Raises ``OSError`` where the
    server cannot be reached and :exc:`OperationalError` where it refuses.
    """
    deadline = time.monotonic() + timeout
    sock = _dial(target, deadline)
    try:
        _check_version(_ask(sock, _greeting(target), deadline)[0])
    except BaseException:
        sock.close()
        raise
    return sock


def ask(target: Target, timeout: float, *words: str) -> Any:
    """Return the reply to one command, over a connection of its own."""
    deadline = time.monotonic() + timeout
    with connect(target, timeout) as sock:
        return _ask(sock, [words], deadline)[0]


def _dial(target: Target, deadline: float) -> socket.socket:
    if target.path:
        return _reach(socket.AF_UNIX, target.path, _left(deadline))
    addresses = _addresses(target.host, target.port, _left(deadline))
    for tried, (family, _, _, _, address) in enumerate(addresses):
        try:
            # One that does not answer leaves time for those behind it.
            sock = _reach(family, address, _left(deadline) / (len(addresses) - tried))
            break
        except OSError:
            if tried == len(addresses) - 1:
                raise
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.extras.get("socket_keepalive"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (target.extras.get("socket_keepalive_options") or {}).items():
                sock.setsockopt(socket.IPPROTO_TCP, int(option), int(value))
        if target.tls:
            sock.settimeout(_left(deadline))
            sock = tls_context(target.extras).wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise
    return sock


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _reach(family: int, address: Any, timeout: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses(host: str, port: int, timeout: float) -> list[Any]:
    """Return what ``getaddrinfo`` says, which knows no deadline, or raise ``OSError`` after the timeout (seconds)."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name: {error}") from error
    from concurrent.futures import Future

    key = os.getpid(), host, port
    own: Future[list[Any]] = Future()
    answer = _lookups.setdefault(key, own)
    if answer is own:
        try:
            threading.Thread(target=_look_up, args=(key, own), name="umbel-lookup", daemon=True).start()
        except RuntimeError as error:
            # Nobody will answer: who asks next is to try anew, and who waits already is to know.
            _lookups.pop(key, None)
            own.set_exception(OSError(f"the name {host!r} cannot be looked up: {error}"))
    try:
        return answer.result(timeout)
    except TimeoutError:
        raise TimeoutError(f"the name {host!r} could not be looked up within {timeout:.1f} s") from None


def _look_up(key: tuple[int, str, int], answer: Future[list[Any]]) -> None:
    try:
        found = socket.getaddrinfo(key[1], key[2], type=socket.SOCK_STREAM)
    except OSError as error:
        answer.set_exception(error)
    except UnicodeError as error:
        answer.set_exception(OSError(f"{key[1]!r} is no host name: {error}"))
    else:
        answer.set_result(found)
    finally:
        _lookups.pop(key, None)


def tls_context(extras: Mapping[str, Any]) -> ssl.SSLContext:
    """Return what the ``ssl_*`` options ask for: the system's authorities and a checked host name unless they say so.

    Raises :exc:`ImproperlyConfigured` for a file that cannot be read.
    """
    import ssl

    required = extras.get("ssl_cert_reqs", "required")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The host name can only be checked against a certificate that is.
    context.check_hostname = bool(extras.get("ssl_check_hostname", True)) and required != "none"
    context.verify_mode = {
        "none": ssl.CERT_NONE,
        "optional": ssl.CERT_OPTIONAL,
        "required": ssl.CERT_REQUIRED,
    }[required]
    files = {name: extras.get(f"ssl_ca_{name}") for name in ("certs", "path", "data")}
    try:
        if any(files.values()):
            context.load_verify_locations(files["certs"], files["path"], files["data"])
        else:
            context.load_default_certs()
        if extras.get("ssl_certfile"):
            context.load_cert_chain(extras["ssl_certfile"], extras.get("ssl_keyfile"), extras.get("ssl_password"))
        if extras.get("ssl_ciphers"):
            context.set_ciphers(extras["ssl_ciphers"])
    except OSError as error:  # ssl.SSLError is one
        named = {name: value for name, value in extras.items() if name.startswith("ssl_") and name != "ssl_password"}
        raise ImproperlyConfigured(f"the TLS options {named} cannot be used: {error}") from error
    return context


def _greeting(target: Target) -> list[tuple[str, ...]]:
    username, password = _credentials(target)
    hello: tuple[str, ...] = ("HELLO", "3")
    if password:
        hello += ("AUTH", username or "default", password)
    commands = [hello]
    if target.extras.get("client_name"):
        commands.append(("CLIENT", "SETNAME", str(target.extras["client_name"])))
    if target.db:
        commands.append(("SELECT", str(target.db)))
    return commands


def _check_version(hello: Any) -> None:
    """Refuse a server that is too old, by its answer to HELLO; one that does not say how old it is may do."""
    said = hello if isinstance(hello, Mapping) else {}
    # A Sentinel is only asked for an address.
    found = re.match(r"(\d+)\.(\d+)", str(said.get("version", ""))) if said.get("mode") != "sentinel" else None
    if found is not None and (int(found[1]), int(found[2])) < _OLDEST:
        raise _too_old(f"it is Redis {said['version']}")


def _too_old(what: str) -> OperationalError:
    return OperationalError(f"{what}, and Umbel needs 6.2 or newer; upgrade that server, or name another")


def _credentials(target: Target) -> tuple[str | None, str | None]:
    provider = target.extras.get("credential_provider")
    if provider is None:
        return target.username, target.password
    # redis-py's interface: (password,) or (username, password), asked for at each connection.
    found = tuple(provider.get_credentials())
    return (found[0], found[1]) if len(found) > 1 else (None, found[0] if found else None)


def _ask(sock: socket.socket, commands: list[tuple[str, ...]], deadline: float) -> list[Any]:
    sock.settimeout(_left(deadline))
    # hiredis declares its argument as a tuple of one word.
    sock.sendall(b"".join(hiredis.pack_command(words) for words in commands))  # type: ignore[arg-type]
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    replies: list[Any] = []
    while len(replies) < len(commands):
        reply = reader.gets()
        if reply is not False:
            replies.append(reply)
            continue
        sock.settimeout(_left(deadline))
        data = sock.recv(_READ_SIZE)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        reader.feed(data)
    for reply in replies:
        if isinstance(reply, Exception):
            text = str(reply)
            if text.startswith("ERR unknown command"):
                raise _too_old("it is older than Redis 6 (it does not know the command HELLO)")
            raise OperationalError(text)
    return replies
