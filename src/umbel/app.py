"""The app: what a program makes one of, declares its tasks on, and sends them through."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

from umbel import aliased, current, signals
from umbel.asyncresult import AsyncResult
from umbel.builtin_tasks import add_builtin_tasks
from umbel.canvas_base import Canvas
from umbel.components import Components
from umbel.configuring import Configuring
from umbel.connecting import Connecting
from umbel.control import Control
from umbel.current import current_app, current_task
from umbel.dead import Dead
from umbel.declaring import Declaring, shared_task
from umbel.exceptions import AlwaysEagerIgnored, BrokerError, CeleryWarning, ImproperlyConfigured
from umbel.groupresult import GroupResult, ResultSet
from umbel.loading import caller_file, symbol_by_name
from umbel.publishing import Dispatch, check_outcome, prepare
from umbel.queues import Queues
from umbel.setting_names import canonical, mistake
from umbel.setting_rows import ROWS
from umbel.signatures import Signature, signature
from umbel.utils.identity import uuid
from umbel.utils.text import did_you_mean

if TYPE_CHECKING:
    from umbel.background import Background
    from umbel.interfaces import Published
    from umbel.periodic.editing import Schedules

__all__ = ["Celery", "Umbel", "current_app", "current_task", "shared_task"]

R = TypeVar("R")

#: How many messages of a bulk go to the broker in one step.
BATCH = 500


class Umbel(Components, Declaring, Configuring, Connecting):
    """A task queue as one program sees it: settings, tasks, and connections that are opened when first needed.

    Safe to share between threads. Names, arguments and behaviour are those of Celery's app.
    """

    def __init__(
        self,
        main: str | None = None,
        loader: Any = None,
        backend: Any = None,
        amqp: Any = None,
        events: Any = None,
        log: Any = None,
        control: Any = None,
        set_as_current: bool = True,
        tasks: Any = None,
        broker: Any = None,
        include: Iterable[str] | None = None,
        changes: Mapping[str, Any] | None = None,
        config_source: Any = None,
        fixups: Any = None,
        task_cls: Any = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        strict_typing: bool = True,
        **kwargs: Any,
    ) -> None:
        """Make an app. Nothing is connected, and no configuration is read, before it is needed.

        :param main: the name; it stands for ``__main__`` in task names when the module runs as a script.
        :param broker: the broker's URL. Without one an SQLite file beside the project is used.
        :param backend: the URL where results are kept. Without one, and with a broker, there are no results.
        :param kwargs: any setting.
        """
        self.main = main
        self.set_as_current = set_as_current
        # The same in every process of a program, unlike __main__: it decides where the default database is.
        self.module_file = caller_file()
        self.strict_typing = strict_typing
        self.fixups = list(self.builtin_fixups if fixups is None else fixups)
        self._components = {"loader": loader, "amqp": amqp, "events": events, "log": log, "control": control}
        self.on_after_fork = signals.Signal(name="app.on_after_fork")
        if kwargs:
            _check_options(kwargs, namespace)
        given = {"broker_url": broker, "result_backend": backend, "include": include, **kwargs}
        settings = {**(changes or {}), **{key: value for key, value in given.items() if value is not None}}
        self._declare(tasks, task_cls, autofinalize)
        self._disconnected()
        self._configure(settings, config_source, namespace)
        self.middlewares = []
        self._fixups = [symbol_by_name(fixup)(self) for fixup in self.fixups]
        if set_as_current:
            self.set_current()
        self.on_init()
        current.register_app(self)

    def on_init(self) -> None:
        """Called at the end of construction; for subclasses."""

    # -- sending -------------------------------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        task_id: Any = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a task by its name, which need not be known here, and return its result object.

        Options: ``countdown`` ``eta`` ``task_id`` ``expires`` ``queue`` ``exchange`` ``routing_key`` ``priority``
        ``serializer`` ``compression`` ``headers`` ``link`` ``link_error`` ``time_limit`` ``soft_time_limit``
        ``ignore_result`` ``shadow`` ``retry`` ``retry_policy`` ``reply_to`` and Celery's others; an unknown one becomes
        a property of the message. Raises as :meth:`Task.apply_async`, but does not check the arguments.
        """
        plan = self.plan(name)
        if plan.eager:
            warnings.warn(AlwaysEagerIgnored("task_always_eager has no effect on send_task"), stacklevel=2)
        if countdown is not None or eta is not None or task_id is not None:
            options.update(countdown=countdown, eta=eta, task_id=task_id)
        dispatch = prepare(self, plan, args, kwargs, options)
        dispatch.send(self)
        return cast("AsyncResult[Any]", dispatch.result(self))

    @overload
    def send_many(self, calls: Iterable[Signature[R]], **options: Any) -> list[AsyncResult[R]]: ...
    @overload
    def send_many(self, calls: Iterable[Any], **options: Any) -> list[AsyncResult[Any]]: ...
    def send_many(self, calls: Iterable[Any], **options: Any) -> list[AsyncResult[Any]]:
        """Send many tasks, 500 in one step of the broker, and return their result objects in order.

        A call is a signature, or ``(task, args, kwargs)`` with a task, a signature or a name, and ``args`` and
        ``kwargs`` optional. The options are for every call. An error that stops a bulk in its middle says in a note
        how many were sent.
        """
        results: list[AsyncResult[Any]] = []
        batch: list[Dispatch] = []
        try:
            for call in calls:
                task, args, kwargs, given = _call(call, options)
                if isinstance(task, str) and (registered := self.registry.get(task)) is not None:
                    task = registered
                dispatch = self._dispatch(task, args, kwargs, given)
                if dispatch is None:
                    results.append(task.apply_async(args, kwargs, **given))
                    continue
                batch.append(dispatch)
                results.append(dispatch.result(self))
                if len(batch) == BATCH:
                    self._send_batch(batch)
                    batch = []
            self._send_batch(batch)
        except Exception as error:
            error.add_note(f"{len(results) - len(batch)} tasks of this bulk were sent before")
            raise
        return results

    def _dispatch(self, task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Dispatch | None:
        """Return a call that may go out with others, or None where its own ``apply_async`` is to be called."""
        if isinstance(task, str):
            return prepare(self, self.plan(task), args, kwargs, options)
        if isinstance(task, Canvas) or task._custom_apply_async:
            return None
        found: Dispatch | None = task._prepare(self, args, kwargs, options)
        return found

    def _send_batch(self, batch: Sequence[Dispatch]) -> None:
        if not batch:
            return
        for dispatch in batch:
            dispatch.announce()
        outgoings = [dispatch.outgoing for dispatch in batch]
        outcomes: Sequence[Published] = self.publish(outgoings, **batch[0].policy())
        refused: BrokerError | None = None
        for dispatch, outcome in zip(batch, outcomes, strict=True):
            try:
                check_outcome(dispatch.outgoing, outcome)
            except BrokerError as error:
                # The others are queued nevertheless, and that is to be told.
                refused = refused or error
            else:
                dispatch.report()
        if refused is not None:
            raise refused

    def signature(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        """Return a signature bound to this app."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    # -- results -------------------------------------------------------------------------------------------------

    @cached_property
    def AsyncResult(self) -> type[AsyncResult[Any]]:
        """The result class, bound to this app."""
        return type("AsyncResult", (AsyncResult,), {"app": self, "__module__": AsyncResult.__module__})

    @cached_property
    def GroupResult(self) -> type[GroupResult[Any]]:
        """The class of a group's results, bound to this app."""
        return type("GroupResult", (GroupResult,), {"app": self, "__module__": GroupResult.__module__})

    @cached_property
    def ResultSet(self) -> type[ResultSet[Any]]:
        """The class of a set of results, bound to this app."""
        return type("ResultSet", (ResultSet,), {"app": self, "__module__": ResultSet.__module__})

    # -- its life ------------------------------------------------------------------------------------------------

    @cached_property
    def dead(self) -> Dead:
        """The dead letters of this app's broker."""
        return Dead(self)

    @cached_property
    def queues(self) -> Queues:
        """The queues: ``app.queues()`` returns those that a worker reads; they can be paused and resumed."""
        return Queues(self)

    @cached_property
    def schedules(self) -> Schedules:
        """The periodic tasks: what comes next, and changes while beat runs."""
        found: Schedules = symbol_by_name("umbel.periodic.editing:Schedules")(self)
        return found

    @cached_property
    def control(self) -> Any:
        """What can be asked of the workers: :class:`umbel.control.Control`."""
        return symbol_by_name(self._components["control"] or Control)(self)

    @cached_property
    def events(self) -> Any:
        """What sends events and listens to them: :class:`umbel.events.Events`."""
        return symbol_by_name(self._components["events"] or "umbel.events:Events")(self)

    @cached_property
    def oid(self) -> str:
        """An id of this app."""
        return uuid()

    def set_current(self) -> None:
        """Make this the current app of the thread."""
        current.set_current_app(self)

    def set_default(self) -> None:
        """Make this the app of every thread that never chose one."""
        current.set_default_app(self)

    def start(self, argv: Sequence[str] | None = None) -> Any:
        """Run the ``umbel`` command for this app; ``argv`` is what follows the program's name."""
        # The command line is above this layer; it is found by name, as a user's class would be.
        cli, target = symbol_by_name("umbel.cli.main:cli"), symbol_by_name("umbel.cli.options:Target")(self)
        arguments = list(sys.argv[1:] if argv is None else argv)
        return cli.main(args=arguments, prog_name="umbel", obj=target, standalone_mode=False)

    def worker_main(self, argv: Sequence[str] | None = None) -> Any:
        """Run a worker in this process; ``argv`` is ``["worker", ...]``."""
        arguments = list(argv or ["worker"])
        if "worker" not in arguments:
            raise ValueError("worker_main needs the sub-command 'worker' in argv; use start() for other commands")
        return self.start(arguments)

    def start_background(
        self, *, worker: bool = True, beat: bool = True, timeout: float = 10.0, **options: Any
    ) -> Background:
        """Run tasks, and send periodic ones, in threads of this process; return what stops them, also as a block.

        For a program that wants no process beside it, such as a web server or a script. Each process that calls this
        has a worker of its own, and any number may have a beat. Call it after a fork, not before.

        ``options`` are those of the ``worker`` command; the pool is ``threads`` unless ``asyncio`` or ``solo`` is
        asked for. Raises :exc:`OperationalError` if the broker cannot be reached within ``timeout`` seconds, and
        :exc:`ImproperlyConfigured`.
        """
        start = symbol_by_name("umbel.worker.background:start")
        found: Background = start(self, worker=worker, beat=beat, timeout=timeout, options=options)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'}:{id(self):#x}>"

    def __reduce__(self) -> Any:
        conf = self.conf
        own = {"module_file": self.module_file}
        if "task_cls" in vars(self):
            own["task_cls"] = self.task_cls
        return _unpickle, (type(self), self.main, conf.changes, self.set_as_current, own, conf.loaded_from)


Celery = Umbel


def _check_options(options: Iterable[str], namespace: str | None) -> None:
    """Refuse a keyword that is neither a parameter nor a setting: ``borker=`` must not mean the default broker."""
    for name in options:
        if canonical(name, namespace) is None and mistake(name, namespace) is None:
            known = [*inspect.signature(Umbel.__init__).parameters, *ROWS]
            advice = did_you_mean(name, known) or "; a value of your own belongs into app.conf.update({...})"
            text = f"unknown option {name!r} in the constructor{advice}"
            if not aliased.active:
                raise ImproperlyConfigured(text)
            warnings.warn(CeleryWarning(text), stacklevel=3)


def _unpickle(
    cls: type[Umbel],
    main: str | None,
    changes: Mapping[str, Any],
    set_as_current: bool,
    own: Mapping[str, Any],
    loaded_from: Mapping[str, Any],
) -> Umbel:
    app = cls(main, changes=changes, set_as_current=set_as_current)
    vars(app).update(own)
    if loaded_from:
        app.conf.load_object(**loaded_from)
    return app


def _call(call: Any, options: Mapping[str, Any]) -> tuple[Any, Any, Any, dict[str, Any]]:
    if isinstance(call, Signature | str) or not isinstance(call, tuple | list):
        call = (call,)
    task, args, kwargs = (*call, None, None)[:3]
    if isinstance(task, Canvas) or not isinstance(task, Signature):
        return task, args, kwargs, dict(options)
    args, kwargs, merged = task._merge(args, kwargs, options)
    return task._registered() or task["task"], args, kwargs, merged


def _default_app() -> Umbel:
    return Umbel("default", set_as_current=False)


current.set_app_factory(_default_app)
current.connect_on_app_finalize(add_builtin_tasks)
