"""Which deliveries run, and how those end that do not.

::

    delivery ──unreadable, no task, bad signature──> dead letter
             ──verdict──> its failure (see verdicts.py)
             ──unknown task──> the schedule, some times; then dead letter
             ──early──> the schedule
             ──expired──> REVOKED
             ──else──> runs
"""

from __future__ import annotations

import logging
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import Any

from umbel import signals, states
from umbel.context import Context
from umbel.dead import PARKED, with_headers
from umbel.envelope import KEPT, remains
from umbel.exceptions import (
    ContentDisallowed,
    DecodeError,
    InvalidTaskError,
    NotRegistered,
    SecurityError,
    TaskRevokedError,
)
from umbel.interfaces import ACK, Clock, Dead, Delay, Delivery, Execution, Outgoing, Settlement
from umbel.message import Call, Message, decode_call, decode_envelope
from umbel.serialization import accepted_by
from umbel.signing import verifier_of
from umbel.tracing import TaskPlan
from umbel.utils.text import one_line as printable
from umbel.utils.text import text_of
from umbel.worker.allowed import AllowList
from umbel.worker.records import Records
from umbel.worker.verdicts import Condemned, Verdicts

logger = logging.getLogger("celery.worker.strategy")
request_logger = logging.getLogger("celery.worker.request")


