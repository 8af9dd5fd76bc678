"""Which queue a task goes to.

In this order: what the caller said (``queue``, or ``exchange`` and ``routing_key``), the first router of
``task_routes`` that answers, the default queue. Explicit options win over what a route says. Pure: nothing here
talks to a broker.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from umbel.exceptions import ImproperlyConfigured, QueueNotFound
from umbel.interfaces import QueueSpec
from umbel.loading import symbol_by_name

logger = logging.getLogger("umbel.routing")

_QUEUE_FIELDS = frozenset(QueueSpec.__struct_fields__)
#: Options of a queue, as kombu names them: the argument of the server, and by what the value is multiplied for it.
_LIMITS: Final[Mapping[str, tuple[str, int]]] = {
    "expires": ("x-expires", 1000),
    "message_ttl": ("x-message-ttl", 1000),
    "max_length": ("x-max-length", 1),
    "max_length_bytes": ("x-max-length-bytes", 1),
}


class Route(Protocol):
    """Answers with routing options for a task, or None to let the next router decide."""

    def __call__(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None
    ) -> Mapping[str, Any] | str | None: ...


class Destination(msgspec.Struct, frozen=True):
    """Where a message goes: the queue, and the exchange and key that a broker with exchanges publishes to."""

    queue: QueueSpec
    exchange: str
    routing_key: str


class MapRoute:
    """Routes by name: an exact name first, then globs and compiled patterns in the order given."""

    def __init__(self, routes: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
        self._exact: dict[str, Any] = {}
        self._patterns: list[tuple[re.Pattern[str], Any]] = []
        for key, route in routes.items() if isinstance(routes, Mapping) else routes:
            if isinstance(key, re.Pattern):
                self._patterns.append((key, route))
            elif any(sign in key for sign in "*?["):
                self._patterns.append((re.compile(fnmatch.translate(key)), route))
            else:
                self._exact[key] = route

    def __call__(
        self, name: str, args: Any = None, kwargs: Any = None, options: Any = None, task: Any = None
    ) -> Mapping[str, Any] | str | None:
        route = self._exact.get(name)
        if route is None:
            route = next((route for pattern, route in self._patterns if pattern.match(name)), None)
        return route


def prepare_routes(routes: Any) -> tuple[Route, ...]:
    """Return the routers that a ``task_routes`` value means: a mapping, a callable, a name, or a list of these."""
    if routes is None:
        return ()
    if not isinstance(routes, list | tuple):
        routes = (routes,)
    return tuple(_prepare_route(route) for route in routes)


def _prepare_route(route: Any) -> Route:
    if isinstance(route, Mapping | list | tuple):
        return MapRoute(route)
    if isinstance(route, str):
        return _Named(route)
    return _callable_route(route)


class _Named:
    """A router given by name, imported at its first use: the module may import the app."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._route: Route | None = None

    def __call__(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None
    ) -> Mapping[str, Any] | str | None:
        if self._route is None:
            self._route = _callable_route(symbol_by_name(self._name))
        return self._route(name, args, kwargs, options, task=task)


def _callable_route(route: Any) -> Route:
    if hasattr(route, "route_for_task"):
        # The router class of Celery 3, which gets no options.
        old = route() if isinstance(route, type) else route
        return lambda name, args, kwargs, options, task=None: old.route_for_task(name, args, kwargs)
    if not callable(route):
        raise ImproperlyConfigured(f"task_routes: {route!r} is neither a mapping, a callable nor the name of one")
    called: Route = route
    return called


def queue_spec(value: Any, *, name: str | None = None) -> QueueSpec:
    """Return the queue that a name, a mapping, a :class:`QueueSpec` or a kombu ``Queue`` describes."""
    if isinstance(value, QueueSpec):
        return value
    if isinstance(value, str):
        return QueueSpec(name=value, exchange=value, routing_key=value)
    if isinstance(value, Mapping):
        return _spec_of_mapping({"name": name, **value})
    if not getattr(value, "name", None):
        raise ImproperlyConfigured(f"task_queues: {value!r} is not a queue: give a name, a mapping or a Queue")
    exchange = getattr(value, "exchange", None)
    arguments = dict(getattr(value, "queue_arguments", None) or {})
    arguments.update(_limits({option: getattr(value, option, None) for option in _LIMITS}))
    alias = getattr(value, "alias", None)
    if alias and getattr(exchange, "type", None) == "fanout":
        logger.warning(
            "task_queues: of Broadcast(%r) each worker has its queue here, but a route with queue=%r does not lead to "
            "them: it means an ordinary queue of that name",
            alias,
            alias,
        )
    return QueueSpec(
        name=value.name,
        exchange=str(getattr(exchange, "name", exchange) or ""),
        exchange_type=getattr(exchange, "type", None) or "direct",
        routing_key=getattr(value, "routing_key", None) or "",
        durable=bool(getattr(value, "durable", True)),
        max_priority=getattr(value, "max_priority", None) or arguments.get("x-max-priority"),
        arguments=arguments,
    )


