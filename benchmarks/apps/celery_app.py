"""The benchmark's tasks for Celery."""

import os
import time

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_URL"], backend=os.environ["BENCH_URL"])


@app.task(name="noop")
def noop():
    return None


@app.task(name="work")
def work(seconds):
    time.sleep(seconds)
