"""What is said about a RabbitMQ server that may cost work."""

from __future__ import annotations

from typing import Any

import pytest

from umbel.brokers.rabbitmq.advice import advice
from umbel.interfaces import QueueSpec


def said(version: str = "3.13.1", longest: float | None = 60.0, timeout: float | None = 604800.0, **args: Any) -> str:
    arguments = {f"x-{name.replace('_', '-')}": value for name, value in args.items()}
    return "\n".join(advice(version, [QueueSpec(name="q", arguments=arguments)], longest, timeout=timeout, most=5))


@pytest.mark.parametrize(
    ("version", "arguments", "words"),
    [
        ("3.13.1", {}, ""),
        ("3.13.1", {"queue_type": "quorum"}, ""),
        ("3.13.1", {"queue_type": "quorum", "delivery_limit": 50}, "no dead-letter exchange"),
        ("4.0.2", {"queue_type": "quorum"}, "limit of 20 deliveries"),
        ("4.0.2", {"queue_type": "quorum", "delivery_limit": -1}, ""),
        ("4.0.2", {"queue_type": "quorum", "dead_letter_exchange": ""}, ""),
        ("3.13.1", {"queue_type": "quorum", "delivery_limit": 5, "dead_letter_exchange": "dlx"}, "max_deliveries=5"),
        ("4.1.0", {}, ""),
    ],
)
def test_delivery_limits(version: str, arguments: dict[str, Any], words: str) -> None:
    text = said(version, **arguments)
    assert words in text and bool(words) == bool(text)


@pytest.mark.parametrize(
    ("version", "longest", "timeout", "words"),
    [
        ("3.10.8", None, 604800.0, "tasks without a time limit"),
        ("3.10.8", 3600.0, 604800.0, "tasks of up to 3600 s"),
        ("3.10.8", 60.0, 604800.0, ""),
        ("3.12.0", None, 604800.0, ""),
        ("3.12.0", 3600.0, 1800.0, "consumer_timeout=1800"),
        ("3.12.0", 3600.0, None, ""),
    ],
)
def test_long_tasks(version: str, longest: float | None, timeout: float | None, words: str) -> None:
    text = said(version, longest, timeout)
    assert words in text and bool(words) == bool(text)
