"""One engine on a real consumer of memory: what others ask of it while it is busy, and its end without a broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pytest
from tests.support import eventually

from umbel import Umbel
from umbel.exceptions import OperationalError
from umbel.interfaces import Begin
from umbel.worker.engine import Engine, EngineOptions
from umbel.worker.executors import make_executor
from umbel.worker.runner import TaskRunner


class Odd:
    """A consumer at whose calls something happens first."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.away = False
        self.at_begin: Callable[[], None] | None = None
        self.at_watch: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def begin(self, batch: Sequence[Begin]) -> Collection[str]:
        act, self.at_begin = self.at_begin, None
        if act is not None:
            act()
        lost: Collection[str] = self._consumer.begin(batch)
        return lost

    def watch(self, queues: Sequence[str]) -> None:
        act, self.at_watch = self.at_watch, None
        if act is not None:
            act()
        self._consumer.watch(queues)

    def settle(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise OperationalError("away")
        return self._consumer.settle(*args, **options)


class Bench:
    """An app, its consumer and an engine in a thread."""

    def __init__(self, name: str, pool: str, size: int) -> None:
        self.app = Umbel(name, broker=f"memory://{name}", backend=f"memory://{name}", set_as_current=False)
        self.go = threading.Event()
        self.ran: list[int] = []

        @self.app.task(name="hold", acks_late=False)
        def hold(number: int) -> int:
            self.ran.append(number)
            assert self.go.wait(30)
            return number

        @self.app.task(name="note")
        def note(number: int) -> int:
            self.ran.append(number)
            return number

        leases = self.app.broker.leases()
        self.consumer = Odd(self.app.broker.consumer(leases.register("here"), ["celery"]))
        self.engine = Engine(
            self.app,
            consumer=self.consumer,  # type: ignore[arg-type]
            executor=make_executor(pool, size),
            runner=TaskRunner(self.app, hostname="one@here"),
            options=EngineOptions(queues=["celery"], hostname="one@here", concurrency=size),
        )
        self.reason: list[str] = []
        self._thread = threading.Thread(target=lambda: self.reason.append(self.engine.run()))

    def start(self) -> None:
        self._thread.start()

    def ended(self) -> str:
        self._thread.join(30)
        assert self.reason, "it did not end"
        return self.reason[0]

    def close(self) -> None:
        self.go.set()
        self.engine.stop(0)
        if self._thread.ident is not None:
            self._thread.join(30)
        self.app.close()


@pytest.fixture(params=["threads", "asyncio"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.node.name, request.param, 4)
    yield made
    made.close()


def test_a_restart_is_not_lost_behind_other_queues(bench: Bench) -> None:
    bench.app.send_task("hold", (1,))
    bench.start()
    eventually(lambda: bench.ran == [1])
    bench.engine.watch(["other"])
    bench.engine.retire("restart")
    bench.go.set()
    assert bench.ended() == "restart"


def test_queues_that_change_while_they_change_are_read(bench: Bench) -> None:
    bench.consumer.at_watch = lambda: bench.engine.watch(["last"])
    bench.start()
    bench.engine.watch(["first"])
    assert bench.app.send_task("note", (7,), queue="last").get(timeout=30) == 7


def test_fewer_slots_while_some_are_taken(bench: Bench) -> None:
    for number in range(3):
        bench.app.send_task("hold", (number,))
    bench.start()
    eventually(lambda: len(bench.ran) == 3)
    # Between looking for a free slot and taking it.
    bench.consumer.at_begin = lambda: bench.engine.resize(1)
    results = [bench.app.send_task("hold", (number,)) for number in (3, 4)]
    eventually(lambda: len(bench.ran) >= 4)
    bench.go.set()
    assert [each.get(timeout=30) for each in results] == [3, 4]
    assert sorted(bench.ran) == [0, 1, 2, 3, 4]
    bench.engine.stop()
    assert bench.ended() == "stopped"


def test_a_broker_that_is_away_does_not_cut_what_runs_at_the_end(bench: Bench) -> None:
    held = bench.app.send_task("hold", (1,))
    bench.start()
    eventually(lambda: bench.ran == [1])
    bench.consumer.away = True
    bench.app.send_task("note", (2,))
    eventually(lambda: 2 in bench.ran)
    bench.engine.stop(20)
    # Longer than it tries to give back what it has.
    assert not bench.go.wait(4)
    bench.consumer.away = False
    bench.go.set()
    assert bench.ended() == "stopped"
    assert held.get(timeout=30) == 1
    assert sorted(bench.ran) == [1, 2]
