"""From a call to a message in a queue.

:func:`build` is pure: name, arguments and options in, one :class:`Outgoing` out. What does not change from call to
call of one task (its attributes, its route, the settings) is worked out once, in a :class:`Plan`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import MAXYEAR, UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Final, cast

import msgspec

from umbel import signals
from umbel.current import Frame, worker_frame
from umbel.drivers import mask
from umbel.exceptions import BrokerError, OperationalError, PublishUnknown
from umbel.interfaces import QUEUED, Outgoing, Published, PublishStatus
from umbel.loading import symbol_by_name
from umbel.message import Message, checked_id, encode_call
from umbel.routing import Destination, Router
from umbel.sensitive import veil_of
from umbel.serialization import compress, dumps, refuse_unsafe
from umbel.signatures import as_list
from umbel.signing import sign_batch
from umbel.template import Template
from umbel.utils.identity import uuid

logger = logging.getLogger(__name__)

#: Attributes of a task class that are options of each of its calls.
EXEC_OPTIONS: Final = (
    "queue", "routing_key", "exchange", "priority", "expires", "serializer", "delivery_mode", "compression",
    "time_limit", "soft_time_limit", "immediate", "mandatory",
)  # fmt: skip

# An explicit None takes away what the task class says; for every other option it means "not given".
_CLEARABLE: Final = frozenset({"expires", "time_limit", "soft_time_limit", "ignore_result"})
_ROUTING: Final = frozenset({"queue", "exchange", "routing_key"})

# What build() uses itself, and what speaks of the connection: none of these becomes a property of the message.
_OPTIONS: Final = frozenset({
    "add_to_parent", "argsrepr", "chain", "chord", "compression", "confirm_timeout", "connection", "countdown",
    "create_sent_event", "declare", "delivery_mode", "eta", "exchange", "exchange_type", "expires", "gate", "group_id",
    "group_index", "headers", "ignore_result", "immediate", "kwargsrepr", "link", "link_error", "mandatory", "origin",
    "parent_id", "priority", "producer", "publisher", "queue", "replaced_task_nesting", "reply_to", "result_cls",
    "retries", "retry", "retry_policy", "root_id", "route_name", "router", "routing_key", "serializer", "shadow",
    "soft_time_limit", "stamped_headers", "task_id", "task_type", "time_limit", "timeout", "unique", "unique_ttl",
})  # fmt: skip

# Brokers know these, and no worker would give up the key or open the gate.
_UNSERVED: Final = frozenset({"gate", "unique", "unique_ttl"})


class Plan:
    """What is the same for every call of one task while neither the configuration nor the task changes."""

    __slots__ = (
        "check", "defaults", "destination", "eager", "inherits_priority", "max_size", "name", "plain", "protocol",
        "retry", "router", "sent", "task", "template", "timeout", "timezone", "veil", "version",
    )  # fmt: skip

    def __init__(self, app: Any, name: str, task: Any) -> None:
        conf = app.conf
        serializer = conf.task_serializer
        # Reading may load the configuration, which is a change.
        self.version: int = conf.version
        self.name = name
        self.task = task
        self.router = app.router
        defaults: dict[str, Any] = {
            "serializer": serializer,
            "compression": conf.task_compression,
            "delivery_mode": _delivery_mode(conf.task_default_delivery_mode),
        }
        own = {} if task is None else {key: getattr(task, key, None) for key in EXEC_OPTIONS}
        own["ignore_result"] = None if task is None else task.ignore_result
        self.destination: Destination | None = None
        if self.router.static:
            defaults.update(self.router.route(name, (), {}, {}, task))
            defaults.update((key, value) for key, value in own.items() if value is not None)
            self.destination = self.router.destination(defaults)
        else:
            defaults.update((key, value) for key, value in own.items() if value is not None)
        if defaults.get("priority") is None:
            defaults["priority"] = conf.task_default_priority
        if task is not None and task._custom_result:
            defaults["result_cls"] = task.AsyncResult
        self.defaults = defaults
        self.check: Callable[[Any, Any], None] | None = None
        if task is not None and task.__header__ is not None:
            self.check = task.__header__.check if (app.strict_typing if task.typing is None else task.typing) else None
        self.veil = veil_of(task)
        self.plain: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.eager = bool(conf.task_always_eager)
        self.inherits_priority = bool(conf.task_inherit_parent_priority)
        self.protocol: int = conf.task_protocol
        sent = conf.task_send_sent_event
        self.sent = partial(symbol_by_name("umbel.events.sent:tell_sent"), app) if sent else None
        self.max_size: int = conf.max_message_size
        self.retry: tuple[bool, Mapping[str, Any]] = conf.task_publish_retry, conf.task_publish_retry_policy or {}
        self.timeout = float(conf.publish_timeout)
        self.timezone: tzinfo = UTC if conf.enable_utc else app.timezone
        if self.destination is not None and defaults.get("expires") is None and not defaults.get("countdown"):
            # What the usual call, one without options, looks like.
            self.plain = _vary(app, self, "", {}, defaults, None)
        self.template: Template | None = None
        if self.plain is not None and self.veil is None and _form(self.plain[0]) == ("json", None, 2, None):
            self.template = Template(self.plain[0])

    def merge(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of one call: what the caller gave, else the route, else the task, else the settings."""
        merged = dict(self.defaults)
        if not self.router.static:
            route = self.router.route(options.get("route_name") or self.name, args, kwargs, options, self.task)
            merged.update(route)
        elif options.get("route_name"):
            merged.update(self.router.route(options["route_name"], args, kwargs, options, self.task))
        for key, value in options.items():
            if value is not None or key in _CLEARABLE:
                merged[key] = value
        return merged

    def destination_of(self, merged: Mapping[str, Any], options: Mapping[str, Any]) -> Destination:
        """Return where this call goes."""
        if self.destination is not None and _ROUTING.isdisjoint(options) and "route_name" not in options:
            return self.destination
        found: Destination = self.router.destination(merged)
        return found


