"""Results of several tasks: waiting for all of them in one go, in the order in which they were sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Generic, TypeVar

from umbel import states
from umbel.asyncresult import AsyncResult, result_from_tuple
from umbel.current import app_or_default
from umbel.interfaces import ResultBackend
from umbel.meta import Meta, accepted, decode_group, encode_group
from umbel.resultbase import (
    NO_BACKEND,
    ResultBase,
    assert_will_not_block,
    control_of,
    importable_class,
)
from umbel.waiting import Waiter

R = TypeVar("R")

OnMessage = Callable[[Meta], Any]
Leaves = dict[str, list[AsyncResult[Any]]]


class _Members(ResultBase):
    """A list of results, some of which may be groups themselves."""

    def __init__(self, results: Iterable[Any], app: Any = None, **options: Any) -> None:
        self.results: list[Any] = results if isinstance(results, list) else list(results)
        self._app: Any = None
        if app is not None:
            self.app = app

    @property
    def app(self) -> Any:
        """The app given, else that of the first member, else the current one."""
        if self._app is None:
            self._app = (self.results[0].app if self.results else None) or app_or_default()
        return self._app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def backend(self) -> ResultBackend | None:
        """The backend of the app."""
        backend: ResultBackend | None = self.app.backend
        return backend

    @property
    def supports_native_join(self) -> bool:
        """Whether all members can be waited for at once."""
        return bool(self.results) and all(result.supports_native_join for result in self.results)

    def add(self, result: Any) -> None:
        """Add one at the end, unless it is there."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Remove a member, given by itself or its id. Raises :exc:`KeyError` if it is none."""
        if result not in self.results:
            raise KeyError(result)
        self.results.remove(result)

    def discard(self, result: Any) -> None:
        """Remove a member if it is one."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Add those that are not there."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Remove all members."""
        self.results.clear()

    def leaves(self) -> Iterator[AsyncResult[Any]]:
        """Yield the results of single tasks, those of inner groups included."""
        for result in self.results:
            if isinstance(result, _Members):
                yield from result.leaves()
            else:
                yield result

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        return other.results == self.results if isinstance(other, _Members) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(str(result.id) for result in self.results)}]>"


class ResultSet(_Members, Generic[R]):
    """Several results. ``await`` it in a coroutine, or call :meth:`get`."""

    def ready(self) -> bool:
        """Say whether all have ended."""
        self._refresh()
        return all(leaf._cache is not None for leaf in self.leaves())

    def waiting(self) -> bool:
        """Say whether any has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Say whether all ended well."""
        self._refresh()
        return _succeeded(self)

    def failed(self) -> bool:
        """Say whether any failed."""
        self._refresh()
        return any(_known_state(leaf) == states.FAILURE for leaf in self.leaves())

    def completed_count(self) -> int:
        """Return how many members ended well."""
        self._refresh()
        return sum(_succeeded(result) for result in self.results)

    def _refresh(self) -> None:
        """Read what is not final yet, in one round trip."""
        for waiter, unknown in self._unknown():
            _learn(unknown, waiter.read(list(unknown)))

    def maybe_throw(self, callback: Callable[[str, Any], Any] | None = None, propagate: bool = True) -> None:
        """Raise the exception of the first member that failed. Does not wait."""
        self._refresh()
        for result in self.results:
            result.maybe_throw(callback=callback, propagate=propagate)

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        """Delete all the stored results."""
        for result in self.results:
            result.forget()

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Ask all workers not to start any of the tasks, and with ``terminate`` to stop those that run."""
        ids = [leaf.id for leaf in self.leaves()]
        return control_of(self.app).revoke(
            ids, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: OnMessage | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> list[R]:
        """Wait for all and return their values in the order of the members.

        With ``propagate`` the first failure that is seen is raised at once, that of a task before the group too; else
        exceptions stand among the values. With a ``callback`` it is called with id and value of each member as they
        come, and the list is empty. Raises :exc:`TimeoutError` after ``timeout`` seconds in all, and
        :exc:`RuntimeError` inside a task unless ``disable_sync_subtasks`` is false.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        own = {result.id for result in self.results if not isinstance(result, _Members)}
        arrivals = self._arrivals(timeout, propagate, interval, on_message, on_interval)
        for task_id, meta in arrivals:
            if propagate and meta["status"] in states.PROPAGATE_STATES:
                self._throw(task_id, meta)
            if callback is not None and task_id in own:
                callback(task_id, meta["result"])
        if callback is None:
            return self._values()
        for result in self.results:
            if isinstance(result, ResultSet):
                callback(str(getattr(result, "id", "")), result._values())
        return []

    join = get
    join_native = get

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: OnMessage | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Meta]]:
        """Yield (task id, meta) of every task as it becomes ready; failures are not raised."""
        return self._arrivals(timeout, False, interval, on_message, on_interval)

    def __await__(self) -> Generator[Any, None, list[R]]:
        """Wait without blocking the event loop; return the values or raise the first failure."""
        return self._get_async().__await__()

    async def _get_async(self) -> list[R]:
        self._raise_known()
        for waiter, unknown in self._unknown():
            parents = self._parent_ids()
            done = await waiter.wait_async([*parents, *unknown], stop=_goal(unknown, True))
            _learn(unknown, done)
            for task_id, meta in done.items():
                if meta["status"] in states.PROPAGATE_STATES:
                    self._throw(task_id, meta)
        return self._values()

    def then(
        self, callback: Callable[[Any], Any], on_error: Callable[[BaseException], Any] | None = None, weak: bool = False
    ) -> ResultSet[R]:
        """Call ``callback`` with this set once all have ended, in a thread of its own (or at once if they have)."""
        waiter, unknown = next(self._unknown(), (None, {}))
        if waiter is None:
            callback(self)
            return self

        def ended(done: dict[str, Meta]) -> None:
            _learn(unknown, done)
            self.then(callback, on_error)  # members may have several backends

        waiter.call(list(unknown), ended, on_error)
        return self

    # -- waiting for many at once --------------------------------------------------------------------------------

    def _unknown(self) -> Iterator[tuple[Waiter, Leaves]]:
        """Yield the results whose end is not known yet by their id, for each backend."""
        by_waiter: dict[Waiter, Leaves] = {}
        for leaf in self.leaves():
            if leaf._cache is None and not leaf.ignored:
                by_waiter.setdefault(leaf._waiter, {}).setdefault(leaf.id, []).append(leaf)
        yield from by_waiter.items()

    def _arrivals(
        self,
        timeout: float | None,
        propagate: bool,
        interval: float,
        on_message: OnMessage | None,
        on_interval: Callable[[], Any] | None,
    ) -> Iterator[tuple[str, Meta]]:
        """Yield (id, meta) of every task as it becomes final, and with ``propagate`` of a failed one before it."""
        for leaf in self.leaves():
            if leaf._cache is not None:
                yield leaf.id, leaf._cache
        deadline = None if timeout is None else time.monotonic() + timeout
        for waiter, unknown in self._unknown():
            parents = self._parent_ids() if propagate else []
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            news = waiter.iterate(
                [*parents, *unknown],
                left,
                on_message=on_message,
                on_interval=on_interval,
                interval=interval,
                stop=_goal(unknown, propagate),
            )
            for task_id, meta in news:
                _learn(unknown, {task_id: meta})
                if task_id in unknown or meta["status"] in states.PROPAGATE_STATES:
                    yield task_id, meta

    def _parent_ids(self) -> list[str]:
        """Return the tasks that were called before this group, the first one first; if one fails, so does all."""
        ids, node = [], self.parent
        while node is not None:
            if isinstance(node, AsyncResult) and not node.ignored and node._cache is None:
                ids.append(node.id)
            node = node.parent
        return ids[::-1]

    def _throw(self, task_id: str, meta: Meta) -> None:
        """Raise the error of a member, or of a task before this group."""
        member = next((leaf for leaf in self.leaves() if leaf.id == task_id), None)
        (member or self.app.AsyncResult(task_id)).throw(meta["result"], meta.get("traceback"))

    def _raise_known(self) -> None:
        for leaf in self.leaves():
            if leaf._cache is not None:
                leaf.maybe_throw()

    def _values(self) -> list[Any]:
        return [
            result._values() if isinstance(result, ResultSet) else (result._cache or {}).get("result")
            for result in self.results
        ]


