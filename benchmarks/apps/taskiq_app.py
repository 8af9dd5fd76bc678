"""The benchmark's tasks for Taskiq."""

import os

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

broker = ListQueueBroker(os.environ["BENCH_URL"]).with_result_backend(RedisAsyncResultBackend(os.environ["BENCH_URL"]))


@broker.task(task_name="noop")
async def noop() -> None:
    return None
