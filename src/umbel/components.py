"""The part of an app that programs for Celery ask for by name: its loader, log, queues, connections, steps, worker.

Each is made when it is first asked for, from a class that is named here and may be named by a subclass or in the
constructor, as in Celery. Nothing in this package uses them.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from umbel.loading import symbol_by_name
from umbel.settings import Settings

if TYPE_CHECKING:
    from umbel.interfaces import Broker
    from umbel.queues import Queues


class Components:
    """What an app has in Celery's shape. Users see :class:`umbel.app.Umbel`."""

    IS_macOS = sys.platform == "darwin"
    IS_WINDOWS = sys.platform == "win32"

    amqp_cls: Any = "umbel.celery.amqp:AMQP"
    loader_cls: Any = "umbel.celery.loaders:AppLoader"
    log_cls: Any = "umbel.utils.log:Logging"

    @property
    def builtin_fixups(self) -> tuple[str, ...]:
        """What ties an app to a framework without being asked: Django's, where its settings are named."""
        return ("umbel.contrib.django.fixup:fixup",) if os.environ.get("DJANGO_SETTINGS_MODULE") else ()

    conf: Settings
    _components: dict[str, Any]

    if TYPE_CHECKING:  # what the other parts of an app do

        def make_broker(self) -> Broker: ...
        @property
        def queues(self) -> Queues: ...
        @property
        def broker_url(self) -> Any: ...

    def _component(self, name: str, default: Any) -> Any:
        return symbol_by_name(self._components.get(name) or default)

    @cached_property
    def loader(self) -> Any:
        """What imports modules of tasks."""
        given = self._component("loader", self.loader_cls)
        return given(self) if isinstance(given, type) else given

    @cached_property
    def log(self) -> Any:
        """What sets up logging."""
        return self._component("log", self.log_cls)(self.conf)

    @cached_property
    def amqp(self) -> Any:
        """Queues and routes in Celery's shape."""
        return self._component("amqp", self.amqp_cls)(self)

    @cached_property
    def annotations(self) -> Any:
        """What ``task_annotations`` holds, as objects."""
        return symbol_by_name("umbel.celery.annotations:prepare")(self.conf.task_annotations)

    # -- workers -------------------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> defaultdict[str, set[Any]]:
        """Steps that a worker starts and stops with itself: ``app.steps["worker"].add(MyStep)``."""
        found: defaultdict[str, set[Any]] = symbol_by_name("umbel.celery.bootsteps:steps_of")(self)
        return found

    @cached_property
    def user_options(self) -> defaultdict[str, set[Any]]:
        """Options of your own: ``app.user_options["worker"].add(click.Option(["--flag"]))``; ``preload`` for all."""
        return defaultdict(set)

    @property
    def WorkController(self) -> Any:
        """The worker's class, bound to this app."""
        return self.subclass_with_self("umbel.celery.workers:WorkController")

    @property
    def Worker(self) -> Any:
        """The worker's class as the command line runs it, bound to this app."""
        return self.subclass_with_self("umbel.celery.workers:Worker")

    @property
    def Beat(self) -> Any:
        """The class of a beat as the command line runs it, bound to this app."""
        return self.subclass_with_self("umbel.celery.beat_program:Beat")

    def subclass_with_self(
        self, Class: Any, name: str | None = None, attribute: str = "app", reverse: str | None = None, **kw: Any
    ) -> Any:
        """Return a subclass of a class that makes its objects with this app."""
        base = symbol_by_name(Class)
        app = self

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault(attribute, app)
            base.__init__(self, *args, **kwargs)

        attributes = {attribute: self, "__module__": base.__module__, "__doc__": base.__doc__, "__init__": __init__}
        return type(name or base.__name__, (base,), {**attributes, **kw})

    # -- connections ---------------------------------------------------------------------------------------------

    def connection_for_write(self, url: Any = None, **kwargs: Any) -> Any:
        """Return a connection to the broker, in kombu's shape: for a ping, or the length of a queue."""
        cls = symbol_by_name("umbel.celery.connection:Connection")
        return cls(url) if url else cls(str(self.broker_url), make=self.make_broker)

    connection = connection_for_read = broker_connection = default_connection = connection_for_write

    def connection_or_acquire(self, connection: Any = None, pool: bool = True, *_: Any, **__: Any) -> Any:
        """Return a block with the given connection, or with a new one."""
        return self._given(connection) or self.pool.acquire()

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Return a block with the given producer, or with one that knows no connection."""
        return self._given(producer) or symbol_by_name("umbel.celery.connection:Producer")()

    default_producer = producer_or_acquire

    @staticmethod
    def _given(value: Any) -> AbstractContextManager[Any] | None:
        return None if value is None else nullcontext(value)

    @cached_property
    def pool(self) -> Any:
        """What lends connections."""
        return symbol_by_name("umbel.celery.connection:ConnectionPool")(self.connection_for_write)

    @property
    def producer_pool(self) -> Any:
        """The same; nothing here needs a producer."""
        return self.pool

    def select_queues(self, queues: Any = None) -> Any:
        """Return the queues of these names in Celery's shape."""
        return {spec.name: self.amqp.queues[spec.name] for spec in self.queues(queues)}

    # -- settings ------------------------------------------------------------------------------------------------

    def either(self, default_key: str, *defaults: Any) -> Any:
        """Return the first value that is not None, or else a setting."""
        return next((value for value in defaults if value is not None), None) or self.conf.get(default_key)

    def prepare_config(self, c: Any) -> Any:
        """Return the settings as they are; for subclasses in Celery."""
        return c

    def config_from_cmdline(self, argv: Sequence[str], namespace: str = "celery") -> None:
        """Change settings by ``name=value`` and ``section.name=value``; values are read as JSON where they are it."""
        import json

        changes: dict[str, Any] = {}
        for word in argv:
            name, _, text = word.partition("=")
            try:
                changes[name.replace(".", "_")] = json.loads(text)
            except ValueError:
                changes[name.replace(".", "_")] = text
        self.conf.update(changes)

    def type_checker(self, fun: Any, bound: bool = False) -> Any:
        """Return what raises ``TypeError`` for arguments that a task does not take."""
        return symbol_by_name("umbel.celery.functional:head_from_fun")(fun, bound=bound)

    def bugreport(self) -> str:
        """Return what a bug report needs, secrets hidden."""
        return str(symbol_by_name("umbel.cli.look:describe")(self))
