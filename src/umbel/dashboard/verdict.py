"""How things are, in one sentence, from what is heard and sampled."""

from __future__ import annotations

from typing import Any

import msgspec

from umbel.dashboard.live import Depth
from umbel.dashboard.roll import Seen


class Note(msgspec.Struct, frozen=True):
    """One thing that is to be known, and where to look."""

    text: str
    path: str = ""
    link: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """How things are, in one sentence."""

    level: str  # ok, warn or fail
    text: str
    notes: list[Note] = []


def judge(live: Any, workers: list[Seen], queues: list[Depth]) -> Verdict:
    """Return how things are: the worst that is to be said comes first, the rest in notes."""
    alive = [each for each in workers if each.alive]
    waiting = sum(each.ready for each in queues)
    bad, odd = [], []
    if live.problem:
        bad.append("the broker cannot be reached" if live.away else "no events are heard")
    if not alive:
        bad.append("no worker is alive" + (f", and {_many(waiting, 'message')} wait" if waiting else ""))
    silent = [each.name for each in queues if each.served is False and each.ready]
    if alive and silent:
        bad.append(f"nobody reads {_names(silent)}, where messages wait")
    lost = [each.name for each in workers if not each.alive]
    if alive and lost:
        odd.append(f"no more is heard of {_names(lost)}")
    full = [each for each in queues if each.paused is not None and each.ready]
    if full:
        count = sum(each.ready for each in full)
        which = "which is paused" if len(full) == 1 else "which are paused"
        odd.append(f"{_many(count, 'message')} wait in {_names([each.name for each in full])}, {which}")
    growing = [each for each in queues if each.paused is None and each.ready > 20 and (each.per_second or 0) > 1]
    if growing:
        odd.append(f"messages come to {_names([each.name for each in growing])} faster than they leave")
    notes = []
    if alive and not live.hears_tasks and live.heard_processed:
        notes.append(
            Note(
                "Workers send no task events, so that failures and errors are not seen here.",
                "/workers",
                "Turn them on",
            )
        )
    if live.rates.total("failed"):
        count = live.rates.total("failed")
        odd.append(f"{_many(count, 'task')} failed in the last quarter of an hour")
    if bad or odd:
        first, *rest = [*bad, *odd]
        more = [Note(_sentence(text)) for text in rest]
        return Verdict("fail" if bad else "warn", _sentence(first), [*more, *notes])
    doing = f"{_many(waiting, 'message')} {'waits' if waiting == 1 else 'wait'}" if waiting else "nothing waits"
    return Verdict("ok", f"All is well: {_many(len(alive), 'worker')}, {doing}.", notes)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
