"""Large groups and chords: time grows with their number, and a client keeps signatures, results and one batch.

Measured in the processor's time of the client and the worker, which other programs on the machine do not change.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import tree
from support import environment, worker
from umbel import Umbel, chain, chord, group, signature

SMALL, LARGE = 2_500, 10_000
#: Four times as many tasks may take so many times as long; what grows with the square takes sixteen times.
MOST = 6

TASKS = """
import os
from umbel import Umbel

app = Umbel("scale", broker=os.environ["URL"], backend=os.environ["RESULTS"])

@app.task(name="add")
def add(x, y=1):
    return x + y

@app.task(name="count")
def count(values):
    return len(values)
"""


def spent(pids: list[int]) -> float:
    """Return the seconds that the processes have computed for."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("store", ["sqlite", "redis", "rabbitmq"])
def test_time_grows_with_their_number(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{store}_url")
    results = request.getfixturevalue("redis_url") if store == "rabbitmq" else url
    (tmp_path / "scale_tasks.py").write_text(TASKS)
    env = environment(URL=url, RESULTS=results)
    with (
        Umbel("client", broker=url, backend=results, set_as_current=False) as app,
        worker("scale_tasks", "-c", "2", "-l", "info", cwd=tmp_path, env=env) as running,
    ):

        def add(number: int) -> Any:
            return signature("add", args=(number,), app=app)

        def call_group(size: int) -> None:
            values = group((add(n) for n in range(size)), app=app).apply_async().get(timeout=60)
            assert values == list(range(1, size + 1))

        def call_chord(size: int) -> None:
            body = signature("count", app=app)
            result = chord((add(n) for n in range(size)), body, app=app).apply_async()
            assert app.AsyncResult(result.id).get(timeout=60) == size

        def cost(call: Callable[[int], None], size: int) -> float:
            pids = [os.getpid(), *tree(running.process.pid)]
            before, started = spent(pids), time.perf_counter()
            call(size)
            took = spent(pids) - before
            print(
                f"{store} {call.__name__} {size}: {took:.2f} s computed, {time.perf_counter() - started:.2f} s passed"
            )
            return took

        for call in (call_group, call_chord):
            call(100)
            # A busy machine makes one of them dear now and then; a square would be there each time.
            for _ in range(3):
                few, many = cost(call, SMALL), cost(call, LARGE)
                if many < MOST * max(few, 0.1):
                    break
            assert many < MOST * max(few, 0.1), f"{call.__name__}: {few:.2f} s for {SMALL}, {many:.2f} s for {LARGE}"
        # Each message of a chain carries the rest of it, as with Celery: this does grow with the square.
        steps = [signature("add", app=app) for _ in range(1000)]
        assert chain(*steps, app=app).apply_async((0,)).get(timeout=90) == 1000


@pytest.mark.parametrize("kind", ["group", "chord"])
def test_a_client_keeps_one_batch_of_messages(kind: str, sqlite_url: str) -> None:
    def in_use() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    def beyond_the_results(size: int) -> float:
        """Return how many bytes were in use at most while it was sent, without those of the results so far."""
        seen: dict[int, int] = {}

        def members() -> Iterator[Any]:
            for number in range(size):
                if number % 250 == 0:
                    seen[number] = in_use()
                yield signature("add", args=(number, "x" * 200), app=app)

        if kind == "group":
            result = group(members(), app=app).apply_async()
        else:
            result = chord(members(), signature("count", app=app), app=app).apply_async().parent
        kept = in_use() - seen[0]
        assert len(result) == size
        return max(used - seen[0] - kept * number / size for number, used in seen.items())

    with Umbel("client", broker=sqlite_url, backend=sqlite_url, set_as_current=False) as app:
        # What is made once, such as the connection and its statements.
        group([signature("add", args=(1,), app=app)], app=app).apply_async()
        tracemalloc.start()
        try:
            few, many = beyond_the_results(2_000), beyond_the_results(8_000)
        finally:
            tracemalloc.stop()
    each = (many - few) / 6_000
    print(f"{kind}: {few / 2**20:.2f} MiB for 2,000, {many / 2**20:.2f} MiB for 8,000, {each:.0f} bytes each")
    # The signature, which may be asked for again. A message alone would be as much once more, and twice.
    assert each < 1200
