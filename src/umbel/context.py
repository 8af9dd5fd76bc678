"""The request: what a running task can know about its own call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from umbel.interfaces import Delivery, Outgoing
    from umbel.message import Call

# RabbitMQ counts dead-letter hops in these; sent on, they would make it see a cycle and drop the message.
_X_DEATH: Final = ("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason")


class Context:
    """The request of one attempt: ``self.request`` in a bound task.

    What the message did not say has the default below. Custom message headers are attributes too, and are in
    ``headers``. Used by the thread or coroutine that runs the attempt.
    """

    id: str | None = None
    task: str | None = None
    args: Any = None
    kwargs: Any = None
    root_id: str | None = None
    parent_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    origin: str | None = None
    lang: str | None = None
    hostname: str | None = None
    retries: int = 0
    is_eager: bool = False
    called_directly: bool = True
    delivery_info: dict[str, Any] | None = None
    expires: Any = None
    eta: Any = None
    group: str | None = None
    group_index: int | None = None
    taskset: str | None = None
    chord: Any = None
    chain: list[Any] | None = None
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None
    timelimit: Any = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    utc: bool | None = None
    loglevel: Any = None
    logfile: Any = None
    shadow: str | None = None
    ignore_result: bool = False
    replaced_task_nesting: int = 0
    stamps: dict[str, Any] | None = None
    stamped_headers: list[str] | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    compression: str | None = None

    #: Set by a worker: a number that is greater in each delivery of this message than in those before. A store of
    #: your own that refuses a lower one than it has seen is safe from an attempt that was given up but still runs.
    fence: int = 0
    #: Set by a worker: stores a state together with the proof that this attempt still holds its message.
    report_state: Callable[[str, str, Any], None] | None = None
    #: Messages that the settlement of this attempt must publish (a retry asked for with ``throw=False``).
    outgoings: list[Outgoing] | None = None
    #: What :meth:`Task.retry` was last told in this attempt; an automatic retry of the same attempt obeys it.
    override_max_retries: int | None = None

    _children: list[Any] | None = None
    _protected: bool = False
    #: Where this attempt says how far it is (:mod:`umbel.progress`), once it did.
    _progress: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)
        if self.headers is None:
            self.headers = _custom(self.__dict__)

    @classmethod
    def from_call(cls, call: Call, delivery: Delivery | None = None, *, hostname: str | None = None) -> Context:
        """Return the request of a decoded message that a worker is about to run."""
        context = cls.__new__(cls)
        fields = context.__dict__
        headers, properties = call.headers, call.properties
        fields.update(headers)
        if not _OWN.isdisjoint(headers):
            # A header may have any name, but a message must not decide how this process treats it.
            for name in _OWN:
                fields.pop(name, None)
        if "headers" not in headers:
            fields["headers"] = None if headers.keys() <= _KNOWN else _custom(headers)
        if fields.get("ignore_result") is None:
            # None on the wire means that the caller did not say; then the task's own attribute counts.
            fields.pop("ignore_result", None)
        limits = fields.get("timelimit") or (None, None)
        info = properties.get("delivery_info")
        if type(info) is not dict:
            info = {}
        fields.update(
            id=call.id,
            task=call.task,
            args=call.args,
            kwargs=call.kwargs,
            retries=call.retries,
            eta=call.eta,
            expires=call.expires,
            callbacks=call.callbacks,
            errbacks=call.errbacks,
            chain=call.chain,
            chord=call.chord,
            utc=call.utc,
            time_limit=limits[0],
            soft_time_limit=limits[1],
            taskset=fields.get("group"),
            called_directly=False,
            hostname=hostname,
            fence=delivery.fence if delivery is not None else 0,
            correlation_id=properties.get("correlation_id"),
            reply_to=properties.get("reply_to"),
            properties=properties,
            delivery_info={
                "exchange": info.get("exchange", ""),
                "routing_key": info.get("routing_key") or (delivery.queue if delivery is not None else None),
                "priority": properties.get("priority"),
                "redelivered": delivery.redelivered if delivery is not None else info.get("redelivered"),
            },
        )
        return context

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set fields, as :meth:`dict.update`. A ``timelimit`` pair also sets ``time_limit`` and ``soft_time_limit``."""
        fields = dict(*args, **kwargs)
        self.__dict__.update(fields)
        if "timelimit" in fields:
            limits = fields["timelimit"]
            pair = limits if isinstance(limits, list | tuple) and len(limits) >= 2 else (None, None)
            self.time_limit, self.soft_time_limit = pair[0], pair[1]

    def clear(self) -> None:
        """Return every field to its default."""
        self.__dict__.clear()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or the default where there is no such field."""
        return getattr(self, key, default)

    def __repr__(self) -> str:
        return f"<Context: {vars(self)!r}>"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # custom headers

    @property
    def children(self) -> list[Any]:
        """The results of the tasks that this one has sent."""
        if self._children is None:
            self._children = []
        return self._children

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options that send this call once more: the same ids, callbacks, limits, headers and stamps."""
        hard, soft = self.timelimit or (None, None)
        headers = {key: value for key, value in (self.headers or {}).items() if key not in _X_DEATH}
        options: dict[str, Any] = {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "shadow": self.shadow,
            "chord": self.chord,
            "chain": self.chain,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "expires": self.expires,
            "soft_time_limit": soft,
            "time_limit": hard,
            "headers": headers,
            "retries": self.retries,
            "reply_to": self.reply_to,
            "replaced_task_nesting": self.replaced_task_nesting,
            "origin": self.origin,
        }
        if self.stamps is not None and self.stamped_headers is not None:
            options["stamped_headers"] = self.stamped_headers
            options.update((name, value) for name, value in self.stamps.items() if name in self.stamped_headers)
        return options


_KNOWN: Final = frozenset(Context.__annotations__) | {"children"}
_OWN: Final = frozenset(
    {"report_state", "outgoings", "override_max_retries", "_children", "_protected", "children", "is_eager", "loglevel"}
    | {"_progress", "logfile", "update", "clear", "get", "as_execution_options", "from_call"}
)


def _custom(fields: dict[str, Any]) -> dict[str, Any] | None:
    return {key: value for key, value in fields.items() if key not in _KNOWN} or None
