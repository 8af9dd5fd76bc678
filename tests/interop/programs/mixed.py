"""A program for Celery, run as it is by workers and clients of Celery 5.4, Celery 5.7 and Umbel on one broker."""

import os
import time

from celery import Celery

app = Celery("mixed", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.update(
    task_routes={f"mixed.{name}": {"queue": name} for name in ("celery54", "celery57", "umbel")},
)


def _visited(self, trail):
    return [*trail, self.request.hostname.partition("@")[0]]


@app.task(bind=True, name="mixed.celery54")
def celery54(self, trail):
    return _visited(self, trail)


@app.task(bind=True, name="mixed.celery57")
def celery57(self, trail):
    return _visited(self, trail)


@app.task(bind=True, name="mixed.umbel")
def umbel(self, trail):
    return _visited(self, trail)


STOPS = {"celery54": celery54, "celery57": celery57, "umbel": umbel}


@app.task(bind=True, name="mixed.anywhere")
def anywhere(self, number):
    # Long enough that no worker is done with its share before the others begin.
    time.sleep(0.005)
    return [self.request.hostname.partition("@")[0], number * 2]


@app.task(name="mixed.total")
def total(parts):
    return sum(number for _, number in parts)


@app.task(name="mixed.merge")
def merge(trails):
    return sorted(stop for trail in trails for stop in trail)


@app.task(name="mixed.fail")
def fail(trail):
    raise LookupError("lost", len(trail))


@app.task(name="mixed.failed")
def failed(request, error, traceback):
    with open(os.environ["FAILURES"], "a") as file:
        file.write(f"{type(error).__name__}{error.args}\n")
