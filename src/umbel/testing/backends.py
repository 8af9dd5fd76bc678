"""The conformance suite that every result backend must pass, a third party's too.

Write a class in a test file of your own, and pytest finds the tests in it::

    class TestMine(BackendContract):
        driver = "mypackage.results:MyBackend"        # called as MyBackend(url, options={...}, clock=...)

        @pytest.fixture(autouse=True)
        def _url(self, tmp_path):
            self.url = f"mine:///{tmp_path}/store"    # an empty store for each test

The suite calls a backend from several threads, and makes several backends of one URL that must see the same store.
Records may be expired by the given clock (then :meth:`~umbel.interfaces.ResultBackend.expire` deletes them) or by the
store's own: the tests let the fake clock pass the time and then ask, for some real seconds, until a record is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from umbel.interfaces import ChordPart, ChordStore, Clock, ResultBackend, ResultRecord, ResultWatcher
from umbel.states import ALL_STATES, replaces
from umbel.testing.broker_base import load, until
from umbel.testing.clock import FakeClock


def record(task_id: str, state: str = "SUCCESS", payload: bytes = b"{}", expires: float | None = 3600) -> ResultRecord:
    """Return a record to store."""
    return ResultRecord(task_id=task_id, state=state, payload=payload, expires=expires)


def part(index: int | None, task_id: str = "", payload: bytes = b"", expires: float | None = 3600) -> ChordPart:
    """Return one member's contribution, in the form of Celery's."""
    id = task_id or f"t{index}"
    content = payload or f'[1, "{id}", "SUCCESS", {index or 0}]'.encode()
    return ChordPart(group_id="g", index=index, task_id=id, state="SUCCESS", payload=content, expires=expires)


class BackendBase:
    """Makes backends for one test and closes them after it."""

    driver: ClassVar[str]  # "package.module:Class" of the driver
    url: str  # an empty store, the same for the whole of one test

    clock: FakeClock

    def make(self, clock: Clock, **options: Any) -> ResultBackend:
        """Return a new, unopened backend. Two of one test reach the same store."""
        backend: ResultBackend = load(self.driver)(self.url, options=options, clock=clock)
        return backend

    @pytest.fixture(autouse=True)
    def _url(self) -> None:
        """Override this to give each test the ``url`` of an empty store."""

    @pytest.fixture(autouse=True)
    def _closing(self, _url: None) -> Iterator[None]:
        self.clock = FakeClock()
        self._opened: list[Any] = []
        yield
        for opened in reversed(self._opened):
            opened.close()

    def open(self) -> ResultBackend:
        """Return an opened backend; it is closed after the test."""
        backend = self.make(self.clock)
        self._opened.append(backend)
        backend.open()
        return backend

    @pytest.fixture
    def backend(self, _closing: None) -> ResultBackend:
        """An open backend on the test's clock."""
        return self.open()

    def watcher(self, backend: ResultBackend) -> ResultWatcher:
        """Return a watcher that is closed after the test."""
        watcher = backend.watcher()
        self._opened.append(watcher)
        return watcher


