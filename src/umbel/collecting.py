"""Messages that do not go to the broker by themselves: the settlement of the running task publishes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from umbel.interfaces import QUEUED, Outgoing, Published
from umbel.outbox import Outbox
from umbel.publishing import Dispatch, assemble, check_outcome
from umbel.signing import sign_batch


class Collected(Outbox):
    """An outbox whose messages stay in ``outgoings``."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.outgoings: list[Outgoing] = []

    def _put(self, dispatch: Dispatch) -> Any:
        app = self.app
        dispatch.announce()
        (outcome,) = app.through_middlewares(self._collect)((dispatch.outgoing,))
        check_outcome(dispatch.outgoing, outcome)
        dispatch.report()
        return dispatch.result(app)

    def _collect(self, batch: Sequence[Outgoing]) -> Sequence[Published]:
        app = self.app
        if app.conf.security_key is not None:
            sign_batch(app.conf, batch, app.clock.time())
        self.outgoings += batch
        return [QUEUED] * len(batch)

    def flush(self) -> None:
        """Do nothing: whoever made it takes the messages."""

    def again(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Outgoing:
        """Take over another attempt of a call, whose options say all about it, and return its message."""
        plan = self.app.plan(name)
        merged = plan.merge(args, kwargs, options)
        # Nobody is its parent: it is no new call.
        outgoing = assemble(self.app, plan, args, kwargs, options, merged, None)
        self._put(Dispatch(outgoing, plan, args, kwargs, options, merged, None))
        # A middleware may have made another of it.
        return self.outgoings[-1]
