"""RabbitMQ does what the contract says, as far as its features go."""

from __future__ import annotations

import pytest

from umbel.testing.brokers import BrokerContract


class TestRabbitMQ(BrokerContract):
    driver = "umbel.brokers.rabbitmq.broker:RabbitBroker"
    top_priority = 9

    @pytest.fixture(autouse=True)
    def _url(self, rabbitmq_url: str) -> None:
        self.url = rabbitmq_url