def _form(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(fields[name] for name in ("serializer", "compression", "protocol", "headers"))


def _delivery_mode(mode: Any) -> int:
    return int({"transient": 1, "persistent": 2, None: 2}.get(mode, mode))


def build(app: Any, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], *, inherit: bool = True) -> Outgoing:
    """Return the message of a call of :meth:`Umbel.send_task` with these options, and where it goes.

    With ``inherit`` the task that runs here is the call's parent unless the options say otherwise. Sends nothing.
    Raises :exc:`EncodeError` if the arguments cannot be serialized, :exc:`QueueNotFound` if the queue is not
    declared, and ``ValueError`` for options that contradict each other.
    """
    plan = app.plan(name)
    frame = worker_frame() if inherit else None
    outgoing = assemble(app, plan, args, kwargs, options, plan.merge(args, kwargs, options), frame)
    if app.conf.security_key is not None:
        sign_batch(app.conf, (outgoing,), app.clock.time())
    return outgoing


def assemble(
    app: Any,
    plan: Plan,
    args: Any,
    kwargs: Any,
    options: Mapping[str, Any],
    merged: Mapping[str, Any],
    frame: Frame | None,
) -> Outgoing:
    """Do :func:`build` with what the caller has looked up already."""
    task_id = options.get("task_id")
    task_id = uuid() if not task_id else checked_id(task_id)
    if plan.plain is not None and not options and frame is None:
        fields, address = plan.plain
        if plan.template is not None and (message := _written(app, plan.template, task_id, args, kwargs)) is not None:
            return Outgoing(message=message, task_id=task_id, **address)
    else:
        fields, address = _vary(app, plan, task_id, options, merged, frame)
    if plan.veil is not None:
        args_shown, kwargs_shown = plan.veil.reprs(args, kwargs)
        fields = {
            **fields,
            "argsrepr": fields.get("argsrepr") or args_shown,
            "kwargsrepr": fields.get("kwargsrepr") or kwargs_shown,
        }
    message = encode_call(
        id=task_id,
        args=args,
        kwargs=kwargs,
        correlation_id=task_id,
        reply_to=merged.get("reply_to") or app.thread_oid,
        **fields,
    )
    return Outgoing(message=message, task_id=task_id, **address)


def _written(app: Any, template: Template, task_id: str, args: Any, kwargs: Any) -> Message | None:
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        return None
    try:
        return template.write(task_id, args, kwargs, app.thread_oid)
    except Exception:  # of user code that encodes; encode_call() meets it again, and says which argument it was
        return None


