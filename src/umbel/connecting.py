"""The part of an app that reaches the stores: its broker, its result backend, and publishing.

Connections belong to one process. A child made by ``fork`` starts with none; what it inherited is kept, unused, so
that closing it cannot disturb the parent's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from umbel import current
from umbel.connection_options import backend_options, broker_options
from umbel.drivers import Urls, choose, open_backend, open_broker, sends_results
from umbel.interfaces import Broker, Clock, Middleware, Outgoing, Published, QueueSpec, ResultBackend, ResultRecord
from umbel.meta import accepted, decode_meta, encode_meta
from umbel.publishing import Plan, publish_with_retries
from umbel.routing import Router
from umbel.sensitive import veil_of
from umbel.settings import Settings
from umbel.splitting import SplitBroker
from umbel.utils.identity import uuid
from umbel.waiting import Waiter

Publish = Callable[[Sequence[Outgoing]], Sequence[Published]]

_inherited: Final[list[Any]] = []


class Connecting:
    """What an app has to do with stores. Users see :class:`umbel.app.Umbel`. Safe to use from every thread."""

    main: str | None
    conf: Settings
    clock: Clock
    registry: Any
    module_file: str | None
    #: What wraps publishing and executing, outermost first. Change the list before the app is used.
    middlewares: list[Middleware]

    def _disconnected(self) -> None:
        """Start without connections, in a new app and in a new process."""
        self._connecting = threading.RLock()
        self._broker: Broker | None = None
        self._backend: ResultBackend | None = None
        self._backend_url: Any = _UNSET
        self._waiter: Waiter | None = None
        self._thread = threading.local()
        self._reply_to = ""  # of this process, where results are sent
        self._plans: dict[str, Plan] = {}
        self._router: tuple[int, Router] | None = None

    # -- stores --------------------------------------------------------------------------------------------------

    @property
    def urls(self) -> Urls:
        """Where this app reads, writes and keeps results."""
        return choose(self.conf, self.main, self.module_file)

    @property
    def broker_url(self) -> Any:
        """Where this app's messages go, with its password."""
        return self.urls.write

    @property
    def broker(self) -> Broker:
        """This process's broker, opened. Raises :exc:`OperationalError` if it cannot be reached."""
        return self._broker if self._broker is not None else self._open_broker()

    @property
    def connected(self) -> bool:
        """Whether this process has opened the broker."""
        return self._broker is not None

    def _open_broker(self) -> Broker:
        # Without the lock: where a server is silent each thread would wait for all before it. The first one is kept.
        broker = self.make_broker()
        broker.open()
        with self._connecting:
            if self._broker is None:
                current.register_app(self)
                self._broker = broker
            kept = self._broker
        if kept is not broker:
            broker.close()
        return kept

    def make_broker(self) -> Broker:
        """Return a new broker by these settings, not connected.

        Where ``broker_read_url`` and ``broker_write_url`` differ it reads at the one and publishes at the other.
        """
        urls, options = self.urls, broker_options(self.conf)
        options["find_queue"] = self._find_queue

        def at(url: Any) -> Broker:
            return open_broker(url, options=options, clock=self.clock, app_name=self.main or "")

        return at(urls.write) if urls.read == urls.write else SplitBroker(at(urls.read), at(urls.write))

    def _find_queue(self, name: str) -> QueueSpec | None:
        """Say how a queue is to be declared that a driver meets for the first time."""
        return self.router.queues.get(name)

    @property
    def backend(self) -> ResultBackend | None:
        """This process's result backend, opened, or None where results are disabled."""
        if self._backend_url is not _UNSET:
            return self._backend
        with self._connecting:
            if self._backend_url is _UNSET:
                url = self.urls.backend
                backend = self.make_backend()
                if backend is not None:
                    backend.open()
                    current.register_app(self)
                self._backend, self._backend_url = backend, url
            return self._backend

    def make_backend(self) -> ResultBackend | None:
        """Return a new result backend by these settings, not connected; None where results are disabled."""
        url = self.urls.backend
        options = backend_options(self.conf, url)
        return open_backend(url, options=options, clock=self.clock, app_name=self.main or "")

    @property
    def waiter(self) -> Waiter:
        """What waits for results in this process: one listener for every waiting thread and coroutine."""
        if self._waiter is None:
            with self._connecting:
                if self._waiter is None:
                    decode = partial(decode_meta, serializer=self.conf.result_serializer, accept=accepted(self.conf))
                    self._waiter = Waiter(self._required_backend, decode=decode, clock=self.clock)
        return self._waiter

    def _required_backend(self) -> ResultBackend:
        backend = self.backend
        if backend is None:
            raise NotImplementedError("No result backend is configured: set result_backend, or Umbel(backend=...)")
        return backend

    def store_state(
        self, task: Any, task_id: str | None, state: str | None, result: Any, request: Any, traceback: str | None = None
    ) -> None:
        """Store a state for a task id, unless a ready one is there; does nothing where results are disabled."""
        backend = task.backend
        if backend is None:
            return
        if not task_id or not state:
            raise ValueError(f"task {task.name}: update_state needs a task_id (none runs here) and a state")
        conf = self.conf
        payload = encode_meta(
            task_id,
            state,
            result,
            traceback if conf.result_store_traceback else None,
            date_done=self.clock.now(),
            request=request,
            extended=conf.result_extended,
            veil=veil_of(task),
            serializer=conf.result_serializer,
            compression=conf.result_compression,
        )
        expires = conf.seconds("result_expires") or None
        reply_to = getattr(request, "reply_to", None) or ""
        backend.store(ResultRecord(task_id=task_id, state=state, payload=payload, expires=expires, reply_to=reply_to))

    # -- queues --------------------------------------------------------------------------------------------------

    @property
    def router(self) -> Router:
        """The router for the settings as they are now."""
        version = self.conf.version
        if self._router is None or self._router[0] != version:
            router = Router(self.conf)
            self._router = self.conf.version, router
        return self._router[1]

    def queue_for(self, name: str, options: Mapping[str, Any] | None = None) -> QueueSpec:
        """Return the queue that a call of this task with these options goes to."""
        plan = self.plan(name)
        given = options or {}
        return plan.destination_of(plan.merge((), {}, given), given).queue

    # -- publishing ----------------------------------------------------------------------------------------------

    def plan(self, name: str) -> Plan:
        """Return what is remembered for sending the task of this name."""
        plan = self._plans.get(name)
        if plan is None or plan.version != self.conf.version:
            plan = self._remember(name, self.registry.get(name))
        return plan

    def plan_of(self, task: Any) -> Plan:
        """Do :meth:`plan` for a task that need not be registered."""
        plan = self._plans.get(task.name)
        if plan is None or plan.version != self.conf.version or plan.task is not task:
            plan = self._remember(task.name, task)
        return plan

    def _remember(self, name: str, task: Any) -> Plan:
        if task is not None:
            task.annotate(self)
        plan = self._plans[name] = Plan(self, name, task)
        return plan

    def forget_plan(self, task: Any) -> None:
        """Forget what is remembered for sending a task, because the task has changed."""
        self._plans.pop(task.name, None)

    def publish(
        self,
        outgoings: Sequence[Outgoing],
        *,
        retry: bool = True,
        policy: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Sequence[Published]:
        """Hand messages to the broker in one step, through the middlewares; return one outcome each.

        Tries again by ``task_publish_retry_policy`` (or ``policy``), all within ``publish_timeout`` seconds. Raises
        :exc:`OperationalError` if nothing was queued, :exc:`PublishUnknown` if that cannot be known.
        """
        if policy is None:
            policy = self.conf.task_publish_retry_policy or {}
        timeout = timeout or self.conf.publish_timeout
        if not self.middlewares:
            return publish_with_retries(self, outgoings, retry=retry, policy=policy, timeout=timeout)
        send: Publish = partial(publish_with_retries, self, retry=retry, policy=policy, timeout=timeout)
        return self.through_middlewares(send)(outgoings)

    def through_middlewares(self, send: Publish) -> Publish:
        """Return what hands messages to ``send`` through the middlewares, the first of them outermost."""
        for middleware in reversed(self.middlewares):
            send = partial(middleware.publish, call_next=send)
        return send

    @property
    def thread_oid(self) -> str:
        """An id of this app in this thread; where replies to this thread's calls go.

        All threads have the same one where results are sent: each address is a queue of the server.
        """
        try:
            oid: str = self._thread.oid
        except AttributeError:
            oid = uuid()
            if sends_results(self.urls.backend) and self.backend is not None:
                with self._connecting:
                    oid = self._reply_to = self._reply_to or oid
                self.backend.expect(oid)
            self._thread.oid = oid
        return oid

    def close(self) -> None:
        """Give up every connection and stop being anyone's current app. It may be used again."""
        current.deregister_app(self)
        with self._connecting:
            waiter, broker, backend = self._waiter, self._broker, self._backend
            self._disconnected()
        for each in (waiter, broker, backend):
            if each is not None:
                each.close()


_UNSET: Final = object()


def _after_fork() -> None:
    for app in current.active_apps():
        _inherited.extend((app._broker, app._backend, app._waiter))
        app._disconnected()
        app.on_after_fork.send(sender=app)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
