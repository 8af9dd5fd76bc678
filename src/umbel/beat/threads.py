"""A beat in a thread: in a worker (``-B``), in a program, and under ``umbel beat``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from umbel import signals
from umbel.beat.choosing import Runs, make_beat
from umbel.exceptions import ImproperlyConfigured

logger = logging.getLogger("celery.beat")

#: Seconds for which a stop waits for what is being sent.
PATIENCE: Final = 10.0


class BeatThread:
    """Runs a beat. ``start`` and ``join`` belong to whoever made it; :meth:`stop` to any thread and signal handler."""

    def __init__(self, app: Any, beat: Runs, *, ended: Callable[[], None] | None = None) -> None:
        """``ended`` is called in the thread when it ends, also by an error."""
        self.beat = beat
        #: What ended it, if that was an error.
        self.error: BaseException | None = None
        self._app = app
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="Beat", daemon=True)

    def start(self) -> None:
        """Start the thread. Once."""
        self._thread.start()

    def stop(self) -> None:
        """Have it end; returns at once. A second call does nothing."""
        self.beat.stop()

    def join(self, timeout: float | None = PATIENCE) -> bool:
        """Wait until it has ended, and say whether it has."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self.alive

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        self._app.set_current()
        try:
            self.beat.run()
        # The wall of the thread: a worker goes on without its beat, and a command reads what happened.
        except BaseException as error:
            self.error = error
            told = isinstance(error, ImproperlyConfigured)
            logger.critical("beat raised exception %s: %r", type(error), error, exc_info=not told)
        finally:
            if self._ended is not None:
                self._ended()


def embedded(app: Any, *, scheduler: Any = None, schedule_filename: str | None = None) -> BeatThread:
    """Return the beat of a worker or a program, not started. The broker is connected.

    Raises :exc:`ImproperlyConfigured` if neither broker nor result backend can keep what was sent.
    """
    made: list[Runs] = []

    def ready() -> None:
        signals.beat_embedded_init.send(sender=made[0])

    beat = make_beat(app, scheduler=scheduler, schedule_filename=schedule_filename, on_ready=ready)
    made.append(beat)
    table = getattr(beat, "table", None)
    if table is not None:
        _ = table.store  # without one it would end at once, and nobody would know
        table.lines()  # so it would with an entry of the program that cannot be
    return BeatThread(app, beat)
