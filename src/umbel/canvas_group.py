"""Groups: tasks that run side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from umbel.canvas_base import Canvas, as_signature, field, is_many, with_last
from umbel.current import worker_frame
from umbel.lazylist import LazyList
from umbel.message import checked_id
from umbel.outbox import Outbox
from umbel.signatures import Signature
from umbel.utils.identity import uuid


@Signature.register_type("group")
class group(Canvas):  # a function to its users
    """Tasks side by side: ``group(a, b)``, or ``group(iterable)``. Calling it returns a :class:`GroupResult`.

    A generator is read when the group is called, a batch at a time. Options are for every task. Groups inside a group
    are taken apart.
    """

    tasks = field("tasks", "The members, as a list, or as one that is still to be read.")

    def __init__(self, *tasks: Any, **options: Any) -> None:
        super().__init__("celery.group", (), {"tasks": _members(tasks)}, subtask_type="group", **options)

    @classmethod
    def from_dict(cls, d: Any, app: Any = None) -> Any:
        """Return the group that a dictionary describes."""
        given = d["kwargs"]["tasks"]
        tasks = (as_signature(task, app) for task in given)
        made = cls(tasks if isinstance(given, LazyList) else list(tasks), app=app, **d["options"])
        made.update(args=tuple(d.get("args") or ()), immutable=d.get("immutable", False))
        return made

    def has_one(self) -> bool:
        """Say whether there is exactly one member; reads two at most."""
        tasks = self.tasks
        return tasks.has(1) and not tasks.has(2) if isinstance(tasks, LazyList) else len(tasks) == 1

    def __call__(self, *partial_args: Any, **options: Any) -> Any:
        """Send it; returns a :class:`GroupResult`."""
        return self.apply_async(partial_args, **options)

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def __repr__(self) -> str:
        return f"group({self.tasks!r})" if self.tasks else "group(<empty>)"

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Any:
        """Give the tasks growing countdowns, from ``start`` up to ``stop`` seconds; returns the group itself."""
        for task, number in zip(self.tasks, itertools.count(), strict=False):
            delay = start + number * step
            task.set(countdown=delay if stop is None else min(delay, stop))
        return self

    # -- sending -------------------------------------------------------------------------------------------------

    def apply_async(self, args: Any = None, kwargs: Any = None, route_name: str | None = None, **options: Any) -> Any:
        """Send every task, 500 in one step of the broker; return a :class:`GroupResult`.

        Raises ``TypeError`` for ``link`` and ``link_error``: a group has no end that could call them.
        """
        _check_links(options)
        return super().apply_async(args, kwargs, route_name, **options)

    def _deliver(self, outbox: Outbox, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        _check_links(options)
        if not self.tasks:
            return self.freeze()
        app = outbox.app
        given, group_id = self._given(options)
        to_parent = given.pop("add_to_parent", True)
        body = given.pop("chord", None)
        given.pop("group_index", None)
        results: list[Any] = []
        size = 0
        for index, (member, is_last) in enumerate(with_last(self._leaves_of(app))):
            chord = body if body is not None else member["options"].get("chord")
            if chord is not None:
                size += member._weight()
                # A group inside the header counts for the chord around it, which knows its size.
                if is_last and member["options"].get("group_id", group_id) == group_id:
                    outbox.open_chord(group_id, size)
            results.append(_send(outbox, member, index, chord, args, kwargs, given))
        result = app.GroupResult(group_id, results)
        if len(results) == 1 and isinstance(results[0], app.GroupResult):
            # A chain that ends in a group, alone: its result is what the caller wants.
            result = results[0]
        frame = worker_frame() if to_parent else None
        if frame is not None:
            frame.task.add_trail(result)
        return result

    def _given(self, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the options of every member, and the group's id: it goes by the name of ``task_id`` too."""
        merged = self._merge(options=options, force=True)[2]
        given = {key: value for key, value in merged.items() if value is not None}
        group_id = checked_id(given.pop("task_id", None) or uuid())
        given["group_id"] = group_id
        return given, group_id

    def _leaves_of(self, app: Any) -> Iterator[Any]:
        for task in self.tasks:
            yield from as_signature(task, app)._leaves()

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the tasks here and now, one after the other."""
        if not self.tasks:
            return self.freeze()
        app = self.app
        given, group_id = self._given(options)
        results = [member.clone().apply(args, kwargs, **given) for member in self._leaves_of(app)]
        return app.GroupResult(group_id, results)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Give the group and every task its id now, and return the result; a generator is read to its end."""
        options, app = self["options"], self.app
        own_id = options["task_id"] = checked_id(options.get("task_id") or uuid())
        given = {"group_id": group_id or None, "chord": chord or None, "group_index": group_index}
        options.update((key, value) for key, value in given.items() if value is not None)
        root_id = options.setdefault("root_id", root_id)
        parent_id = options.setdefault("parent_id", parent_id)
        members = [member.clone() for member in self._leaves_of(app)]
        results = [
            member.freeze(group_id=group_id, chord=chord, root_id=root_id, parent_id=parent_id, group_index=index)
            for index, member in enumerate(members)
        ]
        self.tasks = members
        return app.GroupResult(own_id, results)

    # -- what is attached ----------------------------------------------------------------------------------------

    def link(self, callback: Any) -> Any:
        """Link to the first task alone, as an immutable one: it cannot know the values of the others."""
        return self.tasks[0].link(callback.clone().set(immutable=True))

    def link_error(self, errback: Any) -> Any:
        """Link to every task, any of which may fail; returns the copies that were linked."""
        errback = as_signature(errback, self._app)
        return tuple(task.link_error(errback.clone()) for task in self.tasks)

    def set_immutable(self, immutable: bool) -> None:
        """Say of every task whether it ignores arguments."""
        for task in self.tasks:
            task.set_immutable(immutable)

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Stamp every task; those of a generator as they are read."""
        seen = None if visitor is None else visitor.on_group_start(self, **headers) or {}
        stamps = self._stamps(seen, append_stamps, headers)
        self.stamp_links(visitor, append_stamps, **stamps)
        self.tasks = stamped_members(self.tasks, self._app, visitor, append_stamps, stamps)
        if visitor is not None:
            visitor.on_group_end(self, **stamps)
        return self

    # -- what other canvases ask ---------------------------------------------------------------------------------

    def _leaves(self) -> Iterator[Any]:
        for task in self.tasks:
            yield from as_signature(task, self._app)._leaves()

    def _weight(self) -> int:
        return sum(as_signature(task, self._app)._weight() for task in self.tasks)

    def _without_chord(self) -> None:
        super()._without_chord()
        for task in self.tasks:
            task._without_chord()

    def _trim(self) -> None:
        for task in self.tasks:
            task._trim()


def stamped_members(tasks: Any, app: Any, visitor: Any, append: bool, stamps: dict[str, Any]) -> Any:
    """Return the members of a group or a header, stamped; lazily where they are lazy."""

    def stamped() -> Iterator[Any]:
        for task in tasks:
            member = as_signature(task, app)
            member.stamp(visitor, append, **stamps)
            yield member

    return LazyList(stamped()) if isinstance(tasks, LazyList) else list(stamped())


def _members(tasks: tuple[Any, ...]) -> Any:
    if len(tasks) != 1:
        return [as_signature(task, None) for task in tasks]
    (only,) = tasks
    if isinstance(only, group):
        only = only.tasks
    if isinstance(only, Signature):
        return [only.clone()]
    if not is_many(only):
        return [as_signature(only, None)]
    return list(only) if isinstance(only, list | tuple) else LazyList(only)


def _check_links(options: dict[str, Any]) -> None:
    if options.get("link") is not None:
        raise TypeError("a group takes no link: use a chord, group(...) | callback")
    if options.get("link_error") is not None:
        raise TypeError("a group takes no link_error: link it to its tasks, group.link_error(errback)")


def _send(outbox: Outbox, member: Any, index: int, chord: Any, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
    """Send one member and return its result."""
    if type(member) is Signature:
        # What cloning and freezing would come to, without the copies: most groups are large and plain.
        call_args, call_kwargs, options = member._merge(args, kwargs, given)
        options.setdefault("task_id", uuid())
        options.update(group_index=index, add_to_parent=False)
        if chord is not None:
            options["chord"] = chord
        return outbox.call(member, tuple(call_args), call_kwargs, options)
    copy = member.clone()
    result = copy.freeze(group_id=given["group_id"], root_id=given.get("root_id"), group_index=index)
    copy._deliver(outbox, args, kwargs, {**given, "add_to_parent": False, **({"chord": chord} if chord else {})})
    return result
