"""The other process of the conformance suite: ``python -m umbel.testing.peer ORDER`` with a JSON order.

``drain`` takes and acknowledges until the queue is empty and nothing is held, then prints the bodies as a JSON list.
``hold`` reserves what it can, prints its consumer id, and waits for its end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from umbel.clock import SYSTEM_CLOCK
from umbel.interfaces import Broker, Consumer, Place, Settlement
from umbel.testing.broker_base import bodies, load


def main(order: dict[str, Any]) -> None:
    """Do what the order says."""
    broker: Broker = load(order["driver"])(order["url"], options=order["options"], clock=SYSTEM_CLOCK)
    broker.open()
    leases = broker.leases()
    id = leases.register("peer")
    consumer = broker.consumer(id, [order["queue"]])
    if order["mode"] == "hold":
        consumer.reserve(100)
        print(json.dumps(id), flush=True)
        sys.stdin.read()
        return
    print(json.dumps(drain(broker, consumer, order["queue"])), flush=True)
    leases.release(id)
    consumer.close()
    leases.close()
    broker.close()


def drain(broker: Broker, consumer: Consumer, queue: str) -> list[str]:
    """Return the bodies of all messages that this process settled."""
    seen: list[str] = []
    while True:
        batch = consumer.reserve(16)
        if not batch and not broker.size(queue) and not broker.size(queue, Place.HELD):
            return seen
        if not batch:
            consumer.wait(0.05)
        gone = consumer.settle([Settlement(delivery=held) for held in batch]).refused
        seen += [content.decode() for held, content in zip(batch, bodies(batch), strict=True) if held.tag not in gone]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
