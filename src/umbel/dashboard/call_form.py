"""The form in which people change a call that is made once more: its fields as text, and what was changed in them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.dashboard.entry_form import Wrong
from umbel.exceptions import DecodeError, SerializationError
from umbel.history.editing import Changes
from umbel.jsoncodec import json_dumps, json_loads

FIELDS: Final = ("args", "kwargs", "queue", "countdown")
#: The longest text of arguments that is edited in a browser, in characters.
LONGEST: Final = 200_000
_KINDS: Final = {"args": (list, "list"), "kwargs": (dict, "object")}
_OPTIONS: Final = {"args": "-a", "kwargs": "-k", "queue": "--queue", "countdown": "--countdown"}
_AROUND: Final = 3  # lines that a difference shows before and after what was changed


class Line(msgspec.Struct, frozen=True):
    """One line of a difference: ``-`` was, ``+`` will be, a blank for what stays, ``@`` for lines left out."""

    sign: str
    text: str


class Difference(msgspec.Struct, frozen=True):
    """What was changed in one field."""

    field: str
    lines: Sequence[Line]


def written(shown: tuple[Sequence[Any], Mapping[str, Any]] | None, queue: str | None) -> dict[str, str]:
    """Return the fields of a call. ``args`` and ``kwargs`` are missing where they would not come back as they went."""
    fields = {"queue": queue or "", "countdown": ""}
    texts = [as_text(value) for value in (list(shown[0]), dict(shown[1]))] if shown is not None else [None]
    if None not in texts:
        fields |= dict(zip(("args", "kwargs"), map(str, texts), strict=True))
    return fields


def as_text(value: Any) -> str | None:
    """Return a value as JSON on several lines, or None where JSON would make something else of it, or too much."""
    try:
        text = json.dumps(json.loads(json_dumps(value)), ensure_ascii=False, indent=2)
        return text if len(text) <= LONGEST and json_loads(text) == value else None
    except (TypeError, ValueError, SerializationError):
        return None


def changed(form: Mapping[str, str], before: Mapping[str, str]) -> Changes:
    """Return what a form says otherwise than before. Raises :exc:`Wrong`.

    What is missing in ``before`` could not be shown: a form that leaves it empty leaves it as it is.
    """
    said: dict[str, Any] = {}
    for name, (kind, what) in _KINDS.items():
        if form[name] or name in before:
            value = _read(name, form[name], kind, what)
            # Compared as JSON writes them: 1 and true and 1.0 are three values.
            if name not in before or as_text(value) != before[name]:
                said[name] = value
    if form["queue"] and form["queue"] != before["queue"]:
        said["queue"] = form["queue"]
    if form["countdown"]:
        said["countdown"] = _number(form["countdown"])
    return Changes(**said)


def differences(changes: Changes, before: Mapping[str, str]) -> list[Difference]:
    """Return what was changed, field by field, as lines."""
    found = []
    for name in FIELDS:
        value = getattr(changes, name)
        if value is not None:
            after = str(as_text(value)) if name in _KINDS else _plain(value)
            found.append(Difference(name, list(_lines(before.get(name, ""), after))))
    return found


def words(changes: Changes, *, queue: str = "--queue") -> list[str]:
    """Return the options of the command line that say the same; ``queue`` is what it calls the queue."""
    found = []
    for name in FIELDS:
        value = getattr(changes, name)
        if value is not None:
            found += [
                queue if name == "queue" else _OPTIONS[name],
                json_dumps(value) if name in _KINDS else _plain(value),
            ]
    return found


def _lines(before: str, after: str) -> Iterator[Line]:
    said = before.splitlines()
    for at, line in enumerate(difflib.unified_diff(said, after.splitlines(), n=_AROUND, lineterm="")):
        # The first two name files, and nothing is left out before the first line.
        if at >= 2 and not line.startswith(("@@ -0", "@@ -1,", "@@ -1 ")):
            yield Line("@", "…") if line.startswith("@@") else Line(line[0], line[1:])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(name: str, text: str, kind: type, what: str) -> Any:
    try:
        found = json_loads(text)
    except DecodeError as error:
        raise Wrong(f"{name} is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise Wrong(f"{name} must be a JSON {what}.")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Wrong(f"The countdown is a number of seconds, and not {text[:40]!r}.") from error
