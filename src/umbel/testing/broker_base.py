"""What the parts of the broker suite share: making drivers, messages and consumers, and cleaning up."""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

import pytest

from umbel.exceptions import LeaseLost
from umbel.interfaces import (
    Ack,
    Broker,
    Clock,
    Consumer,
    Delivery,
    How,
    Leases,
    Outgoing,
    Peeked,
    QueueSpec,
    Settlement,
    Suspect,
)
from umbel.message import Message, decode_envelope
from umbel.testing.clock import FakeClock

LEASE_TTL = 30.0
T = TypeVar("T")


def load(path: str) -> Callable[..., Any]:
    """Return the class that ``module:Class`` names."""
    module, _, name = path.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded


def until(condition: Callable[[], object], *, timeout: float = 10.0) -> None:
    """Ask until the condition holds; AssertionError when it does not within real seconds.

    For what no fake clock reaches: another process, the kernel, a key's time to live in a server.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not true after {timeout} s"


def needs(**features: Any) -> Callable[[T], T]:
    """Skip the test, or the tests of the class, unless each feature has the value, or one of the values, given."""
    wanted = {name: value if isinstance(value, set | range) else {value} for name, value in features.items()}

    def mark(target: T) -> T:
        tests: Mapping[str, Any] = vars(target) if isinstance(target, type) else {"test": target}
        for name, test in tests.items():
            if name.startswith("test"):
                test.needed_features = {**wanted, **getattr(test, "needed_features", {})}
        return target

    return mark


def outgoing(body: bytes = b"[[], {}, {}]", queue: str = "q", *, task_id: str = "", **options: Any) -> Outgoing:
    """Return a message as Celery publishes it, of a new task unless ``task_id`` is given."""
    task_id = task_id or str(uuid.uuid4())
    priority = options.get("priority", 0)
    message = Message(
        body=body,
        headers={"lang": "py", "task": "proj.add", "id": task_id, "retries": 0},
        properties={
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "delivery_tag": str(uuid.uuid4()),
        },
    )
    return Outgoing(message=message, task_id=task_id, queue=queue, routing_key=queue, **options)


def body(item: Delivery | Peeked) -> bytes:
    """Return the body that was published."""
    return item.raw if item.message is not None else decode_envelope(item.raw).body


def bodies(items: Sequence[Delivery | Peeked]) -> list[bytes]:
    """Return the bodies that were published, in order."""
    return [body(item) for item in items]


class BrokerBase:
    """Makes brokers, consumers and messages for one test, and closes them after it."""

    driver: ClassVar[str]  # "package.module:Class" of the driver
    url: str  # an empty store, the same for the whole of one test
    backend_driver: ClassVar[str] = ""  # of the result backend that settle() can write to
    backend_url: str = ""

    clock: FakeClock

    def make(self, clock: Clock, **options: Any) -> Broker:
        """Return a new, unopened broker. Two of one test reach the same store, unless it cannot be shared at all."""
        broker: Broker = load(self.driver)(self.url, options=options, clock=clock)
        return broker

    @pytest.fixture(autouse=True)
    def _closing(self, _url: None) -> Iterator[None]:
        self.clock = FakeClock()
        self._opened: list[Any] = []
        yield
        for opened in reversed(self._opened):
            opened.close()

    def open(self, *, clock: Clock | None = None, queues: Sequence[str] = ("q", "r"), **options: Any) -> Broker:
        """Return an opened broker with these queues; it is closed after the test."""
        broker = self.make(clock or self.clock, **options)
        self._opened.append(broker)
        broker.open()
        broker.declare(QueueSpec(name=name, routing_key=name) for name in queues)
        return broker

    @pytest.fixture(autouse=True)
    def _url(self) -> None:
        """Override this to give each test the ``url`` of an empty store."""

    @pytest.fixture(autouse=True)
    def _skipping(self, request: pytest.FixtureRequest, _closing: None) -> None:
        needed: Mapping[str, Collection[Any]] = getattr(request.function, "needed_features", {})
        features = self.make(self.clock).features
        for name, values in needed.items():
            if (found := getattr(features, name)) not in values:
                pytest.skip(f"features.{name} is {found}")

    @pytest.fixture
    def broker(self, _skipping: None) -> Broker:
        """An open broker on the test's clock."""
        return self.open()

    def leases(self, broker: Broker) -> Leases:
        """Return a lease keeper that is closed after the test."""
        leases = broker.leases()
        self._opened.append(leases)
        return leases

    def consumer(self, broker: Broker, *queues: str, id: str = "") -> Consumer:
        """Return a consumer with an id of its own that is closed after the test."""
        consumer = broker.consumer(id or self.leases(broker).register("node"), list(queues or ("q", "r")))
        self._opened.append(consumer)
        return consumer

    def member(self, broker: Broker, leases: Leases, *queues: str) -> tuple[str, Consumer]:
        """Return a new consumer's id, registered here, and the consumer."""
        id = leases.register("node")
        return id, self.consumer(broker, *queues, id=id)

    def send(self, broker: Broker, *contents: bytes, queue: str = "q", **options: Any) -> list[Outgoing]:
        """Publish these bodies in one batch and return what was published."""
        batch = [outgoing(content, queue, **options) for content in contents]
        broker.publish(batch)
        return batch

    def later(self, seconds: float) -> datetime:
        """Return the moment so many seconds from now on the test's clock."""
        return self.clock.now() + timedelta(seconds=seconds)

    def take(self, consumer: Consumer, limit: int = 1) -> list[Delivery]:
        """Reserve exactly that many, in as many calls as it takes; fewer only when there are no more."""
        taken: list[Delivery] = []
        while len(taken) < limit and (more := consumer.reserve(limit - len(taken))):
            taken.extend(more)
        return taken

    def end(self, consumer: Consumer, *deliveries: Delivery, how: How = Ack(), **options: Any) -> None:  # noqa: B008
        """Settle these alike and expect that none is refused."""
        settled = consumer.settle([Settlement(delivery=held, how=how, **options) for held in deliveries])
        assert not settled.refused

    def refuses(self, consumer: Consumer, settlement: Settlement) -> bool:
        """Settle this alone and say whether it was refused, by its tag or because the consumer is gone."""
        try:
            return settlement.delivery.tag in consumer.settle([settlement]).refused
        except LeaseLost:
            return True

    def drain(self, broker: Broker, *queues: str) -> list[bytes]:
        """Take and acknowledge all that can be reserved now; return the bodies in the order of delivery."""
        consumer = self.consumer(broker, *queues)
        seen: list[bytes] = []
        while batch := consumer.reserve(100):
            seen.extend(bodies(batch))
            self.end(consumer, *batch)
        return seen

    def expired(self, leases: Leases, id: str) -> Suspect:
        """Let the lease of that id end by the clock and return the suspect."""
        self.clock.advance(LEASE_TTL * 2)
        return self.suspect(leases, id)

    def suspect(self, leases: Leases, id: str) -> Suspect:
        """Return the suspect of that id, which must be one."""
        found: Mapping[str, Suspect] = {suspect.id: suspect for suspect in leases.suspects()}
        return found[id]