class RecordTests(BackendBase):
    """One record per task, and a final one stays."""

    def test_an_unknown_id_is_absent(self, backend: ResultBackend) -> None:
        assert dict(backend.fetch(["nobody"])) == {}
        assert dict(backend.fetch([])) == {}

    def test_store_and_fetch(self, backend: ResultBackend) -> None:
        assert backend.store(record("t", payload=b'{"result": "\xc5\xbe"}'))
        assert dict(backend.fetch(["t"])) == {"t": b'{"result": "\xc5\xbe"}'}

    @pytest.mark.parametrize("content", [b"", b"\x00\xff", b"x" * 1024 * 1024], ids=["empty", "binary", "1 MiB"])
    def test_any_payload(self, backend: ResultBackend, content: bytes) -> None:
        assert backend.store(record("úloha 1:{x}", payload=content))
        assert dict(backend.fetch(["úloha 1:{x}"])) == {"úloha 1:{x}": content}

    def test_fetch_many(self, backend: ResultBackend) -> None:
        for number in range(50):
            backend.store(record(f"t{number}", payload=b"%d" % number))
        found = backend.fetch([f"t{number}" for number in range(60)])
        assert dict(found) == {f"t{number}": b"%d" % number for number in range(50)}

    @pytest.mark.parametrize("old", sorted(ALL_STATES | {"PROGRESS"}))
    def test_what_replaces_what(self, backend: ResultBackend, old: str) -> None:
        for new in sorted(ALL_STATES | {"PROGRESS"}):
            id = f"{old}-{new}"
            assert backend.store(record(id, old, b"old"))
            allowed = replaces(new, old)
            assert backend.store(record(id, new, b"new")) is allowed, (old, new)
            assert dict(backend.fetch([id])) == {id: b"new" if allowed else b"old"}, (old, new)

    def test_store_many_at_once(self, backend: ResultBackend) -> None:
        assert backend.store_all([]) == 0
        backend.store(record("t3", payload=b"first"))
        batch = [record(f"t{number}", payload=b"%d" % number) for number in range(100)]
        assert backend.store_all(batch) == 99
        found = backend.fetch([f"t{number}" for number in range(100)])
        assert dict(found) == {f"t{number}": b"first" if number == 3 else b"%d" % number for number in range(100)}

    def test_many_at_once_of_one_task_are_stored_in_order(self, backend: ResultBackend) -> None:
        states = ("STARTED", "FAILURE", "STARTED", "SUCCESS", "FAILURE")
        assert backend.store_all([record("t", state, state.encode()) for state in states]) == 3
        assert dict(backend.fetch(["t"])) == {"t": b"SUCCESS"}

    def test_one_success_of_many_threads(self, backend: ResultBackend) -> None:
        with ThreadPoolExecutor(8) as pool:
            stored = list(pool.map(lambda number: backend.store(record("t", payload=b"%d" % number)), range(16)))
        assert stored.count(True) == 1
        assert dict(backend.fetch(["t"])) == {"t": b"%d" % stored.index(True)}

    def test_forget(self, backend: ResultBackend) -> None:
        for id in ("a", "b", "c"):
            backend.store(record(id))
        backend.forget(["a", "b", "nobody"])
        backend.forget([])
        assert set(backend.fetch(["a", "b", "c"])) == {"c"}
        assert backend.store(record("a", "STARTED"))

    def test_a_record_dies_after_its_time(self, backend: ResultBackend) -> None:
        backend.store(record("short", expires=0.05))
        backend.store(record("long", expires=600))
        backend.store(record("ever", expires=None))
        self.clock.advance(0.06)
        until(lambda: set(backend.fetch(["short", "long", "ever"])) == {"long", "ever"})
        assert backend.store(record("short", "STARTED"))

    def test_expire_deletes_what_is_over(self, backend: ResultBackend) -> None:
        for number in range(5):
            backend.store(record(f"short{number}", expires=0.05))
        backend.store(record("long", expires=600))
        self.clock.advance(0.06)
        first = backend.expire(3)
        assert first in (0, 3), "either the store does it, or the driver deletes up to the limit"
        assert backend.expire() == (2 if first else 0)
        assert backend.expire() == 0
        until(lambda: set(backend.fetch(["long", *(f"short{number}" for number in range(5))])) == {"long"})

    def test_another_backend_sees_it(self, backend: ResultBackend) -> None:
        backend.store(record("t", payload=b"1"))
        other = self.open()
        assert dict(other.fetch(["t"])) == {"t": b"1"}
        assert other.location() == backend.location()

    def test_open_and_close_twice(self) -> None:
        backend = self.make(self.clock)
        for _ in range(2):
            backend.open()
            backend.open()
            backend.store(record("t"))
            assert set(backend.fetch(["t"])) == {"t"}
            backend.close()
            backend.close()


class GroupTests(BackendBase):
    """Descriptions of groups."""

    def test_save_fetch_forget(self, backend: ResultBackend) -> None:
        assert backend.fetch_group("g") is None
        backend.save_group("g", b"\x001", expires=3600)
        backend.save_group("h", b"h", expires=None)
        assert backend.fetch_group("g") == b"\x001"
        backend.save_group("g", b"2", expires=3600)
        assert backend.fetch_group("g") == b"2"
        backend.forget_group("g")
        backend.forget_group("g")
        assert (backend.fetch_group("g"), backend.fetch_group("h")) == (None, b"h")

    def test_a_group_is_no_task(self, backend: ResultBackend) -> None:
        backend.save_group("x", b"group", expires=3600)
        assert dict(backend.fetch(["x"])) == {}
        backend.store(record("x", payload=b"task"))
        assert backend.fetch_group("x") == b"group"

    def test_it_dies_after_its_time(self, backend: ResultBackend) -> None:
        backend.save_group("g", b"g", expires=0.05)
        self.clock.advance(0.06)
        until(lambda: backend.fetch_group("g") is None)


