"""The benchmark's tasks for Umbel."""

import os
import time

from umbel import Umbel

app = Umbel("bench", broker=os.environ.get("BENCH_URL"), backend=os.environ.get("BENCH_URL"))


@app.task(name="noop")
def noop() -> None:
    return None


@app.task(name="work")
def work(seconds: float) -> None:
    time.sleep(seconds)
