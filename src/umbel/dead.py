"""Dead letters as a program sees them: ``app.dead``.

A dead letter is a message that no worker will run again, kept with the reason until somebody decides about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final

import msgspec

from umbel.exceptions import CeleryError
from umbel.interfaces import Crash, DeadLetters, Peeked
from umbel.message import Message, decode_call, decode_envelope, encode_envelope
from umbel.signing import keyring_of

#: The header that counts how often a message was put aside because no worker knew its task.
PARKED: Final = "umbel-parked"
#: Why a message dies. ``rejected`` is by the task itself, ``failed`` by ``acks_on_failure=False``.
REASONS: Final = (
    "max_deliveries", "exhausted", "expired", "failed", "rejected", "time_limit", "unregistered", "wrong_signature",
    "undecodable", "content_disallowed", "invalid_task", "bad_signature", "chord",
)  # fmt: skip
_PAGE: Final = 100


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
        queue, _, key = id.rpartition(":")
        # A page of one, from the letter after it on.
        if queue and key.isdecimal():
            page = self._store.page(queue, before=str(int(key) + 1), limit=1)
            if page and page[0].key == key:
                return _letter(page[0])
        found = [letter for letter in self._found(None, None) if letter.task_id == id]
        return max(found, key=lambda letter: letter.at, default=None)

    def requeue(self, *letters: DeadLetter) -> Letters:
        """Put letters back at the tail of their queues; return those that were still there.

        Each starts anew: no crash, no pause for an unknown task and, of one that died of that, no retry counts any
        more, and an ``expires`` that has passed is taken away. Its result stays FAILURE until it has run. A message
        is never in both places and never lost, whoever else requeues or discards it at the same time.
        """
        done: set[tuple[str, str]] = set()
        for queue, part in _by_queue(letters):
            renewed = {letter.key: self._renewed(letter) for letter in part}
            done.update((queue, key) for key in self._store.revive(queue, renewed))
        return [letter for letter in letters if (letter.queue, letter.key) in done]

    def discard(self, *letters: DeadLetter) -> Letters:
        """Delete letters for ever; return those that were still there."""
        done: set[tuple[str, str]] = set()
        for queue, part in _by_queue(letters):
            keys = [letter.key for letter in part]
            done.update((queue, key) for key in self._store.discard(queue, keys))
        return [letter for letter in letters if (letter.queue, letter.key) in done]

    def arguments(self, letter: DeadLetter) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments of the call, or None where they cannot be read by the app's ``accept_content``."""
        if letter.message is None:
            return None
        try:
            call = decode_call(letter.message, tuple(self._app.conf.accept_content))
        except CeleryError:
            return None
        return tuple(call.args), call.kwargs

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

    def _renewed(self, letter: DeadLetter) -> bytes | None:
        """Return the message as it is to start again, or None where it can stay as it is."""
        message = letter.message
        if message is None:
            return None
        headers = dict(message.headers)
        changed = headers.pop(PARKED, None) is not None
        if letter.reason == "expired" and headers.get("expires") is not None:
            headers["expires"], changed = None, True
        if letter.reason == "exhausted" and headers.get("retries"):
            headers["retries"], changed = 0, True
        if not changed:
            return None
        renewed = with_headers(message, headers)
        keys = keyring_of(self._app.conf)
        if keys is not None:
            if keys.refusal(message, letter.queue) is not None:
                # Who can write into the store must not get a signature from us.
                return None
            keys.sign(renewed, letter.queue, self._app.clock.time())
        return encode_envelope(renewed)


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
