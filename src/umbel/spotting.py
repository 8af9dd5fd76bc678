"""Telling the message of one task among many, without decoding the others."""

from __future__ import annotations

import json

from umbel.envelope import decode_envelope
from umbel.exceptions import DecodeError


def marks_of(task_id: str) -> tuple[bytes, bytes]:
    """Return what of an id stands in its message's envelope: as our JSON writes it, and as Celery's does.

    >>> marks_of("5a1c"), marks_of("ů")
    ((b'5a1c', b'5a1c'), (b'\\xc5\\xaf', b'\\\\u016f'))
    """
    ours = json.dumps(task_id, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
    return ours, json.dumps(task_id)[1:-1].encode("ascii")


def is_of(raw: bytes, task_id: str) -> bool:
    """Say whether this envelope is of the task's own message, and not of one that only speaks of it.

    One of protocol 1, whose id is in the body alone, is not recognised.
    """
    try:
        return decode_envelope(raw).headers.get("id") == task_id
    except DecodeError:
        return False
