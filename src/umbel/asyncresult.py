"""The result of one task: what is stored about it, and waiting for it.

Making one costs no I/O, and neither does dropping one. A final state is read once and kept.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

from umbel import asyncio as off_loop
from umbel import exceptions, states
from umbel.current import app_or_default
from umbel.exceptions import IncompleteStream, TaskRevokedError
from umbel.interfaces import ResultBackend
from umbel.meta import Meta, pending_meta
from umbel.resultbase import (
    NO_BACKEND,
    ResultBase,
    as_exception,
    assert_will_not_block,
    control_of,
    importable_class,
)
from umbel.utils.graph import DependencyGraph
from umbel.waiting import Waiter, waiter_for
from umbel.watching import watch

R = TypeVar("R")
V = TypeVar("V")

_EAGER = (
    "Results are not stored in backend and should not be retrieved when task_always_eager is enabled, "
    "unless task_store_eager_result is enabled."
)


class _Field(Generic[V]):
    """One value of the stored meta, read when it is asked for."""

    def __init__(self, key: str, doc: str) -> None:
        self.key = key
        self.__doc__ = doc

    def __get__(self, instance: Any, owner: type | None = None) -> V:
        return cast(V, self if instance is None else instance._get_task_meta().get(self.key))


class _Reference(ResultBase):
    """Which task: its id, where its result is, and what was called before it."""

    def __init__(
        self,
        id: str,
        backend: ResultBackend | None = None,
        task_name: str | None = None,
        app: Any = None,
        parent: Any = None,
    ) -> None:
        if id is None:
            raise ValueError("a result needs the id of its task, not None")
        self.id = id
        self.app = app or self.app or app_or_default()
        self.parent = parent
        self.ignored = False
        self._backend = backend
        self._cache: Meta | None = None

    @property
    def backend(self) -> ResultBackend:
        """The backend that has the result. Raises :exc:`NotImplementedError` if there is none."""
        backend = self._backend or self.app.backend
        if backend is None:
            raise NotImplementedError(NO_BACKEND)
        return cast(ResultBackend, backend)

    @property
    def _waiter(self) -> Waiter:
        if self._backend is not None and self._backend is not self.app.backend:
            return waiter_for(self._backend, self.app.waiter.decode)
        if self.app.backend is None:
            raise NotImplementedError(NO_BACKEND)
        return cast(Waiter, self.app.waiter)

    @property
    def task_id(self) -> str:
        """The same as ``id``."""
        return self.id

    @task_id.setter
    def task_id(self, id: str) -> None:
        self.id = id

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ``((id, parent), None)``, the form in which results are stored."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    __json__ = as_tuple

    def as_list(self) -> list[str]:
        """Return the ids of this task and those before it."""
        return [self.id, *(node.id for node in self._parents())]

    def _parents(self) -> Iterator[Any]:
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Reference):
            return other.id == self.id
        return other == self.id if isinstance(other, str) else NotImplemented

    def __copy__(self) -> Any:
        return type(self)(self.id, self._backend, None, self.app, self.parent)

    def __reduce__(self) -> tuple[Any, ...]:
        return importable_class(self), (self.id, None, None, None, self.parent)


class _Stored(_Reference):
    """What the backend has about the task. Every attribute reads it until the state is final."""

    traceback = _Field[str | None]("traceback", "The traceback of a failed task as text, or None.")
    children = _Field[list[Any] | None]("children", "The results of the tasks that this one has sent, or None.")
    name = _Field[str | None]("name", "The task's name, with ``result_extended``.")
    args = _Field[Any]("args", "The positional arguments, with ``result_extended``.")
    kwargs = _Field[Any]("kwargs", "The keyword arguments, with ``result_extended``.")
    worker = _Field[str | None]("worker", "The worker that ran it, with ``result_extended``.")
    retries = _Field[int | None]("retries", "How often it was retried, with ``result_extended``.")
    queue = _Field[str | None]("queue", "The queue it came from, with ``result_extended``.")
    result = _Field[Any]("result", "The value, the exception of a failed task, or what ``update_state`` was given.")
    info = _Field[Any]("result", "The same as ``result``.")
    state = _Field[str]("status", "The state; PENDING if nothing is stored.")
    status = _Field[str]("status", "The same as ``state``.")

    @property
    def date_done(self) -> datetime | None:
        """When the task ended, in UTC, or None."""
        done: Any = self._get_task_meta().get("date_done")
        if isinstance(done, str):
            done = datetime.fromisoformat(done)
        # Older writers left the zone out.
        moment: datetime | None = done.replace(tzinfo=UTC) if done is not None and done.tzinfo is None else done
        return moment

    def ready(self) -> bool:
        """Say whether the task has ended."""
        return self.state in states.READY_STATES

    def successful(self) -> bool:
        """Say whether it ended well."""
        return bool(self.state == states.SUCCESS)

    def failed(self) -> bool:
        """Say whether it failed."""
        return bool(self.state == states.FAILURE)

    def exists(self) -> bool:
        """Say whether anything is stored: False for an unknown id, one that waits, and one that has expired."""
        return bool(self.backend.fetch([self.id]))

    def forget(self) -> None:
        """Delete the stored result, and those of the tasks before it."""
        ids = []
        for node in (self, *self._parents()):
            if isinstance(node, _Reference):
                node._cache = None
                ids.append(node.id)
            else:
                node.forget()
        self.backend.forget(ids)

    def _get_task_meta(self) -> Meta:
        if self._cache is not None:
            return self._cache
        if self.app.conf.task_always_eager and not self.app.conf.task_store_eager_result:
            warnings.warn(_EAGER, RuntimeWarning, stacklevel=3)
        meta = self._waiter.read([self.id]).get(self.id)
        return pending_meta(self.id) if meta is None else self._set_cache(meta)

    def _set_cache(self, meta: Meta) -> Meta:
        """Take over what was read, and keep it if it is final."""
        if meta.get("children"):
            meta["children"] = [result_from_tuple(child, self.app) for child in meta["children"]]
        if meta["status"] in states.READY_STATES:
            self._cache = meta
        return meta


class _Tree(_Stored):
    """Following what the task has sent."""

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield (parent, result) for this result and all that came from it, level by level.

        Raises :exc:`IncompleteStream` at one that is not ready, unless ``intermediate``.
        """
        todo: deque[tuple[Any, Any]] = deque([(None, self)])
        while todo:
            parent, node = todo.popleft()
            yield parent, node
            if node.ready():
                todo.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Yield (result, value) for this result and all that came from it, waiting for each.

        The options are those of :meth:`AsyncResult.get`.
        """
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**options)

    def get_leaf(self) -> Any:
        """Return the value of the last result that came from this one."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False) -> DependencyGraph[Any]:
        """Return which result led to which."""
        graph: DependencyGraph[Any] = DependencyGraph()
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.add_arc(node)
            if parent is not None:
                graph.add_edge(parent, node)
        return graph

    @property
    def graph(self) -> DependencyGraph[Any]:
        """Which result led to which, as it is now."""
        return self.build_graph()


