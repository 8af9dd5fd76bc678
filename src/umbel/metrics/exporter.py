"""``umbel metrics``: listens to events, looks at the broker, and serves both to Prometheus."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from umbel.events.receiver import EventReceiver
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError
from umbel.metrics.labels import Labels
from umbel.metrics.scale import answer, question_of
from umbel.metrics.sets import SETS
from umbel.metrics.survey import Survey
from umbel.metrics.tally import Tally
from umbel.utils.text import did_you_mean

logger = logging.getLogger("umbel.metrics")

#: Queues that may be looked at besides those of the app.
_LEARNED_QUEUES: Final = 200
#: Names of tasks that may be learned from workers, besides those of the app.
_LEARNED: Final = 1000
_RETRY_AFTER: Final = 1.0
_LAST: Final = 2.0


class Exporter:
    """Gathers what is to be served. ``start`` and ``close`` belong to its owner; the rest is for any thread."""

    def __init__(
        self,
        app: Any,
        *,
        queues: Sequence[str] | None = None,
        sets: Sequence[str] = ("umbel",),
        every: float = 15.0,
        enable_events: bool = False,
    ) -> None:
        """Prepare; nothing is connected. ``queues`` are those of the app if not given, and up to 200 that become known.

        Every so many seconds the workers are asked what they read, and with ``enable_events`` to tell of their tasks.
        Raises :exc:`ImproperlyConfigured` for a set of names that does not exist.
        """
        self._app = app
        self._every = every
        self._enable_events = enable_events
        self._registry = CollectorRegistry()
        specs = app.queues(queues)
        names = [spec.name for spec in specs]
        bindings = Counter((spec.exchange, spec.routing_key) for spec in specs)
        # What leads to several queues names none of them.
        routes = {key: spec.name for spec in specs if bindings[key := (spec.exchange, spec.routing_key)] == 1}
        self._made = [_set(name)(self._registry) for name in dict.fromkeys(sets)]
        self._tally = Tally(
            Labels(app.tasks, limit=_LEARNED),
            Labels(names, limit=0 if queues else _LEARNED_QUEUES),
            routes,
            [each.told for each in self._made],
            [each.forget for each in self._made],
        )
        self._most = len(names) + (0 if queues else _LEARNED_QUEUES)
        self._survey = Survey(app, (), self._tally.sent_at)
        self._look_at([*names, *sorted(app.queues.routed())])
        self._processes = "celery-exporter" in sets
        for each in self._made:
            each.attach(self._tally, self._survey)
        self._closing = threading.Event()
        self._joined = threading.Event()
        self._receiver: Any = None
        self._listening = threading.Event()
        self._threads = [
            threading.Thread(target=self._listen, name="umbel-metrics-events", daemon=True),
            threading.Thread(target=self._ask, name="umbel-metrics-workers", daemon=True),
        ]

    def start(self) -> None:
        """Begin to listen. The broker may be away: it is waited for."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop. A second call does nothing."""
        self._closing.set()
        self._joined.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_LAST)

    @property
    def ready(self) -> bool:
        """Whether events are heard."""
        return self._listening.is_set()

    def page(self, accept: str = "") -> tuple[str, bytes]:
        """Return the content type and the metrics, in the format that this ``Accept`` header prefers."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def scale(self, query: Mapping[str, Sequence[str]]) -> dict[str, Any] | None:
        """Return what an autoscaler asks for; None if the broker is away. Raises ``ValueError`` for a bad query."""
        question = question_of(query, self._survey.queues)
        looks = self._survey.look()
        return None if looks is None else answer(question, looks, self._tally.mean_run(question.queues))

    def ask(self) -> None:
        """Ask the workers now, and look at the schedules. Takes a second or two."""
        if self._enable_events:
            self._app.control.enable_events()
        with contextlib.suppress(OperationalError, BrokerError):
            # Those of before stay: a queue whose last reader has ended is still to be seen.
            self._look_at([*self._survey.queues, *self._app.queues.known()])
        self._survey.read_schedules()
        self._survey.ask(self._tally.tasks, processes=self._processes)

    def _look_at(self, queues: Iterable[str]) -> None:
        names = tuple(dict.fromkeys(queues))[: self._most]
        for name in names:
            self._tally.learn_queue(name)
        self._survey.queues = names

    # -- the threads ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        away = False
        while not self._closing.is_set():
            try:
                self._receiver = _Receiver(app=self._app, handlers={"*": self._event}, listening=self._listening)
                if not self._closing.is_set():
                    self._receiver.capture()
            except (OperationalError, BrokerError) as error:
                if self._listening.is_set() or not away:
                    logger.warning("No events are heard while the broker is away: %s", error)
                away = True
            # The wall of this thread: whatever it is, the exporter goes on.
            except Exception:
                logger.exception("Listening to events failed, and begins anew")
            self._listening.clear()
            self._closing.wait(_RETRY_AFTER)

    def _event(self, event: dict[str, Any]) -> None:
        # The wall around one event, which anybody may have sent.
        try:
            self._tally.event(event)
        except Exception:
            logger.exception("An event of type %.100r was not counted", event.get("type"))
        if event.get("type") == "worker-online":
            self._joined.set()

    def _ask(self) -> None:
        while not self._closing.is_set():
            # The wall of this thread, and around replies that anybody may have sent.
            try:
                self.ask()
            except (OperationalError, BrokerError) as error:
                logger.debug("The workers cannot be asked: %s", error)
            except Exception:
                logger.exception("Asking the workers failed")
            # Whoever joins is asked at once, but no more often than every second.
            self._closing.wait(_RETRY_AFTER)
            self._joined.wait(self._every - _RETRY_AFTER)
            self._joined.clear()


def _set(name: str) -> Any:
    if name not in SETS:
        raise ImproperlyConfigured(
            f"unknown set of metrics {name!r}; there are {', '.join(SETS)}{did_you_mean(name, SETS)}"
        )
    return SETS[name]


class _Receiver(EventReceiver):
    """Says when it listens: from then on no event is missed."""

    def __init__(self, *, listening: threading.Event, **options: Any) -> None:
        super().__init__(**options)
        self._listening = listening

    def wakeup_workers(self, channel: Any = None) -> None:
        """Ask all workers for a heartbeat now; it is done when it listens already."""
        self._listening.set()
        super().wakeup_workers(channel)
