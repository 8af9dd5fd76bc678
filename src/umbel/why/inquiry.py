"""Why a task is not running: where it is at this moment, and what would help.

:func:`why` looks at the broker, the results, the revocations, the history and the workers, and says in plain words what
it found. It takes nothing and changes nothing. What cannot be known, it says too.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from umbel import states
from umbel.dead import PARKED
from umbel.history import History
from umbel.interfaces import Place, Sighting
from umbel.meta import Meta
from umbel.utils.text import one_line
from umbel.why.looking import Looking
from umbel.why.words import crash_of, headers_of, moment, names, since_of, time_of

#: Everything that :attr:`Answer.verdict` can be.
VERDICTS: Final = (
    "unknown", "queued", "paused", "no_worker", "scheduled", "retrying", "rate_limited", "redelivered", "unregistered",
    "gate", "reserved", "running", "held", "lost", "ending", "revoked", "expired", "dead", "finished", "vanished",
    "unclear",
)  # fmt: skip
_REMOTE: Final = "its worker did not answer: remote control may be off there, or it is busy"
#: Seconds by which the moment a message is due may differ from the moment its sender asked for.
_SLACK: Final = 2.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task is. ``verdict`` is one of :data:`VERDICTS`, for programs; ``text`` says it to people.

    ``advice`` says what would help, ``unseen`` what could not be looked at, and ``facts`` holds what was found:
    ``place queue position of eta node consumer since pid reason crashes readers state paused`` where they apply.
    """

    task_id: str
    verdict: str
    text: str
    advice: Sequence[str] = ()
    unseen: Sequence[str] = ()
    facts: Mapping[str, Any] = msgspec.field(default_factory=dict)


def why(app: Any, task_id: str, *, history: History | None = None, timeout: float = 1.0) -> Answer:
    """Return where a task is and why it does not run.

    :param timeout: seconds that a worker gets to answer; looking through the queues may take two more.

    Raises :exc:`OperationalError` if the broker cannot be reached.
    """
    return _Inquiry(app, task_id, history, timeout).answer()