class GroupResult(ResultSet[R]):
    """What calling a group returns: its results, an id, and what was called before it."""

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[Any] | None = None,
        parent: Any = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(() if results is None else results, app=app, **options)
        self.id = id
        self.parent = parent

    @property
    def children(self) -> list[Any]:
        """The members."""
        return self.results

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ``((id, parent), [member, ...])``, the form in which groups are stored."""
        return (self.id, self.parent and self.parent.as_tuple()), [result.as_tuple() for result in self.results]

    __json__ = as_tuple

    def save(self, backend: ResultBackend | None = None) -> GroupResult[R]:
        """Store which tasks belong to this group, for :meth:`restore`, as long as results are kept."""
        conf = self.app.conf
        payload = encode_group(self, serializer=conf.result_serializer, compression=conf.result_compression)
        _required(backend or self.backend).save_group(self._id(), payload, expires=_seconds(conf.result_expires))
        return self

    def delete(self, backend: ResultBackend | None = None) -> None:
        """Forget what :meth:`save` stored."""
        _required(backend or self.backend).forget_group(self._id())

    @classmethod
    def restore(cls, id: str, backend: ResultBackend | None = None, app: Any = None) -> Any:
        """Return the group that was saved under this id, or None."""
        bound = getattr(cls, "app", None)
        app = app or (app_or_default() if bound is None or isinstance(bound, property) else bound)
        payload = _required(backend or app.backend).fetch_group(id)
        if payload is None:
            return None
        conf = app.conf
        return result_from_tuple(decode_group(payload, serializer=conf.result_serializer, accept=accepted(conf)), app)

    def _id(self) -> str:
        if self.id is None:
            raise ValueError("a group without an id cannot be saved or deleted")
        return self.id

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return (other.id, other.results, other.parent) == (self.id, self.results, self.parent)
        return other == self.id if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:  # type: ignore[override]  # it has an id, which a mere set has not
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(str(result.id) for result in self.results)}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return importable_class(self), (self.id, self.results, self.parent)


def _goal(wanted: Iterable[str], propagate: bool) -> Callable[[str, Meta], bool]:
    """Return what says that waiting is over: all the wanted ones are there, or one has failed that matters."""
    missing = set(wanted)

    def reached(task_id: str, meta: Meta) -> bool:
        missing.discard(task_id)
        return not missing or (propagate and meta["status"] in states.PROPAGATE_STATES)

    return reached


def _learn(unknown: Leaves, metas: Mapping[str, Meta]) -> None:
    for task_id, meta in metas.items():
        for leaf in unknown.get(task_id, ()):
            leaf._set_cache(meta)


def _known_state(leaf: AsyncResult[Any]) -> str:
    return leaf._cache["status"] if leaf._cache is not None else states.PENDING


def _succeeded(result: Any) -> bool:
    if isinstance(result, _Members):
        return all(_succeeded(member) for member in result)
    return _known_state(result) == states.SUCCESS


def _required(backend: ResultBackend | None) -> ResultBackend:
    if backend is None:
        raise NotImplementedError(NO_BACKEND)
    return backend


def _seconds(expires: Any) -> float | None:
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    return float(expires) if expires else None
