"""``celery.contrib.migrate``: moving tasks to other queues and other brokers, from a program.

``move(predicate)`` looks at the messages that wait in the queues of an app and moves those for which
``predicate(body, message)`` is true; the other functions are cases of it. ``body`` has the headers of the message, and
``args`` and ``kwargs``; with ``body[0]`` and ``body[1]`` it can be read as Celery's protocol 2 has it, too.

A message is taken away only when the broker has confirmed it in its new place. Messages that wait for their time are
not looked at: ``umbel migrate --to-celery`` moves those.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from umbel.connection_options import broker_options
from umbel.contrib.moving import Found, Moving, StopFiltering, open_other, publish
from umbel.current import get_current_app
from umbel.exceptions import CeleryError
from umbel.interfaces import Broker, Outgoing, QueueSpec
from umbel.message import decode_call
from umbel.meta import accepted
from umbel.routing import queue_spec

__all__ = [
    "State", "StopFiltering", "migrate_task", "migrate_tasks", "move", "move_by_idmap", "move_by_taskmap",
    "move_direct", "move_direct_by_id", "move_direct_by_idmap", "move_direct_by_taskmap", "move_task_by_id",
    "republish", "task_id_eq", "task_id_in",
]  # fmt: skip

Callback = Callable[["State", "Body", "TaskMessage"], object]


class State:
    """How far a run has come."""

    def __init__(self) -> None:
        self.count = 0  # handed over, in a migration
        self.filtered = 0  # moved
        self.total_apx = 0  # how many there were at the start

    @property
    def strtotal(self) -> str:
        """How many there were, as far as that is known."""
        return str(self.total_apx) if self.total_apx else "?"

    def __repr__(self) -> str:
        return f"^{self.filtered}" if self.filtered else f"{self.count}/{self.strtotal}"


class Body(dict[Any, Any]):
    """What a message says of its task: its headers, ``args`` and ``kwargs``; None for those that cannot be read."""

    def __missing__(self, key: Any) -> Any:
        if key in (0, 1, 2):
            return self[("args", "kwargs", "embed")[key]]
        raise KeyError(key)


class TaskMessage:
    """A message in kombu's shape. It is acknowledged by what moves it."""

    def __init__(self, found: Found) -> None:
        self.found = found
        message = found.message
        self.body = message.body
        self.headers = message.headers
        self.properties = message.properties
        self.content_type = message.content_type
        self.content_encoding = message.content_encoding
        self.delivery_info = {"exchange": "", "routing_key": found.queue, **message.properties.get("delivery_info", {})}

    def ack(self) -> None:
        """Do nothing: a message is taken away once it is in its new place."""


def _body(app: Any, found: Found) -> Body:
    body = Body({"args": None, "kwargs": None, "embed": None, **found.message.headers})
    body.update(task=found.task, id=found.id)
    try:
        call = decode_call(found.message, accepted(app.conf))
    except CeleryError:
        return body
    body.update(args=list(call.args), kwargs=dict(call.kwargs))
    return body


def republish(
    producer: Any,
    message: TaskMessage,
    exchange: str | None = None,
    routing_key: str | None = None,
    remove_props: Collection[str] | None = None,
) -> None:
    """Send a message again, elsewhere if so wished; ``producer`` is a broker, a connection or None for the app's.

    :param remove_props: names of properties that are left out.
    """
    app = get_current_app()
    info = message.delivery_info
    exchange = info["exchange"] if exchange is None else exchange
    routing_key = info["routing_key"] if routing_key is None else routing_key
    original = message.found.message
    properties = {name: value for name, value in original.properties.items() if name not in (remove_props or ())}
    found = Found(original.replace(properties=properties), message.found.queue, message.found.task, message.found.id)
    outgoing = _addressed(app, found, exchange, routing_key)
    if isinstance(producer, Broker):
        publish(producer, [outgoing])
        return
    opened = _opened(app, producer)
    try:
        publish(opened, [outgoing])
    finally:
        opened.close()


def _addressed(app: Any, found: Found, exchange: str | None, routing_key: str | None) -> Outgoing:
    where = app.router.destination(
        {"exchange": exchange, "routing_key": routing_key} if exchange else {"queue": routing_key or found.queue}
    )
    return found.outgoing(where.queue)


