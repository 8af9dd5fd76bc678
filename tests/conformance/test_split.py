"""A broker at two URLs keeps the contract, and reads and writes where it should."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from umbel import Umbel
from umbel.brokers.memory import MemoryBroker
from umbel.interfaces import Broker, Clock, Settlement
from umbel.splitting import SplitBroker
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing
from umbel.testing.brokers import BrokerContract
from umbel.worker.inprocess import start_worker


class TestTwoWaysToOneStore(BrokerContract):
    driver = "umbel.brokers.memory:MemoryBroker"
    backend_driver = "umbel.backends.memory:MemoryBackend"

    @pytest.fixture(autouse=True)
    def _url(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"

    def make(self, clock: Clock, **options: Any) -> Broker:
        return SplitBroker(super().make(clock, **options), super().make(clock, **options))


class Shut(MemoryBroker):
    """A broker that this program has no way to."""

    def open(self) -> None:
        raise AssertionError("nobody asked for it")


def test_a_program_that_only_publishes_does_not_connect_to_the_other(clock: FakeClock) -> None:
    write = MemoryBroker(f"memory://{uuid.uuid4().hex}", clock=clock)
    broker = SplitBroker(Shut("memory://read", clock=clock), write)
    broker.open()
    broker.publish([outgoing(b"x")])
    assert bodies(write.peek("q")) == [b"x"]
    broker.close()


def test_what_follows_is_published_in_one_step_where_it_was_read(clock: FakeClock) -> None:
    read, write = (MemoryBroker(f"memory://{uuid.uuid4().hex}", clock=clock) for _ in range(2))
    read.publish([outgoing(b"read")])
    broker = SplitBroker(read, write)
    broker.open()
    leases = broker.leases()
    consumer = broker.consumer(leases.register("node"), ["q"])
    (delivery,) = consumer.reserve(5)
    assert not consumer.settle([Settlement(delivery=delivery, publish=(outgoing(b"next"),))]).refused
    assert (bodies(read.peek("q")), bodies(write.peek("q"))) == ([b"next"], [])
    consumer.close()
    leases.close()


def test_an_app_reads_and_writes_where_its_settings_say() -> None:
    read, write = (f"memory://{uuid.uuid4().hex}" for _ in range(2))
    app = Umbel("two", broker_read_url=read, broker_write_url=write, backend=read, set_as_current=False)

    @app.task
    def double(x: int) -> int:
        return 2 * x

    outside = Umbel("one", broker=read, backend=read, set_as_current=False)
    with start_worker(app, pool="threads"):
        assert outside.send_task(double.name, (4,)).get(timeout=10) == 8
        double.delay(5)
        assert MemoryBroker(write).size("celery") == 1
    assert isinstance(app.broker, SplitBroker)
    app.conf.broker_read_url = write
    app.close()
    assert isinstance(app.broker, MemoryBroker)
    app.close()
    outside.close()
