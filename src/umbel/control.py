"""Remote control: what a program can ask of the workers of its app."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from umbel import mailbox
from umbel.inspecting import Inspect, flatten_reply
from umbel.interfaces import Place
from umbel.revoking import revoke, revoke_by_stamps, shared_store, signal_name

__all__ = ["Control", "Inspect", "flatten_reply"]

Replies = list[dict[str, Any]] | None


class Control:
    """``app.control``. Safe to use from every thread.

    Every command takes ``destination`` (a list of node names) and the options of :meth:`broadcast`: with
    ``reply=True`` it waits for the replies and returns them. Raises :exc:`OperationalError` if the broker cannot be
    reached.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    @cached_property
    def inspect(self) -> type[Inspect]:
        """The class that asks workers, bound to this app: ``app.control.inspect().active()``."""
        return type("Inspect", (Inspect,), {"app": self.app, "__module__": Inspect.__module__})

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra_kwargs: Any,
    ) -> Replies:
        """Send a command to all workers, or those of ``destination``, or whose name fits ``pattern``.

        With ``reply`` it returns ``[{node: value}, ...]``: what came until nothing more came for ``timeout`` seconds,
        or ``limit`` replies. ``callback`` is called with each.

        :param matcher: how to read the pattern: ``glob`` or ``pcre``.
        """
        return mailbox.broadcast(
            self.app,
            command,
            {**(arguments or {}), **extra_kwargs},
            destination=destination,
            reply=reply,
            timeout=timeout,
            limit=limit,
            callback=callback,
            pattern=pattern if matcher else None,
            matcher=matcher if pattern else None,
        )

    # -- tasks ---------------------------------------------------------------------------------------------------

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str | int | None = None,
        *,
        expires: float | None = None,
        **kwargs: Any,
    ) -> Replies:
        """Tell all workers not to start these tasks, also the workers that are not running now.

        A worker that meets the message of one stores the state REVOKED instead of running it. A task that runs goes
        on unless ``terminate`` is true: then :exc:`Terminated` is raised in it, and under prefork its process is
        killed a second later, or at once with ``signal="SIGKILL"``.

        The revocation is stored first, and then broadcast for the Celery workers of a mixed fleet, which forget it
        when they end. RabbitMQ stores nothing: there it is kept with the results, and where those are in no store
        either, only the workers that run now are told, and forget it when they end.

        :param destination: which Celery workers hear of it; ours all do.
        :param expires: seconds to remember it, a day if not given: more is needed for tasks that are due later.

        Raises :exc:`OperationalError` if the broker cannot be reached, and ``ValueError`` for an unknown signal.
        """
        ids = [task_id] if isinstance(task_id, str) else [str(id) for id in task_id]
        kept = shared_store(self.app) is not None
        if kept:
            revoke(self.app, ids, terminate=terminate, signal=signal, expires=expires)
        arguments = {"task_id": ids, "terminate": terminate, "signal": signal_name(signal), "stored": kept}
        if not kept and expires is not None:
            arguments["expires"] = expires
        return self.broadcast("revoke", arguments, destination, **kwargs)

    def terminate(
        self,
        task_id: str | Iterable[str],
        destination: Sequence[str] | None = None,
        signal: str | int | None = None,
        **kwargs: Any,
    ) -> Replies:
        """Do :meth:`revoke` with ``terminate=True``."""
        return self.revoke(task_id, destination=destination, terminate=True, signal=signal, **kwargs)

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, str | Sequence[str]],
        destination: Sequence[str] | None = None,
        terminate: bool = False,
        signal: str | int | None = None,
        *,
        expires: float | None = None,
        **kwargs: Any,
    ) -> Replies:
        """Do :meth:`revoke` for the tasks that carry one of these stamps, such as ``{"customer": ["17", "18"]}``."""
        kept = shared_store(self.app) is not None
        if kept:
            revoke_by_stamps(self.app, headers, terminate=terminate, signal=signal, expires=expires)
        arguments: dict[str, Any] = {
            "headers": {name: value if isinstance(value, str) else list(value) for name, value in headers.items()},
            "terminate": terminate,
            "signal": signal_name(signal),
            "stored": kept,
        }
        if not kept and expires is not None:
            arguments["expires"] = expires
        return self.broadcast("revoke_by_stamped_headers", arguments, destination, **kwargs)

    def rate_limit(
        self, task_name: str, rate_limit: str | float | None, destination: Sequence[str] | None = None, **kwargs: Any
    ) -> Replies:
        """Let each worker start this task at most so often: ``10`` a second, ``"100/m"``; 0 is without a limit."""
        return self.broadcast("rate_limit", {"task_name": task_name, "rate_limit": rate_limit}, destination, **kwargs)

    def time_limit(
        self,
        task_name: str,
        soft: float | None = None,
        hard: float | None = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Replies:
        """Set the time limits of a task, in seconds."""
        arguments = {"task_name": task_name, "hard": hard, "soft": soft}
        return self.broadcast("time_limit", arguments, destination, **kwargs)

    def purge(self, connection: Any = None) -> int:
        """Discard every message that waits in the app's queues, delayed ones included; return how many."""
        broker = self.app.broker
        places = (Place.READY, Place.SCHEDULED)
        return sum(broker.purge(queue.name, place) for queue in self.app.queues(None) for place in places)

    discard_all = purge

    # -- workers -------------------------------------------------------------------------------------------------

    def ping(self, destination: Sequence[str] | None = None, timeout: float = 1.0, **kwargs: Any) -> Any:
        """Return ``[{node: {"ok": "pong"}}, ...]`` of the workers that answer."""
        return self.broadcast("ping", {}, destination, reply=True, timeout=timeout, **kwargs)

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Replies:
        """Tell workers to read this queue too."""
        arguments = {
            "queue": queue,
            "exchange": exchange,
            "exchange_type": exchange_type,
            "routing_key": routing_key,
            **(options or {}),
        }
        return self.broadcast("add_consumer", arguments, destination, **kwargs)

    def cancel_consumer(self, queue: str, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Tell workers to stop reading this queue."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **kwargs)

    def pool_grow(self, n: int = 1, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Add processes."""
        return self.broadcast("pool_grow", {"n": n}, destination, **kwargs)

    def pool_shrink(self, n: int = 1, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Take away processes, each when the task that it runs has ended."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **kwargs)

    def pool_restart(
        self,
        modules: Sequence[str] | None = None,
        reload: bool = False,
        reloader: Any = None,
        destination: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Replies:
        """Replace every process, each when the task that it runs has ended; the new ones import ``modules``."""
        arguments = {"modules": modules, "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", arguments, destination, **kwargs)

    def autoscale(self, max: int, min: int, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Change between how many processes an autoscaled worker may choose."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **kwargs)

    def shutdown(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Tell workers to end when what they run has ended. Nobody replies."""
        return self.broadcast("shutdown", {}, destination, **kwargs)

    def enable_events(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Tell workers to send task events."""
        return self.broadcast("enable_events", {}, destination, **kwargs)

    def disable_events(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Tell workers to send no task events."""
        return self.broadcast("disable_events", {}, destination, **kwargs)

    def heartbeat(self, destination: Sequence[str] | None = None, **kwargs: Any) -> Replies:
        """Ask for a heartbeat event now."""
        return self.broadcast("heartbeat", {}, destination, **kwargs)

    def election(self, id: str, topic: str, action: Any = None, connection: Any = None) -> None:
        """Hold an election among Celery's workers; ours take no part."""
        self.broadcast("election", {"id": id, "topic": topic, "action": action})
