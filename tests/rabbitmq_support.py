"""What tests of the RabbitMQ driver share."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from umbel.brokers.rabbitmq.address import parse_url
from umbel.brokers.rabbitmq.broker import RabbitBroker
from umbel.brokers.rabbitmq.link import Link
from umbel.interfaces import Consumer, Delivery, Outgoing, QueueSpec, Settlement
from umbel.testing.broker_base import outgoing, until
from umbel.testing.servers import RabbitMQServer


class Rabbit:
    """Makes brokers and consumers of one server, which are closed after the test."""

    def __init__(self, url: str, stack: contextlib.ExitStack) -> None:
        self.url = url
        self._stack = stack

    def broker(self, *specs: QueueSpec, url: str = "", **options: Any) -> RabbitBroker:
        # Twenty-eight quorum queues take the server a second; those who mean them say so.
        broker = RabbitBroker(url or self.url, options={"delay_queue_type": "classic", **options})
        self._stack.callback(broker.close)
        broker.open()
        broker.declare(specs)
        return broker

    def consumer(self, broker: RabbitBroker, *queues: str) -> Consumer:
        consumer = broker.consumer(broker.leases().register("node"), queues or ("q",))
        self._stack.callback(consumer.close)
        return consumer

    def link(self, *, url: str = "") -> Link:
        """A connection of a client that is none of ours."""
        link = Link(parse_url(url or self.url, {}), name="another client")
        self._stack.callback(link.close)
        return link


def take(consumer: Consumer, limit: int = 1, *, timeout: float = 10.0) -> list[Delivery]:
    """Reserve so many, waiting for them."""
    taken: list[Delivery] = []

    def enough() -> bool:
        if not (more := consumer.reserve(limit - len(taken))):
            consumer.wait(0.2)
        taken.extend(more)
        return len(taken) == limit

    until(enough, timeout=timeout)
    return taken


def routed(content: bytes, queue: str, exchange: str, key: str) -> Outgoing:
    return msgspec.structs.replace(outgoing(content, queue), exchange=exchange, routing_key=key)


def settle(consumer: Consumer, *deliveries: Delivery, **options: Any) -> None:
    assert not consumer.settle([Settlement(delivery=each, **options) for each in deliveries]).refused


def close_connections(server: RabbitMQServer, prefix: str) -> None:
    """Have the server end the connections whose name starts so."""
    code = (
        '[rabbit_networking:close_connection(proplists:get_value(pid, C), "by a test") '
        "|| C <- rabbit_networking:connection_info_all([pid, client_properties]), "
        '{<<"connection_name">>, longstr, N} <- proplists:get_value(client_properties, C), '
        f'string:prefix(N, <<"{prefix}">>) =/= nomatch].'
    )
    server.evaluate(code)
