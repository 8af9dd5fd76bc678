"""What is in the house."""

from celery import Task, shared_task
from celery.contrib.abortable import AbortableTask
from shop.celery import app


@shared_task
def reserve(item, count):
    return [item, count, reserve.rate_limit]


@shared_task(rate_limit="20/s")
def watch(number):
    return number


@app.task
def item_count(item):
    return len(item)


@app.task
def recount(shelf):
    return shelf


@app.task(bind=True, base=AbortableTask)
def inventory(self):
    import time

    deadline = time.monotonic() + 30
    while not self.is_aborted():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return "aborted"


class Order(Task):
    """A task of before decorators."""

    name = "stock.order"
    calls = 0

    def run(self, item):
        self.calls += 1
        return [item, type(self).__name__, self.request.delivery_info["routing_key"]]


app.register_task(Order())
