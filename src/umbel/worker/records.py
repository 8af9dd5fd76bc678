"""What is stored about a task: its meta, encoded with the app's settings."""

from __future__ import annotations

from typing import Any

from umbel import states
from umbel.context import Context
from umbel.exceptions import DecodeError, EncodeError, InvalidTaskError, SerializationError
from umbel.interfaces import Clock, ResultRecord
from umbel.message import Call, Message, read_headers
from umbel.meta import encode_meta


class Records:
    """Encodes records for one app. Its methods may be called from any thread."""

    def __init__(self, app: Any, clock: Clock) -> None:
        self.enabled = app.backend is not None
        self._clock = clock
        self._extended = bool(app.conf.result_extended)
        self._serializer: str = app.conf.result_serializer
        self._expires = _seconds(app.conf.result_expires)

    def ignores(self, task: Any, call: Call) -> bool:
        """Say whether nothing is stored of this call, by its sender's wish or the task's own."""
        return not self.enabled or bool(call.headers.get("ignore_result")) or bool(task.ignore_result)

    def make(self, call: Call, state: str, result: Any, traceback: str | None, context: Context | None) -> ResultRecord:
        """Return the record of a state. Raises :exc:`EncodeError` if the result cannot be encoded."""
        payload = encode_meta(
            call.id,
            state,
            result,
            traceback,
            context.children if context is not None else (),
            self._clock.now() if state in states.READY_STATES else None,
            request=context,
            extended=self._extended,
            serializer=self._serializer,
        )
        return ResultRecord(task_id=call.id, state=state, payload=payload, expires=self._expires)

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
            readable = EncodeError(f"{type(error).__name__}: its arguments cannot be encoded ({inner})")
            return self.make(call, state, readable, traceback, context)

    def of_orphan(self, message: Message | None, error: Exception) -> ResultRecord | None:
        """Return the failure of a message that is no call, if it says at least which task it was to be."""
        if message is None or not self.enabled:
            return None
        try:
            _, task_id = read_headers(message)
        except (InvalidTaskError, DecodeError):
            return None
        payload = encode_meta(task_id, states.FAILURE, error, None, (), self._clock.now(), serializer=self._serializer)
        return ResultRecord(task_id=task_id, state=states.FAILURE, payload=payload, expires=self._expires)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else float(value)
    return seconds if seconds > 0 else None
