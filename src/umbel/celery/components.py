"""``celery.worker.components`` and ``celery.worker.consumer``: the steps of Celery's worker, to be named.

``requires = {"celery.worker.components:Timer"}`` is the usual reason to import one. Umbel's worker has no such steps: a
step of your own runs when the worker is ready, and all that these stand for is there by then.
"""

from __future__ import annotations

from umbel.celery.bootsteps import StartStopStep, Step


class Timer(Step):
    """Celery's timer; a step of yours finds ``worker.timer``."""


class Hub(StartStopStep):
    """Celery's event loop."""


class Pool(StartStopStep):
    """Celery's pool."""


class Beat(StartStopStep):
    """Celery's embedded beat."""


class StateDB(Step):
    """Celery's file of revoked ids; Umbel keeps them in the broker."""


class Consumer(StartStopStep):
    """Celery's consumer."""


class Autoscaler(StartStopStep):
    """Celery's autoscaler."""


class Connection(StartStopStep):
    """Celery's connection to the broker."""


class Mingle(StartStopStep):
    """Celery's greeting between workers."""


class Events(StartStopStep):
    """Celery's sender of events."""


class Gossip(StartStopStep):
    """Celery's talk between workers."""


class Heart(StartStopStep):
    """Celery's heartbeat."""


class Control(StartStopStep):
    """Celery's remote control."""


class Tasks(StartStopStep):
    """Celery's consumer of tasks."""


class DelayedDelivery(StartStopStep):
    """Celery's queues for delayed messages."""


class Agent(StartStopStep):
    """Celery's agent."""
