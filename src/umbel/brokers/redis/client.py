"""Where the server is: URLs and options to one open connection, and its errors to ours.

Shared by the broker and the result backend.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from umbel.brokers.redis.connection import ask, connect
from umbel.exceptions import ImproperlyConfigured, OperationalError

SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel")
_CERT_REQS: Final = {
    "cert_required": "required",
    "required": "required",
    "cert_optional": "optional",
    "optional": "optional",
    "cert_none": "none",
    "none": "none",
}
_FLOATS: Final = ("socket_timeout", "socket_connect_timeout")
# What a connection takes and a URL or the transport options may set, under redis-py's names.
_PASSED_ON: Final = (
    "client_name",
    "credential_provider",
    "socket_keepalive",
    "socket_keepalive_options",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_password",
)
_TRUE: Final = frozenset({"1", "true", "yes", "on"})


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


def parse_url(url: str, options: Mapping[str, Any] | None = None) -> list[Target]:
    """Return the servers that a URL names, in the order to try them.

    ``redis://user:password@host:port/db``, ``rediss://`` (TLS), ``redis+socket:///path?virtual_host=db``,
    ``sentinel://host:port/db``; several of them are separated by ``;``. What the URL says overrides ``options``.

    >>> parse_url("redis://:secret@db.example/3")
    [Target(host='db.example', port=6379, path='', db=3, tls=False, master_name='')]
    """
    parts = [part.strip() for part in url.split(";") if part.strip()]
    if not parts:
        raise ImproperlyConfigured("the Redis URL is empty; write redis://localhost:6379/0")
    targets = [_parse_one(part, options or {}) for part in parts]
    first = targets[0]
    # Celery writes the database and the password of a Sentinel list once, in any of its parts.
    if first.master_name:
        db = next((target.db for target in targets if target.db), 0)
        password = next((target.password for target in targets if target.password), None)
        username = next((target.username for target in targets if target.username), None)
        targets = [replace(target, db=db, password=password, username=username) for target in targets]
    return targets


def _parse_one(part: str, options: Mapping[str, Any]) -> Target:
    if "://" not in part:
        part = f"redis://{part}"
    scheme, _, rest = part.partition("://")
    if scheme not in SCHEMES:
        raise ImproperlyConfigured(f"{scheme}:// is not a Redis URL scheme; use one of {', '.join(SCHEMES)}")
    # urlsplit() knows no "redis+socket", and treats the authority of unknown schemes alike.
    split = urlsplit(f"redis://{rest}")
    query = dict(parse_qsl(split.query))
    try:
        port = split.port
    except ValueError:
        raise ImproperlyConfigured(f"the port of the {scheme}:// URL of {split.hostname} is not a number") from None
    unix = scheme == "redis+socket"
    path = unquote(split.path)
    tls = scheme == "rediss" or bool(options.get("ssl"))
    master = str(query.pop("master_name", "") or options.get("master_name", "")) if scheme == "sentinel" else ""
    if scheme == "sentinel" and not master:
        raise ImproperlyConfigured("sentinel:// needs broker_transport_options={'master_name': ...}")
    db = query.pop("virtual_host", None) or query.pop("db", None) or options.get("db") or ("" if unix else path)
    query.pop("db", None)
    return Target(
        host=unquote(split.hostname or "localhost"),
        port=port or (26379 if scheme == "sentinel" else 6379),
        path=(f"/{unquote(split.hostname)}{path}" if split.hostname else path) if unix else "",
        db=_database(db),
        username=_first(_unquoted(split.username), query.pop("username", None), options.get("username")),
        password=_first(_unquoted(split.password), query.pop("password", None), options.get("password")),
        tls=tls,
        master_name=master,
        extras=_extras({**_tls_options(options), **options, **query}, tls, scheme),
    )


def _database(text: Any) -> int:
    digits = str(text).strip("/")
    if digits and not digits.isdecimal():
        raise ImproperlyConfigured(f"the database of a Redis URL must be a number, not {digits!r}")
    return int(digits or 0)


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None


def _first(*candidates: Any) -> str | None:
    return next((str(candidate) for candidate in candidates if candidate), None)


def _tls_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ``broker_use_ssl`` holds when it is a dict, as Celery has it."""
    given = options.get("ssl")
    return given if isinstance(given, Mapping) else {}