class _Inquiry(Looking):
    """One question, from looking to words."""

    def answer(self) -> Answer:
        """Look, and say what was found."""
        seen = self.find()
        if seen is not None:
            return self._seen(seen)
        meta = self.meta()
        if meta is not None and meta["status"] in states.READY_STATES:
            return self._finished(meta)
        return self._nowhere(meta)

    def say(self, verdict: str, text: str, *advice: str, **facts: Any) -> Answer:
        """Return an answer with what is known of the facts."""
        known = {name: value for name, value in facts.items() if value not in (None, "", [], ())}
        return Answer(
            task_id=self.id, verdict=verdict, text=text, advice=advice, unseen=tuple(self.unseen), facts=known
        )

    # -- what was seen -------------------------------------------------------------------------------------------

    def _seen(self, seen: Sighting) -> Answer:
        headers = headers_of(seen)
        facts: dict[str, Any] = {
            "place": seen.place,
            "queue": seen.seen.queue,
            "task": headers.get("task") or None,
            "crashes": [crash_of(each) for each in seen.seen.crashes],
        }
        if seen.place == "dead":
            return self._dead(seen, facts)
        if seen.place == "held":
            return self._held(seen, facts)
        if seen.place == "gate":
            return self.say(
                "gate",
                f"It waits at the gate {seen.gate!r} until another task lets it through.",
                "tasks behind one gate run one after the other; the one that is through lets the next one in when it "
                "ends",
                gate=seen.gate,
                **facts,
            )
        if seen.place == "ends":
            reason = (
                (seen.verdict.detail or seen.verdict.kind.value) if seen.verdict is not None else "that was decided"
            )
            queue = seen.seen.queue
            pause = self.paused().get(queue)
            paused = f" That queue is paused {since_of(pause, self.now)}." if pause is not None else ""
            return self.say(
                "ending",
                f"It will not run again: {reason}. The next worker that reads {queue!r} writes down its end.{paused}",
                f"start a worker: {self._worker(queue)}" if pause is None else self._resume(queue),
                reason=seen.verdict.kind.value if seen.verdict is not None else None,
                **facts,
            )
        return self._waiting(seen, headers, facts)

    def _waiting(self, seen: Sighting, headers: Mapping[str, Any], facts: dict[str, Any]) -> Answer:
        queue, at = seen.seen.queue, seen.seen.at
        where = (
            f"number {seen.position} of {seen.of} in the queue {queue!r}"
            if seen.place == "ready"
            else f"in the schedule, due at {moment(at, self.now)}"
        )
        facts.update(position=seen.position, of=seen.of, eta=at.isoformat() if at is not None else None)
        if self.revoked(headers.get("stamps")):
            return self.say(
                "revoked",
                f"It was revoked. Its message is still there ({where}); the worker that meets it drops it.",
                "send it anew if it is to run after all",
                **facts,
            )
        expires = time_of(headers.get("expires"))
        if expires is not None and expires <= self.now:
            return self.say(
                "expired",
                f"It expired at {moment(expires, self.now)} before anybody ran it. Its message is still there "
                f"({where}); the worker that meets it drops it.",
                f"send it anew with a later expires, or have more workers read {queue!r}",
                **facts,
            )
        if (pause := self.paused().get(queue)) is not None:
            return self.say(
                "paused",
                f"It is {where}, and its queue is paused {since_of(pause, self.now)}: no worker fetches it.",
                self._resume(queue),
                paused={"at": pause.at.isoformat(), "by": pause.by, "why": pause.why},
                **facts,
            )
        readers = self.readers(queue)
        mine = sorted(node for node, queues in readers.items() if queue in queues)
        facts["readers"] = {node: sorted(queues) for node, queues in sorted(readers.items())}
        if not mine:
            return self._no_worker(queue, where, readers, facts)
        if seen.place == "scheduled":
            return self._scheduled(seen, headers, mine, facts)
        if seen.seen.crashes:
            return self._redelivered(seen, f"It is {where} again.", facts)
        return self.say(
            "queued",
            f"It is {where}, which {names(mine)} {'reads' if len(mine) == 1 else 'read'}.",
            "nothing is wrong: it runs when those before it have started; more or larger workers make that sooner",
            **facts,
        )

    def _no_worker(self, queue: str, where: str, readers: Mapping[str, list[str]], facts: dict[str, Any]) -> Answer:
        if readers:
            others = "; ".join(f"{node} reads {', '.join(sorted(queues))}" for node, queues in sorted(readers.items()))
            found = f"no worker reads the queue {queue!r} ({one_line(others)})"
        else:
            found = "no worker is running"
        return self.say(
            "no_worker",
            f"It is {where}, and {found}.",
            f"start a worker for it: {self._worker(queue)}",
            *([f"or have one of those read it too: umbel control add_consumer {queue}"] if readers else []),
            **facts,
        )

    def _scheduled(
        self, seen: Sighting, headers: Mapping[str, Any], readers: Sequence[str], facts: dict[str, Any]
    ) -> Answer:
        due, eta, task = seen.seen.at, time_of(headers.get("eta")), headers.get("task")
        when = f"It is due at {moment(due, self.now)}"
        if headers.get(PARKED):
            return self.say(
                "unregistered",
                f"No worker that read it knew the task {task!r}: it is tried again at {moment(due, self.now)}.",
                "have the workers import the module that the task is in (the setting imports, or include)",
                "see what they know: umbel inspect registered",
                **facts,
            )
        put_off = eta is None or (due is not None and (due - eta).total_seconds() > _SLACK)
        if seen.seen.crashes and put_off:
            return self._redelivered(seen, f"It is tried again at {moment(due, self.now)}.", facts)
        rate = self.rate(task, readers) if put_off else None
        if rate:
            return self.say(
                "rate_limited",
                f"The task {task!r} may start {rate}, and its turn is at {moment(due, self.now)}.",
                f"allow more: umbel control rate_limit {task} RATE (0: no limit)",
                rate_limit=rate,
                **facts,
            )
        retries = headers.get("retries")
        if isinstance(retries, int) and retries > 0:
            reason = f" after {self.row.exception}" if self.row is not None and self.row.exception else ""
            return self.say(
                "retrying", f"{when}: that is its retry number {retries}{one_line(reason)}.", retries=retries, **facts
            )
        return self.say("scheduled", f"{when}, as its sender asked (eta or countdown).", **facts)

    def _redelivered(self, seen: Sighting, then: str, facts: dict[str, Any]) -> Answer:
        crashes = seen.seen.crashes
        last = crashes[-1]
        times = "once" if len(crashes) == 1 else f"{len(crashes)} times"
        return self.say(
            "redelivered",
            f"Its worker was lost {times} while it had it, the last time at {moment(last.at, self.now)}: "
            f"{last.consumer.rsplit(':', 2)[0]} ({last.cause or 'cause unknown'}). {then}",
            "look for what kills the worker: memory, a crash in native code, kill -9; the message dies after "
            "max_deliveries of them",
            **facts,
        )

    def _held(self, seen: Sighting, facts: dict[str, Any]) -> Answer:
        since = seen.seen.at
        facts.update(node=seen.node, consumer=seen.consumer, since=since.isoformat() if since is not None else None)
        lost = self.lost(seen)
        if lost is not None:
            return self.say(
                "lost",
                f"{seen.node} has it and {lost}: another worker takes it over, within half a minute or so.",
                f"if no other worker is running, start one: {self._worker(seen.seen.queue)}",
                **facts,
            )
        told = self.known_by_workers(seen.node or None)
        if told is None:
            self.unseen.append(_REMOTE)
            holder = seen.node or "A Celery worker"
            return self.say(
                "held",
                f"{holder} has taken it from {seen.seen.queue!r}; whether it has started is not known.",
                "umbel inspect active shows what runs",
                **facts,
            )
        return self._told(*told, facts)

    def _told(self, node: str, state: str, told: Mapping[str, Any], facts: dict[str, Any]) -> Answer:
        facts["node"] = node
        if state != "active":
            return self.say(
                "reserved",
                f"{node} has taken it and not started it: what its processes run now comes first.",
                "nothing is wrong; if that takes too long, let a worker take less in advance: "
                "worker_prefetch_multiplier",
                **facts,
            )
        started = told.get("time_start")
        begun = datetime.fromtimestamp(started, UTC) if isinstance(started, int | float) else None
        facts.update(since=begun.isoformat() if begun else None, pid=told.get("worker_pid"))
        since = f" since {moment(begun, self.now)}" if begun else ""
        return self.say(
            "running",
            f"It runs{since}, on {node}" + (f" in process {facts['pid']}." if facts["pid"] else "."),
            f"to end it: umbel tasks revoke {self.id} --terminate",
            **facts,
        )

    def _dead(self, seen: Sighting, facts: dict[str, Any]) -> Answer:
        letter = seen.seen
        facts.update(reason=letter.reason, at=letter.at.isoformat() if letter.at is not None else None)
        detail = f" {letter.detail[:1].upper()}{letter.detail[1:]}." if letter.detail else ""
        return self.say(
            "dead",
            f"It is a dead letter of {letter.queue!r} since {moment(letter.at, self.now)}: "
            f"{letter.reason}.{one_line(detail)}",
            f"see what happened: umbel dead show {self.id}",
            f"run it again: umbel dead requeue {self.id}",
            "what each reason means: docs/dead-letters.md",
            **facts,
        )

    # -- what was not seen ---------------------------------------------------------------------------------------

    def _finished(self, meta: Meta) -> Answer:
        state = str(meta["status"])
        at = time_of(meta.get("date_done"))
        ended = f" at {moment(at, self.now)}" if at is not None else ""
        error = meta.get("result") if state in states.EXCEPTION_STATES else None
        reason = f": {one_line(f'{type(error).__name__}: {error}')}" if error is not None else ""
        advice = [f"umbel result {self.id}"] if state == states.SUCCESS else [f"umbel tasks show {self.id}"]
        ended_at = at.isoformat() if at is not None else None
        return self.say("finished", f"It has ended{ended} with {state}{reason}.", *advice, state=state, ended=ended_at)

    def _nowhere(self, meta: Meta | None) -> Answer:
        told = self.known_by_workers(None)
        if told is not None:
            # As of a Celery worker that acknowledges before it runs, or where queues cannot be looked at.
            return self._told(*told, {"place": "held"})
        if self.revoked(None):
            return self.say(
                "revoked",
                "It was revoked, and no message of it is there.",
                "send it anew if it is to run after all",
            )
        if not self.searched:
            return self._unclear(meta)
        state = meta["status"] if meta is not None else self.row.state if self.row is not None else None
        if state is None:
            return self.say(
                "unknown",
                "Nobody knows this id: there is no message, no result and no history of it.",
                "check the id, and that -A and the broker are those that the sender uses",
                "a task whose result is ignored, or has expired, leaves nothing behind when it has ended",
            )
        if self.row is not None and self.row.ready:
            ended = datetime.fromtimestamp(self.row.ended or self.row.at, UTC)
            return self.say(
                "finished",
                f"It ended at {moment(ended, self.now)} with {state}, by its history; its result is not kept any more.",
                f"umbel tasks show {self.id}",
                state=state,
                ended=ended.isoformat(),
            )
        return self.say(
            "vanished",
            f"It was last seen as {state}, and now no message of it is there and no worker has it.",
            "it may have ended without a result (ignore_result), or its queue was purged",
            "a Celery worker that acknowledges early loses a task with its process",
            state=state,
        )

    def _unclear(self, meta: Meta | None) -> Answer:
        lines, counts = [], {}
        for queue in self.queues()[:10]:
            ready, held = self.app.broker.size(queue), self.app.broker.size(queue, Place.HELD)
            counts[queue] = {"ready": ready, "held": held}
            pause = self.paused().get(queue)
            since = f", paused {since_of(pause, self.now)}" if pause is not None else ""
            lines.append(f"{queue!r}: {ready} waiting, {held} held{since}")
        readers = self.readers(self.queues()[0]) if lines else {}
        paused = [self._resume(queue) for queue in counts if queue in self.paused()]
        state = meta["status"] if meta is not None else self.row.state if self.row is not None else None
        last = f" It was last seen as {state}." if state else ""
        who = (
            f"{names(sorted(readers))} {'is' if len(readers) == 1 else 'are'} running"
            if readers
            else ("no worker answers")
        )
        return self.say(
            "unclear",
            f"It has no final result, and no worker has it now.{last} In the queues: {'; '.join(lines)}; {who}.",
            *paused,
            "if it waits, it is one of those; if nothing waits, it was never sent, was purged, or ended without a "
            "result",
            state=state,
            queues=counts,
            readers={node: sorted(queues) for node, queues in sorted(readers.items())},
        )

    def _resume(self, queue: str) -> str:
        return f"umbel queues resume {shlex.quote(queue)}"

    def _worker(self, queue: str) -> str:
        return f"umbel -A {self.app.main or 'APP'} worker -Q {queue}"
