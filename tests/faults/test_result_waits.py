"""Many wait for results while what announces them is lost: all of them are told, soon after the result is there."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, check_traces
from umbel import Umbel
from umbel.testing.proxy import Proxy

pytestmark = pytest.mark.faults

THREADS = 50
EACH = 40
EVERY = 0.1
#: Of so many faults each: resets every connection, swallows the next news, leaves connections silent for a moment.
FAULTS = ("reset", "news", "news", "silent")
#: Seconds within which a result must be seen: a lost message costs a second, a silent connection its timeout as well.
SOON = 2.0
ANSWER = 1.0


class Nuisance:
    """Disturbs the connections of a proxy, and the garbage collector, until it is told to stop."""

    def __init__(self, proxy: Proxy | None, chance: random.Random) -> None:
        self.proxy = proxy
        self.chance = chance
        self.faults = 0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._enough.wait(EVERY * self.chance.uniform(0.5, 1.5)):
            gc.collect()
            if self.proxy is None:
                continue
            what = self.chance.choice(FAULTS)
            self.faults += 1
            if what == "reset":
                self.proxy.reset()
            elif what == "news":
                # The request after which the server speaks: the answer, and what is announced with it, is lost.
                self.proxy.drop_reply(b"celery-task-meta-")
            else:
                self.proxy.swallow()
                time.sleep(EVERY)
                self.proxy.heal()

    def __enter__(self) -> Nuisance:
        thresholds = gc.get_threshold()
        # Nearly each allocation collects, so that what is only weakly held goes at the worst moments.
        gc.set_threshold(10, 2, 2)
        self._thresholds = thresholds
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._enough.set()
        self._thread.join(10)
        gc.set_threshold(*self._thresholds)
        if self.proxy is not None:
            self.proxy.heal()


@contextmanager
def client(url: str) -> Iterator[Umbel]:
    app = Umbel("waiting", broker=url, backend=url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture(params=["sqlite", "redis"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FaultSite, str, Proxy | None]]:
    """The workers and the sender speak with the store itself; those who wait use the proxy, where there is one."""
    url = request.getfixturevalue(f"{request.param}_url")
    with FaultSite(tmp_path, url).closing() as site:
        if request.param == "sqlite":
            yield site, url, None
            return
        with Proxy(url) as proxy:
            yield site, f"{proxy.url}?socket_timeout={ANSWER:g}", proxy


def test_everyone_is_told(case: tuple[FaultSite, str, Proxy | None], chance: random.Random, row: Any) -> None:
    """F27. Fifty threads, forty results each; each is returned at most two seconds after its task has ended."""
    site, url, proxy = case
    site.start("-c", "2").expect("ready.")
    seen: dict[str, tuple[int, Any]] = {}
    errors: list[BaseException] = []
    with client(url) as waiting:

        def wait(numbers: range) -> None:
            try:
                for number in numbers:
                    result = waiting.AsyncResult(site.send("plain", number, 0.003).id)
                    value = result.get(timeout=30)
                    seen[result.id] = time.monotonic_ns(), value == number * 2
            # Looked at below, where the test can fail of it.
            except BaseException as error:
                errors.append(error)

        ranges = [range(at * EACH, (at + 1) * EACH) for at in range(THREADS)]
        threads = [threading.Thread(target=wait, args=(numbers,)) for numbers in ranges]
        with Nuisance(proxy, chance) as nuisance:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(50)
        assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert not errors, errors[:3]
    ended = {attempt.task_id: attempt.ended_at for attempt in site.attempts()}
    late = [(at - ended[id]) / 1e9 for id, (at, _) in seen.items()]
    row.load = f"{THREADS} threads x {EACH} get()"
    row.faults = f"{nuisance.faults} faults, {proxy.dropped if proxy is not None else 0} answers lost; gc all the time"
    row.lost = sum(not right for _, right in seen.values()) + THREADS * EACH - len(seen)
    row.repeats, row.bound = site.duplicates(), 0
    row.recovered = max(late)
    row.check()
    # What a silent connection costs comes on top of the second that a lost message does; the rest is a busy machine's.
    assert max(late) < SOON + ANSWER + 2.0
    site.stop_all()
    check_traces(site)
