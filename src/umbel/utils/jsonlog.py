"""The log as JSON, one object in each line: for programs that gather logs, and not for people to read.

::

    {"time": "2026-01-31T18:00:00.123456+00:00", "level": "INFO", "logger": "celery.app.trace", "process": "…",
     "pid": 7, "message": "Task shop.add[…] succeeded in 0.01s: 4",
     "task_id": "…", "task_name": "shop.add", "root_id": "…", "retries": 0, "queue": "celery", "worker": "w1@box",
     "trace_id": "…", "span_id": "…", "error": {"type": "…", "message": "…", "traceback": "…"}, "extra": {…}}

What does not apply is left out. Everything beyond ASCII is escaped, so that no text can end a line or forge one.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from umbel.current import top_frame
from umbel.utils.text import text_of

_LONGEST: Final = 65536
# What every record has, and what our own lines carry for Celery's readers: arguments, which may be private.
_USUAL: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "data", "task_id", "task_name", "taskName"}
)


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON, with the task that runs here and, where it is traced, its trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Raises for nothing but a message that does not fit its arguments."""
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.processName,
            "pid": record.process,
            "message": record.getMessage()[:_LONGEST],
            **_task(record),
            **_trace(),
        }
        error = _error(record)
        if error is not None:
            found["error"] = error
        extra = {name: value for name, value in vars(record).items() if name not in _USUAL}
        if extra:
            found["extra"] = extra
        try:
            text = json.dumps(found, default=text_of)
        except (TypeError, ValueError, RecursionError):  # keys that are no texts, or something that holds itself
            found["extra"] = text_of(extra)[:_LONGEST]
            text = json.dumps(found, default=text_of)
        if "\\ud" in text:
            # Half of a character, which a text in Python can hold, is no JSON for most readers.
            whole = json.dumps(found, default=text_of, ensure_ascii=False).encode("utf-8", "replace")
            return json.dumps(json.loads(whole))
        return text


def _task(record: logging.LogRecord) -> dict[str, Any]:
    frame = top_frame()
    if frame is None:
        # Our own lines about a task that does not run name it in their arguments.
        words = record.args
        if isinstance(words, Mapping) and isinstance(words.get("id"), str) and isinstance(words.get("name"), str):
            return {"task_id": words["id"], "task_name": words["name"]}
        return {}
    request = frame.request if frame.request is not None else getattr(frame.task, "request", None)
    found = {"task_id": getattr(request, "id", None), "task_name": getattr(frame.task, "name", None)}
    if request is not None:
        info = request.delivery_info or {}
        found.update(
            root_id=request.root_id,
            retries=request.retries,
            queue=info.get("routing_key"),
            worker=request.hostname,
        )
    return {name: value for name, value in found.items() if value is not None}


def _trace() -> dict[str, str]:
    """Return the ids of the current span, without importing OpenTelemetry: who traces has done that."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return {}
    context = module.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _error(record: logging.LogRecord) -> dict[str, str] | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    kind, error, tb = record.exc_info
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    lines = traceback.format_exception(kind, error, tb)
    return {"type": name, "message": text_of(error)[:_LONGEST], "traceback": "".join(lines)[-_LONGEST:]}
