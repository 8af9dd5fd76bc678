"""The dashboard and the history: it records what its receiver hears, and sends tasks once more beside its pages."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from umbel.dashboard.live import Live
from umbel.exceptions import CeleryError
from umbel.history import History, Recorder, open_history
from umbel.history.replay import Replayer

logger = logging.getLogger("umbel.dashboard")

_PATIENCE: Final = 10.0


class Replay(msgspec.Struct, kw_only=True):
    """Tasks that are sent once more, one after the other."""

    total: int
    rate: float
    sent: int = 0
    refused: int = 0
    reason: str = ""  # of the latest refusal
    ended: str = ""  # "done", "stopped", or what went wrong

    @property
    def left(self) -> int:
        """How many are still to be sent."""
        return self.total - self.sent - self.refused


class Recording:
    """Opens the history with the first page, and records as long as the dashboard runs.

    Where the file cannot be used, ``trouble`` says why, and the dashboard works without it.
    """

    def __init__(self, app: Any, live: Live) -> None:
        self._app = app
        self._live = live
        self._lock = threading.Lock()
        self._opening: threading.Thread | None = None
        self._temporary = ""
        self._recorder: Recorder | None = None
        self._stopping = threading.Event()
        self._sender: threading.Thread | None = None
        self._history: History | None = None
        self.trouble = ""
        #: What is being sent once more, or was the last time.
        self.replay: Replay | None = None

    def start(self) -> None:
        """Open the history and record, once. Never waits: that is for :attr:`history` to do."""
        if self._opening is None:
            with self._lock:
                if self._opening is None:
                    self._opening = threading.Thread(target=self._begin, name="umbel-dashboard-history", daemon=True)
                    self._opening.start()

    @property
    def history(self) -> History | None:
        """The history, once it is open; None where it cannot be."""
        if self._opening is not None:
            self._opening.join(_PATIENCE)
        return self._history

    def _begin(self) -> None:
        try:
            history = self._open()
            recorder = Recorder(self._app, history, hears=False)
        except CeleryError as error:
            self.trouble = " ".join(str(error).split())[:300]
            logger.warning("Nothing is recorded: %s", self.trouble)
            return
        self._history, self._recorder = history, recorder
        self._live.listeners.append(recorder.heard)
        recorder.start()

    def _open(self) -> History:
        if self._app.broker.features.shared or self._app.conf.history_file:
            found = open_history(self._app, create=True)
            assert found is not None
            return found
        # What lives in this process alone needs no history beyond it.
        file, self._temporary = tempfile.mkstemp(prefix="umbel-", suffix=".history.db")
        os.close(file)
        return History(self._temporary, app=self._app)

    def stop(self) -> None:
        """Write what was heard, and close the file. A second call does nothing."""
        with self._lock:
            self._stopping.set()
            if self._opening is not None:
                self._opening.join(_PATIENCE)
            if self._sender is not None:
                self._sender.join(5.0)
            if self._recorder is not None:
                self._recorder.stop()
            if self._history is not None:
                self._history.close()
            if self._temporary:
                os.unlink(self._temporary)
            self._recorder, self._temporary = None, ""

    @property
    def missed(self) -> int:
        """How many events came faster than they could be written."""
        return self._recorder.status.missed if self._recorder is not None else 0

    def send_again(self, ids: Sequence[str], rate: float) -> bool:
        """Send these once more, so many a second, beside the pages; False where others are being sent already."""
        with self._lock:
            if self._sender is not None and self._sender.is_alive():
                return False
            self._stopping.clear()
            self.replay = Replay(total=len(ids), rate=rate)
            self._sender = threading.Thread(
                target=self._send, args=(self.replay, list(ids)), name="umbel-dashboard-replay", daemon=True
            )
            self._sender.start()
            return True

    def stop_sending(self) -> None:
        """Send no more of them."""
        self._stopping.set()

    def _send(self, replay: Replay, ids: Sequence[str]) -> None:
        try:
            for done in Replayer(self._app, self.history).all(ids, rate=replay.rate, stopping=self._stopping):
                if done.refusal:
                    replay.refused, replay.reason = replay.refused + 1, done.refusal
                else:
                    replay.sent += 1
            replay.ended = "stopped" if replay.left else "done"
        except CeleryError as error:
            replay.ended = " ".join(str(error).split())[:300]
        # The outer wall of the thread: whoever looks at the page must see that it ended.
        except Exception as error:
            logger.exception("Sending tasks once more ended early")
            replay.ended = f"{type(error).__name__}: see the log"
