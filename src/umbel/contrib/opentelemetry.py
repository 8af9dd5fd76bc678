"""OpenTelemetry: a span for each message that is sent and each task that runs, and metrics, by the conventions.

::

    from umbel.contrib.opentelemetry import instrument

    instrument(app)  # beside the app; exporters are set up where its processes begin

The context travels in the headers of the message, where OpenTelemetry's instrumentation of Celery puts and looks for
it too, so that a trace goes through producers and workers of both. Names are those of the semantic conventions for
messaging, version 1.44.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from umbel import __version__, signals, states
from umbel.current import worker_frame
from umbel.interfaces import Execution, Middleware, Outcome, Outgoing, Published, PublishStatus

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
#: What the conventions advise, in seconds.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

Attributes = dict[str, AttributeValue]

_SPAN: Final = otel_context.create_key("umbel-process-span")
_SYSTEMS: Final = {"amqp": "rabbitmq", "pyamqp": "rabbitmq", "amqps": "rabbitmq", "rediss": "redis"}
_PORTS: Final = {"redis": 6379, "rabbitmq": 5672}
_OTHER: Final = "other"


def instrument(
    app: Any,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    use_span_links: bool = False,
) -> Telemetry:
    """Trace and measure what this app sends and runs, from now on. A second call for one app changes nothing.

    Call it where the app is made, before a worker starts. Without providers the global ones count, whenever they are
    set.

    :param use_span_links: only link a task's span to its sender's, and begin a trace of its own with each task.
    """
    for middleware in app.middlewares:
        if isinstance(middleware, Telemetry):
            return middleware
    telemetry = Telemetry(app, tracer_provider, meter_provider, use_span_links)
    app.middlewares.append(telemetry)
    telemetry.connect()
    return telemetry


def uninstrument(app: Any) -> None:
    """Undo :func:`instrument`; a worker that runs goes on as it began."""
    for middleware in [each for each in app.middlewares if isinstance(each, Telemetry)]:
        app.middlewares.remove(middleware)
        middleware.disconnect()


class Telemetry(Middleware):
    """The middleware of :func:`instrument`. Safe to use from every thread."""

    def __init__(
        self,
        app: Any,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        use_span_links: bool = False,
    ) -> None:
        self._app = app
        self._links_only = use_span_links
        self._tracer = trace.get_tracer(__name__, __version__, tracer_provider, schema_url=SCHEMA)
        meter = get_meter(__name__, __version__, meter_provider, schema_url=SCHEMA)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Messages that were handed to the broker."
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages whose task was run."
        )
        self._sending = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long sending took.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._processing = meter.create_histogram(
            "messaging.process.duration", "s", "How long tasks took.", explicit_bucket_boundaries_advisory=BUCKETS
        )
        self._place: Attributes | None = None

    def connect(self) -> None:
        """Hear why tasks fail and are tried again; what the outcome alone does not tell."""
        signals.task_failure.connect(self._on_failure, weak=False)
        signals.task_retry.connect(self._on_retry, weak=False)

    def disconnect(self) -> None:
        """Hear nothing more."""
        signals.task_failure.disconnect(self._on_failure)
        signals.task_retry.disconnect(self._on_retry)

    # -- sending -------------------------------------------------------------------------------------------------

    def publish(
        self, batch: Sequence[Outgoing], call_next: Callable[[Sequence[Outgoing]], Sequence[Published]]
    ) -> Sequence[Published]:
        """Send the batch in a span; of several messages each has a span of its own, to which that one is linked."""
        if len(batch) == 1:
            span = self._create(batch[0], "send", SpanKind.PRODUCER)
        else:
            links = [Link(self._created(outgoing)) for outgoing in batch]
            attributes: Attributes = {**self._common("send"), "messaging.batch.message_count": len(batch)}
            span = self._tracer.start_span("send", _parent(), SpanKind.CLIENT, attributes=attributes, links=links)
        began = time.perf_counter()
        failure: BaseException | None = None
        with trace.use_span(span, end_on_exit=True, record_exception=True, set_status_on_exception=True):
            try:
                outcomes = call_next(batch)
                refused = [each for each in outcomes if each.status is PublishStatus.REFUSED]
                if refused:
                    span.set_status(StatusCode.ERROR, refused[0].detail)
                return outcomes
            except Exception as error:
                failure = error
                span.set_attribute("error.type", _kind(error))
                raise
            finally:
                self._measure(batch, time.perf_counter() - began, failure)

    def _created(self, outgoing: Outgoing) -> trace.SpanContext:
        span = self._create(outgoing, "create", SpanKind.PRODUCER)
        span.end()
        return span.get_span_context()

    def _create(self, outgoing: Outgoing, operation: str, kind: SpanKind) -> Span:
        """Begin the span that a message comes from, and write its context into the message."""
        headers = outgoing.message.headers
        attributes = {
            **self._common(operation),
            "messaging.destination.name": outgoing.queue,
            **_identity(headers, outgoing.task_id, outgoing.routing_key if outgoing.exchange else ""),
        }
        parent = _parent()
        span = self._tracer.start_span(f"{operation} {outgoing.queue}", parent, kind, attributes=attributes)
        propagate.inject(headers, trace.set_span_in_context(span, parent))
        return span

    def _measure(self, batch: Sequence[Outgoing], seconds: float, failure: BaseException | None) -> None:
        attributes = self._common("send")
        if failure is not None:
            attributes["error.type"] = _kind(failure)
        queues = [self._known(outgoing.queue) for outgoing in batch]
        if len(set(queues)) == 1:
            self._sending.record(seconds, {**attributes, "messaging.destination.name": queues[0]})
        else:
            self._sending.record(seconds, attributes)
        for queue in set(queues):
            self._sent.add(queues.count(queue), {**attributes, "messaging.destination.name": queue})

    # -- running -------------------------------------------------------------------------------------------------

    def execute(self, execution: Execution, call_next: Callable[[Execution], Outcome]) -> Outcome:
        """Run one execution in a span."""
        with self._process(execution) as end:
            return end(call_next(execution))

    async def execute_async(
        self, execution: Execution, call_next: Callable[[Execution], Awaitable[Outcome]]
    ) -> Outcome:
        """Run one execution of a coroutine task in a span."""
        with self._process(execution) as end:
            return end(await call_next(execution))

    @contextmanager
    def _process(self, execution: Execution) -> Iterator[Callable[[Outcome], Outcome]]:
        call, queue = execution.call, execution.delivery.queue
        sender = propagate.extract(_texts(call.headers), Context())
        origin = trace.get_current_span(sender).get_span_context()
        attributes: Attributes = {
            **self._common("process"),
            "messaging.destination.name": queue,
            **_identity(call.headers, call.id, ""),
        }
        span = self._tracer.start_span(
            f"process {queue}",
            Context() if self._links_only else sender,
            SpanKind.CONSUMER,
            attributes=attributes,
            links=[Link(origin)] if origin.is_valid else (),
        )
        # What the sender put beside its span, such as baggage, is there for the task in any case.
        token = otel_context.attach(otel_context.set_value(_SPAN, span, trace.set_span_in_context(span, sender)))
        began = time.perf_counter()
        state = ""

        def end(outcome: Outcome) -> Outcome:
            nonlocal state
            state = outcome.state
            return outcome

        try:
            yield end
        finally:
            otel_context.detach(token)
            self._processed(span, call, self._known(queue), state, time.perf_counter() - began)

    def _processed(self, span: Span, call: Any, queue: str, state: str, seconds: float) -> None:
        span.set_attribute("umbel.task.state", state or "UNKNOWN")
        attributes: Attributes = {**self._common("process"), "messaging.destination.name": queue}
        if state == states.FAILURE:
            # The span has the class of the error; of those there may be too many for a metric.
            attributes["error.type"] = state
        self._consumed.add(1, attributes)
        self._processing.record(seconds, {**attributes, "umbel.task.name": call.task})
        span.end()

    def _on_failure(self, sender: Any, exception: BaseException, **named: Any) -> None:
        span = otel_context.get_value(_SPAN)
        if not isinstance(span, Span) or sender.app is not self._app:
            return
        span.set_attribute("error.type", _kind(exception))
        span.record_exception(exception)
        if not isinstance(exception, tuple(sender.throws or ())):
            span.set_status(StatusCode.ERROR, f"{type(exception).__name__}: {exception}")

    def _on_retry(self, sender: Any, request: Any, reason: Any, **named: Any) -> None:
        span = otel_context.get_value(_SPAN)
        if isinstance(span, Span) and sender.app is self._app:
            span.add_event("retry", {"umbel.task.retry.reason": str(reason)})

    # -- attributes ----------------------------------------------------------------------------------------------

    def _common(self, operation: str) -> Attributes:
        if self._place is None:
            self._place = _place(str(self._app.broker_url))
        # That a message is made for a batch is called sending it, by the type and not by the name.
        return {
            **self._place,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
        }

    def _known(self, queue: str) -> str:
        """Return a queue as a label of metrics: one that is declared, for there may be any number of others."""
        return queue if queue in self._app.router.queues else _OTHER


def _parent() -> Context | None:
    """Return what a message that is sent here and now belongs to; None is for what is current."""
    if trace.get_current_span().get_span_context().is_valid:
        return None
    # What follows a task that has ended, such as the body of its chord, belongs to where that task came from.
    frame = worker_frame()
    headers = None if frame is None else getattr(frame.request, "headers", None)
    return propagate.extract(_texts(headers)) if headers else None


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that can carry a context; a message may hold anything."""
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _identity(headers: Mapping[str, Any], task_id: str, routing_key: str) -> Attributes:
    found: Attributes = {"messaging.message.id": task_id, "umbel.task.name": str(headers.get("task"))}
    if headers.get("root_id"):
        found["messaging.message.conversation_id"] = str(headers["root_id"])
    if isinstance(headers.get("retries"), int) and headers["retries"]:
        found["umbel.task.retries"] = headers["retries"]
    if routing_key:
        found["messaging.rabbitmq.destination.routing_key"] = routing_key
    return found


def _place(url: str) -> Attributes:
    """Return which system this is and where, without what else its URL says."""
    scheme = url.partition(":")[0].partition("+")[0]
    system = _SYSTEMS.get(scheme, scheme)
    found: Attributes = {"messaging.system": system}
    try:
        parts = urlsplit(url.partition(";")[0].partition(",")[0])
        host, port = parts.hostname, parts.port
    except ValueError:
        return found
    if host and system in _PORTS:
        found.update({"server.address": host, "server.port": port or _PORTS[system]})
    return found


def _kind(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
