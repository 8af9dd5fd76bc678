"""The workers that are known, from their events and from what they keep in the broker's store."""

from __future__ import annotations

from typing import Any

import msgspec

from umbel.dashboard.live import Live


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as it was last heard of; what was not told is None."""

    name: str
    alive: bool
    active: int | None = None
    processed: int | None = None
    load: tuple[float, ...] = ()
    heard: float | None = None
    software: str = ""
    pid: int | None = None
    queues: tuple[str, ...] = ()


def roll(live: Live) -> list[Seen]:
    """Return the workers, those that live first."""
    found: dict[str, Seen] = {}
    for each in live.workers:
        name = str(each.hostname)
        about = live.presence.get(name, {})
        found[name] = Seen(
            name=name,
            alive=bool(each.alive) or name in live.presence,
            active=_integer(each.active),
            processed=_integer(each.processed),
            load=_load(each.loadavg),
            heard=each.heartbeats[-1] if each.heartbeats else None,
            software=f"{str(each.sw_ident or '').removeprefix('py-')} {each.sw_ver or ''}".strip(),
            pid=_integer(each.pid),
            queues=_queues(about),
        )
    for name, about in live.presence.items():
        # It lives, though its events do not reach us.
        found.setdefault(name, Seen(name=name, alive=True, pid=_integer(about.get("pid")), queues=_queues(about)))
    return sorted(found.values(), key=lambda each: (not each.alive, each.name))


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None


def _load(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        return ()
    return tuple(float(each) for each in value if isinstance(each, int | float) and abs(each) < 1e15)[:3]


def _queues(about: dict[str, Any]) -> tuple[str, ...]:
    given = about.get("queues")
    return tuple(str(each) for each in given) if isinstance(given, list) else ()
