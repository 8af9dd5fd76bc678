"""The names under which metrics are served: ours, and those of two programs that boards and alerts were written for.

Counters and histograms grow with each event. Gauges are made when somebody asks: what is gone is then not served any
more, and a broker that is away leaves a gap instead of an old value.
"""

from __future__ import annotations

import platform
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase

from umbel import __version__
from umbel.metrics.survey import QueueLook, Survey
from umbel.metrics.tally import Node, Tally, Told
from umbel.utils.nodenames import nodesplit

#: Seconds, from a quick task to one of an hour.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)

_STATES: Final = ("sent", "received", "started", "succeeded", "failed", "rejected", "revoked", "retried")


class MetricSet(ABC):
    """One set of names. :meth:`told` is for the thread that hears events; it is scraped by any other."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._tally: Tally
        self._survey: Survey
        # The series of each worker, to be taken away with it.
        self._series: dict[str, set[tuple[MetricWrapperBase, tuple[str, ...]]]] = {}
        self._lock = threading.Lock()

    def attach(self, tally: Tally, survey: Survey) -> None:
        """Serve gauges too, from these."""
        self._tally, self._survey = tally, survey
        self._registry.register(self)

    def describe(self) -> Sequence[Metric]:
        """Return nothing: asked for names, the registry would otherwise look at the broker."""
        return ()

    @abstractmethod
    def told(self, told: Told) -> None:
        """Count an event of a task."""

    @abstractmethod
    def collect(self) -> Iterator[Metric]:
        """Yield the gauges as they are now."""

    def forget(self, worker: str) -> None:
        """Serve nothing about this worker any more, except what it has in common with another one."""
        with self._lock:
            for series in self._series.pop(worker, ()):
                if not any(series in others for others in self._series.values()):
                    metric, labels = series
                    metric.remove(*labels)

    def _of_worker(self, worker: str, metric: Any, *labels: str) -> Any:
        with self._lock:
            if worker:
                self._series.setdefault(worker, set()).add((metric, labels))
            return metric.labels(*labels)


class OwnNames(MetricSet):
    """Umbel's own names: base units, and no series per worker but the gauges of workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        labels = ["name", "queue"]
        self._tasks = Counter("umbel_tasks", "Events of tasks.", [*labels, "state"], registry=registry)
        self._run = Histogram(
            "umbel_task_run_seconds", "How long tasks ran.", labels, buckets=BUCKETS, registry=registry
        )
        self._wait = Histogram(
            "umbel_task_wait_seconds",
            "From when a task was sent, or due if that is later, to its start.",
            labels,
            buckets=BUCKETS,
            registry=registry,
        )
        self._prefetch = Histogram(
            "umbel_task_prefetch_seconds",
            "From when a worker received a task to its start.",
            labels,
            buckets=BUCKETS,
            registry=registry,
        )

    def told(self, told: Told) -> None:
        """Count an event of a task."""
        self._tasks.labels(told.name, told.queue, told.what).inc()
        for histogram, seconds in ((self._run, told.run), (self._wait, told.wait), (self._prefetch, told.prefetch)):
            if seconds is not None:
                histogram.labels(told.name, told.queue).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of the broker, its queues, and the workers."""
        build = GaugeMetricFamily("umbel_build_info", "The versions, as labels.", labels=["version", "python"])
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        looks = self._survey.look()
        yield GaugeMetricFamily("umbel_broker_up", "1 if the broker answers.", value=int(looks is not None))
        readers = self._survey.readers.workers
        yield from (
            _gauge(name, doc, "queue", {look.name: value(look, readers) for look in looks or ()})
            for name, doc, value in _QUEUES
        )
        yield from self._schedules()
        # Who has taken leave is not missed.
        nodes = [node for node in self._tally.nodes() if not node.offline]
        yield _gauge("umbel_worker_up", "1 if it was heard of lately.", "worker", {n.name: int(n.up) for n in nodes})
        yield _gauge("umbel_worker_running", "Tasks that it runs.", "worker", {n.name: n.active for n in nodes if n.up})

    def _schedules(self) -> Iterator[Metric]:
        found = self._survey.schedules
        now = time.time()
        late = {each.name: None if each.due is None else max(0.0, now - each.due) for each in found}
        sent = {each.name: each.sent for each in found}
        yield _gauge("umbel_schedule_late_seconds", "For how long it is due and was not sent.", "schedule", late)
        yield _gauge(
            "umbel_schedule_last_sent_timestamp_seconds", "When it was sent last, since the epoch.", "schedule", sent
        )


_QUEUES: Final[tuple[tuple[str, str, Any], ...]] = (
    ("umbel_queue_ready", "Messages that wait for a worker.", lambda look, _: look.ready),
    ("umbel_queue_unacked", "Messages that workers hold.", lambda look, _: look.unacked),
    ("umbel_queue_scheduled", "Messages that wait for their time.", lambda look, _: look.scheduled),
    ("umbel_queue_dead", "Dead letters.", lambda look, _: look.dead),
    (
        "umbel_queue_oldest_seconds",
        "For how long the next message has waited at least; 0 if none does.",
        lambda look, _: look.oldest,
    ),
    (
        "umbel_queue_consumers",
        "Workers that read the queue, when they were asked last.",
        lambda look, readers: readers.get(look.name, 0),
    ),
    ("umbel_queue_paused", "1 if no worker fetches from it until it is resumed.", lambda look, _: look.paused),
)


def _gauge(name: str, doc: str, label: str, values: dict[str, Any]) -> Metric:
    """Return a gauge with one label. What is None is not known, and left out."""
    metric = GaugeMetricFamily(name, doc, labels=[label])
    for key, value in values.items():
        if value is not None:
            metric.add_metric([key], value)
    return metric


class CeleryExporterNames(MetricSet):
    """The names of celery-exporter, whose workers are known by their host alone."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        labels = ["name", "hostname", "queue_name"]
        self._tasks = {
            state: Counter(
                f"celery_task_{state}",
                f"Tasks that were {state}.",
                [*labels, "exception"] if state == "failed" else labels,
                registry=registry,
            )
            for state in _STATES
        }
        self._run = Histogram("celery_task_runtime", "Seconds for which tasks ran.", labels, registry=registry)
        self._wait = Histogram(
            "celery_task_queue_wait_time", "Seconds for which tasks waited in their queue.", labels, registry=registry
        )

    def told(self, told: Told) -> None:
        """Count an event of a task."""
        # That program would take the name of the client that sent it, of which there may be any number.
        labels = (told.name, _host(told.worker) if told.worker else "generic", told.queue)
        counted = (*labels, told.error) if told.what == "failed" else labels
        self._of_worker(told.worker, self._tasks[told.what], *counted).inc()
        if told.what == "succeeded" and told.run is not None:
            self._of_worker(told.worker, self._run, *labels).observe(told.run)
        if told.wait is not None:
            self._of_worker(told.worker, self._wait, *labels).observe(told.wait)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of workers and queues."""
        up: dict[str, Any] = {}
        active: dict[str, Any] = {}
        for node in self._tally.nodes():
            host = _host(node.name)
            up[host] = max(up.get(host, 0), int(node.up))
            active[host] = active.get(host, 0) + (node.active if node.up else 0)
        yield _gauge("celery_worker_up", "1 if it has sent a heartbeat lately.", "hostname", up)
        yield _gauge("celery_worker_tasks_active", "Tasks that it runs.", "hostname", active)
        looks: Sequence[QueueLook] = self._survey.look() or ()
        readers = self._survey.readers
        workers = {look.name: readers.workers.get(look.name, 0) for look in looks}
        processes = {look.name: readers.processes.get(look.name, 0) for look in looks}
        lengths = {look.name: look.ready for look in looks}
        yield _gauge("celery_queue_length", "Messages in the queue.", "queue_name", lengths)
        yield _gauge("celery_active_consumer_count", "Consumers of the queue.", "queue_name", workers)
        yield _gauge("celery_active_worker_count", "Workers of the queue.", "queue_name", workers)
        yield _gauge("celery_active_process_count", "Processes of these workers.", "queue_name", processes)


def _host(worker: str) -> str:
    return nodesplit(worker)[1] or worker


class FlowerNames(MetricSet):
    """The names of Flower's own ``/metrics``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._events = Counter("flower_events", "Events of tasks.", ["worker", "type", "task"], registry=registry)
        self._run = Histogram(
            "flower_task_runtime_seconds", "How long tasks ran.", ["worker", "task"], registry=registry
        )
        self._prefetched: dict[tuple[str, str], int] = {}
        self._waited: dict[tuple[str, str], float] = {}

    def told(self, told: Told) -> None:
        """Count an event of a task."""
        worker, name = told.worker, told.name
        self._of_worker(worker, self._events, worker, f"task-{told.what}", name).inc()
        if told.what == "succeeded" and told.run:
            self._of_worker(worker, self._run, worker, name).observe(told.run)
        if told.eta or not worker:
            return
        pair = worker, name
        with self._lock:
            if told.what == "received":
                self._prefetched[pair] = self._prefetched.get(pair, 0) + 1
            elif told.what == "started" and told.prefetch is not None:
                self._waited[pair] = told.prefetch
                self._prefetched[pair] = max(0, self._prefetched.get(pair, 0) - 1)
            elif told.what in ("succeeded", "failed") and told.had_started:
                self._waited[pair] = 0.0
            elif told.what in ("revoked", "rejected") and not told.had_started:
                self._prefetched[pair] = max(0, self._prefetched.get(pair, 0) - 1)

    def forget(self, worker: str) -> None:
        """Serve nothing about this worker any more."""
        super().forget(worker)
        with self._lock:
            for found in (self._prefetched, self._waited):
                for pair in [pair for pair in found if pair[0] == worker]:
                    del found[pair]

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of workers."""
        nodes: list[Node] = self._tally.nodes()
        yield _gauge("flower_worker_online", "1 if it is online.", "worker", {n.name: int(n.up) for n in nodes})
        yield _gauge(
            "flower_worker_number_of_currently_executing_tasks",
            "Tasks that it runs.",
            "worker",
            {n.name: n.active for n in nodes},
        )
        with self._lock:
            pairs = (dict(self._prefetched), dict(self._waited))
        for name, doc, values in (
            ("flower_worker_prefetched_tasks", "Tasks that it received and has not started.", pairs[0]),
            ("flower_task_prefetch_time_seconds", "For how long the latest one waited there.", pairs[1]),
        ):
            metric = GaugeMetricFamily(name, doc, labels=["worker", "task"])
            for pair, value in values.items():
                metric.add_metric(list(pair), value)
            yield metric


#: By the names that ``--metrics`` takes.
SETS: Final[dict[str, type[MetricSet]]] = {
    "umbel": OwnNames,
    "celery-exporter": CeleryExporterNames,
    "flower": FlowerNames,
}
