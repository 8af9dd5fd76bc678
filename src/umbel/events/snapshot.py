"""Cameras: what hands the state of the cluster to your code every so many seconds (``umbel events --camera``)."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

from umbel.events.state import State
from umbel.exceptions import OperationalError
from umbel.loading import symbol_by_name
from umbel.signals import Signal
from umbel.utils.rates import per_second

logger = logging.getLogger("celery.evcam")

_RETRY_AFTER = 2.0


class Polaroid:
    """Base of cameras: override :meth:`on_shutter`, and :meth:`on_cleanup` to tidy up once in a while.

    They are called in a thread of their own, and no event is taken meanwhile. ``freq`` and ``cleanup_freq`` are
    seconds; ``maxrate`` ("10/m") bounds how often a picture is taken. With ``clear_after`` the state starts anew after
    each picture.
    """

    shutter_signal = Signal({"state"}, name="shutter_signal")
    cleanup_signal = Signal(name="cleanup_signal")
    clear_after = False

    def __init__(
        self,
        state: State,
        freq: float = 1.0,
        maxrate: str | float | None = None,
        cleanup_freq: float = 3600.0,
        timer: Any = None,
        app: Any = None,
    ) -> None:
        self.app = app
        self.state = state
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        self.logger = logger
        self._pause = 1 / rate if (rate := per_second(maxrate)) else 0.0
        self._taken_at = float("-inf")
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """Start taking pictures."""
        self._thread = threading.Thread(target=self._run, name="umbel-camera", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        clean_at = time.monotonic() + self.cleanup_freq
        while not self._stopped.wait(self.freq):
            # The outer wall around a user's camera: one picture that fails is no reason to miss the next.
            try:
                self.capture()
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + self.cleanup_freq
                    self.cleanup()
            except Exception:
                logger.exception("The camera failed and goes on")

    def on_shutter(self, state: State) -> None:
        """Do something with the state; override this."""

    def on_cleanup(self) -> None:
        """Forget what is old; override this."""

    def capture(self) -> None:
        """Take a picture now, while the state stands still."""
        self.state.freeze_while(self.shutter, clear_after=self.clear_after)

    def shutter(self) -> None:
        """Take a picture unless that would be too often."""
        if time.monotonic() - self._taken_at < self._pause:
            return
        self._taken_at = time.monotonic()
        self.shutter_signal.send(sender=self.state)
        self.on_shutter(self.state)

    def cleanup(self) -> None:
        """Tidy up now."""
        self.cleanup_signal.send(sender=self.state)
        self.on_cleanup()

    def cancel(self) -> None:
        """Take a last picture and stop. A second call does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=self.freq + 5.0)
        self.capture()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def evcam(app: Any, camera: Any, freq: float = 1.0, maxrate: str | float | None = None) -> None:
    """Feed a camera (a class, or where it is) with events until interrupted."""
    print(f"-> evcam: Taking snapshots with {camera} (every {freq} secs.)", flush=True)
    state = app.events.State()
    with symbol_by_name(camera)(state, app=app, freq=freq, maxrate=maxrate):
        while True:
            try:
                app.events.Receiver(handlers={"*": state.event}).capture()
            except OperationalError as error:
                logger.error("The broker is away: %s. Trying again in %g s.", error, _RETRY_AFTER)
                time.sleep(_RETRY_AFTER)
            except (KeyboardInterrupt, SystemExit):
                return
