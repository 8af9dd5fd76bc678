"""What a server's own limits may cost, as far as its version and the declared queues tell; policies cannot be seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from umbel.interfaces import QueueSpec

#: The first version with a delivery limit for every quorum queue, and that limit.
_LIMITS: Final = (4, 0)
_LIMIT: Final = 20
#: The first version that heeds ``x-consumer-timeout``, and what the others grant a consumer unless they are told.
_HEEDS: Final = (3, 12)
_PATIENCE: Final = 1800.0  # seconds


def advice(
    version: str, queues: Iterable[QueueSpec], longest: float | None, *, timeout: float | None, most: int | None
) -> list[str]:
    """Return one text for each thing that may cost work.

    ``longest`` is how many seconds a task may take, ``timeout`` what we ask for, ``most`` the deliveries of a message.
    """
    number = _number(version)
    found = [text for queue in queues if (text := _limit(queue, number, most))]
    if number < _HEEDS:
        if longest is None or longest >= _PATIENCE:
            what = "tasks without a time limit" if longest is None else f"tasks of up to {longest:g} s"
            found.append(
                f"RabbitMQ {version} takes back what runs longer than its consumer_timeout ({_PATIENCE:g} s unless it "
                f"was changed), and there are {what}: set consumer_timeout in rabbitmq.conf, or task_time_limit"
            )
    elif timeout is not None and longest is not None and longest >= timeout:
        found.append(
            f"tasks may take {longest:g} s, and RabbitMQ takes back what runs longer than the transport option "
            f"consumer_timeout={timeout:g}: make it longer than the time limits"
        )
    return found


def _limit(queue: QueueSpec, number: tuple[int, int], most: int | None) -> str:
    arguments = queue.arguments
    if arguments.get("x-queue-type") != "quorum":
        return ""
    limit = arguments.get("x-delivery-limit", _LIMIT if number >= _LIMITS else None)
    if not isinstance(limit, int) or limit < 0:
        return ""
    name = f"the quorum queue {queue.name!r} has a limit of {limit} deliveries, which counts what was only given back"
    # An empty name is the default exchange.
    if "x-dead-letter-exchange" not in arguments:
        return (
            f"{name}, and no dead-letter exchange: what exceeds it is gone; set x-dead-letter-exchange and "
            "x-dead-letter-routing-key in its queue_arguments, or by a policy"
        )
    if most is not None and limit <= most:
        return f"{name}, not above max_deliveries={most}: give it a limit well above that"
    return ""


def _number(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; zeros where there are none.

    >>> _number("3.10.8"), _number("4.1.0-rc.1"), _number("")
    ((3, 10), (4, 1), (0, 0))
    """
    parts = [*version.split("."), "0", "0"][:2]
    return (int(parts[0]), int(parts[1])) if all(part.isdecimal() for part in parts) else (0, 0)
