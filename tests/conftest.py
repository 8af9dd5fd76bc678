"""Fixtures for every kind of test: a clock that stands still, and private stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel.testing import FakeClock
from umbel.testing.servers import RedisServer


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


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """A file that does not exist yet."""
    return tmp_path / "umbel.db"


@pytest.fixture
def sqlite_url(sqlite_path: Path) -> str:
    """The URL of a file that does not exist yet."""
    return f"sqlite:///{sqlite_path}"