class ChordTests(BackendBase):
    """Each member counts once, and exactly one part may publish the body."""

    def _chord(self, backend: ResultBackend, size: int) -> ChordStore:
        chord = backend.chord("g")
        chord.begin(size, expires=3600)
        return chord

    def test_complete_once_all_parts_are_in(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 3)
        assert chord.add(part(2)) is None
        assert chord.add(part(0)) is None
        assert chord.add(part(1))
        assert list(chord.parts()) == [part(index).payload for index in range(3)]

    def test_order_is_by_number(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 300)
        for index in reversed(range(300)):
            claim = chord.add(part(index))
        assert claim
        assert list(chord.parts()) == [part(index).payload for index in range(300)]

    def test_a_repeated_part_counts_once(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 2)
        assert chord.add(part(0)) is None
        assert chord.add(part(0)) is None
        assert chord.add(part(0, payload=b'[1, "t0", "SUCCESS", "another value"]')) is None
        assert chord.add(part(1))
        assert list(chord.parts()) == [part(0).payload, part(1).payload]

    def test_its_time_begins_anew_with_each_part(self, backend: ResultBackend) -> None:
        chord = backend.chord("g")
        chord.begin(3, expires=60)
        for index in range(2):
            self.clock.advance(40)
            assert chord.add(part(index, expires=60)) is None
        self.clock.advance(40)
        assert chord.add(part(2, expires=60)), "members that take long outlived their chord"
        assert list(chord.parts()) == [part(index).payload for index in range(3)]

    def test_members_may_share_an_index(self, backend: ResultBackend) -> None:
        """Celery numbers the members of a group inside the header by themselves."""
        chord = self._chord(backend, 3)
        assert chord.add(part(0, "first")) is None
        assert chord.add(part(0, "second")) is None
        assert chord.add(part(0, "first")) is None
        assert chord.add(part(1))
        assert len(list(chord.parts())) == 3

    def test_an_extended_chord_waits_for_more(self, backend: ResultBackend) -> None:
        chord = backend.chord("g")
        chord.extend(1)
        chord.begin(1, expires=3600)
        assert chord.add(part(0)) is None
        chord.extend(1)
        assert chord.add(part(None, "a")) is None
        assert chord.add(part(1))
        assert len(list(chord.parts())) == 3

    def test_a_closed_chord_may_begin_anew(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 1)
        for _ in range(2):
            claim = chord.add(part(0))
            assert claim
            chord.close(claim)
            assert chord.add(part(0)) is None
            chord.begin(1, expires=3600)

    def test_members_without_an_index_count_by_task(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 2)
        assert chord.add(part(None, "a")) is None
        assert chord.add(part(None, "a")) is None
        assert chord.add(part(None, "b"))
        assert len(list(chord.parts())) == 2

    def test_complete_until_closed(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 2)
        chord.add(part(0))
        claim = chord.add(part(1))
        assert claim
        assert chord.add(part(1)) == claim
        assert backend.chord("g").add(part(1)) == claim
        assert list(chord.parts()) == [part(0).payload, part(1).payload]
        chord.close(claim)
        assert chord.add(part(1)) is None
        assert list(chord.parts()) == []

    def test_another_part_does_not_own_the_claim(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 2)
        chord.add(part(0))
        claim = chord.add(part(1))
        assert chord.add(part(0)) is None
        assert chord.add(part(1)) == claim

    def test_closing_again_does_nothing(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 1)
        claim = chord.add(part(0))
        assert claim
        chord.close("t9:9")
        assert chord.add(part(0)) == claim
        chord.close(claim)
        chord.close(claim)
        assert chord.add(part(0)) is None

    def test_sixteen_threads_and_one_claim(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 16)
        with ThreadPoolExecutor(16) as pool:
            claims = [claim for claim in pool.map(lambda index: chord.add(part(index)), range(16)) if claim]
        assert len(claims) == 1
        assert len(list(chord.parts())) == 16

    def test_chords_are_apart(self, backend: ResultBackend) -> None:
        self._chord(backend, 1)
        other = backend.chord("h")
        other.begin(2, expires=3600)
        assert backend.chord("g").add(part(0))
        assert list(other.parts()) == []

    def test_a_chord_without_an_end_stays_closed(self, backend: ResultBackend) -> None:
        chord = backend.chord("g")
        chord.begin(1, expires=None)
        claim = chord.add(part(0, expires=None))
        assert claim
        chord.close(claim)
        self.clock.advance(3600)
        assert chord.add(part(0, expires=None)) is None

    def test_forget_group_deletes_it(self, backend: ResultBackend) -> None:
        chord = self._chord(backend, 2)
        chord.add(part(0))
        backend.forget_group("g")
        assert list(chord.parts()) == []
        assert chord.add(part(1)) is None


