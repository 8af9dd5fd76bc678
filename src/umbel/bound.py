"""A task class and its app: the attributes that the settings fill in, registration, and the stack of requests."""

from __future__ import annotations

import inspect
import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, Final, Self

from umbel.context import Context
from umbel.current import Frame, app_or_default, frames, get_current_app, pop_frame, push_frame, top_frame
from umbel.exceptions import CeleryWarning, MaxRetriesExceededError, OperationalError
from umbel.handlers import Handlers
from umbel.loading import symbol_by_name

#: Task attribute -> the setting that it takes its value from while the class leaves it None.
FROM_CONFIG: Final = {
    "serializer": "task_serializer",
    "rate_limit": "task_default_rate_limit",
    "priority": "task_default_priority",
    "time_limit": "task_time_limit",
    "soft_time_limit": "task_soft_time_limit",
    "track_started": "task_track_started",
    "acks_late": "task_acks_late",
    "acks_on_failure_or_timeout": "task_acks_on_failure_or_timeout",
    "acks_on_failure": "task_acks_on_failure",
    "acks_on_timeout": "task_acks_on_timeout",
    "reject_on_worker_lost": "task_reject_on_worker_lost",
    "retry_on_worker_lost": "task_retry_on_worker_lost",
    "on_lost": "task_on_lost",
    "dead_letter_exhausted": "task_dead_letter_exhausted",
    "dead_letter_expired": "task_dead_letter_expired",
    "ignore_result": "task_ignore_result",
    "store_eager_result": "task_store_eager_result",
    "store_errors_even_if_ignored": "task_store_errors_even_if_ignored",
}

# A change of any of these makes what was remembered for sending wrong.
_PLANNED: Final = frozenset(FROM_CONFIG) | {
    "queue", "exchange", "routing_key", "expires", "delivery_mode", "compression", "immediate", "mandatory", "typing",
    "name", "sensitive",
}  # fmt: skip


def _warn_of_backend(task: str) -> None:
    text = (
        f"task {task}: its backend is not used; results are kept where the app's result_backend says, which is where "
        "its callers look"
    )
    warnings.warn(CeleryWarning(text), stacklevel=4)


