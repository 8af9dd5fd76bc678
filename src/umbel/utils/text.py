"""Small helpers for messages that people read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

# Everything that can end a line, move the cursor or reorder text: C0, DEL, C1, the Unicode line and paragraph
# separators, the bidirectional controls, and lone surrogates, which cannot be written as UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[\w.:\-]{0,255}", re.ASCII)
_FORMAT = re.compile(r"%([\w%])")


def nearest(name: str, names: Iterable[str], *, limit: int = 1) -> list[str]:
    """Return up to ``limit`` of the names that look most like ``name``, the best first.

    >>> nearest("task_ack_late", ["task_acks_late", "task_time_limit"])
    ['task_acks_late']
    """
    return difflib.get_close_matches(name, list(names), n=limit, cutoff=0.6)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` to be put at the end of a message, or an empty string."""
    found = nearest(name, names)
    return f"; did you mean {found[0]!r}?" if found else ""


def one_line(text: object, limit: int = 1024) -> str:
    r"""Return the text fit for one line of a log: control characters escaped, at most ``limit`` characters.

    For names and ids that came with a message; what a user's own code logs is left alone.

    >>> one_line("a\nb")
    'a\\nb'
    """
    value = text if isinstance(text, str) else text_of(text)
    if _PLAIN.fullmatch(value):
        return value
    if len(value) > limit:
        value = value[: limit - 3] + "..."
    return _UNSAFE.sub(_escape, value)[:limit]


def escape_controls(text: str) -> str:
    r"""Return the text without what moves a terminal's cursor or reorders it; line breaks and tabs stay.

    >>> escape_controls("a\x1b[31m\n")
    'a\\x1b[31m\n'
    """
    return _UNSAFE_IN_TEXT.sub(_escape, text)


def text_of(value: object) -> str:
    """Return ``str`` of anything, also where that raises."""
    try:
        return str(value)
    except Exception as error:  # user code: anything may come, and the line must still be logged
        return f"<unprintable {type(value).__name__}: {type(error).__name__}>"


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def expand(template: str, values: Mapping[str, str | Callable[[], str]]) -> str:
    """Replace each ``%x`` by its value; ``%%`` is a percent sign. Raises :exc:`ValueError` for any other ``%x``."""

    def value_of(match: re.Match[str]) -> str:
        key = match.group(1)
        if key == "%":
            return "%"
        if key not in values:
            known = " ".join(f"%{name}" for name in values)
            raise ValueError(f"unknown format %{key} in {template!r}; use one of {known}, or %% for a percent sign")
        value = values[key]
        return value() if callable(value) else value

    return _FORMAT.sub(value_of, template)
