"""Dead letters as a program sees them: ``app.dead``.

A dead letter is a message that no worker will run again, kept with the reason until somebody decides about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

import msgspec

from umbel.editing import Arguments, as_carried, check_call, checked_countdown, filled
from umbel.envelope import CUT, KEPT
from umbel.exceptions import CeleryError, QueueNotFound
from umbel.interfaces import Crash, DeadLetters, Peeked
from umbel.message import Call, Message, decode_call, decode_envelope, encode_envelope
from umbel.saferepr import saferepr
from umbel.sensitive import HIDDEN, veil_of
from umbel.serialization import accepted_by, dumps
from umbel.signing import keyring_of

#: The header that counts how often a message was put aside because no worker knew its task.
PARKED: Final = "umbel-parked"
#: Why a message dies. ``rejected`` is by the task itself, ``failed`` by ``acks_on_failure=False``.
REASONS: Final = (
    "max_deliveries", "exhausted", "expired", "failed", "rejected", "time_limit", "unregistered", "wrong_signature",
    "undecodable", "content_disallowed", "invalid_task", "not_allowed", "bad_signature", "unpublishable",
)  # fmt: skip
_PAGE: Final = 100
# Keys are numbers of 64 bits; some stores fail at more.
_LAST_KEY: Final = 2**63 - 2
_LONGEST_KEY: Final = 19
_REPRS: Final = ("argsrepr", "kwargsrepr")


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter: the message, why it died and when, and the deliveries of it that killed their worker.

    ``task`` and ``task_id`` are empty where the message does not say them. ``key`` names the letter in its queue.
    """

    key: str
    queue: str
    reason: str
    detail: str = ""
    at: datetime
    task: str = ""
    task_id: str = ""
    retries: int = 0
    crashes: tuple[Crash, ...] = ()
    traceback: str = ""
    raw: bytes = b""
    message: Message | None = None  # None where not even the envelope can be read

    @property
    def id(self) -> str:
        """What :meth:`Dead.get` finds it by: the queue and the key."""
        return f"{self.queue}:{self.key}"

    @property
    def whole(self) -> bool:
        """Whether all of the message is there; of one that was too large only the headers or a start were kept."""
        return len(self.raw) < KEPT if self.message is None else CUT not in self.message.headers


#: Inside the class its own method hides the built-in name.
Letters = list[DeadLetter]