def _url(connection: Any, app: Any) -> Any:
    """Return the URL behind a URL, a connection of ours or of kombu's, or a producer; the app's for None."""
    if connection is None:
        return app.urls.write
    if isinstance(connection, str):
        return connection
    connection = getattr(connection, "connection", None) if not hasattr(connection, "as_uri") else connection
    if connection is None or not hasattr(connection, "as_uri"):
        raise TypeError("a connection must be a URL, or a Connection with as_uri()")
    return connection.as_uri(include_password=True)


def _opened(app: Any, connection: Any) -> Broker:
    """Return the broker behind a connection, connected; where it is the app's own, with the app's options."""
    url = _url(connection, app)
    own = url in (app.urls.read, app.urls.write)
    return open_other(url, broker_options(app.conf) if own else None)


def migrate_task(producer: Any, body_: Body, message: TaskMessage, queues: Mapping[str, str] | None = None) -> None:
    """Send one message to another broker; ``queues`` says which queues have another name there."""
    names = queues or {}
    name = message.found.queue
    republish(producer, message, exchange="", routing_key=names.get(name, name))


def prepare_queues(queues: Any) -> dict[str, str]:
    """Return names of queues with those that they get: of a mapping, a list or a text of ``old:new``.

    >>> prepare_queues("a:b,c")
    {'a': 'b', 'c': 'c'}
    """
    if isinstance(queues, Mapping):
        return dict(queues)
    words = queues.split(",") if isinstance(queues, str) else list(queues or ())
    pairs = (word.strip().partition(":") for word in words)
    return {old: new or old for old, _, new in pairs if old}


def _names(value: Any) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else list(value or ())


def _run(
    here: Broker,
    there: Broker,
    names: Sequence[str],
    decide: Callable[[Found], Outgoing | None],
    state: State,
    *,
    keep: bool = False,
    limit: int | None = None,
    timeout: float = 1.0,
    forever: bool = False,
    same: bool = False,
    **_: Any,
) -> Iterable[Found]:
    state.total_apx = sum(here.size(name) for name in names)
    moving = Moving(
        here,
        there,
        names,
        decide,
        limit=limit,
        patience=float("inf") if forever else timeout,
        most=state.total_apx if same and not forever else None,
    )
    return moving.copy() if keep else moving.move()


def migrate_tasks(
    source: Any,
    dest: Any,
    migrate: Callable[..., Any] | None = None,
    app: Any = None,
    queues: Any = None,
    *,
    ack_messages: bool = False,
    tasks: Any = None,
    callback: Callback | None = None,
    **kwargs: Any,
) -> State:
    """Copy the tasks that wait at one broker to another, or with ``ack_messages`` move them; return how many.

    ``limit`` bounds how many, ``timeout`` is the seconds to wait for more, ``forever`` waits until interrupted. A
    ``migrate`` of your own has no place here: :func:`move` takes a predicate.
    """
    if migrate is not None and migrate is not migrate_task:
        raise NotImplementedError("migrate_tasks has no place for a function of your own: use move with a predicate")
    app = app or get_current_app()
    names = prepare_queues(queues) or {spec.name: spec.name for spec in app.queues(None)}
    wanted, state = set(_names(tasks)), State()
    here = _opened(app, source)
    there = _opened(app, dest)

    def decide(found: Found) -> Outgoing | None:
        return found.outgoing(QueueSpec(name=names[found.queue])) if not wanted or found.task in wanted else None

    try:
        there.declare([app.router.queues.get(name) or queue_spec(name) for name in names.values()])
        for found in _run(here, there, list(names), decide, state, keep=not ack_messages, **kwargs):
            state.count += 1
            if callback is not None:
                callback(state, _body(app, found), TaskMessage(found))
    finally:
        here.close()
        there.close()
    return state


