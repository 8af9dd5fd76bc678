"""The benchmark's tasks for Celery."""

import os
import time

from celery import Celery

url = os.environ["BENCH_URL"]
app = Celery("bench", broker=os.environ.get("BENCH_BROKER", url), backend=url)
if "BENCH_BROKER" in os.environ:
    app.conf.broker_transport_options = {"confirm_publish": True}  # as the others do


@app.task(name="noop")
def noop():
    return None


@app.task(name="count")
def count(values):
    return len(values)


@app.task(name="work")
def work(seconds):
    time.sleep(seconds)
