"""What is stored about a task: its meta, and its part of a chord, encoded with the app's settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from umbel import states
from umbel.context import Context
from umbel.exceptions import DecodeError, EncodeError, InvalidTaskError, SecurityError, SerializationError
from umbel.interfaces import ChordPart, Clock, ResultRecord
from umbel.message import Call, Message, read_headers
from umbel.meta import accepted, decode_meta, encode_meta, encode_part
from umbel.outbox import chord_expires, chord_is_ordered
from umbel.sensitive import veil_of
from umbel.serialization import dumps, loads

logger = logging.getLogger("celery.app.trace")

_NOTED = 10_000


class Contribution(ChordPart, frozen=True, kw_only=True):
    """A part, with what is needed where it turns out to be the last one."""

    body: Mapping[str, Any]  # the signature that is called with the values of all parts
    call: Call  # the call that ended


class Records:
    """Encodes records for one app. Its methods may be called from any thread."""

    def __init__(self, app: Any, clock: Clock) -> None:
        self.enabled = app.backend is not None
        self._app = app
        self._clock = clock
        self._extended = bool(app.conf.result_extended)
        self._tracebacks = bool(app.conf.result_store_traceback)
        self._serializer: str = app.conf.result_serializer
        self._expires = _seconds(app.conf.result_expires)
        self._chord_expires = chord_expires(app.conf)
        self._ordered = chord_is_ordered(app.conf)
        # A note makes whoever writes to the store the author of a message; with signed messages nobody may be that.
        self._notes = self.enabled and app.backend.shares_chords and app.conf.security_key is None
        self._noted: dict[str, None] = {}  # the chords that this process has left a note of, the latest last

    def ignores(self, task: Any, call: Call) -> bool:
        """Say whether nothing is stored of this call: as its sender wishes, or who said nothing, the task itself."""
        said = call.headers.get("ignore_result")
        return not self.enabled or bool(task.ignore_result if said is None else said)

    def make(self, call: Call, state: str, result: Any, traceback: str | None, context: Context | None) -> ResultRecord:
        """Return the record of a state. Raises :exc:`EncodeError` if the result cannot be encoded."""
        payload = encode_meta(
            call.id,
            state,
            result,
            traceback if self._tracebacks else None,
            context.children if context is not None else (),
            self._clock.now() if state in states.READY_STATES else None,
            request=context,
            extended=self._extended,
            veil=veil_of(self._app.registry.get(call.task)) if self._extended else None,
            serializer=self._serializer,
        )
        reply_to = call.properties.get("reply_to") or ""
        return ResultRecord(task_id=call.id, state=state, payload=payload, expires=self._expires, reply_to=reply_to)

    def failure(
        self,
        call: Call,
        error: BaseException,
        traceback: str | None = None,
        context: Context | None = None,
        state: str = states.FAILURE,
    ) -> ResultRecord | None:
        """Return the record of an error, which can always be encoded; None where results are disabled."""
        if not self.enabled:
            return None
        try:
            return self.make(call, state, error, traceback, context)
        except SerializationError as inner:
            return self.make(call, state, _readable(error, inner), traceback, context)

    def of_orphan(self, message: Message | None, error: Exception) -> ResultRecord | None:
        """Return the failure of a message that is no call, if it says at least which task it was to be."""
        if message is None or not self.enabled:
            return None
        try:
            _, task_id = read_headers(message)
        except (InvalidTaskError, DecodeError):
            return None
        reply_to = message.properties.get("reply_to")
        return self._of_id(task_id, error, None, states.FAILURE, reply_to)

    def _of_id(
        self,
        task_id: str,
        error: BaseException,
        traceback: str | None,
        state: str,
        reply_to: Any,
        request: Context | None = None,
    ) -> ResultRecord:
        how: dict[str, Any] = {"request": request, "extended": self._extended, "serializer": self._serializer}
        moment = self._clock.now()
        traceback = traceback if self._tracebacks else None
        try:
            payload = encode_meta(task_id, state, error, traceback, (), moment, **how)
        except SerializationError as inner:
            error = _readable(error, inner)
            payload = encode_meta(task_id, state, error, traceback, (), moment, **how)
        address = reply_to if isinstance(reply_to, str) else ""
        return ResultRecord(task_id=task_id, state=state, payload=payload, expires=self._expires, reply_to=address)

    # -- chords and chains ---------------------------------------------------------------------------------------

    def part(self, call: Call, state: str, result: Any) -> Contribution | None:
        """Return what a member adds to its chord. Raises :exc:`EncodeError` if the result cannot be encoded."""
        headers = call.headers
        return self._part(call, call.chord, call.id, headers.get("group"), headers.get("group_index"), state, result)

    def _part(
        self, call: Call, body: Any, task_id: str | None, group_id: Any, index: Any, state: str, result: Any
    ) -> Contribution | None:
        if not body or not group_id or not task_id:
            return None
        if not self.enabled:
            logger.error(
                "Task %s[%s] is a member of a chord, which cannot go on: this worker has no result backend to count "
                "its members in. Set result_backend.",
                call.task,
                task_id,
            )
            return None
        return Contribution(
            group_id=str(group_id),
            index=index if isinstance(index, int) else None,
            task_id=task_id,
            state=state,
            payload=encode_part(task_id, state, result, serializer=self._serializer),
            expires=self._chord_expires,
            ordered=self._ordered,
            note=self._note(str(group_id), body, call) if self._notes else b"",
            body=body,
            call=call,
        )

    def _note(self, group_id: str, body: Any, call: Call) -> bytes:
        """Return what :meth:`noted` reads, for the first part that this process adds to the chord."""
        if group_id in self._noted:
            return b""
        while len(self._noted) >= _NOTED:
            self._noted.pop(next(iter(self._noted)), None)
        self._noted[group_id] = None
        try:
            return dumps([body, call.task, call.id, call.headers], self._serializer, what="the body of a chord")[2]
        except SerializationError:
            # It came in another format than results are kept in.
            return b""

    def noted(self, group_id: str, note: bytes) -> Contribution:
        """Return a part that stands for those which the chord has, from the note that one of them left.

        Raises :exc:`DecodeError` if the note cannot be read.
        """
        content_type, encoding, _ = dumps(None, self._serializer)
        try:
            body, task, id, headers = loads(note, content_type, encoding, accepted(self._app.conf))
            call = Call(task=task, id=id, headers=dict(headers))
        except (TypeError, ValueError) as error:
            raise DecodeError(f"the note of chord {group_id} cannot be read: {error}") from error
        return Contribution(
            group_id=group_id, index=None, task_id=id, state=states.SUCCESS, payload=b"", body=body, call=call
        )

    def as_stored(self, parts: Sequence[ChordPart]) -> list[ChordPart]:
        """Return the parts with the values that are stored: those of an earlier run, if it came to store its own.

        Raises :exc:`OperationalError`.
        """
        found = self._app.backend.fetch([part.task_id for part in parts])
        return [self._as_stored(part, found.get(part.task_id)) for part in parts]

    def _as_stored(self, part: ChordPart, payload: bytes | None) -> ChordPart:
        if payload is None:
            return part
        try:
            meta = decode_meta(payload, serializer=self._serializer, accept=accepted(self._app.conf))
            state = meta["status"]
            if state not in states.READY_STATES:
                return part
            value = encode_part(part.task_id, state, meta["result"], serializer=self._serializer)
        except (SerializationError, SecurityError) as error:
            logger.warning("The stored result of task %s cannot be read: %s", part.task_id, error)
            return part
        return msgspec.structs.replace(part, state=state, payload=value)

    def downfall(
        self, call: Call, error: BaseException, traceback: str | None = None, state: str = states.FAILURE
    ) -> dict[str, Any]:
        """Return what the failure of a call means for what comes after it, as fields of its settlement.

        The later steps of its chain fail with the same error, and whoever of them is a member of a chord counts as a
        failed one. Empty for most calls.
        """
        if not call.chain and call.chord is None:
            return {}
        parts = [self._failed_part(call, call.chord, call.id, call.headers, error, state)]
        fields = self.doom(call, reversed(call.chain or ()), error, traceback, state)
        found = [part for part in (*parts, *fields.get("parts", ()), fields.get("chord")) if part is not None]
        return {**fields, **_of_parts(found)}

    def doom(
        self,
        call: Call,
        sigs: Iterator[Mapping[str, Any]],
        error: BaseException,
        traceback: str | None = None,
        state: str = states.FAILURE,
    ) -> dict[str, Any]:
        """Return how the tasks of these signatures fail, which will never run, as fields of a settlement."""
        results: list[ResultRecord] = []
        parts: list[Contribution] = []
        for sig in sigs:
            for task, in_header in leaves(sig):
                options = task.get("options") or {}
                task_id = options.get("task_id")
                if task_id and not self._ignored(task, options):
                    reply_to = options.get("reply_to") or call.properties.get("reply_to")
                    request = _request_of(task) if self._extended else None
                    results.append(self._of_id(task_id, error, traceback, state, reply_to, request))
                about = {"group": options.get("group_id"), "group_index": options.get("group_index")}
                # The chord of a header will not be, and its body is among the leaves.
                body = None if in_header else options.get("chord")
                part = self._failed_part(call, body, task_id, about, error, state)
                if part is not None:
                    parts.append(part)
        return {**({"results": results} if results else {}), **_of_parts(parts)}

    def _failed_part(
        self, call: Call, body: Any, task_id: str | None, about: Mapping[str, Any], error: BaseException, state: str
    ) -> Contribution | None:
        place = about.get("group"), about.get("group_index")
        try:
            return self._part(call, body, task_id, *place, state, error)
        except SerializationError as inner:
            return self._part(call, body, task_id, *place, state, _readable(error, inner))

    def _ignored(self, sig: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        if not self.enabled or options.get("ignore_result") is not None:
            return not self.enabled or bool(options["ignore_result"])
        task = self._app.registry.get(sig.get("task"))
        return task is not None and bool(task.ignore_result)


def leaves(sig: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Yield the tasks of a signature, each with whether it is in the header of a chord that the signature has.

    Deep canvases are chains in options of chords in chains, so this keeps no stack of Python's own.
    """
    todo: list[tuple[Mapping[str, Any], bool]] = [(sig, False)]
    while todo:
        one, in_header = todo.pop()
        kind, kwargs = one.get("subtask_type"), one.get("kwargs") or {}
        todo += [(each, in_header) for each in (one.get("options") or {}).get("chain") or ()]
        if kind == "chord":
            if kwargs.get("body"):
                todo.append((kwargs["body"], in_header))
            header = kwargs.get("header") or ()
            todo += [(each, True) for each in ((header,) if isinstance(header, Mapping) else reversed(header))]
        elif kind in ("chain", "group"):
            todo += [(each, in_header) for each in reversed(list(kwargs.get("tasks") or ()))]
        else:
            yield one, in_header


def _request_of(sig: Mapping[str, Any]) -> Context:
    """Return what is known of the request of a task that never runs."""
    args, kwargs = list(sig.get("args") or ()), dict(sig.get("kwargs") or {})
    return Context(task=sig.get("task"), args=args, kwargs=kwargs, retries=0)


def _of_parts(parts: list[Contribution]) -> dict[str, Any]:
    if not parts:
        return {}
    return {"chord": parts[-1], "parts": parts[:-1]}


def _readable(error: BaseException, inner: Exception) -> Exception:
    return EncodeError(f"{type(error).__name__}: its arguments cannot be encoded ({inner})")


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else float(value)
    return seconds if seconds > 0 else None
