"""Where the server is: URLs and options to one open connection, and its errors to ours.

Shared by the broker and the result backend.
"""

from __future__ import annotations

import itertools
import math
import re
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from umbel.brokers.redis.connection import Target, ask, connect
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
# A ";" in a password ends nothing: one that does is followed by the next scheme, or by the end.
_SEPARATOR: Final = re.compile(r"\s*;\s*(?=[a-z+]+://|$)", re.IGNORECASE)


def parse_url(url: str, options: Mapping[str, Any] | None = None) -> list[Target]:
    """Return the servers that a URL names, in the order to try them.

    ``redis://user:password@host:port/db``, ``rediss://`` (TLS), ``redis+socket:///path?virtual_host=db``,
    ``sentinel://host:port/db``; several of them are separated by ``;``. What the URL says overrides ``options``.
    All name the same database, or it is an error: :exc:`ImproperlyConfigured`.

    >>> parse_url("redis://:secret@db.example/3")
    [Target(host='db.example', port=6379, path='', db=3, tls=False, master_name='')]
    """
    parts = split_list(url)
    if not parts:
        raise ImproperlyConfigured("the Redis URL is empty; write redis://localhost:6379/0")
    targets = [_parse_one(part, options or {}) for part in parts]
    # Celery writes the database and the password of a Sentinel list once, in any of its parts.
    sentinels = [target for target in targets if target.master_name]
    if sentinels:
        db = next((target.db for target in sentinels if target.db), 0)
        password = next((target.password for target in sentinels if target.password), None)
        username = next((target.username for target in sentinels if target.username), None)
        targets = [
            replace(target, db=db, password=password, username=username) if target.master_name else target
            for target in targets
        ]
    if len({target.db for target in targets}) > 1:
        shown = ", ".join(f"{target.name}/{target.db}" for target in targets)
        raise ImproperlyConfigured(f"the URLs of a failover list must name the same database, not {shown}")
    return targets


def split_list(url: str) -> list[str]:
    """Return the single URLs of a list with ``;`` between; a host without a scheme has that of the one before."""
    found = []
    for part in _SEPARATOR.split(url):
        scheme = part.partition("://")[0] if "://" in part else "redis"
        login, at, rest = part.rpartition("@")
        first, *others = rest.split(";")
        found += [login + at + first, *(f"{scheme}://{other.strip()}" for other in others if other.strip())]
    return [part.strip() for part in found if part.strip()]