def _spec_of_mapping(value: dict[str, Any]) -> QueueSpec:
    if not value.get("name"):
        raise ImproperlyConfigured(f"task_queues: {value!r} has no name")
    fields = {key: item for key, item in value.items() if item is not None}
    exchange = fields.pop("exchange", "")
    arguments = dict(fields.pop("queue_arguments", None) or fields.pop("arguments", None) or {})
    arguments.update(_limits(fields))
    # Celery's old spelling of the routing key.
    fields.setdefault("routing_key", fields.pop("binding_key", ""))
    return QueueSpec(
        exchange=str(getattr(exchange, "name", exchange) or ""),
        exchange_type=fields.pop("exchange_type", getattr(exchange, "type", None) or "direct"),
        max_priority=fields.pop("max_priority", None) or arguments.get("x-max-priority"),
        arguments=arguments,
        **{key: item for key, item in fields.items() if key in _QUEUE_FIELDS},
    )


def _limits(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's arguments that kombu's options of a queue mean."""
    given = {option: options[option] for option in _LIMITS if options.get(option) is not None}
    return {_LIMITS[option][0]: int(float(value) * _LIMITS[option][1]) for option, value in given.items()}


_LONGEST_NAME: Final = 255


class Queues(dict[str, QueueSpec]):
    """The declared queues by name; a missing one is made on demand where ``task_create_missing_queues`` allows it."""

    def __init__(self, conf: Any) -> None:
        super().__init__()
        self._create = bool(conf.task_create_missing_queues)
        self._type = conf.task_create_missing_queue_type
        self._exchange_type = conf.task_create_missing_queue_exchange_type or "direct"
        self._exchange = conf.task_default_exchange or conf.task_default_queue
        self._key = conf.task_default_routing_key or conf.task_default_queue
        self._default_exchange_type = conf.task_default_exchange_type or "direct"
        self._max_priority = conf.task_queue_max_priority
        declared = conf.task_queues
        if not declared:
            quorum = {"x-queue-type": "quorum"} if conf.task_default_queue_type == "quorum" else {}
            declared = [self._default(conf.task_default_queue, quorum)]
        self.declared = tuple(self.add(value) for value in _listed(declared))

    def _default(self, name: str, arguments: Mapping[str, Any]) -> QueueSpec:
        return QueueSpec(
            name=name,
            exchange=self._exchange,
            exchange_type=self._default_exchange_type,
            routing_key=self._key,
            arguments=arguments,
        )

    def add(self, value: Any) -> QueueSpec:
        """Declare a queue; what it does not say is taken from the defaults. Returns the complete description."""
        spec = queue_spec(value)
        if not spec.name.isprintable() or len(spec.name) > _LONGEST_NAME:
            # It becomes a part of keys, and goes into logs and terminals.
            raise ImproperlyConfigured(
                f"the name of a queue is at most {_LONGEST_NAME} printable characters, not {spec.name[:100]!r}"
            )
        changes: dict[str, Any] = {}
        if not spec.exchange:
            changes.update(exchange=self._exchange, exchange_type=self._default_exchange_type)
        if not spec.routing_key:
            changes["routing_key"] = self._key
        if spec.max_priority is None and self._max_priority is not None:
            changes["max_priority"] = self._max_priority
        if changes:
            spec = msgspec.structs.replace(spec, **changes)
        self[spec.name] = spec
        return spec

    def __missing__(self, name: str) -> QueueSpec:
        if not self._create:
            known = ", ".join(sorted(self)) or "none"
            raise QueueNotFound(
                f"queue {name!r} is not in task_queues (declared: {known}) and task_create_missing_queues is off"
            )
        return self.add(
            QueueSpec(
                name=name,
                exchange=name,
                exchange_type=self._exchange_type,
                routing_key=name,
                arguments={"x-queue-type": "quorum"} if self._type == "quorum" else {},
            )
        )

    def bound_to(self, exchange: str, routing_key: str) -> QueueSpec | None:
        """Return the first queue that a message published to this exchange with this key would reach."""
        for spec in self.values():
            if spec.exchange == exchange and _matches(spec, routing_key):
                return spec
        return None


def _listed(declared: Any) -> Iterable[Any]:
    if isinstance(declared, Mapping):
        return [queue_spec(value or {}, name=name) for name, value in declared.items()]
    if isinstance(declared, str):
        return [name.strip() for name in declared.split(",")]
    return list(declared)


def _matches(spec: QueueSpec, routing_key: str) -> bool:
    if spec.exchange_type == "fanout":
        return True
    if spec.exchange_type != "topic":
        return spec.routing_key == routing_key
    pattern, words = ((key.split(".") if key else []) for key in (spec.routing_key, routing_key))
    return _matches_words(pattern, words)


def _matches_words(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Say whether a topic pattern matches: * is one word and # is any number of words, none included."""
    # What the first so many words of the pattern may match, as numbers of words of the key.
    reached = {0}
    for part in pattern:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
        if not reached:
            return False
    return len(words) in reached


class Router:
    """Finds the destination of each task for one state of the configuration."""

    def __init__(self, conf: Any) -> None:
        self._routes = prepare_routes(conf.task_routes)
        self._default_queue: str = conf.task_default_queue
        self.queues = Queues(conf)
        #: Whether a route depends on nothing but the task's name, so that it may be remembered.
        self.static = all(type(route) is MapRoute for route in self._routes)

    def route(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None
    ) -> Mapping[str, Any]:
        """Return the options that the routes add for this task; empty where none answers."""
        for router in self._routes:
            found = router(name, args, kwargs, options, task=task)
            if found is not None:
                return {"queue": found} if isinstance(found, str) else found
        return {}

    def destination(self, options: Mapping[str, Any]) -> Destination:
        """Return where a message with these (merged) options goes."""
        queue = options.get("queue")
        exchange: Any = options.get("exchange")
        if exchange is not None:
            exchange = str(getattr(exchange, "name", exchange))
        routing_key = options.get("routing_key")
        if queue is None and exchange:
            return self._by_exchange(exchange, routing_key or "")
        spec = self._queue(queue)
        if spec.exchange_type == "direct" and not (exchange and routing_key):
            return Destination(spec, "", spec.name)
        return self._with_exchange(spec, exchange, routing_key)

    def _queue(self, queue: Any) -> QueueSpec:
        if queue is None:
            return self.queues[self._default_queue]
        if isinstance(queue, str):
            return self.queues[queue]
        spec = queue_spec(queue)
        return self.queues[spec.name] if spec.name in self.queues else self.queues.add(spec)

    def _by_exchange(self, exchange: str, routing_key: str) -> Destination:
        spec = self.queues.bound_to(exchange, routing_key)
        if spec is None:
            spec = self.queues[routing_key or self._default_queue]
        return Destination(spec, exchange, routing_key or spec.routing_key)

    def _with_exchange(self, spec: QueueSpec, exchange: str | None, routing_key: str | None) -> Destination:
        exchange, key = exchange or spec.exchange, routing_key or spec.routing_key
        # A key of the caller's may lead to another queue of the same topic exchange.
        target = self.queues.bound_to(exchange, key) if routing_key else None
        return Destination(target or spec, exchange, key)

    def select(
        self, names: Sequence[str] | str | None = None, exclude: Sequence[str] | str | None = None
    ) -> list[QueueSpec]:
        """Return the queues that a worker consumes: the declared ones, or these, without the excluded."""
        wanted = [self.queues[name] for name in _names(names)] if names else list(self.queues.declared)
        left_out = set(_names(exclude))
        return [spec for spec in wanted if spec.name not in left_out]


def _names(names: Sequence[str] | str | None) -> list[str]:
    if names is None:
        return []
    listed = names.split(",") if isinstance(names, str) else list(names)
    return list(dict.fromkeys(name.strip() for name in listed if name.strip()))
