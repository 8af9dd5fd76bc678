"""``celery.backends.base`` and ``celery.app.backends``: the base classes of result backends, to name and to check."""

from __future__ import annotations

from typing import Any, NoReturn

from umbel.drivers import open_backend
from umbel.interfaces import ResultBackend

_HOW = (
    "a result backend for Umbel implements umbel.interfaces.ResultBackend (umbel.testing proves it) and is found by an "
    "entry point of the group umbel.backends; one that was written for Celery cannot be used as it is"
)


class _NotOurs:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(_HOW)


class Backend(_NotOurs):
    """Base of backends written for Celery: can be subclassed and checked for, and not be used."""


class SyncBackendMixin:
    """Marks a backend of Celery's that polls."""


class BaseBackend(Backend, SyncBackendMixin):
    """As :class:`Backend`."""


BaseDictBackend = BaseBackend


class BaseKeyValueStoreBackend(Backend):
    """As :class:`Backend`."""


class KeyValueStoreBackend(BaseKeyValueStoreBackend, SyncBackendMixin):
    """As :class:`Backend`."""


class DisabledBackend(BaseBackend):
    """What ``app.backend`` is in Celery where results are disabled; in Umbel it is None."""


def by_url(backend: Any = None, loader: Any = None) -> tuple[type[ResultBackend], Any]:
    """Return the class of the backend that a URL means, and the URL."""
    found = open_backend(backend)
    if found is None:
        raise ValueError(f"{backend!r} means no results")
    return type(found), backend


def by_name(backend: Any = None, loader: Any = None, extension_namespace: str = "") -> type[ResultBackend]:
    """Return the class of a backend by its URL's scheme."""
    return by_url(f"{backend}://", loader)[0]


def unpickle_backend(cls: Any, args: Any, kwargs: Any) -> NoReturn:
    """Refuse: backends are not carried about."""
    raise NotImplementedError("a result backend belongs to its process; pickle the app instead")
