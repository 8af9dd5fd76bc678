"""What an executor must do, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from umbel.interfaces.values import Delivery, Settlement


class Execution(msgspec.Struct, kw_only=True, eq=False):
    """One attempt to run one task, from its reservation to its outcome."""

    delivery: Delivery
    call: Any  # the decoded message: umbel.message.Call
    task: Any  # the registered task
    reserved_at: float = 0.0  # monotonic seconds
    started_at: float = 0.0  # monotonic seconds; 0 until it starts
    guard: Any = None  # stands around the body and lets errors in: umbel.tracing.BodyGuard


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an execution ended: the state for counters and logs, and the settlement to apply."""

    state: str
    settlement: Settlement
    runtime: float = 0.0


class ExecutorFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor can do to a running task."""

    inline: bool  # submit() returns when the task has ended
    soft_limits: bool
    hard_limits: bool  # by killing the process, so its mates are lost too unless it runs one at a time
    terminate: bool
    coroutines: bool  # runs many coroutine tasks at once on one loop


class Executor(ABC):
    """Runs executions inside one process and never touches the broker."""

    __slots__ = ()
    features: ClassVar[ExecutorFeatures]

    @abstractmethod
    def start(self, run: Runner, done: Callable[[Execution, Outcome], None]) -> None:
        """Get ready. ``done`` is called once for each submitted execution, from any thread."""

    @abstractmethod
    def free(self) -> int:
        """Return how many executions could start right now."""

    @abstractmethod
    def submit(self, execution: Execution) -> None:
        """Start one execution; raises :exc:`PoolFull` when nothing is free."""

    def resize(self, size: int) -> None:
        """Let so many run at once from now on; what runs goes on. By the thread that submits or any other."""
        raise NotImplementedError

    @abstractmethod
    def stop(self, *, timeout: float) -> Sequence[Execution]:
        """Let running executions finish until the timeout (seconds); return those that did not."""


class Runner(Protocol):
    """Runs one task to its outcome; never raises for what user code does."""

    def run(self, execution: Execution) -> Outcome:
        """Run it in this thread."""
        ...

    async def run_async(self, execution: Execution) -> Outcome:
        """Run a coroutine task on the running loop."""
        ...

    def hopeless(self, execution: Execution, error: BaseException) -> Outcome:
        """Return the outcome of an execution that an error has left which ``run`` lets through, such as SystemExit."""
        ...
