"""The slow task, and the app that carries it."""

import os
import time

from umbel import Umbel

app = Umbel("default")
app.conf.update(
    {
        "broker_url": os.environ.get("BROKER_URL"),
        "enable_utc": True,
        "result_backend": os.environ.get("RESULT_BACKEND"),
        "result_expires": 3600,
        "timezone": "Asia/Shanghai",
    }
)


@app.task
def long_task(span: int) -> bool:
    time.sleep(span)
    return True
