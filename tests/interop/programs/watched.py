"""A program for Celery, whose worker Flower watches; the workers of both run it as it is."""

import os
import time

from celery import Celery

app = Celery("watched", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="hold")
def hold(path):
    open(path + ".started", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"


@app.task(name="fail")
def fail():
    raise ValueError("no")


@app.task(name="again", bind=True)
def again(self):
    if not self.request.retries:
        # Later than Celery tells of it: told after the success, it is what Flower shows for ever.
        raise self.retry(countdown=1.0)
    return "ok"
