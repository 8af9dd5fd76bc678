"""Messages as people may see them: what a task's ``sensitive`` hides stays hidden."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final

import msgspec

from umbel.exceptions import CeleryError
from umbel.interfaces import Peeked
from umbel.message import Call, decode_call, decode_envelope
from umbel.sensitive import HIDDEN, veil_of
from umbel.serialization import accepted_by

#: The tasks that follow one and are named.
_MOST: Final = 50


class Follower(msgspec.Struct, frozen=True, kw_only=True):
    """A task that follows another one, without its arguments. ``id`` is empty where its sender chose none."""

    role: str
    task: str
    id: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a queue. ``args`` and ``kwargs`` are None where they cannot be read.

    ``hidden`` says whether something in them is not shown. ``followers`` are the tasks whose calls the message holds
    besides its own.
    """

    task: str
    id: str
    args: Any = None
    kwargs: Any = None
    due: datetime | None = None
    retries: int = 0
    origin: str = ""
    bytes: int = 0
    trouble: str = ""
    hidden: bool = False
    followers: tuple[Follower, ...] = ()

    @property
    def name(self) -> str:
        """The same as ``task``."""
        return self.task

    @property
    def plain(self) -> bool:
        """Whether the message may be shown as it is: nothing in it can be sensitive."""
        return not (self.hidden or self.followers or self.trouble)


def shown(app: Any, peeked: Peeked) -> Shown:
    """Return what may be seen of a message. Never raises for what a message holds."""
    try:
        call = decode_call(peeked.message or decode_envelope(peeked.raw), accepted_by(app.conf))
    except CeleryError as error:
        return Shown(task="", id="", due=peeked.at, bytes=len(peeked.raw), trouble=" ".join(str(error).split())[:300])
    reprs = call.headers.get("argsrepr"), call.headers.get("kwargsrepr")
    args: Any = list(call.args)
    kwargs: Any = call.kwargs
    veil = veil_of(app.registry.get(call.task))
    hidden = veil is not None or any(HIDDEN in str(text) for text in reprs)
    if veil is not None:
        args, kwargs = veil.values(call.args, call.kwargs)
    elif hidden:
        # A task that is not known here, or not yet as one that hides something: its sender said what.
        args, kwargs = reprs
    return Shown(
        task=call.task,
        id=call.id,
        args=args,
        kwargs=kwargs,
        due=peeked.at,
        retries=call.retries,
        origin=str(call.headers.get("origin") or ""),
        bytes=len(peeked.raw),
        hidden=hidden,
        followers=tuple(islice(_followers(call), _MOST)),
    )


def _followers(call: Call) -> Iterator[Follower]:
    """Yield what follows a call: the next step of its chain first, and last what is for an error."""
    chord = [] if call.chord is None else [call.chord]
    for role, signatures in (
        ("then", reversed(call.chain or ())),
        ("chord", chord),
        ("callback", call.callbacks or ()),
        ("errback", call.errbacks or ()),
    ):
        for each in signatures:
            options = each.get("options")
            id = options.get("task_id") if isinstance(options, dict) else None
            yield Follower(role=role, task=str(each["task"]), id=str(id or ""))
