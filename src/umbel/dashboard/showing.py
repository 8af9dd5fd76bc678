"""How values are written for people: numbers, ages, sizes, arguments."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup

from umbel.jsoncodec import json_dumps
from umbel.saferepr import saferepr
from umbel.utils.amounts import ago, count, duration, rate

_LONGEST: Final = 20_000


def iso(moment: datetime | float | None) -> str:
    """Return a moment in ISO 8601 and UTC, to the second."""
    if moment is None:
        return ""
    at = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def clock(moment: datetime | float | None) -> str:
    """Return a moment as people write it, in UTC."""
    return iso(moment).replace("T", " ").replace("Z", " UTC")


def wall(moment: datetime) -> str:
    """Return what a clock shows in the moment's own zone; seconds only where there are some."""
    return moment.strftime("%Y-%m-%d %H:%M:%S" if moment.second else "%Y-%m-%d %H:%M")


def size(value: float | None) -> str:
    """Return a number of bytes.

    >>> size(512), size(2048), size(5 << 20)
    ('512 B', '2.0 kB', '5.0 MB')
    """
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"


def as_json(value: Any) -> str:
    """Return a value as JSON on several lines, cut where it is very long; what JSON has not, as a text."""
    try:
        text = json.dumps(json.loads(json_dumps(value)), ensure_ascii=False, indent=2)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "\n… cut here"


def rows(text: str) -> str:
    """Return how many rows a text needs in a form, within reason."""
    return str(min(max(text.count("\n") + 1, 2), 14))


def short(value: Any, most: int = 120) -> str:
    """Return a value on one line, cut where it is long; characters that do not print are written out."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    cut = text[:most] + "…" if len(text) > most else text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in cut)


def change(value: float | None) -> str:
    """Return by how much a number changes a second.

    >>> change(2.5), change(-0.5), change(0.0)
    ('+2.5/s', '−0.50/s', '±0')
    """
    if value is None:
        return "…"
    if abs(value) < 0.01:
        return "±0"
    return f"{'+' if value > 0 else '−'}{rate(abs(value))}/s"


def since(value: Any) -> str:
    """Return for how long something has gone on that began at these seconds since the epoch."""
    if not isinstance(value, int | float):
        return "–"
    return duration(max(time.time() - value, 0.0))


def call(of: Any, most: int = 120) -> str:
    """Return the arguments of a call on one line: ``1, 2, to='ann'``."""
    args = of.get("args") if isinstance(of, dict) else of.args
    kwargs = of.get("kwargs") if isinstance(of, dict) else of.kwargs
    if isinstance(args, str) or isinstance(kwargs, str):
        return short(f"{args or ''} {kwargs or ''}".strip(), most)
    parts = [saferepr(each, maxlen=most) for each in (args if isinstance(args, list | tuple) else ())]
    named = kwargs if isinstance(kwargs, dict) else {}
    parts += [f"{name}={saferepr(value, maxlen=most)}" for name, value in named.items()]
    return short(", ".join(parts), most) or "–"


def drain(depth: Any) -> str:
    """Return when a queue will be empty if all goes on so, or where it is going instead."""
    if not depth.ready:
        return "–"
    if depth.drain is not None:
        return duration(depth.drain)
    if depth.per_second is None:
        return "…"
    return "grows" if depth.per_second > 0.01 else "stands"


def spark(series: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Return a small drawing of a series, for browsers without JavaScript."""
    width, height = 600, 120
    top = max((value for name in names for value in series[name] if value is not None), default=0) or 1
    lines = []
    for name in names:
        values = series[name]
        step = width / max(len(values) - 1, 1)
        points = " ".join(
            f"{at * step:.1f},{height - 4 - (height - 8) * value / top:.1f}"
            for at, value in enumerate(values)
            if value is not None
        )
        lines.append(Markup('<polyline class="line {}" points="{}"/>').format(name, points))
    head = Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">').format(
        width, height, f"The last quarter of an hour; at most {rate(top)}"
    )
    return head + Markup("").join(lines) + Markup("</svg>")


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "count": count, "rate": rate, "duration": duration, "ago": ago, "iso": iso, "clock": clock, "size": size,
    "as_json": as_json, "short": short, "drain": drain, "change": change, "since": since, "call": call,
    "pystr": repr, "rows": rows, "wall": wall,
}  # fmt: skip
