"""Spans and metrics that processes have left in a file each: one JSON object in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: What the app of every program does first: have its spans and, at the end, its metrics written.
EXPORT = """
import atexit, json, os, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

def export():
    out = open(os.path.join(os.environ["SPANS"], f"{os.getpid()}.jsonl"), "a", buffering=1)
    provider = TracerProvider()
    line = lambda span: json.dumps(json.loads(span.to_json())) + "\\n"
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out, formatter=line)))
    trace.set_tracer_provider(provider)
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    def leave(**_):
        found = reader.get_metrics_data()
        if found is not None:
            out.write(json.dumps({"metrics": json.loads(found.to_json())}) + "\\n")
    return leave
"""

SHOP = (
    EXPORT
    + """
from umbel import Umbel, chain, chord
from umbel.contrib.opentelemetry import instrument
from umbel.signals import worker_process_init, worker_process_shutdown

app = Umbel("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
instrument(app)

@worker_process_init.connect(weak=False)
def begin(**_):
    worker_process_shutdown.connect(export(), weak=False)

@app.task(name="shop.add")
def add(x, y):
    with trace.get_tracer("shop").start_as_current_span("inside"):
        return x + y

@app.task(name="shop.total")
def total(values): return sum(values)

@app.task(name="shop.bad")
def bad(): raise ValueError("no")

@app.task(name="shop.told")
def told(task_id): pass

@app.task(name="shop.expected", throws=(KeyError,))
def expected(): raise KeyError("no")

@app.task(name="shop.flaky", bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 1:
        raise self.retry(countdown=0.1, exc=ValueError("again"))
    return "ok"

@app.task(name="shop.outer")
def outer(): add.delay(1, 1)

@app.task(name="shop.aio")
async def aio():
    import asyncio
    await asyncio.sleep(0.01)
    add.delay(1, 1)
"""
)

CELERY_SHOP = (
    EXPORT
    + """
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry.instrumentation.celery import CeleryInstrumentor

app = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])

@worker_process_init.connect(weak=False)
def begin(**_):
    worker_process_shutdown.connect(export(), weak=False)
    CeleryInstrumentor().instrument()

@app.task(name="shop.add")
def add(x, y): return x + y
"""
)


class Spans:
    """What was left in a folder, in the order of the spans' beginnings."""

    def __init__(self, folder: Path) -> None:
        self.spans: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        for file in folder.glob("*.jsonl"):
            for line in file.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    continue  # it is being written
                found = json.loads(line)
                if "metrics" in found:
                    self.metrics += _points(found["metrics"])
                else:
                    self.spans.append(found)
        self.spans.sort(key=lambda span: str(span["start_time"]))

    def all(self, kind: str, task: str = "") -> list[dict[str, Any]]:
        """Return the spans of this kind (PRODUCER, CONSUMER, …) and task."""
        return [
            span
            for span in self.spans
            if span["kind"] == f"SpanKind.{kind}"
            and task in ("", span["attributes"].get("umbel.task.name"), span["attributes"].get("celery.task_name"))
        ]

    def one(self, kind: str, task: str = "") -> dict[str, Any]:
        """Return the only one."""
        (span,) = self.all(kind, task)
        return span

    def named(self, name: str) -> dict[str, Any]:
        """Return the only one of this name."""
        (span,) = [span for span in self.spans if span["name"] == name]
        return span

    def points(self, name: str) -> list[dict[str, Any]]:
        """Return the points of one metric, of all processes."""
        return [point for point in self.metrics if point["metric"] == name]


def _points(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"metric": metric["name"], "unit": metric["unit"], **point}
        for resource in data["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
        for point in metric["data"]["data_points"]
    ]


def id_of(span: dict[str, Any]) -> str:
    """Return the id of a span."""
    return str(span["context"]["span_id"])


def trace_of(span: dict[str, Any]) -> str:
    """Return the id of its trace."""
    return str(span["context"]["trace_id"])


def follows(span: dict[str, Any], parent: dict[str, Any]) -> bool:
    """Say whether a span is the child of another and linked to it."""
    linked = [link["context"]["span_id"] for link in span["links"]]
    return bool(span["parent_id"] == id_of(parent) and trace_of(span) == trace_of(parent) and id_of(parent) in linked)
