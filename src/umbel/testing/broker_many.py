"""The broker suite, part 6: many threads, two processes, a killed process, and nothing left behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from umbel.clock import SYSTEM_CLOCK
from umbel.interfaces import Broker, Consumer, Leases, Place, Settlement, Suspect
from umbel.testing.broker_base import BrokerBase, bodies, needs, until

THREADS = 8
MESSAGES = 2000


class ThreadTests(BrokerBase):
    """Threads that share a broker never hold one message at the same time."""

    def test_eight_threads_settle_each_message_once(self, broker: Broker) -> None:
        for start in range(0, MESSAGES, 500):
            self.send(broker, *[b"%d" % number for number in range(start, start + 500)])
        consumers = [self.consumer(broker) for _ in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            settled = [content for seen in pool.map(self._work, consumers) for content in seen]
        assert len(settled) == MESSAGES
        assert len(set(settled)) == MESSAGES
        assert (broker.size("q"), broker.size("q", Place.HELD)) == (0, 0)

    @staticmethod
    def _work(consumer: Consumer) -> list[bytes]:
        seen: list[bytes] = []
        batch = consumer.reserve(7)
        while batch:
            seen.extend(bodies(batch))
            settled = consumer.settle([Settlement(delivery=held) for held in batch], reserve=7)
            assert not settled.refused
            batch = settled.deliveries
        return seen

    def test_threads_publish_through_one_broker(self, broker: Broker) -> None:
        def publish(number: int) -> None:
            for count in range(25):
                self.send(broker, b"%d:%d" % (number, count))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(publish, range(THREADS)))
        seen = self.drain(broker)
        assert len(seen) == len(set(seen)) == THREADS * 25
        for number in range(THREADS):
            mine = [content for content in seen if content.startswith(b"%d:" % number)]
            assert mine == [b"%d:%d" % (number, count) for count in range(25)]


class LifeTests(BrokerBase):
    """Brokers open and close as often as one likes, and leave nothing behind."""

    def test_open_and_close_twice(self) -> None:
        broker = self.make(self.clock)
        for _ in range(2):
            broker.open()
            broker.open()
            self.send(broker, b"x")
            assert broker.size("q") >= 1
            broker.close()
            broker.close()

    @needs(lease={"clock", "kernel"})
    def test_closing_a_consumer_gives_nothing_back(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id = leases.register("node")
        consumer = broker.consumer(id, ["q"])
        assert len(consumer.reserve(1)) == 1
        consumer.close()
        consumer.close()
        assert (broker.size("q"), broker.size("q", Place.HELD)) == (0, 1)
        assert leases.release(id) == 1

    def test_no_thread_and_no_file_is_left(self) -> None:
        self._use()
        before = self._resources()
        for _ in range(3):
            self._use()
        assert self._resources() <= before

    def _use(self) -> None:
        broker = self.make(self.clock)
        broker.open()
        leases = broker.leases()
        consumer = broker.consumer(leases.register("node"), ["q"])
        subscription = broker.pubsub().subscribe("ev")
        self.send(broker, b"x")
        held = consumer.reserve(5)
        consumer.settle([Settlement(delivery=one) for one in held])
        consumer.wake()
        consumer.wait(0.0)
        if (store := broker.store()) is not None:
            store.put("k", b"v")
        for opened in (subscription, consumer, leases, broker):
            opened.close()

    @staticmethod
    def _resources() -> Counter[str]:
        gc.collect()
        found = Counter(thread.name for thread in threading.enumerate())
        if os.path.isdir("/proc/self/fd"):
            found["files"] = len(os.listdir("/proc/self/fd"))
        return found


@needs(shared=True)
class ProcessTests(BrokerBase):
    """Two processes share the queues, and what a killed one held comes back."""

    @contextmanager
    def _peer(self, mode: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Run ``umbel.testing.peer`` in a process of its own, which is dead afterwards."""
        order = {"driver": self.driver, "url": self.url, "mode": mode, "queue": "q", "options": options}
        command = [sys.executable, "-m", "umbel.testing.peer", json.dumps(order)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def test_two_processes_settle_each_message_once(self) -> None:
        broker = self.open(clock=SYSTEM_CLOCK)
        self.send(broker, *[b"%d" % number for number in range(1000)])
        with self._peer("drain") as one, self._peer("drain") as two:
            settled = [json.loads(process.communicate(timeout=40)[0]) for process in (one, two)]
        seen = Counter(content for part in settled for content in part)
        assert len(seen) == 1000
        assert set(seen.values()) == {1}
        assert (broker.size("q"), broker.size("q", Place.HELD)) == (0, 0)

    def test_what_a_killed_process_held_comes_back(self) -> None:
        options: dict[str, Any] = {"lease_ttl": 1.0, "lease_heartbeat": 0.3}
        broker = self.open(clock=SYSTEM_CLOCK, **options)
        self.send(broker, *[b"%d" % number for number in range(5)])
        with self._peer("hold", **options) as peer:
            assert peer.stdout is not None
            id = json.loads(peer.stdout.readline())
            assert broker.size("q") == 0
            if broker.features.lease != "connection":  # then only the holder itself knows what it holds
                assert broker.size("q", Place.HELD) == 5
            leases = self.leases(broker)
            assert id not in [suspect.id for suspect in leases.suspects()]
            peer.send_signal(signal.SIGKILL)
            peer.wait()
            if broker.features.lease != "connection":
                self._reap(leases, id)
        consumer = self.consumer(broker)
        until(lambda: broker.size("q") == 5)
        assert sorted(bodies(self.take(consumer, 5))) == [b"%d" % number for number in range(5)]

    @staticmethod
    def _reap(leases: Leases, id: str) -> None:
        found: list[Suspect] = []

        def is_suspect() -> bool:
            found[:] = [suspect for suspect in leases.suspects() if suspect.id == id]
            return bool(found)

        until(is_suspect)
        first = found[0].beat
        assert is_suspect()
        assert found[0].beat == first
        until(lambda: leases.reap(found[0]).left == 0)
