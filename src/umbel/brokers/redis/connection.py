"""From a server's address to an open, authenticated socket that speaks RESP3.

Written here and not taken from redis-py: importing that costs a process 20 MB and a tenth of a second, for the one
thing that was used of it. Everything that is said before the first command goes in one write:
``HELLO 3 AUTH``, ``CLIENT SETNAME``, ``SELECT`` (https://redis.io/docs/latest/commands/hello/).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from umbel.exceptions import ImproperlyConfigured, OperationalError

try:
    import hiredis
except ImportError as error:
    raise ImproperlyConfigured("Redis needs hiredis: pip install 'umbel[redis]'") from error

if TYPE_CHECKING:
    import ssl

    from umbel.brokers.redis.client import Target

if not hasattr(hiredis, "PushNotification"):
    raise ImproperlyConfigured(f"Redis needs hiredis 3.2 or newer, not {hiredis.__version__}: pip install -U hiredis")

_READ_SIZE: Final = 65536
_OLD: Final = "needs Redis 6 or newer (it does not know the command HELLO)"


def connect(target: Target, timeout: float) -> socket.socket:
    """Return a socket on which the next reply is that of the next command.

    Connecting, TLS and the greeting share the timeout (seconds). Raises ``OSError`` where the server cannot be
    reached and :exc:`OperationalError` where it refuses.
    """
    deadline = time.monotonic() + timeout
    sock = _dial(target, timeout)
    try:
        commands = _greeting(target)
        _ask(sock, commands, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


def ask(target: Target, timeout: float, *words: str) -> Any:
    """Return the reply to one command, over a connection of its own."""
    deadline = time.monotonic() + timeout
    with connect(target, timeout) as sock:
        return _ask(sock, [words], deadline)[0]


def _dial(target: Target, timeout: float) -> socket.socket:
    if target.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(target.path)
        except BaseException:
            sock.close()
            raise
        return sock
    sock = socket.create_connection((target.host, target.port), timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.extras.get("socket_keepalive"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (target.extras.get("socket_keepalive_options") or {}).items():
                sock.setsockopt(socket.IPPROTO_TCP, int(option), int(value))
        if target.tls:
            sock = tls_context(target.extras).wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise
    return sock


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


def _credentials(target: Target) -> tuple[str | None, str | None]:
    provider = target.extras.get("credential_provider")
    if provider is None:
        return target.username, target.password
    # redis-py's interface: (password,) or (username, password), asked for at each connection.
    found = tuple(provider.get_credentials())
    return (found[0], found[1]) if len(found) > 1 else (None, found[0] if found else None)


def _ask(sock: socket.socket, commands: list[tuple[str, ...]], deadline: float) -> list[Any]:
    sock.settimeout(max(deadline - time.monotonic(), 0.001))
    # hiredis declares its argument as a tuple of one word.
    sock.sendall(b"".join(hiredis.pack_command(words) for words in commands))  # type: ignore[arg-type]
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    replies: list[Any] = []
    while len(replies) < len(commands):
        reply = reader.gets()
        if reply is not False:
            replies.append(reply)
            continue
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        data = sock.recv(_READ_SIZE)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        reader.feed(data)
    for reply in replies:
        if isinstance(reply, Exception):
            text = str(reply)
            raise OperationalError(_OLD if text.startswith("ERR unknown command") else text)
    return replies
