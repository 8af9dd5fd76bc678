"""A call that has not been made yet: a task's name, its arguments and its options, as a plain dictionary.

That dictionary is what travels: callbacks, errbacks and chains in a message are signatures in exactly this form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, cast

from umbel import asyncio as off_loop
from umbel.current import app_or_default
from umbel.message import checked_id
from umbel.stamping import StampingVisitor, collected, stamp_links
from umbel.utils.identity import uuid

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from umbel.result import AsyncResult

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

# A different group id would make a chord wait for a member that never comes.
_FIXED_OPTIONS = frozenset({"group_id", "stamped_headers"})


def as_list(value: Any) -> list[Any] | None:
    """Return None for nothing, a list as it is, and anything else as a list of one."""
    if value is None or isinstance(value, list):
        return value
    return list(value) if isinstance(value, tuple | set | frozenset) else [value]


def _item(key: str, doc: str) -> Any:
    def read(self: dict[str, Any]) -> Any:
        return self[key]

    def write(self: dict[str, Any], value: Any) -> None:
        self[key] = value

    return property(read, write, doc=doc)


class _Description(dict[str, Any]):
    """What a signature says, and whom it speaks of."""

    _app: Any = None
    _type: Any = None

    task = _item("task", "The task's name.")
    args = _item("args", "The positional arguments.")
    kwargs = _item("kwargs", "The keyword arguments.")
    options = _item("options", "The options of :meth:`Task.apply_async`.")
    subtask_type = _item("subtask_type", "The kind of canvas, or None for a plain task.")
    immutable = _item("immutable", "Whether arguments of the caller are ignored.")

    def __init__(
        self,
        task: Any = None,
        args: Any = None,
        kwargs: Any = None,
        options: Mapping[str, Any] | None = None,
        type: Any = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Any = None,
        **ex: Any,
    ) -> None:
        self._app = app
        if isinstance(task, dict):
            super().__init__(task)
            return
        name = getattr(task, "name", None)
        if name is not None:
            self._type = task
        elif type is not None:
            self._type = type
        super().__init__(
            task=name if name is not None else task,
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            options={**(options or {}), **ex},
            subtask_type=subtask_type,
            immutable=immutable,
        )

    def _sender(self, args: Any, kwargs: Any, **options: Any) -> Any:
        task = self._registered()
        if task is None:
            return self.app.send_task(self["task"], args, kwargs, **options)
        return task.apply_async(args, kwargs, **options)

    def _registered(self) -> Any:
        if self._type is not None:
            return self._type
        try:
            return self.app.tasks[self["task"]]
        except KeyError:
            return None

    @property
    def type(self) -> Any:
        """The task. Raises :exc:`NotRegistered` if this process does not know it."""
        return self._type or self.app.tasks[self["task"]]

    @property
    def app(self) -> Any:
        """The app that sends it: the one it was made with, its task's, or the current one."""
        return self._app or getattr(self._type, "app", None) or app_or_default()

    def __getattr__(self, name: str) -> Any:
        option = _OPTION_ATTRIBUTES.get(name)
        if option is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self["options"].get(option)

    def __repr__(self) -> str:
        return reprcall(self["task"], self["args"], self["kwargs"])

    @property
    def name(self) -> str:
        """The same as ``task``, which is the name that a task has for it."""
        name: str = self["task"]
        return name

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Return the call in words, with these arguments added."""
        return reprcall(self["task"], (*args, *self["args"]), {**self["kwargs"], **kwargs})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Options change when a canvas is prepared; arguments do not, and may be lazy.
        options = deepcopy(self["options"], memo) if self["options"] else {}
        copy = Signature.from_dict({**self, "options": options}, app=self._app)
        copy._type = self._type
        return copy

    def __reduce__(self) -> Any:
        return _rebuild, (dict(self),)

    def __json__(self) -> dict[str, Any]:
        return dict(self)


class _Linked(_Description):
    """What is attached to a signature: callbacks, errbacks and stamps."""

    def link(self, callback: Any) -> Any:
        """Have the callback called with the result when this call succeeds; returns the callback."""
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Have the errback called when this call fails; returns the errback."""
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Any) -> Self:
        """Do :meth:`link_error` and return the signature itself."""
        self.link_error(errback)
        return self

    def flatten_links(self) -> list[Any]:
        """Return this signature, its callbacks, theirs, and so on."""
        found: list[Any] = [self]
        for link in as_list(self["options"].get("link")) or ():
            found += link.flatten_links()
        return found

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Append to an option that is a list, unless the value is there; returns the value."""
        items = self._list_option(key)
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, value: Any) -> None:
        """Append one value, or each of several, to an option that is a list."""
        self._list_option(key).extend(as_list(value) or ())

    def _list_option(self, key: str) -> Any:
        items = self["options"].setdefault(key, [])
        if not isinstance(items, MutableSequence):
            items = self["options"][key] = [items]
        return items

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Set options of the call; returns the signature itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self["options"].update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Say whether arguments of a caller are ignored."""
        self["immutable"] = immutable

    def stamp(self, visitor: StampingVisitor | None = None, append_stamps: bool = False, **headers: Any) -> Self:
        """Stamp the call and its callbacks and errbacks with these headers, and with what the visitor returns.

        :param append_stamps: make a list of different values of one stamp, instead of keeping the first one.
        """
        self.stamp_links(visitor, append_stamps, **headers)
        seen = None if visitor is None else visitor.on_signature(self, **headers) or {}
        return self.set(**self._stamps(seen, append_stamps, headers))

    def stamp_links(self, visitor: StampingVisitor | None, append_stamps: bool = False, **headers: Any) -> None:
        """Stamp the callbacks and errbacks alone."""
        stamp_links(self, visitor, append_stamps, headers)

    def _stamps(self, seen: dict[str, Any] | None, append: bool, headers: Mapping[str, Any]) -> dict[str, Any]:
        return collected(headers, seen, self["options"], append)


