"""Chords: a group, the header, and a body that is called once with the values of all of its members."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from types import GeneratorType
from typing import Any

from umbel.canvas_base import Canvas, as_signature, field, is_many, kind_of
from umbel.canvas_chain import chain
from umbel.canvas_group import group, stamped_members
from umbel.lazylist import LazyList
from umbel.message import checked_id
from umbel.outbox import Outbox, chord_backend
from umbel.signatures import Signature, as_list
from umbel.utils.identity import uuid

_HEADER_ERRBACKS = (
    "task_allow_error_cb_on_chord_header=False is pending deprecation in a future release: an errback of a chord is "
    "then called for its body alone. Set it to True to have it called for the members too."
)


@Signature.register_type("chord")
class chord(Canvas):  # a function to its users
    """A header and a body: ``chord(header)(body)``, ``chord(header, body)``, or ``group(...) | body``.

    Calling it returns the result of the body, whose ``parent`` is the :class:`GroupResult` of the header. The body gets
    one list, in the order of the header. If any member fails the body is not called; it fails with
    :exc:`ChordError`.
    """

    tasks = field("header", "The header: a list of signatures, or a group once it is frozen.")
    body = field("body", "What is called with the values of the header.")

    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "celery.chord",
        args: Any = None,
        kwargs: Any = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        fields = {
            **(kwargs or {"kwargs": {}}),
            "header": _header(header, app),
            "body": None if body is None else as_signature(body, app),
        }
        options.pop("subtask_type", None)
        super().__init__(task, args, fields, subtask_type="chord", app=app, **options)

    @classmethod
    def from_dict(cls, d: Any, app: Any = None) -> Any:
        """Return the chord that a dictionary describes."""
        kwargs = dict(d["kwargs"])
        header, body = kwargs.pop("header", ()), kwargs.pop("body", None)
        kwargs.setdefault("kwargs", {})
        made = cls(header, body, d["task"], d.get("args"), kwargs, app, options=d.get("options"))
        made["immutable"] = d.get("immutable", False)
        return made

    def header_group(self) -> Any:
        """Return the header as a group, which it is from now on."""
        if kind_of(self.tasks) != "group":
            self.tasks = group(self.tasks, app=self.app)
        return self.tasks

    def _members(self) -> Any:
        return self.tasks.tasks if kind_of(self.tasks) == "group" else self.tasks

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send it with this body, or its own; returns the body's result."""
        return self.apply_async((), {"body": body} if body else {}, **options)

    def __length_hint__(self) -> int:
        return sum(as_signature(task, self._app)._weight() for task in self._members())

    def __repr__(self) -> str:
        if self.body is None:
            return f"<chord without body: {self.tasks!r}>"
        members = self.tasks if isinstance(self.tasks, LazyList | group) else list(self.tasks)
        return f"%{self.body!r}({members!r})"

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy with a copy of the body."""
        copy: Any = super().clone(args, kwargs, **options)
        if copy.body is not None:
            copy.body = copy.body.clone()
        return copy

    # -- sending -------------------------------------------------------------------------------------------------

    def _deliver(self, outbox: Outbox, args: Any, kwargs: dict[str, Any], options: dict[str, Any]) -> Any:
        app = outbox.app
        chord_backend(app)
        partial, kwargs, body = self._call(args, kwargs, options)
        given = {**self["options"], **{key: value for key, value in options.items() if key != "result_cls"}}
        task_id = options.get("task_id") or self["options"].get("task_id")
        delay = {key: given.pop(key) for key in ("countdown", "eta") if key in given}
        given.pop("task_id", None)
        body = _with_callbacks(body, given)
        body["options"].update(_for_body(given))
        if isinstance(body, chain):
            body.unroll_chords(app)
        header = self._header_copy(app)
        group_id = header["options"]["task_id"]
        root_id = body["options"].get("root_id")
        result = body.freeze(task_id or uuid(), group_id=group_id, root_id=root_id)
        body._trim()
        for name in ("chain", "chord"):
            given.pop(name, None)
        given.update((key, value) for key, value in delay.items() if value is not None)
        result.parent = self._send_header(outbox, header, body, partial, kwargs, given, root_id)
        return result

    def _send_header(
        self,
        outbox: Outbox,
        header: Any,
        body: Any,
        args: Any,
        kwargs: dict[str, Any],
        options: dict[str, Any],
        root_id: str | None,
    ) -> Any:
        group_id = header["options"]["task_id"]
        if not header.tasks:
            body._deliver(outbox, ([],), {}, {})
            return header.freeze(group_id=group_id, root_id=root_id)
        if isinstance(header.tasks, LazyList):
            header["options"].update(group_id=group_id, chord=body, root_id=root_id)
        else:
            result = header.freeze(group_id=group_id, chord=body, root_id=root_id)
            if any(isinstance(member, outbox.app.GroupResult) for member in result.results):
                # The body gets their values as the members are nested, which the parts do not tell.
                outbox.save_group(result)
        if not header.tasks:
            # Nothing but empty chains and groups.
            body._deliver(outbox, ([],), {}, {})
            return header.freeze()
        return header._deliver(outbox, args, kwargs, {**options, "task_id": group_id})

    def _call(self, args: Any, kwargs: dict[str, Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        """Return the arguments of the header, and a copy of the body for this call."""
        body = kwargs.pop("body", None)
        if body is None:
            body = self.body
        if body is None:
            raise TypeError("a chord needs a body: chord(header)(body), or chord(header, body)")
        body = as_signature(body, self._app)
        callbacks = ("link", "link_error", "countdown", "eta", "task_id", "result_cls")
        body = body.clone(**_for_body({key: value for key, value in options.items() if key not in callbacks}))
        partial = (*args, *self["args"]) if args and not self["immutable"] else self["args"]
        return partial, {**self["kwargs"].get("kwargs", {}), **kwargs}, body

    def _header_copy(self, app: Any) -> Any:
        if kind_of(self.tasks) == "group":
            header = self.tasks.clone()
            header["options"].setdefault("task_id", uuid())
            return header
        return group(self.tasks, app=app, task_id=checked_id(self["options"].get("task_id") or uuid()))

    def _run_here(self, args: Any, kwargs: dict[str, Any], options: dict[str, Any]) -> Any:
        partial, kwargs, body = self._call(args, kwargs, options)
        given = {**self["options"], **options}
        return self.apply(partial, kwargs, body=_with_callbacks(body, given))

    def apply(
        self, args: Any = None, kwargs: Any = None, propagate: bool = True, body: Any = None, **options: Any
    ) -> Any:
        """Run the members and then the body here and now; returns the result of the body."""
        body = self.body if body is None else body
        header = self.tasks.clone() if kind_of(self.tasks) == "group" else group(self.tasks, app=self.app)
        values = header.apply(args, kwargs).get(propagate=propagate, disable_sync_subtasks=False)
        return body.apply((values,))

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Give the members and the body their ids now, and return the result of the body."""
        header_result = self.header_group().freeze(parent_id=parent_id, root_id=root_id, chord=self.body)
        self["options"]["task_id"] = self.tasks["options"]["task_id"]
        if self.body is None:
            return None
        result = self.body.freeze(_id, root_id=root_id, chord=chord, group_id=group_id, group_index=group_index)
        node, seen = result, {result.id}
        while node.parent is not None:
            node = node.parent
            if node.id in seen:
                raise RuntimeError(f"task {node.id} would come before itself: it is in this chord twice")
            seen.add(node.id)
        node.parent = header_result
        return result

    def split(self) -> list[Any]:
        """Return this chord with the first task of its body, and the rest of the body."""
        first = self.clone()
        steps = first.body.unchain_tasks()
        first.body = steps[0].clone(**first.body.first_options())
        return [first, *steps[1:]]

    # -- what is attached ----------------------------------------------------------------------------------------

    def link(self, callback: Any) -> Any:
        """Link to the body."""
        self.body.link(callback)
        return callback

    def link_error(self, errback: Any) -> Any:
        """Link to the body, and with ``task_allow_error_cb_on_chord_header`` to every member too."""
        errback = as_signature(errback, self._app)
        if self.app.conf.task_allow_error_cb_on_chord_header:
            for task in self._members():
                task.link_error(errback.clone(immutable=True))
        else:
            warnings.warn(_HEADER_ERRBACKS, PendingDeprecationWarning, stacklevel=2)
        for task in self._members():
            if kind_of(task) == "chord":
                task.link_error(errback)
        self.body.link_error(errback)
        return errback

    def set_immutable(self, immutable: bool) -> None:
        """Say of every member whether it ignores arguments; the body is left alone."""
        for task in self._members():
            task.set_immutable(immutable)

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Stamp every member, and with a visitor the body."""
        seen = None if visitor is None else visitor.on_chord_header_start(self, **headers) or {}
        stamps = self._stamps(seen, append_stamps, headers)
        self.stamp_links(visitor, append_stamps, **stamps)
        found = stamped_members(self._members(), self._app, visitor, append_stamps, stamps)
        if kind_of(self.tasks) == "group":
            self.tasks.tasks = found
        else:
            self.tasks = found
        if visitor is not None:
            visitor.on_chord_header_end(self, **stamps)
            if self.body is not None:
                seen = visitor.on_chord_body(self, **stamps) or {}
                self.body.stamp(visitor, append_stamps, **self._stamps(seen, append_stamps, stamps))
        return self

    # -- what other canvases ask ---------------------------------------------------------------------------------

    def _weight(self) -> int:
        return 0 if self.body is None else self.body._weight()

    def _without_chord(self) -> None:
        super()._without_chord()
        if self.body is not None:
            self.body._without_chord()

    def _trim(self) -> None:
        if kind_of(self.tasks) == "group":
            self.tasks._without_chord()
            self.tasks._trim()
        else:
            for task in self.tasks:
                task._without_chord()
                task._trim()
        if self.body is not None:
            self.body._trim()

    def _parts(self) -> Iterator[Any]:
        yield from itertools.islice(self._members(), 1)
        if self.body is not None:
            yield self.body


def _header(header: Any, app: Any) -> Any:
    if type(header) is dict:
        header = Signature.from_dict(header, app=app)
    if isinstance(header, group | chain):
        return header.tasks
    if isinstance(header, Signature):
        return [header]
    if not is_many(header):
        raise TypeError(f"the header of a chord is a group or signatures, not {header!r:.100}")
    if isinstance(header, GeneratorType):
        header = LazyList(header)
    if isinstance(header, LazyList):
        return LazyList(as_signature(task, app) for task in header)
    return [as_signature(task, app).clone() for task in header]


def _for_body(options: dict[str, Any]) -> dict[str, Any]:
    # The member that completes the chord is the parent of the body.
    return {key: value for key, value in options.items() if key != "parent_id"}


def _with_callbacks(body: Any, options: dict[str, Any]) -> Any:
    """Return the body with the callbacks and errbacks among the options of its chord, which are taken out of them.

    They are not linked to members of the header, whatever the settings say of :meth:`chord.link_error`.
    """
    callbacks, errbacks = as_list(options.pop("link", None)) or [], as_list(options.pop("link_error", None)) or []
    if not callbacks and not errbacks:
        return body
    body = _deep_copy(body)
    for callback in callbacks:
        copy = _deep_copy(as_signature(callback, body._app))
        if kind_of(body) == "group" and not body.tasks:
            body.append_to_list_option("link", copy)
        else:
            body.link(copy)
    for errback in errbacks:
        if kind_of(body) == "group":
            _link_members(body, as_signature(errback, body._app), as_one=True)
        else:
            body.append_to_list_option("link_error", errback)
    return body


def _link_members(sig: Any, errback: Any, *, as_one: bool) -> None:
    """Link an errback to all that ends a group which is a body: its tasks, and the bodies of the chords in it.

    A group that is sent as one and has errbacks of its own gets it there: they replace those of its tasks.
    """
    kind = kind_of(sig)
    if kind == "group" and not (as_one and sig["options"].get("link_error") is not None):
        for task in sig.tasks:
            _link_members(task, errback, as_one=False)
    elif kind == "group":
        sig.append_to_list_option("link_error", errback.clone())
    elif kind == "chord":
        _link_members(sig.body, errback, as_one=True)
    else:
        sig.link_error(errback.clone())


def _deep_copy(sig: Any) -> Any:
    """Return a copy together with the signatures in it that linking changes."""
    copy = sig.clone()
    if kind_of(copy) == "group":
        copy.tasks = [_deep_copy(as_signature(task, copy._app)) for task in copy.tasks]
    elif kind_of(copy) == "chord":
        copy.body = _deep_copy(copy.body)
    return copy