def _extras(given: Mapping[str, Any], tls: bool, scheme: str) -> dict[str, Any]:
    """Return the options of a connection, under redis-py's names."""
    extras = {name: given[name] for name in _PASSED_ON if given.get(name) is not None}
    if not tls:
        named = sorted(name for name in extras if name.startswith("ssl_"))
        if (named or given.get("ssl_cert_reqs") is not None) and scheme == "redis":
            raise ImproperlyConfigured(f"{', '.join(named) or 'ssl_cert_reqs'} needs a rediss:// URL, not redis://")
        extras = {name: value for name, value in extras.items() if not name.startswith("ssl_")}
    else:
        extras["ssl_cert_reqs"] = _cert_reqs(given.get("ssl_cert_reqs"))
        if isinstance(checked := extras.get("ssl_check_hostname"), str):
            extras["ssl_check_hostname"] = checked.lower() in _TRUE
    if isinstance(kept := extras.get("socket_keepalive"), str):
        extras["socket_keepalive"] = kept.lower() in _TRUE
    for name in _FLOATS:
        if given.get(name):
            extras[name] = float(given[name])
    return extras


def _cert_reqs(given: Any) -> str:
    """Return redis-py's word for what Celery, the ``ssl`` module or redis-py calls it; required unless said."""
    if given is None or given == "":
        return "required"
    if isinstance(given, int):
        return ("none", "optional", "required")[int(given)]
    try:
        return _CERT_REQS[str(given).lower()]
    except KeyError:
        raise ImproperlyConfigured(
            f"ssl_cert_reqs={given!r} is unknown; use CERT_REQUIRED, CERT_OPTIONAL or CERT_NONE"
        ) from None


class Unconfirmed(OperationalError):
    """The command was sent whole and no answer came: it was applied, or it was not."""


def unreachable(name: str, cause: object) -> OperationalError:
    """Return the error that says which server could not be reached, and why."""
    text = str(cause).rstrip(".") or type(cause).__name__
    if text.startswith(("HELLO must be called", "NOAUTH", "Authentication required")):
        text = "it wants a password, and the URL has none"
    return OperationalError(f"cannot reach Redis at {name}: {text}")


class Source:
    """Makes connections to the first server of a URL that answers. Safe to share between threads.

    After a failure the next of several servers is tried first; a Sentinel is asked anew each time.
    """

    __slots__ = ("_connect_timeout", "_turn", "options", "socket_timeout", "targets")

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.targets = parse_url(url, options)
        self.options = options
        extras = self.targets[0].extras
        self.socket_timeout = float(extras.get("socket_timeout") or options.get("socket_timeout") or 5.0)
        timeout = extras.get("socket_connect_timeout") or options.get("socket_connect_timeout")
        self._connect_timeout = float(timeout or self.socket_timeout)
        self._turn = 0

    @property
    def name(self) -> str:
        """The addresses, for messages."""
        return ", ".join(target.name for target in self.targets)

    @property
    def db(self) -> int:
        """The database that the connections use."""
        return self.targets[0].db

    def connect(self, timeout: float = math.inf) -> socket.socket:
        """Return an open connection; :exc:`OperationalError` if none answers within the timeout (seconds)."""
        deadline = time.monotonic() + min(timeout, self._connect_timeout * len(self.targets))
        failure: OperationalError | None = None
        for _ in self.targets:
            target = self.targets[self._turn % len(self.targets)]
            left = min(deadline - time.monotonic(), self._connect_timeout)
            if left <= 0:
                break
            try:
                return _open(target, left, self.options)
            except OperationalError as error:
                failure = error
                self._turn += 1
        raise failure or unreachable(self.name, "timed out")


def _open(target: Target, timeout: float, options: Mapping[str, Any]) -> socket.socket:
    name = target.name
    try:
        if target.master_name:
            target = _ask_sentinel(target, timeout, options)
            name = target.name
        return connect(target, timeout)
    except (OSError, OperationalError) as error:
        raise unreachable(name, error) from error


def _ask_sentinel(target: Target, timeout: float, options: Mapping[str, Any]) -> Target:
    """Return the server that this Sentinel takes for the master now."""
    keywords = {"password": None, "username": None, **dict(options.get("sentinel_kwargs") or {})}
    asked = replace(target, db=0, username=keywords["username"], password=keywords["password"], master_name="")
    answer = ask(asked, timeout, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.master_name)
    if not answer:
        raise OperationalError(f"this Sentinel knows no master named {target.master_name!r}")
    host, port = answer
    return replace(target, host=host, port=int(port), master_name="")