class Dead:
    """The dead letters of an app's broker. Safe to share between threads.

    Every method may raise :exc:`OperationalError`: then nothing was changed, or what was changed is complete.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    @property
    def _store(self) -> DeadLetters:
        found: DeadLetters = self._app.broker.dead()
        return found

    def list(
        self,
        *,
        queue: str | Collection[str] | None = None,
        task: str | None = None,
        reason: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> Letters:
        """Return the dead letters that fit all that is given, queue by queue, the latest of each first.

        :param queue: a name or several; None is every queue that has dead letters.
        :param task: the task's name; one that ends with ``*`` stands for all that begin so.
        :param since: died then or later. ``until``: died before that. Moments without an offset are refused.
        :param after: the id of the last letter of a list that was cut off by its limit: goes on behind it.
        :param limit: at most so many; None is all.
        """
        return list(islice(self._found(queue, _filter(task, reason, since, until), after), limit))

    def get(self, id: str) -> DeadLetter | None:
        """Return the letter of this id, or the latest of the task with this id; None if there is none."""
        if exact := self.named([id]):
            return exact[0]
        found = [letter for letter in self._found(None, None) if letter.task_id == id]
        return max(found, key=lambda letter: letter.at, default=None)

    def named(self, ids: Collection[str]) -> Letters:
        """Return the letters with these ids of their own (:attr:`DeadLetter.id`), in their order, each once.

        Those that are gone are left out, and not searched: however many ids that is, each letter is read once at most.
        """
        wanted: dict[str, set[int]] = {}
        for id in ids:
            queue, _, key = id.rpartition(":")
            if queue and key.isdecimal() and len(key) <= _LONGEST_KEY and int(key) <= _LAST_KEY:
                wanted.setdefault(queue, set()).add(int(key))
        found = {letter.id: letter for queue, keys in wanted.items() for letter in self._these(queue, keys)}
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def requeue(self, *letters: DeadLetter) -> Letters:
        """Put letters back at the tail of their queues; return those that were still there.

        Each starts anew: no crash, no pause for an unknown task and, of one that died of that, no retry counts any
        more, and an ``expires`` that has passed is taken away. Its result stays FAILURE until it has run. A message
        is never in both places and never lost, whoever else requeues or discards it at the same time. Letters that
        are not whole stay where they are.
        """
        done: set[tuple[str, str]] = set()
        for queue, part in _by_queue(letter for letter in letters if letter.whole):
            renewed = {letter.key: self._renewed(letter) for letter in part}
            done.update((queue, key) for key in self._store.revive(queue, renewed))
        return [letter for letter in letters if (letter.queue, letter.key) in done]

    def requeue_edited(
        self,
        letter: DeadLetter,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        countdown: float | None = None,
    ) -> bool:
        """Put a letter back as :meth:`requeue` does, changed; return whether it was still there.

        The id, the callbacks and all else of the call stay, and so does what is None here. The message takes the place
        of the letter in one step, except on RabbitMQ: there it is published first, under its own id, and then the
        letter is taken out.

        :param args: written as JSON; ``***`` in the place of something sensitive leaves that as it is.
        :param queue: where it goes instead of the queue in which it died.
        :param countdown: seconds before which no worker starts it; 0 takes away an ``eta`` that it has.

        Raises ``ValueError`` where it cannot be edited so, :exc:`EncodeError` for arguments that JSON has not, and
        ``TypeError`` where the task is known here and does not take them.
        """
        raw, to = self._edited(letter, args, kwargs, queue, countdown)
        return letter.key in self._store.revive(letter.queue, {letter.key: raw}, to=to)

    def check_edited(
        self,
        letter: DeadLetter,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        countdown: float | None = None,
    ) -> None:
        """Raise what :meth:`requeue_edited` would raise, and change nothing."""
        self._edited(letter, args, kwargs, queue, countdown)

    def discard(self, *letters: DeadLetter) -> Letters:
        """Delete letters for ever; return those that were still there."""
        done: set[tuple[str, str]] = set()
        for queue, part in _by_queue(letters):
            keys = [letter.key for letter in part]
            done.update((queue, key) for key in self._store.discard(queue, keys))
        return [letter for letter in letters if (letter.queue, letter.key) in done]

    def arguments(self, letter: DeadLetter) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments of the call, or None where they cannot be read by the app's ``accept_content``."""
        call = self._call(letter)
        return None if call is None else (tuple(call.args), call.kwargs)

    def _call(self, letter: DeadLetter) -> Call | None:
        if letter.message is None:
            return None
        try:
            return decode_call(letter.message, accepted_by(self._app.conf))
        except CeleryError:
            return None

    def shown(self, letter: DeadLetter) -> tuple[Any, Any, bool] | None:
        """Return the arguments as people may see them, and whether something is hidden; None as :meth:`arguments`.

        What the task's ``sensitive`` hides is ``***``. Of a task that is not known here its sender's ``argsrepr`` and
        ``kwargsrepr`` are returned where they hide something.
        """
        found = self.arguments(letter)
        if found is None or letter.message is None:
            return None
        task = self._app.registry.get(letter.task)
        if (veil := veil_of(task)) is not None:
            return (*veil.values(*found), True)
        reprs = [letter.message.headers.get(name) for name in _REPRS]
        if task is None and any(HIDDEN in str(text) for text in reprs):
            return reprs[0], reprs[1], True
        return list(found[0]), found[1], False

    def is_plain(self, letter: DeadLetter) -> bool:
        """Return whether the message may be shown as it is: it hides nothing, nor holds calls that may.

        Those are the calls of tasks that follow. A message that cannot be read goes by what its sender hides.
        """
        call = self._call(letter)
        if call is None:
            headers = {} if letter.message is None else letter.message.headers
            return not any(HIDDEN in str(headers.get(name)) for name in _REPRS)
        shown = self.shown(letter)
        follows = call.chain or call.chord or call.callbacks or call.errbacks
        return not follows and shown is not None and not shown[2]

    # -- inside --------------------------------------------------------------------------------------------------

    def _found(
        self, queue: str | Collection[str] | None, fits: Callable[[DeadLetter], bool] | None, after: str = ""
    ) -> Iterator[DeadLetter]:
        store = self._store
        names = store.queues() if queue is None else [queue] if isinstance(queue, str) else queue
        first, _, start = after.rpartition(":")
        for name in sorted(names):
            if name < first:
                continue
            before = start if name == first else ""
            while page := store.page(name, before=before, limit=_PAGE):
                letters = map(_letter, page)
                yield from letters if fits is None else filter(fits, letters)
                before = page[-1].key

    def _these(self, queue: str, keys: Collection[int]) -> Iterator[DeadLetter]:
        left = sorted(keys, reverse=True)
        while left:
            # From the latest that is wanted on. Where it is gone the page begins behind it, and others may be in it.
            page = self._store.page(queue, before=str(left[0] + 1), limit=min(len(left), _PAGE))
            yield from (_letter(each) for each in page if int(each.key) in keys)
            last = int(page[-1].key) if page else 0
            left = [key for key in left if key < last]

    def _renewed(self, letter: DeadLetter) -> bytes | None:
        """Return the message as it is to start again, or None where it can stay as it is."""
        message = letter.message
        if message is None:
            return None
        headers = _fresh(letter, message)
        if headers == message.headers:
            return None
        renewed = with_headers(message, headers)
        keys = keyring_of(self._app.conf)
        if keys is not None:
            if keys.refusal(message, letter.queue) is not None:
                # Who can write into the store must not get a signature from us.
                return None
            keys.sign(renewed, letter.queue, self._app.clock.time())
        return encode_envelope(renewed)

    def _edited(
        self,
        letter: DeadLetter,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        queue: str | None,
        countdown: float | None,
    ) -> tuple[bytes, str]:
        """Return the message of a call that was changed, and the queue where it goes."""
        message, conf = letter.message, self._app.conf
        if message is None or not letter.whole:
            raise ValueError(f"dead letter {letter.id} is not whole, so that it cannot be edited")
        try:
            call = decode_call(message, accepted_by(conf))
        except CeleryError as error:
            raise ValueError(f"dead letter {letter.id} cannot be read, so that it cannot be edited: {error}") from error
        keys = keyring_of(conf)
        if keys is not None and (refused := keys.refusal(message, letter.queue)) is not None:
            # Who can write into the store must not get a signature from us.
            raise ValueError(f"dead letter {letter.id} cannot be edited: {refused}")
        to = letter.queue if queue is None else self._queue(queue)
        edited = with_headers(message, _fresh(letter, message))
        if args is None and kwargs is None:
            check_call(self._app, call.task, call.args, call.kwargs)
        else:
            given = call.args if args is None else args, call.kwargs if kwargs is None else kwargs
            edited = self._with_arguments(edited, call, given)
        if countdown is not None:
            edited.headers["eta"] = self._due(countdown)
        if to != letter.queue:
            # A retry goes where the message came from.
            edited.properties = {**message.properties, "delivery_info": {"exchange": "", "routing_key": to}}
        if keys is not None:
            keys.sign(edited, to, self._app.clock.time())
        return encode_envelope(edited), to

    def _with_arguments(self, message: Message, call: Call, given: Arguments) -> Message:
        """Return the message with other arguments, in JSON."""
        veil = veil_of(self._app.registry.get(call.task))
        args, kwargs = filled(veil, as_carried("the arguments", given), (call.args, call.kwargs))
        check_call(self._app, call.task, args, kwargs)
        embed = {"callbacks": call.callbacks, "errbacks": call.errbacks, "chain": call.chain, "chord": call.chord}
        content_type, encoding, body = dumps([args, kwargs, embed], "json", what="the arguments")
        # Protocol 1 says in the body what is in the headers from now on.
        headers = dict(message.headers if "task" in message.headers else {**call.headers, **message.headers})
        headers.pop("compression", None)
        if veil is not None:
            shown = veil.reprs(tuple(args), kwargs)
        elif any(HIDDEN in str(call.headers[name]) for name in _REPRS):
            shown = HIDDEN, HIDDEN
        else:
            shown = saferepr(tuple(args)), saferepr(kwargs)
        headers.update(zip(_REPRS, shown, strict=True))
        return message.replace(body=body, content_type=content_type, content_encoding=encoding, headers=headers)

    def _queue(self, name: str) -> str:
        try:
            found: str = self._app.router.queues[name].name
        except QueueNotFound as error:
            raise ValueError(" ".join(str(error).split())) from error
        return found

    def _due(self, countdown: float) -> str | None:
        if not checked_countdown(countdown):
            return None
        due: datetime = self._app.clock.now() + timedelta(seconds=countdown)
        return due.isoformat()


