from __future__ import annotations

import asyncio
import gc
import os
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest

from umbel import listening, states
from umbel.backends.memory import MemoryBackend
from umbel.clock import SystemClock
from umbel.exceptions import DecodeError, OperationalError, TimeoutError
from umbel.interfaces import ResultRecord, ResultWatcher
from umbel.meta import Meta, encode_meta
from umbel.waiting import Waiter, waiter_for


class Watched(MemoryBackend):
    """A memory backend that counts its watchers, fails on demand and says when somebody reads."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.watchers = 0
        self.failing = 0
        self.error: Exception = OperationalError("gone")
        self.reading = threading.Semaphore(0)
        self.on_read: Callable[[], None] = lambda: None

    def fetch(self, task_ids: Collection[str], *, timeout: float | None = None) -> Mapping[str, bytes]:
        self.maybe_fail()
        return super().fetch(task_ids, timeout=timeout)

    def maybe_fail(self) -> None:
        if self.failing:
            self.failing -= 1
            raise self.error

    def watcher(self) -> Any:
        self.watchers += 1
        return Watcher(self, super().watcher())


class Watcher(ResultWatcher):
    def __init__(self, backend: Watched, real: ResultWatcher) -> None:
        self.backend = backend
        self.real = real

    def add(self, task_ids: Collection[str]) -> None:
        self.real.add(task_ids)

    def discard(self, task_ids: Collection[str]) -> None:
        self.real.discard(task_ids)

    def wake(self) -> None:
        self.real.wake()

    def close(self) -> None:
        self.real.close()

    def receive(self, timeout: float, *, patience: float | None = None) -> Sequence[tuple[str, bytes]]:
        self.backend.on_read()
        self.backend.reading.release()
        self.backend.maybe_fail()
        return self.real.receive(timeout, patience=patience)


@pytest.fixture
def backend() -> Watched:
    return Watched(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def waiter(backend: Watched) -> Waiter:
    return Waiter(lambda: backend)


class Turns(SystemClock):
    """A clock that says when the first and the second thread wait for their turn."""

    def __init__(self) -> None:
        self.follows = [threading.Event(), threading.Event()]

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        next((each for each in self.follows if not each.is_set()), threading.Event()).set()
        return super().wait(event, timeout)


def store(backend: MemoryBackend, task_id: str, result: Any = None, state: str = states.SUCCESS) -> None:
    backend.store(ResultRecord(task_id=task_id, state=state, payload=encode_meta(task_id, state, result)))


def once(action: Callable[[], None]) -> Callable[[], None]:
    left = [action]
    return lambda: left.pop()() if left else None


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run all at once and return what they returned or raised."""
    answers: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            answers[index] = functions[index]()
        except BaseException as error:
            answers[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_what_is_there_needs_no_watcher(backend: Watched, waiter: Waiter) -> None:
    store(backend, "a", 1)
    assert waiter.wait(["a"])["a"]["result"] == 1
    assert backend.watchers == 0
    assert waiter.wait([]) == {}


def test_a_result_that_comes_while_reading_ends_the_wait(backend: Watched, waiter: Waiter) -> None:
    backend.on_read = once(lambda: store(backend, "a", 2))
    assert waiter.wait(["a"], 10)["a"]["result"] == 2
    assert waiter._thread is None, "a lone waiter reads by itself"


def test_one_connection_serves_many(backend: Watched, waiter: Waiter) -> None:
    for number in range(20):
        backend.on_read = once(lambda number=number: store(backend, f"t{number}", number))  # type: ignore[misc]
        assert waiter.wait([f"t{number}"], 10)[f"t{number}"]["result"] == number
    assert backend.watchers == 1


def test_many_threads_wait_at_once(backend: Watched, waiter: Waiter) -> None:
    ids = [f"t{number}" for number in range(40)]

    def storing() -> None:
        assert backend.reading.acquire(timeout=10)
        for task_id in ids:
            store(backend, task_id, task_id.upper())

    waits = [lambda task_id=task_id: waiter.wait([task_id], 20)[task_id]["result"] for task_id in ids]
    assert in_threads(*waits, storing)[:-1] == [task_id.upper() for task_id in ids]
    assert backend.watchers == 1


def test_the_lead_passes_to_another_when_the_leader_leaves(backend: Watched, waiter: Waiter) -> None:
    order: list[str] = []
    first_reads = threading.Event()
    backend.on_read = first_reads.set

    def first() -> None:
        waiter.wait(["first"], 20)
        order.append("first")
        store(backend, "second")

    def second() -> None:
        assert first_reads.wait(10)
        store(backend, "first")
        waiter.wait(["second"], 20)
        order.append("second")

    in_threads(first, second)
    assert order == ["first", "second"]


def test_the_lead_passes_over_one_who_has_its_result_already(backend: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is called upon to lead may leave at once, and must call the next."""
    monkeypatch.setattr(listening, "READ_SECONDS", 60.0)  # nobody wakes by itself
    clock = Turns()
    waiter = Waiter(lambda: backend, clock=clock)
    first_follows, second_follows = clock.follows
    ended = [threading.Event(), threading.Event()]
    reading = threading.Event()

    def at_read() -> None:
        reading.set()
        if waiter._listener._known == {"a", "b", "c"} and not waiter._listener._fresh:
            assert first_follows.wait(10) and second_follows.wait(10)
            store(backend, "a")
            store(backend, "b")
            backend.on_read = lambda: None

    backend.on_read = at_read

    def leading() -> None:
        waiter.wait(["a"], 15)
        ended[0].set()

    def following() -> None:
        assert reading.wait(10)
        waiter.wait(["b"], 15)
        ended[1].set()

    def last() -> Any:
        assert first_follows.wait(10)
        return waiter.wait(["c"], 15)["c"]["status"]

    def storing() -> None:
        assert all(event.wait(10) for event in ended)
        store(backend, "c")

    assert in_threads(leading, following, last, storing) == [None, None, states.SUCCESS, None]


def test_a_callers_own_code_does_not_hold_up_others(backend: Watched, waiter: Waiter) -> None:
    store(backend, "slow", 0, "PROGRESS")
    entered, leave = threading.Event(), threading.Event()

    def slow(meta: Meta) -> None:
        if meta["status"] == "BUSY":
            entered.set()
            assert leave.wait(10)

    def one() -> Any:
        return waiter.wait(["slow"], 20, on_message=slow)["slow"]["result"]

    def other() -> Any:
        assert backend.reading.acquire(timeout=10)
        store(backend, "slow", 1, "BUSY")
        assert entered.wait(10)
        backend.on_read = once(lambda: store(backend, "quick", 2))
        answer = waiter.wait(["quick"], 10)["quick"]["result"]
        store(backend, "slow", 3)
        leave.set()
        return answer

    assert in_threads(one, other) == [3, 2]


def test_every_change_that_is_seen_is_told_once(backend: Watched, waiter: Waiter) -> None:
    store(backend, "a", {"p": 1}, "PROGRESS")
    steps = iter([({"p": 1}, "PROGRESS"), ({"p": 2}, "PROGRESS"), (5, states.SUCCESS)])
    backend.on_read = lambda: store(backend, "a", *next(steps))
    seen: list[tuple[str, Any]] = []
    waiter.wait(["a"], 10, on_message=lambda meta: seen.append((meta["status"], meta["result"])))
    assert seen == [("PROGRESS", {"p": 1}), ("PROGRESS", {"p": 2}), ("SUCCESS", 5)]


def test_time_runs_out(backend: Watched, waiter: Waiter) -> None:
    with pytest.raises(TimeoutError, match=r"^The operation timed out\.$"):
        waiter.wait(["never"], 0.01)
    with pytest.raises(TimeoutError):
        waiter.wait(["never"], 0)
    store(backend, "a", 1)
    assert waiter.wait(["a"], 0)["a"]["result"] == 1


def test_the_interval_callback_may_end_the_wait(waiter: Waiter) -> None:
    calls = iter([None, None, LookupError("enough")])

    def tick() -> None:
        error = next(calls)
        if error:
            raise error

    with pytest.raises(LookupError):
        waiter.wait(["never"], 10, on_interval=tick, interval=0.001)


def test_iterate_yields_in_the_order_of_readiness(backend: Watched, waiter: Waiter) -> None:
    store(backend, "b", 2)
    order = iter(["c", "a"])
    backend.on_read = lambda: store(backend, next(order))
    assert [task_id for task_id, _ in waiter.iterate(["a", "b", "c"], 10)] == ["b", "c", "a"]


def test_a_record_told_to_one_is_told_to_the_next_too(backend: Watched, waiter: Waiter) -> None:
    async def main() -> list[Any]:
        first = asyncio.ensure_future(waiter.wait_async(["a"], 20))
        await asyncio.wait([first], timeout=0.01)
        store(backend, "a", 1)
        await first
        return [(await waiter.wait_async(["a"], 20))["a"]["result"] for _ in range(3)]

    assert asyncio.run(main()) == [1, 1, 1]
    store(backend, "b", 0, "PROGRESS")
    seen: list[str] = []
    inner = [lambda: waiter.wait(["b"], 0.01, on_message=lambda meta: seen.append(meta["status"]))]

    def on_message(meta: Meta) -> None:
        if inner:
            with pytest.raises(TimeoutError):
                inner.pop()()
            store(backend, "b", 1)

    waiter.wait(["b"], 10, on_message=on_message)
    assert seen == ["PROGRESS"]


def test_stop_ends_the_wait_early(backend: Watched, waiter: Waiter) -> None:
    store(backend, "parent", KeyError("k"), states.FAILURE)
    done = waiter.wait(["parent", "child"], 10, stop=lambda _, meta: meta["status"] == states.FAILURE)
    assert list(done) == ["parent"]


def test_a_broken_connection_is_made_anew_and_everything_is_read_again(backend: Watched, waiter: Waiter) -> None:
    backend.failing = 3  # the first look, then two connections
    store(backend, "a", 1)
    assert waiter.wait(["a"], 10)["a"]["result"] == 1
    assert backend.watchers == 3


def test_an_absent_backend_is_told_to_whoever_waits_without_a_timeout(backend: Watched) -> None:
    backend.failing = 1000
    with pytest.raises(OperationalError, match="gone"):
        Waiter(lambda: backend, patience=0.0).wait(["a"])
    with pytest.raises(TimeoutError):
        Waiter(lambda: backend, patience=0.0).wait(["a"], 0.01)


def test_an_interrupted_read_drops_the_connection_and_the_lead(backend: Watched, waiter: Waiter) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    backend.on_read = once(interrupt)
    with pytest.raises(KeyboardInterrupt):
        waiter.wait(["a"], 10)
    backend.on_read = once(lambda: store(backend, "a", 1))
    assert waiter.wait(["a"], 10)["a"]["result"] == 1
    assert backend.watchers == 2


def test_a_result_that_cannot_be_read_fails_only_its_own_caller(backend: Watched, waiter: Waiter) -> None:
    def storing() -> None:
        assert backend.reading.acquire(timeout=10)
        backend.store(ResultRecord(task_id="bad", state=states.SUCCESS, payload=b"\xff"))
        store(backend, "good", 1)

    bad, good, _ = in_threads(
        lambda: waiter.wait(["bad"], 10), lambda: waiter.wait(["good"], 10)["good"]["result"], storing
    )
    assert isinstance(bad, DecodeError)
    assert good == 1


def test_coroutines_wait_without_blocking(backend: Watched, waiter: Waiter) -> None:
    async def main() -> list[Any]:
        waits = [asyncio.ensure_future(waiter.wait_async([f"t{number}"], 20)) for number in range(50)]
        await asyncio.get_running_loop().run_in_executor(None, lambda: backend.reading.acquire(timeout=10))
        for number in range(50):
            store(backend, f"t{number}", number)
        return [(await each)[f"t{number}"]["result"] for number, each in enumerate(waits)]

    assert asyncio.run(main()) == list(range(50))
    assert backend.watchers == 1


def test_a_coroutine_may_run_out_of_time_or_be_cancelled(waiter: Waiter) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match="timed out"):
            await waiter.wait_async(["never"], 0.01)
        waiting = asyncio.ensure_future(waiter.wait_async(["never"]))
        await asyncio.wait([waiting], timeout=0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert not waiter._served
    assert not waiter._listener._watches


def test_a_coroutine_hears_that_a_result_cannot_be_read_or_the_backend_is_gone(backend: Watched) -> None:
    waiter = Waiter(lambda: backend, patience=0.0)
    backend.store(ResultRecord(task_id="bad", state=states.SUCCESS, payload=b"\xff"))

    async def main() -> None:
        with pytest.raises(DecodeError):
            await waiter.wait_async(["bad"])
        backend.failing = 1000
        with pytest.raises(OperationalError):
            await waiter.wait_async(["other"])
        backend.failing = 0
        backend.error = RuntimeError("a bug in a driver")
        backend.failing = 1
        with pytest.raises(RuntimeError, match="bug"):
            await waiter.wait_async(["other"])

    asyncio.run(main())


def test_threads_and_coroutines_share_the_connection(backend: Watched, waiter: Waiter) -> None:
    def thread() -> Any:
        return waiter.wait(["t"], 20)["t"]["result"]

    def loop() -> Any:
        return asyncio.run(waiter.wait_async(["c"], 20))["c"]["result"]

    def storing() -> None:
        assert backend.reading.acquire(timeout=10)
        store(backend, "c", 2)
        store(backend, "t", 1)

    assert in_threads(thread, loop, storing)[:2] == [1, 2]
    assert backend.watchers == 1


def test_callbacks_are_called_once(backend: Watched, waiter: Waiter) -> None:
    called = threading.Semaphore(0)
    answers: list[Any] = []

    def callback(done: dict[str, Meta]) -> None:
        answers.append({task_id: meta["result"] for task_id, meta in done.items()})
        called.release()

    waiter.call(["a", "b"], callback)
    store(backend, "a", 1)
    store(backend, "b", 2)
    assert called.acquire(timeout=10)
    assert answers == [{"a": 1, "b": 2}]
    errors: list[BaseException] = []
    backend.store(ResultRecord(task_id="bad", state=states.SUCCESS, payload=b"\xff"))

    def on_error(error: BaseException) -> None:
        errors.append(error)
        called.release()

    waiter.call(["bad"], callback, on_error)
    assert called.acquire(timeout=10)
    assert isinstance(errors[0], DecodeError)
    waiter.call([], callback)
    assert called.acquire(timeout=10)
    assert answers[1:] == [{}]


def test_a_closed_waiter_opens_again(backend: Watched, waiter: Waiter) -> None:
    for number in range(2):
        backend.on_read = once(lambda number=number: store(backend, f"t{number}"))  # type: ignore[misc]
        waiter.wait([f"t{number}"], 10)
        waiter.close()
    waiter.close()
    assert backend.watchers == 2


def test_nothing_is_left_behind_by_those_who_have_left(backend: Watched, waiter: Waiter) -> None:
    with pytest.raises(TimeoutError):
        waiter.wait(["x", "y"], 0.001)
    news = waiter.iterate(["z", "w"], 10)
    backend.on_read = once(lambda: store(backend, "z"))
    assert next(news)[0] == "z"
    news.close()  # type: ignore[attr-defined]
    assert not waiter._listener._watches
    assert not waiter._listener._followers
    assert waiter._listener._leader is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_anew(backend: Watched, waiter: Waiter) -> None:
    backend.on_read = once(lambda: store(backend, "a"))
    waiter.wait(["a"], 10)
    gc.collect()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            backend.on_read = once(lambda: store(backend, "b", 5))
            if waiter.wait(["b"], 10)["b"]["result"] == 5 and backend.watchers == 2:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend.watchers == 1


def test_another_backend_has_one_waiter_of_its_own(backend: Watched) -> None:
    assert waiter_for(backend) is waiter_for(backend)
