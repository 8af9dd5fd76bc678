"""Where a canvas puts its messages: they go to the broker in batches, however many tasks it has."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

from umbel.meta import encode_group
from umbel.publishing import Dispatch, prepare

#: How many messages go to the broker in one step.
BATCH: Final = 500

_NO_CHORDS: Final = (
    "a chord (a group with something after it) needs a result backend, where the values of its members are collected: "
    "set result_backend, or Umbel(backend=...)"
)


class Outbox:
    """Turns calls into messages and publishes them. Used by one thread, in a ``with`` block that sends the rest.

    What was collected when an error came is not sent; what was sent before stays sent, and a note on the error says
    how much that was.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._batch: list[Dispatch] = []
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.flush()
        else:
            self._note(error)

    def call(self, sig: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Take over one call of a task and return its result object. ``options`` becomes the outbox's own."""
        app = self.app
        task = sig._registered()
        if task is None:
            return self._put(prepare(app, app.plan(sig["task"]), args, kwargs, options))
        dispatch = None
        if not task._custom_apply_async:
            dispatch = task._prepare(app, args, kwargs, options)
        if dispatch is None:
            # Its class has something to do with each call, such as refusing a second one, or tasks run here and now.
            self.flush()
            return task.apply_async(args, kwargs, **options)
        return self._put(dispatch)

    def _put(self, dispatch: Dispatch) -> Any:
        """Keep a message for the next batch and return its result object."""
        if len(self._batch) >= BATCH:
            self.flush()
        self._batch.append(dispatch)
        return dispatch.result(self.app)

    def flush(self) -> None:
        """Publish what was collected. Raises what :meth:`Umbel.send_many` raises."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        try:
            self.app._send_batch(batch)
        except Exception as error:
            self._note(error)
            raise
        self._sent += len(batch)

    def _note(self, error: BaseException) -> None:
        if self._sent:
            error.add_note(f"{self._sent} tasks of this canvas were sent before")
            self._sent = 0

    # -- chords --------------------------------------------------------------------------------------------------

    def open_chord(self, group_id: str, size: int) -> None:
        """Say how many parts the chord waits for. To be called before its last member is taken over."""
        chord_backend(self.app).chord(group_id).begin(size, expires=chord_expires(self.app.conf))

    def save_group(self, result: Any) -> None:
        """Keep how the members of a chord are nested, for the value that its body gets."""
        conf = self.app.conf
        payload = encode_group(result, serializer=conf.result_serializer, compression=conf.result_compression)
        chord_backend(self.app).save_group(result.id, payload, expires=chord_expires(conf))


def chord_backend(app: Any) -> Any:
    """Return the backend that keeps the parts of chords. Raises :exc:`NotImplementedError` if there is none.

    To be called before anything is sent: the worker that comes to the chord could tell nobody.
    """
    backend = app.backend
    if backend is None:
        raise NotImplementedError(_NO_CHORDS)
    # One that cannot keep them refuses here.
    backend.chord("")
    return backend


def chord_is_ordered(conf: Any) -> bool:
    """Say whether the body of a chord gets the values of the header in its order, or as they came in."""
    return bool((conf.result_backend_transport_options or {}).get("result_chord_ordered", True))


def chord_expires(conf: Any) -> float | None:
    """Return for how many seconds the parts of a chord are kept; None for ever."""
    seconds = conf.seconds("result_chord_expires")
    if seconds is None:
        seconds = conf.seconds("result_expires")
    return seconds or None
