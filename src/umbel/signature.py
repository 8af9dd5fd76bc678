"""A call that has not been made yet: a task's name, its arguments and its options, as a plain dictionary.

That dictionary is what travels: callbacks, errbacks and chains in a message are signatures in exactly this form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableSequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast

from umbel.current import app_or_default
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = Signature.from_dict(deepcopy(dict(self), memo), app=self._app)
        copy._type = self._type
        return copy

    def __reduce__(self) -> Any:
        return _rebuild, (dict(self),)


class Signature(_Description, Generic[R]):
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
                raise NotImplementedError(f"signatures of type {kind!r} are not supported yet")
            if target is not cls:
                return target.from_dict(d, app=app)
        return Signature({**_EMPTY, **d}, app=app)

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
            "options": deepcopy(merged_options),
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
        task_id = options.setdefault("task_id", _id or uuid())
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

    def set(self, immutable: bool | None = None, **options: Any) -> Signature[R]:
        """Set options of the call; returns the signature itself."""
        if immutable is not None:
            self["immutable"] = immutable
        self["options"].update(options)
        return self

    def link(self, callback: Any) -> Any:
        """Have the callback called with the result when this call succeeds; returns the callback."""
        return self._append("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Have the errback called when this call fails; returns the errback."""
        return self._append("link_error", errback)

    def on_error(self, errback: Any) -> Signature[R]:
        """Do :meth:`link_error` and return the signature itself."""
        self.link_error(errback)
        return self

    def _append(self, key: str, value: Any) -> Any:
        items = self["options"].setdefault(key, [])
        if not isinstance(items, MutableSequence):
            items = self["options"][key] = [items]
        if value not in items:
            items.append(value)
        return value

    # -- canvas ---------------------------------------------------------------------------------------------------

    def __or__(self, other: Any) -> Any:
        if isinstance(other, Signature):
            raise NotImplementedError("chaining signatures with | is not supported yet; use link() for one callback")
        return NotImplemented

    __ior__ = __or__


_EMPTY: dict[str, Any] = {"args": (), "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
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
