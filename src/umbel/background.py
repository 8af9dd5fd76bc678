"""What runs tasks, or sends periodic ones, inside a program: see :meth:`umbel.app.Umbel.start_background`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Background(ABC):
    """A worker, a beat or both in threads of this process. As a block it stops at the end."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether all that was started still runs."""

    @property
    @abstractmethod
    def error(self) -> BaseException | None:
        """What ended a part of it before its time, if something did."""

    @abstractmethod
    def stop(self, timeout: float | None = 10.0) -> bool:
        """Stop, and say whether worker and beat have ended.

        What still runs after ``timeout`` seconds is given back and runs again elsewhere; no thread can be ended
        from outside. A second call does nothing, or hastens the first one if that still waits. It is called at the
        end of the program too, and may be called in a signal handler.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
