"""Where the server is: URLs and options, as Celery writes them, to what one connection needs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from umbel.exceptions import ImproperlyConfigured

SCHEMES: Final = ("amqp", "amqps", "pyamqp", "librabbitmq")
HEARTBEAT: Final = 120.0  # Celery's; see the module's docstring of consumer.py for what it decides
_CERT_REQS: Final = {
    "cert_required": 2,
    "required": 2,
    "cert_optional": 1,
    "optional": 1,
    "cert_none": 0,
    "none": 0,
}
_TLS: Final = {
    "ssl_keyfile": "keyfile",
    "ssl_certfile": "certfile",
    "ssl_ca_certs": "ca_certs",
    "ssl_ciphers": "ciphers",
    "keyfile": "keyfile",
    "certfile": "certfile",
    "ca_certs": "ca_certs",
    "ciphers": "ciphers",
    "server_hostname": "server_hostname",
}


@dataclass(frozen=True)
class Address:
    """One server, one virtual host and one user of it."""

    host: str = "localhost"
    port: int = 5672
    virtual_host: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    login_method: str | None = None
    heartbeat: float = HEARTBEAT  # seconds; 0 is none
    connect_timeout: float = 4.0  # seconds

    @property
    def name(self) -> str:
        """What people are shown: host, port and virtual host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.virtual_host.lstrip('/')}"


def parse_url(url: str, options: Mapping[str, Any]) -> Address:
    """Return the address that a URL and the transport options describe.

    ``amqp://user:password@host:port/virtual_host``; as in Celery an empty path is the virtual host ``/``, and ``//``
    is too. The query may say ``heartbeat``, ``connect_timeout``, ``login_method`` and the names of the TLS options.
    Raises :exc:`ImproperlyConfigured` for what cannot be read.

    >>> parse_url("amqp://me:secret@rabbit.example/shop", {}).name
    'rabbit.example:5672/shop'
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise ImproperlyConfigured(f"{scheme}:// is not a RabbitMQ URL scheme; use one of {', '.join(SCHEMES)}")
    split = urlsplit(f"amqp://{rest}")
    try:
        port = split.port
    except ValueError:
        raise ImproperlyConfigured(f"the port of the {scheme}:// URL of {split.hostname} is not a number") from None
    given = {**options, **dict(parse_qsl(split.query))}
    tls = _tls(given, split.hostname or "localhost") if scheme == "amqps" or given.get("ssl") else None
    heartbeat = given.get("heartbeat")
    return Address(
        host=unquote(split.hostname or "localhost"),
        port=port or (5671 if tls is not None else 5672),
        virtual_host=_virtual_host(split.path),
        user=unquote(split.username) if split.username else "guest",
        password=unquote(split.password) if split.password is not None else "guest",
        tls=tls,
        login_method=given.get("login_method") or None,
        heartbeat=HEARTBEAT if heartbeat is None else _seconds("heartbeat", heartbeat, least=0.0),
        connect_timeout=_seconds(
            "connect_timeout", given.get("socket_connect_timeout") or given.get("connect_timeout") or 4.0
        ),
    )


def _virtual_host(path: str) -> str:
    # Celery's "amqp://host" and "amqp://host//" both mean the virtual host that is called "/".
    name = unquote(path[1:])
    return name or "/"


def _seconds(name: str, value: Any, *, least: float = 1e-9) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not least <= seconds < math.inf:
        raise ImproperlyConfigured(f"{name} must be a number of seconds, such as 5, not {value!r}")
    return seconds


def _tls(given: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return py-amqp's TLS options; certificates are checked unless it is said otherwise."""
    asked = given.get("ssl")
    merged = {**given, **(asked if isinstance(asked, Mapping) else {})}
    options = {known: merged[name] for name, known in _TLS.items() if merged.get(name) is not None}
    options["cert_reqs"] = _cert_reqs(merged.get("ssl_cert_reqs", merged.get("cert_reqs")))
    if options["cert_reqs"] or "server_hostname" in options:
        options.setdefault("server_hostname", host)
    return options


def _cert_reqs(given: Any) -> Any:
    import ssl

    if given is None or given == "":
        return ssl.CERT_REQUIRED
    if isinstance(given, int):
        return ssl.VerifyMode(given)
    known = _CERT_REQS.get(re.sub(r"^ssl\.", "", str(given).lower()))
    if known is None:
        raise ImproperlyConfigured(f"ssl_cert_reqs={given!r} is unknown; use CERT_REQUIRED, CERT_OPTIONAL or CERT_NONE")
    return ssl.VerifyMode(known)