def _parse_one(part: str, options: Mapping[str, Any]) -> Target:
    if "://" not in part:
        part = f"redis://{part}"
    scheme, _, rest = part.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise ImproperlyConfigured(f"{scheme}:// is not a Redis URL scheme; use one of {', '.join(SCHEMES)}")
    # urlsplit() knows no "redis+socket", and treats the authority of unknown schemes alike.
    split = urlsplit(f"redis://{rest}")
    query = dict(parse_qsl(split.query))
    unix = scheme == "redis+socket"
    if "@" in split.path and not unix:
        # What comes before it is shown nowhere: it is part of the password.
        raise ImproperlyConfigured(f"the {scheme}:// URL has a '/' before its '@'; write it as %2F in a password")
    try:
        port = split.port
    except ValueError:
        raise ImproperlyConfigured(f"the port of the {scheme}:// URL of {split.hostname} is not a number") from None
    path = unquote(split.path)
    tls = scheme == "rediss" or bool(options.get("ssl"))
    master = str(query.pop("master_name", "") or options.get("master_name", "")) if scheme == "sentinel" else ""
    if scheme == "sentinel" and not master:
        raise ImproperlyConfigured("sentinel:// needs broker_transport_options={'master_name': ...}")
    db = query.pop("virtual_host", None) or query.pop("db", None) or ("" if unix else path.strip("/"))
    query.pop("db", None)
    return Target(
        host=unquote(split.hostname or "localhost"),
        port=port or (26379 if scheme == "sentinel" else 6379),
        path=(f"/{unquote(split.hostname)}{path}" if split.hostname else path) if unix else "",
        db=_database(options.get("db") or 0 if db == "" else db),
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
            extras[name] = _seconds(name, given[name])
    return extras


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ImproperlyConfigured(f"{name} must be a number of seconds above 0, such as 5, not {value!r}")
    return seconds


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

    Of several servers it stays with the one that it has reached last, and goes on to the next, in the order that
    ``options["failover_strategy"]`` gives, when that one cannot be connected to or takes no writes. A Sentinel is
    asked anew each time. ``options["alternates"]`` are more URLs of the list.
    """

    __slots__ = ("_connect_timeout", "_current", "_lock", "_order", "options", "socket_timeout", "targets")

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        urls = [part for one in (url, *options.get("alternates", ())) for part in split_list(one)]
        self.targets = parse_url(";".join(urls), options)
        self.options = options
        extras = self.targets[0].extras
        self.socket_timeout: float = extras.get("socket_timeout") or 5.0
        self._connect_timeout: float = extras.get("socket_connect_timeout") or self.socket_timeout
        self._current = 0
        self._lock = threading.Lock()
        self._order = _indices(urls, options.get("failover_strategy") or itertools.cycle)

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
        count = len(self.targets)
        deadline = time.monotonic() + min(timeout, self._connect_timeout * count)
        failures: dict[int, OperationalError] = {}
        while len(failures) < count:
            index = self._choose(failures)
            # One that does not answer leaves time for those behind it.
            left = min((deadline - time.monotonic()) / (count - len(failures)), self._connect_timeout)
            if left <= 0:
                break
            try:
                return _open(self.targets[index], left, self.options, alone=count == 1)
            except OperationalError as error:
                failures[index] = error
        if len(failures) == 1:
            raise next(iter(failures.values()))
        raise OperationalError("; ".join(map(str, failures.values())) or str(unreachable(self.name, "timed out")))

    def _choose(self, failed: Collection[int]) -> int:
        """Return the server to try: the one that was reached last, else the next that has not failed just now."""
        with self._lock:
            if self._current in failed:
                # A strategy may name one again and again, or come to an end.
                drawn = itertools.islice(self._order, 4 * len(self.targets))
                others = (index for index in range(len(self.targets)) if index not in failed)
                self._current = next((index for index in drawn if index not in failed), None) or next(others)
            return self._current


def _indices(urls: Sequence[str], strategy: Any) -> Iterator[int]:
    """Yield the places in the list that a strategy names: a function from URLs to an iterator of them, as kombu's."""
    for url in strategy(list(urls)):
        if url not in urls:
            raise ImproperlyConfigured("broker_failover_strategy names a URL that is not in broker_url")
        yield urls.index(url)


def _open(target: Target, timeout: float, options: Mapping[str, Any], *, alone: bool) -> socket.socket:
    name = target.name
    deadline = time.monotonic() + timeout
    try:
        if target.master_name:
            alone = False
            target = _ask_sentinel(target, timeout, options)
            name = target.name
        if not alone:
            _check_role(target, max(deadline - time.monotonic(), 0.001))
        return connect(target, max(deadline - time.monotonic(), 0.001))
    except (OSError, OperationalError) as error:
        raise unreachable(name, error) from error


def _check_role(target: Target, timeout: float) -> None:
    """Refuse a replica: it takes no writes, and another of the list may be its master."""
    try:
        role = ask(target, timeout, "ROLE")
    except OperationalError as error:
        if "NOPERM" not in str(error):
            raise
        return
    if role[0] != "master":
        raise OperationalError(f"it is a {role[0]}, which takes no writes")


def _ask_sentinel(target: Target, timeout: float, options: Mapping[str, Any]) -> Target:
    """Return the server that this Sentinel takes for the master now."""
    keywords = {"password": None, "username": None, **dict(options.get("sentinel_kwargs") or {})}
    asked = replace(target, db=0, username=keywords["username"], password=keywords["password"], master_name="")
    answer = ask(asked, timeout, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.master_name)
    if not answer:
        raise OperationalError(f"this Sentinel knows no master named {target.master_name!r}")
    host, port = answer
    return replace(target, host=host, port=int(port), master_name="")
