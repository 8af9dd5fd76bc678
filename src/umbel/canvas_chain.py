"""Chains: tasks one after the other, each with the value of the one before as its first argument.

A chain is sent as its first task, whose message carries the rest in reverse. Before that it is prepared: chains inside
it are spliced, a group with something behind it becomes a chord, and every task gets its id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from umbel.asyncresult import EagerResult
from umbel.canvas_base import Canvas, as_signature, field, is_empty_group, is_many, kind_of, unrolled
from umbel.outbox import Outbox, chord_backend
from umbel.signatures import Signature, as_list
from umbel.states import IGNORED, REJECTED

# What a chain uses itself; every other option goes to its first task.
_OWN: Final = frozenset(
    {"chord", "group_id", "group_index", "link", "link_error", "parent_id", "root_id", "task_id", "use_link"}
)


@Signature.register_type("chain")
class chain(Canvas):  # a function to its users
    """Tasks one after the other: ``chain(a, b, c)``, or ``a | b | c``. Calling it returns the last one's result.

    One argument that is no signature is an iterable of them. ``chain(a, group(b, c), d)`` is a chain with a chord: as
    with ``|``, the outcome may be another kind of canvas.
    """

    tasks = field("tasks", "The steps.")

    def __new__(cls, *tasks: Any, **options: Any) -> Any:
        if tasks and not options and (len(tasks) > 1 or is_many(tasks[0])):
            found = folded(tasks[0] if len(tasks) == 1 else tasks)
            if cls is chain or kind_of(found) != "chain":
                return found
            tasks = (found.tasks,)
        self = super().__new__(cls)
        self._make(tasks, options)
        return self

    def __init__(self, *tasks: Any, **options: Any) -> None:
        """Do nothing: made by ``__new__``."""

    def _make(self, tasks: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._use_link = options.get("use_link")
        steps = tasks[0] if len(tasks) == 1 and is_many(tasks[0]) else tasks
        Signature.__init__(self, "celery.chain", (), {"tasks": list(steps)}, subtask_type="chain", **options)

    @classmethod
    def of(cls, steps: Iterable[Any], app: Any = None, **options: Any) -> Any:
        """Return a chain of just these steps."""
        return cls(list(steps), app=app, **options)

    @classmethod
    def from_dict(cls, d: Any, app: Any = None) -> Any:
        """Return the chain that a dictionary describes."""
        steps = [as_signature(step, app) for step in d["kwargs"]["tasks"]]
        made = cls(steps, app=app, **d["options"])
        made.update(args=tuple(d.get("args") or ()), immutable=d.get("immutable", False))
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it; returns the result of the last task."""
        return self.apply_async(args, kwargs) if self.tasks else None

    def __repr__(self) -> str:
        steps = self.tasks
        return " | ".join(map(repr, steps)) if steps else f"<{type(self).__name__}@{id(self):#x}: empty>"

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy, with copies of the steps."""
        copy: Any = super().clone(args, kwargs, **options)
        copy.tasks = [step.clone() for step in copy.tasks]
        return copy

    def unchain_tasks(self) -> list[Any]:
        """Return copies of the steps; the chain's callbacks go to the last one, and its errbacks to every one."""
        steps = [step.clone() for step in self.tasks]
        for callback in as_list(self["options"].get("link")) or ():
            steps[-1].link(callback)
        for errback in as_list(self["options"].get("link_error")) or ():
            for step in steps:
                step.link_error(errback)
        return steps

    # -- sending -------------------------------------------------------------------------------------------------

    def _deliver(self, outbox: Outbox, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        given = {**self["options"], **options}
        partial = (*args, *self["args"]) if args and not self["immutable"] else self["args"]
        steps, results = Preparation(self, outbox.app, clone=True, root_id=given.get("root_id")).run(
            partial,
            kwargs,
            task_id=given.get("task_id"),
            group_id=given.get("group_id"),
            chord=given.get("chord"),
            group_index=given.get("group_index"),
            link_error=given.get("link_error"),
        )
        if not results:
            return None
        if given.get("link"):
            steps[0].extend_list_option("link", given["link"])
        first = steps.pop()
        rest = {key: value for key, value in given.items() if key not in _OWN}
        if self.uses_link(outbox.app):
            rest.pop("chain", None)
        else:
            rest["chain"] = [*(rest.get("chain") or ()), *steps]
        sent = first._deliver(outbox, (), {}, rest)
        # The result of a group comes from sending it; one that was made before would be another.
        return results[0] if steps else sent

    def uses_link(self, app: Any) -> bool:
        """Say whether each step is a callback of the one before: protocol 1 has no field for a chain."""
        return bool(app.conf.task_protocol == 1 if self._use_link is None else self._use_link)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Give every task its id now, in place, and return the result of the last one."""
        _, results = Preparation(self, self.app, clone=False, root_id=root_id).run(
            self["args"], {}, task_id=_id, group_id=group_id, chord=chord, group_index=group_index
        )
        if not results:
            raise ValueError("an empty chain has no result; give it a task")
        return results[0]

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run it here and now and return the result of the last task."""
        given = {**self["options"], **options}
        link = given.pop("link", None)
        steps = [step for step in self.tasks if not is_empty_group(step)] or self.tasks[-1:]
        last = None
        for number, step in enumerate(steps, 1):
            copy = step.clone()
            if link and number == len(steps):
                (copy.body if kind_of(copy) == "chord" else copy).extend_list_option("link", link)
            if last is None:
                result = copy.apply(args, kwargs, **given)
            else:
                result = copy.apply((last.get(disable_sync_subtasks=False),), None, **given)
            result.parent, last = last, result
            if isinstance(result, EagerResult) and result.state in (IGNORED, REJECTED):
                break
        return last

    # -- what other canvases ask ---------------------------------------------------------------------------------

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Stamp every step."""
        seen = None if visitor is None else visitor.on_chain_start(self, **headers) or {}
        stamps = self._stamps(seen, append_stamps, headers)
        self.stamp_links(visitor, **stamps)
        for step in self.tasks:
            step.stamp(visitor, append_stamps, **stamps)
        if visitor is not None:
            visitor.on_chain_end(self, **stamps)
        return self

    def _leaves(self) -> Iterator[Any]:
        if self.tasks:
            yield self

    def _weight(self) -> int:
        return next((weight for step in reversed(self.tasks) if (weight := step._weight())), 0)

    def _without_chord(self) -> None:
        super()._without_chord()
        if self.tasks:
            self.tasks[-1]._without_chord()

    def _trim(self) -> None:
        for step in self.tasks:
            step._trim()

    def unroll_chords(self, app: Any) -> None:
        """Have chords end with the first task of their body, the rest following as steps; changes it in place.

        Every member of a chord carries a copy of the body. With the rest of a long chain in it messages would grow
        with every chord.
        """
        if self.uses_link(app):
            return
        pending, steps = deque(self.tasks), []
        while pending:
            step = pending.popleft()
            if kind_of(step) == "chain":
                step = step.clone()
                step.unroll_chords(app)
            if kind_of(step) == "chord" and is_led_by_task(step.body):
                pending.extendleft(reversed(step.split()))
            else:
                steps.append(step)
        self.tasks = steps

    def first_options(self) -> dict[str, Any]:
        """Return the options that the first task gets from the chain."""
        return {key: value for key, value in self["options"].items() if key not in _OWN}


def is_led_by_task(body: Any) -> bool:
    """Say whether a chord's body is a chain whose first step is no group, so that the rest may follow the chord."""
    return kind_of(body) == "chain" and bool(body.tasks) and kind_of(body.tasks[0]) != "group"


class Preparation:
    """From the steps of a chain to what is sent: a list in reverse, and the results. Use each once.

    The steps are looked at from the last to the first, as each must know what follows it.
    """

    def __init__(self, owner: chain, app: Any, *, clone: bool, root_id: str | None) -> None:
        """Prepare copies with ``clone``; else the steps themselves get their ids, and stay as they are written."""
        self._owner = owner
        self._app = app
        self._clone = clone
        self._root_id = root_id
        self._steps: list[Any] = []
        self._results: list[Any] = []
        self._next: Any = None  # the step that follows the one at hand, and the result that leads there
        self._next_result: Any = None

    def run(
        self,
        args: Any,
        kwargs: Any,
        *,
        task_id: str | None,
        group_id: str | None,
        chord: Any,
        group_index: int | None,
        link_error: Any = None,
    ) -> tuple[list[Any], list[Any]]:
        """Return the steps and their results, the last ones first. The ids and the chord are for the last task."""
        todo = self._headed([as_signature(step, self._app) for step in self._owner.tasks])
        last = True
        while todo:
            step = todo.pop()
            if kind_of(step) == "group":
                step = unrolled(step)
                if is_empty_group(step) and (todo or self._next is not None):
                    continue
            if self._clone and kind_of(step) == "chord" and is_led_by_task(step.body):
                todo.extend(step.split())
                continue
            if self._clone:
                step = step.clone(*((args, kwargs) if not todo else ()))
            elif not todo and args:
                step["args"] = (*args, *step["args"])
            if kind_of(step) == "chain":
                todo.extend(step.unchain_tasks() if self._clone else step.tasks)
                continue
            if kind_of(step) == "group" and self._next is not None:
                step = self._upgraded(step)
            if self._clone and kind_of(step) == "chord":
                chord_backend(self._app)
            if last:
                result = step.freeze(
                    task_id, root_id=self._root_id, group_id=group_id, chord=chord, group_index=group_index
                )
            else:
                result = step.freeze(root_id=self._root_id)
            last = False
            self._connect(step, result, link_error)
        if not self._clone:
            # A chain that is sent keeps no id of it: sent once more it is another call, and not a repeat.
            self._owner["options"]["task_id"] = self._results[0].id if self._results else task_id
        for step in self._steps if self._clone else ():
            step._trim()
        return self._steps, self._results

    def _headed(self, steps: list[Any]) -> deque[Any]:
        """Return the steps with a task at their head that takes the arguments: nothing empty, no chain."""
        todo, stripped = deque(steps), None
        while todo:
            if kind_of(todo[0]) == "chain":
                head = todo.popleft()
                todo.extendleft(reversed(head.unchain_tasks() if self._clone else head.tasks))
                continue
            if kind_of(todo[0]) == "group":
                todo[0] = unrolled(todo[0])
                if len(todo) > 1 and is_empty_group(todo[0]):
                    stripped = todo.popleft()
                    continue
                if kind_of(todo[0]) == "chain":
                    continue
            break
        if not todo and stripped is not None:
            todo.append(stripped)
        return todo

    def _upgraded(self, group: Any) -> Any:
        """Return the chord of the group and the step after it, which is taken back from what is prepared."""
        self._steps.pop()
        body_result = self._results.pop()
        # The result after it is a group's where the step is a chord, and names no task.
        own_id = getattr(self._next_result, "task_id", None)
        options = {} if own_id is None else {"task_id": own_id}
        found = Signature.TYPES["chord"](group, body=self._next, root_id=self._root_id, app=self._app, **options)
        self._next = self._steps[-1] if self._steps else None
        node = self._results[-1] if self._results else None
        while node is not None and node.parent is not body_result:
            node = node.parent
        if node is not None:
            # The chord's own result comes before it, and not the body's a second time.
            node.parent, self._next_result = None, node
        return found

    def _connect(self, step: Any, result: Any, link_error: Any) -> None:
        if self._next is not None:
            if self._owner.uses_link(self._app):
                step.link(self._next)
            if self._next_result is not None and self._next_result.parent is None:
                self._next_result.parent = result
        for errback in as_list(link_error) or ():
            step.link_error(errback)
        self._steps.append(step)
        self._results.append(result)
        self._next = step
        while kind_of(step) == "chord" and result.parent is not None:
            # What comes before a chord leads to its members.
            result = result.parent
        self._next_result = result


# -- joining -----------------------------------------------------------------------------------------------------


def joined(left: Any, right: Any) -> Any:
    """Return ``left | right``. Changes neither."""
    before, after = kind_of(left), kind_of(right)
    if before == "group":
        return left if is_empty_group(right) else Signature.TYPES["chord"](left, body=right, app=left._app)
    if before == "chain":
        return _extended(left, right)
    if before == "chord":
        if after == "group" and right.has_one():
            right, after = unrolled(right), ""
        if after not in ("group", "chain"):
            copy = left.clone()
            copy.body = copy.body | right
            return copy
    steps = right.unchain_tasks() if after == "chain" else [unrolled(right)]
    return chain.of([left, *steps], app=left._app)


Signature._join = joined  # type: ignore[assignment]


def _extended(left: Any, right: Any) -> Any:
    """Return a chain with one thing more after it."""
    if is_empty_group(right):
        return left
    after = kind_of(right)
    if after == "chain":
        for step in right.unchain_tasks():
            left = left | step
        return left
    if after == "group":
        right = unrolled(right)
        if kind_of(right) != "group":
            return joined(left, right)
        steps = left.unchain_tasks()
        if not steps:
            return right
        if kind_of(steps[-1]) == "chord":
            steps[-1].body = steps[-1].body | right
            return type(left).of(steps, app=left._app)
        return type(left).of([*steps, right], app=left._app)
    end = kind_of(left.tasks[-1]) if left.tasks else ""
    if end == "group" or (end == "chord" and after != "chord"):
        copy = left.clone()
        _attach(copy.tasks, right)
        return copy
    return type(left).of([*left.unchain_tasks(), right], app=left._app)


def _attach(steps: list[Any], sig: Any) -> None:
    """Have the signature follow the group or the chord at the end of the steps, in place."""
    if kind_of(steps[-1]) == "chord":
        steps[-1].body = steps[-1].body | sig
        return
    steps[-1] = Signature.TYPES["chord"](steps[-1], sig, app=steps[-1]._app)
    if len(steps) > 1 and kind_of(steps[-2]) == "chord":
        # Two chords in a row are one whose body goes on with the other.
        last = steps.pop()
        steps[-1].body = steps[-1].body | last


def folded(tasks: Iterable[Any]) -> Any:
    """Return what joining all of these gives, in time that grows with their number."""
    todo = list(tasks)
    steps: list[Any] = []
    for number, task in enumerate(todo, 1):
        if not isinstance(task, Signature):
            raise TypeError(f"a chain is made of signatures such as task.s(2), not of {task!r:.100}")
        found = _fold(steps, task, clone=number < len(todo))
        if found is not None:
            # What there is so far is no chain, but a group alone.
            for rest in todo[number:]:
                found = joined(found, rest)
            return found
    # Steps of one inner chain share its errbacks; each must have its own to be stamped.
    return chain.of([*(step.clone() for step in steps[:-1]), *steps[-1:]])


def _fold(steps: list[Any], task: Any, *, clone: bool) -> Any:
    """Add one thing to the steps by the rules of ``|``; return a group that would be all there is, or None."""
    if is_empty_group(task):
        return None
    if kind_of(task) == "group":
        task = unrolled(task)
        if kind_of(task) == "group" and not steps:
            return task
    if kind_of(task) == "chain":
        inner = task.unchain_tasks()
        for number, step in enumerate(inner, 1):
            found = _fold(steps, step, clone=clone or number < len(inner))
            if found is not None:
                for rest in inner[number:]:
                    found = joined(found, rest)
                return found
        return None
    end, after = (kind_of(steps[-1]) if steps else ""), kind_of(task)
    if end == "chord" and after != "chord":
        steps[-1].body = steps[-1].body | task
    elif end == "group" and after != "group":
        steps[-1] = Signature.TYPES["chord"](steps[-1], task.clone() if clone else task)
    else:
        steps.append(task.clone() if clone else task)
    return None