class AsyncResult(_Tree, Generic[R]):
    """The result of a task that was sent. ``await`` it in a coroutine, or call :meth:`get`.

    Equal to another one, and to a string, with the same id. Copies and pickles; a pickle finds its backend through
    the app that is current where it is loaded.
    """

    TimeoutError: ClassVar[type[exceptions.TimeoutError]] = exceptions.TimeoutError
    supports_native_join = True

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[Meta], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
        EXCEPTION_STATES: Iterable[str] = states.EXCEPTION_STATES,
        PROPAGATE_STATES: Iterable[str] = states.PROPAGATE_STATES,
    ) -> R:
        """Wait until the task has ended; return its value or raise its exception.

        Raises :exc:`TimeoutError` after ``timeout`` seconds (the task goes on; waiting again is safe), and
        :exc:`RuntimeError` inside a task unless ``disable_sync_subtasks`` is false. If the task's result is ignored
        it returns None at once.

        :param propagate: whether to raise the exception of a failed task; else it is returned.
        :param follow_parents: whether to raise also when a task before this one in a chain failed.
        :param callback: called with the id and the value.
        :param on_message: called with the meta of every change of state that is seen, the last one included.
        :param on_interval: called about every ``interval`` seconds.
        :param no_ack: without effect, as ``EXCEPTION_STATES`` and ``PROPAGATE_STATES``.
        """
        if self.ignored:
            return cast(R, None)
        if disable_sync_subtasks:
            assert_will_not_block()
        decided = self
        if self._cache is None:
            parents = self._unknown_parents() if follow_parents and propagate else []
            done = self._waiter.wait(
                [*(parent.id for parent in parents), self.id],
                timeout,
                on_message=on_message and (lambda meta: on_message(meta) if meta["task_id"] == self.id else None),
                on_interval=on_interval,
                interval=interval,
                stop=self._is_decided,
            )
            decided = self._learn(done, parents)
        if follow_parents and propagate:
            decided._throw_of_members()
        return cast(R, decided.maybe_throw(propagate=propagate, callback=callback))

    wait = get

    def watch(self, timeout: float | None = None, *, file: Any = None) -> R:
        """Do :meth:`get`, and meanwhile show in the terminal (or in ``file``) how far the task says that it is."""
        return cast(R, watch(self, timeout, file))

    def __await__(self) -> Generator[Any, None, R]:
        """Wait without blocking the event loop; return the value or raise the exception."""
        return self._get_async().__await__()

    async def _get_async(self) -> R:
        if self.ignored:
            return cast(R, None)
        decided = self
        if self._cache is None:
            parents = self._unknown_parents()
            ids = [*(parent.id for parent in parents), self.id]
            decided = self._learn(await self._waiter.wait_async(ids, stop=self._is_decided), parents)
        if decided._members_before():
            await off_loop.run(decided._throw_of_members)
        return cast(R, decided.maybe_throw())

    def _unknown_parents(self) -> list[Any]:
        """Return the tasks before this one whose end is not known yet, the first of the chain first.

        A group among them is left out: it leads here through a chord, which fails by itself.
        """
        parents = [node for node in self._parents() if isinstance(node, AsyncResult) and not node.ignored]
        for node in reversed(parents):
            if node._cache is not None:
                node.maybe_throw()
        return [node for node in reversed(parents) if node._cache is None]

    def _members_before(self) -> list[Any]:
        """Return the groups whose chords lead here, the first one first, if this has failed."""
        if self._cache is None or self._cache["status"] not in states.PROPAGATE_STATES:
            return []
        return [node for node in self._parents() if not isinstance(node, AsyncResult)][::-1]

    def _throw_of_members(self) -> None:
        """If a member of a chord before this one failed, raise its error, which tells more than the chord's."""
        for members in self._members_before():
            members.maybe_throw()

    def _is_decided(self, task_id: str, meta: Meta) -> bool:
        return task_id == self.id or meta["status"] in states.PROPAGATE_STATES

    def _learn(self, done: dict[str, Meta], parents: Iterable[Any]) -> Any:
        """Take over what was read; return the first task that failed on the way here, or else this one."""
        for parent in parents:
            if parent.id in done and parent._set_cache(done[parent.id])["status"] in states.PROPAGATE_STATES:
                return parent
        self._set_cache(done[self.id])
        return self

    def then(
        self,
        callback: Callable[[Any], Any],
        on_error: Callable[[BaseException], Any] | None = None,
        weak: bool = False,
    ) -> AsyncResult[R]:
        """Call ``callback`` with this result once the task has ended, and ``on_error`` with its exception if it failed.

        They run in a thread of their own, or here and now if the end is known already.
        """

        def ended(done: dict[str, Meta]) -> None:
            if self._cache is None:
                self._set_cache(done[self.id])
            callback(self)
            meta = self._get_task_meta()
            if on_error is not None and meta["status"] in states.PROPAGATE_STATES:
                on_error(as_exception(meta["result"]))

        if self._cache is not None:
            ended({})
        else:
            self._waiter.call([self.id], ended, on_error)
        return self

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise the exception if the task failed; else return what is stored. Does not wait."""
        meta = self._get_task_meta()
        value = meta["result"]
        if propagate and meta["status"] in states.PROPAGATE_STATES:
            self.throw(value, meta.get("traceback"))
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def throw(self, exc: Any, traceback: str | None = None) -> NoReturn:
        """Raise the exception as it came from the worker, with the worker's traceback as a note if that is wanted."""
        error = as_exception(exc)
        if traceback and self.app.conf.task_remote_tracebacks and traceback not in getattr(error, "__notes__", ()):
            error.add_note(traceback)
        # The stored exception is raised by every call; it must not collect the tracebacks of all of them.
        raise error.with_traceback(None)

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Ask all workers not to start the task, and with ``terminate`` to stop it if it runs."""
        return control_of(self.app).revoke(
            self.id, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )

    def revoke_by_stamped_headers(
        self,
        headers: dict[str, Any],
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Ask all workers not to start the tasks whose stamps match all of these."""
        return control_of(self.app).revoke_by_stamped_headers(
            headers, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )


