"""Placing, pricing and paying."""

import os
import time
from decimal import Decimal

from celery import chain, chord, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger
from shop.celery import app
from shop.types import Money

from .errors import CardDeclined, GatewayDown, OutOfStock, Stumbled

logger = get_task_logger(__name__)


@app.task
def price(item, count=1):
    return len(item) * count


@app.task
def discount(amount, percent):
    return amount - amount * percent // 100


@shared_task
def total(amounts):
    return sum(amounts)


@shared_task(bind=True)
def place(self, *args, **kwargs):
    """Return the order as it came."""
    logger.info("order of %d things", len(args))
    print("printed by a task")
    return {"args": list(args), "kwargs": kwargs, "types": [type(each).__name__ for each in args]}


@app.task(name="orders.pay", bind=True, autoretry_for=(GatewayDown,), retry_backoff=1, retry_jitter=False,
          retry_kwargs={"max_retries": 2})  # fmt: skip
def pay(self, order, failures):
    if self.request.retries < failures:
        raise GatewayDown("no answer", self.request.retries)
    return [order, self.request.retries, self.max_retries]


@app.task(bind=True, max_retries=1)
def capture(self, order, how):
    if how == "exc":
        try:
            raise CardDeclined(order, 7)
        except CardDeclined as exc:
            raise self.retry(exc=exc, countdown=0.2)
    if how == "plain":
        raise self.retry(countdown=0.2)
    if how == "changed" and not self.request.retries:
        raise self.retry(args=(order + 1, how), kwargs={}, countdown=0.2, queue="slow", priority=4)
    if how == "returned" and not self.request.retries:
        return repr(type(self.retry(countdown=0.2, throw=False)).__name__)
    return [order, how, self.request.retries]


@app.task(throws=(OutOfStock,))
def check(item):
    raise OutOfStock(item, 0)


@app.task
def decline(card):
    raise CardDeclined(card, 5)


@app.task
def stumble():
    raise Stumbled("he", code=9)


@app.task(bind=True)
def end(self, how):
    if how == "ignore":
        self.update_state(state="SHIPPED", meta={"by": "bike"})
        raise Ignore
    raise Reject("not here", requeue=False)


@app.task(bind=True)
def checkout(self, items):
    """Become something larger."""
    raise self.replace(chord([price.s(item) for item in items], total.s()))


@app.task(bind=True)
def checkout_chain(self, item):
    return self.replace(chain(price.s(item), discount.s(50)))


@app.task(bind=True)
def split(self, items):
    """Send others from within a task."""
    sent = group(price.s(item) for item in items).apply_async()
    last = discount.delay(100, 10)
    return [len(sent), last.id == self.request.children[-1].id]


@app.task(bind=True)
def ship(self, flag):
    """Tell how far it is, and go on when the client has seen it."""
    for done in range(3):
        self.update_state(state="PROGRESS", meta={"done": done, "of": 3})
    wait_for(flag)
    return "shipped"


@app.task(soft_time_limit=0.5)
def slow_report(patient):
    try:
        time.sleep(20)
    except SoftTimeLimitExceeded:
        if not patient:
            raise
        return "a part"


@app.task(time_limit=1)
def stuck():
    time.sleep(20)


@app.task(ignore_result=True)
def audit(what):
    return what


@app.task
def refund(money):
    return Money(-money.cents) if isinstance(money, Money) else Decimal(str(money)) * -1


@app.task(typing=False)
def loose(*args):
    return len(args)


@app.task(bind=True, track_started=True, acks_late=True, shadow_name=lambda self, args, kwargs, options: "renamed")
def tracked(self, flag):
    wait_for(flag)
    return self.AsyncResult(self.request.id).state


@app.task
def weird(kind):
    return {"set": {1}, "object": object(), "bytes": b"\xff", "tuple": (1, (2,)), "text": "ü\n\x00"}[kind]


def wait_for(flag):
    """Wait until the client has made a file."""
    deadline = time.monotonic() + 30
    while not os.path.exists(flag):
        assert time.monotonic() < deadline, flag
        time.sleep(0.01)