class WatcherTests(BackendBase):
    """Waiting for results without asking again and again."""

    def test_what_is_there_is_reported(self, backend: ResultBackend) -> None:
        backend.store(record("t", payload=b"1"))
        watcher = self.watcher(backend)
        watcher.add(["t", "other"])
        assert list(watcher.receive(10.0)) == [("t", b"1")]

    def test_what_comes_is_reported(self, backend: ResultBackend) -> None:
        watcher = self.watcher(backend)
        watcher.add(["a", "b"])
        watcher.receive(0.0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._until_final, watcher, 2)
            for id in ("a", "elsewhere", "b"):
                backend.store(record(id, "STARTED", b"started"))
                backend.store(record(id, payload=id.encode()))
            assert waiting.result(20) == {"a": b"a", "b": b"b"}

    def test_another_backend_reports_it(self, backend: ResultBackend) -> None:
        watcher = self.watcher(self.open())
        watcher.add(["a"])
        watcher.receive(0.0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._until_final, watcher, 1)
            backend.store(record("a", payload=b"a"))
            assert waiting.result(20) == {"a": b"a"}

    @staticmethod
    def _until_final(watcher: ResultWatcher, count: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}

        def receive() -> bool:
            found.update((id, payload) for id, payload in watcher.receive(5.0) if payload != b"started")
            return len(found) == count

        until(receive)
        return found

    def test_ids_may_be_added_while_it_waits(self, backend: ResultBackend) -> None:
        watcher = self.watcher(backend)
        backend.store(record("late", payload=b"1"))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._until_final, watcher, 1)
            watcher.add(["late"])
            assert waiting.result(20) == {"late": b"1"}

    def test_discarded_ids_are_not_reported(self, backend: ResultBackend) -> None:
        watcher = self.watcher(backend)
        watcher.add(["a", "b"])
        watcher.receive(0.0)
        watcher.discard(["a", "nobody"])
        backend.store(record("a"))
        backend.store(record("b"))
        assert self._until_final(watcher, 1) == {"b": b"{}"}

    def test_wake_ends_a_wait(self, backend: ResultBackend) -> None:
        watcher = self.watcher(backend)
        watcher.add(["a"])
        watcher.receive(0.0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(watcher.receive, 60.0)
            watcher.wake()
            assert list(waiting.result(10)) == []

    def test_many_ids(self, backend: ResultBackend) -> None:
        watcher = self.watcher(backend)
        ids = [f"t{number}" for number in range(500)]
        watcher.add(ids[:250])
        for id in ids:
            backend.store(record(id, payload=id.encode()))
        watcher.add(ids[250:])
        assert self._until_final(watcher, 500) == {id: id.encode() for id in ids}

    def test_watchers_are_apart(self, backend: ResultBackend) -> None:
        one, two = self.watcher(backend), self.watcher(backend)
        one.add(["a"])
        two.add(["b"])
        backend.store(record("a"))
        backend.store(record("b"))
        assert (self._until_final(one, 1), self._until_final(two, 1)) == ({"a": b"{}"}, {"b": b"{}"})


class BackendContract(RecordTests, GroupTests, ChordTests, WatcherTests):
    """All that a result backend must do. See the module's docstring for how to use it."""
