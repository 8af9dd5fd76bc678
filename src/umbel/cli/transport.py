"""What the banner and the report say about where messages and results live."""

from __future__ import annotations

from typing import Any

import msgspec

from umbel import drivers
from umbel.exceptions import BrokerError, OperationalError
from umbel.interfaces import BrokerFeatures, Durability


class Transport(msgspec.Struct, frozen=True, kw_only=True):
    """The URLs of an app as they may be shown, and what is known about them without connecting."""

    scheme: str
    broker: str
    results: str
    features: BrokerFeatures


def transport(app: Any) -> Transport:
    """Return where the app's messages and results live. Connects to nothing, but needs the driver's library."""
    url, backend = app.urls.read, app.urls.backend
    first = drivers.split(url)[0]
    scheme = drivers.scheme_of(first)
    # Built and not opened: a library that is missing is found out now, and imported once for all processes.
    app.make_backend()
    return Transport(
        scheme=scheme,
        broker=drivers.mask(url),
        results=drivers.mask(backend) if backend else "disabled://",
        features=app.make_broker().features,
    )


def storage(app: Any) -> Durability | None:
    """Ask the broker what it keeps, over a connection that is closed again; None if it cannot be reached now."""
    broker = app.make_broker()
    try:
        broker.open()
        kept: Durability = broker.durability()
    except (OperationalError, BrokerError):
        return None
    finally:
        broker.close()
    return kept
