"""``celery.bootsteps``: steps that start and stop with a worker, and a blueprint that puts them in order.

``app.steps["worker"]`` and ``app.steps["consumer"]`` take classes of steps. They run in the worker's supervisor, or in
its only process under ``-P solo`` and in tests: made and started when it is ready, stopped in reverse when it ends.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from umbel import signals
from umbel.celery.timer import Timer
from umbel.loading import symbol_by_name
from umbel.registry import qualname

logger = logging.getLogger("celery.bootsteps")

RUN: Final = 0x1
CLOSE: Final = 0x2
TERMINATE: Final = 0x3


class Step:
    """Something that is made with a worker. Subclasses define :meth:`create`."""

    name: str | None = None
    label: str | None = None
    #: Steps, or names of them, that are made before this one. Those that Umbel's worker has not are passed over.
    requires: Iterable[Any] = ()
    conditional = False
    enabled = True
    last = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__dict__.get("name") is None:
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Prepare; ``kwargs`` are the options of the worker's command line, the app's own among them."""

    def include_if(self, parent: Any) -> bool:
        """Say whether the step is wanted."""
        return self.enabled

    def instantiate(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Make what a name leads to."""
        return symbol_by_name(name)(*args, **kwargs)

    def create(self, parent: Any) -> Any:
        """Make what the step is about."""

    def include(self, parent: Any) -> bool:
        """Make it if it is wanted, and say whether it was."""
        if not self.include_if(parent):
            return False
        self.create(parent)
        return True

    def info(self, obj: Any) -> Any:
        """Return what ``inspect stats`` may show."""
        return None

    @property
    def alias(self) -> str:
        """The label, or the last part of the name."""
        return self.label or str(self.name).rpartition(".")[2]

    def __repr__(self) -> str:
        return f"<step: {self.alias}>"


class StartStopStep(Step):
    """A step that is started and stopped. What :meth:`create` returns is started and stopped with it."""

    obj: Any = None

    def include(self, parent: Any) -> bool:
        """Make it if it is wanted, and say whether it was."""
        if not self.include_if(parent):
            return False
        self.obj = self.create(parent)
        return True

    def start(self, parent: Any) -> Any:
        """Called when the worker is ready."""
        return self.obj.start() if self.obj is not None else None

    def stop(self, parent: Any) -> Any:
        """Called when the worker ends."""
        return self.obj.stop() if self.obj is not None else None

    def close(self, parent: Any) -> Any:
        """Called before all steps are stopped."""

    def terminate(self, parent: Any) -> Any:
        """Called in place of :meth:`stop` when there is no time."""
        return self.stop(parent)


class ConsumerStep(StartStopStep):
    """A step that reads messages of its own: :meth:`get_consumers` returns kombu's consumers on a channel.

    They are called in a thread of their own, on a connection of their own, and made anew when that was lost. Needs
    kombu, and Redis or RabbitMQ; without, starting it raises :exc:`ImproperlyConfigured`.
    """

    consumers: Any = None
    _consumption: Any = None

    def get_consumers(self, channel: Any) -> Any:
        """Return kombu's consumers; for subclasses."""
        raise NotImplementedError("missing get_consumers")

    def start(self, c: Any) -> None:
        """Start reading."""
        from umbel.celery.consuming import Consumption

        self._consumption = Consumption(self, c.app)
        self._consumption.start()

    def stop(self, c: Any) -> None:
        """Stop reading; what was not acknowledged goes back."""
        consumption, self._consumption = self._consumption, None
        if consumption is not None:
            consumption.stop()

    shutdown = stop


class Blueprint:
    """Steps in the order that their ``requires`` asks for."""

    name: str | None = None
    default_steps: Iterable[Any] = ()
    state: int | None = None

    def __init__(self, steps: Any = None, name: str | None = None, **callbacks: Any) -> None:
        self.name = name or self.name or qualname(type(self))
        self.types = [*self.default_steps, *(steps or ())]
        self.steps: dict[str, Step] = {}
        self.order: list[Step] = []
        self.started = 0

    def apply(self, parent: Any, **kwargs: Any) -> Blueprint:
        """Make the steps that are wanted."""
        for cls in _sorted(symbol_by_name(each) for each in self.types):
            step = cls(parent, **kwargs)
            self.steps[str(step.name)] = step
            if step.include(parent):
                self.order.append(step)
        return self

    def start(self, parent: Any) -> None:
        """Start the steps in order."""
        self.state = RUN
        for step in self.order:
            self.started += 1
            if isinstance(step, StartStopStep):
                logger.debug("| Worker: Starting %s", step.alias)
                step.start(parent)

    def stop(self, parent: Any, close: bool = True, terminate: bool = False) -> None:
        """Stop what was started, the last first. What one raises is logged, and the others are stopped all the same."""
        if self.state != RUN:
            return
        self.state = CLOSE
        started = [step for step in self.order[: self.started] if isinstance(step, StartStopStep)]
        for method, steps in (("close", started), ("terminate" if terminate else "stop", started[::-1])):
            for step in steps:
                try:
                    getattr(step, method)(parent)
                except Exception:  # the step's own code runs here
                    logger.error("Error on %s of step %s", method, step.alias, exc_info=True)
        self.state = TERMINATE

    def info(self, parent: Any) -> dict[str, Any]:
        """Return what the steps say about themselves."""
        found: dict[str, Any] = {}
        for step in self.order:
            found.update(step.info(parent) or {})
        return found

    def __getitem__(self, name: str) -> Step:
        return self.steps[name]


def _sorted(types: Iterable[Any]) -> Iterator[Any]:
    """Yield each class after those that it requires."""
    classes = sorted(types, key=lambda cls: (bool(cls.last), str(cls.name)))
    known = {str(cls.name): cls for cls in classes}
    done: set[Any] = set()

    def visit(cls: Any) -> Iterator[Any]:
        if cls in done:
            return
        done.add(cls)
        for required in cls.requires:
            other = known.get(required.replace(":", ".") if isinstance(required, str) else str(required.name))
            if other is not None:
                yield from visit(other)
        yield cls

    for cls in classes:
        yield from visit(cls)


# -- in Umbel's worker -----------------------------------------------------------------------------------------------


class StepParent:
    """What a step gets as its worker (or consumer): the app, the node's name, options and a timer."""

    def __init__(self, app: Any, worker: Any) -> None:
        self.app = app
        self.worker = self.controller = worker
        self.hostname: str = worker.hostname
        self.options: dict[str, Any] = dict(getattr(app, "user_values", None) or {})
        self.timer = Timer()
        self.steps: list[Any] = []

    @property
    def connection(self) -> Any:
        """A new connection of kombu's to the broker; whoever asks for it closes it. Raises where there can be none."""
        from umbel.celery.consuming import kombu_connection

        return kombu_connection(self.app, "the connection of a step")

    def stop(self, *args: Any, **kwargs: Any) -> None:
        """End the worker as SIGTERM does."""
        self.worker.stop()


_blueprints: Final[WeakKeyDictionary[Any, list[tuple[Blueprint, StepParent]]]] = WeakKeyDictionary()


def steps_of(app: Any) -> defaultdict[str, set[Any]]:
    """Return the two sets of steps of an app, and have its workers run what is put into them."""
    steps: defaultdict[str, set[Any]] = defaultdict(set, {"worker": set(), "consumer": set()})
    own = ref(app)

    def ready(sender: Any, **kwargs: Any) -> None:
        app = own()
        if app is None or getattr(sender, "_app", None) is not app:
            return
        running = _blueprints[app] = []
        for kind in ("worker", "consumer"):
            if steps[kind]:
                parent = StepParent(app, sender)
                blueprint = Blueprint(steps[kind], name=kind)
                running.append((blueprint, parent))
                blueprint.apply(parent, **parent.options).start(parent)

    def shutdown(sender: Any, **kwargs: Any) -> None:
        app = own()
        if app is not None and getattr(sender, "_app", None) is app:
            for blueprint, parent in reversed(_blueprints.pop(app, [])):
                blueprint.stop(parent)
                parent.timer.stop()

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutdown.connect(shutdown, weak=False)
    return steps
