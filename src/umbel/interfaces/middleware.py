"""What may be put around tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from umbel.interfaces.executor import Execution, Outcome
from umbel.interfaces.values import Outgoing, Published


class Middleware:
    """Wraps publishing and executing. Override what you need; the rest passes through.

    What a task sends by ending (its retry, what follows it in a canvas) goes through :meth:`publish` too, one message
    at a time; ``call_next`` then returns before the broker has it, for the settlement of the task takes it along.
    """

    def publish(
        self, batch: Sequence[Outgoing], call_next: Callable[[Sequence[Outgoing]], Sequence[Published]]
    ) -> Sequence[Published]:
        """Wrap the publishing of a batch."""
        return call_next(batch)

    def execute(self, execution: Execution, call_next: Callable[[Execution], Outcome]) -> Outcome:
        """Wrap one execution, in the thread that runs it."""
        return call_next(execution)

    async def execute_async(
        self, execution: Execution, call_next: Callable[[Execution], Awaitable[Outcome]]
    ) -> Outcome:
        """Wrap one execution of a coroutine task."""
        return await call_next(execution)