def _fresh(letter: DeadLetter, message: Message) -> dict[str, Any]:
    """Return the headers of a message that starts anew."""
    headers = {name: value for name, value in message.headers.items() if name != PARKED}
    if letter.reason == "expired" and headers.get("expires") is not None:
        headers["expires"] = None
    if letter.reason == "exhausted" and headers.get("retries"):
        headers["retries"] = 0
    return headers


def with_headers(message: Message, headers: dict[str, Any]) -> Message:
    """Return the same message with other headers."""
    return Message(
        body=message.body,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=headers,
        properties=message.properties,
    )


def _letter(peeked: Peeked) -> DeadLetter:
    message = peeked.message
    if message is None:
        try:
            message = decode_envelope(peeked.raw)
        except CeleryError:
            message = None
    headers = message.headers if message is not None else {}
    task, task_id, retries = headers.get("task"), headers.get("id"), headers.get("retries")
    assert peeked.at is not None
    return DeadLetter(
        key=peeked.key,
        queue=peeked.queue,
        reason=peeked.reason,
        detail=peeked.detail,
        at=peeked.at,
        task=task if isinstance(task, str) else "",
        task_id=task_id if isinstance(task_id, str) else "",
        retries=retries if type(retries) is int else 0,
        crashes=tuple(peeked.crashes),
        traceback=peeked.traceback,
        raw=peeked.raw,
        message=message,
    )


def _filter(
    task: str | None, reason: str | None, since: datetime | None, until: datetime | None
) -> Callable[[DeadLetter], bool]:
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            raise ValueError(f"{name}={moment} has no offset; write {name}={moment}+00:00 if it is UTC")

    def fits(letter: DeadLetter) -> bool:
        return (
            (task is None or _names(task, letter.task))
            and (reason is None or letter.reason == reason)
            and (since is None or letter.at >= since)
            and (until is None or letter.at < until)
        )

    return fits


def _names(pattern: str, task: str) -> bool:
    return task.startswith(pattern[:-1]) if pattern.endswith("*") else task == pattern


def _by_queue(letters: Iterable[DeadLetter]) -> Iterator[tuple[str, list[DeadLetter]]]:
    """Yield parts of at most a hundred letters of one queue, each in the order in which they died."""
    found: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        found.setdefault(letter.queue, []).append(letter)
    for queue, those in found.items():
        those.sort(key=lambda letter: int(letter.key) if letter.key.isdecimal() else 0)
        for at in range(0, len(those), _PAGE):
            yield queue, those[at : at + _PAGE]
