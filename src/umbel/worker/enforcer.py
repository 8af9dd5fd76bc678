"""What the supervisor does to processes that do not do it themselves.

    past a hard limit    killed; the message goes to the ends with a verdict, or back where the task's class says so
    terminated           asked, and a second later killed; where others share the process it is only asked
    stands still         its stacks are dumped, then killed (``stuck_after``)
    busy in C code       what it has reserved and not started is given back for it

Before a process is killed its gate is shut and its slot is read once more: nothing new has started by then, so the
only task that dies is the one that was meant, or those that share its process, which come again uncounted.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from umbel.interfaces import Verdict, VerdictKind
from umbel.revoking import Revocation
from umbel.worker.limits import HARD_EXCEEDED
from umbel.worker.place import Place
from umbel.worker.plan import WorkerPlan
from umbel.worker.process import DUMP_SIGNAL, Stacks, Terminate
from umbel.worker.slots import SETTLING, Started

logger = logging.getLogger("celery.worker.request")
control_logger = logging.getLogger("celery.worker.control")
pool_logger = logging.getLogger("celery.pool")

#: Seconds for which a process may hold back what it has not started; it gives that back itself after a third of it.
RECALL_AFTER = 0.3
#: Seconds between asking a task to end and killing its process.
TERMINATE_GRACE = 1.0
#: Seconds for which a task that starts late is still terminated by a request that came before.
_TERMINATE_FOR = 5.0
_DUMP_TIME = 0.3
_TICK = 0.25


class _Termination(msgspec.Struct):
    """One task that is to be stopped. ``asked_at`` is when its process was told; 0.0 before that."""

    signum: int
    until: float
    token: int = 0
    asked_at: float = 0.0


class Enforcer:
    """Belongs to the supervisor's thread. ``kill`` ends a place's process; ``recall`` takes back what it holds."""

    def __init__(
        self,
        app: Any,
        plan: WorkerPlan,
        *,
        kill: Callable[[Place, int], None],
        recall: Callable[[Place], None],
    ) -> None:
        self._app = app
        self._plan = plan
        self._kill = kill
        self._recall = recall
        self._terminations: dict[str, _Termination] = {}
        self._stuck: dict[int, float] = {}
        self._next = 0.0

    def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Terminate what these say. That nothing of it starts is the processes' own affair."""
        now = time.monotonic()
        for revocation in revocations:
            if revocation.terminate:
                number = int(getattr(signal, revocation.signal, signal.SIGTERM))
                for id in revocation.ids:
                    self._terminations[id] = _Termination(signum=number, until=now + _TERMINATE_FOR)
            if revocation.ids:
                control_logger.info("Tasks flagged as revoked: %s", ", ".join(revocation.ids))

    def tend(self, places: Sequence[Place]) -> None:
        """Look at what runs, and do what is due."""
        now = time.monotonic()
        self._next = now + _TICK
        for place in places:
            if place.pid and not place.killed:
                self._tend(place, place.running(), now)
        if self._terminations:
            over = [id for id, each in self._terminations.items() if each.until < now]
            for id in over:
                del self._terminations[id]

    def patience(self, now: float) -> float:
        """Return the seconds until :meth:`tend` has something to do."""
        return max(0.0, self._next - now)

    def _tend(self, place: Place, running: Sequence[Started], now: float) -> None:
        overdue = []
        for each in running:
            if each.hard_at:
                if each.hard_at <= now:
                    overdue.append(each)
                else:
                    self._wake_at(each.hard_at)
            if each.task_id in self._terminations:
                self._terminate(place, each, now)
            if each.behind and self._plan.forks:
                self._recall_behind(place, each, now)
        if overdue and not place.killed:
            self._time_out(place, overdue)
        if self._plan.stuck_after is not None and not place.killed:
            self._watch(place, running, now)

    def _wake_at(self, moment: float) -> None:
        self._next = min(self._next, moment)

    # -- killing -------------------------------------------------------------------------------------------------

    def _caught(self, place: Place, executions: Sequence[Started]) -> list[Started]:
        """Shut the gate and return which of these run; if none does, the gate is open again."""
        place.slot.shut(True)
        time.sleep(SETTLING)
        still = [each for each in executions if place.slot.still(each)]
        if not still:
            place.slot.shut(False)
        return still

    def _time_out(self, place: Place, overdue: Sequence[Started]) -> None:
        still = self._caught(place, overdue)
        for each in still:
            logger.error(HARD_EXCEEDED, f"{each.hard:g}", each.task, each.task_id)
            self._condemn(place, each, f"the hard time limit of {each.hard:g} s was exceeded")
        if still:
            self._kill(place, signal.SIGKILL)

    def _condemn(self, place: Place, execution: Started, detail: str) -> None:
        task = self._app.tasks.get(execution.task)
        if task is not None and task.acks_late and not task.acks_on_timeout:
            # Counted, so that a task which never gets done in time does not come again for ever.
            place.counted.add(execution.tag)
        else:
            place.verdicts[execution.tag] = Verdict(kind=VerdictKind.TIME_LIMIT, detail=detail)

    # -- terminating ---------------------------------------------------------------------------------------------

    def _terminate(self, place: Place, execution: Started, now: float) -> None:
        termination = self._terminations[execution.task_id]
        name = signal.Signals(termination.signum).name
        first = termination.token != execution.token
        if first:
            control_logger.info("Terminating %s (%s)", execution.task_id, name)
            termination.token, termination.asked_at = execution.token, now
            termination.until = max(termination.until, now + TERMINATE_GRACE + 1.0)
            # A process that is killed anyway must not end its task by itself first: nobody would hear of the revoke.
            if termination.signum != signal.SIGKILL or not self._plan.forks:
                place.send(Terminate(execution.task_id, termination.signum))
        if not self._plan.forks:
            if first:
                return
            if now - termination.asked_at > TERMINATE_GRACE:
                control_logger.warning(
                    "Task %s[%s] goes on until its next cancel point: its process runs other tasks too",
                    execution.task,
                    execution.task_id,
                )
                del self._terminations[execution.task_id]
            return
        verdict = Verdict(kind=VerdictKind.TERMINATED, detail=name)
        # Also if the process ends by itself, on being asked in the wrong moment.
        place.doomed[execution.tag] = verdict
        if termination.signum == signal.SIGKILL or now - termination.asked_at >= TERMINATE_GRACE:
            if self._caught(place, [execution]):
                place.verdicts[execution.tag] = verdict
                self._kill(place, signal.SIGKILL)
        else:
            self._wake_at(termination.asked_at + TERMINATE_GRACE)

    # -- standing still ------------------------------------------------------------------------------------------

    def _watch(self, place: Place, running: Sequence[Started], now: float) -> None:
        after = self._plan.stuck_after
        assert after is not None
        seconds = place.stands_still(running, now)
        if seconds < after:
            self._stuck.pop(place.index, None)
            if running:
                self._wake_at(now + after - seconds)
            return
        dumped_at = self._stuck.get(place.index)
        if dumped_at is None:
            self._stuck[place.index] = now
            names = ", ".join(f"{each.task}[{each.task_id}]" for each in running)
            pool_logger.error("Process pid:%d makes no progress since %.0f s with %s", place.pid, seconds, names)
            if DUMP_SIGNAL is not None:
                self._kill(place, DUMP_SIGNAL)
            else:
                place.send(Stacks())
            self._wake_at(now + _DUMP_TIME)
        elif now - dumped_at >= _DUMP_TIME:
            del self._stuck[place.index]
            still = self._caught(place, running)
            for each in still:
                self._condemn(place, each, f"its process made no progress for {after:g} s")
            if still:
                self._kill(place, signal.SIGKILL)

    # -- taking back ---------------------------------------------------------------------------------------------

    def _recall_behind(self, place: Place, execution: Started, now: float) -> None:
        due = execution.since + RECALL_AFTER
        if place.recalled == execution.token or place.slot.recalling:
            return
        if now < due:
            self._wake_at(due)
            return
        place.recalled = execution.token
        self._recall(place)
