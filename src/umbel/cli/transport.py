"""What the banner and the report say about where messages and results live."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import msgspec

from umbel import drivers
from umbel.exceptions import BrokerError, OperationalError
from umbel.interfaces import Broker, BrokerFeatures, Durability


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


def longest(app: Any) -> float | None:
    """Return the seconds that a task may take by its time limits; None if one has no limit, or if none is known."""
    tasks = [task for name, task in app.tasks.items() if not name.startswith("celery.")]
    limits = [task.time_limit or app.conf.task_time_limit for task in tasks]
    return max(map(float, limits)) if limits and all(limits) else None


def keeps_revocations(app: Any) -> bool:
    """Say whether what is revoked is kept while no worker runs; True where the stores cannot be reached now.

    Over connections that are closed again.
    """
    with ExitStack() as stack:
        try:
            for keeper in (app.make_broker(), app.make_backend()):
                if keeper is not None:
                    stack.callback(keeper.close)
                    keeper.open()
                    store = keeper.store() if isinstance(keeper, Broker) else keeper.shared_store()
                    if store is not None:
                        return True
        except BrokerError:
            return True
    return False


def storage(app: Any) -> Durability | None:
    """Ask the broker what it keeps, over a connection that is closed again; None if it cannot be reached now."""
    broker = app.make_broker()
    try:
        broker.open()
        kept: Durability = broker.durability()
        kept = msgspec.structs.replace(kept, warnings=broker.advice(app.queues(None), longest=longest(app)))
    except (OperationalError, BrokerError):
        return None
    finally:
        broker.close()
    return kept
