"""Waiting and looking, for tests of whole systems."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

from umbel.celery.functional import retry_over_time
from umbel.exceptions import TimeoutError
from umbel.result import ResultSet


class Sentinel(Exception):
    """Raised while what is waited for has not happened."""


class ManagerMixin:
    """Waits for results, states and calm. ``app`` is set by the class that uses it."""

    app: Any

    def _init_manager(
        self,
        block_timeout: float = 1800.0,
        no_join: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.block_timeout = block_timeout
        self.no_join = no_join

    def remark(self, s: str, sep: str = "-") -> None:
        """Print a line."""
        print(f"{sep}{s}", file=self.stdout)

    def warn(self, s: str) -> None:
        """Print a line to the standard error."""
        print(s, file=self.stderr)

    def missing_results(self, r: Iterable[Any]) -> list[str]:
        """Return the ids of what has not ended."""
        return [result.id for result in r if not result.ready()]

    def wait_for(
        self,
        fun: Callable[..., Any],
        catch: Any,
        desc: str = "thing",
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        errback: Callable[..., Any] | None = None,
        max_retries: int = 10,
        interval_start: float = 0.1,
        interval_step: float = 0.5,
        interval_max: float = 5.0,
        emit_warning: bool = False,
        **options: Any,
    ) -> Any:
        """Call a function until it raises none of ``catch``."""

        def on_error(error: BaseException, intervals: Iterator[float], retries: int) -> float:
            interval = next(intervals)
            if emit_warning:
                self.warn(f"Still waiting for {desc}.  Trying again in {interval} seconds: {error!r}")
            if errback is not None:
                errback(error, interval, retries)
            return interval

        return retry_over_time(fun, catch, args, kwargs, on_error, max_retries, interval_start, interval_step,
                               interval_max)  # fmt: skip

    def join(self, r: Any, propagate: bool = False, max_retries: int = 10, **kwargs: Any) -> Any:
        """Return the values of results; say now and then what is missing. ``AssertionError`` if it never comes."""
        if self.no_join:
            return None
        results = r if isinstance(r, ResultSet) else self.app.ResultSet([r])
        for _ in range(max_retries):
            try:
                return results.get(propagate=propagate, **kwargs)
            except TimeoutError as error:
                missing = self.missing_results(results)
                names = ", ".join(missing)[:128]
                self.remark(f"Still waiting for {len(missing)}/{len(results)}: {names}: {error!r}", "!")
        raise AssertionError("Test failed: Missing task results")

    def inspect(self, timeout: float = 3.0) -> Any:
        """Return what asks the workers."""
        return self.app.control.inspect(timeout=timeout)

    def query_tasks(self, ids: Iterable[str], timeout: float = 0.5) -> Iterator[tuple[str, Any]]:
        """Yield what each worker knows about these tasks."""
        yield from (self.inspect(timeout).query_task(*ids) or {}).items()

    def true_or_raise(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what is true; raise :exc:`Sentinel` for anything else."""
        found = fun(*args, **kwargs)
        if not found:
            raise Sentinel
        return found


class Manager(ManagerMixin):
    """The same, for an app."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self._init_manager(**kwargs)