class Admission:
    """Decides about deliveries for one app in one process. Its methods may be called from any thread."""

    def __init__(self, app: Any, records: Records, verdicts: Verdicts, *, hostname: str, clock: Clock) -> None:
        conf = app.conf
        self._app = app
        self._records = records
        self._hostname = hostname
        self._clock = clock
        self._plans: dict[str, TaskPlan] = {}
        self._accept = accepted_by(conf)
        self._verify = verifier_of(conf, clock.time)
        self._max_size: int = conf.max_message_size
        # A body grows by a third in base64, and headers repeat little of it; more is not even parsed.
        self._max_raw = 2 * self._max_size + (1 << 20)
        self._allowed = None if conf.task_allow_from_message is None else AllowList(conf.task_allow_from_message)
        self._pauses: tuple[float, ...] = tuple(conf.task_unknown_backoff or ())
        self._verdicts = verdicts

    def admit(self, delivery: Delivery, reserved_at: float) -> Execution | Settlement:
        """Return what to run, or the settlement of a delivery that must not run (now)."""
        if len(delivery.raw) > self._max_raw:
            large = DecodeError(f"it has {len(delivery.raw)} bytes, and max_message_size is {self._max_size}")
            return self._unreadable(delivery, None, large)
        try:
            message = delivery.message or decode_envelope(delivery.raw)
        except DecodeError as error:
            return self._unreadable(delivery, None, error)
        if self._verify is not None and (refused := self._verify(message, delivery.queue)) is not None:
            return self._unreadable(delivery, message, refused)
        try:
            call = decode_call(message, self._accept, self._max_size)
        except (DecodeError, InvalidTaskError, SecurityError) as error:
            return self._unreadable(delivery, message, error)
        if self._allowed is not None and (name := self._allowed.refused(call)) is not None:
            refusal = InvalidTaskError(
                f"task {call.task}[{call.id}]: it would run {name!r:.200}, which task_allow_from_message does not name"
            )
            return self._unreadable(delivery, message, refusal, "not_allowed")
        if delivery.verdict is not None:
            return self._verdicts.sentence(delivery, call, self._plan(call.task), reserved_at)
        plan = self._plans.get(call.task) or self._plan(call.task)
        if plan is None:
            return self._unknown(delivery, message, call, reserved_at)
        if call.eta is not None or call.expires is not None:
            early = self._timing(delivery, call, plan)
            if early is not None:
                return early
        self._received(delivery, call)
        return Execution(delivery=delivery, call=call, task=plan, reserved_at=reserved_at)

    def _received(self, delivery: Delivery, call: Call) -> None:
        if logger.isEnabledFor(logging.INFO):
            shadow = call.headers.get("shadow")
            logger.info(
                "Task %(name)s[%(id)s] received", {"name": one_line(shadow) if shadow else call.task, "id": call.id}
            )
        if signals.task_received.receivers:
            signals.task_received.send(sender=self._hostname, request=self._context(call, delivery))

    def _plan(self, name: str) -> TaskPlan | None:
        plan = self._plans.get(name)
        if plan is None:
            try:
                plan = self._plans[name] = TaskPlan(self._app.tasks[name])
            except NotRegistered:
                return None
        return plan

    def _context(self, call: Call, delivery: Delivery) -> Context:
        return Context.from_call(call, delivery, hostname=self._hostname)

    # -- deliveries that do not run ------------------------------------------------------------------------------

    def _unreadable(
        self, delivery: Delivery, message: Message | None, error: Exception, reason: str = ""
    ) -> Settlement:
        if reason:
            pass
        elif isinstance(error, ContentDisallowed):
            reason = "content_disallowed"
        elif isinstance(error, InvalidTaskError):
            reason = "invalid_task"
        elif isinstance(error, SecurityError):
            reason = "bad_signature"
        else:
            reason = "undecodable"
        detail = one_line(error)
        logger.error("Message from %s is kept as a dead letter (%s): %s", delivery.queue, reason, detail)
        # Where messages are signed, one that is not may name any task's id: it must not end the other's result.
        forged = isinstance(error, SecurityError) or "auth" in self._accept
        record = None if forged else self._records.of_orphan(message, error)
        return Settlement(
            delivery=delivery, how=Dead(reason, detail, kept=self._kept(delivery, message)), result=record
        )

    def _kept(self, delivery: Delivery, message: Message | None) -> bytes | None:
        """Return what is kept in place of a message that is too large or no message at all; None for all others.

        One of a fair size that cannot be read *here* is kept whole: a worker that was put right may read it.
        """
        if message is not None:
            return remains(delivery.raw, message) if len(message.body) > self._max_size else None
        return remains(delivery.raw, None) if len(delivery.raw) > KEPT else None

    def _unknown(self, delivery: Delivery, message: Message, call: Call, reserved_at: float) -> Execution | Settlement:
        """Let a message wait for a worker that knows its task; after the last pause it is a dead letter.

        It is published anew with a header that counts its pauses, in the step that acknowledges the old one: the
        header reaches the next worker through every kind of broker.
        """
        parked = message.headers.get(PARKED)
        parked = parked if type(parked) is int and parked >= 0 else 0 if parked is None else len(self._pauses)
        if parked >= len(self._pauses):
            return self._unregistered(delivery, call, reserved_at)
        pause = self._pauses[parked]
        logger.warning(
            "Received unregistered task of type %r. It waits %g s for a worker that knows it (pause %d of %d).",
            call.task,
            pause,
            parked + 1,
            len(self._pauses),
        )
        again = with_headers(message, {**message.headers, PARKED: parked + 1})
        info = message.properties.get("delivery_info")
        info = info if type(info) is dict else {}
        priority = message.properties.get("priority")
        outgoing = Outgoing(
            message=again,
            task_id=call.id,
            queue=delivery.queue,
            exchange=str(info.get("exchange") or ""),
            routing_key=str(info.get("routing_key") or delivery.queue),
            priority=priority if type(priority) is int else 0,
            not_before=self._clock.now() + timedelta(seconds=pause),
        )
        return Settlement(delivery=delivery, publish=(outgoing,))

    def _unregistered(self, delivery: Delivery, call: Call, reserved_at: float) -> Execution | Settlement:
        error = NotRegistered(call.task)
        logger.error(
            "Received unregistered task of type %r.\nThe message is kept as a dead letter. "
            "Did you remember to import the module containing this task, and is its name absolute?",
            call.task,
        )
        if signals.task_unknown.receivers:
            signals.task_unknown.send(sender=self._hostname, message=delivery, exc=error, name=call.task, id=call.id)
        how = Dead("unregistered", f"task {call.task!r} is not registered in any worker that read it")
        return self._verdicts.fail(
            Condemned(delivery=delivery, call=call, task=None, reserved_at=reserved_at, error=error, how=how)
        )

    def _timing(self, delivery: Delivery, call: Call, plan: TaskPlan) -> Settlement | None:
        now = self._clock.now()
        expires = _moment(call.expires)
        if expires is not None and expires <= now:
            return self._expired(delivery, call, plan)
        eta = _moment(call.eta)
        # A broker with a schedule hands a message out when it is due by the broker's clock, which may be a little
        # ahead of ours; only what a Celery producer put straight into the queue is really early.
        if eta is not None and (eta - now).total_seconds() > 0.5:
            return Settlement(delivery=delivery, how=Delay(eta))
        return None

    def _expired(self, delivery: Delivery, call: Call, plan: TaskPlan) -> Settlement:
        self._received(delivery, call)
        request_logger.info("Discarding revoked task: %s[%s]", call.task, call.id)
        context = self._context(call, delivery)
        if signals.task_revoked.receivers:
            signals.task_revoked.send(sender=plan.task, request=context, terminated=False, signum=None, expired=True)
        record, error = None, TaskRevokedError("expired")
        if not self._records.ignores(plan.task, call):
            record = self._records.failure(call, error, None, context, states.REVOKED)
        kept = Dead("expired", f"it was to start before {call.expires}") if plan.task.dead_letter_expired else ACK
        fall = self._records.downfall(call, error, None, states.REVOKED)
        return Settlement(delivery=delivery, how=kept, result=record, **fall)


def one_line(error: object) -> str:
    """Return the text of an error on one line of bounded length."""
    return printable(" ".join(text_of(error).split()))


_END_OF_TIME = datetime(MAXYEAR, 1, 1, tzinfo=UTC)


def _moment(text: Any) -> datetime | None:
    if text is None:
        return None
    if isinstance(text, int | float):
        return datetime.fromtimestamp(text, UTC)
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    # Further ahead it does not exist in every zone, and no store could tell when it is due.
    return min(moment, _END_OF_TIME)
