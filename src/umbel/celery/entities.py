"""Declarations in kombu's shape: ``Queue``, ``Exchange`` and ``binding``, for programs without kombu.

They only describe. :func:`umbel.routing.queue_spec` reads them, as it reads kombu's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Exchange:
    """An exchange by name and type: ``direct``, ``topic``, ``fanout`` or ``headers``."""

    TRANSIENT_DELIVERY_MODE = 1
    PERSISTENT_DELIVERY_MODE = 2

    def __init__(self, name: str = "", type: str = "", channel: Any = None, **options: Any) -> None:
        self.name = name
        self.type = type or "direct"
        self.durable: bool = options.pop("durable", True)
        self.auto_delete: bool = options.pop("auto_delete", False)
        self.delivery_mode: Any = options.pop("delivery_mode", None)
        self.arguments: Mapping[str, Any] = options.pop("arguments", None) or {}
        self.passive: bool = options.pop("passive", False)
        self.no_declare: bool = options.pop("no_declare", False)
        _refuse("Exchange", options)

    def _identity(self) -> tuple[Any, ...]:
        return self.name, self.type, self.durable, self.auto_delete, tuple(sorted(self.arguments.items()))

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Exchange) else NotImplemented

    def __hash__(self) -> int:
        return hash(("Exchange", self.name, self.type))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Exchange {self.name or repr('')}({self.type})>"


class binding:
    """How messages come from an exchange to a queue."""

    def __init__(
        self,
        exchange: Exchange | str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        unbind_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.exchange = Exchange(exchange) if isinstance(exchange, str) else exchange
        self.routing_key = routing_key
        self.arguments = arguments
        self.unbind_arguments = unbind_arguments

    def __repr__(self) -> str:
        return f"<binding: {self.exchange}->{self.routing_key}>"


class Queue:
    """A queue, the exchange it is bound to, and the key."""

    def __init__(
        self,
        name: str = "",
        exchange: Exchange | str | Iterable[binding] | None = None,
        routing_key: str = "",
        channel: Any = None,
        bindings: Iterable[binding] | None = None,
        on_declared: Any = None,
        **options: Any,
    ) -> None:
        self.name = name
        if exchange is not None and not isinstance(exchange, Exchange | str):
            bindings, exchange = exchange, None
        self.bindings = list(bindings or ())
        if exchange is None and len(self.bindings) == 1:
            exchange, routing_key = self.bindings[0].exchange, routing_key or self.bindings[0].routing_key
        self.exchange = Exchange(exchange) if isinstance(exchange, str) else exchange or Exchange()
        self.routing_key = routing_key
        self.durable: bool = options.pop("durable", True)
        self.exclusive: bool = options.pop("exclusive", False)
        self.auto_delete: bool = options.pop("auto_delete", False)
        self.max_priority: int | None = options.pop("max_priority", None)
        self.queue_arguments: dict[str, Any] = dict(options.pop("queue_arguments", None) or {})
        self.binding_arguments: Mapping[str, Any] | None = options.pop("binding_arguments", None)
        self.consumer_arguments: Mapping[str, Any] | None = options.pop("consumer_arguments", None)
        self.expires: float | None = options.pop("expires", None)
        self.message_ttl: float | None = options.pop("message_ttl", None)
        self.max_length: int | None = options.pop("max_length", None)
        self.max_length_bytes: int | None = options.pop("max_length_bytes", None)
        self.no_ack: bool = options.pop("no_ack", False)
        self.alias: str | None = options.pop("alias", None)
        self.no_declare: bool | None = options.pop("no_declare", None)
        _refuse("Queue", options)

    @classmethod
    def from_dict(cls, queue: str, **options: Any) -> Queue:
        """Return a queue from a mapping as ``task_queues`` may hold it."""
        exchange = Exchange(options.pop("exchange", None) or "", type=options.pop("exchange_type", None) or "")
        routing_key = options.pop("binding_key", None) or options.pop("routing_key", None) or ""
        return cls(queue, exchange, routing_key, **options)

    def _identity(self) -> tuple[Any, ...]:
        return self.name, self.exchange, self.routing_key, self.durable, tuple(sorted(self.queue_arguments.items()))

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Queue) else NotImplemented

    def __hash__(self) -> int:
        return hash(("Queue", self.name))

    def __repr__(self) -> str:
        return f"<Queue {self.name} -> {self.exchange!r} -> {self.routing_key}>"


class Broadcast(Queue):
    """A queue of a fanout exchange: each worker has one of its own and gets every message."""

    def __init__(self, name: str | None = None, queue: str | None = None, unique: bool = False, **options: Any) -> None:
        from umbel.utils.identity import uuid

        exchange = options.pop("exchange", None) or Exchange(name or "", type="fanout")
        options.pop("alias", None)
        own = f"{queue or 'bcast'}.{uuid()}" if unique or not queue else queue
        super().__init__(own, exchange, alias=name, **{"auto_delete": True, **options})


def _refuse(what: str, options: Mapping[str, Any]) -> None:
    if options:
        raise TypeError(f"{what}() has no option {', '.join(sorted(options))}")


#: The exchange of events.
event_exchange = Exchange("celeryev", type="topic")


def get_exchange(conn: Any, name: str = "celeryev") -> Exchange:
    """Return the exchange that events are published to."""
    return event_exchange if name == event_exchange.name else Exchange(name, type="topic")
