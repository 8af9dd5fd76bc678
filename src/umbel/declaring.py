"""The part of an app that holds its tasks."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Protocol, overload

from umbel import current, signals
from umbel.bound import declared_class, declared_names
from umbel.defining import apply_decorator, decorate, header_of, outside, task_from_function
from umbel.exceptions import DuplicateTaskNameWarning
from umbel.loading import autodiscover, import_modules, symbol_by_name
from umbel.registry import TaskRegistry, gen_task_name, qualname
from umbel.retrying import add_autoretry_behaviour
from umbel.sensitive import veil_of
from umbel.task import Task
from umbel.utils.proxy import Proxy

if TYPE_CHECKING:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S")
    T = TypeVar("T", bound=Task[..., Any])

    class CoroutineTask(Task[P, R]):
        """A task whose body is a coroutine function: called directly, it returns the coroutine."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]

    class Decorator(Protocol):
        """``@app.task(...)``, applied to a function."""

        @overload
        def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
        @overload
        def __call__(self, fun: Callable[P, R], /) -> Task[P, R]: ...

    class BoundDecorator(Protocol):
        """``@app.task(bind=True)``, applied to a function whose first parameter is the task."""

        @overload
        def __call__(self, fun: Callable[Concatenate[S, P], Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
        @overload
        def __call__(self, fun: Callable[Concatenate[S, P], R], /) -> Task[P, R]: ...


class Declaring:
    """What an app has to do with its tasks. Users see :class:`umbel.app.Umbel`."""

    main: str | None
    conf: Any
    task_cls: Any = Task
    registry_cls: type[TaskRegistry] = TaskRegistry

    if TYPE_CHECKING:  # what the other parts of an app do

        def forget_plan(self, task: Any) -> None: ...
        def _finish_configuration(self) -> None: ...

    def _declare(self, tasks: Any, task_cls: Any, autofinalize: bool) -> None:
        if task_cls is not None:
            self.task_cls = task_cls
        self.autofinalize = autofinalize
        self.finalized = False
        self._finalizing = threading.RLock()
        self._task_base: Any = None
        self.on_after_finalize = signals.Signal(name="app.on_after_finalize")
        #: The tasks, without finalizing the app first.
        self.registry: TaskRegistry = tasks if isinstance(tasks, TaskRegistry) else self.registry_cls(tasks or {})
        self.registry.fallback = self._instantiate
        self._discover: list[Callable[[], Any]] = []
        self._fixups: list[Any] = []

    # -- the decorator -------------------------------------------------------------------------------------------

    @overload
    def task(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
    @overload
    def task(self, fun: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], **opts: Any) -> BoundDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = False, **opts: Any) -> Decorator: ...
    def task(self, *args: Any, **opts: Any) -> Any:
        """Make a function a task: ``@app.task``, or ``@app.task(name=..., bind=True, ...)``.

        Options are ``name`` ``bind`` ``base`` ``shared`` ``filter`` ``autoretry_for`` ``dont_autoretry_for``
        ``retry_kwargs`` ``retry_backoff`` ``retry_backoff_max`` ``retry_jitter`` ``typing`` and every attribute of
        :class:`Task`. With ``bind`` the function gets the task as its first argument. The app need not be configured.
        """
        return decorate(self, args, opts)

    @overload
    def register_task(self, task: T, **options: Any) -> T: ...
    @overload
    def register_task(self, task: type[T], **options: Any) -> T: ...
    def register_task(self, task: Any, **options: Any) -> Any:
        """Register an instance of a task class, or the class; return the task. It replaces one of the same name."""
        if inspect.isclass(task):
            task = task()
        if not task.name:
            task.name = self.gen_task_name(type(task).__name__, type(task).__module__)
        existing = self.registry.get(task.name)
        if existing is not None and existing is not task and type(existing) is not type(task):
            _warn_replaced(task.name, existing, task)
        return self._register(task, options)

    def adopt(self, task: Any) -> None:
        """Register an instance of a task class that says its name itself; the first one of a class is kept."""
        existing = self.registry.get(task.name)
        if existing is None:
            self._register(task, {})
        elif type(existing) is not type(task):
            _warn_replaced(task.name, task, existing)
        else:
            task._app = self

    def _register(self, task: Any, options: Mapping[str, Any]) -> Any:
        task._app = self
        if type(task).__header__ is None:
            type(task).__header__ = header_of(task.run)
        add_autoretry_behaviour(task, **options)
        self.registry[task.name] = task
        self.forget_plan(task)
        task.bind(self)
        veil_of(task)  # now, so that a name that is no parameter is told where the task is declared
        return task

    # -- the registry --------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name, shared ones and task classes included. Raises :exc:`NotRegistered` for unknown names."""
        if not self.finalized:
            self.finalize(auto=True)
        return self.registry

    def _instantiate(self, name: str) -> Any:
        cls = declared_class(name, self)
        return cls() if cls is not None else None

    def finalize(self, auto: bool = False) -> None:
        """Complete the registry: shared tasks, task classes, and what ``task_annotations`` says. Once per app.

        Raises :exc:`RuntimeError` if it happens by itself (``auto``) in an app made with ``autofinalize=False``.
        """
        with self._finalizing:
            if self.finalized:
                return
            if auto and not self.autofinalize:
                raise RuntimeError("Contract breach: app not finalized. Call app.finalize() before its tasks are used.")
            self.finalized = True
            current.announce_app_finalized(self)
            for name in declared_names():
                if name not in self.registry:
                    self._instantiate(name)
            self._finish_configuration()
            for task in list(self.registry.values()):
                task.annotate(self)
            self.on_after_finalize.send(sender=self)

    def gen_task_name(self, name: str, module: str | None) -> str:
        """Return the name of a task that was given none; for subclasses to change."""
        return gen_task_name(self.main, name, module)

    # -- modules -------------------------------------------------------------------------------------------------

    def autodiscover_tasks(
        self, packages: Any = None, related_name: str | None = "tasks", force: bool = False
    ) -> list[Any]:
        """Have the module ``tasks`` of each package imported when a worker starts; now with ``force``.

        :param packages: names, or a callable that returns them; None asks the framework's integration.
        """

        def discover() -> list[Any]:
            names = packages() if callable(packages) else packages
            if names is None:
                finders = [fixup for fixup in self._fixups if hasattr(fixup, "autodiscover_tasks")]
                names = [name for fixup in finders for name in fixup.autodiscover_tasks()]
            return autodiscover([names] if isinstance(names, str) else names, related_name)

        if force:
            return discover()
        self._discover.append(discover)
        return []

    def import_default_modules(self) -> list[Any]:
        """Import every module that the settings and :meth:`autodiscover_tasks` name. What they raise is raised."""
        signals.import_modules.send(sender=self)
        conf = self.conf
        modules: list[Any] = list(import_modules([*(conf.imports or ()), *(conf.include or ())]))
        for discover in self._discover:
            modules += discover()
        return modules

    # -- the base class ------------------------------------------------------------------------------------------

    @property
    def Task(self) -> Any:
        """The base class of this app's tasks; assign a subclass of it to have later tasks use that."""
        if self._task_base is None:
            self._task_base = self.create_task_cls()
        return self._task_base

    @Task.setter
    def Task(self, cls: Any) -> None:
        self._task_base = cls

    def create_task_cls(self) -> Any:
        """Return a task base class bound to this app."""
        base = symbol_by_name(self.task_cls)
        return type("Task", (base,), {"_app": self, "abstract": True, "__module__": base.__module__})

    @property
    def current_task(self) -> Any:
        """The task that runs in this thread or coroutine, or None."""
        return current.get_current_task()

    @property
    def current_worker_task(self) -> Any:
        """The same, leaving out tasks that were merely called as functions."""
        return current.get_current_worker_task()


def _warn_replaced(name: str, loser: Any, winner: Any) -> None:
    warnings.warn(
        DuplicateTaskNameWarning(
            f"task name {name!r} is used by {qualname(loser)} and {qualname(winner)}: calls under this name reach "
            f"{qualname(winner)}. Give one of them another name."
        ),
        stacklevel=outside(),
    )


@overload
def shared_task(fun: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineTask[P, R]: ...
@overload
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], **options: Any) -> BoundDecorator: ...
@overload
def shared_task(*, bind: Literal[False] = False, **options: Any) -> Decorator: ...
def shared_task(*args: Any, **options: Any) -> Any:
    """Make a function a task of every app there is and will be; for libraries that know no app.

    Returns a proxy of the task in the app that is current at each use.
    """

    def create(fun: Callable[..., Any]) -> Any:
        if type(fun) is Proxy:
            raise TypeError("@shared_task was applied twice to the same function; remove one of them")

        def construct(app: Any) -> Any:
            return task_from_function(app, fun, shared=True, **options)

        current.connect_on_app_finalize(construct)
        for app in current.active_apps():
            if app.finalized:
                construct(app)

        def find() -> Any:
            app = current.get_current_app()
            name = options.get("name") or app.gen_task_name(fun.__name__, fun.__module__)
            return app.tasks[name] if name not in app.registry else app.registry[name]

        return Proxy(find, __doc__=fun.__doc__, __module__=fun.__module__)

    ours = ("shared", "lazy")
    options = {key: value for key, value in options.items() if key not in ours}
    return apply_decorator(create, args, "shared_task")
