"""The tasks that every app has, under Celery's names: what ``map``, ``chunks`` and messages of older clients call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from umbel.asyncresult import result_from_tuple
from umbel.canvas_base import as_signature
from umbel.canvas_chord import chord
from umbel.canvas_group import group
from umbel.canvas_map import chunks
from umbel.current import allow_join_result
from umbel.exceptions import ChordError

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("celery.app.builtins")


def add_builtin_tasks(app: Any) -> None:
    """Register them with an app, unless it has a task of that name."""

    def task(name: str, **options: Any) -> Callable[[F], F]:
        def register(function: F) -> F:
            if name not in app.registry:
                app.task(name=name, shared=False, **options)(function)
            return function

        return register

    @task("celery.map")
    def xmap(task: Any, it: Any) -> list[Any]:
        each = as_signature(task, app).type
        return [each(item) for item in it]

    @task("celery.starmap")
    def xstarmap(task: Any, it: Any) -> list[Any]:
        each = as_signature(task, app).type
        return [each(*item) for item in it]

    @task("celery.chunks")
    def send_chunks(task: Any, it: Any, n: int) -> Any:
        return chunks(as_signature(task, app), it, n, app=app).apply_async()

    @task("celery.accumulate", bind=True)
    def accumulate(self: Any, *args: Any, **kwargs: Any) -> Any:
        index = kwargs.get("index")
        return args if index is None else args[index]

    @task("celery.group", bind=True)
    def send_group(
        self: Any, tasks: Any, result: Any, group_id: str, partial_args: Any, add_to_parent: bool = True
    ) -> Any:
        members = [as_signature(each, app).clone(partial_args) for each in tasks]
        app.send_many(members, group_id=group_id, add_to_parent=False)
        found = result_from_tuple(result, app)
        return self.add_trail(found) if add_to_parent else found

    @task("celery.chain")
    def send_chain(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("celery.chain is no task: a chain is sent as its first one")

    @task("celery.chord", bind=True)
    def send_chord(self: Any, header: Any, body: Any, partial_args: Any = (), **options: Any) -> Any:
        tasks = header.get("kwargs", {}).get("tasks", ()) if isinstance(header, dict) else header
        call = chord(group([as_signature(each, app) for each in tasks], app=app), as_signature(body, app), app=app)
        return call.apply_async(partial_args, options.pop("kwargs", None))

    @task("celery.backend_cleanup")
    def backend_cleanup() -> None:
        backend = app.backend
        while backend is not None and backend.expire():
            pass

    add_chord_unlock(app, task)


def add_chord_unlock(app: Any, task: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]) -> None:
    """Register what Celery sends to complete a chord where its own backend cannot count: it looks from time to time."""

    @task("celery.chord_unlock", bind=True, max_retries=None, ignore_result=True)
    def unlock_chord(
        self: Any,
        group_id: str,
        callback: Any,
        interval: float | None = None,
        max_retries: int | None = None,
        result: Any = (),
        **kwargs: Any,
    ) -> None:
        pause = app.conf.result_chord_retry_interval if interval is None else interval
        members = app.GroupResult(group_id, [result_from_tuple(each, app) for each in result])
        if not members.ready():
            raise self.retry(countdown=pause, max_retries=max_retries)
        body = as_signature(callback, app)
        with allow_join_result():
            try:
                values = members.get(timeout=app.conf.result_chord_join_timeout)
            except Exception as error:
                # Of a member: the chord has failed, and so has its body.
                failed = next((leaf for leaf in members.leaves() if leaf.failed()), None)
                reason = repr(error) if failed is None else f"Dependency {failed.id} raised {error!r}"
                logger.error("Chord %r raised: %r", group_id, error)
                fail_body(app, self, body, ChordError(reason))
                return
        body.apply_async((values,))


def fail_body(app: Any, task: Any, body: Any, error: Exception) -> None:
    """Store that the body of a chord has failed, and send its errbacks."""
    if body.id is not None:
        app.store_state(task, body.id, "FAILURE", error, None)
    for errback in body["options"].get("link_error") or ():
        as_signature(errback, app).apply_async((body.id,))
