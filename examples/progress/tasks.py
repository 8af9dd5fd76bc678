"""A task that tells how far it is, step by step."""

import os
import time

from umbel import Umbel

app = Umbel("pictures", broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_BACKEND"))


@app.task(bind=True)
def resize(self, names: list[str], pause: float = 0.5) -> int:
    for name in self.track(names, text="resizing"):
        print("resizing", name)
        time.sleep(pause)  # in place of work
    return len(names)
