"""What beat says when it starts: Celery's lines in Celery's order."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from umbel import __version__
from umbel.beat.choosing import Extension, Runs
from umbel.drivers import mask
from umbel.utils.time import humanize_seconds

_ART = "__    -    ... __   -        _"


def starting() -> str:
    """Return the first line, printed before anything else is done."""
    return f"celery beat v{__version__} (umbel) is starting."


def banner(app: Any, beat: Runs, *, logfile: str | None, loglevel: str, node: str | None = None) -> str:
    """Return the banner; ``node`` is the name by which remote control is answered, if it is."""
    scheduler: Any = beat
    info = f"    . db -> {mask(app.urls.write)} (no file is needed)"
    if isinstance(beat, Extension):
        scheduler = beat.service.get_scheduler(lazy=True)
        info = scheduler.info
    lines = [
        _ART,
        f"LocalTime -> {datetime.now().replace(microsecond=0)}",
        "Configuration ->",
        f"    . broker -> {mask(app.urls.write)}",
        f"    . loader -> {_name(type(app.loader))}",
        f"    . scheduler -> {_name(type(scheduler))}",
        *([info] if info else []),
        f"    . logfile -> {logfile or '[stderr]'}@%{loglevel}",
        f"    . maxinterval -> {humanize_seconds(beat.longest)} ({beat.longest:g}s)",
        *([f"    . remote control -> {node}"] if node else []),
    ]
    return "\n".join(lines)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
