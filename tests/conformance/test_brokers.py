"""Every broker of ours does what the contract says."""

from __future__ import annotations

import uuid

import pytest

from umbel.testing.brokers import BrokerContract


class TestMemoryBroker(BrokerContract):
    driver = "umbel.brokers.memory:MemoryBroker"
    backend_driver = "umbel.backends.memory:MemoryBackend"

    @pytest.fixture(autouse=True)
    def _url(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"


class TestSqliteBroker(BrokerContract):
    driver = "umbel.brokers.sqlite:SqliteBroker"
    backend_driver = "umbel.backends.sqlite:SqliteBackend"

    @pytest.fixture(autouse=True)
    def _url(self, sqlite_url: str) -> None:
        self.url = sqlite_url


class TestRedisBroker(BrokerContract):
    driver = "umbel.brokers.redis:RedisBroker"
    backend_driver = "umbel.backends.redis:RedisBackend"

    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url
        self.backend_url = redis_url.removesuffix("/0") + "/1"
