"""Handlers, a bound task, a retried task, progress."""

import os
import time

from umbel import Task, Umbel
from umbel.utils.log import get_task_logger

app = Umbel("tasks", broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_BACKEND"))
logger = get_task_logger(__name__)


class MyTask(Task):
    """Says how each run ended."""

    def on_success(self, retval, task_id, args, kwargs):
        print(f"task done: {retval}")
        return super().on_success(retval, task_id, args, kwargs)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        print(f"task fail, reason: {exc}")
        return super().on_failure(exc, task_id, args, kwargs, einfo)


@app.task(base=MyTask)
def add(x, y):
    return x + y


@app.task(base=MyTask)
def lookup(key):
    return {}[key]


class Adder(app.Task):
    """A task may be a class; what it needs is a name and ``run``."""

    name = "Adder"

    def run(self, a, b):
        return a + b


adder = app.register_task(Adder())


@app.task(bind=True)
def describe(self, x, y):
    logger.info("request: %s", self.request.id)
    return {"id": self.request.id, "retries": self.request.retries, "sum": x + y}


@app.task(bind=True)
def div(self, x, y, countdown=5):
    logger.info("doing div")
    try:
        result = x / y
    except ZeroDivisionError as error:
        raise self.retry(exc=error, countdown=countdown, max_retries=3)
    return result


@app.task(bind=True)
def foobar(self, pause=0.3):
    for i in range(1, 11):
        time.sleep(pause)
        self.update_state(state="PROGRESS", meta={"p": i * 10})
    return "finish"
