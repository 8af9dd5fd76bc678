"""The systems that are compared: how each is fed, run, and asked how much it has left."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import redis

BIN = os.path.dirname(sys.executable)


class Peer(ABC):
    """One system. ``prepare`` is called once in the process that feeds it."""

    name: str
    drain = 20_000
    enqueue = 2_000

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = redis.Redis.from_url(url)
        self.rabbitmq: Any = None
        self.prepare()

    @abstractmethod
    def prepare(self) -> None: ...

    @abstractmethod
    def send(self) -> Any: ...

    @abstractmethod
    def worker(self, processes: int) -> list[str]: ...

    @abstractmethod
    def left(self) -> int: ...

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a list of Redis or, if that is the broker, in a queue of RabbitMQ."""
        if "BENCH_BROKER" not in os.environ:
            return int(self.redis.llen(queue))
        if self.rabbitmq is None:
            from umbel import Umbel

            self.rabbitmq = Umbel("look", broker=os.environ["BENCH_BROKER"], set_as_current=False).broker
        return int(self.rabbitmq.size(queue))

    def fill(self, count: int) -> None:
        for _ in range(count):
            self.send()

    def round_trip(self) -> Callable[[], Any] | None:
        return None

    def chord(self) -> Callable[[int], Any] | None:
        """Return what calls a body with the values of so many tasks, and waits for it."""
        return None


class UmbelPeer(Peer):
    name = "umbel"
    drain = 60_000
    enqueue = 10_000

    def prepare(self) -> None:
        from apps import umbel_app

        self.app = umbel_app

    def send(self) -> Any:
        return self.app.noop.delay()

    def fill(self, count: int) -> None:
        self.app.app.send_many([(self.app.noop, (), {})] * count)

    def worker(self, processes: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "umbel",
            "-A",
            "apps.umbel_app:app",
            "worker",
            "-c",
            str(processes),
            "-l",
            "warning",
        ]

    def left(self) -> int:
        return self.waiting("celery")

    def round_trip(self) -> Callable[[], Any]:
        return lambda: self.app.noop.delay().get(timeout=10)

    def chord(self) -> Callable[[int], Any]:
        from umbel import chord

        noop, count = self.app.noop.si(), self.app.count.s()
        return lambda size: chord((noop.clone() for _ in range(size)), count).apply_async().get(timeout=60)


class CeleryPeer(Peer):
    name = "celery"
    drain = 4_000

    def prepare(self) -> None:
        from apps import celery_app

        self.app = celery_app

    def send(self) -> Any:
        return self.app.noop.delay()

    def worker(self, processes: int) -> list[str]:
        return [
            f"{BIN}/celery", "-A", "apps.celery_app:app", "worker", "-c", str(processes), "-l", "warning",
            "--without-gossip", "--without-mingle",
        ]  # fmt: skip

    def left(self) -> int:
        return self.waiting("celery")

    def round_trip(self) -> Callable[[], Any]:
        return lambda: self.app.noop.delay().get(timeout=10)

    def chord(self) -> Callable[[int], Any]:
        from celery import chord

        noop, count = self.app.noop.si(), self.app.count.s()
        return lambda size: chord((noop.clone() for _ in range(size)), count).apply_async().get(timeout=60)


class HueyPeer(Peer):
    name = "huey"
    drain = 15_000

    def prepare(self) -> None:
        from apps import huey_app

        self.app = huey_app

    def send(self) -> Any:
        return self.app.noop()

    def worker(self, processes: int) -> list[str]:
        return [
            f"{BIN}/huey_consumer", "apps.huey_app.huey", "-w", str(processes), "-k", "process", "-q", "-n",
        ]  # fmt: skip

    def left(self) -> int:
        return self.app.huey.pending_count()

    def round_trip(self) -> Callable[[], Any]:
        # Huey's own waiting call polls; the shortest delay is the fairest.
        return lambda: self.app.noop().get(blocking=True, timeout=10, backoff=1, max_delay=0.001)


class DramatiqPeer(Peer):
    name = "dramatiq"
    drain = 12_000

    def prepare(self) -> None:
        from apps import dramatiq_app

        self.app = dramatiq_app

    def send(self) -> Any:
        return self.app.noop.send()

    def worker(self, processes: int) -> list[str]:
        return [f"{BIN}/dramatiq", "apps.dramatiq_app", "-p", str(processes), "-t", "1"]

    def left(self) -> int:
        if "BENCH_BROKER" in os.environ:
            return self.waiting("default")
        return int(self.redis.hlen("dramatiq:default.msgs"))

    def round_trip(self) -> Callable[[], Any]:
        return lambda: self.app.noop.send().get_result(block=True, timeout=10_000)


class TaskiqPeer(Peer):
    name = "taskiq"
    drain = 12_000

    def prepare(self) -> None:
        from apps import taskiq_app

        self.app = taskiq_app
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.app.broker.startup())

    def send(self) -> Any:
        return self.loop.run_until_complete(self.app.noop.kiq())

    def fill(self, count: int) -> None:
        async def all_of_them() -> None:
            for _ in range(count):
                await self.app.noop.kiq()

        self.loop.run_until_complete(all_of_them())

    def worker(self, processes: int) -> list[str]:
        return [f"{BIN}/taskiq", "worker", "apps.taskiq_app:broker", "-w", str(processes), "--log-level", "WARNING"]

    def left(self) -> int:
        return int(self.redis.llen("taskiq"))

    def round_trip(self) -> Callable[[], Any]:
        async def once() -> None:
            task = await self.app.noop.kiq()
            await task.wait_result(check_interval=0.0005, timeout=10)

        return lambda: self.loop.run_until_complete(once())


class RqPeer(Peer):
    name = "rq"
    drain = 800

    def prepare(self) -> None:
        import rq
        from apps import rq_app

        self.app = rq_app
        self.queue = rq.Queue("bench", connection=self.redis)

    def send(self) -> Any:
        return self.queue.enqueue(self.app.noop)

    def worker(self, processes: int) -> list[str]:
        return [f"{BIN}/rq", "worker-pool", "bench", "-n", str(processes), "-u", self.url, "-l", "WARNING"]

    def left(self) -> int:
        return int(self.redis.llen("rq:queue:bench"))


PEERS: list[type[Peer]] = [UmbelPeer, CeleryPeer, HueyPeer, DramatiqPeer, TaskiqPeer, RqPeer]


def poll(check: Callable[[], bool], seconds: float, every: float = 0.005) -> bool:
    """Wait until the check holds, at most so many seconds."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