class Signature(_Linked, Generic[R]):
    """A task with the arguments and options of one call; see :meth:`Task.s`.

    Not shared between threads while it is changed. Calling it prepends arguments and updates keyword arguments,
    unless it is immutable (made by ``si``).
    """

    TYPES: ClassVar[dict[str, type[Signature[Any]]]] = {}

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[type[Any]], type[Any]]:
        """Return a class decorator that has :meth:`from_dict` build this class for a ``subtask_type``."""

        def register(subclass: type[Any]) -> type[Any]:
            cls.TYPES[name or subclass.__name__] = subclass
            return subclass

        return register

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> Signature[Any]:
        """Return the signature that a dictionary from a message describes."""
        kind = d.get("subtask_type")
        if kind:
            target = cls.TYPES.get(kind)
            if target is None:
                raise ValueError(
                    f"unknown type of signature {kind!r} (task {d.get('task')!r}); register a class for it with "
                    "Signature.register_type()"
                )
            if target is not cls:
                return target.from_dict(d, app=app)
        whole = {"task": None, "args": (), "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False, **d}
        return Signature(whole, app=app)

    # -- calling -------------------------------------------------------------------------------------------------

    def __call__(self, *partial_args: Any, **partial_kwargs: Any) -> R:
        """Call the task as a function, in this process."""
        args, kwargs, _ = self._merge(partial_args, partial_kwargs, None)
        return cast(R, self.type(*args, **kwargs))

    def delay(self, *partial_args: Any, **partial_kwargs: Any) -> AsyncResult[R]:
        """Send the task; short for :meth:`apply_async` without options."""
        return self.apply_async(partial_args, partial_kwargs)

    def apply_async(
        self, args: Any = None, kwargs: Any = None, route_name: str | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send the task. Arguments are prepended to, keyword arguments and options override, those of the signature.

        An option of None counts as not given.
        """
        merged = self._merge(args, kwargs, {key: value for key, value in options.items() if value is not None})
        if route_name is not None:
            merged[2]["route_name"] = route_name
        return cast("AsyncResult[R]", self._sender(merged[0], merged[1], **merged[2]))

    async def adelay(self, *partial_args: Any, **partial_kwargs: Any) -> AsyncResult[R]:
        """Do :meth:`delay` without blocking the event loop."""
        return await self.aapply_async(partial_args, partial_kwargs)

    async def aapply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult[R]:
        """Do :meth:`apply_async` without blocking the event loop. If it is cancelled, it may or may not be sent."""
        timeout = options.get("timeout") or self["options"].get("timeout")
        return await off_loop.send(self.app, timeout, lambda left: self._send_within(left, args, kwargs, options))

    def _send_within(self, seconds: float, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Any:
        return self.apply_async(args, kwargs, **{**options, "timeout": seconds})

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the task here and now and return its :class:`EagerResult`."""
        given = {key: value for key, value in options.items() if value is not None}
        merged_args, merged_kwargs, merged_options = self._merge(args, kwargs, given)
        return self.type.apply(merged_args, merged_kwargs, **merged_options)

    def __invert__(self) -> R:
        """``~sig``: send the task and wait for its result."""
        return self.apply_async().get()

    def _merge(
        self, args: Any = None, kwargs: Any = None, options: Mapping[str, Any] | None = None, force: bool = False
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        own = self["options"]
        merged = dict(own)
        if options:
            fixed = _FIXED_OPTIONS.union(own.get("stamped_headers") or ())
            merged.update((key, value) for key, value in options.items() if key not in fixed or key not in own)
        if self.get("immutable") and not force:
            return self["args"], self["kwargs"], merged
        return (
            (*args, *self["args"]) if args else self["args"],
            {**self["kwargs"], **kwargs} if kwargs else self["kwargs"],
            merged,
        )

    # -- copies and changes --------------------------------------------------------------------------------------

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Signature[R]:
        """Return a copy with more arguments and options; changing it leaves this one alone."""
        merged_args, merged_kwargs, merged_options = self._merge(args, kwargs, options)
        fields = {
            **self,
            "args": tuple(merged_args),
            "kwargs": dict(merged_kwargs),
            "options": deepcopy(merged_options) if merged_options else {},
        }
        copy = Signature.from_dict(fields, app=self._app)
        copy._type = self._type
        return copy

    partial = clone

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R]:
        """Give the call its task id now and return its result. A second call keeps the id."""
        options = self["options"]
        task_id = options["task_id"] = checked_id(options.get("task_id") or _id or uuid())
        options.setdefault("reply_to", self.app.thread_oid)
        if group_id:
            options.setdefault("group_id", group_id)
        given = {"root_id": root_id or None, "parent_id": parent_id or None, "chord": chord or None}
        options.update((key, value) for key, value in given.items() if value is not None)
        if group_index is not None:
            options["group_index"] = group_index
        task = self._registered()
        return cast("AsyncResult[R]", (task or self.app).AsyncResult(task_id))

    def replace(self, args: Any = None, kwargs: Any = None, options: Any = None) -> Signature[R]:
        """Return a copy with these parts in place of its own."""
        copy = self.clone()
        parts = {"args": args, "kwargs": kwargs, "options": options}
        copy.update((key, value) for key, value in parts.items() if value is not None)
        return copy

    # -- what a canvas asks of its parts ---------------------------------------------------------------------------

    #: What ``a | b`` makes of the two; set by :mod:`umbel.canvas_chain`, which knows the other kinds.
    _join: Callable[[Any], Any]

    def _deliver(self, outbox: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Do :meth:`apply_async` by means of an :class:`umbel.outbox.Outbox`."""
        given = {key: value for key, value in options.items() if value is not None}
        return outbox.call(self, *self._merge(args, kwargs, given))

    def _leaves(self) -> Iterator[Signature[Any]]:
        """Yield what a group runs for this member: groups are taken apart, and what is empty is left out."""
        yield self

    def _weight(self) -> int:
        """Return how many parts a chord gets from this member."""
        return 1

    def _without_chord(self) -> None:
        """Forget the chord that whatever runs last here is a member of."""
        self["options"].pop("chord", None)

    def _trim(self) -> None:
        """Forget what is in the message twice: a pending chord has its body, so its members need no copy of it."""

    # -- canvas ---------------------------------------------------------------------------------------------------

    def __or__(self, other: Any) -> Any:
        return self._join(other) if isinstance(other, Signature) else NotImplemented

    __ior__ = __or__


_OPTION_ATTRIBUTES = {"id": "task_id", "parent_id": "parent_id", "root_id": "root_id"}


def _rebuild(fields: dict[str, Any]) -> Signature[Any]:
    return Signature.from_dict(fields)


def reprcall(name: str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None) -> str:
    """Return a call in words: ``add(2, y=3)``."""
    words = [repr(value) for value in args]
    words += [f"{key}={value!r}" for key, value in (kwargs or {}).items()]
    return f"{name}({', '.join(words)})"


def signature(varies: Any, *args: Any, **kwargs: Any) -> Signature[Any]:
    """Return a signature: of a task or a task's name with arguments, or of a dictionary, or a copy of a signature."""
    if isinstance(varies, dict):
        if isinstance(varies, Signature):
            return varies.clone()
        return Signature.from_dict(varies, app=kwargs.get("app"))
    return Signature(varies, *args, **kwargs)


subtask = signature


def maybe_signature(d: Any, app: Any = None, clone: bool = False) -> Signature[Any] | None:
    """Return None for None, a signature as it is (or a clone), and a dictionary as a signature, bound to the app."""
    if d is None:
        return None
    if isinstance(d, Signature):
        found: Signature[Any] = d.clone() if clone else d
    else:
        found = Signature.from_dict(d, app=app)
    if app is not None:
        found._app = app
    return found
