"""What is taken out of an event before it is written: what tasks call sensitive, and what looks like a secret.

Our workers hide what is sensitive before they tell of it. Celery's do not, nor does a client that knows a task by its
name alone; so it is looked at once more here, where the app and its tasks are known.
"""

from __future__ import annotations

import re
from typing import Any, Final

from umbel.sensitive import HIDDEN, veil_of

_TEXTS: Final = {"args": 2000, "kwargs": 2000, "result": 2000, "exception": 2000, "traceback": 16384}
# Every part has an end, so that no text takes long to look through, whoever wrote it. What stands before the telling
# part of a name is of no matter: it is kept in any case.
_NAMED: Final = (
    r"(?:passw|secret|token|api[_\-]?key|access[_\-]?key|private[_\-]?key|authorization|credential|passphrase)"
    r"[\w\-]{0,40}"
)
_VALUE: Final = r"""(?:'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?|[^\s,'"(){}\[\]]+)"""
_SECRETS: Final = (
    # {'password': '…'} and password='…' and "api_key": 17
    re.compile(rf"""({_NAMED}['"]?\s{{0,8}}[:=]\s{{0,8}}){_VALUE}""", re.IGNORECASE),
    # Bearer …, and the password in a URL
    re.compile(r"(\b(?:Bearer|Basic)\s{1,8})[\w\-.~+/=]{8,}", re.IGNORECASE),
    re.compile(r"(\b[a-z][a-z0-9+.\-]{0,30}://[^\s/:@'\"]{0,200}:)[^\s@/'\"]{1,500}(?=@)", re.IGNORECASE),
)
#: Characters around what is kept that are looked at too: a secret may begin before the cut.
_MARGIN: Final = 500


def masked(text: str) -> str:
    """Return a text with the values of what is named like a secret taken out.

    >>> masked("{'user': 'eva', 'password': 'x1', 'n': 3}")
    "{'user': 'eva', 'password': ***, 'n': 3}"
    """
    for pattern in _SECRETS:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


class Redactor:
    """Cleans events of one app. Used by one thread at a time."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def clean(self, event: dict[str, Any], name: str | None = None) -> dict[str, Any]:
        """Return the event as it may be written. ``name`` is the task's, where the event does not say it."""
        found = {**event}
        self._veil(found, found.get("name") or name)
        for field, longest in _TEXTS.items():
            value = found.get(field)
            if value is None:
                continue
            # In a list there may be halves of characters yet, which no file can hold.
            text = value if isinstance(value, str) else repr(value).encode("utf-8", "replace").decode("utf-8")
            if len(text) > longest:
                text = _cut(field, text, longest + _MARGIN)
            text = masked(text)
            found[field] = text if len(text) <= longest else _cut(field, text, longest)
        return found

    def _veil(self, event: dict[str, Any], name: Any) -> None:
        task = self._app.registry.get(name) if isinstance(name, str) and self._app is not None else None
        veil = veil_of(task)
        if veil is None:
            return
        for field in ("args", "kwargs"):
            text = event.get(field)
            # A text in which nothing is hidden comes from somebody who did not know: which part it is, it does not say.
            if text not in (None, "", "()", "[]", "{}") and HIDDEN not in str(text):
                event[field] = HIDDEN
        if veil.everything and event.get("result") is not None:
            event["result"] = HIDDEN


def _cut(field: str, text: str, longest: int) -> str:
    # What a traceback ends with says most.
    return "…" + text[1 - longest :] if field == "traceback" else text[: longest - 1] + "…"
