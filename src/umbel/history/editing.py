"""Sending one task once more with other arguments, to another queue, or later.

What it was called with is looked for in its message, while that is in the broker, then in its stored result, then in
what events told. Only the first has the values of what is sensitive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from umbel.dead import DeadLetter
from umbel.editing import Arguments, as_carried, check_call, checked_countdown, filled
from umbel.exceptions import CeleryError, OperationalError
from umbel.history.replay import Refused, Replayed, Replayer, origin
from umbel.history.rows import TaskRow
from umbel.interfaces import Sighting
from umbel.message import decode_call, decode_envelope
from umbel.publishing import build
from umbel.sensitive import HIDDEN, shown_call, veil_of
from umbel.serialization import accepted_by
from umbel.signing import verifier_of

Source = Literal["message", "dead letter", "result", "events"]


class Original(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call that is to be made once more.

    ``arguments`` are the real ones, which people may not see as they are; None where they are not known, and
    ``refusal`` then says why. ``secret``: something in them is hidden, and nobody here knows what.
    """

    id: str
    task: str
    queue: str | None
    source: Source
    arguments: Arguments | None = None
    refusal: str = ""
    secret: bool = False
    waits: bool = False  # its message is still in the broker: it may run as well
    follows: bool = False  # callbacks, a chain or a chord belong to it, and are not sent once more
    letter: DeadLetter | None = None


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be otherwise; None leaves it as it was. ``countdown`` is in seconds."""

    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    queue: str | None = None
    countdown: float | None = None


class Editor(Replayer):
    """Sends tasks of one app once more, changed. Used by one thread."""

    def original(self, id: str, queues: Iterable[str] = ()) -> Original:
        """Return what is known of a call; its message is looked for in its queue, the app's, and ``queues``.

        Raises :exc:`Refused` where not even its name is, and :exc:`OperationalError` where the broker is away.
        """
        letter = self._app.dead.get(id)
        if letter is not None:
            return self.of_letter(letter)
        row = self._row(id)
        queue = row.queue if row is not None else None
        found = self._of_message(id, [queue or "", *queues]) if row is None or not row.ready else None
        if found is not None:
            return found
        try:
            name, args, kwargs, queue, source = self._call(id, row)
            args, kwargs = as_carried("its arguments", (args, kwargs))
        except (Refused, ValueError) as error:
            name = row.name if row is not None else self._name_in_result(id)
            if not name:
                raise
            return Original(id=id, task=name, queue=queue, source="events", refusal=str(error))
        return Original(
            id=id, task=name, queue=queue, arguments=(args, kwargs), source="result" if source == "result" else "events"
        )

    def of_letter(self, letter: DeadLetter) -> Original:
        """Return what is known of the call in a dead letter."""
        found, shown = self._app.dead.arguments(letter), self._app.dead.shown(letter)
        return Original(
            id=letter.task_id or letter.id,
            task=letter.task,
            queue=letter.queue,
            source="dead letter",
            arguments=found,
            refusal="" if found is not None else "its arguments cannot be read with this app's accept_content",
            # What is shown of a task that is not known here is a text.
            secret=shown is not None and isinstance(shown[0], str),
            letter=letter,
        )

    def shown(self, original: Original) -> tuple[list[Any], dict[str, Any]] | None:
        """Return the arguments as people may see them, ``***`` for what is hidden; None where they are not to be."""
        if original.arguments is None or original.secret:
            return None
        return shown_call(self._app.registry.get(original.task), *original.arguments)

    def check(self, original: Original, changes: Changes) -> None:
        """Raise what :meth:`send` would raise, and change nothing.

        That is ``ValueError`` for what cannot be sent so, :exc:`EncodeError` for arguments that cannot be carried, and
        ``TypeError`` where the task is known here and does not take them.
        """
        if original.letter is not None:
            self._app.dead.check_edited(original.letter, **msgspec.structs.asdict(changes))
        else:
            args, kwargs, options = self._meant(original, changes)
            build(self._app, original.task, args, kwargs, options)

    def send(self, original: Original, changes: Changes) -> Replayed:
        """Send it: a dead letter changed into its queue, anything else as a new task that names the one it repeats."""
        if original.letter is not None:
            there = self._app.dead.requeue_edited(original.letter, **msgspec.structs.asdict(changes))
            if not there:
                return Replayed(id=original.id, refusal="its dead letter is gone: somebody else was faster")
            return Replayed(id=original.id, new_id=original.letter.task_id or original.id, source="dead letter")
        args, kwargs, options = self._meant(original, changes)
        sent = self._app.send_task(original.task, args=args, kwargs=kwargs, **options)
        return self._noted(Replayed(id=original.id, new_id=sent.id, source=original.source))

    # -- inside --------------------------------------------------------------------------------------------------

    def _row(self, id: str) -> TaskRow | None:
        return self._history.task(id) if self._history is not None else None

    def _meant(self, original: Original, changes: Changes) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        """Return the arguments and the options of the new call."""
        before = original.arguments
        if before is None and (changes.args is None or changes.kwargs is None):
            raise ValueError(f"{original.refusal}; all its arguments would have to be given, by position and by name")
        old: Arguments = before if before is not None else ((), {})
        given = old[0] if changes.args is None else changes.args, old[1] if changes.kwargs is None else changes.kwargs
        veil = veil_of(self._app.registry.get(original.task))
        args, kwargs = filled(veil, as_carried("the arguments", given), before)
        check_call(self._app, original.task, args, kwargs)
        options = origin(original.id, self._row(original.id))
        if queue := changes.queue or original.queue:
            options["queue"] = queue
        if countdown := checked_countdown(changes.countdown):
            options["countdown"] = countdown
        if original.secret:
            options |= {"argsrepr": HIDDEN, "kwargsrepr": HIDDEN}
        return args, kwargs, options

    def _of_message(self, id: str, queues: Iterable[str]) -> Original | None:
        """Return the call of the message that is still in the broker, if it can be found and is to be trusted."""
        broker, conf = self._app.broker, self._app.conf
        if not broker.features.finds:
            return None
        names = dict.fromkeys(filter(None, [*queues, *(spec.name for spec in self._app.queues(None))]))
        try:
            seen: Sighting | None = broker.find(id, list(names))
            message = (seen.seen.message or decode_envelope(seen.seen.raw)) if seen is not None else None
            if seen is None or message is None:
                return None
            verify = verifier_of(conf, self._app.clock.time)
            if verify is not None and verify(message, seen.seen.queue) is not None:
                # Who can write into the store must not get a signature from us.
                return None
            call = decode_call(message, accepted_by(conf))
        except OperationalError:
            raise
        except (CeleryError, TimeoutError):
            return None
        hidden = any(HIDDEN in str(call.headers[name]) for name in ("argsrepr", "kwargsrepr"))
        return Original(
            id=id,
            task=call.task,
            queue=seen.seen.queue,
            source="message",
            arguments=(list(call.args), call.kwargs),
            secret=hidden and call.task not in self._app.registry,
            waits=True,
            follows=any((call.callbacks, call.errbacks, call.chain, call.chord)),
        )

    def _name_in_result(self, id: str) -> str:
        if self._app.backend is None:
            return ""
        return self._app.AsyncResult(id).name or ""
