"""What the real ``kombu`` and ``billiard`` must have in common with Umbel while they serve under the alias.

``except kombu.exceptions.OperationalError`` must catch what Umbel raises, and a serializer that is registered with
kombu must be one that Umbel knows. So, right after such a module is loaded, the names below become Umbel's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from umbel import exceptions, serialization, tracing

KOMBU_ERRORS: Final = ("OperationalError", "SerializationError", "EncodeError", "DecodeError", "ContentDisallowed")
BILLIARD_ERRORS: Final = ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError", "Terminated")


def _errors(names: tuple[str, ...]) -> Callable[[ModuleType], None]:
    def join(module: ModuleType) -> None:
        for name in names:
            setattr(module, name, getattr(exceptions, name))

    return join


def _serializers(module: ModuleType) -> None:
    registry: Any = vars(module)["registry"]
    original = registry.register

    @functools.wraps(original)
    def register(
        name: str,
        encoder: Any,
        decoder: Any,
        content_type: str,
        content_encoding: str = "utf-8",
    ) -> None:
        original(name, encoder, decoder, content_type, content_encoding)
        serialization.register(name, encoder, decoder, content_type, content_encoding)

    registry.register = register
    setattr(module, "register", register)  # noqa: B010


def _json_types(module: ModuleType) -> None:
    original: Any = vars(module)["register_type"]

    @functools.wraps(original)
    def register_type(t: Any, marker: str | None, encoder: Any, decoder: Any = lambda value: value) -> None:
        original(t, marker, encoder, decoder)
        serialization.register_type(t, marker, encoder, decoder)

    setattr(module, "register_type", register_type)  # noqa: B010


def _einfo(module: ModuleType) -> None:
    setattr(module, "ExceptionInfo", tracing.ExceptionInfo)  # noqa: B010


def _pool(module: ModuleType) -> None:
    from umbel.celery.pools import watch_workloop

    watch_workloop(vars(module)["Worker"])


#: Module -> what is done to it once it is loaded.
BRIDGES: Final[dict[str, Callable[[ModuleType], None]]] = {
    "kombu.exceptions": _errors(KOMBU_ERRORS),
    "kombu.serialization": _serializers,
    "kombu.utils.json": _json_types,
    "billiard.exceptions": _errors(BILLIARD_ERRORS),
    "billiard.einfo": _einfo,
    "billiard.pool": _pool,
}


def join_imported() -> None:
    """Do it for those that were imported before the alias was installed."""
    for name, bridge in BRIDGES.items():
        module = sys.modules.get(name)
        if module is not None:
            bridge(module)
