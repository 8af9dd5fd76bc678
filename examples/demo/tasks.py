"""The tasks of the demo. No URL: messages and results live in an SQLite file."""

import time

from umbel import Umbel

app = Umbel("demo")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True)
def bake(self, loaves: int) -> str:
    """Report progress while it works."""
    for done in range(1, loaves + 1):
        time.sleep(0.05)
        self.update_state(state="PROGRESS", meta={"done": done, "total": loaves})
    return f"{loaves} loaves, still warm"


@app.task
async def greet(name: str) -> str:
    """A coroutine is a task like any other."""
    return f"hello, {name}"