class _Attribute:
    """Reads the setting at each access, so that a task may be declared before its app is configured."""

    __slots__ = ("name", "setting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.setting = FROM_CONFIG[name]

    def __get__(self, task: Any, owner: type[Any]) -> Any:
        if task is None:
            return None
        # As an attribute, which is remembered: this is asked for each execution.
        value = getattr(task.app.conf, self.setting)
        if value is None and self.name in ("acks_on_failure", "acks_on_timeout"):
            both = task.acks_on_failure_or_timeout
            return True if both is None else both
        return value


_ATTRIBUTES: Final = {name: _Attribute(name) for name in FROM_CONFIG}


def _setting(name: str) -> Any:
    return _ATTRIBUTES[name]


class RequestStack:
    """The requests of one task that are active in this thread or coroutine."""

    __slots__ = ("_task",)

    def __init__(self, task: Any) -> None:
        self._task = task

    def push(self, request: Any) -> None:
        """Make this the task's current request."""
        push_frame(self._task, request)

    def pop(self) -> Any:
        """Undo the last push and return its request."""
        frame = pop_frame()
        return None if frame is None else frame.request

    def _mine(self) -> Iterator[Frame]:
        return (frame for frame in frames() if frame.task is self._task and frame.request is not None)

    @property
    def top(self) -> Any:
        """The current request, or None."""
        frame = next(self._mine(), None)
        return None if frame is None else frame.request

    @property
    def stack(self) -> list[Any]:
        """The active requests, outermost first."""
        return [frame.request for frame in self._mine()][::-1]

    def __len__(self) -> int:
        return len(self.stack)


# Concrete task classes that nobody has instantiated yet. A worker imports the module of such a class without ever
# calling it, and must still know the task.
_declared: Final[dict[str, weakref.ref[type[Any]]]] = {}


def declared_class(name: str, app: Any) -> type[Any] | None:
    """Return the concrete task class of this name that the app may use, or None."""
    cls = _declared[name]() if name in _declared else None
    if cls is None or not _instantiable(cls):
        return None
    owner = cls._app if cls._app is not None else get_current_app()
    return cls if owner is app else None


def declared_names() -> list[str]:
    """Return the names of all concrete task classes, of any app."""
    return list(_declared)


def _instantiable(cls: type[Any]) -> bool:
    if inspect.isabstract(cls):
        return False
    if cls.__init__ is object.__init__:
        return True
    try:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(each.default is not each.empty or each.kind in kinds for each in parameters)


class BoundTask(Handlers):
    """The part of a task that ties it to its app. Users see :class:`umbel.task.Task`."""

    #: The task's name; unique in its app.
    name: str = None  # type: ignore[assignment]
    #: Whether arguments are checked against the signature when the task is sent; None takes the app's choice.
    typing: bool | None = None
    #: How often :meth:`retry` may try again; None is for ever.
    max_retries: int | None = 3
    #: Seconds until the next try where :meth:`retry` is not told.
    default_retry_delay: float = 180
    #: Whether results of tasks that this one sends are recorded as its children.
    trail: bool = True
    send_events: bool = True
    #: Exceptions that are part of normal operation: logged without a traceback.
    throws: tuple[type[BaseException], ...] = ()
    #: Seconds after which a call that has not started is dropped.
    expires: Any = None
    #: What is shown to nobody: True for the arguments and the result, or the names of parameters.
    sensitive: bool | str | Collection[str] = False
    #: The longest representation of a result in logs and events.
    resultrepr_maxsize: int = 1024
    abstract: bool = True
    Strategy: Any = "celery.worker.strategy:default"
    Request: Any = "celery.worker.request:Request"

    serializer: str = _setting("serializer")
    rate_limit: Any = _setting("rate_limit")
    priority: int | None = _setting("priority")
    time_limit: float | None = _setting("time_limit")
    soft_time_limit: float | None = _setting("soft_time_limit")
    track_started: bool = _setting("track_started")
    acks_late: bool = _setting("acks_late")
    acks_on_failure_or_timeout: bool | None = _setting("acks_on_failure_or_timeout")
    acks_on_failure: bool = _setting("acks_on_failure")
    acks_on_timeout: bool = _setting("acks_on_timeout")
    reject_on_worker_lost: bool = _setting("reject_on_worker_lost")
    retry_on_worker_lost: bool = _setting("retry_on_worker_lost")
    on_lost: str | None = _setting("on_lost")
    dead_letter_exhausted: bool = _setting("dead_letter_exhausted")
    dead_letter_expired: bool = _setting("dead_letter_expired")
    ignore_result: bool = _setting("ignore_result")
    store_eager_result: bool = _setting("store_eager_result")
    store_errors_even_if_ignored: bool = _setting("store_errors_even_if_ignored")

    MaxRetriesExceededError: ClassVar[type[Exception]] = MaxRetriesExceededError
    OperationalError: ClassVar[type[Exception]] = OperationalError
    from_config: ClassVar[tuple[tuple[str, str], ...]] = tuple(FROM_CONFIG.items())

    _app: Any = None
    _plan: Any = None
    _decorated: bool = False
    _annotated: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__
        for name, attribute in _ATTRIBUTES.items():
            # An attribute that a class or the decorator sets to None means "as the settings say".
            if name in own and own[name] is None:
                setattr(cls, name, attribute)
        if "backend" in own and not isinstance(given := own["backend"], property):
            del cls.backend
            if given is not None:
                _warn_of_backend(str(own.get("name") or cls.__name__))
        if own.get("name") and not own.get("abstract") and not own.get("_decorated") and _has_run(cls):
            _declared[own["name"]] = weakref.ref(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # A class with a name and a body is a task from its first instance on; a function's task is registered by
        # the decorator, once it is complete.
        if not cls._decorated and cls.name and not cls.__dict__.get("abstract") and _has_run(cls):
            app_or_default(cls._app).adopt(self)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in _PLANNED and self._app is not None:
            self._app.forget_plan(self)

    # -- the app -------------------------------------------------------------------------------------------------

    @property
    def app(self) -> Any:
        """The app that the task belongs to; the current one for a class that was never bound."""
        app = self._app
        return app if app is not None else get_current_app()

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Make this a task class of the app, and apply what ``task_annotations`` says about it."""
        cls._app = app
        cls.on_bound(app)
        return app

    @property
    def backend(self) -> Any:
        """Where the results are kept: by the app, for all of its tasks. Another one is refused with a warning."""
        return self.app.backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        if backend is not None and backend is not self.app.backend:
            _warn_of_backend(self.name)

    @classmethod
    def annotate(cls, app: Any) -> None:
        """Apply what the setting ``task_annotations`` says about this task; once per class."""
        if cls.__dict__.get("_annotated"):
            return
        cls._annotated = True
        for changes in annotations_for(app.conf.task_annotations, cls):
            for key, value in changes.items():
                if key.startswith("@"):
                    cls.add_around(key[1:], value)
                else:
                    setattr(cls, key, value)

    @classmethod
    def add_around(cls, attr: str, around: Callable[[Any], Any]) -> None:
        """Replace a method by what ``around`` returns for it. A second call replaces the first."""
        original = getattr(cls, attr)
        original = getattr(original, "__wrapped__", None) or original
        method = around(original)
        method.__wrapped__ = original
        setattr(cls, attr, method)

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def request(self) -> Any:
        """The :class:`Context` of the attempt that runs here; outside of one, an empty one."""
        frame = top_frame()
        while frame is not None:
            if frame.task is self and frame.request is not None:
                return frame.request
            frame = frame.outer
        return self._default_request

    @property
    def _default_request(self) -> Context:
        # One per task and process, as code outside of an attempt may leave something in it.
        found = self.__dict__.get("_outside")
        if found is None:
            found = self.__dict__["_outside"] = Context()
        request: Context = found
        return request

    @property
    def request_stack(self) -> RequestStack:
        """The active requests of this task in this thread or coroutine."""
        return RequestStack(self)

    def push_request(self, *args: Any, **kwargs: Any) -> None:
        """Make a :class:`Context`, or one of these fields, the current request of this thread or coroutine."""
        ready = len(args) == 1 and not kwargs and isinstance(args[0], Context)
        push_frame(self, args[0] if ready else Context(*args, **kwargs))

    def pop_request(self) -> None:
        """Undo the last :meth:`push_request`."""
        pop_frame()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def __name__(self) -> str:
        return str(type(self).__name__)

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {self.app!r}>"

    def __reduce__(self) -> Any:
        module = type(self).__module__
        return _unpickle, (self.name, module if module in sys.modules else None)


def _has_run(cls: type[Any]) -> bool:
    run = getattr(cls, "run", None)
    return run is not None and not getattr(run, "_missing", False)


def _unpickle(name: str, module: str | None) -> Any:
    if module:
        __import__(module)
    return get_current_app().tasks[name]


def annotations_for(annotations: Any, task: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what ``task_annotations`` says about one task: first what names it, then what is for all (``"*"``)."""
    if annotations is None:
        return
    every = annotations if isinstance(annotations, list | tuple) else (annotations,)
    every = [symbol_by_name(each)() if isinstance(each, str) else each for each in every]
    named = (_named(each, task) for each in every)
    anybody = (_for_any(each) for each in every)
    for found in (next(filter(None, named), None), next(filter(None, anybody), None)):
        if found:
            yield found


def _named(annotation: Any, task: Any) -> Any:
    return annotation.get(task.name) if isinstance(annotation, Mapping) else annotation.annotate(task)


def _for_any(annotation: Any) -> Any:
    if isinstance(annotation, Mapping):
        return annotation.get("*")
    return annotation.annotate_any() if hasattr(annotation, "annotate_any") else None
