"""A program for Celery with OpenTelemetry's instrumentation; prints the spans."""

import json

from celery import Celery
from celery.contrib.testing import tasks as _ping  # noqa: F401
from celery.contrib.testing.worker import start_worker
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()
app = Celery("shop", broker="memory://", backend="cache+memory://")


@app.task
def charge(order):
    return order * 2


@app.task
def refuse(order):
    raise ValueError(f"order {order} is refused")


with start_worker(app, perform_ping_check=False), trace.get_tracer("shop").start_as_current_span("checkout"):
    assert charge.delay(21).get(timeout=10) == 42
    assert isinstance(refuse.delay(7).get(timeout=10, propagate=False), ValueError)

print(
    json.dumps(
        [
            {
                "name": span.name,
                "kind": span.kind.name,
                "trace": span.context.trace_id,
                "status": span.status.status_code.name,
                "events": [dict(event.attributes).get("exception.message") for event in span.events],
                "attributes": dict(span.attributes),
            }
            for span in spans.get_finished_spans()
        ]
    )
)
