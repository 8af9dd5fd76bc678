"""``celery.utils.debug`` and ``sysinfo``: memory, stacks and load."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from threading import enumerate as threads
from types import FrameType
from typing import Any, Final, NoReturn, TextIO

from umbel.worker.plan import cpus

AUTO_CONCURRENCY: Final = "auto"
_UNITS: Final = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"), (1, "B"))

_samples: list[str] = []


@contextmanager
def blockdetection(timeout: int) -> Iterator[None]:
    """Raise ``RuntimeError`` in the block if it takes longer than this many seconds."""
    import signal

    if not timeout:
        yield
        return

    def late(signum: int, frame: FrameType | None) -> NoReturn:
        raise RuntimeError(f"blocking detection timed-out at: {frame}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(timeout)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ps() -> Any:
    """Return psutil's view of this process, or None where psutil is not installed."""
    try:
        import psutil  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return None
    return psutil.Process(os.getpid())


def humanbytes(s: float) -> str:
    """Return a number of bytes in the largest unit that fits."""
    divider, unit = next(((divider, unit) for divider, unit in _UNITS if s >= divider), _UNITS[-1])
    return f"{s / divider:.3g}{unit}"


def mem_rss() -> str | None:
    """Return the resident memory of this process in words, or None where psutil is not installed."""
    process = ps()
    return None if process is None else humanbytes(process.memory_info().rss)


def sample_mem() -> str | None:
    """Note how much memory is used now, and return it."""
    current = mem_rss()
    if current is not None:
        _samples.append(current)
    return current


def memdump(samples: int = 10, file: TextIO | None = None) -> None:
    """Print some of what was noted since the last time."""
    taken = list(sample(_samples, samples))
    _samples.clear()
    for each in taken:
        (file or sys.stdout).write(f"- rss (sample): {each}.\n")
    (file or sys.stdout).write(f"- rss (end): {mem_rss()}.\n")


def sample(x: Sequence[Any], n: int, k: int = 0) -> Iterator[Any]:
    """Yield about ``n`` values of a list, evenly spread."""
    step = max(len(x) // n, 1)
    yield from x[k::step][: n if len(x) >= n else len(x)]


def cry(out: TextIO | None = None, sepchr: str = "=", seplen: int = 49) -> str:
    """Return the stack of every thread."""
    text = StringIO() if out is None else out
    names = {thread.ident: thread.name for thread in threads()}
    for ident, frame in sys._current_frames().items():
        if ident in names:
            text.write(f"{names[ident]}\n{sepchr * seplen}\n")
            traceback.print_stack(frame, file=text)
            text.write(f"{sepchr * seplen}\n\n")
    return text.getvalue() if isinstance(text, StringIO) else ""


def load_average() -> tuple[float, ...]:
    """Return the system's load over 1, 5 and 15 minutes."""
    return tuple(round(load, 2) for load in os.getloadavg()) if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)


class df:
    """How full a file system is."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def stat(self) -> Any:
        """What the system says."""
        return os.statvfs(os.path.abspath(self.path))

    @property
    def total_blocks(self) -> float:
        """Its size."""
        return float(self.stat.f_blocks * self.stat.f_frsize / 1024)

    @property
    def available(self) -> float:
        """What is free."""
        return float(self.stat.f_bavail * self.stat.f_frsize / 1024)

    @property
    def capacity(self) -> int:
        """The percentage that is used."""
        stat = self.stat
        used = stat.f_blocks - stat.f_bfree
        return int(-(-used * 100 // (used + stat.f_bavail) // 1)) if used + stat.f_bavail else 0


def is_auto_concurrency(value: Any) -> bool:
    """Say whether a concurrency means "as many as there are CPUs"."""
    return isinstance(value, str) and value.strip().lower() == AUTO_CONCURRENCY


def available_cpu_count() -> int:
    """Return how many CPUs this process may use."""
    return int(cpus())
