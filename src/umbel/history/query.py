"""What one may ask of the history: words, and qualifiers such as ``state:failure name:proj.* after:2h``."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from umbel.utils.text import did_you_mean

#: The most characters of a query, and its most parts: what is longer is a mistake or an attack.
LONGEST: Final = 1000
_MOST_PARTS: Final = 20
_STATES: Final = {
    "queued": "PENDING", "pending": "PENDING", "sent": "PENDING", "received": "RECEIVED", "reserved": "RECEIVED",
    "started": "STARTED", "running": "STARTED", "active": "STARTED", "success": "SUCCESS", "succeeded": "SUCCESS",
    "done": "SUCCESS", "failure": "FAILURE", "failed": "FAILURE", "retry": "RETRY", "retried": "RETRY",
    "revoked": "REVOKED", "rejected": "REJECTED",
}  # fmt: skip
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])?")
_COMPARED: Final = re.compile(r"(>=|<=|>|<)?(.+)")
QUALIFIERS: Final = (
    "state", "name", "queue", "worker", "error", "id", "root", "parent", "workflow", "group",
    "after", "before", "runtime", "retries", "replayed",
)  # fmt: skip


class BadQuery(ValueError):
    """Raised for a query that cannot be understood; the text says which part, and what it could be."""


class Compared(msgspec.Struct, frozen=True):
    """A number and how to compare with it."""

    sign: str
    value: float


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What a task must be. Texts that end with ``*`` stand for all that begin so; empty ones for everything."""

    state: str = ""
    name: str = ""
    queue: str = ""
    worker: str = ""
    error: str = ""  # a fingerprint, or the name of an exception's type
    id: str = ""
    root: str = ""
    parent: str = ""
    workflow: str = ""  # the id of any task of it, of its root, or of a group in it
    group: str = ""
    after: float | None = None
    before: float | None = None
    runtime: Compared | None = None
    retries: Compared | None = None
    replayed: bool | None = None  # whether another task was sent in its place
    words: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether it asks for nothing in particular."""
        return self == Query()


def parse(text: str, *, now: float) -> Query:
    """Return what a text asks for. Raises :exc:`BadQuery`.

    ``state:`` ``name:`` ``queue:`` ``worker:`` ``error:`` ``id:`` ``root:`` ``parent:`` ``workflow:`` ``group:``
    ``after:2h`` ``before:`` ``runtime:>5s`` ``retries:>0`` ``replayed:no``; all else are beginnings of words that the
    name, the arguments or the exception has.

    >>> parse("state:failed name:shop.* eva", now=0.0)
    Query(state='FAILURE', name='shop.*', words=('eva',))
    """
    if len(text) > LONGEST:
        raise BadQuery(f"a query may have {LONGEST} characters, and not {len(text)}")
    try:
        parts = shlex.split(text)
    except ValueError:
        parts = text.replace('"', " ").replace("'", " ").split()
    if len(parts) > _MOST_PARTS:
        raise BadQuery(f"a query may have {_MOST_PARTS} parts, and not {len(parts)}")
    found: dict[str, Any] = {}
    words = []
    for part in parts:
        name, colon, value = part.partition(":")
        if not colon or not name.isidentifier() or value.startswith("//"):
            words.append(part)
        elif name not in QUALIFIERS:
            raise BadQuery(f"unknown qualifier {name!r}{did_you_mean(name, QUALIFIERS)}; in quotes it is a word")
        elif name in found:
            raise BadQuery(f"{name}: is there twice; a task has one")
        elif value:
            found[name] = _value(name, value, now)
    return Query(**found, words=tuple(words))


def not_replayed(text: str) -> str:
    """Return the query for those alone in whose place no other task was sent, unless it says itself which.

    >>> not_replayed("state:failed"), not_replayed("replayed:yes")
    ('state:failed replayed:no', 'replayed:yes')
    """
    return text if "replayed:" in text else f"{text} replayed:no"


def _value(name: str, value: str, now: float) -> Any:
    if name == "state":
        # A state of a program's own is written in capitals.
        return _STATES.get(value.lower(), value.upper())
    if name in ("after", "before"):
        return _moment(name, value, now)
    if name in ("runtime", "retries"):
        found = _COMPARED.fullmatch(value)
        assert found is not None
        return Compared(found[1] or ">=", _seconds(name, found[2]))
    if name == "replayed":
        if value not in ("yes", "no"):
            raise BadQuery(f"replayed:{value} is neither replayed:yes nor replayed:no")
        return value == "yes"
    return value


def _seconds(name: str, value: str) -> float:
    found = _LENGTH.fullmatch(value)
    if found is None:
        raise BadQuery(f"{name}:{value}: write a number such as {name}:>5{'s' if name == 'runtime' else ''}")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _moment(name: str, value: str, now: float) -> float:
    if (found := _LENGTH.fullmatch(value)) is not None and found[2]:
        return now - float(found[1]) * _UNITS[found[2]]
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadQuery(f"{name}:{value} is neither an age such as 2h nor a time such as 2030-01-31T18:00") from None
