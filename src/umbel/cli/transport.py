"""What the banner and the report say about where messages and results live."""

from __future__ import annotations

from typing import Any

import msgspec

from umbel import drivers
from umbel.interfaces import BrokerFeatures


class Transport(msgspec.Struct, frozen=True, kw_only=True):
    """The URLs of an app as they may be shown, and what is known about them without connecting."""

    scheme: str
    broker: str
    results: str
    storage: str
    features: BrokerFeatures


def transport(app: Any) -> Transport:
    """Return where the app's messages and results live. Connects to nothing, but needs the driver's library."""
    url, backend = app.urls.read, app.urls.backend
    first = drivers.split(url)[0]
    scheme = drivers.scheme_of(first)
    # Built and not opened: a library that is missing is found out now, and imported once for all processes.
    drivers.open_backend(backend)
    return Transport(
        scheme=scheme,
        broker=drivers.mask(url),
        results=drivers.mask(backend) if backend else "disabled://",
        storage=_storage(scheme, first),
        features=drivers.open_broker(url).features,
    )


def _storage(scheme: str, url: str) -> str:
    """Say what survives what."""
    if scheme == "sqlite":
        path = url.partition("://")[2].partition("?")[0].removeprefix("/")
        return f"{path} (on disk when confirmed)"
    if scheme == "memory":
        return "this process alone; gone when it ends"
    return "as the server is configured to keep it"