def _vary(
    app: Any, plan: Plan, task_id: str, options: Mapping[str, Any], merged: Mapping[str, Any], frame: Frame | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a call's options make of its message, and of where and when it goes."""
    get = merged.get
    refuse_unsafe(merged["serializer"], app.conf, f"the serializer of task {plan.name}")
    where = plan.destination_of(merged, options)
    root_id, parent_id, priority = _family(plan, options, get("priority"), frame)
    hard, soft = get("time_limit"), get("soft_time_limit")
    if hard and soft and soft > hard:
        raise ValueError(
            f"task {plan.name}: soft_time_limit ({soft}) must be less than or equal to time_limit ({hard})"
        )
    fields: dict[str, Any] = {
        "task": plan.name,
        "serializer": merged["serializer"],
        "compression": get("compression"),
        "headers": get("headers"),
        "timelimit": (hard, soft),
        "root_id": root_id,
        "parent_id": parent_id,
        # None, for a task that is not known here, leaves it to the attribute of the task where it runs.
        "ignore_result": get("ignore_result"),
        "priority": priority,
        "delivery_mode": merged["delivery_mode"],
        "exchange": where.exchange,
        "routing_key": where.routing_key,
        "protocol": plan.protocol,
        "max_size": plan.max_size,
    }
    address: dict[str, Any] = {
        "queue": where.queue.name,
        "exchange": where.exchange,
        "routing_key": where.routing_key,
        "priority": priority,
    }
    if get("countdown") or get("eta"):
        address["not_before"], fields["eta"] = _due(app, plan, get("countdown"), get("eta"))
    if get("expires") is not None:
        fields["expires"], fields["expiration"] = _expiry(app, plan, task_id, merged["expires"])
    if options:
        fields.update(_callbacks_and_stamps(options, get))
        if fields["chord"] is not None or fields["chain"]:
            # A broker that drops it tells nobody, and its chord or chain would never end: a worker is to see it.
            fields.pop("expiration", None)
        if fields["retries"] or fields["replaced_task_nesting"]:
            address["attempt"] = f"{fields['retries']}\n{fields['replaced_task_nesting']}"
        if not _UNSERVED.isdisjoint(options):
            _refuse_unserved(plan, options)
    return fields, address


def _family(
    plan: Plan, options: Mapping[str, Any], priority: Any, frame: Frame | None
) -> tuple[str | None, str | None, int]:
    root_id, parent_id = options.get("root_id"), options.get("parent_id")
    if frame is not None:
        request = frame.request
        root_id = root_id or request.root_id or request.id
        parent_id = parent_id or request.id
        if plan.inherits_priority and options.get("priority") is None:
            inherited = (request.delivery_info or {}).get("priority")
            priority = inherited if inherited is not None else priority
    return root_id, parent_id, 0 if priority is None else int(priority)


def _callbacks_and_stamps(options: Mapping[str, Any], get: Any) -> dict[str, Any]:
    stamped = get("stamped_headers") or ()
    rest: dict[str, Any] = {
        "group": get("group_id"),
        "group_index": get("group_index"),
        "retries": get("retries") or 0,
        "shadow": get("shadow"),
        "chain": get("chain"),
        "chord": get("chord"),
        "callbacks": _signatures("link", get("link")),
        "errbacks": _signatures("link_error", get("link_error")),
        "origin": get("origin"),
        "argsrepr": get("argsrepr"),
        "kwargsrepr": get("kwargsrepr"),
        "replaced_task_nesting": get("replaced_task_nesting") or 0,
    }
    if stamped:
        rest["stamped_headers"] = list(stamped)
        rest["stamps"] = {header: options.get(header) for header in stamped}
    if not _OPTIONS.issuperset(options):
        unknown = {key: options[key] for key in options if key not in _OPTIONS and key not in stamped}
        if unknown:
            rest["properties"] = unknown
    return rest


def _refuse_unserved(plan: Plan, options: Mapping[str, Any]) -> None:
    for option in sorted(_UNSERVED & options.keys()):
        if options[option] is not None:
            raise ValueError(
                f"task {plan.name}: {option}={options[option]!r} is not available: no worker would free it again, and "
                "tasks would wait or be left out for ever; leave the option out"
            )


def _signatures(option: str, given: Any) -> list[Any] | None:
    found = as_list(given)
    for each in found or ():
        if not isinstance(each, Mapping):
            raise TypeError(f"{option} takes signatures such as task.s(2), not {each!r:.100}")
    return found


# -- moments -----------------------------------------------------------------------------------------------------


def _due(app: Any, plan: Plan, countdown: Any, eta: Any) -> tuple[datetime, str]:
    due = app.clock.now() + _delta(countdown, "countdown") if countdown else _moment(eta, plan.timezone, "eta")
    return due, due.isoformat()


def _expiry(app: Any, plan: Plan, task_id: str, expires: Any) -> tuple[str, float]:
    now = app.clock.now()
    if isinstance(expires, datetime | str):
        moment = _moment(expires, plan.timezone, "expires")
    else:
        moment = now + _delta(expires, "expires")
    seconds = (moment - now).total_seconds()
    if seconds < 0:
        logger.warning(
            "Task %s[%s] has expired already, %.3f s ago: it is sent, and will be discarded unrun. "
            "Check the 'expires' of the code that sends it if that is not meant.",
            plan.name,
            task_id,
            -seconds,
        )
        seconds = 0.0
    return moment.isoformat(), seconds


def _delta(seconds: Any, what: str) -> timedelta:
    if isinstance(seconds, timedelta):
        return seconds
    try:
        return timedelta(seconds=seconds)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{what} must be a number of seconds within a datetime's range, not {seconds!r}") from error


def _moment(value: Any, timezone: tzinfo, what: str) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"{what} must be a datetime or an ISO 8601 text, not {value!r}") from error
    if not isinstance(value, datetime):
        raise ValueError(f"{what} must be a datetime or an ISO 8601 text, not {value!r}")
    moment = value if value.tzinfo is not None else value.replace(tzinfo=timezone)
    if value.year == MAXYEAR:
        raise ValueError(f"{what} must be before the year {MAXYEAR}: in another zone {value} may not exist")
    return moment


