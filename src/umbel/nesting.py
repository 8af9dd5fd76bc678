"""How deeply a text of JSON is nested, found without decoding it.

A decoder written in C keeps its place on the stack of the machine, so what goes in has a limit of its own. Nearly
every text is let through by its length or by the number of its brackets; the rest takes a pass of :func:`_depth`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Final

MAX_DEPTH: Final = 256
"""Containers inside each other that a message or a result may have."""

TOO_DEEP: Final = f"it is nested too deeply (more than {MAX_DEPTH} levels)"

_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_OTHERS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS: Final = {ord("["): 1, ord("]"): -1}
# Each pass takes the innermost level away; what is deeper than this is counted bracket by bracket.
_PASSES: Final = 12
_SHORT: Final = 16384


def too_deep(raw: bytes) -> bool:
    """Say whether JSON is nested more than :data:`MAX_DEPTH` levels deep, in time linear in its length.

    Of a text that is no JSON the answer holds for the part that a decoder reads before it stops.
    """
    if len(raw) <= MAX_DEPTH or _few_brackets(raw):
        return False
    return _depth(raw) > MAX_DEPTH


def _few_brackets(raw: bytes) -> bool:
    if len(raw) <= _SHORT:
        return raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH
    # find() goes through text without brackets ten times as fast as count().
    left = MAX_DEPTH
    for bracket in (b"[", b"{"):
        at = raw.find(bracket)
        while at >= 0:
            left -= 1
            if left < 0:
                return False
            at = raw.find(bracket, at + 1)
    return True


def _depth(raw: bytes) -> int:
    if b"\\" in raw:
        # Backslashes in pairs first, so that one that is left belongs to what follows it.
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = raw.translate(_BRACKETS, _OTHERS).replace(b'""', b"")
    if b'"' in left:
        # Strings with brackets in them are between the first and the second quote, the third and the fourth, and so on.
        left = b"".join(left.split(b'"')[::2])
    for removed in range(_PASSES):
        if removed + left.count(b"[") <= MAX_DEPTH:
            return removed + left.count(b"[")  # at most
        left = left.replace(b"[]", b"")
    return _PASSES + max(accumulate(map(_STEPS.__getitem__, left)), default=0)


def value_too_deep(value: Any) -> bool:
    """Say the same of a decoded value made of lists, tuples and dicts."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if type(each) in _CONTAINERS]
        if not level:
            return False
        level = [child for each in level for child in _children(each)]
    return True


_CONTAINERS: Final = frozenset({list, tuple, dict})


def _children(value: Any) -> Any:
    return value.values() if type(value) is dict else value
