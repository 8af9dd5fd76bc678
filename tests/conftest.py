"""Fixtures for every kind of test: a clock that stands still, and private stores."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import umbel.contrib.testing.tasks  # noqa: F401 - shared by whoever imports it
from umbel import current
from umbel.testing import FakeClock
from umbel.testing.servers import RabbitMQServer, RedisServer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what hostile texts leave in captured output: one process could not tell it to the other."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode("utf-8")) for title, text in report.sections
    ]
    return report


# Before any module with tests is imported.
_BUILTIN = list(current._shared)


@pytest.fixture(autouse=True)
def _apps_of_its_own() -> Iterator[None]:
    """Take back what a test made current, and do without the tasks that others share with every later app.

    Celery's apps share them, and so do ours: a task of one test would be found by the app of another.
    """
    process = vars(current._Process)
    before = {name: process[name] for name in ("default", "latest", "fallback")}
    local = current._local.app
    current._shared[:] = _BUILTIN
    level = logging.root.level
    yield
    logging.root.setLevel(level)  # a command that ran in this process has set it as its options said
    current._shared[:] = _BUILTIN
    current._local.app = local
    for name, value in before.items():
        setattr(current._Process, name, value)


@pytest.fixture
def clock() -> FakeClock:
    """Time that moves only when the test says so."""
    return FakeClock()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A private Redis for the whole run."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the private Redis, emptied for this test."""
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """A private RabbitMQ for the whole run; it takes some ten seconds to start."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitMQServer) -> str:
    """The URL of the private RabbitMQ, without the queues and exchanges that tests before this one left."""
    rabbitmq_server.clear()
    return rabbitmq_server.url


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """A file that does not exist yet."""
    return tmp_path / "umbel.db"


@pytest.fixture
def sqlite_url(sqlite_path: Path) -> str:
    """The URL of a file that does not exist yet."""
    return f"sqlite:///{sqlite_path}"
