"""Apps for tests: in memory, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from umbel import current
from umbel.app import Umbel
from umbel.utils.log import Logging

DEFAULT_TEST_CONFIG: dict[str, Any] = {
    "worker_hijack_root_logger": False,
    "worker_log_color": False,
    "accept_content": {"json"},
    "enable_utc": True,
    "timezone": "UTC",
    "broker_url": "memory://",
    "result_backend": "cache+memory://",
    "broker_heartbeat": 0,
}


class Trap:
    """Stands for the current app where a test must not use it: every attribute raises ``RuntimeError``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_is_coroutine", "__func__"):
            raise AttributeError(name)
        raise RuntimeError("Test depends on current_app")


class UnitLogging(Logging):
    """Logging that is left as it is."""

    def setup(self, *args: Any, **kwargs: Any) -> Any:
        """Change nothing."""
        return None


def TestApp(
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    enable_logging: bool = False,
    set_as_current: bool = False,
    log: Any = UnitLogging,
    backend: Any = None,
    broker: Any = None,
    **kwargs: Any,
) -> Umbel:
    """Return an app for a test, in memory unless ``broker`` and ``config`` say otherwise."""
    from umbel.contrib.testing import tasks  # noqa: F401

    settings = {**deepcopy(DEFAULT_TEST_CONFIG), **(config or {})}
    if broker is not None:
        settings.pop("broker_url", None)
    if backend is not None:
        settings.pop("result_backend", None)
    app = Umbel(
        name or "celery.tests",
        set_as_current=set_as_current,
        log=None if enable_logging else log,
        broker=broker,
        backend=backend,
        **kwargs,
    )
    app.add_defaults(settings)
    return app


@contextmanager
def set_trap(app: Any) -> Iterator[None]:
    """Have the block fail where it uses the current app."""
    trap = Trap()
    before = current._local.app, current._Process.default
    current._local.app = current._Process.default = trap
    try:
        yield
    finally:
        current._local.app, current._Process.default = before


@contextmanager
def setup_default_app(app: Any, use_trap: bool = False) -> Iterator[None]:
    """Put back what was current when the block ends, and close the app."""
    process = current._Process
    before = current._local.app, process.default, process.latest, list(current._shared)
    try:
        if use_trap:
            with set_trap(app):
                yield
        else:
            yield
    finally:
        if app is not before[0]:
            app.close()
        current._local.app, process.default, process.latest = before[:3]
        current._shared[:] = before[3]
