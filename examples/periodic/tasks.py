"""Tasks that beat sends: run a worker, and beat beside it."""

import os

from umbel import Umbel

app = Umbel("tasks", broker=os.environ.get("BROKER_URL"))
app.config_from_object("celery_config")


@app.task(bind=True)
def period_task(self):
    print(f"period task done: {self.request.id}")


@app.task
def add(x, y):
    return x + y
