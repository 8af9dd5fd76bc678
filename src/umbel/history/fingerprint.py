"""What makes two failures the same error: the type, the message without what varies, and where it was raised."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

_LONGEST: Final = 200
#: In this order: a UUID is also digits.
_VARIES: Final = (
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<id>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "<address>"),
    (re.compile(r"\b(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b"), "<hex>"),
    (re.compile(r"\d+(?:[.,:\-]\d+)*"), "<n>"),
)
_EXCEPTION: Final = re.compile(r"([\w.]+)\((.*)\)\Z", re.DOTALL)
_OURS: Final = re.compile(r"[/\\](?:umbel[/\\](?:tracing|task|retrying|worker[/\\]\w+)|celery[/\\]app[/\\]\w+)\.py$")
_FRAME: Final = re.compile(r'^\s*File "([^"]*)", line \d+, in (.*)$', re.MULTILINE)


class Fingerprint(msgspec.Struct, frozen=True):
    """One kind of error, and the word that stands for it."""

    key: str
    type: str
    message: str
    frame: str


def fingerprint_of(exception: str | None, traceback: str | None) -> Fingerprint:
    """Return what the representation of an exception, and the text of its traceback, have in common with others.

    >>> fingerprint_of("KeyError('user 17')", None).message
    'user <n>'
    """
    text = exception or _last_line(traceback) or "unknown"
    found = _EXCEPTION.match(text.strip())
    type, message = (found[1], found[2]) if found else (text.strip().partition(":")[0], text.partition(":")[2])
    message = message.strip().rstrip(",")
    if len(message) > 1 and message[0] == message[-1] and message[0] in "'\"":
        message = message[1:-1]
    message = normalised(message)
    frame = top_frame(traceback)
    joined = "\n".join((type, message, frame))
    key = hashlib.sha256(joined.encode("utf-8", "replace")).hexdigest()[:12]
    return Fingerprint(key, type[:_LONGEST], message, frame)


def normalised(message: str) -> str:
    """Return a message on one line with what varies from one failure to the next taken out of it.

    >>> normalised("order 5a1c0e9f-7e0b-4a57-9a6b-8f6f1b1e2d3c took 12.5 s at 0x7f00")
    'order <id> took <n> s at <address>'
    """
    for pattern, name in _VARIES:
        message = pattern.sub(name, message)
    return " ".join(message.split())[:_LONGEST]


def top_frame(traceback: str | None) -> str:
    """Return the file, by its last two parts, and the function in which the error was raised; nothing if unknown.

    Without the line: a change further up in the file is no other error.
    """
    frames = _FRAME.findall(traceback or "")
    # A retry ends in our own code, and so do the errors that it hands on: what tells them apart is the user's code.
    own = [frame for frame in frames if not _OURS.search(frame[0])]
    if not frames:
        return ""
    path, function = (own or frames)[-1]
    return f"{'/'.join(path.replace(chr(92), '/').split('/')[-2:])} in {function.strip()}"


def _last_line(traceback: str | None) -> str:
    return (traceback or "").strip().rpartition("\n")[2]