class EagerResult(AsyncResult[R]):
    """The result of a task that ran here and now; nothing is stored and nothing is waited for."""

    supports_native_join = False

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None
    ) -> None:
        self.id = id
        self.ignored = False
        self._backend = None
        self._keep(ret_value, state, traceback, name)

    def _keep(self, value: Any, state: str, traceback: str | None, name: str | None) -> None:
        self._cache = {**pending_meta(self.id), "status": state, "result": value, "traceback": traceback, "name": name}

    def _get_task_meta(self) -> Meta:
        return self._cache or {}

    def ready(self) -> bool:
        """Return True."""
        return True

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raise the exception if the task failed; else return its value, or None if it was ignored or rejected."""
        value = super().maybe_throw(propagate=propagate, callback=callback)
        return value if self.state in states.READY_STATES else None

    maybe_reraise = maybe_throw

    def throw(self, exc: Any, traceback: str | None = None) -> NoReturn:
        """Raise the exception with the traceback it has."""
        raise as_exception(exc)

    def forget(self) -> None:
        """Do nothing: nothing is stored."""

    def exists(self) -> bool:
        """Return False: nothing is stored."""
        return False

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Turn it into a revoked one, although the task has run: what it returned is gone from here."""
        self._keep(TaskRevokedError("revoked"), states.REVOKED, None, self.name)

    def __copy__(self) -> Any:
        return type(self)(*self.__reduce__()[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return importable_class(self), (self.id, self.result, self.state, self.traceback, self.name)


def result_from_tuple(r: Any, app: Any = None) -> Any:
    """Return the result, or the group of results, that :meth:`as_tuple` described."""
    if isinstance(r, ResultBase):
        return r
    app = app_or_default(app)
    own, nodes = r
    id, parent = own if isinstance(own, list | tuple) else (own, None)
    if parent:
        parent = result_from_tuple(parent, app)
    if nodes is None:
        return app.AsyncResult(id, parent=parent)
    return app.GroupResult(id, [result_from_tuple(node, app) for node in nodes], parent=parent)