# -- sending -----------------------------------------------------------------------------------------------------

_LEAST: Final = 0.1  # seconds that an attempt needs, lest it be cut off and its outcome be unknown


class Dispatch(msgspec.Struct, eq=False):
    """One call ready to be sent. Made where the caller is; sent there or in another thread."""

    outgoing: Outgoing
    plan: Plan
    args: Any
    kwargs: Any
    options: Mapping[str, Any]
    merged: Mapping[str, Any]
    frame: Frame | None

    def send_within(self, app: Any, timeout: float) -> None:
        """Do :meth:`send` in this many seconds, whatever the options say."""
        self.options = {**self.options, "timeout": timeout}
        self.send(app)

    def send(self, app: Any) -> None:
        """Publish it, telling whoever is connected to the signals. Blocks for at most the publish timeout."""
        self.announce()
        outcome = app.publish((self.outgoing,), **self.policy())[0]
        check_outcome(self.outgoing, outcome)
        self.report()

    def result(self, app: Any) -> Any:
        """Return the result object of the call, and add it to the running task's children."""
        make = self.merged.get("result_cls")
        task_id = self.outgoing.task_id
        # One of the user's own need not take more than the id: Celery gives it no more.
        result = app.AsyncResult(task_id, task_name=self.plan.name) if make is None else make(task_id)
        if self.merged.get("ignore_result"):
            result.ignored = True
        if self.frame is not None and self.options.get("add_to_parent", True):
            self.frame.task.add_trail(result)
        return result

    def policy(self) -> dict[str, Any]:
        """Return the keywords for :meth:`Umbel.publish`."""
        given = self.options
        retry, policy = self.plan.retry
        if given:
            if given.get("retry") is not None:
                retry = bool(given["retry"])
            policy = {**policy, **(given.get("retry_policy") or {})}
        return {"retry": retry, "policy": policy, "timeout": given.get("timeout") or self.plan.timeout}

    def _body(self) -> tuple[Any, Any, dict[str, Any]]:
        get = self.merged.get
        embed = {
            "callbacks": as_list(get("link")),
            "errbacks": as_list(get("link_error")),
            "chain": get("chain"),
            "chord": get("chord"),
        }
        return (() if self.args is None else self.args), ({} if self.kwargs is None else self.kwargs), embed

    def announce(self) -> None:
        """Send ``before_task_publish``, if anybody listens; receivers may change headers and arguments in place."""
        if not signals.before_task_publish.receivers:
            return
        message, outgoing, body = self.outgoing.message, self.outgoing, self._body()
        signals.before_task_publish.send(
            sender=self.plan.name,
            body=body,
            exchange=outgoing.exchange,
            routing_key=outgoing.routing_key,
            declare=[_declared(self.plan.router, outgoing.queue)],
            headers=message.headers,
            properties=message.properties,
            retry_policy=self.policy()["policy"],
        )
        if self.plan.protocol == 2:
            _, _, data = dumps(body, self.merged["serializer"])
            compression = self.merged.get("compression")
            message.body = compress(data, compression)[0] if compression else data

    def report(self) -> None:
        """Send ``after_task_publish``, if anybody listens, and the event ``task-sent``, if the settings say so."""
        if self.plan.sent is not None:
            self.plan.sent(self.outgoing)
        if not signals.after_task_publish.receivers:
            return
        outgoing, message = self.outgoing, self.outgoing.message
        signals.after_task_publish.send(
            sender=self.plan.name,
            body=self._body(),
            headers=message.headers,
            exchange=outgoing.exchange,
            routing_key=outgoing.routing_key,
        )


