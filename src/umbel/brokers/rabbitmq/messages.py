"""Between our messages and AMQP's, which has places of its own for properties and headers, and takes any body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from umbel.brokers.rabbitmq.frames import Content
from umbel.message import Message

#: The header that counts the deliveries of one message over its copies; see :class:`umbel.interfaces.Requeue`.
DELIVERIES: Final = "umbel-deliveries"
#: Where delays end.
DELAYED: Final = "celery_delayed_delivery"
_DELAYS: Final = "celery_delayed_"

_PROPERTIES: Final = ("correlation_id", "reply_to", "expiration", "message_id", "timestamp", "type", "app_id")
# What the server, or whoever sent it back, adds on the way; a copy that carried it on would tell of another delivery.
_SERVER: Final = (
    "umbel-verdict",
    "x-death", "x-delivery-count", "x-acquired-count",
    "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason",
    "x-last-death-exchange", "x-last-death-queue", "x-last-death-reason",
)  # fmt: skip


def properties_of(message: Message, *, priority: int = 0, deliveries: int = 0) -> dict[str, Any]:
    """Return the AMQP properties of a message. ``deliveries`` above zero is how many its copies before it had."""
    sent = message.properties
    headers = message.headers
    if deliveries:
        headers = {**headers, DELIVERIES: deliveries}
    found: dict[str, Any] = {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": headers,
        "delivery_mode": sent.get("delivery_mode") or 2,
        "priority": min(max(int(priority), 0), 255),
    }
    for name in _PROPERTIES:
        if value := sent.get(name):
            found[name] = value
    return found


def message_of(content: Content, queue: str) -> tuple[Message, int]:
    """Return the message that came, and how many deliveries its copies before it had."""
    properties: dict[str, Any] = dict(content.properties)
    headers = dict(properties.pop("headers", None) or {})
    deliveries = headers.pop(DELIVERIES, 0)
    for name in _SERVER:
        headers.pop(name, None)
    exchange, key = content.args[3], content.args[4]
    if exchange.startswith(_DELAYS):
        # Whoever answers or tries again must not go through the delay once more.
        exchange, key = "", queue
    content_type = properties.pop("content_type", None) or "application/json"
    content_encoding = properties.pop("content_encoding", None) or "utf-8"
    properties["delivery_info"] = {"exchange": exchange, "routing_key": key}
    message = Message(
        body=content.body,
        content_type=content_type,
        content_encoding=content_encoding,
        headers=headers,
        properties=properties,
    )
    return message, deliveries if type(deliveries) is int and 0 < deliveries < 1_000_000 else 0


def priority_of(properties: Mapping[str, Any]) -> int:
    """Return the priority that a message came with."""
    priority = properties.get("priority")
    return priority if type(priority) is int else 0
