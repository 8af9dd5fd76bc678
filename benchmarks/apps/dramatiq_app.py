"""The benchmark's tasks for Dramatiq."""

import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

if "BENCH_BROKER" in os.environ:
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    broker = RabbitmqBroker(url=os.environ["BENCH_BROKER"], confirm_delivery=True)
else:
    broker = RedisBroker(url=os.environ["BENCH_URL"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_URL"])))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop():
    return None


@dramatiq.actor(store_results=True)
def work(seconds):
    time.sleep(seconds)
