"""What a running task does with other tasks: its children, and the task that takes its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from umbel.bound import BoundTask
from umbel.canvas_base import as_signature, kind_of
from umbel.canvas_map import chunks, xmap, xstarmap
from umbel.collecting import Collected
from umbel.exceptions import Ignore, ImproperlyConfigured
from umbel.outbox import chord_backend
from umbel.signatures import as_list


class Composing(BoundTask):
    """The part of a task that deals with other tasks. Users see :class:`umbel.task.Task`."""

    def send_event(self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Send a monitoring event about the running attempt; does nothing while nobody collects events."""

    def add_trail(self, result: Any) -> Any:
        """Record a result as a child of the running attempt; returns it."""
        if self.trail:
            self.request.children.append(result)
        return result

    def replace(self, sig: Any) -> Any:
        """End this attempt and have the signature take the task's place; write ``return self.replace(sig)``.

        It gets the task's id, its place in a chain, a group or a chord, its callbacks and its errbacks. In a worker
        this raises :exc:`Ignore`; the signature is sent in the step that ends this attempt. A group is replaced by the
        list of its values. Raises :exc:`ImproperlyConfigured` for an empty chain, and for a member of another chord.
        """
        request = self.request
        if "chord" in sig.options:
            raise ImproperlyConfigured("a signature that replaces a task must not be a member of a chord already")
        if kind_of(sig) == "chain" and not sig.tasks:
            raise ImproperlyConfigured("a task cannot be replaced with an empty chain; return a value instead")
        sig = self._with_links(sig)
        sig.freeze(request.id)
        nesting = (request.replaced_task_nesting or 0) + 1
        sig.set(
            chord=request.chord,
            group_id=request.group,
            group_index=request.group_index,
            root_id=request.root_id,
            replaced_task_nesting=nesting,
        )
        if kind_of(sig) == "chain":
            for step in sig.tasks:
                step.set(replaced_task_nesting=nesting)
        for step in reversed(request.chain or ()):
            sig |= as_signature(step, self.app).clone().set(replaced_task_nesting=nesting)
        return self.on_replace(sig)

    def _with_links(self, sig: Any) -> Any:
        """Return the signature with the callbacks and errbacks of the running task, ending with one value."""
        accumulate = self.app.tasks["celery.accumulate"].s(index=0)
        if kind_of(sig) == "group":
            sig |= accumulate
        elif kind_of(sig) == "chain" and kind_of(sig.tasks[-1]) == "group":
            sig.tasks[-1] |= accumulate
        for callback in as_list(self.request.callbacks) or ():
            sig.link(as_signature(callback, self.app))
        for errback in as_list(self.request.errbacks) or ():
            sig.link_error(as_signature(errback, self.app))
        if kind_of(sig) == "chain" and "link" in sig.options:
            # They belong to the last task of the replacement, also where more is chained to it.
            sig.tasks[-1].extend_list_option("link", sig.options.pop("link"))
        return sig

    def on_replace(self, sig: Any) -> Any:
        """Called by :meth:`replace` with the signature that takes this task's place."""
        request = self.request
        if request.is_eager:
            # They were linked to the signature, which calls them.
            request.callbacks = request.errbacks = None
            return sig.apply().get(disable_sync_subtasks=False)
        if request.called_directly:
            sig.delay()
        else:
            outbox = Collected(self.app)
            sig._deliver(outbox, (), {}, {})
            request.outgoings = [*(request.outgoings or ()), *outbox.outgoings]
        raise Ignore("Replaced by new task")

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """Add a task to the chord that this one is a member of: its value joins those that the body gets, at their end.

        With ``lazy`` it is returned and not sent: call its ``delay()`` before this attempt ends. Raises ``ValueError``
        outside of a chord.
        """
        request = self.request
        if not request.chord:
            raise ValueError(f"task {self.name} is not a member of a chord, so nothing can be added to one")
        sig.set(group_id=request.group, chord=request.chord, root_id=request.root_id)
        sig.freeze()
        chord_backend(self.app).chord(request.group).extend(sig._weight())
        return sig if lazy else sig.delay()

    def chunks(self, it: Iterable[Any], n: int) -> Any:
        """Return a signature that calls this task for each list of arguments of ``it``, ``n`` in one message."""
        return chunks(self.s(), it, n, app=self.app)  # type: ignore[attr-defined]

    def map(self, it: Iterable[Any]) -> Any:
        """Return a signature that calls this task with each value of ``it``, in one message."""
        return xmap(self.s(), it, app=self.app)  # type: ignore[attr-defined]

    def starmap(self, it: Iterable[Any]) -> Any:
        """Return a signature that calls this task with each list of arguments of ``it``, in one message."""
        return xstarmap(self.s(), it, app=self.app)  # type: ignore[attr-defined]