def move(
    predicate: Callable[[Body, TaskMessage], Any],
    connection: Any = None,
    exchange: Any = None,
    routing_key: str | None = None,
    source: Iterable[Any] | None = None,
    app: Any = None,
    callback: Callback | None = None,
    limit: int | None = None,
    transform: Callable[[Any], Any] | None = None,
    *,
    tasks: Any = None,
    queues: Any = None,
    **kwargs: Any,
) -> State:
    """Move the tasks for which ``predicate(body, message)`` is true, and return how many those were.

    It returns the queue to move it to (an object or a name), a pair of exchange and routing key, or True for
    ``exchange`` and ``routing_key``. ``source`` are the queues to look at; without it, those of the app.
    """
    app = app or get_current_app()
    names = _sources(app, source, queues)
    wanted, state = set(_names(tasks)), State()
    here = _opened(app, connection)
    there = _opened(app, connection)
    declared: set[str] = set()

    def decide(found: Found) -> Outgoing | None:
        if wanted and found.task not in wanted:
            return None
        answer = predicate(_body(app, found), TaskMessage(found))
        if not answer:
            return None
        outgoing = _destination(app, found, transform(answer) if transform else answer, exchange, routing_key)
        if outgoing.queue not in declared:
            there.declare([_declared(app, answer, outgoing)])
            declared.add(outgoing.queue)
        return outgoing

    try:
        for found in _run(here, there, names, decide, state, limit=limit, same=True, **kwargs):
            state.filtered += 1
            if callback is not None:
                callback(state, _body(app, found), TaskMessage(found))
    finally:
        here.close()
        there.close()
    return state


def _sources(app: Any, source: Iterable[Any] | None, queues: Any) -> list[str]:
    given = source if source is not None else prepare_queues(queues)
    return [queue_spec(each).name for each in given] or [spec.name for spec in app.queues(None)]


def _destination(app: Any, found: Found, answer: Any, exchange: Any, routing_key: str | None) -> Outgoing:
    if isinstance(answer, str):
        return _addressed(app, found, None, answer)
    if isinstance(answer, QueueSpec) or hasattr(answer, "routing_key"):
        return found.outgoing(queue_spec(answer))
    try:
        where, key = answer
    except (TypeError, ValueError):
        where, key = exchange, routing_key
    if where is None and key is None:
        raise ValueError(f"where is {found.task}[{found.id}] to go? The predicate says no queue, and move() neither")
    return _addressed(app, found, str(getattr(where, "name", where) or "") or None, key)


def _declared(app: Any, answer: Any, outgoing: Outgoing) -> QueueSpec:
    if isinstance(answer, QueueSpec) or hasattr(answer, "routing_key"):
        return queue_spec(answer)
    return app.router.queues.get(outgoing.queue) or queue_spec(outgoing.queue)


def task_id_eq(task_id: str, body: Mapping[str, Any], message: Any) -> bool:
    """Say whether it is the task of this id."""
    return bool(body["id"] == task_id)


def task_id_in(ids: Collection[str], body: Mapping[str, Any], message: Any) -> bool:
    """Say whether it is one of the tasks of these ids."""
    return body["id"] in ids


def move_by_idmap(map: Mapping[str, Any], **kwargs: Any) -> State:
    """Move tasks by a mapping from their ids to queues; ends when it has them all."""
    return move(lambda body, message: map.get(body["id"]), limit=len(map), **kwargs)


def move_by_taskmap(map: Mapping[str, Any], **kwargs: Any) -> State:
    """Move tasks by a mapping from their names to queues."""
    return move(lambda body, message: map.get(body["task"]), **kwargs)


def move_task_by_id(task_id: str, dest: Any, **kwargs: Any) -> State:
    """Move the task of this id to a queue."""
    return move_by_idmap({task_id: dest}, **kwargs)


def expand_dest(ret: Any, exchange: Any, routing_key: Any) -> tuple[Any, Any]:
    """Return the pair that a predicate has answered, or else the given one."""
    try:
        where, key = ret
    except (TypeError, ValueError):
        return exchange, routing_key
    return where, key


def filter_callback(callback: Callable[..., Any], tasks: Collection[str]) -> Callable[..., Any]:
    """Return the callback for these tasks alone; without any, for all."""

    def filtered(body: Mapping[str, Any], message: Any) -> Any:
        return callback(body, message) if not tasks or body["task"] in tasks else None

    return filtered


def filter_status(state: State, body: Mapping[str, Any], message: Any = None, **kwargs: Any) -> None:
    """Print how far a run has come; a ``callback``."""
    print(f"Moving task {state.filtered}/{state.strtotal}: {body['task']}[{body['id']}]")


def _direct(hostname: Any) -> Any:
    from umbel.celery.amqp import worker_direct

    return worker_direct(hostname)


move_direct = partial(move, transform=_direct)
move_direct_by_id = partial(move_task_by_id, transform=_direct)
move_direct_by_idmap = partial(move_by_idmap, transform=_direct)
move_direct_by_taskmap = partial(move_by_taskmap, transform=_direct)
