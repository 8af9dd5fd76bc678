"""Progress bars of tasks in web pages: signed addresses, what is told, and the element ``<umbel-progress>``.

:mod:`umbel.contrib.progress.flask` and :mod:`umbel.contrib.progress.asgi` serve them. An address names a task by a
token, which only the program that has the secret can make::

    base64url(task id) . time of expiry . base64url(HMAC-SHA-256)

Whoever has the address may see the state and the progress of that one task until then: no result, no arguments and no
error text.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import html
import json
import math
import time
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any, Final

from umbel import states
from umbel.meta import decoder
from umbel.progress import Progress, read_progress

__all__ = ["BadToken", "Signer", "element", "look", "script"]

DAY: Final = 86400.0
SHORTEST_SECRET: Final = 16
LONGEST_TOKEN: Final = 1024
_PURPOSE: Final = b"umbel progress 1\0"

#: What every answer carries.
HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
SCRIPT_HEADERS: Final = {"cache-control": "public, max-age=3600", "x-content-type-options": "nosniff"}


class BadToken(Exception):
    """A token that leads to no task. ``status`` is the HTTP status to answer with: 403, or 410 once it has expired."""

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.status = status


class Signer:
    """Makes the tokens of task ids and reads them. Immutable and safe to share.

    :param secrets: the first signs, all are accepted; each has 16 bytes at least.
    :param max_age: seconds for which a token leads to its task.
    """

    def __init__(self, secrets: Iterable[str | bytes], max_age: float = DAY) -> None:
        self._keys = tuple(_key(secret) for secret in secrets)
        if not self._keys:
            raise ValueError("progress: a secret is needed to sign task ids with; take one that others cannot guess")
        if not (max_age > 0 and math.isfinite(max_age)):
            raise ValueError(f"progress: max_age must be a number of seconds above 0, not {max_age}")
        self._max_age = max_age

    def sign(self, task_id: str, *, now: float | None = None) -> str:
        """Return the token of a task."""
        if not task_id:
            raise ValueError("progress: a task id is needed")
        expiry = int((time.time() if now is None else now) + self._max_age)
        head = f"{_text(task_id.encode())}.{expiry}"
        token = f"{head}.{_text(_mac(self._keys[0], head))}"
        if len(token) > LONGEST_TOKEN:
            raise ValueError(f"progress: a task id of {len(task_id)} characters is too long for an address")
        return token

    def read(self, token: str, *, now: float | None = None) -> str:
        """Return the task id. Raises :exc:`BadToken` if nobody with a secret signed it, or too long ago."""
        head, _, mac = token.rpartition(".")
        name, _, expiry = head.partition(".")
        if len(token) > LONGEST_TOKEN or not token.isascii():
            raise BadToken("This address is not valid.")
        given = mac.encode()
        # Every key is tried, whichever fits.
        if not sum(hmac.compare_digest(_text(_mac(key, head)).encode(), given) for key in self._keys):
            raise BadToken("This address is not valid.")
        if int(expiry) <= (time.time() if now is None else now):
            raise BadToken("This address has expired.", 410)
        try:
            return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise BadToken("This address is not valid.") from error


def _key(secret: str | bytes) -> bytes:
    raw = secret.encode() if isinstance(secret, str) else secret
    if len(raw) < SHORTEST_SECRET:
        raise ValueError(
            f"progress: a secret of {len(raw)} bytes can be guessed; take {SHORTEST_SECRET} or more, for example from "
            "python -c 'import secrets; print(secrets.token_hex())'"
        )
    # A key of its own, so that no signature of another use of the same secret is good here.
    return hmac.digest(raw, _PURPOSE, hashlib.sha256)


def _mac(key: bytes, head: str) -> bytes:
    return hmac.digest(key, head.encode(), hashlib.sha256)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def look(app: Any, task_id: str) -> Progress:
    """Return how far the task is now, in one round trip to the result backend.

    Raises :exc:`OperationalError` if that cannot be reached, and :exc:`NotImplementedError` where there is none.
    """
    if app.backend is None:
        raise NotImplementedError("progress needs a result backend: set result_backend, or Umbel(backend=...)")
    payload = app.backend.fetch([task_id], timeout=5.0).get(task_id)
    if payload is None:
        return Progress(states.PENDING)
    return of_meta(decoder(app.conf)(payload))


def of_meta(meta: Any) -> Progress:
    """Return how far a task is by its stored document."""
    return read_progress(meta["status"], meta.get("result"))


def refusal(text: str) -> str:
    """Return what a browser is told that learns nothing."""
    return json.dumps({"error": text})


def as_json(progress: Progress) -> str:
    """Return what a browser is told."""
    return json.dumps({**progress._asdict(), "ready": progress.ready})


@functools.cache
def script() -> bytes:
    """Return the module that defines ``<umbel-progress>``."""
    return files(__package__).joinpath("progress.js").read_bytes()


def element(src: str, events: str | None = None, label: str | None = None) -> str:
    """Return the tag of a progress bar; ``events`` is the address of a stream, ``src`` of what is asked without one."""
    given = {"src": src, "events": events, "label": label}
    inside = " ".join(f'{name}="{html.escape(value)}"' for name, value in given.items() if value is not None)
    return f"<umbel-progress {inside}></umbel-progress>"


def id_of(task: Any) -> str:
    """Return the id of a result, or the id that was given."""
    found = task if isinstance(task, str) else getattr(task, "id", None)
    if not isinstance(found, str) or not found:
        raise TypeError(f"progress: give a result or a task id, not {type(task).__name__}")
    return found


def secrets_of(given: str | bytes | Iterable[str | bytes] | Callable[[], Any]) -> list[str | bytes]:
    """Return the secrets of one, or of several."""
    found: Any = given() if callable(given) else given
    return [found] if isinstance(found, str | bytes) else [each for each in found if each]
