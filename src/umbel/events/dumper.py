"""Printing events as they happen: ``umbel events --dump``."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import IO, Any, Final

from umbel.exceptions import OperationalError
from umbel.utils.text import one_line

_WORDS: Final = {"worker-offline": "shutdown", "worker-online": "started", "worker-heartbeat": "heartbeat"}
_REMEMBERED: Final = 4095
_RETRY_AFTER: Final = 2.0


class Dumper:
    """Prints each event on a line of its own."""

    def __init__(self, out: IO[str] = sys.stdout) -> None:
        self.out = out
        self._tasks: OrderedDict[str, str] = OrderedDict()

    def say(self, text: str) -> None:
        """Print a line at once, also into a pipe."""
        print(text, file=self.out, flush=True)

    def on_event(self, event: dict[str, Any]) -> None:
        """Print one event."""
        fields = dict(event)
        moment = _moment(fields.pop("timestamp", None))
        type, node = str(fields.pop("type")).lower(), fields.pop("hostname", "?")
        task = self._task(type, fields) if type.startswith("task-") else ""
        rest = ", ".join(f"{name}={fields[name]}" for name in sorted(fields, key=str))
        words = _WORDS.get(type, type.replace("-", " ")) + (":" if rest else "")
        self.say(one_line(" ".join(filter(None, (str(node), f"[{moment}]", words, task, rest))), 1 << 16))

    def _task(self, type: str, fields: dict[str, Any]) -> str:
        id = str(fields.pop("uuid", ""))
        if type in ("task-received", "task-sent"):
            # Later events of the task do not say what it is.
            named = f"{fields.pop('name', '')}({id}) args={fields.pop('args', '')} kwargs={fields.pop('kwargs', '')}"
            self._tasks[id] = named
            if len(self._tasks) > _REMEMBERED:
                self._tasks.popitem(last=False)
        return self._tasks.get(id, id)


def _moment(timestamp: Any) -> datetime:
    """Return when an event happened; now, if it says nothing that is a time."""
    try:
        return datetime.fromtimestamp(timestamp, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return datetime.now(UTC)


def evdump(app: Any, out: IO[str] = sys.stdout) -> None:
    """Print events until interrupted; a broker that goes away is waited for."""
    dumper = Dumper(out)
    dumper.say("-> evdump: starting capture...")
    while True:
        try:
            app.events.Receiver(handlers={"*": dumper.on_event}).capture()
        except OperationalError as error:
            dumper.say(f"-> Connection lost, attempting reconnect in {_RETRY_AFTER:g} s: {error}")
            time.sleep(_RETRY_AFTER)
        except (KeyboardInterrupt, SystemExit):
            return
