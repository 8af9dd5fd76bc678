"""The benchmark's tasks for Huey."""

import os
import time

from huey import RedisHuey

huey = RedisHuey("bench", url=os.environ["BENCH_URL"], store_none=True)


@huey.task(name="noop")
def noop():
    return None


@huey.task(name="work")
def work(seconds):
    time.sleep(seconds)