def _declared(router: Router, queue: str) -> Any:
    """Return a queue in the shape that receivers of ``before_task_publish`` know."""
    return symbol_by_name("umbel.celery.amqp:queue_of")(router.queues[queue])


def prepare(app: Any, plan: Plan, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Dispatch:
    """Return the call, ready to be sent. Reads who is calling, so call it where the caller is."""
    merged = plan.merge(args, kwargs, options) if options or not plan.router.static else plan.defaults
    frame = worker_frame()
    outgoing = assemble(app, plan, args, kwargs, options, merged, frame)
    return Dispatch(outgoing, plan, args, kwargs, options, merged, frame)


def check_outcome(outgoing: Outgoing, outcome: Published) -> None:
    """Raise :exc:`BrokerError` if the broker refused the message."""
    if outcome.status is PublishStatus.REFUSED:
        raise BrokerError(
            f"the broker refused task {outgoing.task_id} for queue {outgoing.queue!r}: {outcome.detail or 'no reason'}"
        )


def publish_with_retries(
    app: Any, batch: Sequence[Outgoing], *, retry: bool, policy: Mapping[str, Any], timeout: float
) -> Sequence[Published]:
    """Publish, and try again as the policy says while the broker cannot be reached.

    All of it takes no longer than ``timeout`` (seconds). Raises :exc:`OperationalError` if nothing was queued and
    :exc:`PublishUnknown` if that cannot be known.
    """
    if app.conf.security_key is not None:
        # Here and not in assemble(): receivers of before_task_publish and middlewares may change a message.
        sign_batch(app.conf, batch, app.clock.time())
    started: float = app.clock.monotonic()
    deadline, left = started + timeout, timeout
    try:
        if not app.connected:
            _ = app.broker  # connects
            left = max(deadline - app.clock.monotonic(), _LEAST)
        return cast(Sequence[Published], app.broker.publish(batch, timeout=left))
    except OperationalError as error:
        failure = error
    unknown = isinstance(failure, PublishUnknown)
    for pause in _pauses(policy) if retry else ():
        # Where a repeated id is not recognised, trying again could queue the task twice.
        left = deadline - app.clock.monotonic() - pause
        if (unknown and not _recognises_repeats(app)) or left < min(_LEAST, timeout / 10):
            break
        if pause:
            app.clock.wait(threading.Event(), pause)
        try:
            again: Sequence[Published] = app.broker.publish(batch, timeout=left)
        except OperationalError as error:
            failure = error
            unknown = unknown or isinstance(error, PublishUnknown)
        else:
            return [_own_repeat(*pair) for pair in zip(batch, again, strict=True)] if unknown else again
    where = mask(app.broker_url)
    if unknown:
        raise PublishUnknown(batch[0].task_id, f"broker {where}: {failure}") from failure
    what = f"task {batch[0].task_id}" if len(batch) == 1 else f"{len(batch)} tasks"
    raise OperationalError(
        f"cannot send {what} to the broker at {where}: {failure}. Nothing was queued; it is safe to send again."
    ) from failure


def _recognises_repeats(app: Any) -> bool:
    return bool(app.broker.features.dedupe and app.conf.publish_dedupe)


def _own_repeat(outgoing: Outgoing, outcome: Published) -> Published:
    """Return QUEUED where what is there already is what the attempt before left behind."""
    mine = outcome.status is PublishStatus.DUPLICATE and outcome.detail == outgoing.task_id
    return QUEUED if mine else outcome


def _pauses(policy: Mapping[str, Any]) -> Any:
    most = policy.get("max_retries", 3)
    pause = float(policy.get("interval_start", 0) or 0)
    step, longest = float(policy.get("interval_step", 0.2) or 0), float(policy.get("interval_max", 1) or 0)
    done = 0
    while most is None or done < most:
        yield min(pause, longest) if longest else pause
        # Without a pause of its own a policy without an end would spin.
        pause = max(pause + step, 0.01)
        done += 1
