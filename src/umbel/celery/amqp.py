"""``app.amqp`` and ``celery.app.amqp``: queues and routes in Celery's shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from umbel.celery.entities import Exchange, Queue
from umbel.interfaces import QueueSpec
from umbel.routing import Router, prepare_routes


class task_message(NamedTuple):
    """A task's message in parts."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    sent_event: dict[str, Any] | None


def queue_of(spec: QueueSpec) -> Queue:
    """Return a queue of the app in kombu's shape."""
    exchange = Exchange(spec.exchange, type=spec.exchange_type, durable=spec.durable)
    return Queue(
        spec.name,
        exchange,
        spec.routing_key,
        durable=spec.durable,
        max_priority=spec.max_priority,
        queue_arguments=dict(spec.arguments),
    )


class Queues(Mapping[str, Queue]):
    """The declared queues of an app by name; a view, made anew at each use."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def __getitem__(self, name: str) -> Queue:
        return queue_of(self._router.queues[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._router.queues)

    def __len__(self) -> int:
        return len(self._router.queues)

    def __contains__(self, name: object) -> bool:
        return name in self._router.queues

    def add(self, queue: Any, **kwargs: Any) -> Queue:
        """Declare a queue."""
        given = {**kwargs, "name": queue} if kwargs else queue
        return queue_of(self._router.queues.add(given))

    @property
    def consume_from(self) -> dict[str, Queue]:
        """The queues that a worker reads by default."""
        return {spec.name: queue_of(spec) for spec in self._router.select()}

    def format(self, indent: int = 0, indent_first: bool = True) -> str:
        """Return the queues in lines, as the worker's banner shows them."""
        lines = [
            f".> {queue.name:<16} exchange={queue.exchange.name}({queue.exchange.type}) key={queue.routing_key}"
            for queue in self.consume_from.values()
        ]
        pad = " " * indent
        return "\n".join(("" if index == 0 and not indent_first else pad) + line for index, line in enumerate(lines))


class AMQP:
    """The queues and routes of one app."""

    def __init__(self, app: Any) -> None:
        self.app = app

    @property
    def queues(self) -> Queues:
        """The declared queues."""
        return Queues(self.app.router)

    @property
    def default_queue(self) -> Queue:
        """The queue of tasks that no route sends elsewhere."""
        return self.queues[self.app.conf.task_default_queue]

    @property
    def default_exchange(self) -> Exchange:
        """The exchange of queues that name none."""
        conf = self.app.conf
        return Exchange(conf.task_default_exchange, type=conf.task_default_exchange_type)

    @property
    def routes(self) -> tuple[Any, ...]:
        """The routers of ``task_routes``."""
        return prepare_routes(self.app.conf.task_routes)

    @property
    def router(self) -> _Router:
        """What finds a task's queue."""
        return _Router(self.app)

    def flush_routes(self) -> None:
        """Do nothing: routes are read anew after each change of the settings."""

    def TaskConsumer(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a worker consumes."""
        raise NotImplementedError(
            "tasks are consumed by a worker; in tests, celery.contrib.testing.worker.start_worker runs one"
        )

    def send_task_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is ``app.send_task``."""
        raise NotImplementedError("send tasks by app.send_task(name, args, kwargs, **options)")


class _Router:
    def __init__(self, app: Any) -> None:
        self._app = app

    def route(
        self, options: Mapping[str, Any], name: str, args: Any = (), kwargs: Any = None, task_type: Any = None
    ) -> dict[str, Any]:
        """Return the options with the queue that the task goes to."""
        router = self._app.router
        found = dict(router.route(name, args, kwargs or {}, options, task=task_type))
        merged = {**found, **{key: value for key, value in options.items() if value is not None}}
        return {**merged, "queue": queue_of(router.destination(merged).queue)}


def expand_router_string(router: Any) -> Any:
    """Return the router that a name leads to."""
    found = prepare_routes(router)
    return found[0] if found else None


def worker_direct(hostname: Any, queue: Any = None) -> Queue:
    """Return the queue of one worker, which it reads with ``worker_direct=True``."""
    name = getattr(hostname, "name", hostname)
    return Queue(f"{name}.dq2", Exchange("C.dq2"), str(name), auto_delete=False, durable=True)


def utf8dict(d: Any, encoding: str = "utf-8") -> dict[str, Any]:
    """Return a mapping whose keys are text."""
    items: Iterable[Any] = d.items()
    return {key.decode(encoding) if isinstance(key, bytes) else key: value for key, value in items}
