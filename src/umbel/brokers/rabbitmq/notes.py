"""How often a message was delivered before, where the server does not count.

A message that comes again may have killed its process, or was only given back: the server says no more than that it
comes again. So before such a message is handed out, a note of it is put into a small queue of its own, named after the
message and gone by itself after a day::

    umbel.deliveries.<hash>     one note for each delivery that began and has not ended

A delivery that ends in order takes its notes away. Those that are found were left by processes that died.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from umbel.brokers.rabbitmq import frames
from umbel.brokers.rabbitmq.posting import Letter, Post, PostOffice
from umbel.exceptions import OperationalError
from umbel.interfaces import Crash, Verdict
from umbel.message import Message

_KEEP: Final = 86_400_000  # milliseconds
_REMEMBERED: Final = 10_000
_LAST_WORDS: Final = 0.05  # seconds
PREFIX: Final = "umbel.deliveries."


class _Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    at: float
    consumer: str
    before: int = 0  # deliveries of the copies before the one that was delivered here
    verdict: Verdict | None = None


class Notes:
    """The notes of one broker. Safe to share between threads."""

    def __init__(self, office: PostOffice) -> None:
        self._office = office
        # What this process gave back unharmed, so that its coming again means nothing.
        self._given_back: OrderedDict[str, None] = OrderedDict()

    @staticmethod
    def key(queue: str, message: Message) -> str:
        """Return what names the message: its task id and try, else its bytes."""
        headers = message.headers
        id = headers.get("id") or message.properties.get("correlation_id")
        told = f"{queue}\n{id}\n{headers.get('retries')}" if id else f"{queue}\n"
        hashed = hashlib.sha256(told.encode("utf-8", "surrogatepass"))
        if not id:
            hashed.update(message.body)
        return hashed.hexdigest()[:20]

    def gave_back(self, key: str) -> None:
        """Remember that this process gave it back without harm."""
        self._given_back[key] = None
        self._given_back.move_to_end(key)
        while len(self._given_back) > _REMEMBERED:
            self._given_back.popitem(last=False)

    def begin(self, key: str, consumer: str, before: int = 0, *, arrived_at: float = 0.0) -> tuple[int, Verdict | None]:
        """Note a delivery of a message that comes again; ``before`` is what its copies before it count.

        ``arrived_at`` is when it came to this process, in monotonic seconds; 0.0 if that is long ago.
        Return how many of its own deliveries before it did not end in order, and the verdict that a supervisor has
        left.
        """
        if key in self._given_back:
            self._given_back.pop(key, None)
            left = 0
        else:
            # The first delivery leaves no note. If its process was killed, whoever did it needs a moment to say why.
            left = 1
            # Of many that were given back at once, only the first has to wait.
            time.sleep(min(max(arrived_at + _LAST_WORDS - time.monotonic(), 0.0), _LAST_WORDS))
        verdict = None
        with self._office.post() as post:
            found = self._read(post, key)
            verdict = next((note.verdict for note in found if note.verdict is not None), None)
            left += sum(note.verdict is None and note.before == before for note in found)
            self._add(post, key, _Note(at=time.time(), consumer=consumer, before=before))
        return left, verdict

    def condemn(self, key: str, verdict: Verdict, consumer: str) -> None:
        """Leave a verdict for whoever takes the message next."""
        with self._office.post() as post:
            self._declare(post, key)
            self._add(post, key, _Note(at=time.time(), consumer=consumer, verdict=verdict))

    def end(self, keys: Sequence[str]) -> None:
        """Take away all notes of messages that ended for good."""
        if not keys:
            return
        with self._office.post() as post:
            for key in keys:
                args = (0, PREFIX + key, False, False, False)
                post.channel.call(frames.QUEUE_DELETE, args, frames.QUEUE_DELETE_OK)

    def take_back(self, key: str) -> None:
        """Take away one note: the delivery that it stands for did no harm."""
        self.gave_back(key)
        with self._office.post() as post:
            if self._declare(post, key):
                post.channel.call(frames.GET, (0, PREFIX + key, True), frames.GET_OK, frames.GET_EMPTY)

    def crashes(self, key: str) -> list[Crash]:
        """Return what the notes tell, the oldest first, and leave them."""
        with self._office.post() as post:
            notes = self._read(post, key)
        return [Crash(at=datetime.fromtimestamp(note.at, UTC), consumer=note.consumer) for note in notes]

    def _read(self, post: Post, key: str) -> list[_Note]:
        """Return the notes and leave them where they are."""
        found: list[_Note] = []
        if not self._declare(post, key):
            return found
        with contextlib.closing(post.link.channel()) as channel:
            while True:
                answer, content = channel.call(frames.GET, (0, PREFIX + key, False), frames.GET_OK, frames.GET_EMPTY)
                if answer == frames.GET_EMPTY:
                    return found
                found.append(msgspec.json.decode(content.body, type=_Note))

    @staticmethod
    def _declare(post: Post, key: str) -> int:
        args = frames.declare_queue(PREFIX + key, arguments={"x-expires": _KEEP})
        _, answer = post.channel.call(frames.QUEUE_DECLARE, args, frames.QUEUE_DECLARE_OK)
        return int(answer[1])

    @staticmethod
    def _add(post: Post, key: str, note: _Note) -> None:
        properties: dict[str, Any] = {"delivery_mode": 2, "content_type": "application/json"}
        letter = Letter.of("", "", "", PREFIX + key, properties, msgspec.json.encode(note))
        if refused := post.send([letter], time.monotonic() + 5.0):
            raise OperationalError(f"a delivery could not be noted: {refused[0]}")
