"""A class-based task that reports what it is doing."""

import os
import random
import time

from umbel import Umbel

app = Umbel("longtask", broker=os.environ.get("BROKER_URL"), backend=os.environ.get("RESULT_BACKEND"))

VERBS = ["Warming up", "Sorting", "Mending", "Loading", "Weighing"]
ADJECTIVES = ["quiet", "bright", "distant", "green", "quick"]
NOUNS = ["greenhouse", "seed drill", "rain gauge", "orchard", "barrow"]


class LongTask(app.Task):
    """Counts to a random total, saying so at every step."""

    name = "LongTask"

    def run(self, pause: float = 1.0) -> dict:
        message = ""
        total = random.randint(10, 50)
        for current in range(total):
            if not message or random.random() < 0.25:
                message = f"{random.choice(VERBS)} the {random.choice(ADJECTIVES)} {random.choice(NOUNS)}"
            self.update_state(state="PROGRESS", meta={"current": current, "total": total, "status": message})
            time.sleep(pause)
        return {"current": 100, "total": 100, "status": "Task completed!", "result": 32}


long_task = app.register_task(LongTask())
