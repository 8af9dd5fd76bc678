"""Fixtures for pytest, with Celery's names: ``pytest_plugins = ["umbel.contrib.pytest"]``.

``celery_app`` is an app in memory for one test, ``celery_worker`` a worker in a thread for it; ``celery_session_app``
and ``celery_session_worker`` are those of the whole run. Redefine ``celery_config`` and the others to change them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

NO_WORKER = os.environ.get("NO_WORKER")


def pytest_configure(config: Any) -> None:
    """Tell pytest about the marker ``celery``."""
    config.addinivalue_line("markers", "celery(**overrides): override celery configuration for a test case")


@contextmanager
def _create_app(
    enable_logging: bool = False, use_trap: bool = False, parameters: Mapping[str, Any] | None = None, **config: Any
) -> Iterator[Any]:
    from umbel.contrib.testing.app import TestApp, setup_default_app

    app = TestApp(set_as_current=False, enable_logging=enable_logging, config=config, **(parameters or {}))
    with setup_default_app(app, use_trap=use_trap):
        yield app


def _overrides(request: Any) -> dict[str, Any]:
    mark = request.node.get_closest_marker("celery")
    return dict(mark.kwargs) if mark else {}


@contextmanager
def _worker(app: Any, modules: Sequence[str], tasks: Sequence[Any], pool: str, parameters: Mapping[str, Any]) -> Any:
    from umbel.contrib.testing.worker import start_worker

    if NO_WORKER:
        yield None
        return
    for module in modules:
        app.loader.import_task_module(module)
    for task in tasks:
        app.register_task(task)
    with start_worker(app, pool=pool, **parameters) as worker:
        yield worker


@pytest.fixture(scope="session")
def use_celery_app_trap() -> bool:
    """Say whether use of the current app is an error; redefine it."""
    return False


@pytest.fixture(scope="session")
def celery_session_app(
    request: Any,
    celery_config: Any,
    celery_parameters: Any,
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[Any]:
    """The app of the whole run."""
    config = {**celery_config, **_overrides(request)}
    with _create_app(celery_enable_logging, use_celery_app_trap, celery_parameters, **config) as app:
        if not use_celery_app_trap:
            app.set_default()
            app.set_current()
        yield app


@pytest.fixture(scope="session")
def celery_session_worker(
    request: Any,
    celery_session_app: Any,
    celery_includes: Sequence[str],
    celery_class_tasks: Sequence[Any],
    celery_worker_pool: str,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[Any]:
    """A worker for the whole run."""
    with _worker(
        celery_session_app, celery_includes, celery_class_tasks, celery_worker_pool, celery_worker_parameters
    ) as worker:
        yield worker


@pytest.fixture(scope="session")
def celery_enable_logging() -> bool:
    """Say whether logging is set up; redefine it."""
    return False


@pytest.fixture(scope="session")
def celery_includes() -> Sequence[str]:
    """The modules that the workers import; redefine it."""
    return ()


@pytest.fixture(scope="session")
def celery_worker_pool() -> str:
    """The workers' ``-P``; redefine it."""
    return "solo"


@pytest.fixture(scope="session")
def celery_config() -> Mapping[str, Any]:
    """The apps' settings; redefine it."""
    return {}


@pytest.fixture(scope="session")
def celery_parameters() -> Mapping[str, Any]:
    """The arguments that the apps are made with; redefine it."""
    return {}


@pytest.fixture(scope="session")
def celery_worker_parameters() -> Mapping[str, Any]:
    """The workers' options; redefine it."""
    return {}


@pytest.fixture
def celery_app(
    request: Any,
    celery_config: Any,
    celery_parameters: Any,
    celery_enable_logging: bool,
    use_celery_app_trap: bool,
) -> Iterator[Any]:
    """An app for one test."""
    config = {**celery_config, **_overrides(request)}
    with _create_app(celery_enable_logging, use_celery_app_trap, celery_parameters, **config) as app:
        yield app


@pytest.fixture(scope="session")
def celery_class_tasks() -> list[Any]:
    """Task classes that the workers know; redefine it."""
    return []


@pytest.fixture
def celery_worker(
    request: Any,
    celery_app: Any,
    celery_includes: Sequence[str],
    celery_worker_pool: str,
    celery_worker_parameters: Mapping[str, Any],
) -> Iterator[Any]:
    """A worker for one test."""
    with _worker(celery_app, celery_includes, (), celery_worker_pool, celery_worker_parameters) as worker:
        yield worker


@pytest.fixture
def depends_on_current_app(celery_app: Any) -> None:
    """Make the test's app the current one."""
    celery_app.set_current()
