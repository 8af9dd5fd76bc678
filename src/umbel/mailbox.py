"""Remote control on the wire: one command to all workers, and a box where their replies arrive, in kombu's form.

The command goes to the fanout exchange ``<control_exchange>.pidbox``::

    {"method", "arguments", "destination": [node, ...] | null, "pattern", "matcher",
     "ticket", "reply_to": {"exchange", "routing_key"}}          the last two only where replies are wanted

and each node that it is for replies ``{node: value}`` to the box, with the ticket in its headers.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import DecodeError, SecurityError
from umbel.message import Message
from umbel.serialization import dumps, is_unsafe, loads
from umbel.signing import keyring_of, verifier_of
from umbel.utils.identity import uuid

#: The most bytes that a command or a reply may have.
LONGEST: Final = 16 << 20


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One command as a worker received it."""

    method: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    ticket: str | None = None
    reply_to: dict[str, str] | None = None
    clock: int = 0

    def is_for(self, node: str) -> bool:
        """Say whether this node is meant."""
        if self.destination:
            return node in self.destination
        return matches(node, self.pattern, self.matcher) if self.pattern and self.matcher else True


def matches(node: str, pattern: str, matcher: str | None = "glob") -> bool:
    """Say whether a node name fits a pattern: ``glob`` or ``pcre`` (a regular expression from the start).

    >>> matches("w1@box", "w?@*"), matches("w1@box", "w[23]", "pcre")
    (True, False)
    """
    if matcher == "pcre":
        try:
            return re.match(pattern, node) is not None
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
    if matcher in (None, "glob"):
        return fnmatch.fnmatch(node, pattern)
    raise ValueError(f"unknown matcher {matcher!r}; use 'glob' or 'pcre'")


def exchange_of(app: Any) -> str:
    """Return the name of the exchange that carries commands."""
    return f"{app.conf.control_exchange}.pidbox"


def read_request(app: Any, message: Message) -> Request:
    """Return the command in a message. Raises :exc:`DecodeError` or :exc:`SecurityError`: it is not to be obeyed."""
    verify = verifier_of(app.conf, app.clock.time)
    if verify is not None and (refused := verify(message, exchange_of(app))) is not None:
        raise refused
    body = _body(app, message)
    if not isinstance(body, dict):
        raise DecodeError(f"a command must be a mapping, not {type(body).__name__}")
    clock = message.headers.get("clock")
    known = {name: body[name] for name in Request.__struct_fields__ if name in body}
    known["arguments"] = known.get("arguments") or {}
    try:
        return msgspec.convert({**known, "clock": clock if isinstance(clock, int) else 0}, Request)
    except msgspec.ValidationError as error:
        raise DecodeError(f"a command of a form that is not known: {error}") from error


def _body(app: Any, message: Message) -> Any:
    if len(message.body) > LONGEST:
        raise DecodeError(f"it has {len(message.body)} bytes")
    # Never pickle, whatever tasks may use: everybody who reaches the broker can send a command.
    accept = {"json", *(name for name in app.conf.accept_content if not is_unsafe(name))}
    return loads(message.body, message.content_type, message.content_encoding, accept)


def _message(app: Any, body: Any, headers: dict[str, Any]) -> Message:
    serializer = app.conf.task_serializer
    content_type, encoding, data = dumps(body, "json" if is_unsafe(serializer) else serializer, what="the command")
    return Message(
        body=data,
        content_type=content_type,
        content_encoding=encoding,
        headers=headers,
        properties={"delivery_mode": 1},
    )


def send_reply(app: Any, request: Request, value: Mapping[str, Any]) -> None:
    """Send a node's reply, if one is wanted."""
    to = request.reply_to
    if not to or not to.get("routing_key"):
        return
    headers = {"ticket": request.ticket, "clock": app.events.clock.forward()}
    message = _message(app, value, headers)
    app.broker.pubsub().reply(to.get("exchange") or f"reply.{exchange_of(app)}", to["routing_key"], message)


def broadcast(
    app: Any,
    method: str,
    arguments: Mapping[str, Any],
    *,
    destination: Sequence[str] | None = None,
    reply: bool = False,
    timeout: float | None = 1.0,
    limit: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    pattern: str | None = None,
    matcher: str | None = None,
) -> list[dict[str, Any]] | None:
    """Send a command; with ``reply`` return what came until the timeout (seconds), each ``{node: value}``.

    With a ``destination``, or a ``limit``, it returns as soon as so many have replied. Raises
    :exc:`OperationalError` if the broker cannot be reached.
    """
    if isinstance(destination, str) or not isinstance(destination, Sequence | None):
        raise ValueError(f"destination must be a list or a tuple of node names, not {destination!r}")
    body: dict[str, Any] = {
        "method": method,
        "arguments": dict(arguments),
        "destination": list(destination) if destination else None,
        "pattern": pattern,
        "matcher": matcher,
    }
    headers = {"clock": app.events.clock.forward(), "expires": time.time() + timeout if timeout else 0}
    pubsub = app.broker.pubsub()
    if not reply:
        pubsub.publish(exchange_of(app), _signed(app, _message(app, body, headers)))
        return None
    exchange, oid, ticket = f"reply.{exchange_of(app)}", uuid(), uuid()
    box = pubsub.replies(exchange, oid)
    try:
        body.update(ticket=ticket, reply_to={"exchange": exchange, "routing_key": oid})
        pubsub.publish(exchange_of(app), _signed(app, _message(app, body, headers)))
        wanted = limit or (len(destination) if destination else None)
        return _collect(app, box, ticket, 1.0 if timeout is None else timeout, wanted, callback)
    finally:
        box.close()


def _signed(app: Any, message: Message) -> Message:
    keys = keyring_of(app.conf)
    if keys is not None:
        keys.sign(message, exchange_of(app), app.clock.time())
    return message


def _collect(
    app: Any,
    box: Any,
    ticket: str,
    timeout: float,
    wanted: int | None,
    callback: Callable[[dict[str, Any]], object] | None,
) -> list[dict[str, Any]]:
    """Return the replies. As in Celery the timeout starts anew with each."""
    replies: list[dict[str, Any]] = []
    while wanted is None or len(replies) < wanted:
        message = box.receive(timeout=timeout)
        if message is None:
            break
        if message.headers.get("ticket", ticket) != ticket:
            continue
        app.events.clock.adjust(message.headers.get("clock"))
        try:
            body = _body(app, message)
        except (DecodeError, SecurityError):
            continue
        if isinstance(body, dict):
            if callback is not None:
                callback(body)
            replies.append(body)
    return replies


def flatten(replies: Collection[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the replies as one mapping, and the names of nodes that replied more than once."""
    nodes: dict[str, Any] = {}
    twice: set[str] = set()
    for reply in replies:
        twice.update(nodes.keys() & reply.keys())
        nodes.update(reply)
    return nodes, sorted(twice)
