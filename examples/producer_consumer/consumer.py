"""The consumer: a task that prints what it is given. ``umbel -A consumer worker -l info`` runs it."""

import os
from datetime import datetime

from umbel import Umbel

app = Umbel("consumer", broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_BACKEND"))


@app.task(ignore_result=True)
def receive(count):
    print(f"received {count} at {datetime.now()}")
