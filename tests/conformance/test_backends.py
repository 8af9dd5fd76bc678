"""Every result backend of ours does what the contract says."""

from __future__ import annotations

import uuid

import pytest

from umbel.testing.backends import BackendContract


class TestMemoryBackend(BackendContract):
    driver = "umbel.backends.memory:MemoryBackend"

    @pytest.fixture(autouse=True)
    def _url(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"


class TestSqliteBackend(BackendContract):
    driver = "umbel.backends.sqlite:SqliteBackend"

    @pytest.fixture(autouse=True)
    def _url(self, sqlite_url: str) -> None:
        self.url = sqlite_url


class TestRedisBackend(BackendContract):
    driver = "umbel.backends.redis:RedisBackend"

    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url
