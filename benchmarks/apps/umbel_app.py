"""The benchmark's tasks for Umbel."""

import os
import time

from umbel import Umbel

url = os.environ.get("BENCH_URL")
app = Umbel("bench", broker=os.environ.get("BENCH_BROKER", url), backend=url)
app.conf.history_file = os.environ.get("BENCH_HISTORY")


@app.task(name="noop")
def noop() -> None:
    return None


@app.task(name="count")
def count(values: list[None]) -> int:
    return len(values)


@app.task(name="work")
def work(seconds: float) -> None:
    time.sleep(seconds)
