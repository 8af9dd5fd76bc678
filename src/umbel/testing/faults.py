"""Fault points: a worker or producer that dies, stops or fails at a chosen call of its store.

Use :class:`FaultyUmbel` in place of ``Umbel`` in a module for tests, and say in the environment what is to happen::

    UMBEL_FAULT=settle:before:3:kill        the third settle of a process never reaches the store
    UMBEL_FAULT=publish:after:1:error       the first publish is applied, and its caller is told that it failed
    UMBEL_FAULT=settle:before:1:kill,release:after:1:kill       one after the other

A fault is ``method:when:call:action``. The methods are those of :data:`POINTS`: every round trip to the store. ``when``
is ``before`` (nothing has happened in the store) or ``after`` (it has, and nobody was told). Calls are counted from 1
in each process. The action is ``kill`` (SIGKILL to the process itself), ``stop`` (SIGSTOP) or ``error``
(:exc:`~umbel.exceptions.OperationalError`, or :exc:`~umbel.exceptions.PublishUnknown` after a publish).

With ``UMBEL_FAULT_MARKS`` naming a folder each fault happens once among all processes, and leaves a file there: its
name is the fault, its content the id of the process. Without it every process meets every fault.

No product code knows of this: an ordinary ``Umbel`` has no fault points, and they cost it nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from umbel.app import Umbel
from umbel.exceptions import ImproperlyConfigured, OperationalError, PublishUnknown
from umbel.interfaces import Broker, ResultBackend

#: The methods at which a fault can be planned, by what has them.
POINTS: Final[Mapping[str, frozenset[str]]] = {
    "broker": frozenset({"publish"}),
    "consumer": frozenset({"reserve", "begin", "settle"}),
    "leases": frozenset({"register", "renew", "release", "suspects", "reap"}),
    "backend": frozenset({"store"}),
}
_MAKES: Final = {"consumer", "leases"}  # methods of a broker that return something with points of its own
_WHEN: Final = ("before", "after")
_ACTIONS: Final = ("kill", "stop", "error")


class Fault(msgspec.Struct, frozen=True):
    """One planned fault.

    >>> Fault.parse("settle:before:3:kill")
    Fault(method='settle', when='before', call=3, action='kill')
    """

    method: str
    when: str
    call: int
    action: str

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault that the text describes; ImproperlyConfigured if it describes none."""
        words = text.strip().split(":")
        methods = sorted(set().union(*POINTS.values()))
        if len(words) != 4 or not words[2].isdecimal() or int(words[2]) < 1:
            raise ImproperlyConfigured(f"fault {text!r}: write method:when:call:action, such as settle:before:1:kill")
        for word, known in ((words[0], methods), (words[1], _WHEN), (words[3], _ACTIONS)):
            if word not in known:
                raise ImproperlyConfigured(f"fault {text!r}: {word!r} is unknown; use one of {', '.join(known)}")
        return cls(words[0], words[1], int(words[2]), words[3])

    def __str__(self) -> str:
        return f"{self.method}:{self.when}:{self.call}:{self.action}"


class FaultPlan:
    """The faults of this process, and how often each method was called. Safe to share between threads."""

    def __init__(self, faults: str, marks: str | os.PathLike[str] | None = None) -> None:
        """``faults`` are separated by commas; ``marks`` is a folder, which makes each of them happen once."""
        self.faults = [Fault.parse(text) for text in faults.split(",") if text.strip()]
        self._marks = Path(marks) if marks else None
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the method, with what is planned before it or after it."""
        with self._lock:
            self._calls[name] += 1
            number = self._calls[name]
        due = [fault for fault in self.faults if (fault.method, fault.call) == (name, number)]
        for fault in due:
            if fault.when == "before":
                self._meet(fault, args)
        answer = method(*args, **kwargs)
        for fault in due:
            if fault.when == "after":
                self._meet(fault, args)
        return answer

    def _meet(self, fault: Fault, args: tuple[Any, ...]) -> None:
        if not self._mark(fault):
            return
        if fault.action == "error":
            text = f"planned fault {fault}"
            if (fault.method, fault.when) == ("publish", "after"):
                raise PublishUnknown(args[0][0].task_id, text)
            raise OperationalError(text)
        if fault.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            # To this thread, which stops the process at once. Sent to the process, the signal may be taken up by
            # another thread, and this one would run on for a while: into the call, and a transaction.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        # Another thread may be the one that takes the signal; until it has, this one must not go on.
        time.sleep(0.1)

    def _mark(self, fault: Fault) -> bool:
        """Say whether this process is the one that meets the fault, and leave the mark."""
        if self._marks is None:
            return True
        path = self._marks / str(fault)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(descriptor, str(os.getpid()).encode())
        os.close(descriptor)
        return True


class _Watched:
    """Passes everything on to a driver's object, through the plan where there is a fault point."""

    __slots__ = ("_kind", "_plan", "real")

    def __init__(self, real: Any, kind: str, plan: FaultPlan) -> None:
        self.real = real
        self._kind = kind
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if name in POINTS[self._kind]:
            return lambda *args, **kwargs: self._plan.call(name, value, *args, **kwargs)
        if self._kind == "broker" and name in _MAKES:
            return lambda *args, **kwargs: _Watched(value(*args, **kwargs), name, self._plan)
        return value


class FaultyUmbel(Umbel):
    """An app whose broker and result backend have fault points; what happens there, the environment says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fault_plan = FaultPlan(os.environ.get("UMBEL_FAULT", ""), os.environ.get("UMBEL_FAULT_MARKS"))
        self._watched: dict[str, _Watched] = {}

    @property
    def broker(self) -> Broker:
        """This process's broker, with fault points."""
        return cast(Broker, self._watch("broker", super().broker))

    @property
    def backend(self) -> ResultBackend | None:
        """This process's result backend, with fault points; None where results are disabled."""
        real = super().backend
        return None if real is None else cast(ResultBackend, self._watch("backend", real))

    def _watch(self, kind: str, real: object) -> _Watched:
        # A forked child and a closed app open anew.
        watched = self._watched.get(kind)
        if watched is None or watched.real is not real:
            watched = self._watched[kind] = _Watched(real, kind, self.fault_plan)
        return watched
