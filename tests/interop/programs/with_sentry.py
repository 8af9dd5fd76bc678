"""A program for Celery with sentry-sdk's integration; prints what Sentry would have been sent."""

import json

import sentry_sdk
from celery import Celery
from celery.contrib.testing import tasks as _ping  # noqa: F401
from celery.contrib.testing.worker import start_worker
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport


class Kept(Transport):
    envelopes = []

    def capture_envelope(self, envelope):
        self.envelopes.append(envelope)


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    transport=Kept,
    traces_sample_rate=1.0,
    integrations=[CeleryIntegration()],
    default_integrations=False,
)
app = Celery("shop", broker="memory://", backend="cache+memory://")


@app.task
def charge(order):
    return order * 2


@app.task
def refuse(order):
    raise ValueError(f"order {order} is refused")


with start_worker(app), sentry_sdk.start_transaction(name="checkout") as checkout:
    assert charge.delay(21).get(timeout=10) == 42
    failed = refuse.delay(7)
    assert isinstance(failed.get(timeout=10, propagate=False), ValueError)
sentry_sdk.flush()

items = [item.payload.json for envelope in Kept.envelopes for item in envelope.items if item.payload.json]
print(
    json.dumps(
        {
            "trace": checkout.trace_id,
            "transactions": [
                [each["transaction"], each["contexts"]["trace"]["op"], each["contexts"]["trace"]["trace_id"]]
                for each in items
                if each.get("type") == "transaction"
            ],
            "errors": [
                [
                    each["transaction"],
                    each["exception"]["values"][-1]["value"],
                    each["extra"]["celery-job"]["task_name"],
                ]
                for each in items
                if "exception" in each
            ],
            "published": [
                span["description"]
                for each in items
                if each.get("transaction") == "checkout"
                for span in each["spans"]
                if span["op"] == "queue.submit.celery"
            ],
        }
    )
)
